"""Settings of `experiments.transfer.teacher_set.make`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

PART = 200  # materials that are computed together


@dataclass(frozen=True)
class Settings:
    """Which crystals, and how many a second, does a public model label to stand in for DFT?

    Varied crystals with the labels of one model or several, as datasets to train on.
    """

    teacher: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(help="as `jaxmlip models` lists, or a model folder; the first one relaxes and heats"),
    ] = ()
    structures: int = 20_000
    """How many crystals in all, those of one material and its ground states included."""
    seed: int = 0
    element: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Take these elements alone; default: all that the teachers know."""
    strained: int = 3
    """Strained crystals of each material."""
    rattled: int = 3
    """Crystals of each material with atoms displaced at random."""
    md: int = 3
    """Frames of molecular dynamics of each material."""
    strain: float = 0.03
    """Standard deviation of each component of the strains; volumes change by up to three times this more."""
    rattle: tuple[float, float] = (0.03, 0.2)
    """Standard deviations of the displacements (Å): a crystal's is drawn from this interval."""
    temperature: tuple[float, float] = (300.0, 2000.0)
    """Of molecular dynamics (K): a material's is drawn from this interval."""
    relax_steps: int = 40
    """Steps after which a relaxation ends where it is."""
    max_pressure: float = 5.0
    """GPa. A material whose ideal crystal is left with more is dropped."""
    max_force: float = 10.0
    """eV/Å. A crystal with a larger one on an atom is dropped."""
    max_energy: float = 1.0
    """eV/atom. A crystal whose energy is farther from that of its ideal crystal is dropped."""
    part: int = PART
    """Materials that are worked on together; a killed run loses one part at most."""
    out: Path = Path("teacher_set")
    """Folder for the datasets."""
