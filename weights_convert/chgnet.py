"""CHGNet checkpoints: those in the `chgnet` package, and those that its trainer writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmlip.models.chgnet import CHGNetConfig
from jaxmlip.system.borders import CheckpointError, brief, listed
from weights_convert.rules import Rule, linear

CONVENTION = (
    "Deng et al. 2023. The output bias of a bond convolution (0.2.0 only) acts on the bonds of every "
    "crystal, also of one without angles, for which the chgnet package leaves it out."
)
LAYOUT = "{'model': {'state_dict': …, 'model_args': …}} of chgnet's trainer"
GATED = ("core", "gate")
EMBEDDING = "atom_embedding.embedding.weight"
NO_ENERGY = 1e-6  # eV; a fitted reference energy below this is a zero with rounding errors


def recognises(checkpoint: Any) -> bool:
    """True if `checkpoint` is laid out as the chgnet package lays out its files."""
    model = checkpoint.get("model") if isinstance(checkpoint, Mapping) else None
    return isinstance(model, Mapping) and {"state_dict", "model_args"} <= set(model)


def tensors(checkpoint: Any) -> dict[str, np.ndarray]:
    """The network's tensors by name."""
    state = checkpoint["model"]["state_dict"]
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"state_dict is {brief(state)}, needed named tensors.")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
            raise CheckpointError(
                f"state_dict has {brief(tensor)} under the name {brief(name)}, needed named tensors alone."
            )
    return dict(state)


# Arguments of the original that fix the architecture, with the only value supported here; None: free.
SUPPORTED: dict[str, Any] = {
    "update_bond": True,
    "update_angle": True,
    "mlp_first": True,
    "is_intensive": True,
    "non_linearity": "silu",
    "conv_norm": None,
    "angle_layer_hidden_dim": 0,
    "learnable_rbf": True,
    "skip_connection": False,
}
# Arguments that do not affect predictions, or are read below.
IRRELEVANT = {
    *("read_out", "mlp_dropout", "conv_dropout", "graph_converter_algorithm", "version", "final_mlp"),
    *("cutofff_coeff", "composition_model", "converter_verbose", "num_heads"),
}
WIDTHS = ("atom_fea_dim", "bond_fea_dim", "angle_fea_dim", "atom_conv_hidden_dim", "bond_conv_hidden_dim")
NORMS = ("gMLP_norm", "readout_norm")
# Our names of the other arguments that are read.
NAMES = {
    "radial": "num_radial",
    "angular": "num_angular",
    "blocks": "n_conv",
    "bond_cutoff": "atom_graph_cutoff",
    "angle_cutoff": "bond_graph_cutoff",
    "envelope": "cutoff_coeff",
    "readout": "mlp_hidden_dims",
}
NEEDED = {*WIDTHS, *NORMS, *NAMES.values()}
READ = {*NEEDED, "mlp_out_bias"}


def config(checkpoint: Any) -> CHGNetConfig:
    """The architecture of the checkpoint. Raises CheckpointError, naming the option, if it is unknown."""
    args, state = checkpoint["model"]["model_args"], tensors(checkpoint)
    if not isinstance(args, Mapping) or not set(args) >= NEEDED:
        missing = sorted(NEEDED - set(args)) if isinstance(args, Mapping) else []
        raise CheckpointError(
            f"model_args is {brief(args)}"
            + (f", without {listed(missing, ', ')}" if missing else "")
            + "; needed the options of the network, as chgnet's trainer saves them."
        )
    wrong = [
        f"{key}={brief(args[key])} (needed {value!r})"
        for key, value in SUPPORTED.items()
        if key in args and not _equal(args[key], value)
    ]
    wrong += [
        f"{key if isinstance(key, str) else brief(key)}={brief(args[key])} (unknown)"
        for key in args
        if key not in {*SUPPORTED, *IRRELEVANT, *READ}
    ]
    norms = [args[key] for key in NORMS]
    if not any(all(_equal(norm, kind) for norm in norms) for kind in (None, "layer")):
        wrong.append(f"gMLP_norm and readout_norm are {brief(norms)} (needed both 'layer' or both None)")
    widths = [_width(args[key]) for key in WIDTHS]
    wrong += [
        f"{key}={brief(args[key])} (needed one hidden layer)"
        for key, width in zip(WIDTHS, widths, strict=True)
        if type(width) is not int
    ]
    if not wrong and len(set(widths)) > 1:
        wrong.append(f"features of different widths {brief(sorted(set(widths)))} (needed one)")
    if wrong:
        raise CheckpointError("this CHGNet has options that are not supported: " + listed(wrong) + ".")
    found = {name: _number(args[option]) for name, option in NAMES.items()}
    lengths, hidden = ("bond_cutoff", "angle_cutoff"), args["mlp_hidden_dims"]
    found["readout"] = tuple(map(_number, hidden if isinstance(hidden, list | tuple) else [hidden]))
    return CHGNetConfig(
        **found | {name: float(found[name]) for name in lengths if type(found[name]) is int},
        features=widths[0],
        norm=norms[0] is not None,
        # The files of 0.2.0 have the biases without mentioning them.
        output_bias="atom_conv_layers.0.mlp_out.layers.1.bias" in state,
    )


def _equal(found: Any, value: Any) -> bool:
    return type(found) is type(value) and found == value


