"""matgl's own CHGNet, as its DGL and its PyTorch Geometric versions save it: state.pt and model.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmlip.models.matgl_chgnet import MatglCHGNetConfig
from jaxmlip.system.borders import CheckpointError, brief, listed
from weights_convert import matgl
from weights_convert.rules import Rule, linear

CONVENTION = (
    "CHGNet as matgl computes its energy, with forces that are its derivatives, angles included. A bond "
    "between an atom and its own image within the three-body cutoff sends angles the features of the "
    "direction that arrives, as all other bonds do."
)
LAYOUT = "a folder with state.pt and model.json of matgl"

# Options that fix the architecture, with the only value supported here; all but is_intensive are defaults.
SUPPORTED: dict[str, Any] = {
    "dim_state_embedding": None,
    "dim_state_feats": None,
    "non_linear_bond_embedding": False,
    "non_linear_angle_embedding": False,
    "shared_bond_weights": "both",
    "layer_bond_weights": None,
    "angle_update_hidden_dims": [],
    "final_mlp_type": "mlp",
    "pooling_operation": "sum",
    "readout_field": "atom_feat",
    "activation_type": "swish",
    "normalize_hidden": False,
    "is_intensive": False,
    "num_targets": 1,
    "num_site_targets": 1,
    "task_type": "regression",
}
COUNTS = {
    "dim_atom_embedding": 4096,
    "max_n": 1024,
    "max_f": 1024,
    "num_blocks": 32,
    "cutoff_exponent": 64,
}  # with the largest accepted value
LENGTHS = ("cutoff", "threebody_cutoff")
NAMES = {
    "features": "dim_atom_embedding",
    "radial": "max_n",
    "angular": "max_f",
    "blocks": "num_blocks",
    "bond_cutoff": "cutoff",
    "angle_cutoff": "threebody_cutoff",
    "envelope": "cutoff_exponent",
    "readout": "final_hidden_dims",
}  # our names of the options that are read
WIDTHS = ("dim_bond_embedding", "dim_angle_embedding")  # all are that of atoms
HIDDEN = ("atom_conv_hidden_dims", "bond_conv_hidden_dims", "bond_update_hidden_dims")
# Of these, dropout acts only in training, learn_basis says what training changes, and error_handling repeats
# what failed because of rounding.
IRRELEVANT = {"conv_dropout", "final_dropout", "learn_basis", "error_handling"}
VERSION = 1  # of the class CHGNet in the files
ALL_ELEMENTS = tuple(range(1, 95))  # those of a file whose element_types are null

EMBEDDING = "model.atom_embedding.weight"
SIDES = (("layers", "core"), ("gates", "gate"))  # of a gated MLP: names there, and here
# Parts of names since matgl moved to PyTorch Geometric, and before that.
RENAMED = {"conv": "conv_layer", "value": "layers", "gate": "gates", "norms": "norm_layers"}


def recognises(checkpoint: Any) -> bool:
    """True if `checkpoint` is a folder that matgl saved, of a CHGNet."""
    return matgl.recognises(checkpoint) and "CHGNet" in matgl.classes(checkpoint)


def tensors(checkpoint: Any) -> dict[str, np.ndarray]:
    """The network's tensors by their older names, with rows for atomic numbers instead of elements."""
    found: dict[str, np.ndarray] = {}
    for name, tensor in matgl.state(checkpoint).items():
        older = ".".join(RENAMED.get(part, part) for part in name.split("."))
        if older in found:
            raise CheckpointError(f"state.pt has {name}, and {older} too; needed one of them.")
        found[older] = tensor
    args = _options(checkpoint)[1]
    return matgl.by_number(found, _rows(args), EMBEDDING, args["dim_atom_embedding"])


