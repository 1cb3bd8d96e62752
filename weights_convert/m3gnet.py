"""M3GNet as matgl saves it: a folder with state.pt (tensors) and model.json (options)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmlip.models.m3gnet import M3GNetConfig
from jaxmlip.system.borders import CheckpointError, brief, listed
from weights_convert import matgl
from weights_convert.rules import Rule, linear

CONVENTION = (
    "Chen & Ong 2022, with right bond numbers in the three-body term: each bond is given the sum over its "
    "own angles, which matgl up to 4.0.3 gives to other bonds if the three-body cutoff is below the cutoff. "
    "Messages run from i to j and are summed at j, as in matgl before 3.0.0, or at i if at_start is true, as "
    "in matgl since: as in the version that saved the weights."
)
LAYOUT = "a folder with state.pt and model.json of matgl"

# Options that fix the architecture, with the only value supported here.
SUPPORTED: dict[str, Any] = {
    "include_state": False,
    "is_intensive": False,
    "use_phi": False,
    "rbf_type": "SphericalBessel",
    "activation_type": "swish",
    "task_type": "regression",
    "ntargets": 1,
}
COUNTS = {
    "dim_node_embedding": 4096,
    "dim_edge_embedding": 4096,
    "units": 4096,
    "max_n": 64,
    "max_l": 3,
    "nblocks": 32,
}  # with the largest accepted value
LENGTHS = ("cutoff", "threebody_cutoff")
NAMES = {
    "features": "dim_node_embedding",
    "hidden": "units",
    "radial": "max_n",
    "angular": "max_l",
    "blocks": "nblocks",
    "bond_cutoff": "cutoff",
    "angle_cutoff": "threebody_cutoff",
}  # our names of the options that are read
# No effect if the energy is a sum over atoms and there is no state.
IRRELEVANT = {
    *("readout_type", "niters_set2set", "nlayers_set2set", "field"),
    *("dim_state_embedding", "dim_state_feats", "ntypes_state"),
    "dropout",  # acts only in training
}
VERSION = 2  # of the class M3GNet in the files
# The place of that class in matgl 3. matgl 4 has it in the old place, but its Potential has one more option.
LATER_MODULES = ("matgl.models._m3gnet_dgl", "matgl.models._m3gnet_pyg")
LATER_OPTION = "compile_model"

EMBEDDING = "model.embedding.layer_node_embedding.weight"
SIDES = ("layers", "gates")  # the core and the gate of a gated MLP
BUFFERS = ("model.bond_expansion.rbf.cutoff", "model.basis_expansion.sbf.cutoff")


def recognises(checkpoint: Any) -> bool:
    """True if `checkpoint` is a folder that matgl saved, of this network or of none that is known."""
    return matgl.recognises(checkpoint) and "CHGNet" not in matgl.classes(checkpoint)


def tensors(checkpoint: Any) -> dict[str, np.ndarray]:
    """The network's tensors by name, with rows for atomic numbers instead of the elements of the file."""
    width = _options(checkpoint)[1]["dim_node_embedding"]
    return matgl.by_number(matgl.state(checkpoint), elements(checkpoint), EMBEDDING, width)


def config(checkpoint: Any) -> M3GNetConfig:
    """The architecture of the checkpoint. Raises CheckpointError, naming the option, if it is unknown."""
    around, args = _options(checkpoint)
    wrong = matgl.unsupported(around, args, SUPPORTED, COUNTS, LENGTHS, IRRELEVANT | {"use_smooth"})
    if type(args.get("use_smooth")) is not bool:
        wrong.append(f"use_smooth={brief(args.get('use_smooth'))} (needed true or false)")
    if not wrong and args["threebody_cutoff"] > args["cutoff"]:
        wrong.append(f"threebody_cutoff={args['threebody_cutoff']} (needed at most cutoff={args['cutoff']})")
    if args.get("dim_edge_embedding") != args.get("dim_node_embedding"):
        wrong.append("dim_node_embedding and dim_edge_embedding differ (needed one width)")
    if not wrong:
        wrong = _other_numbers(matgl.state(checkpoint), args)
    if wrong:
        raise CheckpointError("this M3GNet has options that are not supported: " + listed(wrong) + ".")
    return M3GNetConfig(
        features=args["dim_node_embedding"],
        hidden=args["units"],
        radial=args["max_n"],
        angular=args["max_l"],
        blocks=args["nblocks"],
        bond_cutoff=float(args["cutoff"]),
        angle_cutoff=float(args["threebody_cutoff"]),
        smooth=args["use_smooth"],
        elements=max(elements(checkpoint)),
        at_start=_is_later(checkpoint),
    )


