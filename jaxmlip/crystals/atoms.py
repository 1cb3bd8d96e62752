"""Crystals as ase.Atoms: conversion from pymatgen, the box of slabs and molecules, and checks of input."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

FLAT = 1e-3  # Å³; a smaller box has no intended height


def as_atoms(crystal: Atoms | Structure) -> Atoms:
    """`crystal`, which may be a pymatgen Structure, as ase.Atoms; isotopes are kept by their masses.

    Raises ValueError for a Structure with partly occupied sites.
    """
    from ase import Atoms

    if isinstance(crystal, Atoms):
        return crystal
    if hasattr(crystal, "to_ase_atoms"):
        for k, site in enumerate(crystal):
            if not site.is_ordered:
                shares = {str(species): share for species, share in site.species.items()}
                raise _partly_occupied(crystal.formula, f"site {k}", shares)
        atoms = crystal.to_ase_atoms(msonable=False)
        # pymatgen knows deuterium and tritium; ASE has only hydrogen, with another mass.
        masses = atoms.get_masses()
        isotopes = [
            k for k, site in enumerate(crystal) if site.specie.Z == 1 and site.specie.atomic_mass > 1.5
        ]
        if isotopes:
            masses[isotopes] = [float(crystal[k].specie.atomic_mass) for k in isotopes]
            atoms.set_masses(masses)
        return atoms
    raise TypeError(
        f"found {type(crystal).__module__}.{type(crystal).__name__}, needed a crystal as ase.Atoms or "
        "pymatgen.core.Structure. Read a file with ase.io.read or Structure.from_file first."
    )


def in_box(crystal: Atoms | Structure) -> Atoms:
    """`crystal` as ase.Atoms with three cell vectors; those that do not repeat are perpendicular to the rest.

    The box keeps a volume that it was given; without one it gets a height of 10 Å beyond the atoms.
    """
    atoms = as_atoms(crystal)
    if atoms.pbc.all():
        return atoms
    volume, repeats = atoms.cell.volume, int(atoms.pbc.sum())
    height = reach(atoms) + 10.0
    if volume > FLAT:
        height = (volume / extent(atoms.cell.array[atoms.pbc])) ** (1 / (3 - repeats))
    atoms = atoms.copy()
    atoms.set_cell(boxed(atoms.cell.array, atoms.pbc, height), apply_constraint=False)
    return atoms


def boxed(cell: Float[np.ndarray, "3 3"], periodic: np.ndarray, height: float = 1.0) -> np.ndarray:
    """`cell`; rows that do not repeat get length `height` (Å), perpendicular to the others."""
    if periodic.all():
        return cell
    box = np.array(cell, float)
    rows = box[periodic]
    # The right singular vectors that belong to no row are perpendicular to all rows.
    beyond = np.linalg.svd(rows)[2][len(rows) :] if len(rows) else np.eye(3)
    box[~periodic] = height * beyond
    return box


def extent(vectors: np.ndarray) -> float:
    """The length, area or volume (Å, Å², Å³) that lattice vectors span; 1 for none."""
    if len(vectors) == 3:
        return float(abs(np.linalg.det(vectors)))
    return float(np.sqrt(max(0.0, np.linalg.det(vectors @ vectors.T)))) if len(vectors) else 1.0


def reach(atoms: Atoms) -> float:
    """An upper bound (Å) on the distance between two atoms of one cell."""
    return float(np.linalg.norm(np.ptp(atoms.positions, axis=0)))


def oscillation(
    atoms: Atoms, along: Shaped[np.ndarray, "atoms 3"], amplitude: float = 0.3, frames: int = 20
) -> list[Atoms]:
    """One period of a harmonic motion about `atoms` as frames; the largest motion is `amplitude` Å.

    The displacement of atom a at phase φ is the real part of `along`[a] e^{-iφ}, scaled. Constraints do not
    hold atoms.
    """
    u = along * (amplitude / np.linalg.norm(np.abs(along), axis=1).max())
    found = []
    for k in range(frames):
        frame = atoms.copy()
        frame.positions += (u * np.exp(-2j * np.pi * k / frames)).real
        found.append(frame)
    return found


@contextmanager
def numbered(k: int) -> Iterator[None]:
    """Adds the number k (from 0) to errors about one of many crystals."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"crystal {k}: {error}") from None


def repeating(crystals: Iterable[Atoms | Structure], quantity: str) -> list[Atoms]:
    """Many crystals as ase.Atoms. Raises as `as_atoms` and `check_repeats`, with the crystal's number."""
    every = []
    for k, crystal in enumerate(crystals):
        with numbered(k):
            every.append(as_atoms(crystal))
            check_repeats(every[-1], quantity)
    return every