def config(checkpoint: Any) -> MatglCHGNetConfig:
    """The architecture of the checkpoint. Raises CheckpointError, naming the option, if it is unknown."""
    around, args = _options(checkpoint)
    others = {*WIDTHS, *HIDDEN, *IRRELEVANT, "final_hidden_dims", "normalization"}
    wrong = matgl.unsupported(around, args, SUPPORTED, COUNTS, LENGTHS, others)
    width = args.get("dim_atom_embedding")
    wrong += [
        f"{key}={brief(args.get(key))} (needed {width}, as dim_atom_embedding)"
        for key in WIDTHS
        if type(args.get(key)) is not int or args[key] != width
    ]
    wrong += [
        f"{key}={brief(args.get(key))} (needed [{width}], as dim_atom_embedding)"
        for key in HIDDEN
        if args.get(key, ...) is not None or key != "bond_update_hidden_dims"
        if not _is_whole(args.get(key)) or args[key] != [width]
    ]
    if not _is_whole(args.get("final_hidden_dims")):
        wrong.append(f"final_hidden_dims={brief(args.get('final_hidden_dims'))} (needed whole numbers)")
    if args.get("normalization", ...) not in (None, "layer"):
        wrong.append(f"normalization={brief(args.get('normalization'))} (needed 'layer' or null)")
    wrong = wrong or matgl.shift(matgl.state(checkpoint))
    if wrong:
        raise CheckpointError("this CHGNet has options that are not supported: " + listed(wrong) + ".")
    return MatglCHGNetConfig(
        features=width,
        radial=args["max_n"],
        angular=args["max_f"],
        blocks=args["num_blocks"],
        bond_cutoff=float(args["cutoff"]),
        angle_cutoff=float(args["threebody_cutoff"]),
        envelope=args["cutoff_exponent"],
        norm=args["normalization"] == "layer",
        bond_update=args["bond_update_hidden_dims"] is not None,
        readout=tuple(args["final_hidden_dims"]),
        elements=max(_rows(args)),
    )


def elements(checkpoint: Any) -> tuple[int, ...]:
    """The atomic numbers of the file's element_types, in its order.

    If it has none, the elements are all that have an energy: its data had no others.
    """
    args = _options(checkpoint)[1]
    if args.get("element_types") is not None:
        return _rows(args)
    energies = tensors(checkpoint).get(matgl.REFERENCES)
    if energies is None or not np.any(energies):
        return ALL_ELEMENTS
    return tuple(int(z) for z in np.flatnonzero(energies))


def rules(config: MatglCHGNetConfig) -> list[Rule]:
    """The rules by which tensors become parameters."""
    atoms, bonds = "model.atom_graph_layers.{k}", "model.bond_graph_layers.{k}.conv_layer"
    basis = ("bond_expansion", "threebody_bond_expansion", "angle_expansion")
    frequencies = ("bond_frequencies", "short_bond_frequencies", "angle_frequencies")
    return [
        Rule((EMBEDDING,), ("network/elements",)),
        Rule((matgl.REFERENCES,), ("reference_energies",)),
        Rule(("data_std",), ("network/scale",), lambda x: np.reshape(x, 1)),
        *(
            Rule((f"model.{source}.frequencies",), (f"network/{target}",))
            for source, target in zip(basis, frequencies, strict=True)
        ),
        linear("model.bond_embedding.layers.0", "bond_embedding", bias=False),
        Rule(("model.angle_embedding.layers.0.weight",), ("network/angle_embedding/kernel",), _cosines_first),
        linear("model.atom_bond_weights", "atom_weight", bias=False),
        *([linear("model.bond_bond_weights", "bond_weight", bias=False)] if config.bond_update else []),
        linear("model.threebody_bond_weights", "short_bond_weight", bias=False),
        *_message(f"{atoms}.conv_layer.node_update_func", "atom_conv_{k}/atom_update", config),
        *_message(f"{atoms}.conv_layer.edge_update_func", "atom_conv_{k}/bond_update", config),
        linear(f"{atoms}.conv_layer.node_out_func", "atom_conv_{k}/out", bias=False),
        _norm(f"{atoms}.atom_norm", "atom_conv_{k}/atom_norm/norm"),
        _norm(f"{atoms}.bond_norm", "atom_conv_{k}/bond_norm/norm"),
        *_angles(f"{bonds}.node_update_func", "bond_conv_{k}", config, hidden=True),
        linear(f"{bonds}.node_out_func", "bond_conv_{k}/out", bias=False),
        *_angles(f"{bonds}.edge_update_func", "angle_update_{k}", config, hidden=False),
        linear("model.sitewise_readout", "magmom"),
        *(
            linear(f"model.final_layer.layers.{n}", f"readout/layer_{n}")
            for n in range(len(config.readout) + 1)
        ),
    ]


