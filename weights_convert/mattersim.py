"""MatterSim-v1 as the mattersim package saves it: a file of tensors, options and the state of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmlip.models.mattersim import MatterSimConfig
from jaxmlip.system.borders import CheckpointError, brief, listed
from weights_convert.m3gnet import both_sides, kernel_of_both_sides, split_message
from weights_convert.original_mattersim import constants
from weights_convert.rules import Rule, linear

CONVENTION = (
    "Yang et al., arXiv:2405.04967, as the mattersim package computes it: the weight of an angle is that of "
    "the atom in its middle, and messages are summed where their bond starts. Constants of radial functions "
    "are not rounded, and cosines of angles not cut off at 1 - 1e-7."
)
LAYOUT = "{'model_name': 'm3gnet', 'model': …, 'model_args': …} of mattersim's trainer"

COUNTS = {"num_blocks": 32, "units": 4096, "max_l": 4, "max_n": 4, "max_z": 118}  # with the largest accepted
LENGTHS = ("cutoff", "threebody_cutoff")
NAMES = {
    "features": "units",
    "radial": "max_n",
    "angular": "max_l",
    "blocks": "num_blocks",
    "bond_cutoff": "cutoff",
    "angle_cutoff": "threebody_cutoff",
    "elements": "max_z",
}  # our names of the options that are read
IRRELEVANT = {"gradient_checkpointing"}  # saves memory
NO_ENERGY = 1e-6  # eV; a fitted energy of an element below this is a zero with rounding errors
ROUNDED = 2e-6  # how far constants in single precision may be from what they stand for

EMBEDDING = "atom_embedding.mlp.0.linear.weight"
SCALE, SHIFT = "normalizer.scale", "normalizer.shift"
SIDES = ("g", "sigma")  # the core and the gate of a gated MLP


def recognises(checkpoint: Any) -> bool:
    """True if `checkpoint` is laid out as the mattersim package lays out its files."""
    return isinstance(checkpoint, Mapping) and {"model_name", "model", "model_args"} <= set(checkpoint)


def tensors(checkpoint: Any) -> dict[str, np.ndarray]:
    """The network's tensors by name.

    They are the moving averages of the training: that saves these as the model. The state of the training
    beside them (optimizer, ema, scheduler) affects no prediction.
    """
    if checkpoint["model_name"] != "m3gnet":
        raise CheckpointError(
            f"it holds a {brief(checkpoint['model_name'])} of mattersim, which is not read here; needed its "
            "m3gnet, the network of the published MatterSim-v1."
        )
    state = checkpoint["model"]
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"model is {brief(state)}, needed named tensors.")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
            raise CheckpointError(
                f"model has {brief(tensor)} under the name {brief(name)}, needed named tensors alone."
            )
    return dict(state)


def config(checkpoint: Any) -> MatterSimConfig:
    """The architecture of the checkpoint. Raises CheckpointError, naming the option, if it is unknown."""
    state, args = tensors(checkpoint), checkpoint["model_args"]
    if not isinstance(args, Mapping):
        raise CheckpointError(f"model_args is {brief(args)}, needed the options of the network.")
    wrong = [
        f"{key if isinstance(key, str) else brief(key)}={brief(args[key])} (unknown)"
        for key in args
        if key not in {*COUNTS, *LENGTHS, *IRRELEVANT}
    ]
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
    if not wrong and args["max_n"] != args["max_l"]:
        wrong.append(
            f"max_n={args['max_n']} and max_l={args['max_l']} (needed them equal: the package mixes "
            "functions of different degrees otherwise)"
        )
    if not wrong:
        wrong = _other_constants(state, args["max_n"], args["cutoff"])
    if wrong:
        raise CheckpointError("this MatterSim has options that are not supported: " + listed(wrong) + ".")
    lengths = {name: float(args[NAMES[name]]) for name in ("bond_cutoff", "angle_cutoff")}
    return MatterSimConfig(**{name: args[key] for name, key in NAMES.items()} | lengths)


def elements(checkpoint: Any) -> tuple[int, ...]:
    """The atomic numbers that occurred in the data from which energies of the elements were fitted.

    The package's fit leaves those of other elements at zero.
    """
    args, shift = checkpoint["model_args"], tensors(checkpoint)[SHIFT]
    fitted = np.abs(shift[1:]) > NO_ENERGY
    return tuple(int(z) for z in np.flatnonzero(fitted if fitted.any() else np.ones(args["max_z"])) + 1)


def rules(config: MatterSimConfig) -> list[Rule]:
    """The rules by which tensors become parameters."""
    block = "graph_conv.{k}"
    return [
        # Z = 0, of no element, has a column and numbers of its own that nothing reads.
        Rule((EMBEDDING,), ("network/elements",), lambda weight: weight.T[1:]),
        Rule((SCALE,), ("network/scale",), lambda scale: scale[1:]),
        Rule((SHIFT,), ("reference_energies",), _without_padding),
        linear("edge_encoder.mlp.0.linear", "bond_embedding", bias=False),
        linear(f"{block}.three_body.atom_mlp.linear", "three_body_{k}/atom"),
        Rule(
            tuple(f"{block}.three_body.edge_gate_mlp.{side}.0.linear.weight" for side in SIDES),
            ("network/three_body_{k}/bond/kernel",),
            kernel_of_both_sides,
        ),
        *_message(block, "edge", "bond_update_{k}"),
        *_message(block, "atom", "atom_update_{k}"),
        Rule(
            _sides("final", 0),
            ("network/readout_first/kernel", "network/readout_first/bias"),
            both_sides,
        ),
        *_later_layers("final", "readout", 2),
    ]


def set_aside(config: MatterSimConfig) -> dict[str, str]:
    """Patterns of tensors that are not used, each with the reason."""
    return {
        r"rbf\.(en|dn|fnr_weights|n_1_pi_cutoff|n_2_pi_cutoff|r_max)|sbf\.(factor|coef)": (
            "constants of the radial functions, which follow from the hyperparameters"
        )
    }


def _other_constants(state: Mapping[str, np.ndarray], count: int, cutoff: float) -> list[str]:
    """Tensors that are set aside because of their value, but have another value."""
    return [
        f"{name}={brief(state[name].tolist())} (needed the constants of cutoff={cutoff} and max_n={count})"
        for name, value in constants(count, cutoff).items()
        if name in state and not _nearly(state[name], value)
    ]


def _sides(source: str, layer: int) -> tuple[str, ...]:
    """Names of the weights of core and gate, then of their biases."""
    return tuple(f"{source}.{side}.{layer}.linear.{kind}" for kind in ("weight", "bias") for side in SIDES)


def _without_padding(shift: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, shift.dtype), shift[1:]])


def _nearly(found: np.ndarray, wanted: np.ndarray) -> bool:
    if found.shape != wanted.shape or found.dtype.kind != "f":
        return False
    return bool(np.all(np.abs(found - wanted) <= ROUNDED * np.maximum(1, np.abs(wanted))))


def _message(block: str, kind: str, target: str) -> list[Rule]:
    source, parts = f"{block}.gated_mlp_{kind}", ("atoms/kernel", "bond/kernel", "bond/bias")
    return [
        Rule(_sides(source, 0), tuple(f"network/{target}/{part}" for part in parts), split_message),
        *_later_layers(source, f"{target}/phi", 1),
        linear(f"{block}.edge_layer_{kind}.linear", f"{target}/weight", bias=False),
    ]


def _later_layers(source: str, target: str, count: int) -> list[Rule]:
    return [
        linear(f"{source}.{side}.{n}.linear", f"{target}/{name}_{n}")
        for n in range(1, count + 1)
        for side, name in zip(SIDES, ("core", "gate"), strict=True)
    ]
