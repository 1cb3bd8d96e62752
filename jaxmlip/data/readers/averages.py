"""Averages over phonon modes: phonopy's densities of states and thermal properties.

Neither file holds the crystal: it is the primitive cell of the phonopy.yaml beside it, or, of a density, the
file that a comment "# crystal: FILE" names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Float

from jaxmlip.crystals.structures import read_crystal
from jaxmlip.data.labels import AVERAGES, IMAGINARY, Averages, LabelledCrystal
from jaxmlip.data.readers.common import Frame, Keys, crystal
from jaxmlip.data.readers.spectra import (
    LENGTHS,
    crystal_of,
    lines_of,
    named_crystal,
    numbers_of,
    read_yaml,
)
from jaxmlip.system.borders import brief
from jaxmlip.units import J_PER_MOL_PER_EV, KELVIN_PER_EV

CELLS = ("phonopy.yaml", "phonopy_params.yaml", "phonopy_params.yaml.xz")
WIDTH = 0.04  # of the highest frequency: a density is broadened so that a few wave vectors give it
OFF = 0.1  # of 3N, that an integral may be off
TEMPERATURES = 8  # of a file, at most
WHOLE = 0.999  # of all modes lie below the highest frequency


def read_density(path: Path, keys: Keys) -> Iterator[Frame]:
    """total_dos.dat: frequencies (THz) and the density of states, whose integral is 3N.

    The label is the density broadened by a Gaussian of WIDTH, at points one width apart.
    """
    yield partial(_of_density, path)


def read_thermal(path: Path, keys: Keys) -> Iterator[Frame]:
    """thermal_properties.yaml: heat capacities and entropies in J/K/mol of primitive cells."""
    yield partial(_of_thermal, path)


def _of_density(path: Path) -> LabelledCrystal:
    lines = lines_of(path)
    atoms, masses = _crystal(path, lines)
    words = [text.split() for line in lines if (text := line.partition("#")[0].strip())]
    if any(len(row) != 2 for row in words):
        raise ValueError(
            f"found rows of {sorted({len(row) for row in words})} columns, needed THz and density"
        )
    f, density = numbers_of(words, "frequencies and densities", (None, 2)).reshape(-1, 2).T
    if len(f) < 10 or not (np.diff(f) > 0).all():
        raise ValueError(f"found {len(f)} frequencies, needed ten or more in ascending order")
    steps = np.gradient(f)
    modes, branches = density @ steps, 3 * len(atoms)
    if not abs(modes / branches - 1) < OFF:
        raise ValueError(
            f"found a density whose integral is {modes:.4g}, needed {branches}: the primitive cell has "
            f"{len(atoms)} atoms. Is it of another crystal, or not in THz?"
        )
    share = density * steps / modes
    imaginary = share[f < IMAGINARY].sum()
    if imaginary > 1 - WHOLE:
        raise ValueError(
            f"found {imaginary:.2%} of all modes imaginary (below {IMAGINARY} THz), needed a stable crystal"
        )
    highest = f[np.searchsorted(share.cumsum(), WHOLE)]
    width = max(WIDTH * highest, 2 * steps.max())
    return _labelled(atoms, path, broadened(f, np.maximum(share, 0), masses, highest, width))


def broadened(
    thz: Float[np.ndarray, " f"],
    shares: Float[np.ndarray, " f"],
    masses: Float[np.ndarray, " N"],
    highest: float,
    width: float,
) -> Averages:
    """The density of states of `shares` of all modes at frequencies, by Gaussians of `width` (THz).

    Points lie one width apart, from 0 to three widths above the highest frequency.
    """
    at = np.arange(0, highest + 3 * width, width)
    bell = np.exp(-0.5 * ((at[:, None] - thz) / width) ** 2) / (width * (2 * np.pi) ** 0.5)
    return Averages(np.full(len(at), AVERAGES.index("density")), at, bell @ shares, masses, width)


def _of_thermal(path: Path) -> LabelledCrystal:
    found = read_yaml(path)
    atoms, masses = _crystal(path, [])
    natom = numbers_of(found.get("natom"), "natom", ())
    if natom != len(atoms):
        raise ValueError(f"found natom {natom:g} and a primitive cell of {len(atoms)} atoms beside it")
    rows = [row for row in found.get("thermal_properties") or () if isinstance(row, dict)]
    named = ("temperature", "heat_capacity", "entropy")
    T, *others = (numbers_of([row.get(n) for row in rows], n, (len(rows),)) for n in named)
    kept = np.flatnonzero(T > 0)
    if not len(kept):
        raise ValueError("found no temperature above 0 K")
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, TEMPERATURES).round().astype(int))]
    for_each = 3 * len(atoms) * J_PER_MOL_PER_EV / KELVIN_PER_EV  # J/K/mol of 1 k_B for each mode
    what = np.repeat([AVERAGES.index("heat capacity"), AVERAGES.index("entropy")], len(kept))
    values = np.concatenate([x[kept] / for_each for x in others])
    return _labelled(atoms, path, Averages(what, np.tile(T[kept], 2), values, masses))


def _labelled(atoms: Atoms, path: Path, averages: Averages) -> LabelledCrystal:
    found = crystal(atoms, str(path))
    return replace(found, labels=replace(found.labels, averages=averages))


def _crystal(path: Path, lines: list[str]) -> tuple[Atoms, Float[np.ndarray, " N"]]:
    """The crystal that `lines` name, or else the primitive cell of a file of phonopy beside `path`."""
    if any("crystal:" in line for line in lines if line.lstrip().startswith("#")):
        atoms = read_crystal(path.parent / named_crystal(lines))
        return atoms, atoms.get_masses()
    there = next((path.parent / name for name in CELLS if (path.parent / name).is_file()), None)
    if there is None:
        raise ValueError(
            f"it holds no crystal, and neither {' nor '.join(CELLS)} lies beside it; needed one of them"
            + (', or a comment "# crystal: FILE"' if lines else "")
        )
    found = read_yaml(there)
    cell: Any = found.get("primitive_cell")
    units = found.get("physical_unit")
    unit = str(units.get("length", "angstrom") if isinstance(units, dict) else "angstrom").lower()
    if not isinstance(cell, dict) or not isinstance(cell.get("points"), list) or unit not in LENGTHS:
        raise ValueError(
            f"{there} has no primitive_cell with points, in a length that is {' or '.join(LENGTHS)}: found "
            f"{brief(unit)}"
        )
    return crystal_of(cell["points"], LENGTHS[unit] * numbers_of(cell.get("lattice"), "lattice", (3, 3)))
