"""Relaxation: crystals moved, with their cells, to where forces and stress vanish.

Many are moved side by side: one call of the potential computes all of them, and each has its own steps and
its own end. Graphs are rebuilt in each step. That takes a few per cent of the time on a CPU, and is right for
every model; a neighbour list with a skin would hold bonds beyond the cutoff, and cost more in each call than
it saves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from jaxmlip.crystals import batching
from jaxmlip.crystals.atoms import FLAT, as_atoms, check_crystal, numbered
from jaxmlip.crystals.batches import InFlight
from jaxmlip.crystals.graph import CLOSEST, CrystalGraph, directions, from_atoms
from jaxmlip.mechanics.calculator import Calculator
from jaxmlip.mechanics.optimisers import METHODS, Method
from jaxmlip.potential import Potential, Prediction
from jaxmlip.system.progress import track
from jaxmlip.units import GPA_PER_EV_PER_A3

if TYPE_CHECKING:
    from pymatgen.core import Structure

SYMPREC = 0.01  # Å; the largest deviation of atoms from the symmetry that spglib finds
VOLUME_RATIO = 3.0  # larger or smaller by more than this, a crystal has fallen apart
MAX_STEP = 0.1  # Å; the farthest that `relax_many` moves an atom in a step
OF_ASE = ("BFGS", "BFGSLineSearch", "LBFGSLineSearch", "FIRE2", "GPMin")


class NotConvergedWarning(UserWarning):
    """A warning that a relaxation ended before forces and stress were small enough."""


@dataclass(frozen=True, eq=False)
class Relaxation:
    """A crystal before and after its relaxation."""

    start: Atoms  # as it was given
    atoms: Atoms  # where it ended, with energy, forces, stress (and magmoms) as calculator results
    converged: bool
    reason: str  # why it did not converge; empty if it did
    steps: int
    start_energy: float  # eV, of the start, symmetrised if the symmetry is fixed
    energy: float  # eV
    max_force: float  # eV/Å, the largest on an atom after constraints
    # GPa, the largest |σ_ij + p δ_ij| after constraints and in allowed strains; no criterion if the cell is
    # fixed
    max_stress: float

    @property
    def pressure(self) -> float:
        """-tr σ / 3 of the end in GPa; NaN if it does not repeat in three directions."""
        if not self.atoms.pbc.all():
            return float("nan")
        stress = self.atoms.get_stress(voigt=False, apply_constraint=False)
        return float(-np.trace(stress) / 3 * GPA_PER_EV_PER_A3)

    @property
    def volume_change(self) -> float:
        """V / V₀ - 1; NaN for a box without a volume."""
        before = self.start.cell.volume
        return self.atoms.cell.volume / before - 1 if before > 0 else float("nan")

    @property
    def start_space_group(self) -> str:
        return space_group(self.start)

    @property
    def space_group(self) -> str:
        return space_group(self.atoms)


def space_group(atoms: Atoms, symprec: float = SYMPREC) -> str:
    """The space group that spglib finds within `symprec` (Å), such as "Fm-3m (225)", or "-"."""
    from jaxmlip.crystals.symmetry import symmetry_dataset

    found = symmetry_dataset(atoms, symprec)
    return "-" if found is None else f"{found.international} ({found.number})"


@dataclass(frozen=True)
class RelaxationOptions:
    """The criteria, the allowed motions and the optimiser of a relaxation; see `relax`.

    Raises ValueError for options that contradict each other or are out of range.
    """

    fmax: float = 1e-3  # eV/Å
    smax: float = 0.01  # GPa
    cell: bool = True
    optimiser: str = "LBFGS"
    fix_symmetry: bool = False
    pressure: float = 0.0  # GPa
    steps: int = 500
    symprec: float = SYMPREC  # Å
    constant_volume: bool = False
    hydrostatic_strain: bool = False
    mask: Sequence[bool] | None = None  # of the strains xx yy zz yz xz xy

    def __post_init__(self):
        for name, unit in (("fmax", "eV/Å"), ("smax", "GPa"), ("symprec", "Å")):
            if not getattr(self, name) > 0:
                raise ValueError(f"found {name}={getattr(self, name)!r}, needed a number above 0 ({unit}).")
        if not np.isfinite(self.pressure):
            raise ValueError(f"found pressure={self.pressure!r}, needed a number (GPa).")
        if self.pressure and not self.cell:
            raise ValueError(
                f"found pressure={self.pressure:g} GPa with a fixed cell, which no pressure can change. "
                "Let the cell vary, or leave the pressure out."
            )
        if self.steps < 0:
            raise ValueError(f"found steps={self.steps}, needed 0 or more.")
        kinds = {
            "constant_volume": self.constant_volume,
            "hydrostatic_strain": self.hydrostatic_strain,
            "mask": self.mask is not None,
        }
        asked = [name for name, given in kinds.items() if given]
        if asked and not self.cell:
            raise ValueError(f"found {asked[0]} with a fixed cell, which has no strain. Let the cell vary.")
        if len(asked) > 1:
            raise ValueError(f"found {' and '.join(asked)}, needed at most one of them.")
        if self.mask is not None and (np.shape(self.mask) != (6,) or not any(self.mask)):
            raise ValueError(
                f"found mask={self.mask!r}, needed whether each of the strains xx yy zz yz xz xy may vary: "
                "six of True and False, one of them True."
            )
        if self.mask is not None and self.fix_symmetry:
            raise ValueError(
                "found mask with fix_symmetry, which makes strains along equivalent directions equal: leave "
                "one out."
            )
        if self.pressure and self.constant_volume:
            raise ValueError(
                f"found pressure={self.pressure:g} GPa at constant volume, which no pressure changes."
            )

    def allowed(self, strain: np.ndarray, along: np.ndarray) -> np.ndarray:
        """The part of a symmetric (3, 3) stress or strain that the cell may follow.

        `along` is the projector onto the directions in which the crystal repeats.
        """
        strain = along @ strain @ along
        mean = np.trace(strain) / max(1.0, np.trace(along)) * along
        if self.constant_volume:
            return strain - mean
        if self.hydrostatic_strain:
            return mean
        if self.mask is not None:
            return strain * voigt_6_to_full_3x3_stress(np.asarray(self.mask, float))
        return strain


def relax(potential: Potential, crystal: Atoms | Structure, **options: Any) -> Relaxation:
    """A copy of `crystal`, moved until the largest force is below `fmax` (eV/Å).

    `options` are the fields of `RelaxationOptions`, which has their defaults.

    With `cell` its lattice vectors vary too, until each component of σ + p is below `smax` (GPa), where p is
    the `pressure` (GPa). `fix_symmetry` first makes the symmetry that holds within `symprec` (Å) exact, and
    then keeps the space group. Constraints of the atoms are respected. The defaults are for phonons; in
    float32 forces have a noise of about 3e-5 eV/Å.

    The strains of the cell can be restricted, with the names of ASE's filters: `constant_volume`;
    `hydrostatic_strain`, which keeps the shape; or a `mask` of the strains xx yy zz yz xz xy that may vary,
    in the Cartesian axes. A slab or a wire strains only along the directions in which it repeats, and needs a
    box with a height for that; a molecule has no cell to vary.

    Optimisers: "LBFGS" or "FIRE", which takes two to three times as many steps; and BFGS, BFGSLineSearch,
    LBFGSLineSearch, FIRE2 and GPMin of ASE, with its FrechetCellFilter.

    If it does not converge within `steps`, or the crystal falls apart, it warns (NotConvergedWarning) and the
    result says why. Raises ValueError as `Potential.graph` does.
    """
    goal = RelaxationOptions(**options)
    if goal.optimiser in OF_ASE:
        result = _relax_by_ase(potential, crystal, goal)
    else:
        descent = BatchDescent(crystal, goal, _method(goal.optimiser, (*METHODS, *OF_ASE))())
        (result,) = _relax_side_by_side(potential, [(descent, potential.graph(descent.atoms))])
    if not result.converged:
        name = result.start.get_chemical_formula()
        warnings.warn(f"{name} did not converge: {result.reason}.", NotConvergedWarning, stacklevel=2)
    return result


def at_rest(potential: Potential, crystal: Atoms | Structure) -> Atoms:
    """The crystal relaxed to no forces and stress, its space group kept: the start of phonons and elasticity.

    Masses, tags, magnetic moments, constraints and info stay those of `crystal`. Constraints would leave
    forces, so they are released meanwhile, with a warning. Raises RuntimeError if it does not converge.
    """
    atoms = as_atoms(crystal).copy()
    constraints = atoms.constraints
    if constraints:
        kinds = ", ".join(sorted({type(constraint).__name__ for constraint in constraints}))
        warnings.warn(
            f"{atoms.get_chemical_formula()} has constraints ({kinds}), which are released: a crystal at "
            "rest has no force on any atom.",
            stacklevel=2,
        )
        atoms.set_constraint()
    (found,) = relax_many(potential, [atoms], fix_symmetry=bool(atoms.pbc.all()))
    if not found.converged:
        raise RuntimeError(
            f"{found.start.get_chemical_formula()} did not come to rest ({found.reason}): the largest force "
            f"is {found.max_force:.2g} eV/Å, the largest stress {found.max_stress:.2g} GPa. Relax it alone "
            "with more --steps (jaxmlip relax), or leave out --relax."
        )
    rest = found.atoms.copy()  # without the results
    rest.set_constraint(constraints)
    return rest


def relax_many(
    potential: Potential,
    crystals: Iterable[Atoms | Structure],
    *,
    shape: batching.BatchShape | None = None,
    **options: Any,
) -> list[Relaxation]:
    """`crystals` relaxed side by side, in the same order; see `relax` for what the `options` mean.

    Each call of the potential computes all crystals of a batch. The next crystal takes the place of one that
    has ended, so that few programs are compiled; one that falls apart does not disturb the others. On a
    terminal a progress bar counts those that have ended. Optimisers: "LBFGS" and "FIRE". Calls with the same
    `shape` of a batch share its compiled program; it grows if crystals need more.

    The `converged` and `reason` of each result tell which crystals did not converge; there is no warning.
    Raises ValueError, as `Potential.graphs` does, before anything is computed.
    """
    goal = RelaxationOptions(**options)
    method, waiting = _method(goal.optimiser, METHODS), []
    for k, crystal in enumerate(track(crystals, "neighbours")):
        with numbered(k):
            descent = BatchDescent(crystal, goal, method())
            waiting.append((descent, potential.graph(descent.atoms)))
    return _relax_side_by_side(potential, waiting, shape)


def _method(name: str, known: Iterable[str]) -> Callable[[], Method]:
    if name not in METHODS:
        raise ValueError(f"found optimiser={name!r}, needed one of {', '.join(known)}.")
    return METHODS[name]


def _relax_side_by_side(
    potential: Potential,
    waiting: Sequence[tuple[BatchDescent, CrystalGraph]],
    shape: batching.BatchShape | None = None,
) -> list[Relaxation]:
    ended = _descend(potential, list(waiting), shape)
    for _ in track(range(len(waiting)), "relaxing"):
        next(ended)
    return [descent.result() for descent, _ in waiting]


def _relax_by_ase(potential: Potential, crystal, goal: RelaxationOptions) -> Relaxation:
    import ase.optimize
    from ase.filters import FrechetCellFilter

    descent = Descent(crystal, goal)
    atoms = moving = descent.atoms
    potential.graph(atoms)  # raises if the crystal itself is wrong
    atoms.calc = calculator = Calculator(potential)
    if descent.varies:
        if not atoms.pbc.all() and (goal.constant_volume or goal.hydrostatic_strain):
            raise ValueError(
                f"found optimiser={goal.optimiser!r} with constant_volume or hydrostatic_strain for pbc="
                f"{atoms.pbc.tolist()}; needed one of {', '.join(METHODS)}, since ASE's filter strains every "
                "direction."
            )
        # With √N instead of ASE's N, a strain is as stiff as a bond for any number of atoms.
        scale, p = len(atoms) ** 0.5, goal.pressure / GPA_PER_EV_PER_A3
        moving = FrechetCellFilter(
            atoms,
            mask=goal.mask,
            exp_cell_factor=scale,
            hydrostatic_strain=goal.hydrostatic_strain,
            constant_volume=goal.constant_volume,
            scalar_pressure=p,
        )
    run = getattr(ase.optimize, goal.optimiser)(moving, logfile=None)
    with quiet():
        try:
            # ASE's own criterion ignores stress; 0 is never reached.
            for _ in run.irun(fmax=0.0, steps=goal.steps):
                descent.steps = run.nsteps
                prediction = dict(calculator.results)
                if "stress" in prediction:
                    prediction["stress"] = voigt_6_to_full_3x3_stress(prediction["stress"])
                if descent.see(prediction):
                    break
        except ValueError as error:  # the crystal is invalid, or the optimiser's matrix has no eigenvalues
            descent.reason = f"it fell apart in step {run.nsteps + 1}: {error}"
    return descent.result()


@contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings of close atoms during a relaxation; if they end close, the result says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* Å apart; no potential was fitted")
        warnings.filterwarnings("ignore", message="FixSymmetry adjust_cell may be ill behaved")
        yield


class Descent:
    """A crystal on its way to a minimum: its state, its start, and whether it has ended."""

    def __init__(self, crystal: Atoms | Structure, goal: RelaxationOptions):
        from ase.constraints import FixSymmetry

        self.goal = goal
        self.start = as_atoms(crystal).copy()
        self.atoms = self.start.copy()
        check_crystal(self.atoms)
        repeats = self.atoms.pbc
        self.varies = goal.cell and bool(repeats.any())
        self.along = directions(self.atoms.cell.array, repeats)
        self._check_periodicity()
        if goal.fix_symmetry:
            # Made before it is attached, since making it moves the atoms onto the symmetry that it finds.
            symmetry = FixSymmetry(self.atoms, goal.symprec)
            self.atoms.set_constraint([*self.atoms.constraints, symmetry])
        self.steps = 0
        self.converged, self.reason = False, ""
        self.start_energy = float("nan")
        self.seen: Seen | None = None  # the last valid state

    def _check_periodicity(self) -> None:
        goal, atoms = self.goal, self.atoms
        if atoms.pbc.all():
            return
        name = f"{atoms.get_chemical_formula()} with pbc={atoms.pbc.tolist()}"
        for option in ("pressure", "fix_symmetry"):
            if getattr(goal, option):
                raise ValueError(
                    f"found {option}={getattr(goal, option)} for {name}, needed a crystal that repeats in "
                    "three directions. Leave it out."
                )
        if self.varies and atoms.cell.volume <= FLAT:
            raise ValueError(
                f"{name} has a box of volume {atoms.cell.volume:.3g} Å³, needed one with a height, to which "
                "its stress refers, since the cell may vary. Call atoms.center(vacuum=10, axis=...), or fix "
                "the cell."
            )

    def see(self, prediction: Prediction) -> bool:
        """Records the prediction for the present state; True if the relaxation has ended."""
        seen = Seen.of(self.atoms, prediction, self.goal, self.along)
        if self.seen is None:
            self.seen, self.start_energy = seen, seen.energy
        if not seen.finite:
            self.reason = f"energy, forces or stress were not finite after {self.steps} steps"
            return True
        ratio = self.atoms.cell.volume / self.start.cell.volume if self.varies else 1.0
        if not 1 / VOLUME_RATIO < ratio < VOLUME_RATIO:
            self.reason = f"its volume was {ratio:.2g} times that of the start after {self.steps} steps"
            return True
        self.seen = seen
        if seen.max_force < self.goal.fmax and (not self.varies or seen.max_stress < self.goal.smax):
            self.converged = not _collided(self.atoms)
            self.reason = "" if self.converged else f"atoms came closer than {CLOSEST} Å"
            return True
        if self.steps >= self.goal.steps:
            stress = f" and stress {seen.max_stress:.2g} GPa" if self.varies else ""
            self.reason = f"force {seen.max_force:.2g} eV/Å{stress} were left after {self.steps} steps"
            return True
        return False

    def result(self) -> Relaxation:
        from ase.calculators.singlepoint import SinglePointCalculator

        seen = self.seen
        atoms = self.start.copy()
        # Constraints were applied already; set_cell and set_positions would apply them again.
        atoms.set_cell(seen.cell, apply_constraint=False)
        atoms.set_positions(seen.positions, apply_constraint=False)
        atoms.calc = SinglePointCalculator(atoms, **seen.properties)
        return Relaxation(
            self.start,
            atoms,
            self.converged,
            self.reason,
            self.steps,
            self.start_energy,
            seen.energy,
            seen.max_force,
            seen.max_stress,
        )


@dataclass(frozen=True, eq=False)
class Seen:
    """A state of a crystal, and the potential's prediction for it."""

    positions: np.ndarray
    cell: np.ndarray
    properties: dict  # by ASE's names
    forces: np.ndarray  # (atoms, 3), eV/Å, after constraints
    stress: np.ndarray  # (3, 3), eV/Å³: σ + p, after constraints

    @classmethod
    def of(cls, atoms: Atoms, prediction: Prediction, goal: RelaxationOptions, along: np.ndarray) -> Seen:
        names = ("energy", "forces", "stress", "magmoms")
        properties = {name: prediction[name] for name in names if name in prediction}
        forces, left = np.array(prediction["forces"], float), np.zeros(6)
        if "stress" in prediction:
            properties["stress"] = full_3x3_to_voigt_6_stress(prediction["stress"])
            left = np.array(properties["stress"], float)
        left[:3] += goal.pressure / GPA_PER_EV_PER_A3
        for constraint in atoms.constraints:
            constraint.adjust_forces(atoms, forces)
            if hasattr(constraint, "adjust_stress"):
                constraint.adjust_stress(atoms, left)
        return cls(
            atoms.positions.copy(),
            atoms.cell.array.copy(),
            properties,
            forces,
            goal.allowed(voigt_6_to_full_3x3_stress(left), along),
        )

    @property
    def energy(self) -> float:
        return float(self.properties["energy"])

    @property
    def finite(self) -> bool:
        return bool(
            np.isfinite(self.energy) and np.isfinite(self.forces).all() and np.isfinite(self.stress).all()
        )

    @property
    def max_force(self) -> float:
        return float(np.linalg.norm(self.forces, axis=1).max())

    @property
    def max_stress(self) -> float:
        return float(np.abs(self.stress).max() * GPA_PER_EV_PER_A3)


