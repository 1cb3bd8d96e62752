"""Nudged elastic bands: the path over the saddle between two minima, and its barrier.

All images of all bands are computed side by side, in one call of the potential where they fit; the force on a
band is that of ASE (`ase.mep.NEB`): improved tangents, G. Henkelman and H. Jónsson, J. Chem. Phys. 113, 9978
(2000), and a climbing image, G. Henkelman, B. P. Uberuaga and H. Jónsson, ibid. 9901.

`approximate_bands` follows Z. Rong et al., J. Chem. Phys. 145, 074112 (2016): no springs; in each image the
mobile atom and the one farthest from it are held, and all others relax.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from jaxmlip.crystals.atoms import as_atoms
from jaxmlip.crystals.batches import InFlight
from jaxmlip.mechanics.relaxation import (
    MAX_STEP,
    METHODS,
    Method,
    NotConvergedWarning,
    quiet,
    relax_many,
)
from jaxmlip.potential import Potential
from jaxmlip.system.progress import track

if TYPE_CHECKING:
    from pymatgen.core import Structure

    Path = Sequence[Atoms | Structure]

SPRING = 0.1  # eV/Å², between images that are each 3N coordinates, as in ASE
CLIMB_BELOW = 0.5  # eV/Å; the highest image climbs once the band is that smooth, or it may climb a wrong one


@dataclass(frozen=True, eq=False)
class Band:
    """A path between two minima, both included."""

    images: list[Atoms]  # with energy and forces as calculator results
    converged: bool
    reason: str  # why it did not converge; empty if it did
    steps: int
    max_force: float  # eV/Å, the largest on an atom of an image, springs and projection included

    @property
    def energies(self) -> np.ndarray:
        """Energies in eV, (images,)."""
        return np.array([image.get_potential_energy() for image in self.images])

    @property
    def path(self) -> np.ndarray:
        """Position of each image along the band in Å, (images,): √Σ|Δr|² over atoms, added up."""
        return path_length(self.images)

    @property
    def saddle(self) -> int:
        """The number of the highest image."""
        return int(self.energies.argmax())

    @property
    def forward(self) -> float:
        """Barrier in eV from the first image to the highest."""
        return barriers(self.energies)[0]

    @property
    def reverse(self) -> float:
        """Barrier in eV from the last image to the highest."""
        return barriers(self.energies)[1]

    @property
    def kra(self) -> float:
        """The kinetically resolved activation barrier, eV; see `barriers`."""
        return barriers(self.energies)[2]


def barriers(energies: Sequence[float]) -> tuple[float, float, float]:
    """Barrier forwards, barrier backwards and KRA, in the unit of `energies`, which run along a path.

    The kinetically resolved activation barrier does not depend on the direction: the highest energy minus the
    mean of both ends, A. Van der Ven et al., Phys. Rev. B 64, 184307 (2001).
    """
    e = np.asarray(energies, float)
    top = e.max()
    return float(top - e[0]), float(top - e[-1]), float(top - (e[0] + e[-1]) / 2)


def path_length(images: Sequence[Atoms]) -> np.ndarray:
    """Distances in Å, (images,): √Σ|Δr|² over atoms (nearest periodic images), added up."""
    moved = [
        np.linalg.norm(find_mic(b.positions - a.positions, a.cell, a.pbc)[0]) for a, b in pairwise(images)
    ]
    return np.concatenate([[0.0], np.cumsum(moved)])


def in_order_of(crystal: Atoms | Structure, reference: Atoms | Structure) -> Atoms:
    """`crystal` with its atoms in the order of the nearest atoms of the same element in `reference`.

    The assignment has the least sum of squared distances, periodic images included: H. W. Kuhn, Nav. Res.
    Logist. Q. 2, 83 (1955). It is for the ends of a path from files with different orders of atoms. If
    equivalent atoms exchange places it gives the shortest path, which may not be the intended one. Raises
    ValueError if elements or cells differ.
    """
    from scipy.optimize import linear_sum_assignment

    atoms, reference = as_atoms(crystal), as_atoms(reference)
    check_alike(reference, atoms, ordered=False)
    apart = (atoms.positions[None] - reference.positions[:, None]).reshape(-1, 3)
    lengths = find_mic(apart, reference.cell, reference.pbc)[1]
    cost = lengths.reshape(len(reference), len(atoms)) ** 2
    cost[reference.numbers[:, None] != atoms.numbers] = 1e6
    return atoms[linear_sum_assignment(cost)[1]]


def vacancy_hop(crystal: Atoms | Structure, vacancy: int, atom: int) -> tuple[Atoms, Atoms]:
    """The ends of a path: `crystal` without atom number `vacancy`, before and after `atom` takes its place.

    Raises ValueError if the two are the same atom, or of different elements.
    """
    crystal = as_atoms(crystal)
    if vacancy == atom or crystal.numbers[vacancy] != crystal.numbers[atom]:
        raise ValueError(
            f"found atoms {vacancy} ({crystal.symbols[vacancy]}) and {atom} ({crystal.symbols[atom]}), "
            "needed two atoms of one element, the first to be removed and the second to take its place."
        )
    start, end = crystal.copy(), crystal.copy()
    end.positions[atom] = crystal.positions[vacancy]
    del start[vacancy], end[vacancy]
    return start, end


def interpolated(
    start: Atoms | Structure, end: Atoms | Structure, images: int = 5, method: str = "idpp"
) -> list[Atoms]:
    """`start`, then `images` images between, then `end`, with each atom on its shortest path.

    Methods: "linear", or "idpp", which keeps atoms from running into each other: S. Smidstrup et al.,
    J. Chem. Phys. 140, 214106 (2014). Raises ValueError if atoms or cells do not match.
    """
    from ase.mep import NEB

    start, end = as_atoms(start), as_atoms(end)
    check_alike(start, end)
    if images < 1:
        raise ValueError(f"found images={images}, needed at least one between the ends.")
    if method not in ("linear", "idpp"):
        raise ValueError(f"found interpolation={method!r}, needed 'idpp' or 'linear'.")
    made = [start.copy() for _ in range(images + 1)] + [end.copy()]
    NEB(made, method="improvedtangent").interpolate(method, mic=True, apply_constraint=False)
    return made


def band(potential: Potential, *path: Atoms | Structure, **options) -> Band:
    """The band between two crystals, or from the images of an initial guess; see `bands`."""
    return bands(potential, [path], **options)[0]


def bands(
    potential: Potential,
    paths: Sequence[Path],
    *,
    images: int = 5,
    climb: bool = True,
    fmax: float = 0.05,
    relax_ends: bool = True,
    interpolation: str = "idpp",
    optimiser: str = "FIRE",
    spring: float = SPRING,
    steps: int = 300,
) -> list[Band]:
    """Nudged elastic bands, relaxed side by side in fixed cells until no force is above `fmax` (eV/Å).

    A path is its two ends, between which `interpolated` puts `images` images; or three and more crystals, the
    ends and an initial guess of the images. With `relax_ends` the ends are first relaxed to their minima.
    With `climb` the highest image ends on the saddle. Constraints of the atoms are respected. Optimisers:
    "FIRE", or "LBFGS", which is faster but less reliable.

    If an end does not relax, or a band does not converge within `steps`, it warns (NotConvergedWarning) and
    the result says why. Raises ValueError if the crystals of a path do not match, and as `Potential.graph`
    does.
    """
    if optimiser not in METHODS:
        raise ValueError(f"found optimiser={optimiser!r}, needed one of {', '.join(METHODS)}.")
    if not fmax > 0:
        raise ValueError(f"found fmax={fmax!r}, needed a number above 0 (eV/Å).")
    guesses, reasons = _guesses(potential, paths, images, interpolation, relax_ends, fmax)
    moving = [
        _Moving(guess, reason, climb, fmax, spring, steps, METHODS[optimiser]())
        for guess, reason in zip(guesses, reasons, strict=True)
    ]
    compute = InFlight(potential)
    _compute(compute, [m.images for m in moving])
    ended = _descend(compute, moving)
    for _ in track(range(len(moving)), "bands"):
        next(ended)
    return _said([m.result() for m in moving])


def approximate_bands(
    potential: Potential,
    paths: Sequence[Path],
    mobile: Sequence[int],
    *,
    images: int = 5,
    fmax: float = 0.05,
    relax_ends: bool = True,
    interpolation: str = "idpp",
    steps: int = 300,
) -> list[Band]:
    """Bands of the ApproxNEB method: `mobile` is the number of the atom that moves, for each path.

    In every image that atom and the one farthest from it keep their guessed positions, and all others relax
    in a fixed cell. A band with an image that does not relax has not converged. Other arguments and errors
    are those of `bands`.
    """
    from ase.constraints import FixAtoms

    guesses, reasons = _guesses(potential, paths, images, interpolation, relax_ends, fmax)
    held = []
    for guess, atom in zip(guesses, mobile, strict=True):
        for image in guess[1:-1]:
            fixed = image.copy()
            far = fixed.get_distances(atom, range(len(fixed)), mic=True).argmax()
            fixed.set_constraint(FixAtoms([atom, int(far)]))
            held.append(fixed)
    relaxed = iter(relax_many(potential, held, fmax=fmax, cell=False, steps=steps))
    found = []
    for guess, reason in zip(guesses, reasons, strict=True):
        inner = [next(relaxed) for _ in guess[1:-1]]
        together = [guess[0], *(r.atoms for r in inner), guess[-1]]
        failed = [reason] * bool(reason) + [
            f"image {k}: {r.reason}" for k, r in enumerate(inner, 1) if not r.converged
        ]
        force = max(r.max_force for r in inner)
        found.append(Band(together, not failed, "; ".join(failed), max(r.steps for r in inner), force))
    _compute(InFlight(potential), [[b.images[0], b.images[-1]] for b in found])
    return _said(found)


class _Moving:
    """A band during its relaxation."""

    def __init__(
        self,
        images: list[Atoms],
        reason: str,  # why it cannot start, if it cannot
        climb: bool,
        fmax: float,
        spring: float,
        steps: int,
        method: Method,
    ):
        from ase.mep import NEB

        self.images, self.reason = images, reason
        self.climb, self.fmax, self.limit, self.method = climb, fmax, steps, method
        self.neb = NEB(images, k=spring, method="improvedtangent")
        self.steps, self.max_force, self.converged = 0, float("nan"), False

    def ends(self) -> bool:
        """Checks the forces of the present state; True if the band has ended."""
        self.force = self.neb.get_forces()
        self.max_force = float(np.linalg.norm(self.force, axis=1).max())
        if not np.isfinite(self.max_force):
            self.reason = f"forces were not finite after {self.steps} steps"
            return True
        if self.reason:
            return True
        if self.climb and not self.neb.climb and self.max_force < CLIMB_BELOW:
            self.neb.climb = True
            return self.ends()
        if self.max_force < self.fmax:
            self.converged = True
            return True
        if self.steps >= self.limit:
            self.reason = f"force {self.max_force:.2g} eV/Å was left after {self.steps} steps"
            return True
        return False

    def move(self) -> None:
        x = self.neb.get_positions()
        step = self.method.step(x, self.force)
        longest = np.linalg.norm(step, axis=1).max()
        self.neb.set_positions(x + step * (MAX_STEP / max(longest, MAX_STEP)))
        self.steps += 1

    def result(self) -> Band:
        return Band(self.images, self.converged, self.reason, self.steps, self.max_force)


def _descend(compute: InFlight, moving: list[_Moving]) -> Iterator[None]:
    """Moves all bands until each has ended; yields once for each."""
    while moving:
        left = []
        for b in moving:
            if b.ends():
                yield
            else:
                b.move()
                left.append(b)
        moving = left
        _compute(compute, [b.images[1:-1] for b in moving])


def _compute(compute: InFlight, images: Sequence[Sequence[Atoms]]) -> None:
    """Gives each image its energy (eV) and forces (eV/Å) as results of a calculator."""
    from ase.calculators.singlepoint import SinglePointCalculator

    each = [image for its in images for image in its]
    with quiet():
        graphs = [compute.potential.graph(image) for image in each]
    for image, p in zip(each, compute(graphs), strict=True):
        image.calc = SinglePointCalculator(image, energy=p["energy"], forces=p["forces"].astype(float))


def _guesses(
    potential: Potential, paths: Sequence[Path], images: int, method: str, relax_ends: bool, fmax: float
) -> tuple[list[list[Atoms]], list[str]]:
    """The images of each path with relaxed ends, and the reasons why ends did not relax."""
    paths = [[as_atoms(crystal).copy() for crystal in path] for path in paths]
    for path in paths:
        if len(path) < 2:
            raise ValueError(f"found a path of {len(path)} crystals, needed its two ends at least.")
        for other in path[1:]:
            check_alike(path[0], other)
    reasons = [""] * len(paths)
    if relax_ends:
        ends = [end for path in paths for end in (path[0], path[-1])]
        rested = relax_many(potential, ends, fmax=fmax / 2, cell=False)
        for k, end in enumerate(rested):
            if not end.converged:
                reasons[k // 2] = f"an end did not come to rest: {end.reason}"
            paths[k // 2][-(k % 2)].set_positions(end.atoms.positions, apply_constraint=False)
    guesses = [interpolated(*path, images, method) if len(path) == 2 else path for path in paths]
    return guesses, reasons


def _said(found: list[Band]) -> list[Band]:
    failed = [b for b in found if not b.converged]
    if failed:
        which = ", ".join(f"{b.images[0].get_chemical_formula()} ({b.reason})" for b in failed[:5])
        warnings.warn(
            f"{len(failed)} of {len(found)} bands did not converge: {which}.",
            NotConvergedWarning,
            stacklevel=3,
        )
    return found


def check_alike(start: Atoms, end: Atoms, ordered: bool = True) -> None:
    """Raises ValueError unless both can be images of one path: atoms, their order, cell and pbc."""
    name = start.get_chemical_formula()
    if sorted(start.numbers) != sorted(end.numbers):
        raise ValueError(
            f"a path goes from {name} to {end.get_chemical_formula()}, needed the same atoms at both ends."
        )
    if ordered and np.any(start.numbers != end.numbers):
        raise ValueError(
            f"the ends of a path of {name} list their atoms in different orders; "
            "jaxmlip.mechanics.neb.in_order_of puts one in the order of the other."
        )
    if np.abs(start.cell.array - end.cell.array).max() > 1e-6:
        raise ValueError(
            f"the cells of a path of {name} differ, needed one fixed cell for all of its images."
        )
    if np.any(start.pbc != end.pbc):
        raise ValueError(
            f"a path of {name} goes from pbc={start.pbc.tolist()} to {end.pbc.tolist()}, needed one of them."
        )
