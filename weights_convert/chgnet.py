"""CHGNet checkpoints: those in the `chgnet` package, and those that its trainer writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from jaxmlip.models.activations import ACTIVATIONS
from jaxmlip.models.chgnet import CHGNetConfig, GatedMLP
from jaxmlip.system.borders import CheckpointError, brief, listed
from weights_convert.modules import class_of, contents
from weights_convert.rules import Rule, linear
from weights_convert.torch_zip import Record

CONVENTION = (
    "Deng et al. 2023. The output bias of a bond convolution (of the published models 0.2.0 has one), and a "
    "norm after it, act on the bonds of every crystal, also of one without angles, for which the chgnet "
    "package leaves them out."
)
LAYOUT = "{'model': {'state_dict': …, 'model_args': …}} of chgnet's trainer"
GATED = ("core", "gate")
EMBEDDING = "atom_embedding.embedding.weight"
REFERENCES = "composition_model.fc.weight"
NO_ENERGY = 1e-6  # eV; a fitted reference energy below this is a zero with rounding errors


def recognises(checkpoint: Any) -> bool:
    """True if `checkpoint` is laid out as the chgnet package lays out its files."""
    model = checkpoint.get("model") if isinstance(checkpoint, Mapping) else None
    return isinstance(model, Mapping) and {"state_dict", "model_args"} <= set(model)


def tensors(checkpoint: Any) -> dict[str, np.ndarray]:
    """The network's tensors by name; reference energies of zero if it was made without."""
    state, args = _state(checkpoint), checkpoint["model"]["model_args"]
    if isinstance(args, Mapping) and args.get("composition_model", "MPtrj") is None:
        state.setdefault(REFERENCES, np.zeros((1, CHGNetConfig.elements), np.float32))
    return state


def _state(checkpoint: Any) -> dict[str, np.ndarray]:
    state = checkpoint["model"]["state_dict"]
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"state_dict is {brief(state)}, needed named tensors.")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
            raise CheckpointError(
                f"state_dict has {brief(tensor)} under the name {brief(name)}, needed named tensors alone."
            )
    return dict(state)


# Arguments that do not affect predictions: dropout acts only in training, and learnable_rbf says what
# training changes.
IRRELEVANT = {
    *("mlp_dropout", "conv_dropout", "learnable_rbf", "graph_converter_algorithm", "version"),
    *("cutofff_coeff", "converter_verbose", "num_heads", "mlp_out_bias"),
}
# Arguments that are true or false, with their default.
FLAGS = {
    "update_bond": True,
    "update_angle": True,
    "mlp_first": True,
    "is_intensive": True,
    "skip_connection": False,
}
# Arguments that name a norm, in the order of CHGNetConfig.norms.
NORMS = ("gMLP_norm", "conv_norm", "readout_norm")
HIDDEN = {
    "atom_hidden": "atom_conv_hidden_dim",
    "bond_hidden": "bond_conv_hidden_dim",
    "angle_hidden": "angle_layer_hidden_dim",
    "readout": "mlp_hidden_dims",
}
# Our names of the other arguments that are read.
NUMBERS = {
    "features": "atom_fea_dim",
    "bond_features": "bond_fea_dim",
    "angle_features": "angle_fea_dim",
    "radial": "num_radial",
    "angular": "num_angular",
    "blocks": "n_conv",
    "bond_cutoff": "atom_graph_cutoff",
    "angle_cutoff": "bond_graph_cutoff",
    "envelope": "cutoff_coeff",
}
NAMES = NUMBERS | HIDDEN | {"activation": "non_linearity"}
NEEDED = {*NUMBERS.values(), *HIDDEN.values()} - {"angle_layer_hidden_dim"} | {"gMLP_norm", "readout_norm"}
READ = {*NEEDED, *NORMS, *FLAGS, *NAMES.values(), "read_out", "composition_model", "final_mlp"}
PLAIN = ("MLP", "normal")  # of final_mlp; the package takes any other word for a gated MLP
# Fitted reference energies in the package: of energies per atom, and of those of crystals.
PER_ATOM, PER_CRYSTAL = ("MPtrj", "MPtrj_e", "MP-r2SCAN"), ("MPF",)


