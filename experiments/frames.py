"""Frames with DFT labels for the experiments, and the record that each experiment leaves."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import jax
import numpy as np
from ase import Atoms

import jaxmlip
from jaxmlip.curvature import Slope, force_slope
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.potential import Potential


def data_folder(given: Path | None, name: str) -> Path:
    """The file or folder `name` below `given` or JAXMLIP_DATA. Raises SystemExit that says what is needed."""
    root = given or (Path(os.environ["JAXMLIP_DATA"]) if "JAXMLIP_DATA" in os.environ else None)
    if root is None or not (root / name).exists():
        raise SystemExit(
            f"{name} is not in {root or 'a folder that JAXMLIP_DATA names'}; needed that data set of "
            "github.com/materialsvirtuallab (mlearn, maml) as extxyz. Give --data FOLDER."
        )
    return root / name


def read(path: Path) -> list[LabelledCrystal]:
    """The frames of an extxyz file with energy, forces and stress; what else it says stays in atoms.info."""
    found = []
    for k, atoms in enumerate(ase.io.read(path, ":")):
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


def save_record(path: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Settings, versions, device and rows as JSON."""
    versions = {"jaxmlip": jaxmlip.__version__, "jax": jax.__version__, "python": platform.python_version()}
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "settings": settings,
        "versions": versions,
        "device": jax.devices()[0].device_kind,
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")
