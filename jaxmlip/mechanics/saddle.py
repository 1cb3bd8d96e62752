"""Saddle points by eigenvector following with exact Hessians: P-RFO.

Along one mode the energy is maximised and along all others minimised, each by a rational function: A.
Banerjee, N. Adams, J. Simons and R. Shepard, J. Phys. Chem. 89, 52 (1985). Steps stay within a trust radius,
which follows how well the Hessian predicts the change of the gradient: changes of the energy up and down
nearly cancel and tell less. Between exact Hessians the last one is updated: J. M. Bofill, J. Comput. Chem.
15, 1 (1994).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ase import Atoms
from jaxtyping import Float

from jaxmlip.crystals.atoms import as_atoms
from jaxmlip.crystals.batches import InFlight
from jaxmlip.crystals.structures import moving_coordinates
from jaxmlip.derivatives.response import Response
from jaxmlip.mechanics.relaxation import NotConvergedWarning, Relaxation, quiet, relax_many
from jaxmlip.mechanics.vibrations import (
    IMAGINARY,
    Vibrations,
    complement,
    exact_hessian,
    on_moving,
    rigid_motions,
)
from jaxmlip.potential import Potential
from jaxmlip.system.progress import track

if TYPE_CHECKING:
    from pymatgen.core import Structure

LARGEST, SMALLEST = 0.3, 0.005  # Å, of the trust radius
AWAY = 0.1  # Å; the largest motion along the mode before minima are relaxed
# Errors of a predicted gradient, of which its size or change is 1: below GOOD the radius may grow,
# above POOR it shrinks, and a step with more than WRONG is taken back.
GOOD, POOR, WRONG = 0.25, 0.5, 1.0


class Point(NamedTuple):
    """A point of a search."""

    positions: np.ndarray  # (N, 3), Å
    energy: float  # eV
    forces: np.ndarray  # (N, 3), eV/Å, those of what does not move included
    gradient: np.ndarray  # (n,), eV/Å, along the coordinates that move
    max_force: float  # eV/Å, the largest on an atom along them


@dataclass(frozen=True, eq=False)
class Saddle:
    """Where a search for a saddle ended, and what it cost."""

    start: Atoms
    atoms: Atoms  # with energy and forces as calculator results
    converged: bool  # forces below fmax, and one imaginary mode
    reason: str  # why it did not converge; empty if it did
    force_calls: int  # of energy and forces together, those of the minima not counted
    hessians: int  # exact ones, the last of them where it ended
    vibrations: Vibrations  # where it ended
    history: list[tuple[float, float]]  # of each force call the energy (eV) and the largest force (eV/Å)
    mode: np.ndarray  # (N, 3), Å, the lowest mode: the largest motion is 1
    minima: tuple[Relaxation, Relaxation] | None = None  # reached along minus and plus `mode`

    @property
    def energy(self) -> float:
        """eV."""
        return self.vibrations.energy

    @property
    def max_force(self) -> float:
        """eV/Å, the largest on an atom along moving coordinates."""
        return self.vibrations.max_force

    @property
    def imaginary_per_cm(self) -> float:
        """The wavenumber of the lowest mode in cm⁻¹, negative if it is imaginary."""
        return float(self.vibrations.per_cm[0])

    @property
    def barriers(self) -> tuple[float, float] | None:
        """Energies in eV from each minimum to the saddle; None without minima."""
        if self.minima is None:
            return None
        first, last = (self.energy - found.energy for found in self.minima)
        return first, last


def saddle(
    potential: Potential,
    atoms: Atoms | Structure,
    *,
    direction: Float[np.ndarray, "atoms 3"] | None = None,
    fmax: float = 1e-3,
    steps: int = 100,
    trust: float = 0.1,
    renew: int = 5,
    minima: bool = False,
    memory_limit: float | None = None,
) -> Saddle:
    """The saddle point near `atoms`, in a fixed cell, until no force is above `fmax` (eV/Å).

    It follows the mode most like `direction`, such as the tangent of a band at its top, or the lowest one at
    first, and keeps to it as it turns.
    Coordinates that constraints hold do not move; translations, and rotations of a free molecule, are
    projected out. An exact Hessian is computed at the start, every `renew` steps, where the model was wrong,
    and at the end, where it has to show one imaginary mode; where it shows none or several, the search goes
    on along a mode. A step moves no atom farther than the trust radius, `trust` (Å) at first, either up or
    down. With `minima` the minima on both sides are found, by relaxing from 0.1 Å along the mode.

    If it does not converge within `steps` it warns (NotConvergedWarning) and the result says why. Raises
    ValueError for arguments out of range, if nothing but rigid motions is free, and as `Potential.graph` and
    `moving_coordinates` do.
    """
    if not fmax > 0 or not 0 < trust <= LARGEST or steps < 0 or renew < 1:
        raise ValueError(
            f"found fmax={fmax!r}, trust={trust!r}, steps={steps!r}, renew={renew!r}; needed fmax above 0 "
            f"(eV/Å), trust above 0 and up to {LARGEST} (Å), steps from 0 and renew from 1 on."
        )
    start = as_atoms(atoms).copy()
    if direction is not None and np.shape(direction) != (len(start), 3):
        raise ValueError(f"found a direction of shape {np.shape(direction)}, needed ({len(start)}, 3).")
    search = _Search(potential, start, direction, trust, memory_limit)
    for taken in track(range(steps + 1), "saddle"):
        if search.ends(fmax):
            reason = ""
            break
        if taken < steps:
            search.move(fmax, renew)
    else:
        reason = f"{search.left(fmax)} after {steps} steps"
    if reason:
        warnings.warn(
            f"{start.get_chemical_formula()} did not converge to a saddle: {reason}.",
            NotConvergedWarning,
            stacklevel=2,
        )
    return search.result(reason, fmax if minima else None)


class _Search:
    """The state of a search: where it is, the model of the energy there, and what was computed."""

    def __init__(
        self,
        potential: Potential,
        start: Atoms,
        direction: np.ndarray | None,
        trust: float,
        memory_limit: float | None,
    ):
        self.potential, self.start, self.memory_limit = potential, start, memory_limit
        self.coordinates = moving_coordinates(start)
        self.direction = None if direction is None else np.ravel(direction)[self.coordinates]
        self.follow, self.trust = self.direction, trust
        self.compute = InFlight(potential, several=False)
        self.hessians, self.since = 0, 0
        self.history: list[tuple[float, float]] = []
        self.here = self._at(start.positions)
        if not self._finite(self.here):
            raise ValueError(
                f"energy or forces of {start.get_chemical_formula()} are not finite, needed a start where "
                "the potential is defined."
            )
        if self._space().shape[1] == 0:
            raise ValueError(
                f"{start.get_chemical_formula()} can only move as a whole, needed atoms that move against "
                "each other."
            )
        self._differentiate()

    def _placed(self, positions: np.ndarray) -> Atoms:
        atoms = self.start.copy()
        atoms.set_positions(positions, apply_constraint=False)
        return atoms

    def _at(self, positions: np.ndarray) -> Point:
        with quiet():
            found = self.compute([self.potential.graph(self._placed(positions))])[0]
        force = on_moving(found["forces"], self.coordinates)
        largest = float(np.linalg.norm(force, axis=1).max())
        self.history.append((float(found["energy"]), largest))
        gradient = -force.ravel()[self.coordinates]
        return Point(positions, float(found["energy"]), found["forces"].astype(float), gradient, largest)

    def _differentiate(self) -> None:
        """The exact Hessian where the search is."""
        with quiet():
            graph = self.potential.graph(self._placed(self.here.positions))
        shape = self.compute.shape if self.memory_limit is None else None
        response = Response(self.potential, graph, memory_limit=self.memory_limit, shape=shape)
        self.hessian = exact_hessian(response, self.coordinates)
        self.hessians, self.since, self.exact = self.hessians + 1, 0, True

    def vibrations(self) -> Vibrations:
        """The modes where the search is, from an exact Hessian."""
        if not self.exact:
            self._differentiate()
        atoms = self._placed(self.here.positions)
        return Vibrations(atoms, self.coordinates, self.hessian, self.here.energy, self.here.max_force)

    def ends(self, fmax: float) -> bool:
        """True on a saddle: no force is left, and an exact Hessian shows one imaginary mode."""
        return self.here.max_force < fmax and self.vibrations().imaginary == 1

    def left(self, fmax: float) -> str:
        """What is missing."""
        if self.here.max_force >= fmax:
            return f"a force of {self.here.max_force:.2g} eV/Å was left"
        return f"{self.vibrations().imaginary} modes below {IMAGINARY:g} THz, needed one, were found"

    def move(self, fmax: float, renew: int) -> None:
        """Takes a step and learns from it; stays, with a smaller radius, if the model was wrong by far."""
        if self.since >= renew:
            self._differentiate()
        step = self._step() if self.here.max_force >= fmax else self._escape()
        longest = self._longest(step)
        there = self._at(self.here.positions + self._of_atoms(step))
        expected, change = self.hessian @ step, there.gradient - self.here.gradient
        error = np.linalg.norm(change - expected)
        error /= max(np.linalg.norm(expected), np.linalg.norm(self.here.gradient))
        if not self._finite(there) or (error > WRONG and self.trust > SMALLEST):
            self.trust = max(SMALLEST, longest / 4)
            self.since = self.since if self.exact else renew
            return
        self.hessian = updated(self.hessian, step, change)
        self.here, self.exact, self.since = there, False, self.since + 1
        if error > POOR:
            self.trust, self.since = max(SMALLEST, longest / 2), renew
        elif error < GOOD and longest > 0.8 * self.trust:
            self.trust = min(LARGEST, 2 * self.trust)

    @staticmethod
    def _finite(point: Point) -> bool:
        return bool(np.isfinite([point.energy, point.max_force]).all())

    def _modes(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Eigenvalues, ascending, and eigenvectors (n, modes) of the Hessian, and the mode to follow."""
        space = self._space()
        value, vector = np.linalg.eigh(space.T @ (self.hessian + self.hessian.T) @ space / 2)
        vector = space @ vector
        up = 0 if self.follow is None else int(np.abs(self.follow @ vector).argmax())
        self.follow = vector[:, up]
        return value, vector, up

    def _step(self) -> np.ndarray:
        """The step (n,) of P-RFO, its parts up and down each at most as long as the trust radius.

        Shortened as a whole, a long way up would leave nothing of the way down.
        """
        value, vector, up = self._modes()
        along = rational(value, self.here.gradient @ vector, up)
        rises = np.arange(len(value)) == up
        parts = [vector @ np.where(some, along, 0.0) for some in (rises, ~rises)]
        return sum(part * (self.trust / max(self._longest(part), self.trust)) for part in parts)

    def _escape(self) -> np.ndarray:
        """A step away from where nothing pulls: up from a minimum, down from a saddle of higher order."""
        _, vector, up = self._modes()
        if self.vibrations().imaginary == 0:
            step = vector[:, up]
            uphill = self.here.gradient if self.direction is None else self.direction
        else:
            step = vector[:, int(up == 0)]
            uphill = -self.here.gradient
        return step * (self.trust / self._longest(step)) * (1.0 if uphill @ step >= 0 else -1.0)

    def _space(self) -> np.ndarray:
        """An orthonormal basis of the coordinates that move, without rigid motions if all do."""
        atoms = self._placed(self.here.positions)
        if len(self.coordinates) < 3 * len(atoms):
            return np.eye(len(self.coordinates))
        return complement(rigid_motions(atoms, np.ones(len(atoms))))

    def _longest(self, step: np.ndarray) -> float:
        """How far a step moves an atom at most, in Å."""
        return float(np.linalg.norm(self._of_atoms(step), axis=1).max())

    def _of_atoms(self, step: np.ndarray) -> np.ndarray:
        moved = np.zeros(3 * len(self.start))
        moved[self.coordinates] = step
        return moved.reshape(-1, 3)

    def result(self, reason: str, fmax: float | None) -> Saddle:
        """The result; with `fmax`, and if there is a saddle, the minima on both sides too."""
        from ase.calculators.singlepoint import SinglePointCalculator

        found = self.vibrations()
        mode = found.displacements[0]
        mode = mode / np.linalg.norm(mode, axis=1).max()
        if self.direction is not None and mode.ravel()[self.coordinates] @ self.direction < 0:
            mode = -mode
        atoms = self._placed(self.here.positions)
        atoms.calc = SinglePointCalculator(atoms, energy=self.here.energy, forces=self.here.forces)
        minima = None
        if fmax is not None and not reason:
            sides = [self._placed(self.here.positions + sign * AWAY * mode) for sign in (-1, 1)]
            first, last = relax_many(self.potential, sides, fmax=fmax, cell=False)
            minima = first, last
        counts = len(self.history), self.hessians
        return Saddle(self.start, atoms, not reason, reason, *counts, found, self.history, mode, minima)


