"""Unstable modes of a crystal, and where the energy leads along them.

`instabilities` finds the modes along which a crystal at rest is not at a minimum; `follow` moves the atoms
along them, in all directions that symmetry offers, predicts the well from derivatives up to the fourth,
visits it, and relaxes there. `jaxmlip.studies.stabilise` repeats both until nothing is unstable.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms

from jaxmlip.crystals.batches import moving_shape, predicted
from jaxmlip.crystals.batching import sizes_of
from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.crystals.symmetry import Symmetry, reduced_mesh
from jaxmlip.derivatives.line import derivatives_along
from jaxmlip.mechanics.relaxation import Relaxation, quiet, relax_many
from jaxmlip.phonons import bloch
from jaxmlip.phonons.lattice import Lattice
from jaxmlip.phonons.modes import degenerate
from jaxmlip.phonons.order_parameter import OrderParameter, commensurate
from jaxmlip.phonons.report import default_mesh
from jaxmlip.system.progress import track
from jaxmlip.units import in_thz

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from jaxmlip.crystals.batching import BatchShape
    from jaxmlip.potential import Potential

CELLS = 8  # that a distortion may repeat after
UNSTABLE = -0.05  # THz; modes above count as stable: frequencies near Γ have that much noise
TOLERANCE, SPACING = 0.02, 0.05  # THz, 1/Å: of the mesh on which the lowest mode is looked for
DENOMINATORS = (2, 3, 4)  # of the wave vectors that are tried as distortions
FARTHEST = 0.8  # Å that an atom is moved along a mode
NEAR, FAR = 16, 6  # energies along it, on one side: up to twice the predicted bottom, and from there on
ROUNDS, SAME_PLACE = 6, 1e-3  # expansions on the way to a bottom; Å
FACTORIALS = np.array([1.0, 1.0, 2.0, 6.0, 24.0])
SAME_POINT = 1e-6  # Å
# Å. A predicted bottom that is nearer is that of a kink or a ripple. Then energies count from CLEAR on.
NARROW, CLEAR = 0.02, 0.05
ROUGH = 1e-6  # eV per atom; energies that fall by less than this do not fall


@dataclass(frozen=True, eq=False)
class Instability:
    """A wave along which the energy of a crystal falls, with the modes that are degenerate with it."""

    crystal: Atoms  # at rest
    q_point: np.ndarray  # (3,), reciprocal lattice units
    thz: float  # negative
    modes: np.ndarray  # (3n, k): eigenvectors in columns, with the phases of cells

    @property
    def cells(self) -> int | None:
        """The cells that the wave repeats after; None if its components are no simple fractions."""
        try:
            return round(abs(np.linalg.det(commensurate(self.q_point))))
        except ValueError:
            return None

    def __str__(self) -> str:
        where = " ".join(f"{x:.4g}" for x in self.q_point + 0.0)
        repeat = f"repeats after {self.cells} cells" if self.cells else "fits no small supercell"
        return f"{self.thz:.2f} THz at q = ({where}), {self.modes.shape[1]}-fold; {repeat}"


def instabilities(
    potential: Potential,
    crystal: Atoms | Structure,
    *,
    mesh: tuple[int, int, int] | None = None,
    cells: int = CELLS,
    threshold: float = UNSTABLE,
    **options: Any,
) -> list[Instability]:
    """The unstable modes of a crystal at rest, the most unstable first; none for a stable one.

    First the lowest ω²(q) over all q: the lowest wave vector of a Γ-centred `mesh` (default: 0.05 1/Å apart)
    is moved downhill by the exact gradient ∂ω²/∂q. Then all modes below `threshold` (THz, negative) at wave
    vectors whose waves repeat after at most `cells` cells. The lowest of all is left out where one of these
    is as low. Modes of one wave vector that are degenerate count once, as do wave vectors that symmetry makes
    equal. `options` are those of `Lattice`, of which the tolerance is 0.02 THz here.

    Warns if the crystal is not at rest. Raises ValueError for a threshold that is not negative, for
    `cells` below 1, and as `Lattice` does.
    """
    return unstable_modes(
        Lattice(potential, crystal, **{"tolerance": TOLERANCE} | options), mesh, cells, threshold
    )


def unstable_modes(
    lattice: Lattice,
    mesh: tuple[int, int, int] | None = None,
    cells: int = CELLS,
    threshold: float = UNSTABLE,
) -> list[Instability]:
    """What `instabilities` gives, of a `Lattice`, which keeps what was computed. Raises ValueError alike."""
    if not threshold < 0:
        raise ValueError(f"found threshold={threshold}, needed a frequency below 0 THz: imaginary ones.")
    if cells < 1:
        raise ValueError(f"found cells={cells}, needed 1 or more.")
    atoms = lattice.atoms
    on_mesh = lattice.mesh(default_mesh(atoms, SPACING) if mesh is None else mesh)
    found = []
    for q in _simple(lattice, cells):
        thz, vectors = _at(lattice, q)
        for some in degenerate(thz):
            if thz[some].mean() < threshold and not _moves_all(q, vectors[:, some], atoms):
                found.append(Instability(atoms, q, float(thz[some].mean()), vectors[:, some]))
    found.sort(key=lambda each: each.thz)
    q, lowest = _lowest(lattice, on_mesh.q_points, on_mesh.frequencies[:, 0])
    if lowest < threshold and (not found or lowest < 1.02 * found[0].thz):
        thz, vectors = _at(lattice, q)
        if not _moves_all(q, vectors[:, :1], atoms):
            found.insert(0, Instability(atoms, q, float(thz[0]), vectors[:, degenerate(thz)[0]]))
    return found


def _at(lattice: Lattice, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (3n,) in THz and eigenvectors (3n, 3n) at one wave vector, with the phases of cells."""
    root = np.sqrt(np.repeat(lattice.atoms.get_masses(), 3))
    D = lattice.exact(q[None])[0] / (root[:, None] * root)
    D = (D + D.conj().T) / 2
    squares, vectors = np.linalg.eigh(D if np.abs(D.imag).max() > 1e-12 else D.real)
    return in_thz(squares), vectors


