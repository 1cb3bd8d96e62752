"""Frames with DFT labels, and potentials against them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.readers.common import open_bytes
from jaxmlip.derivatives.slopes import Slope, force_slope
from jaxmlip.potential import Potential


def read(path: Path) -> list[LabelledCrystal]:
    """The frames of an extxyz file with energy, forces and stress; what else it says stays in atoms.info."""
    # As a whole: ASE goes back and forth in a file, which gzip does by starting again.
    with open_bytes(path) as file:
        text = io.StringIO(file.read().decode())
    found = []
    for k, atoms in enumerate(ase.io.read(text, ":", format="extxyz")):
        stress = atoms.get_stress(voigt=False) if "stress" in atoms.calc.results else None
        labels = Labels(atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False), stress)
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True, info=atoms.info)
        found.append(LabelledCrystal(bare, labels, name=f"{path.name} {k}").checked())
    return found


def against_dft(potential: Potential, frames: Sequence[LabelledCrystal]) -> Slope:
    """The slope of the potential's forces against those of `frames`, with their MAE (eV/Å per component)."""
    model = [p["forces"].astype(float) for p in potential.predict([f.atoms for f in frames])]
    dft = [f.labels.forces for f in frames]
    return force_slope(model, dft)


def rms_force(frames: Sequence[LabelledCrystal]) -> float:
    """√⟨F²⟩ over components, eV/Å."""
    return float(np.sqrt(np.mean(np.concatenate([f.labels.forces.ravel() for f in frames]) ** 2)))
