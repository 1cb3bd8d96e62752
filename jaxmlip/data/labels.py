"""DFT labels of a crystal: the type that all readers return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float, Int

from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U

PROPERTIES = ("energy", "forces", "stress", "magmoms", "hessian", "frequencies", "averages", "third")
FUNCTIONALS = ("LDA", "PBE", "PBEsol", "PBE+U", "SCAN", "r2SCAN", "r2SCAN+U", "HSE06", "PBE0")
NOT_STATED = "not stated"  # printed for an empty name
LONGEST = 60  # characters of a functional's name
IMAGINARY = -0.3  # THz; lower frequencies are imaginary, what lies above is the noise of acoustic ones at Γ
# eV/Å²: no coordinate is held more stiffly. In N2, one of the stiffest bonds, ω² times the mass is 280.
STIFFEST = 300.0


class LabelError(ValueError):
    """A label cannot be true. The message names the crystal, what was found and what was needed."""


def functional_name(text: str) -> str:
    """The spelling in FUNCTIONALS, such as "r2SCAN" for "R2SCAN"; other names unchanged."""
    known = {name.casefold(): name for name in FUNCTIONALS}
    return known.get(text.strip().casefold(), text.strip())


def counted(functionals: Mapping[str, int]) -> str:
    """A phrase with the number of crystals of each functional."""
    return ", ".join(
        f"{functionals[name]} {name or NOT_STATED}" for name in sorted(functionals, reverse=True)
    )


@dataclass(frozen=True, eq=False)
class Frequencies:
    """Phonon frequencies of a crystal of N atoms at k wave vectors, in NumPy and float64.

    A row has a number for each of the 3N branches, ascending, NaN where it is not known. In a row that is not
    `assigned` the numbers belong to no branch: each is compared with the branch that is nearest, as points of
    a measurement are.
    """

    q_points: Float[np.ndarray, "k 3"]  # reciprocal lattice units of the crystal's cell
    thz: Float[np.ndarray, "k branches"]
    masses: Float[np.ndarray, " N"]  # u
    weights: Float[np.ndarray, " k"] | None = None  # wave vectors that each stands for; default: 1
    assigned: Bool[np.ndarray, " k"] | None = None  # default: all
    error: Float[np.ndarray, "k branches"] | None = None  # THz, of a measurement; NaN where it is not stated

    @property
    def confidence(self) -> Float[np.ndarray, "k branches"]:
        """The weight of each number of checked labels: 0 where there is none, else 1 / error², 1 on average.

        Numbers whose error is not stated weigh 1.
        """
        known, told = ~np.isnan(self.thz), ~np.isnan(self.thz + self.error)
        found = known.astype(float)
        if told.any():
            found[told] = self.error[told] ** -2.0
            found[told] /= found[told].mean()
        return found

    def check(self, atoms: int, of: str) -> Frequencies:
        """These labels with defaults filled in, and branches in ascending order.

        Raises LabelError for shapes that do not belong to `atoms` atoms, and for numbers that cannot be
        frequencies in THz, such as those in 1/cm or imaginary ones.
        """
        q, thz, masses = (np.asarray(x, np.float64) for x in (self.q_points, self.thz, self.masses))
        k = q.shape[0] if q.ndim else 0
        weights = np.ones(k) if self.weights is None else np.asarray(self.weights, np.float64)
        assigned = np.ones(k, bool) if self.assigned is None else np.asarray(self.assigned, bool)
        error = np.full(thz.shape, np.nan) if self.error is None else np.asarray(self.error, np.float64)
        needed = {
            "wave vectors": (q, (k, 3)),
            "frequencies": (thz, (k, 3 * atoms)),
            "masses": (masses, (atoms,)),
            "weights of wave vectors": (weights, (k,)),
            "marks of assigned rows": (assigned, (k,)),
            "errors": (error, (k, 3 * atoms)),
        }
        for name, (x, shape) in needed.items():
            if x.shape != shape:
                raise LabelError(
                    f"{of}: found {name} of shape {x.shape}, needed {shape}: a cell of {atoms} atoms has "
                    f"{3 * atoms} branches. Are they of another cell of this crystal?"
                )
        known = ~np.isnan(thz)
        finite = [np.isfinite(x).all() for x in (q, thz[known], masses, weights)]
        if not (all(finite) and (masses > 0).all() and (weights > 0).all() and not (error <= 0).any()):
            raise LabelError(
                f"{of}: found wave vectors, frequencies, masses, weights or errors that are not finite, or "
                "masses, weights or errors that are not positive."
            )
        if not known.any():
            raise LabelError(f"{of}: found no frequency, needed at least one.")
        _plausible(of, q, np.where(known, thz, 0.0), masses)
        whole = known.all(axis=1)
        falls = thz < np.fmax.accumulate(thz, axis=1)
        if wrong := np.flatnonzero(falls.any(axis=1) & assigned & ~whole).tolist():
            raise LabelError(
                f"{of}: found frequencies that fall from one branch to the next at q = "
                f"{_words(q[wrong[0]])}, where some are not known; needed those of each wave vector in "
                "ascending order."
            )
        # Files that follow branches through crossings have other orders.
        order = np.where((whole & assigned)[:, None], thz.argsort(axis=1), np.arange(thz.shape[1]))
        thz, error = (np.take_along_axis(x, order, axis=1) for x in (thz, error))
        return Frequencies(q, thz, masses, weights, assigned, error)


NEEDED = {
    "moment": "numbers above 0, of powers above 0",
    "density": "none below 0, some above, and a width above 0 THz",
    "heat capacity": "0 to 1 k_B for each of 3N modes, at temperatures above 0",
    "entropy": "none below 0, in k_B for each of 3N modes, at temperatures above 0",
}
AVERAGES = tuple(NEEDED)


@dataclass(frozen=True, eq=False)
class Averages:
    """Averages over all modes of a crystal of N atoms, in NumPy and float64; each is one of AVERAGES.

    A moment is the mean of a power of the frequency; a density of states is broadened by a Gaussian, and its
    integral is 1; heat capacity and entropy are those of harmonic modes, for each mode.
    """

    what: Int[np.ndarray, " m"]  # numbers in AVERAGES
    at: Float[np.ndarray, " m"]  # the power of a moment; THz of a density; K
    values: Float[np.ndarray, " m"]  # THz to that power; 1/THz; k_B; k_B
    masses: Float[np.ndarray, " N"]  # u
    width: float = 0.0  # THz, the standard deviation of that Gaussian

    @property
    def scale(self) -> Float[np.ndarray, " m"]:
        """What an error of checked labels is divided by: a moment, the largest density, and 1 k_B."""
        density = self.what == AVERAGES.index("density")
        largest = self.values[density].max(initial=0.0)
        return np.select(
            [self.what == AVERAGES.index("moment"), density], [np.abs(self.values), largest], 1.0
        )

    def check(self, atoms: int, of: str) -> Averages:
        """These labels in float64. Raises LabelError for shapes or numbers that cannot be such averages."""
        at, values, masses = (np.asarray(x, np.float64) for x in (self.at, self.values, self.masses))
        what, width = np.asarray(self.what), float(self.width)
        if what.ndim != 1 or not len(what) or not at.shape == values.shape == what.shape:
            raise LabelError(
                f"{of}: found averages of shapes {what.shape}, {at.shape} and {values.shape}, needed as many "
                "values as kinds and places, and at least one."
            )
        if masses.shape != (atoms,) or not (masses > 0).all():
            raise LabelError(f"{of}: found masses {masses.tolist()}, needed {atoms} numbers above 0.")
        finite = all(np.isfinite(x).all() for x in (at, values, masses, width))
        if not finite or not np.isin(what, range(len(AVERAGES))).all():
            raise LabelError(
                f"{of}: found averages that are not finite, or of kinds that are none of 0 to "
                f"{len(AVERAGES) - 1}."
            )
        for name in np.array(AVERAGES)[np.unique(what)].tolist():
            its = what == AVERAGES.index(name)
            own, places = values[its], at[its]
            least, most = float(own.min()), float(own.max())
            wrong = {
                "moment": least <= 0 or places.min() <= 0,
                "density": least < 0 or most <= 0 or width <= 0,
                "heat capacity": least < 0 or most > 1 + 1e-6 or places.min() <= 0,
                "entropy": least < 0 or places.min() <= 0,
            }
            if wrong[name]:
                raise LabelError(
                    f"{of}: found a {name} from {least:.4g} to {most:.4g}, needed {NEEDED[name]}."
                )
            if name == "moment":
                _check_highest(of, float((own ** (1 / places)).max()), masses)
            if name == "density":  # without its tail
                _check_highest(of, float(places[own > 0.01 * most].max()), masses)
        return Averages(what.astype(np.int32), at, values, masses, width)


def _plausible(
    of: str,
    q: Float[np.ndarray, "k 3"],
    thz: Float[np.ndarray, "k branches"],
    masses: Float[np.ndarray, " N"],
) -> None:
    """Raises LabelError for imaginary frequencies, and for those that are too high to be in THz."""
    row, branch = np.unravel_index(thz.argmin(), thz.shape)
    if thz[row, branch] < IMAGINARY:
        raise LabelError(
            f"{of}: found imaginary frequencies, the lowest {thz[row, branch]:.3g} THz at q = "
            f"{_words(q[row])}; needed those of a stable crystal. Leave out these wave vectors, or label the "
            "structure that is stable (jaxmlip stabilise finds one for a potential)."
        )
    _check_highest(of, float(thz.max()), masses)


def _check_highest(of: str, thz: float, masses: Float[np.ndarray, " N"]) -> None:
    highest = THZ_PER_ROOT_EV_PER_A2_U * float(np.sqrt(STIFFEST / masses.min()))
    if thz > highest:
        raise LabelError(
            f"{of}: found a frequency of {thz:.4g}, needed THz: with a mass of {masses.min():.4g} u "
            f"none is above {highest:.3g} THz. Numbers in 1/cm are 33.36 times those in THz, in meV 4.136 "
            "times."
        )


def _words(q: Float[np.ndarray, " 3"]) -> str:
    return "(" + " ".join(f"{x:.4g}" for x in q) + ")"


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one crystal of N atoms, in NumPy and float64; None: not known.

    `hessian[k]` is the column of the Hessian that belongs to the displacement of atom `columns[k] // 3` along
    axis `columns[k] % 3`: the force constants ∂²E/∂r∂r between that coordinate and all atoms of this cell.
    `third[k]` are the constants of third order ∂³E/∂r∂r∂r between the two coordinates `pairs[k]`, numbered
    in the same way, and all atoms.
    """

    energy: float | None = None  # eV, of the whole crystal
    forces: Float[np.ndarray, "N 3"] | None = None  # eV/Å
    stress: Float[np.ndarray, "3 3"] | None = None  # eV/Å³, positive in tension, as in ASE
    magmoms: Float[np.ndarray, " N"] | None = None  # μB
    columns: Int[np.ndarray, " k"] | None = None
    hessian: Float[np.ndarray, "k N 3"] | None = None  # eV/Å²
    frequencies: Frequencies | None = None  # THz; of the crystal as it is, whatever its forces are
    averages: Averages | None = None  # over the modes of the crystal as it is
    pairs: Int[np.ndarray, "k3 2"] | None = None
    third: Float[np.ndarray, "k3 N 3"] | None = None  # eV/Å³
    weight: float = 1.0  # of this crystal in every loss
    weights: Mapping[str, float] = field(default_factory=dict)  # of single properties, times `weight`

    def weight_of(self, name: str) -> float:
        """The weight of the property `name` of this crystal in its loss."""
        return self.weight * self.weights.get(name, 1.0)

    @property
    def known(self) -> tuple[str, ...]:
        """The PROPERTIES that have a label."""
        return tuple(p for p in PROPERTIES if getattr(self, p) is not None)

    def check(self, atoms: int, of: str) -> Labels:
        """These labels in float64. Raises LabelError if one is not finite or has a wrong shape."""
        shapes = {
            "energy": (),
            "forces": (atoms, 3),
            "stress": (3, 3),
            "magmoms": (atoms,),
            "hessian": (None, atoms, 3),
            "third": (None, atoms, 3),
        }
        found = {}
        for name in {"frequencies", "averages"}.intersection(self.known):
            found[name] = getattr(self, name).check(atoms, of)
        for name in (name for name in self.known if name in shapes):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            needed = (
                tuple(n if m is None else m for m, n in zip(shapes[name], value.shape, strict=False))
                if value.ndim == len(shapes[name])
                else shapes[name]
            )
            if value.shape != needed:
                raise LabelError(f"{of}: found {name} of shape {value.shape}, needed {needed}.")
            if not np.isfinite(value).all():
                raise LabelError(
                    f"{of}: found {name} with {int((~np.isfinite(value)).sum())} numbers that are not "
                    "finite. The calculation probably did not converge: leave out the label or the crystal."
                )
            found[name] = float(value) if name == "energy" else value
        if self.hessian is not None:
            found["columns"] = _numbers(of, "columns", self.columns, (len(self.hessian),), atoms)
        if self.third is not None:
            found["pairs"] = _numbers(of, "pairs", self.pairs, (len(self.third), 2), atoms)
        for name, weight in {"": self.weight, **self.weights}.items():
            if not (np.isfinite(weight) and weight >= 0):
                its = f"weight {weight}" + (f" of {name}" if name else "")
                raise LabelError(f"{of}: found {its}, needed a number that is not negative.")
        return replace(self, **found)

    def only(self, properties) -> Labels:
        """These labels, but only those of `properties`."""
        gone = {p: None for p in PROPERTIES if p not in properties}
        gone |= {of: None for p, of in (("hessian", "columns"), ("third", "pairs")) if p in gone}
        return replace(self, **gone)


