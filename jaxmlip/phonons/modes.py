"""Phonon modes: frequencies and eigenvectors on paths and meshes of wave vectors, and what follows from them.

    D(q) e = ω² e,  D mass-weighted; the displacement of atom j in cell R is e_j e^{2πi q·(R + x_j)} / √m_j

with eigenvectors in the phases of positions, as phonopy has them. Frequencies are in THz; an imaginary one
is a negative number.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ase import Atoms

from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import in_box
from jaxmlip.crystals.symmetry import (
    NEARLY,
    Mesh,
    hidden_symmetry,
    identity,
    keeping_mesh,
    mesh_shape,
    needed_columns,
    primitive_cell,
    reduced_mesh,
    space_group,
    unfold,
)
from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.mechanics.elasticity import warn_of_residuals
from jaxmlip.phonons import bloch
from jaxmlip.phonons.commensurate import fourier
from jaxmlip.phonons.nac import NAC, NOISE, long_range, long_range_slopes, long_range_strained
from jaxmlip.phonons.supercell import ForceConstants
from jaxmlip.units import GPA_PER_EV_PER_A3, THZ_PER_ROOT_EV_PER_A2_U

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from jaxmlip.potential import Potential

TOLERANCE = 1e-4  # THz: how far a Fourier sum may be from the matrices that it stands for
REACH = 20.0  # Å: how wide the supercell is that fits the first mesh that is tried for a Fourier sum
GROWTH = 1.4  # from one mesh to the next
PROBES = 4  # wave vectors at which it is tried, and as many more of the lowest frequencies
SOFT = 0.1  # THz
SAME_FREQUENCY = 1e-3  # THz; modes this close span one space


@dataclass(frozen=True, eq=False)
class Modes:
    """Frequencies and eigenvectors at some wave vectors, and how they were found."""

    primitive: Atoms  # the cell, of n atoms, that the wave vectors belong to: the one that was given
    q_points: np.ndarray  # (q, 3), reciprocal lattice units
    weights: np.ndarray  # (q,), adding up to 1
    frequencies: np.ndarray  # (q, 3n) THz, ascending
    eigenvectors: np.ndarray  # (q, 3n, 3n), the modes in columns; phases of positions
    max_force: float  # eV/Å: how far from rest the atoms are
    asymmetry: float  # eV/Å²: the largest |D - D†|
    method: str  # how D(q) was found
    nac: NAC | None = None  # of the long-range part that was added, once
    mesh: Mesh | None = None  # where the wave vectors are those of a mesh
    # (3, 3) GPa, positive in tension: how far from rest the cell is; None for a molecule, which has no cell
    stress: np.ndarray | None = None


def phonon_modes(
    potential: Potential,
    crystal: Atoms | Structure,
    q_points: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    nac: NAC | None = None,
    directions: np.ndarray | None = None,
    method: str = "auto",
    symmetry: bool = True,
    symprec: float = SYMPREC,
    memory_limit: float | None = None,
) -> Modes:
    """The modes at any wave vectors (q, 3), in reciprocal lattice units.

    `nac` adds the long-range part of polar crystals (see `long_range`), at q = 0 its limit along the rows of
    `directions` (q, 3). `method` is "exact", each D(q) by itself; or "fourier", as a sum from a mesh that
    is refined until it repeats exact frequencies within 1e-4 THz (those below 0.1 THz: their squares as
    well as that); or "auto", whichever is cheaper. The space group, found within `symprec` (Å), saves work
    in each; without `symmetry` it is left alone. Warns where the crystal is several primitive cells, is not
    at rest, or nearly has more symmetry.

    Raises as `bloch.dynamical_matrix` does, and ValueError where `nac` belongs to another cell.
    """
    how = How(method, symmetry, memory_limit, symprec=symprec)
    atoms = checked(crystal, how, nac)
    q_points = bloch.along_lattice(atoms, q_points)[1]
    found = _modes(potential, atoms, q_points, weights, nac, directions, how)
    warn_of_residuals(atoms, found.max_force, found.stress, "The frequencies")
    return found


def _residuals(potential, atoms, room) -> tuple[float, np.ndarray | None]:
    """The largest force (eV/Å) and the stress (GPa) of the crystal as it is; None for a molecule."""
    graphs = [potential.graph(atoms)]
    found = potential.predict_graphs(graphs, batching.capacity(graphs) if room is None else room)[0]
    stress = np.asarray(found["stress"], float) * GPA_PER_EV_PER_A3 if "stress" in found else None
    return float(np.linalg.norm(found["forces"], axis=1).max()), stress


class How(NamedTuple):
    """How D(q) is to be found."""

    method: str
    symmetry: bool
    memory_limit: float | None
    room: batching.Capacity | None = None
    tolerance: float = TOLERANCE  # THz
    symprec: float = SYMPREC  # Å


def _modes(potential, atoms, q_points, weights, nac, directions, how: How) -> Modes:
    D, asymmetry, method = _matrices(potential, atoms, q_points, how)
    if nac is not None:
        nac = nac.check(atoms)
        D = D + long_range(nac, atoms, q_points, directions)
    D = _hermitian(_weighed(D, atoms))
    squares, vectors = np.linalg.eigh(D if D.imag.any() else D.real)  # at Γ real, and four times as fast
    turn = bloch.position_phases(atoms, q_points).conj()
    even = np.full(len(q_points), 1 / max(1, len(q_points)))
    max_force, stress = _residuals(potential, atoms, how.room)
    return Modes(
        primitive=atoms,
        q_points=q_points,
        weights=even if weights is None else np.asarray(weights) / np.sum(weights),
        frequencies=_thz(squares),
        eigenvectors=turn[:, :, None] * vectors,
        max_force=max_force,
        stress=stress,
        asymmetry=asymmetry,
        method=method,
        nac=nac,
    )


def mesh_modes(
    potential: Potential,
    crystal: Atoms | Structure,
    mesh: tuple[int, int, int],
    *,
    symmetry: bool = True,
    symprec: float = SYMPREC,
    nac: NAC | None = None,
    method: str = "auto",
    tolerance: float = TOLERANCE,
    memory_limit: float | None = None,
    room: batching.Capacity | None = None,
) -> Modes:
    """The modes on a Γ-centred mesh; with `symmetry` those of one of each star of wave vectors, weighted.

    Stars are those of the operations that keep the masses too. `tolerance` (THz) is how far a Fourier sum may
    be off. Crystals that are padded to the same `room` share compiled programs. See `phonon_modes` for the
    rest.
    """
    how = How(method, symmetry, memory_limit, room, tolerance, symprec)
    atoms = checked(crystal, how, nac)
    found = modes_on_mesh(potential, atoms, mesh, nac, how)
    warn_of_residuals(atoms, found.max_force, found.stress, "The frequencies")
    return found


def modes_on_mesh(potential, atoms: Atoms, mesh, nac: NAC | None, how: How) -> Modes:
    """As `mesh_modes`, without its warnings."""
    mesh = mesh_shape(mesh, atoms.pbc)
    # D(q) has the symmetry of the elements, its eigenvalues that of the masses as well, and its long-range
    # part that of the charges and of their mesh.
    group = space_group(atoms, how.symprec, masses=True) if how.symmetry else None
    if group is not None and nac is not None:
        nac = nac.check(atoms)
        group = None if nac.asymmetry(group) > NOISE else keeping_mesh(nac.mesh, group)
    reduced = reduced_mesh(mesh, group)
    found = _modes(potential, atoms, reduced.q_points, reduced.weights, nac, None, how)
    return replace(found, mesh=reduced)


def mesh_force_constants(
    potential: Potential,
    crystal: Atoms | Structure,
    mesh: tuple[int, int, int],
    *,
    symmetry: bool = True,
    symprec: float = SYMPREC,
    memory_limit: float | None = None,
) -> ForceConstants:
    """Force constants of the crystal repeated `mesh` times, from D(q) at the wave vectors that fit it.

    The same as `force_constants` without the supercell, and with `symmetry` from few wave vectors.
    """
    how = How("exact", symmetry, memory_limit, symprec=symprec)
    atoms = in_box(crystal)
    return _mesh_constants(potential, atoms, mesh_shape(mesh, atoms.pbc), how)[0]


def _mesh_constants(potential, atoms, mesh, how: How) -> tuple[ForceConstants, float]:
    group = space_group(atoms, how.symprec) if how.symmetry else None
    reduced, n = reduced_mesh(mesh, group), len(atoms)
    D = _exact(potential, atoms, reduced.q_points, how)
    full = unfold(D, reduced, group).reshape(*mesh, n, 3, n, 3)
    phi = np.fft.fftn(full, axes=(0, 1, 2), norm="forward").real
    return ForceConstants(atoms, phi), bloch.asymmetry(D)


def _exact(potential, atoms, q_points, how: How) -> np.ndarray:
    return bloch.dynamical_matrix(
        potential,
        atoms,
        q_points,
        symmetry=how.symmetry,
        symprec=how.symprec,
        memory_limit=how.memory_limit,
        room=how.room,
    )


def _matrices(potential, atoms, q_points, how: How) -> tuple[np.ndarray, float, str]:
    """D(q), its asymmetry, and how it was found."""
    if how.method not in ("auto", "exact", "fourier"):
        raise ValueError(f"found method={how.method!r}, needed 'auto', 'exact' or 'fourier'.")
    group = space_group(atoms, how.symprec) if how.symmetry else identity(len(atoms))
    size = 3 * len(atoms)
    cost, reach = 0, REACH
    direct = len(needed_columns(q_points, group).wave) if how.method == "auto" else 0
    while how.method != "exact":
        mesh = wide_mesh(atoms, reach)
        # Each mesh that turns out too coarse was in vain.
        cost += len(needed_columns(reduced_mesh(mesh, group).q_points, group).wave)
        if how.method == "auto" and cost + 2 * PROBES * size >= direct:
            break
        constants, asymmetry = _mesh_constants(potential, atoms, mesh, how)
        D = fourier(constants, q_points).reshape(-1, size, size)
        probes = _probes(_frequencies(D, atoms), q_points, mesh)
        exact = _frequencies(_exact(potential, atoms, q_points[probes], how), atoms)
        off = _apart(_frequencies(D[probes], atoms), exact)
        if off < how.tolerance:
            points = " x ".join(map(str, mesh))
            method = f"Fourier sum from {points} wave vectors, off by {off:.0e} THz at {len(probes)} others"
            return D, asymmetry, method
        reach *= GROWTH
    D = _exact(potential, atoms, q_points, how)
    return D, bloch.asymmetry(D), "exact at each wave vector"


def _apart(found, exact) -> float:
    """The largest deviation in THz; of modes below 0.1 THz that of the square, as if they were at 0.1 THz.

    Where ω² passes through zero, no sum is so fine that its root could be compared.
    """
    squares = np.sign(found) * found**2 - np.sign(exact) * exact**2
    return float(np.abs(squares / (2 * np.maximum(np.abs(exact), SOFT))).max(initial=0))


def _probes(frequencies, q_points, mesh) -> np.ndarray:
    """Wave vectors off the mesh at which a sum is tried: some that lie evenly, and the softest ones.

    Where ω is small, an error of D makes a large one of ω.
    """
    apart = q_points * mesh
    off = np.flatnonzero(np.abs(apart - np.rint(apart)).max(axis=1, initial=0) > 1e-6)
    evenly = (
        off[np.unique(np.linspace(0, max(0, len(off) - 1), PROBES + 2).astype(int)[1:-1])]
        if len(off)
        else off
    )
    softest = off[np.argsort(np.abs(frequencies[off]).min(axis=1))[:PROBES]]
    return np.union1d(evenly, softest)


def wide_mesh(atoms: Atoms, reach: float) -> tuple[int, int, int]:
    """The wave vectors that fit a supercell about `reach` Å wide along each lattice vector."""
    points = np.maximum(1, np.rint(reach / np.linalg.norm(atoms.cell.array, axis=1))).astype(int)
    return tuple(np.where(atoms.pbc, points, 1).tolist())


def checked(crystal: Atoms | Structure, how: How, nac: NAC | None) -> Atoms:
    """The crystal, with a warning where something about it is not what it seems."""
    atoms = in_box(crystal)
    name = atoms.get_chemical_formula()
    if np.abs(atoms.get_initial_magnetic_moments()).max(initial=0) > 0:
        warnings.warn(
            f"{name} carries magnetic moments, which potentials of this library do not take: phonons are "
            "those of the crystal without them.",
            stacklevel=3,
        )
    copies = len(atoms) // len(primitive_cell(atoms, how.symprec))
    if copies > 1:
        warnings.warn(
            f"{name} is {copies} primitive cells: its branches are folded, and cost more than those of the "
            "primitive cell, which jaxmlip.phonons.primitive_cell gives.",
            stacklevel=3,
        )
    hidden = hidden_symmetry(atoms, how.symprec) if how.symmetry else None
    if hidden is not None:
        warnings.warn(
            f"{name} is {hidden}. Relax it with its space group kept (relax(..., fix_symmetry=True), or "
            f"jaxmlip phonons --relax), which makes it so, or give symprec={NEARLY:g} (--symprec "
            f"{NEARLY:g}).",
            stacklevel=3,
        )
    if how.symmetry and nac is not None:
        off = nac.check(atoms).asymmetry(space_group(atoms, how.symprec))
        if off > NOISE:
            warnings.warn(
                f"the charges or the dielectric tensor lack the symmetry of {name}, by up to {off:.2g}. "
                "Check that they are those of this crystal, in its axes and its order of atoms.",
                stacklevel=3,
            )
    return atoms


def _weighed(D, atoms: Atoms) -> np.ndarray:
    root = np.sqrt(np.repeat(atoms.get_masses(), 3))
    return D / (root[:, None] * root)


def _hermitian(D) -> np.ndarray:
    return (D + np.conj(D.swapaxes(-1, -2))) / 2


def _thz(squares) -> np.ndarray:
    return np.sign(squares) * np.sqrt(np.abs(squares)) * THZ_PER_ROOT_EV_PER_A2_U


def _frequencies(D, atoms: Atoms) -> np.ndarray:
    return _thz(np.linalg.eigvalsh(_hermitian(_weighed(D, atoms))))


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


def band_modes(
    potential: Potential,
    crystal: Atoms | Structure,
    path: str | None = None,
    points: int = 101,
    *,
    nac: NAC | None = None,
    method: str = "auto",
    symmetry: bool = True,
    symprec: float = SYMPREC,
    memory_limit: float | None = None,
) -> Bands:
    """The modes along a path between special points, such as "GXWKGL,UX".

    The names are ASE's for the crystal's Bravais lattice (Setyawan & Curtarolo 2010); without a path, ASE's
    own is taken. About `points` wave vectors are spread over it evenly; both ends of each segment are
    among them. See `phonon_modes` for the rest. Raises ValueError where a name is unknown.
    """
    how = How(method, symmetry, memory_limit, symprec=symprec)
    atoms = checked(crystal, how, nac)
    way = band_path(atoms, path, points)
    found = _modes(potential, atoms, way.q_points, None, nac, way.directions, how)
    warn_of_residuals(atoms, found.max_force, found.stress, "The frequencies")
    return Bands(found, way.distance, way.segments)


class BandPath(NamedTuple):
    """Wave vectors along a path, in reciprocal lattice units."""

    q_points: np.ndarray  # (q, 3)
    distance: np.ndarray  # (q,) along the path, 1/Å
    directions: np.ndarray  # (q, 3), of the segment
    segments: list[Segment]


def band_path(atoms: Atoms, path: str | None = None, points: int = 101) -> BandPath:
    """The wave vectors of `band_modes`, which says what `path` and `points` are, and raises the same."""
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


def group_velocities(
    potential: Potential, crystal: Atoms | Structure, q_points: np.ndarray, *, nac: NAC | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (q, 3n) in THz and group velocities ∂ω/∂k, (q, 3n, 3) in Å THz, 100 m/s each.

    By differentiating D(q), exactly: v = e†(∂D/∂q)e / 2ω. Modes of one frequency are chosen so that they
    split along a generic direction. Zero where the frequency is zero. `nac` adds the long-range part of
    polar crystals, but at q = 0, where it has no limit.
    """
    atoms, q_points = bloch.along_lattice(crystal, q_points)
    D, slopes = bloch.dynamical_matrix_slopes(potential, atoms, q_points, mass_weighted=True)
    if nac is not None:
        D = D + _weighed(long_range(nac, atoms, q_points), atoms)
        slopes = slopes + _weighed(long_range_slopes(nac, atoms, q_points), atoms)
    squares, vectors = np.linalg.eigh(_hermitian(D))
    thz = _thz(squares)
    # ∂/∂k = Σ ∂/∂q_α a_α / 2π, for ω in 2π THz.
    slopes = np.einsum("qdij,dx->qxij", slopes, atoms.cell.array) * THZ_PER_ROOT_EV_PER_A2_U**2
    generic = np.array([0.61, 0.33, 0.72])
    vectors = _split(thz, vectors, np.einsum("x,qxij->qij", generic, slopes))
    along = np.einsum("qim,qxij,qjm->qmx", vectors.conj(), slopes, vectors).real
    # Of signed frequencies, whose squares have the sign that ω² has.
    return thz, _divide(along, 2 * np.abs(thz)[:, :, None])