def _simple(lattice: Lattice, cells: int) -> np.ndarray:
    """The wave vectors that differ by symmetry, whose waves repeat after few cells."""
    group, found = lattice.symmetry.group_of_masses, {}
    for n in (1, *DENOMINATORS):
        shape = tuple(np.where(lattice.atoms.pbc, n, 1).tolist())
        for q in reduced_mesh(shape, group).q_points:
            if abs(np.linalg.det(commensurate(q))) < cells + 0.5:
                found.setdefault(tuple(np.round(q, 6).tolist()), q)
    return np.array(list(found.values()))


def _moves_all(q: np.ndarray, modes: np.ndarray, atoms: Atoms) -> bool:
    """Whether these modes shift the crystal as a whole."""
    if np.abs(q).max() > 1e-9:
        return False
    root = np.sqrt(atoms.get_masses())
    shifts = np.kron(root[:, None], np.eye(3)) / np.linalg.norm(root)
    return bool(np.linalg.norm(shifts.T @ modes, axis=0).max() > 0.9)


def _lowest(lattice: Lattice, q_points: np.ndarray, thz: np.ndarray) -> tuple[np.ndarray, float]:
    """The wave vector of the lowest mode near the lowest ones of a mesh, and its frequency (THz)."""
    from scipy.optimize import minimize

    begin = q_points[thz.argmin()]
    # Where q and -q are the same wave vector the gradient vanishes.
    if thz.min() >= 0 or np.abs(2 * begin - np.rint(2 * begin)).max() < 1e-9:
        return begin, float(thz.min())
    root = np.sqrt(np.repeat(lattice.atoms.get_masses(), 3))
    along = np.where(lattice.atoms.pbc, 1.0, 0.0)

    def square(q: np.ndarray) -> tuple[float, np.ndarray]:
        D, slopes = bloch.slopes(lattice.response, q[None])
        values, vectors = np.linalg.eigh((D[0] + D[0].conj().T) / 2 / (root[:, None] * root))
        e = vectors[:, 0] / root
        return values[0], np.einsum("i,xij,j->x", e.conj(), slopes[0], e).real * along

    end = minimize(square, begin, jac=True, method="BFGS", options={"maxiter": 20, "gtol": 1e-5})
    return np.asarray(end.x), float(in_thz(np.array(end.fun)))