def set_aside(config: MatglCHGNetConfig) -> dict[str, str]:
    """Patterns of tensors that are not used, each with the reason."""
    last = config.blocks - 1
    unread = [
        rf"model\.atom_graph_layers\.{last}\.bond_norm\..*",
        rf"model\.bond_graph_layers\.{last - 1}\.conv_layer\.edge_update_func\..*",
        *([] if config.bond_update else [r"model\.bond_bond_weights\.weight"]),
    ]
    return {**matgl.SET_ASIDE, "|".join(unread): "nothing reads what it gives"}


def _options(checkpoint: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The arguments of matgl's Potential, and of its CHGNet. Raises CheckpointError for anything else."""
    around, inner = matgl.parts(checkpoint, "CHGNet")
    return around, matgl.arguments(inner, VERSION, "matgl")


def _rows(args: Mapping[str, Any]) -> tuple[int, ...]:
    """The atomic numbers for which the tensors have rows."""
    symbols = args.get("element_types")
    return ALL_ELEMENTS if symbols is None else matgl.elements(symbols)


def _is_whole(found: Any) -> bool:
    return isinstance(found, list) and all(type(item) is int for item in found)


def _norm(source: str, target: str) -> Rule:
    return Rule(
        (f"{source}.weight", f"{source}.bias"),
        (f"network/{target}/scale", f"network/{target}/bias"),
        lambda scale, bias: (scale, bias),
    )


def _message(source: str, target: str, config: MatglCHGNetConfig) -> list[Rule]:
    parts = ("atoms/kernel", "bond/kernel", "bond/bias")
    return [
        Rule(_first(source), tuple(f"network/{target}/{part}" for part in parts), _split_message),
        *_rest(source, f"{target}/phi", config, hidden=True),
    ]


def _angles(source: str, target: str, config: MatglCHGNetConfig, hidden: bool) -> list[Rule]:
    parts = ("bonds/kernel", "atom/kernel", "angle/kernel", "angle/bias")
    return [
        Rule(_first(source), tuple(f"network/{target}/inputs/{part}" for part in parts), _split_angles),
        *_rest(source, f"{target}/phi", config, hidden),
    ]


def _first(source: str) -> tuple[str, ...]:
    """Names of the weights of core and gate, then of their biases."""
    return tuple(f"{source}.{side}.layers.0.{kind}" for kind in ("weight", "bias") for side, _ in SIDES)


def _rest(source: str, target: str, config: MatglCHGNetConfig, hidden: bool) -> list[Rule]:
    later = [linear(f"{source}.{side}.layers.1", f"{target}/{name}") for side, name in SIDES if hidden]
    norms = [_norm(f"{source}.{side}.norm_layers.0", f"{target}/{name}_norm") for side, name in SIDES]
    return later + (norms if config.norm else [])


def _split_message(core, gate, core_bias, gate_bias):
    """Splits W of [v_i, e_ij, v_j], core and gate, into products over atoms and over bonds."""
    (core_i, core_e, core_j), (gate_i, gate_e, gate_j) = (np.split(w.T, 3) for w in (core, gate))
    atoms = np.concatenate([core_i, gate_i, core_j, gate_j], axis=1)
    return atoms, np.concatenate([core_e, gate_e], axis=1), np.concatenate([core_bias, gate_bias])


def _split_angles(core, gate, core_bias, gate_bias):
    """Splits W of [e_ji, a_jik, v_i, e_ik], core and gate, into products over bonds, atoms and angles."""
    arriving, angle, atom, leaving = (
        np.concatenate(sides, axis=1) for sides in zip(*(np.split(w.T, 4) for w in (core, gate)), strict=True)
    )
    bonds = np.concatenate([arriving, leaving], axis=1)
    return bonds, atom, angle, np.concatenate([core_bias, gate_bias])


def _cosines_first(weight):
    """The matrix of the cosines, then of the sines: matgl has them by turns, that of frequency zero first."""
    return np.concatenate([weight.T[::2], weight.T[1::2]])
