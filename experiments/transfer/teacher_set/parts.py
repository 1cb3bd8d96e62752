"""The parts of a teacher set as files, and the contents of all parts together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
from ase import Atoms

from experiments.transfer.teacher_set.frames import Frame
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.studies.study import StudyError

if TYPE_CHECKING:
    from jaxmlip.potential import Prediction

LABELS = ("energy", "forces", "stress", "magmoms")


def arrays_of(frames: Sequence[Frame], found: Mapping[str, Sequence[Prediction]]) -> dict[str, np.ndarray]:
    """A part as arrays, for a file that holds no code."""
    arrays = {
        "atoms": np.array([len(f.atoms) for f in frames], int),
        "numbers": np.concatenate([np.zeros(0, int), *(f.atoms.numbers for f in frames)]),
        "positions": np.concatenate([np.zeros((0, 3)), *(f.atoms.positions for f in frames)]),
        "cells": np.array([f.atoms.cell.array for f in frames]).reshape(-1, 3, 3),
    }
    for field in ("material", "family", "kind", "name"):
        arrays[field] = np.array([getattr(f, field) for f in frames], np.str_)
    for k, predictions in enumerate(found.values()):
        for label in LABELS:
            if predictions and label in predictions[0]:
                values = [
                    np.asarray(p[label], np.float32 if label != "energy" else float) for p in predictions
                ]
                per_atom = label in ("forces", "magmoms")
                arrays[f"{label} {k}"] = np.concatenate(values) if per_atom else np.array(values)
    return arrays


class Made:
    """The crystals of all parts, up to the number asked for, and the labels of each teacher."""

    def __init__(self, files: Sequence[Path], teachers: Sequence[str], structures: int):
        self.frames: list[Frame] = []
        self.labels: dict[str, list[Labels]] = {name: [] for name in teachers}
        for path in files:
            self._add(path, teachers)
        self.frames = self.frames[:structures]

    def _add(self, path: Path, teachers: Sequence[str]) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                part = dict(file)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise StudyError(f"{path} cannot be read ({error}). Remove it and run again.") from None
        ends = np.cumsum(part["atoms"])
        for k, (n, end) in enumerate(zip(part["atoms"], ends, strict=True)):
            of = slice(end - n, end)
            atoms = Atoms(part["numbers"][of], part["positions"][of], cell=part["cells"][k], pbc=True)
            about = (str(part[field][k]) for field in ("material", "family", "kind", "name"))
            self.frames.append(Frame(*about, atoms))
            for t, name in enumerate(teachers):
                here = {"energy": k, "stress": k, "forces": of, "magmoms": of}
                labels = {p: part[f"{p} {t}"][i] for p, i in here.items() if f"{p} {t}" in part}
                self.labels[name].append(Labels(**labels))

    def crystals(self, teacher: str) -> list[LabelledCrystal]:
        """All crystals with the labels of a teacher, whose name stands for the functional."""
        labels = self.labels[teacher]
        return [
            LabelledCrystal(f.atoms, labels[k], f.material, f.name, teacher)
            for k, f in enumerate(self.frames)
        ]

    def above_ideal(self, teacher: str) -> np.ndarray:
        """Energies above the ideal crystal of the material (eV/atom), by frame."""
        per_atom = np.array(
            [self.labels[teacher][k].energy / len(f.atoms) for k, f in enumerate(self.frames)]
        )
        ideal = {f.material: e for f, e in zip(self.frames, per_atom, strict=True) if f.kind == "ideal"}
        return per_atom - [ideal[f.material] for f in self.frames]

    def forces(self, teacher: str) -> list[np.ndarray]:
        """|F| on each atom (eV/Å), by frame."""
        labels = self.labels[teacher]
        return [np.linalg.norm(labels[k].forces, axis=1) for k in range(len(self.frames))]