class Expansion(NamedTuple):
    """The energy of a crystal along a line, by exact derivatives up to the fourth at one point of it."""

    amplitude: float  # Å, of the point: how far the atom that moves farthest has moved
    derivatives: np.ndarray  # (5,): eV/Åⁿ; the first is the energy from that of the undistorted crystal

    def __call__(self, amplitudes: np.ndarray) -> np.ndarray:
        """Energies (eV) at amplitudes (Å)."""
        return np.polynomial.Polynomial(self.derivatives / FACTORIALS)(
            np.asarray(amplitudes) - self.amplitude
        )

    @property
    def bottom(self) -> tuple[float, float] | None:
        """Amplitude (Å) and energy (eV) of the minimum that lies downhill; None if there is none.

        Of a crest there are two, of which it is the lower one. What lies behind a maximum does not count:
        there the expansion is of no other use either.
        """
        slope = np.polynomial.Polynomial(self.derivatives / FACTORIALS).deriv()
        roots = slope.roots()
        x = roots[np.abs(roots.imag) < 1e-9].real
        crests = x[slope.deriv()(x) < 0]
        crests = crests[np.abs(crests) > SAME_POINT]
        x = [m for m in x[slope.deriv()(x) > 0] if not (crests * (m - crests) > 0).any()]
        if not x:
            return None
        energies = self(np.array(x) + self.amplitude)
        return float(x[energies.argmin()] + self.amplitude), float(energies.min())


@dataclass(frozen=True, eq=False)
class Well:
    """The energy of a crystal along a distortion, and the crystal at the bottom."""

    instability: Instability
    crystal: Atoms  # undistorted, in the cell of the distortion
    distortion: np.ndarray  # (N, 3): the atom that moves farthest moves by 1 Å
    energy: float  # eV, of the undistorted crystal in that cell
    at_rest: Expansion  # of the undistorted crystal: what is known before any other is computed
    at_bottom: Expansion | None  # of the distorted crystal, at the bottom; None if energies never fall
    amplitudes: np.ndarray  # (m,), Å: of the crystals that were computed
    energies: np.ndarray  # (m,), eV, from `energy`
    space_group: str  # of the distorted crystal
    relaxed: Relaxation | None = None  # from the bottom

    @property
    def falls(self) -> bool:
        """Whether the energy is lower beyond what a kink or a ripple is wide.

        That is from half of the predicted bottom on; or if that is nearer than 0.02 Å, from 0.05 Å on.
        Where curvature is negative and the energy is not lower, the potential is rough.
        """
        return bool(self._beyond[1] < -ROUGH * len(self.crystal))

    @property
    def bottom(self) -> tuple[float, float] | None:
        """Amplitude (Å) and energy (eV) of the bottom; None if energies never fall, or none was found."""
        return None if self.at_bottom is None else self.at_bottom.bottom

    @property
    def lowest(self) -> float:
        """The amplitude (Å) of the bottom, or without one that of the lowest energy."""
        return self._beyond[0] if self.bottom is None else self.bottom[0]

    @property
    def _beyond(self) -> tuple[float, float]:
        return _beyond(self.amplitudes, self.energies, self.at_rest.bottom)

    @property
    def misfit(self) -> float:
        """The largest error of `at_bottom` in the energies within a fifth of its amplitude, by the depth.

        NaN if there is no bottom, or it is so near that none of the energies is.
        """
        if self.bottom is None:
            return float("nan")
        x, depth = self.bottom
        near = np.abs(self.amplitudes - x) < 0.2 * abs(x)
        apart = np.abs(self.at_bottom(self.amplitudes[near]) - self.energies[near])
        return float(apart.max() / -depth) if near.any() else float("nan")

    @property
    def gain(self) -> float:
        """How much lower the relaxed crystal is, eV per atom; 0 if it was not relaxed."""
        return 0.0 if self.relaxed is None else (self.energy - self.relaxed.energy) / len(self.crystal)


def follow(
    potential: Potential,
    instability: Instability,
    *,
    cells: int = CELLS,
    symprec: float = SYMPREC,
    relax: bool = True,
    **options: Any,
) -> list[Well]:
    """The wells along an unstable mode, the deepest first, in each direction that symmetry offers.

    The modes that are degenerate with it, at its wave vector and at those that operations make of it, are
    combined into the directions of `OrderParameter`. Along each the energy is expanded by exact derivatives
    up to the fourth, at rest and again at the bottom, and is computed up to 0.8 Å. With `relax` the crystal
    is relaxed from the bottom, with its cell, keeping the space group that it has there. `options` are those
    of `relax`.

    Raises ValueError if the wave does not fit into `cells` cells, saying how many it needs.
    """
    if instability.cells is None:
        where = " ".join(f"{x:.4g}" for x in instability.q_point)
        raise ValueError(
            f"the wave at q = ({where}) fits no small supercell. Follow one at a wave vector with simple "
            "fractions near it, which `instabilities` lists too."
        )
    space = OrderParameter.of(instability.crystal, instability.q_point, instability.modes, cells, symprec)
    ways = [_smallest(space.supercell, space.distortion(v), symprec) for v in space.directions()]
    # Energies along the ways and the relaxation after them share a program.
    shape = moving_shape(sizes_of(potential.graphs([crystal for crystal, _ in ways])))
    ways = track(ways, "distortions")
    wells = [_well(potential, instability, crystal, u, shape, symprec) for crystal, u in ways]
    if relax:
        falling = [k for k, well in enumerate(wells) if well.falls]
        starts = [_moved(wells[k].crystal, wells[k].distortion, wells[k].lowest) for k in falling]
        whole = bool(instability.crystal.pbc.all())
        kept = {"fix_symmetry": whole, "symprec": symprec} | options
        for k, found in zip(falling, relax_many(potential, starts, shape=shape, **kept), strict=True):
            wells[k] = replace(wells[k], relaxed=found)
    return sorted(wells, key=lambda well: (-well.gain, well.energies.min() / len(well.crystal)))