def rational(
    value: Float[np.ndarray, " n"], gradient: Float[np.ndarray, " n"], up: int
) -> Float[np.ndarray, " n"]:
    """The P-RFO step in eigenvectors with these eigenvalues: up along mode `up`, down along all others.

    Each is -g / (λ - shift). The shift of one is the highest eigenvalue of [[λ, g], [g, 0]], that of the
    others the lowest one of the same matrix of them all.
    """
    step = np.zeros_like(gradient)
    for some, highest in (([up], True), ([k for k in range(len(value)) if k != up], False)):
        if not some:
            continue
        g = gradient[some]
        matrix = np.block([[np.diag(value[some]), g[:, None]], [g[None], np.zeros((1, 1))]])
        shift = np.linalg.eigvalsh(matrix)[-1 if highest else 0]
        apart = value[some] - shift
        step[some] = np.where(np.abs(g) > 0, -g / np.where(apart == 0, 1.0, apart), 0.0)
    return step


def updated(
    hessian: Float[np.ndarray, "n n"], step: Float[np.ndarray, " n"], change: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n n"]:
    """The Hessian after a step along which the gradient changed: Bofill's mean of two symmetric updates.

    They are that of Murtagh and Sargent, of rank one, and that of Powell.
    """
    missing = change - hessian @ step
    squares = (missing @ missing) * (step @ step)
    if squares < 1e-30:
        return hessian
    along, length = missing @ step, step @ step
    share = along**2 / squares
    first = along * np.outer(missing, missing) / squares
    powell = (np.outer(missing, step) + np.outer(step, missing)) / length
    powell -= along * np.outer(step, step) / length**2
    return hessian + first + (1 - share) * powell
