"""Phonon modes: frequencies and eigenvectors on paths and meshes of wave vectors.

    D(q) e = ω² e,  D mass-weighted; the displacement of atom j in cell R is e_j e^{2πi q·(R + x_j)} / √m_j

Eigenvectors have the phases of positions, as in phonopy. Frequencies are in THz; an imaginary one is a
negative number.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase import Atoms

from jaxmlip.crystals.atoms import oscillation
from jaxmlip.crystals.symmetry import Mesh, mesh_shape
from jaxmlip.phonons.nac import NAC
from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U, in_thz

SAME_FREQUENCY = 1e-3  # THz; modes this close are degenerate


@dataclass(frozen=True, eq=False)
class Modes:
    """Frequencies and eigenvectors at some wave vectors, and how they were found."""

    primitive: Atoms  # the given cell, of n atoms, to which the wave vectors belong
    q_points: np.ndarray  # (q, 3), reciprocal lattice units
    weights: np.ndarray  # (q,), adding up to 1
    frequencies: np.ndarray  # (q, 3n) THz, ascending
    eigenvectors: np.ndarray  # (q, 3n, 3n), the modes in columns; phases of positions
    max_force: float  # eV/Å, on an atom; 0 at rest
    asymmetry: float  # eV/Å²: the largest |D - D†|
    method: str  # how D(q) was found
    nac: NAC | None = None  # of the long-range part, if added
    mesh: Mesh | None = None  # if the wave vectors are those of a mesh
    # (3, 3) GPa, positive in tension, 0 at rest; None for a molecule, which has no cell
    stress: np.ndarray | None = None


class Segment(NamedTuple):
    """A straight piece of a path between two special points."""

    first: str
    last: str
    rows: slice  # of Bands.modes


@dataclass(frozen=True, eq=False)
class Bands:
    """Modes along a path of wave vectors."""

    modes: Modes
    distance: np.ndarray  # (q,), 1/Å along the path, 2π included
    segments: list[Segment]


class BandPath(NamedTuple):
    """Wave vectors along a path, in reciprocal lattice units."""

    q_points: np.ndarray  # (q, 3)
    distance: np.ndarray  # (q,) along the path, 1/Å
    directions: np.ndarray  # (q, 3), of the segment
    segments: list[Segment]


def band_path(atoms: Atoms, path: str | None = None, points: int = 101) -> BandPath:
    """The wave vectors of `band_modes`; see there for `path`, `points` and errors."""
    if points < 1:
        raise ValueError(f"found points={points}, needed at least 1.")
    if not atoms.pbc.any():
        raise ValueError(
            f"{atoms.get_chemical_formula()} has pbc={atoms.pbc.tolist()}: a molecule has no bands. Its "
            "modes are those of phonon_modes at [[0, 0, 0]], or of `jaxmlip hessian`."
        )
    lattice = atoms.cell.bandpath(npoints=0, pbc=atoms.pbc)
    special = lattice.special_points
    reciprocal = 2 * np.pi * np.linalg.inv(atoms.cell.array).T
    pieces = []
    for part in _labels(path or lattice.path, special):
        pieces += list(itertools.pairwise(part))
    lengths = [np.linalg.norm((special[b] - special[a]) @ reciprocal) for a, b in pieces]
    rows, distance, directions, segments = [], [], [], []
    at = 0.0
    for (a, b), length in zip(pieces, lengths, strict=True):
        count = max(2, round((points - len(pieces)) * length / sum(lengths)) + 1)
        s = np.linspace(0, 1, count)
        segments.append(Segment(a, b, slice(len(rows), len(rows) + count)))
        rows += list(special[a] + s[:, None] * (special[b] - special[a]))
        distance += list(at + s * length)
        directions += [special[b] - special[a]] * count
        at += length
    return BandPath(np.array(rows), np.array(distance), np.array(directions), segments)


def _labels(path: str, special: dict[str, np.ndarray]) -> list[list[str]]:
    from ase.dft.kpoints import parse_path_string

    try:
        parts = parse_path_string(path)
    except Exception as error:
        raise ValueError(f"found the path {path!r}, which ASE cannot read ({error}).") from None
    unknown = sorted({name for part in parts for name in part} - set(special))
    if unknown or not any(len(part) > 1 for part in parts):
        raise ValueError(
            f"found the path {path!r}"
            + (f" with the unknown points {', '.join(unknown)}" if unknown else " with no segment")
            + f", needed names of this lattice, {', '.join(special)}, such as GX,KG for two segments."
        )
    return parts


def ticks(bands: Bands) -> tuple[list[float], list[str]]:
    """Places and names of special points; two names in one place if the path jumps."""
    places, names = [], []
    for segment in bands.segments:
        first, last = bands.distance[segment.rows][[0, -1]]
        if not places:
            places, names = [float(first)], [label(segment.first)]
        elif names[-1] != label(segment.first):
            names[-1] += f"|{label(segment.first)}"
        places.append(float(last))
        names.append(label(segment.last))
    return places, names


def label(name: str) -> str:
    """The name of a special point as figures show it."""
    return "Γ" if name == "G" else name


def period(q: float, most: int = 4) -> int:
    """The number of cells after which a wave repeats along a lattice vector, at most `most`."""
    return next((k for k in range(1, most) if abs(k * q - round(k * q)) < 1e-6), most)


def animation(
    modes: Modes, q: int, branch: int, *, repeats=(1, 1, 1), amplitude: float = 0.3, frames: int = 20
) -> list[Atoms]:
    """One period of a mode as frames of a crystal repeated `repeats` times, the largest motion `amplitude` Å.

    Write them with ase.io.write("mode.extxyz", frames); arrays of velocities are not set.
    """
    atoms = modes.primitive
    n = mesh_shape(repeats)
    cells = np.moveaxis(np.indices(n), 0, -1).reshape(-1, 3)
    x = atoms.cell.scaled_positions(atoms.positions)
    places = (cells[:, None] + x).reshape(-1, 3)
    wave = np.exp(2j * np.pi * places @ modes.q_points[q])
    shape = modes.eigenvectors[q][:, branch].reshape(-1, 3) / np.sqrt(atoms.get_masses())[:, None]
    u = np.tile(shape, (len(cells), 1)) * wave[:, None]
    found = oscillation(atoms.repeat(n), u, amplitude, frames)
    for frame in found:
        frame.info |= {"q": modes.q_points[q].tolist(), "frequency_THz": modes.frequencies[q, branch]}
    return found


def hermitian(D: np.ndarray) -> np.ndarray:
    """The Hermitian part of matrices (…, k, k)."""
    return (D + np.conj(D.swapaxes(-1, -2))) / 2


def degenerate(thz: np.ndarray) -> list[np.ndarray]:
    """The numbers of the modes of one wave vector, ascending in frequency, by sets of equal frequency."""
    return np.split(np.arange(len(thz)), np.flatnonzero(np.diff(thz) > SAME_FREQUENCY) + 1)


def split(thz: np.ndarray, vectors: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Eigenvectors (q, k, k) that diagonalise `slope` (q, k, k) within each degenerate space."""
    vectors = vectors.copy()
    for q, row in enumerate(thz):
        for some in degenerate(row):
            if len(some) > 1:
                inside = vectors[q][:, some]
                _, turn = np.linalg.eigh(hermitian(inside.conj().T @ slope[q] @ inside))
                vectors[q][:, some] = inside @ turn
    return vectors


def divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where b is that of frequencies that are nearly zero."""
    zero = np.abs(b) < 2 * SAME_FREQUENCY**2
    return np.where(zero, 0.0, a / np.where(zero, 1.0, b))


def grueneisen_parameters(D: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (THz) and -∂ln ω/∂s, both (q, k), of D(q) and ∂D/∂s, (q, k, k) in eV/(Å² u).

    Parameters of a degenerate space are those of its modes that `slope` splits; they are 0 where the
    frequency is nearly zero.
    """
    squares, vectors = np.linalg.eigh(D)
    thz = in_thz(squares)
    vectors = split(thz, vectors, slope)
    along = np.einsum("qim,qij,qjm->qm", vectors.conj(), slope, vectors).real
    # The sign of ω² comes out right by itself: ∂ln ω = ∂ω² / 2ω².
    return thz, divided(-along * THZ_PER_ROOT_EV_PER_A2_U**2, 2 * thz * np.abs(thz))
