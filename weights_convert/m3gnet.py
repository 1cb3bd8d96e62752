"""M3GNet as matgl before 3.0.0 saves it: a folder with state.pt (tensors) and model.json (options)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers

from jaxmlip.models.m3gnet import M3GNetConfig
from jaxmlip.system.borders import CheckpointError, brief, cut, guard, listed
from weights_convert import torch_zip
from weights_convert.rules import Rule, linear

CONVENTION = (
    "Chen & Ong 2022, with right bond numbers in the three-body term: each bond is given the sum over its "
    "own angles, which matgl up to 4.0.3 gives to other bonds if the three-body cutoff is below the cutoff. "
    "Messages run from i to j and are summed at j, as in matgl before 3.0.0, with which the weights were "
    "fitted."
)
FILES = ("state.pt", "model.json")
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
LARGEST_JSON = 10_000_000  # bytes; the published files have some thousands

EMBEDDING = "model.embedding.layer_node_embedding.weight"
REFERENCES = "element_refs.property_offset"
SIDES = ("layers", "gates")  # the core and the gate of a gated MLP
BUFFERS = ("model.bond_expansion.rbf.cutoff", "model.basis_expansion.sbf.cutoff")


def read(folder: Path) -> dict[str, Any]:
    """The files of a folder that matgl saved, by name. No code in them is run.

    Raises CheckpointError if one is missing or cannot be read.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"it has no {' and no '.join(missing)}; needed {LAYOUT}.", folder)
    options = folder / "model.json"
    again = "Needed the file as matgl wrote it: fetch it again."
    if options.stat().st_size > LARGEST_JSON:
        raise CheckpointError(f"it has {options.stat().st_size:,} bytes. {again}", options)
    text = options.read_bytes()
    with guard(options, CheckpointError, again):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"it is not JSON ({cut(str(error), 100)}). {again}") from None
    return {"state.pt": torch_zip.read(folder / "state.pt"), "model.json": found}


def recognises(checkpoint: Any) -> bool:
    """True if `checkpoint` is a folder that matgl saved, by the names of its files."""
    return isinstance(checkpoint, Mapping) and set(checkpoint) == set(FILES)


def tensors(checkpoint: Any) -> dict[str, np.ndarray]:
    """The network's tensors by name, with rows for atomic numbers instead of the elements of the file."""
    numbers, state = elements(checkpoint), dict(_state(checkpoint))
    width = _options(checkpoint)[1]["dim_node_embedding"]
    for name, first, shape in ((EMBEDDING, 1, (len(numbers), width)), (REFERENCES, 0, (len(numbers),))):
        rows = state.get(name)
        if rows is None:
            continue  # reported with everything else that is missing
        if rows.shape != shape:
            raise CheckpointError(
                f"{name}: found shape {brief(rows.shape)}, needed {shape}, {len(numbers)} rows as "
                "element_types."
            )
        by_number = np.zeros((max(numbers) + 1 - first, *rows.shape[1:]), rows.dtype)
        by_number[np.array(numbers) - first] = rows
        state[name] = by_number
    return state


def _state(checkpoint: Any) -> Mapping[str, np.ndarray]:
    state = checkpoint["state.pt"]
    if isinstance(state, Mapping) and state:
        kinds = {(type(name), isinstance(tensor, np.ndarray)) for name, tensor in state.items()}
        if kinds == {(str, True)}:
            return state
    raise CheckpointError("state.pt holds something else than named tensors; fetch it again.")


def config(checkpoint: Any) -> M3GNetConfig:
    """The architecture of the checkpoint. Raises CheckpointError, naming the option, if it is unknown."""
    around, args = _options(checkpoint)
    wrong = [
        f"{key}={brief(found)} (needed {value!r})"
        for key, value in SUPPORTED.items()
        # Of these, only is_intensive means something else if it is left out.
        if type(found := args.get(key, value if key != "is_intensive" else None)) is not type(value)
        or found != value
    ]
    known = {*SUPPORTED, *COUNTS, *LENGTHS, *IRRELEVANT, "element_types", "use_smooth"}
    wrong += [f"{key}={brief(args[key])} (unknown)" for key in args if key not in known]
    if around.get("calc_repuls"):
        wrong.append(f"calc_repuls={brief(around['calc_repuls'])} (needed False)")
    wrong += [
        f"{key}={brief(args.get(key))} (needed a whole number from 1 to {most})"
        for key, most in COUNTS.items()
        if type(args.get(key)) is not int or not 1 <= args[key] <= most
    ]
    wrong += [
        f"{key}={brief(args.get(key))} (needed a length in Å)"
        for key in LENGTHS
        if type(args.get(key)) not in (int, float) or not 0 < args[key] < math.inf
    ]
    if type(args.get("use_smooth")) is not bool:
        wrong.append(f"use_smooth={brief(args.get('use_smooth'))} (needed true or false)")
    if not wrong and args["threebody_cutoff"] > args["cutoff"]:
        wrong.append(f"threebody_cutoff={args['threebody_cutoff']} (needed at most cutoff={args['cutoff']})")
    if args.get("dim_edge_embedding") != args.get("dim_node_embedding"):
        wrong.append("dim_node_embedding and dim_edge_embedding differ (needed one width)")
    if not wrong:
        wrong = _other_numbers(_state(checkpoint), args)
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
    )