def check_crystal(atoms: Atoms) -> None:
    """Raises ValueError, with the fault and the remedy, unless a potential can take `atoms`.

    They may repeat along any of the three lattice vectors, or along none; no site may be partly occupied.
    """
    name = atoms.get_chemical_formula() or "the structure"
    if len(atoms) == 0:
        raise ValueError(
            "found an empty structure, needed at least one atom. Check that its file was read to the end."
        )
    cell, repeats = atoms.cell.array, int(atoms.pbc.sum())
    if not np.isfinite(cell).all():
        raise ValueError(f"the cell of {name} holds {cell.tolist()}, needed nine finite numbers (Å).")
    size = extent(cell[atoms.pbc])
    if size < 1e-3 * (len(atoms) if repeats == 3 else 1):
        span = {1: "point somewhere", 2: "span a plane", 3: "span space"}[repeats]
        what = {1: "length", 2: "area", 3: "volume"}[repeats]
        raise ValueError(
            f"the cell of {name} has pbc={atoms.pbc.tolist()} and a {what} of {size:.3g} "
            f"Å{' ²³'[repeats - 1]}, needed lattice vectors that {span} along the directions that repeat. "
            "Set atoms.cell to the crystal's lattice vectors, as rows, or atoms.pbc to False along those "
            "that do not repeat."
        )
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(bad):
        raise ValueError(
            f"the position of atom {bad[0]} ({atoms.symbols[bad[0]]}) of {name} is "
            f"{atoms.positions[bad[0]].tolist()}, needed finite numbers (Å). {len(bad)} of "
            f"{len(atoms)} positions are not finite; the run that made them probably diverged."
        )
    check_occupancy(atoms)


def check_repeats(atoms: Atoms, quantity: str) -> None:
    """Raises ValueError unless `atoms` repeat in three directions, which a `quantity` needs."""
    if not atoms.pbc.all():
        raise ValueError(
            f"{atoms.get_chemical_formula()} has pbc={atoms.pbc.tolist()}, but {quantity} need a crystal "
            "that repeats in three directions. If it does, set atoms.pbc = True."
        )


def check_elements(atoms: Atoms, elements: Collection[int]) -> None:
    """Raises ValueError, naming element and site, unless each atomic number is among `elements`."""
    unknown = np.flatnonzero(~np.isin(atoms.numbers, list(elements)))
    if len(unknown):
        site = unknown[0]
        others = sorted(set(atoms.symbols[unknown]) - {atoms.symbols[site]})
        raise ValueError(
            f"found {atoms.symbols[site]} (Z = {atoms.numbers[site]}) at site {site} of "
            f"{atoms.get_chemical_formula()}"
            + (f", and {', '.join(others)} elsewhere" if others else "")
            + f", needed one of the {len(elements)} elements that this potential was fitted to. "
            "Potential.elements lists their atomic numbers."
        )


def check_occupancy(atoms: Atoms) -> None:
    """Raises ValueError, naming site and occupancies, if a file said that a site is partly occupied.

    ASE keeps the occupancies of a CIF in atoms.info["occupancy"], by kinds of sites, and those of a few other
    formats in an array; the atoms themselves look fully occupied.
    """
    by_kind, kinds = atoms.info.get("occupancy"), atoms.arrays.get("spacegroup_kinds")
    for kind, shares in by_kind.items() if isinstance(by_kind, dict) else ():
        if not isinstance(shares, dict) or _is_full(shares):
            continue
        sites = np.flatnonzero(kinds == int(kind)) if kinds is not None else [int(kind)]
        if len(sites):
            raise _partly_occupied(atoms.get_chemical_formula(), f"site {sites[0]}", shares)
    for name in ("occupancy", "occupancies"):
        shares = np.asarray(atoms.arrays.get(name, 1.0), float)
        part = np.flatnonzero(np.abs(shares - 1) > 1e-3)
        if len(part):
            found = {atoms.symbols[part[0]]: float(shares[part[0]])}
            raise _partly_occupied(atoms.get_chemical_formula(), f"site {part[0]}", found)


def _is_full(shares: dict) -> bool:
    return len(shares) == 1 and abs(next(iter(shares.values())) - 1) < 1e-3


def _partly_occupied(formula: str, site: str, shares: dict) -> ValueError:
    told = ", ".join(f"{share:g} {element}" for element, share in shares.items())
    empty = 1 - sum(shares.values())
    return ValueError(
        f"{site} of {formula} is partly occupied ({told}"
        + (f", {empty:g} empty" if empty > 1e-3 else "")
        + "); needed one element on each site. Choose an ordering (pymatgen's "
        "OrderDisorderedStructureTransformation makes them from the file). If these atoms are already an "
        "ordering, delete atoms.info['occupancy']."
    )


def crystal_record(atoms: Atoms) -> dict[str, Any]:
    """A crystal for JSON: symbols, lattice vectors as rows, scaled positions as given, masses of isotopes."""
    return {
        "symbols": atoms.get_chemical_symbols(),
        "cell_A": atoms.cell.array.tolist(),
        "scaled_positions": atoms.cell.scaled_positions(atoms.positions).tolist(),
        "masses_u": atoms.get_masses().tolist(),
    }