def _collided(atoms: Atoms) -> bool:
    with quiet():
        return len(from_atoms(atoms, CLOSEST).first) > 0


class BatchDescent(Descent):
    """A crystal of a batch, in coordinates that treat cell and atoms alike.

    They are those of ASE's FrechetCellFilter without rotations: with F = exp(U), U symmetric, the cell is
    cell₀ F and the positions are x F; the coordinates are the N rows of x and the three of √N U, in Å. The
    factor makes a strain as stiff as a bond for any N.
    """

    def __init__(self, crystal: Atoms | Structure, goal: RelaxationOptions, method: Method):
        super().__init__(crystal, goal)
        self.method = method
        self.cell = self.atoms.cell.array.copy()
        self.scale = len(self.atoms) ** 0.5
        self.coordinates = np.concatenate([self.atoms.positions, np.zeros((3, 3))])

    def move(self) -> None:
        """Takes one step from the last recorded state."""
        step = self.method.step(self.coordinates, self.force())
        longest = np.linalg.norm(step, axis=1).max()
        self.place(self.coordinates + step * (MAX_STEP / max(longest, MAX_STEP)))
        self.steps += 1

    def place(self, coordinates: np.ndarray) -> None:
        """Moves atoms and cell to `coordinates`."""
        self.coordinates = coordinates
        value, vector = self._logarithm()
        F = (vector * np.exp(value)) @ vector.T
        if self.varies:
            self.atoms.set_cell(self.cell @ F, scale_atoms=True)
        self.atoms.set_positions(self.coordinates[:-3] @ F)
        if self.atoms.constraints:  # which may have changed the positions
            self.coordinates[:-3] = np.linalg.solve(F, self.atoms.positions.T).T

    def force(self) -> np.ndarray:
        """Minus the derivative of the enthalpy E + pV by the coordinates, (N + 3, 3)."""
        value, vector = self._logarithm()
        F = (vector * np.exp(value)) @ vector.T
        on_cell = np.zeros((3, 3))
        if self.varies:
            # dE = V tr(σ F⁻¹ dF). In the eigenvectors of U, d exp(U)_kl = dU_kl (e^k - e^l) / (k - l), the
            # formula of Daleckii and Krein, written without cancellation.
            by_F = self.atoms.cell.volume * np.linalg.solve(F, self.seen.stress)
            half = (value[:, None] - value) / 2
            ratio = np.where(half == 0, 1.0, np.sinh(half) / np.where(half == 0, 1.0, half))
            ratio *= np.exp((value[:, None] + value) / 2)
            on_cell = -vector @ (ratio * (vector.T @ (by_F + by_F.T) @ vector / 2)) @ vector.T
            on_cell = self.goal.allowed(on_cell, self.along)
        return np.concatenate([self.seen.forces @ F, on_cell / self.scale])

    def _logarithm(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues and eigenvectors of U."""
        return np.linalg.eigh(self.coordinates[-3:] / self.scale)


def _descend(
    potential: Potential,
    waiting: list[tuple[BatchDescent, CrystalGraph]],
    shape: batching.BatchShape | None,
) -> Iterator[None]:
    """Moves all crystals until each has ended; yields once for each."""
    waiting.sort(key=lambda pair: -batching.exact_shape([pair[1]]).messages)
    active: list[tuple[BatchDescent, CrystalGraph]] = []
    compute = InFlight(potential, shape)
    compute.expect([g for _, g in waiting])
    while waiting or active:
        admitted = compute.admits([g for _, g in active], [g for _, g in waiting])
        active += [pair for pair, fits in zip(waiting, admitted, strict=True) if fits]
        waiting = [pair for pair, fits in zip(waiting, admitted, strict=True) if not fits]
        moved = []
        for (descent, _), prediction in zip(active, compute([g for _, g in active]), strict=True):
            if descent.see(prediction):
                yield
            else:
                descent.move()
                moved.append(descent)
        with quiet():
            active = [(descent, potential.graph(descent.atoms)) for descent in moved]