def config(checkpoint: Any) -> CHGNetConfig:
    """The architecture of the checkpoint. Raises CheckpointError, naming the option, if it is unknown."""
    args, state = checkpoint["model"]["model_args"], _state(checkpoint)
    if not isinstance(args, Mapping) or not set(args) >= NEEDED:
        missing = sorted(NEEDED - set(args)) if isinstance(args, Mapping) else []
        raise CheckpointError(
            f"model_args is {brief(args)}"
            + (f", without {listed(missing, ', ')}" if missing else "")
            + "; needed the options of the network, as chgnet's trainer saves them."
        )
    if wrong := [*_unknown(args), *_broken(args, state)]:
        raise CheckpointError("this CHGNet has options that are not supported: " + listed(wrong) + ".")
    found = {name: _number(args[option]) for name, option in NUMBERS.items()}
    found |= {
        name: float(found[name]) for name in ("bond_cutoff", "angle_cutoff") if type(found[name]) is int
    }
    found |= {name: _hidden(args.get(option, 0)) for name, option in HIDDEN.items()}
    # What is as in the published files is left to the defaults.
    width = found["features"]
    for name in ("bond_features", "angle_features"):
        found[name] = None if _equal(found[name], width) else found[name]
    for name in ("atom_hidden", "bond_hidden"):
        found[name] = None if found[name] == (width,) else found[name]
    norms = tuple(_norm_of(args.get(key)) for key in NORMS)
    usual = {("layer", "none", "layer"): True, ("none",) * 3: False}
    return CHGNetConfig(
        **found,
        norm=usual.get(norms, True),
        norms=None if norms in usual else norms,
        activation=args.get("non_linearity", "silu").lower(),
        update_bonds=args.get("update_bond", True),
        update_angles=args.get("update_angle", True),
        gated_readout=args.get("final_mlp", "MLP") not in PLAIN,
        pooled=not args.get("mlp_first", True),
        # The files of 0.2.0 have the biases without mentioning them.
        output_bias="atom_conv_layers.0.mlp_out.layers.1.bias" in state,
    )


def _unknown(args: Mapping[str, Any]) -> Iterator[str]:
    """Options of an unknown name, and those with a value that the package does not know either."""
    known = {*IRRELEVANT, *READ}
    for key in args:
        if key not in known:
            yield f"{key if isinstance(key, str) else brief(key)}={brief(args[key])} (unknown)"
    for key in FLAGS:
        if not isinstance(args.get(key, True), bool):
            yield f"{key}={brief(args[key])} (needed true or false)"
    for key in NORMS:
        if _norm_of(args.get(key)) is None:
            yield f"{key}={brief(args[key])} (needed 'layer', 'batch' or None)"
    for key in ("bond_fea_dim", "angle_fea_dim"):
        if args[key] is None:
            yield f"{key}=None (needed a width)"
    for key in HIDDEN.values():
        if isinstance(args.get(key), str) or args.get(key, 0) in ([], ()):
            yield f"{key}={brief(args[key])} (needed a width, a list of them, or 0 for no hidden layer)"
    word = args.get("non_linearity", "silu")
    if not isinstance(word, str) or word.lower() not in ACTIVATIONS:
        yield f"non_linearity={brief(word)} (needed one of {', '.join(ACTIVATIONS)})"
    if not isinstance(args.get("final_mlp", "MLP"), str):
        yield f"final_mlp={brief(args['final_mlp'])} (needed a word)"