def _width(found: Any) -> Any:
    """The single item of a list of one, or `found` itself."""
    return _number(found[0] if isinstance(found, list | tuple) and len(found) == 1 else found)


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
    state = tensors(checkpoint)
    fitted = np.abs(np.ravel(state["composition_model.fc.weight"])) > NO_ENERGY
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
    state = tensors(checkpoint)
    optimizer = checkpoint.get("optimizer")
    kept = optimizer.get("state") if isinstance(optimizer, Mapping) else None
    # torch numbers parameters in the order of the state dict, which holds only parameters here.
    entry = kept.get(list(state).index(name)) if isinstance(kept, Mapping) else None
    squares = entry.get("exp_avg_sq") if isinstance(entry, Mapping) else None
    return squares if isinstance(squares, np.ndarray) and squares.shape == state[name].shape else None


def rules(config: CHGNetConfig) -> list[Rule]:
    """The rules by which tensors become parameters."""
    return [
        Rule((EMBEDDING,), ("network/elements",)),
        Rule(("composition_model.fc.weight",), ("reference_energies",), _by_atomic_number),
        *(
            Rule((f"bond_basis_expansion.rbf_expansion_{graph}.frequencies",), (f"network/{name}",))
            for graph, name in (("ag", "bond_frequencies"), ("bg", "short_bond_frequencies"))
        ),
        Rule(("angle_basis_expansion.fourier_expansion.frequencies",), ("network/angle_frequencies",)),
        linear("bond_embedding", "bond_embedding", bias=False),
        linear("bond_weights_ag", "bond_weight", bias=False),
        linear("bond_weights_bg", "short_bond_weight", bias=False),
        linear("angle_embedding", "angle_embedding", bias=False),
        *_gated_mlp(
            "atom_conv_layers.{k}.twoBody_atom", "atom_conv_{k}", config, hidden=True, split=_split_atom_conv,
            parts=("atoms/kernel", "bond/kernel", "bond/bias"),
        ),
        *_gated_mlp(
            "bond_conv_layers.{k}.twoBody_bond", "bond_conv_{k}", config, hidden=True, split=_split_angles,
            parts=ANGLE_PARTS,
        ),
        *_gated_mlp(
            "angle_layers.{k}.twoBody_bond", "angle_update_{k}", config, hidden=False, split=_split_angles,
            parts=ANGLE_PARTS,
        ),
        linear("atom_conv_layers.{k}.mlp_out.layers.1", "atom_conv_{k}/out", config.output_bias),
        linear("bond_conv_layers.{k}.mlp_out.layers.1", "bond_conv_{k}/out", config.output_bias),
        linear("site_wise", "magmom"),
        *([_norm("readout_norm", "readout_norm")] if config.norm else []),
        *(
            # The original counts activations, and a dropout before the last layer.
            linear(f"mlp.layers.{2 * n + (n == len(config.readout))}", f"readout/layer_{n}")
            for n in range(len(config.readout) + 1)
        ),
    ]  # fmt: skip


def set_aside(config: CHGNetConfig) -> dict[str, str]:
    """Patterns of tensors that are not used, each with the reason."""
    last = rf"angle_layers\.{config.blocks - 2}\..*"
    return {last: "the angles after the last bond convolution are read by nothing"}


ANGLE_PARTS = ("inputs/bonds/kernel", "inputs/angle/kernel", "inputs/atom/kernel", "inputs/angle/bias")


def _gated_mlp(source: str, target: str, config: CHGNetConfig, hidden: bool, split, parts) -> list[Rule]:
    first = 0 if hidden else 1  # a dropout precedes a single layer
    both = tuple(f"{source}.mlp_{g}.layers.{first}.{kind}" for kind in ("weight", "bias") for g in GATED)
    found = [Rule(both, tuple(f"network/{target}/{part}" for part in parts), split)]
    if hidden:
        found += [linear(f"{source}.mlp_{g}.layers.3", f"{target}/phi/{g}") for g in GATED]
    if config.norm:
        found += [_norm(f"{source}.bn{n}", f"{target}/phi/{g}_norm") for n, g in enumerate(GATED, start=1)]
    return found


def _norm(source: str, target: str) -> Rule:
    return Rule(
        (f"{source}.weight", f"{source}.bias"),
        (f"network/{target}/scale", f"network/{target}/bias"),
        lambda weight, bias: (weight, bias),
    )


def _split_atom_conv(core, gate, core_bias, gate_bias):
    """Splits W of [v_i, e_ij, v_j], core and gate, into products over atoms and over bonds."""
    (core_i, core_e, core_j), (gate_i, gate_e, gate_j) = (np.split(w.T, 3) for w in (core, gate))
    atoms = np.concatenate([core_i, gate_i, core_j, gate_j], axis=1)
    return atoms, np.concatenate([core_e, gate_e], axis=1), np.concatenate([core_bias, gate_bias])


def _split_angles(core, gate, core_bias, gate_bias):
    """Splits W of [e_ij, e_ik, a_jik, v_i], core and gate, into products over bonds, angles and atoms."""
    (core_j, core_k, core_a, core_v), (gate_j, gate_k, gate_a, gate_v) = (
        np.split(w.T, 4) for w in (core, gate)
    )
    return (
        np.concatenate([core_j, gate_j, core_k, gate_k], axis=1),
        np.concatenate([core_a, gate_a], axis=1),
        np.concatenate([core_v, gate_v], axis=1),
        np.concatenate([core_bias, gate_bias]),
    )


def _by_atomic_number(weight):
    """Turns (1, elements) from hydrogen on into an array indexed by Z; Z = 0 is padding."""
    return np.concatenate([np.zeros(1, weight.dtype), weight[0]])
