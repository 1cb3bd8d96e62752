"""What all readers share: names of properties, conversions of stresses, pymatgen's structures, and errors."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from ase import Atoms
from jaxtyping import Float

from jaxmlip.data.labels import LabelError, LabelledCrystal, Labels
from jaxmlip.units import GPA_PER_EV_PER_A3

KILOBAR = 0.1 / GPA_PER_EV_PER_A3  # eV/Å³
VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])  # xx yy zz yz xz xy
VASP_ORDER = ([0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0])  # xx yy zz xy yz zx


# Names that files have for it, the first of which that is there counts.
FUNCTIONAL = (
    "functional",
    "xc",
    "xc_functional",
    "dft_functional",
    "theory_level",
    "level_of_theory",
    "run_type",
)


class ReadError(ValueError):
    """A file that cannot be read: which, how far it was read, and what to do."""


@dataclass(frozen=True)
class Keys:
    """Under which names a file keeps what it knows; None: the names that its format has.

    `unconverged`: read also those ionic steps whose electrons did not converge.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    magmoms: str | None = None
    material: str | None = None
    functional: str | None = None
    unconverged: bool = False

    def first(self, which: str, record: Mapping[str, Any], *defaults: str) -> tuple[str, Any]:
        """The name and the value of the first of these that `record` has, or ("", None)."""
        asked = getattr(self, which)
        for name in defaults if asked is None else (asked,):
            if record.get(name) is not None:
                return name, record[name]
        return "", None

    def functional_of(self, record: Mapping[str, Any]) -> str:
        """What the labels of `record` were computed with, "" where it has no text that says so."""
        found = self.first("functional", record, *FUNCTIONAL)[1]
        return found if isinstance(found, str) else ""


def symmetric(stress: Any, order=VOIGT) -> Float[np.ndarray, "3 3"]:
    """The 3x3 tensor of 9 numbers, or of 6 in the given order; its symmetric part."""
    values = np.asarray(stress, dtype=np.float64)
    if values.size == 9:
        full = values.reshape(3, 3)
    elif values.shape == (6,):
        full = np.zeros((3, 3))
        full[order] = values
        full[order[::-1]] = values
    else:
        raise LabelError(f"found a stress of shape {values.shape}, needed 6 or 9 numbers.")
    return (full + full.T) / 2


def from_vasp(stress: Any, order=VOIGT) -> Float[np.ndarray, "3 3"]:
    """A stress as VASP prints it (kbar, positive in compression) in eV/Å³, positive in tension."""
    return -KILOBAR * symmetric(stress, order)


def crystal(atoms: Atoms, name: str, material: str = "", functional: str = "", **labels) -> LabelledCrystal:
    """A labelled crystal of `atoms` stripped of all else. Magnetic moments are kept as magnitudes.

    Models predict magnitudes, since a potential without spin-orbit coupling does not know which way is up.
    """
    if not len(atoms) or not atoms.numbers.all():
        raise ValueError(f"{name} has {len(atoms)} atoms, {(atoms.numbers == 0).sum()} of them of no element")
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc)
    found = Labels(**{k: np.asarray(v, np.float64) for k, v in labels.items() if v is not None})
    if found.magmoms is not None:
        found = replace(found, magmoms=np.abs(found.magmoms))
    return LabelledCrystal(bare, found, material, name, functional)


def structure_atoms(structure: Mapping[str, Any]) -> Atoms:
    """The crystal in what `Structure.as_dict` of pymatgen writes. Raises ValueError on partial occupancy."""
    numbers = []
    for site in structure["sites"]:
        species = site["species"]
        if len(species) != 1 or abs(species[0].get("occu", 1) - 1) > 1e-8:
            raise ValueError(f"found a site of {species}, needed one atom on every site")
        numbers.append(atomic_number(species[0]["element"]))
    return Atoms(
        numbers,
        scaled_positions=np.array([site["abc"] for site in structure["sites"]], dtype=np.float64),
        cell=np.array(structure["lattice"]["matrix"], dtype=np.float64).reshape(3, 3),
        pbc=structure["lattice"].get("pbc", True),
    )


def atomic_number(symbol: str) -> int:
    from ase.data import atomic_numbers

    # Deuterium and tritium are hydrogen to every functional.
    number = atomic_numbers.get({"D": "H", "T": "H"}.get(symbol, symbol))
    if not number:
        raise ValueError(f"found element {symbol!r}, needed a chemical symbol")
    return number


def site_property(structure: Mapping[str, Any], name: str) -> list | None:
    """A property that a pymatgen Structure has on all of its sites, or None."""
    values = [(site.get("properties") or {}).get(name) for site in structure["sites"]]
    return None if any(v is None for v in values) else values


def open_bytes(path: Path) -> BinaryIO:
    """The file for reading, decompressed if its first bytes say that it is compressed (gzip, bzip2, xz)."""
    with open(path, "rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(path, "rb")
    if magic.startswith(b"BZh"):
        return bz2.open(path, "rb")
    if magic == b"\xfd7zXZ\x00":
        return lzma.open(path, "rb")
    return open(path, "rb")