def _well(
    potential: Potential,
    instability: Instability,
    crystal: Atoms,
    u: np.ndarray,
    shape: BatchShape,
    symprec: float,
) -> Well:
    energy, *slopes = derivatives_along(potential, crystal, u[None])[0]
    at_rest = Expansion(0.0, np.array([0.0, *slopes]))
    even = abs(slopes[2]) < 1e-6 * max(1.0, abs(slopes[3]))  # then both signs are alike
    one_side = _amplitudes(at_rest.bottom)
    x = np.concatenate([[0.0] if even else [*-one_side[::-1], 0.0], one_side])
    with _near():
        graphs = potential.graphs([_moved(crystal, u, each) for each in x])
        predictions = predicted(potential, graphs, shapes=(shape,))
    energies = np.array([p["energy"] for p in predictions])
    energies -= energies[x == 0]
    amplitude, lowest = _beyond(x, energies, at_rest.bottom)
    falls = lowest < -ROUGH * len(crystal)
    bottom = _at_bottom(potential, crystal, u, amplitude, energy) if falls else None
    group = Symmetry(_moved(crystal, u, 0.1), symprec).dataset()
    name = "unknown" if group is None else f"{group.international} ({group.number})"
    return Well(instability, crystal, u, energy, at_rest, bottom, x, energies, name)


def _amplitudes(predicted: tuple[float, float] | None) -> np.ndarray:
    """Where energies are computed, on one side: closely around the predicted bottom, and beyond it."""
    near = FARTHEST if predicted is None else np.clip(2 * abs(predicted[0]), 2 * CLEAR, FARTHEST)
    far = np.linspace(near, FARTHEST, FAR + 1)[1:] if near < FARTHEST else []
    return np.concatenate([near * np.arange(1, NEAR + 1) / NEAR, far])


def _beyond(
    amplitudes: np.ndarray, energies: np.ndarray, predicted: tuple[float, float] | None
) -> tuple[float, float]:
    """The amplitude (Å) and energy (eV) that is lowest of those that are not too near to count."""
    at = 0.0 if predicted is None else abs(predicted[0])
    least = min(at / 2, CLEAR) if at > NARROW else CLEAR
    far = np.flatnonzero(np.abs(amplitudes) > least - SAME_POINT)
    k = far[energies[far].argmin()]
    return float(amplitudes[k]), float(energies[k])


def _at_bottom(
    potential: Potential, crystal: Atoms, u: np.ndarray, amplitude: float, energy: float
) -> Expansion | None:
    """The expansion about the bottom near an amplitude; None if no bottom is found there."""
    for _ in range(ROUNDS):
        with _near():
            found = derivatives_along(potential, _moved(crystal, u, amplitude), u[None])[0]
        expansion = Expansion(amplitude, np.array([found[0] - energy, *found[1:]]))
        if expansion.bottom is None or expansion.bottom[1] >= 0:
            return None
        if abs(expansion.bottom[0] - amplitude) < SAME_PLACE:
            return expansion
        amplitude = expansion.bottom[0]
    return expansion


@contextmanager
def _near() -> Iterator[None]:
    """Without warnings of atoms that are pushed together on the way."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _moved(crystal: Atoms, u: np.ndarray, amplitude: float) -> Atoms:
    moved = crystal.copy()
    moved.positions += amplitude * u
    return moved


def _smallest(supercell: Atoms, u: np.ndarray, symprec: float) -> tuple[Atoms, np.ndarray]:
    """The smallest cell that the distorted supercell repeats after, undistorted, and its distortion."""
    distorted = _moved(supercell, u, 0.1)
    distorted.set_array("distortion", u)
    cell = Symmetry(distorted, symprec).primitive.atoms
    u = cell.get_array("distortion")
    undistorted = _moved(cell, u, -0.1)
    undistorted.set_array("distortion", None)
    return undistorted, u