def grueneisen(
    potential: Potential,
    crystal: Atoms | Structure,
    q_points: np.ndarray,
    *,
    strain: np.ndarray | None = None,
    relaxed: bool = True,
    nac: NAC | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (q, 3n) in THz and mode Grüneisen parameters γ = -∂ln ω/∂ln V, (q, 3n).

    By differentiating D(q) with respect to strain, exactly, without steps of volume. `strain` is the
    direction (3, 3) in which to strain, and γ is then -∂ln ω/∂s; without it, all lengths change alike. With
    `relaxed` the atoms of the cell follow to first order. Zero where the frequency is zero. `nac` adds the
    long-range part of polar crystals, but at q = 0; its charges and dielectric tensor keep their values.
    """
    atoms, q_points = bloch.along_lattice(crystal, q_points)
    eps = np.eye(3) / 3 if strain is None else np.asarray(strain, float)
    if eps.shape != (3, 3):
        raise ValueError(f"found a strain of shape {eps.shape}, needed (3, 3).")
    along = bloch.following(potential, atoms, eps) if relaxed else np.zeros((len(atoms), 3))
    D, slope = bloch.dynamical_matrix_strained(
        potential, atoms, q_points, eps, along=along, mass_weighted=True
    )
    if nac is not None:
        D = D + _weighed(long_range(nac, atoms, q_points), atoms)
        slope = slope + _weighed(long_range_strained(nac, atoms, q_points, eps, along), atoms)
    squares, vectors = np.linalg.eigh(_hermitian(D))
    thz = _thz(squares)
    vectors = _split(thz, vectors, slope)
    along = np.einsum("qim,qij,qjm->qm", vectors.conj(), slope, vectors).real
    # The sign of ω² comes out right by itself: ∂ln ω = ∂ω² / 2ω².
    return thz, _divide(-along * THZ_PER_ROOT_EV_PER_A2_U**2, 2 * thz * np.abs(thz))


def _split(thz, vectors, slope) -> np.ndarray:
    """Eigenvectors that diagonalise `slope` within each space of equal frequencies."""
    vectors = vectors.copy()
    for q, row in enumerate(thz):
        for some in np.split(np.arange(len(row)), np.flatnonzero(np.diff(row) > SAME_FREQUENCY) + 1):
            if len(some) > 1:
                inside = vectors[q][:, some]
                _, turn = np.linalg.eigh(_hermitian(inside.conj().T @ slope[q] @ inside))
                vectors[q][:, some] = inside @ turn
    return vectors


def _divide(a, b) -> np.ndarray:
    zero = np.abs(b) < 2 * SAME_FREQUENCY**2
    return np.where(zero, 0.0, a / np.where(zero, 1.0, b))


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
    u *= amplitude / np.linalg.norm(np.abs(u), axis=1).max()
    still = atoms.repeat(n)
    found = []
    for k in range(frames):
        frame = still.copy()
        frame.positions += (u * np.exp(-2j * np.pi * k / frames)).real
        frame.info |= {"q": modes.q_points[q].tolist(), "frequency_THz": modes.frequencies[q, branch]}
        found.append(frame)
    return found
