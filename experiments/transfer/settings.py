"""Settings of `experiments.transfer.methods`, and the names of its methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SCRATCH, TRAINABLE, FROZEN, REFIT = "scratch", "trainable", "frozen", "refit"
READOUT, FIDELITIES, DIFFERENCE = "readout", "fidelities", "difference"
METHODS = {
    SCRATCH: "from scratch, target references",
    TRAINABLE: "transfer, source references trainable",
    FROZEN: "transfer, source references frozen",
    REFIT: "transfer, references refitted",
    READOUT: "readout alone, references refitted",
    FIDELITIES: "two functionals at once, references refitted",
    DIFFERENCE: "difference to the source learnt",
}


@dataclass(frozen=True)
class Settings:
    """Which way of carrying a potential over to another functional errs least on few labels of the target?"""

    set: Path  # folder that experiments.transfer.teacher_set.make wrote
    source_functional: str = "m3gnet-matpes-pbe-2025.1"  # the teacher whose labels the source learns
    target: str = "m3gnet-matpes-r2scan-2025.1"  # the teacher whose labels to reproduce
    start: str | None = "m3gnet-matpes-pbe-2025.1"  # the source; None: a small network that is trained here
    architecture: Literal["chgnet", "m3gnet", "mace"] = "m3gnet"  # of a small source
    hyperparameters: tuple[str, ...] = ()  # of a small source, to change defaults: features=16
    source_epochs: int = 10
    methods: tuple[str, ...] = tuple(METHODS)
    crystals: int | None = 1000  # of the target's training data, drawn anew with each seed; None: all
    epochs: int = 8
    seeds: int = 3  # number of seeds for random parameters, the order of the data, and the crystals
    batch_size: int = 16  # the paper's is 64, of 190 times as many crystals
    learning_rate: float = 1e-3
    out: Path = Path("transfer")
