"""The reference of the softening study: binary crystals and their DFT phonon frequencies.

phononDB-PBE as k_SRME publishes it: 103 rocksalt, zincblende and wurtzite crystals, their PBE cells, and
their frequencies on a Γ-centred mesh of 19 × 19 × 19 wave vectors (wurtzite: 19 × 19 × 15).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from jaxmlip.data.readers.phonondb import MeshModes, modes_of, read_rows

STRUCTURES = {225: "rocksalt", 216: "zincblende", 186: "wurtzite"}  # by space group
ANIONS = {14: "carbide", 15: "pnictide", 16: "chalcogenide", 17: "halide"}  # by group, below oxygen


@dataclass(frozen=True)
class Spectrum:
    """Frequencies of one crystal in THz."""

    maximum: float
    mean: float  # over wave vectors and branches; an imaginary frequency counts as 0
    lowest: float  # negative if imaginary

    @classmethod
    def of(cls, thz: np.ndarray, weights: np.ndarray | None = None) -> Spectrum:
        """The spectrum of frequencies (q, branches), THz; `weights` of the wave vectors if these differ."""
        mean = np.average(np.maximum(thz, 0).mean(axis=1), weights=weights)
        return cls(float(thz.max()), float(mean), float(thz.min()))


@dataclass(frozen=True)
class Material:
    """A crystal with its DFT frequencies."""

    id: str  # of the Materials Project, if it has one
    formula: str
    structure: str
    atoms: Atoms  # primitive cell, as relaxed with PBE
    mesh: tuple[int, int, int]  # of wave vectors, Γ-centred
    dft: Spectrum
    modes: MeshModes | None = None  # summed up in `dft`; None for the materials of this package

    @property
    def anions(self) -> str:
        """The kind of compound by its anion, such as "oxide"."""
        from pymatgen.core import Element

        elements = [Element(symbol) for symbol in set(self.atoms.symbols)]
        if Element("H") in elements:
            return "hydride"
        if Element("O") in elements:
            return "oxide"
        # By group, not by electronegativity: that of lead is above that of tellurium.
        return ANIONS.get(max(element.group for element in elements), "other")


def builtin_materials() -> list[Material]:
    """The materials whose cells and DFT frequencies come with this package."""
    record = json.loads(files("jaxmlip.studies").joinpath("phonondb_pbe.json").read_text())
    return [
        Material(
            id=m["id"],
            formula=m["formula"],
            structure=m["structure"],
            atoms=Atoms(m["symbols"], cell=m["cell"], scaled_positions=m["scaled_positions"], pbc=True),
            mesh=tuple(m["mesh"]),
            dft=Spectrum(**m["dft"]),
        )
        for m in record["materials"]
    ]


def read_phonondb(folder: str | Path) -> list[Material]:
    """All materials of k_SRME's phononDB-PBE files in `folder`, or in its folder phonondb_PBE_103.

    Raises FileNotFoundError if a file is missing, and ValueError if the two files do not agree.
    """
    return [material_of(crystal, row) for crystal, row in read_rows(folder)]


def material_of(crystal: Atoms, row: dict[str, Any]) -> Material:
    """A material of `read_rows`. Raises ValueError if crystal and row do not agree."""
    primitive, modes = modes_of(crystal, row)
    return Material(
        id=crystal.info["mp_id"],
        formula=crystal.info["name"],
        structure=STRUCTURES[int(crystal.info["symm.no"])],
        atoms=primitive,
        mesh=tuple(row["q_mesh"]),
        dft=Spectrum.of(modes.thz, modes.weights),
        modes=modes,
    )