def _broken(args: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Options with which the package's energies are none that have derivatives."""
    if args.get("skip_connection", False) is True:
        yield "skip_connection=True (needed False: chgnet 0.4 has no such layers)"
    if args["cutoff_coeff"] in (0, None):
        yield (
            f"cutoff_coeff={brief(args['cutoff_coeff'])} (needed a whole number from 1 on: without an "
            "envelope energies jump where a neighbour comes within the cutoff)"
        )
    if args.get("mlp_first", True) is False and args.get("read_out", "ave") != "ave":
        yield (
            f"mlp_first=False with read_out={brief(args['read_out'])} (needed 'ave': with the weights of an "
            "attention the energy per atom depends on how often the cell is repeated)"
        )
    fitted, intensive = args.get("composition_model", "MPtrj"), args.get("is_intensive", True)
    if fitted is None and REFERENCES in state:
        yield f"composition_model=None, with a tensor {REFERENCES} (needed one or the other)"
    if fitted is None:
        return
    per_atom = _is_per_atom(fitted)
    if per_atom is None:
        yield (
            f"composition_model={brief(fitted)} (needed {', '.join(PER_ATOM + PER_CRYSTAL)}, None or an "
            "AtomRef: an energy of each element)"
        )
    elif isinstance(intensive, bool) and per_atom is not intensive:
        its = ("of a crystal", "per atom")
        yield (
            f"is_intensive={intensive} with composition_model={brief(fitted)} (needed reference energies "
            f"{its[intensive]}: the package adds those {its[per_atom]} to an energy {its[intensive]})"
        )


def _is_per_atom(fitted: Any) -> bool | None:
    """Whether the package's reference energies are of energies per atom; None if it has no such."""
    if isinstance(fitted, str):
        return fitted in PER_ATOM if fitted in PER_ATOM + PER_CRYSTAL else None
    if not isinstance(fitted, Record) or class_of(fitted) != "chgnet.model.composition_model.AtomRef":
        return None
    found = contents(fitted).get("is_intensive")
    return found if isinstance(found, bool) else None


def _norm_of(found: Any) -> str | None:
    """The kind of norm that an option names; None if it names none that is known."""
    if found is None:
        return "none"
    word = found.lower() if isinstance(found, str) else found
    return word if word in ("layer", "batch") else None


def _hidden(found: Any) -> tuple[Any, ...]:
    """The hidden widths that an option gives: a number, several, or 0 or None for no hidden layer."""
    if isinstance(found, list | tuple):
        return tuple(map(_number, found))
    return () if found is None or _equal(_number(found), 0) else (_number(found),)


def _equal(found: Any, value: Any) -> bool:
    return type(found) is type(value) and found == value


def _number(found: Any) -> Any:
    """Returns whole numbers as int, other values unchanged."""
    if isinstance(found, np.generic):
        found = found.item()
    return int(found) if isinstance(found, float) and found.is_integer() else found


def elements(checkpoint: Any) -> tuple[int, ...]:
    """The atomic numbers that occurred in the data to which the checkpoint was fitted.

    Two traces show that an element was absent. The fit of the reference energies leaves it at zero. And the
    mean square gradient that Adam keeps for its embedding, saved beside the weights, is exactly zero. The
    published models lack Po, At, Rn, Fr and Ra; the r2SCAN one also lacks Yb, which it once learnt from PBE
    data.
    """
    fitted = np.abs(np.ravel(tensors(checkpoint)[REFERENCES])) > NO_ENERGY
    if not fitted.any():  # no reference energies were fitted
        fitted[:] = True
    squares = _mean_square_gradients(checkpoint, EMBEDDING)
    if squares is not None:
        seen = squares.any(axis=1)
        # A model fine-tuned on a few elements still knows the others: the trace does not show them.
        if 2 * np.sum(fitted & seen) > np.sum(fitted):
            fitted &= seen
    return tuple(int(z) for z in np.flatnonzero(fitted) + 1)


def _mean_square_gradients(checkpoint: Any, name: str) -> np.ndarray | None:
    """The state of Adam for the tensor `name`; None if the file has no such record."""
    state = _state(checkpoint)
    optimizer = checkpoint.get("optimizer")
    kept = optimizer.get("state") if isinstance(optimizer, Mapping) else None
    # torch numbers parameters in the order of the state dict, which holds only parameters up to that name.
    entry = kept.get(list(state).index(name)) if isinstance(kept, Mapping) else None
    squares = entry.get("exp_avg_sq") if isinstance(entry, Mapping) else None
    return squares if isinstance(squares, np.ndarray) and squares.shape == state[name].shape else None


def rules(config: CHGNetConfig) -> list[Rule]:
    """The rules by which tensors become parameters."""
    kinds = config.kinds
    return [
        Rule((EMBEDDING,), ("network/elements",)),
        Rule((REFERENCES,), ("reference_energies",), _by_atomic_number),
        Rule(("bond_basis_expansion.rbf_expansion_ag.frequencies",), ("network/bond_frequencies",)),
        linear("bond_embedding", "bond_embedding", bias=False),
        linear("bond_weights_ag", "bond_weight", bias=False),
        *_gated_mlp(
            "atom_conv_layers.{k}.twoBody_atom", "atom_conv_{k}", config.phi_v,
            partial(_split_atom_conv, config), parts=("atoms/kernel", "bond/kernel", "bond/bias"),
        ),
        linear("atom_conv_layers.{k}.mlp_out.layers.1", "atom_conv_{k}/out", config.output_bias),
        *_norm(kinds.updated, "atom_conv_layers.{k}.atom_norm", "atom_conv_{k}/norm"),
        *(_rules_of_angles(config) if config.update_bonds else []),
        linear("site_wise", "magmom"),
        *_norm(kinds.readout, "readout_norm", "readout_norm"),
        *(_gated_readout(config) if config.gated_readout else _readout(config)),
    ]  # fmt: skip


def _rules_of_angles(config: CHGNetConfig) -> list[Rule]:
    """The rules for the bond graph: without updates of bonds nothing reads it."""
    updated = config.kinds.updated
    angles = [
        *_gated_mlp(
            "angle_layers.{k}.twoBody_bond", "angle_update_{k}", config.phi_a,
            partial(_split_angles, config), parts=ANGLE_PARTS,
        ),
        *_norm(updated, "angle_layers.{k}.angle_norm", "angle_update_{k}/norm"),
    ]  # fmt: skip
    return [
        Rule(("bond_basis_expansion.rbf_expansion_bg.frequencies",), ("network/short_bond_frequencies",)),
        Rule(("angle_basis_expansion.fourier_expansion.frequencies",), ("network/angle_frequencies",)),
        linear("bond_weights_bg", "short_bond_weight", bias=False),
        linear("angle_embedding", "angle_embedding", bias=False),
        *_gated_mlp(
            "bond_conv_layers.{k}.twoBody_bond", "bond_conv_{k}", config.phi_e,
            partial(_split_angles, config), parts=ANGLE_PARTS,
        ),
        linear("bond_conv_layers.{k}.mlp_out.layers.1", "bond_conv_{k}/out", config.output_bias),
        *_norm(updated, "bond_conv_layers.{k}.bond_norm", "bond_conv_{k}/norm"),
        *(angles if config.update_angles else []),
    ]  # fmt: skip


def set_aside(config: CHGNetConfig) -> dict[str, str]:
    """Patterns of tensors that are not used, each with the reason."""
    last = rf"angle_layers\.{config.blocks - 2}\..*"
    found = {last: "the angles after the last bond convolution are read by nothing"}
    if not config.update_bonds:
        unread = (
            r"angle_layers\..*|angle_(basis_expansion|embedding)\..*|bond_weights_bg\..*|.*expansion_bg\..*"
        )
        found = {unread: "nothing reads angles where they update no bonds"}
    elif not config.update_angles:
        found = {}
    if "batch" in config.kinds:
        found[r".*\.num_batches_tracked"] = "counts steps of training"
    return found


ANGLE_PARTS = ("inputs/bonds/kernel", "inputs/angle/kernel", "inputs/atom/kernel", "inputs/angle/bias")


def _gated_mlp(source: str, target: str, phi: GatedMLP, split, parts) -> list[Rule]:
    return [
        Rule(_first(source, phi), tuple(f"network/{target}/{part}" for part in parts), split),
        *_rest(source, f"{target}/phi", phi),
    ]


def _readout(config: CHGNetConfig) -> list[Rule]:
    hidden = len(config.readout)
    return [linear(f"mlp.{_layer(n, hidden)}", f"readout/layer_{n}") for n in range(hidden + 1)]


def _gated_readout(config: CHGNetConfig) -> list[Rule]:
    phi, first = config.phi_readout, ("network/readout_first/kernel", "network/readout_first/bias")
    return [
        Rule(_first("mlp.0", phi), first, _side_by_side),
        *_rest("mlp.0", "readout", phi),
        linear("mlp.1", "readout_last"),
    ]


def _layer(n: int, hidden: int) -> str:
    """The name of linear layer n: the original counts activations, and a dropout before the last layer."""
    return f"layers.{2 * n + (n == hidden)}"


def _first(source: str, phi: GatedMLP) -> tuple[str, ...]:
    """Names of the weights of core and gate in the first layer, then of their biases."""
    layer = _layer(0, len(phi.widths) - 1)
    return tuple(f"{source}.mlp_{g}.{layer}.{kind}" for kind in ("weight", "bias") for g in GATED)


def _rest(source: str, target: str, phi: GatedMLP) -> list[Rule]:
    """The rules of the other layers of a gated MLP, and of its norms."""
    hidden = len(phi.widths) - 1
    found = [
        linear(f"{source}.mlp_{g}.{_layer(n, hidden)}", f"{target}/{g}" + (f"_{n}" if n < hidden else ""))
        for n in range(1, hidden + 1)
        for g in GATED
    ]
    for n, g in enumerate(GATED, start=1):
        found += _norm(phi.norm, f"{source}.bn{n}", f"{target}/{g}_norm")
    return found


def _norm(kind: str, source: str, target: str) -> list[Rule]:
    trained = Rule(
        (f"{source}.weight", f"{source}.bias"),
        (f"network/{target}/scale", f"network/{target}/bias"),
        lambda weight, bias: (weight, bias),
    )
    counted = Rule(
        (f"{source}.running_mean", f"{source}.running_var"),
        (f"constants/{target}/mean", f"constants/{target}/variance"),
        _statistics,
    )
    return {"none": [], "layer": [trained], "batch": [trained, counted]}[kind]


def _statistics(mean, variance):
    if np.any(variance < 0):
        raise ValueError("found a variance below 0")
    return mean, variance


def _split_atom_conv(config: CHGNetConfig, core, gate, core_bias, gate_bias):
    """Splits W of [v_i, e_ij, v_j], core and gate, into products over atoms and over bonds."""
    (core_i, core_e, core_j), (gate_i, gate_e, gate_j) = _parts(
        (core, gate), config.features, config.of_bonds
    )
    atoms = np.concatenate([core_i, gate_i, core_j, gate_j], axis=1)
    return atoms, np.concatenate([core_e, gate_e], axis=1), np.concatenate([core_bias, gate_bias])


def _split_angles(config: CHGNetConfig, core, gate, core_bias, gate_bias):
    """Splits W of [e_ij, e_ik, a_jik, v_i], core and gate, into products over bonds, angles and atoms."""
    (core_j, core_k, core_a, core_v), (gate_j, gate_k, gate_a, gate_v) = _parts(
        (core, gate), config.of_bonds, config.of_bonds, config.of_angles
    )
    return (
        np.concatenate([core_j, gate_j, core_k, gate_k], axis=1),
        np.concatenate([core_a, gate_a], axis=1),
        np.concatenate([core_v, gate_v], axis=1),
        np.concatenate([core_bias, gate_bias]),
    )


def _parts(weights, *widths: int) -> list[list[np.ndarray]]:
    """The rows of each of `weights`, as Flax keeps them: of inputs of the given widths, and of the rest."""
    return [np.split(w.T, np.cumsum(widths)) for w in weights]


def _side_by_side(core, gate, core_bias, gate_bias):
    return np.concatenate([core, gate]).T, np.concatenate([core_bias, gate_bias])


def _by_atomic_number(weight):
    """Turns (1, elements) from hydrogen on into an array indexed by Z; Z = 0 is padding."""
    return np.concatenate([np.zeros(1, weight.dtype), weight[0]])
