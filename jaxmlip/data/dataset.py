"""Data sets: labelled crystals with their graphs, in memory or as a folder of shards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import Int

from jaxmlip.data.batch import Example
from jaxmlip.data.labels import PROPERTIES, LabelError, LabelledCrystal
from jaxmlip.graph import CrystalGraph, Cutoffs, from_atoms
from jaxmlip.progress import track

if TYPE_CHECKING:
    from jaxmlip.potential import Potential


class DatasetError(ValueError):
    """A data set that cannot be used: what was found, what was needed, what to do."""


class CorruptRecordError(DatasetError):
    """A record that is not what was written: its file and number."""


class Split(Protocol):
    """Part of a data set, such as that for training, with random access from any thread."""

    sizes: Int[np.ndarray, "n 4"]  # atoms, short bonds, long bonds, angles of each crystal
    cutoffs: Cutoffs
    counts: dict[str, int]  # how many crystals have each of PROPERTIES
    elements: tuple[int, ...]  # atomic numbers that occur

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> Example: ...


class MemorySplit:
    """A split whose crystals are kept in memory."""

    def __init__(self, examples: Iterable[Example], cutoffs: Cutoffs):
        self.examples = list(examples)
        self.cutoffs = cutoffs
        self.sizes = np.array([size(e.graph) for e in self.examples], np.int32).reshape(-1, 4)
        known = [e.labels.known for e in self.examples]
        self.counts = {p: sum(p in k for k in known) for p in PROPERTIES}
        self.elements = tuple(sorted({int(z) for e in self.examples for z in e.graph.species}))

    @classmethod
    def from_crystals(cls, crystals: Iterable[LabelledCrystal], cutoffs: Cutoffs) -> MemorySplit:
        """The graphs of `crystals` with their labels.

        Raises LabelError where a label or a crystal cannot be used, naming it.
        """
        return cls([example(crystal, cutoffs) for crystal in track(crystals, "neighbours")], cutoffs)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, k: int) -> Example:
        return self.examples[k]


def example(crystal: LabelledCrystal, cutoffs: Cutoffs) -> Example:
    """The graph of a crystal with its labels. Raises LabelError, naming the crystal."""
    crystal = crystal.checked()
    try:
        return Example(from_atoms(crystal.atoms, cutoffs), crystal.labels)
    except ValueError as error:
        raise LabelError(f"{crystal.name}: {error}") from None


def size(graph: CrystalGraph) -> tuple[int, int, int, int]:
    """How many atoms, short bonds, long bonds and angles."""
    return len(graph.species), graph.short, len(graph.first) - graph.short, len(graph.angle_from)


def check(split: Split, potential: Potential) -> None:
    """Raises DatasetError unless `potential` can be trained on `split`: its cutoffs, and its elements."""
    from ase.data import chemical_symbols

    if split.cutoffs != potential.cutoffs:
        raise DatasetError(
            f"the graphs of this data set were made with {split.cutoffs}, and {potential.name} needs "
            f"{potential.cutoffs}. Convert the data again for this model."
        )
    unknown = [chemical_symbols[z] for z in split.elements if z not in potential.elements]
    if unknown:
        raise DatasetError(
            f"the data set has {', '.join(unknown)}, and {potential.name} was made for "
            f"{len(potential.elements)} elements without them. Leave out those crystals, or take another "
            "model."
        )
