"""Conversion by a strict table: each tensor is used once or set aside, and each parameter is filled."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxmlip.models.limits import fault_of
from jaxmlip.system.borders import CheckpointError, listed

MOST_TENSORS = 5_000  # the largest networks of the known architectures have some hundreds
LONGEST_NAME = 300
SHARED = 80e6  # bytes that tensors under several names may repeat


@dataclass(frozen=True)
class Rule:
    """Tensors of a checkpoint that become parameters of ours.

    Names are templates in which {k} stands for a number, the same in all of them. `make` takes one array for
    each source and returns one for the target, or a tuple if there are several targets.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    make: Callable[..., np.ndarray | tuple[np.ndarray, ...]] = lambda tensor: tensor


def linear(source: str, target: str, bias: bool = True) -> Rule:
    """The rule of a linear layer. torch keeps matrices as (out, in), Flax as (in, out)."""
    if not bias:
        return Rule((f"{source}.weight",), (f"network/{target}/kernel",), np.transpose)
    return Rule(
        (f"{source}.weight", f"{source}.bias"),
        (f"network/{target}/kernel", f"network/{target}/bias"),
        lambda weight, bias: (weight.T, bias),
    )


def convert(
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    rules: Sequence[Rule],
    set_aside: Mapping[str, str],
) -> dict[str, np.ndarray]:
    """The parameters that `rules` make of `tensors`, of the given `shapes` and with all of their names.

    `set_aside` maps patterns of tensor names to the reason for leaving them out. Raises CheckpointError
    that lists every fault: a tensor that no rule or several rules use, a parameter that is not filled or
    filled twice, a shape that differs, numbers that cannot be weights.
    """
    tensors = _weights(tensors, set_aside)
    uses: dict[str, int] = dict.fromkeys(tensors, 0)
    made: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    for rule in rules:
        for number in _numbers(rule.sources[0], tensors):
            names = [source.format(k=number) for source in rule.sources]
            missing = [name for name in names if name not in tensors]
            if missing:
                wrong += [f"{name}: missing, though {names[0]} is there" for name in missing]
                continue
            for name in names:
                uses[name] += 1
            try:
                arrays = rule.make(*(tensors[name] for name in names))
            except (ValueError, IndexError) as error:
                wrong.append(f"{', '.join(names)}: {error}")
                continue
            arrays = arrays if isinstance(arrays, tuple) else (arrays,)
            for template, array in zip(rule.targets, arrays, strict=True):
                target = template.format(k=number)
                if target in made:
                    wrong.append(f"{target}: filled twice")
                if target not in shapes:
                    wrong.append(f"{target}: made from {names[0]}, but the model has no such parameter")
                elif array.shape != tuple(shapes[target]):
                    wrong.append(f"{target}: found shape {array.shape}, needed {tuple(shapes[target])}")
                made[target] = array
    wrong += [f"{name}: {count} rules match, needed one" for name, count in uses.items() if count != 1]
    wrong += [f"{name}: no tensor of the checkpoint maps here" for name in shapes if name not in made]
    if wrong:
        raise CheckpointError(
            f"the checkpoint and the model disagree in {len(wrong)} places; needed each tensor used once and "
            f"each parameter filled: {listed(wrong)}"
        )
    # Not np.ascontiguousarray, because it gives single numbers an axis.
    return {name: np.asarray(made[name], order="C") for name in sorted(made)}


def _weights(tensors: Mapping[str, np.ndarray], set_aside: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The `tensors` that are not set aside. Raises CheckpointError if they cannot be weights."""
    if len(tensors) > MOST_TENSORS or max(map(len, tensors), default=0) > LONGEST_NAME:
        raise CheckpointError(
            f"found {len(tensors):,} tensors, with names of up to {max(map(len, tensors)):,} characters; "
            f"needed at most {MOST_TENSORS:,} and {LONGEST_NAME}."
        )
    owners = [tensor if tensor.base is None else tensor.base for tensor in tensors.values()]
    once = {id(owner): owner.nbytes for owner in owners if isinstance(owner, np.ndarray)}
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * sum(once.values()) + SHARED:
        raise CheckpointError("the same tensors are there under many names, needed one of its own for each.")
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if not any(re.fullmatch(pattern, name) for pattern in set_aside)
    }
    no_weights = [f"{name}: {fault}" for name, tensor in tensors.items() if (fault := fault_of(tensor))]
    if no_weights:
        raise CheckpointError(
            f"{len(no_weights)} tensors hold no weights: {listed(no_weights)}. Fetch the file again, or "
            "train again."
        )
    return tensors


def _numbers(template: str, tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The values of {k} for which `template` names a tensor; one empty value if it has no {k}."""
    if "{k}" not in template:
        return [""] if template in tensors else []
    before, after = template.split("{k}")
    pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    return [m[1] for m in map(pattern.fullmatch, tensors) if m]