def elements(checkpoint: Any) -> tuple[int, ...]:
    """The atomic numbers of the file's element_types, in its order."""
    symbols = _options(checkpoint)[1].get("element_types")
    if not isinstance(symbols, list) or not symbols or not all(isinstance(s, str) for s in symbols):
        raise CheckpointError(f"model.json has element_types={brief(symbols)}, needed different elements.")
    if len(set(symbols)) != len(symbols):
        raise CheckpointError(f"model.json has element_types={brief(symbols)}, needed different elements.")
    unknown = [s for s in symbols if not atomic_numbers.get(s)]
    if unknown:
        raise CheckpointError(f"model.json names the elements {listed(unknown, ', ')}, which do not exist.")
    return tuple(atomic_numbers[s] for s in symbols)


def rules(config: M3GNetConfig) -> list[Rule]:
    """The rules by which tensors become parameters."""
    three_body, conv = "model.three_body_interactions.{k}", "model.graph_layers.{k}.conv"
    readout = "model.final_layer.gated"
    return [
        Rule((EMBEDDING,), ("network/elements",)),
        Rule((REFERENCES,), ("reference_energies",)),
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
        "data_mean": "zero",
        r"element_refs\.onehot": "the identity matrix",
    }


def _options(checkpoint: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The arguments of matgl's Potential, and of its M3GNet. Raises CheckpointError for anything else."""
    model = checkpoint["model.json"]
    around = model.get("kwargs") if isinstance(model, Mapping) else None
    inner = around.get("model") if isinstance(around, Mapping) else None
    kinds = [its.get("@class") if isinstance(its, Mapping) else None for its in (model, inner)]
    if kinds != ["Potential", "M3GNet"]:
        raise CheckpointError(_of_matgl(*kinds))
    if inner.get("@module") in LATER_MODULES or LATER_OPTION in around:
        raise CheckpointError(
            "model.json has an M3GNet of matgl 3.0.0 or later, whose messages run the other way; needed one "
            "of matgl before 3.0.0, such as those that `jaxmlip models` lists, or one trained with it."
        )
    version, args = inner.get("@model_version"), inner.get("init_args")
    if version != VERSION or not isinstance(args, Mapping):
        raise CheckpointError(
            f"model.json has an M3GNet with @model_version {brief(version)} and the options {brief(args)}; "
            f"needed @model_version {VERSION} and init_args, as matgl before 3.0.0 saves it."
        )
    return around, args


def _of_matgl(outer: Any, inner: Any) -> str:
    """A description of a folder of another class of matgl, with a remedy."""
    names = [kind for kind in (outer, inner) if isinstance(kind, str) and kind != "Potential"]
    if names == ["M3GNet"]:
        return (
            "model.json has an M3GNet alone, without energies of the elements; needed the Potential around "
            "it: Potential(model, …).save(FOLDER)."
        )
    if names:
        instead = "; chgnet's own files are: load('chgnet-0.3.0')" if names == ["CHGNet"] else ""
        return (
            f"model.json has a {cut(names[0], 40)} of matgl, which is not read here{instead}. Of matgl, "
            "Potentials around an M3GNet are read."
        )
    return (
        f"model.json has @class {brief(outer)} around {brief(inner)}; needed a Potential around an M3GNet, "
        "as matgl before 3.0.0 saves it."
    )


def _other_numbers(state: Mapping[str, Any], args: Mapping[str, Any]) -> list[str]:
    """Tensors that are set aside because of their value, but have another value."""
    wrong = [
        f"{name}={_shown(state[name])} (needed cutoff={args['cutoff']})"
        for name in BUFFERS
        if name in state and not np.array_equal(state[name], np.asarray(args["cutoff"], state[name].dtype))
    ]
    if "data_mean" in state and np.any(state["data_mean"]):
        wrong.append(f"data_mean={_shown(state['data_mean'])} (needed 0: energies add up over atoms)")
    return wrong


def _shown(tensor: np.ndarray) -> str:
    return f"{tensor.item()}" if tensor.size == 1 else brief(tensor)


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