def elements(checkpoint: Any) -> tuple[int, ...]:
    """The atomic numbers of the file's element_types, in its order."""
    return matgl.elements(_options(checkpoint)[1].get("element_types"))


def rules(config: M3GNetConfig) -> list[Rule]:
    """The rules by which tensors become parameters."""
    three_body, conv = "model.three_body_interactions.{k}", "model.graph_layers.{k}.conv"
    readout = "model.final_layer.gated"
    return [
        Rule((EMBEDDING,), ("network/elements",)),
        Rule((matgl.REFERENCES,), ("reference_energies",)),
        Rule(("data_std",), ("network/scale",), lambda x: np.reshape(x, 1)),
        linear("model.embedding.layer_edge_embedding.layers.0", "bond_embedding"),
        linear(f"{three_body}.update_network_atom.layers.0", "three_body_{k}/atom"),
        Rule(
            tuple(f"{three_body}.update_network_bond.{side}.0.weight" for side in SIDES),
            ("network/three_body_{k}/bond/kernel",),
            kernel_of_both_sides,
        ),
        *_message(f"{conv}.edge", "bond_update_{k}"),
        *_message(f"{conv}.node", "atom_update_{k}"),
        Rule(
            _sides(f"{readout}.{{side}}.0"),
            ("network/readout_first/kernel", "network/readout_first/bias"),
            both_sides,
        ),
        *_later_layers(readout, "readout", 3),
    ]


def set_aside(config: M3GNetConfig) -> dict[str, str]:
    """Patterns of tensors that are not used, each with the reason."""
    return {
        "|".join(map(re.escape, BUFFERS)): "the cutoff, which is among the hyperparameters",
        **matgl.SET_ASIDE,
    }


def _options(checkpoint: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The arguments of matgl's Potential, and of its M3GNet. Raises CheckpointError for anything else."""
    around, inner = matgl.parts(checkpoint, "M3GNet")
    return around, matgl.arguments(inner, VERSION, "matgl")


def _is_later(checkpoint: Any) -> bool:
    """Whether matgl 3.0.0 or later saved it."""
    around, inner = matgl.parts(checkpoint, "M3GNet")
    return inner.get("@module") in LATER_MODULES or LATER_OPTION in around


def _other_numbers(state: Mapping[str, Any], args: Mapping[str, Any]) -> list[str]:
    """Tensors that are set aside because of their value, but have another value."""
    wrong = [
        f"{name}={matgl.shown(state[name])} (needed cutoff={args['cutoff']})"
        for name in BUFFERS
        if name in state and not np.array_equal(state[name], np.asarray(args["cutoff"], state[name].dtype))
    ]
    return wrong + matgl.shift(state)


def _message(source: str, target: str) -> list[Rule]:
    first = _sides(f"{source}_update_func.{{side}}.0")
    parts = ("atoms/kernel", "bond/kernel", "bond/bias")
    return [
        Rule(first, tuple(f"network/{target}/{part}" for part in parts), split_message),
        *_later_layers(f"{source}_update_func", f"{target}/phi", 2),
        linear(f"{source}_weight_func", f"{target}/weight", bias=False),
    ]


def _later_layers(source: str, target: str, count: int) -> list[Rule]:
    # The original also counts activations.
    return [
        linear(f"{source}.{side}.{2 * n}", f"{target}/{name}_{n}")
        for n in range(1, count + 1)
        for side, name in zip(SIDES, ("core", "gate"), strict=True)
    ]


def _sides(template: str) -> tuple[str, ...]:
    """Names of the weights of core and gate, then of their biases."""
    return tuple(f"{template.replace('{side}', s)}.{kind}" for kind in ("weight", "bias") for s in SIDES)


def kernel_of_both_sides(core, gate):
    return np.concatenate([core.T, gate.T], axis=1)


def both_sides(core, gate, core_bias, gate_bias):
    """The kernel and the bias of core and gate side by side."""
    return kernel_of_both_sides(core, gate), np.concatenate([core_bias, gate_bias])


def split_message(core, gate, core_bias, gate_bias):
    """Splits W of [v_i, v_j, e_ij], core and gate, into products over atoms and over bonds."""
    (core_i, core_j, core_e), (gate_i, gate_j, gate_e) = (np.split(w.T, 3) for w in (core, gate))
    atoms = np.concatenate([core_i, gate_i, core_j, gate_j], axis=1)
    return atoms, np.concatenate([core_e, gate_e], axis=1), np.concatenate([core_bias, gate_bias])
