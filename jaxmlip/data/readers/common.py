"""Parts of all readers: names of properties, conversions of stresses, pymatgen's structures, and errors."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from ase import Atoms
from jaxtyping import Float

from jaxmlip.crystals.atoms import check_occupancy
from jaxmlip.data.labels import PROPERTIES, LabelError, LabelledCrystal, Labels
from jaxmlip.units import GPA_PER_EV_PER_A3

KILOBAR = 0.1 / GPA_PER_EV_PER_A3  # eV/Å³
VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])  # xx yy zz yz xz xy
VASP_ORDER = ([0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0])  # xx yy zz xy yz zx
ALONE = 7.0  # Å; no element has crystals whose neighbours are farther apart, and no model here bonds as long


# Names of the functional in files; the first one present counts.
FUNCTIONAL = (
    "functional",
    "xc",
    "xc_functional",
    "dft_functional",
    "theory_level",
    "level_of_theory",
    "run_type",
)


# Readers yield functions that make a crystal, so that the others can be read if one fails.
Frame = Callable[[], LabelledCrystal]


class ReadError(ValueError):
    """A file cannot be read. The message gives the file, how much of it was read, and what to do."""


@dataclass(frozen=True)
class Naming:
    """The names of labels in files; None: the usual names of the format."""

    energy_key: str | None = None
    """the name of the energy, if not the usual one"""
    forces_key: str | None = None
    """the name of the forces"""
    stress_key: str | None = None
    """the name of the stress (or of a virial, if it has that word in its name)"""
    magmoms_key: str | None = None
    """the name of the magnetic moments"""
    material_key: str | None = None
    """the key that identifies the material"""
    functional_key: str | None = None
    """the name of the functional"""
    functional: str | None = None
    """the functional, of files that do not say it"""
    unconverged: bool = False
    """read also those ionic steps of VASP whose electrons did not converge"""


@dataclass(frozen=True)
class ReadOptions(Naming):
    """Options of `read_labelled`, and of data.options in a configuration.

    Raises ValueError for values that make no sense.
    """

    properties: Sequence[str] = PROPERTIES  # the labels to keep
    weight: float = 1.0  # multiplied by the weight of the crystal in the file (config_weight)
    every: int = 1  # N reads every N-th crystal of each file
    limit: int | None = None  # crystals in all
    checked: bool = True  # False: crystals are not validated, for callers that drop invalid ones themselves
    skip_bad: bool = False  # leave out what cannot be used, with a warning
    isolated: Literal["left out", "too", "only"] = "left out"  # what to do with isolated atoms

    def __post_init__(self):
        if wrong := sorted(set(self.properties) - set(PROPERTIES)):
            raise ValueError(f"Found properties {', '.join(wrong)}, needed some of {', '.join(PROPERTIES)}.")
        if self.isolated not in ("left out", "too", "only"):
            raise ValueError(f"Found isolated={self.isolated!r}, needed 'left out', 'too' or 'only'.")
        for name in ("every", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"Found {name}={value}, needed a number from 1.")


@dataclass(frozen=True)
class Keys:
    """The options for the reader of one file, and the notes that it takes.

    `noted` counts frames by remark, such as one on labels that were not read; `sources` counts the frames
    with labels of each prefix.
    """

    naming: Naming
    noted: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    def asked(self, which: str) -> str | None:
        """The name that the user gave for a property, "material" or "functional"."""
        return getattr(self.naming, f"{which}_key")

    def first(self, which: str, record: Mapping[str, Any], *defaults: str) -> tuple[str, Any]:
        """The first of the names that `record` has, with its value, or ("", None)."""
        asked = self.asked(which)
        for name in defaults if asked is None else (asked,):
            if record.get(name) is not None:
                return name, record[name]
        return "", None

    def functional_of(self, record: Mapping[str, Any]) -> str:
        """The functional that `record` names, or ""."""
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


def same(one: Any, other: Any) -> bool:
    """True if two values of a label are the same; six numbers and nine may be one stress."""
    try:
        one, other = (np.ravel(np.asarray(x, np.float64)) for x in (one, other))
    except (ValueError, TypeError):
        return False
    if {one.size, other.size} == {6, 9}:
        one, other = symmetric(one).ravel(), symmetric(other).ravel()
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-6, atol=1e-8, equal_nan=True)


def from_vasp(stress: Any, order=VOIGT) -> Float[np.ndarray, "3 3"]:
    """A stress as VASP prints it (kbar, positive in compression) in eV/Å³, positive in tension."""
    return -KILOBAR * symmetric(stress, order)


def crystal(
    atoms: Atoms,
    name: str,
    material: str = "",
    functional: str = "",
    isolated: bool = False,
    weight: float = 1.0,
    weights: Mapping[str, float] | None = None,
    **labels,
) -> LabelledCrystal:
    """A labelled crystal of `atoms` without its other data; `isolated`: its file calls it an isolated atom.

    Magnetic moments, N numbers or N vectors, are kept as their lengths: models predict those, since without
    spin-orbit coupling the energy does not depend on the direction of all spins together.
    """
    if not len(atoms) or not atoms.numbers.all():
        raise ValueError(f"{name} has {len(atoms)} atoms, {(atoms.numbers == 0).sum()} of them of no element")
    if isolated and len(atoms) > 1:
        raise LabelError(f"{name}: found an isolated atom (config_type) of {len(atoms)} atoms, needed one.")
    try:
        check_occupancy(atoms)
    except ValueError as error:
        raise LabelError(f"{name}: {error}") from None
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc)
    found = {k: np.asarray(v, np.float64) for k, v in labels.items() if v is not None}
    if "magmoms" in found:
        moments = found["magmoms"]
        vectors = moments.shape == (len(atoms), 3)
        found["magmoms"] = np.linalg.norm(moments, axis=1) if vectors else np.abs(moments)
    its = Labels(**found, weight=weight, weights=dict(weights or {}))
    return LabelledCrystal(bare, its, material, name, functional, isolated or is_alone(bare))


def is_alone(atoms: Atoms) -> bool:
    """True if there is one atom, and its periodic images, if any, are farther away than ALONE."""
    from ase.geometry import minkowski_reduce

    if len(atoms) > 1 or not atoms.pbc.any():
        return len(atoms) == 1
    lengths = atoms.cell.lengths()[atoms.pbc]
    if not np.isfinite(lengths).all() or lengths.min() <= ALONE:  # reduced vectors are no longer than these
        return False
    reduced = minkowski_reduce(atoms.cell, atoms.pbc)[0]
    return bool(np.linalg.norm(reduced[atoms.pbc], axis=1).min() > ALONE)


def structure_atoms(structure: Mapping[str, Any]) -> Atoms:
    """The crystal of a pymatgen `Structure.as_dict()`. Raises ValueError for partly occupied sites."""
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
