"""Runs of phonopy: displaced supercells with forces, and the undisplaced one with columns of its Hessian."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.data.readers.common import Frame, Keys, crystal

YAML = ("phonopy_params.yaml", "phonopy_params.yaml.xz", "phonopy_disp.yaml", "phonopy.yaml")
DATA = ("FORCE_SETS", "FORCE_CONSTANTS", "force_constants.hdf5")


def is_run(folder: Path) -> bool:
    """True if a folder holds a run of phonopy with all files that are needed to read it."""
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    with_data = names.intersection(DATA) or any(n.startswith("vasprun.xml") for n in names)
    return bool(names.intersection(YAML[:2]) or (names.intersection(YAML) and with_data))


def read_phonopy_run(path: Path, keys: Keys) -> Iterator[Frame]:
    """A folder, or one of its files. The displaced supercells come first, if their forces are known.

    The supercell at rest then has the columns of the Hessian that the force constants hold: those of the
    atoms of one primitive cell if they are compact or come from forces, else those of all atoms. Force
    constants from forces are symmetrised as phonopy does it.
    """
    from jaxmlip.phonons.phonopy_files import read_phonopy

    run = read_phonopy(path if path.is_dir() or path.name in YAML else path.parent)
    folder = path if path.is_dir() else path.parent
    material = folder.resolve().name
    dataset = run.phonon.dataset or {}
    if "forces" in dataset or any("forces" in moved for moved in dataset.get("first_atoms", ())):
        for number, (atoms, forces) in enumerate(zip(run.displaced, run.forces, strict=True)):
            yield partial(crystal, atoms, f"{path} displacement {number}", material, forces=forces)
    constants = run.phonon.force_constants  # (rows, atoms, 3, 3): force on the second by moving the first
    atoms = len(run.supercell)
    rows = np.arange(atoms) if len(constants) == atoms else run.phonon.primitive.p2s_map
    columns = (3 * rows[:, None] + np.arange(3)).ravel()
    hessian = constants.transpose(0, 2, 1, 3).reshape(len(columns), atoms, 3)

    def at_rest() -> LabelledCrystal:
        found = crystal(run.supercell, f"{path} supercell", material)
        return replace(found, labels=replace(found.labels, columns=columns, hessian=hessian))

    yield at_rest
