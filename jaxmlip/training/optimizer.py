"""Optimisers, learning rates, and the choice of the parameters that are trained."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import optax

# The words that `train` knows, as patterns of parameter names.
GROUPS = {
    "all": r"^network/",
    "readout": r"^network/readout|^network/scale$",
    "scale": r"^scale$",
    "references": r"^reference_energies$",
}


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser; the defaults are those of the fine-tuning in arXiv:2405.07105."""

    name: Literal["adam", "adamw", "amsgrad"] = "adam"
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5  # at the end of the cosine; at most learning_rate
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0  # updates with linear growth from zero; fewer than all updates
    weight_decay: float = 0.0  # decoupled; for adamw only
    clip: float | None = None  # largest norm of the gradient of all parameters
    ema: float | None = None  # decay of a moving average of the parameters, to validate and export
    accumulate: int = 1  # batches whose gradients are averaged for one update
    # "all" (the network), "readout", "scale" (one factor on the network's output, the linear correction of
    # arXiv:2405.07105), "references" (energies by element), or regular expressions for names such as
    # network/atom_conv_0/bond/kernel.
    train: tuple[str, ...] = ("all",)
    freeze: tuple[str, ...] = ()  # parameters in train that are not trained, named likewise

    def __post_init__(self):
        for key, known in {"name": ("adam", "adamw", "amsgrad"), "schedule": ("cosine", "constant")}.items():
            if getattr(self, key) not in known:
                raise ValueError(f"found {key}={getattr(self, key)!r}, needed one of {', '.join(known)}.")
        not_negative = "a number that is not negative"
        for key, right, needed in (
            ("learning_rate", 0 < self.learning_rate < math.inf, "a positive number"),
            ("final_learning_rate", 0 <= self.final_learning_rate < math.inf, not_negative),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, not_negative),
            # A negative rate makes the loss climb; zero trains nothing.
            ("clip", self.clip is None or 0 < self.clip < math.inf, "a positive number, or null for none"),
            ("ema", self.ema is None or 0 <= self.ema < 1, "a decay below 1, such as 0.999, or null"),
            ("accumulate", self.accumulate >= 1, "1 or more"),
        ):
            if not right:
                raise ValueError(f"found {key}={getattr(self, key)}, needed {needed}.")
        if self.schedule == "cosine" and self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"found final_learning_rate={self.final_learning_rate} and "
                f"learning_rate={self.learning_rate}, which lets the rate grow; needed a final rate not "
                "above the first, or schedule=constant."
            )
        if self.weight_decay and self.name != "adamw":
            raise ValueError(f"found weight_decay={self.weight_decay} with {self.name}, needed name='adamw'.")

    def updates(self, steps: int) -> int:
        """The number of updates of the parameters in a run of `steps` batches.

        Raises ValueError if there would be none, or the warm-up would not end.
        """
        updates = steps // self.accumulate
        if updates < 1:
            raise ValueError(
                f"found accumulate={self.accumulate} in a run of {steps} steps, which trains nothing; needed "
                f"at most {steps}, or more steps."
            )
        if self.warmup_steps >= updates:
            raise ValueError(
                f"found warmup_steps={self.warmup_steps} in a run of {updates} updates ({steps} steps), "
                f"which never reaches learning_rate={self.learning_rate}; needed at most {updates - 1}, or "
                "more steps."
            )
        return updates


def trained(config: OptimizerConfig, names: Iterable[str]) -> list[str]:
    """The names of the parameters that are trained.

    Raises ValueError if a pattern matches none, with the near names, or if nothing is left.
    """
    names = [n for n in names if not n.startswith("constants/")]
    chosen = {n for pattern in config.train for n in _matching(pattern, names)}
    chosen -= {n for pattern in config.freeze for n in _matching(pattern, names)}
    if not chosen:
        raise ValueError(
            f"train={list(config.train)} and freeze={list(config.freeze)} leave no parameter to train. "
            "Freeze less, or train more."
        )
    return sorted(chosen)


def _matching(pattern: str, names: list[str]) -> list[str]:
    try:
        found = [n for n in names if re.search(GROUPS.get(pattern, pattern), n)]
    except re.error as error:
        raise ValueError(f"found the pattern {pattern!r}, needed a regular expression ({error}).") from None
    if not found:
        near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.3)
        raise ValueError(
            f"found no parameter that matches {pattern!r}, needed one of {', '.join(GROUPS)} or a regular "
            f"expression for names such as {', '.join(near or names[:5])}."
        )
    return found


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate at each update of a run of `steps` batches. Raises ValueError as `updates` does."""
    updates, warmup = config.updates(steps), config.warmup_steps
    if config.schedule == "constant":
        after = optax.constant_schedule(config.learning_rate)
    else:
        ratio = config.final_learning_rate / config.learning_rate
        after = optax.cosine_decay_schedule(config.learning_rate, updates - warmup, ratio)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup), after], [warmup])


def make_optimizer(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser of `config` with the learning rate `rate` at each update."""
    kinds = {
        "adam": lambda: optax.adam(rate),
        "adamw": lambda: optax.adamw(rate, weight_decay=config.weight_decay),
        "amsgrad": lambda: optax.amsgrad(rate),
    }
    clip = optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip)
    chain = optax.chain(clip, kinds[config.name]())
    return chain if config.accumulate == 1 else optax.MultiSteps(chain, config.accumulate)