def _numbers(
    of: str, name: str, given: Int[np.ndarray, "..."] | None, shape: tuple[int, ...], atoms: int
) -> Int[np.ndarray, "..."]:
    """Numbers 3 * atom + axis of coordinates. Raises LabelError if they are not, or not of that shape."""
    numbers = np.asarray(() if given is None else given)
    if numbers.shape != shape or not np.issubdtype(numbers.dtype, np.integer):
        its = f"no {name}" if given is None else f"{name} of shape {numbers.shape} and type {numbers.dtype}"
        raise LabelError(f"{of}: found {its}, needed whole numbers 3 * atom + axis of shape {shape}.")
    if numbers.size and (numbers.min() < 0 or numbers.max() >= 3 * atoms):
        raise LabelError(
            f"{of}: found {name} with numbers from {numbers.min()} to {numbers.max()}, needed 0 to "
            f"{3 * atoms - 1}."
        )
    return numbers.astype(np.int32)


@dataclass(frozen=True, eq=False)
class LabelledCrystal:
    """A crystal with its labels. Readers make it; `checked` validates it."""

    atoms: Atoms  # periodic, without calculator
    labels: Labels
    material: str = ""  # crystals of one material stay on one side of a split; default: the formula
    name: str = ""  # its origin, for messages: a file and a number, or an identifier
    functional: str = ""  # that the labels were computed with, such as "r2SCAN"; default: not stated
    isolated: bool = False  # one atom alone, whose energy is a reference energy

    def checked(self) -> LabelledCrystal:
        """This crystal with labels in float64. Raises LabelError, or ValueError as `from_atoms` does."""
        from jaxmlip.crystals.atoms import check_crystal

        of = self.name or self.atoms.get_chemical_formula()
        try:
            check_crystal(self.atoms)
        except ValueError as error:
            raise LabelError(f"{of}: {error}") from None
        labels = self.labels.check(len(self.atoms), of)
        material = self.material or self.atoms.get_chemical_formula("hill", empirical=True)
        functional = functional_name(self.functional)
        if len(functional) > LONGEST or not functional.isprintable():
            raise LabelError(
                f"{of}: found the functional {functional[:LONGEST]!r}, needed a name such as r2SCAN, of at "
                f"most {LONGEST} characters."
            )
        return replace(self, labels=labels, material=material, name=of, functional=functional)
