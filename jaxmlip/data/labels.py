"""DFT labels of a crystal: the type that all readers return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from ase import Atoms
from jaxtyping import Float, Int

PROPERTIES = ("energy", "forces", "stress", "magmoms", "hessian")
FUNCTIONALS = ("LDA", "PBE", "PBEsol", "PBE+U", "SCAN", "r2SCAN", "r2SCAN+U", "HSE06", "PBE0")
NOT_STATED = "not stated"  # printed for an empty name
LONGEST = 60  # characters of a functional's name


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
class Labels:
    """The labels of one crystal of N atoms, in NumPy and float64; None: not known.

    `hessian[k]` is the column of the Hessian that belongs to the displacement of atom `columns[k] // 3` along
    axis `columns[k] % 3`: the force constants ∂²E/∂r∂r between that coordinate and all atoms of this cell.
    """

    energy: float | None = None  # eV, of the whole crystal
    forces: Float[np.ndarray, "N 3"] | None = None  # eV/Å
    stress: Float[np.ndarray, "3 3"] | None = None  # eV/Å³, positive in tension, as in ASE
    magmoms: Float[np.ndarray, " N"] | None = None  # μB
    columns: Int[np.ndarray, " k"] | None = None
    hessian: Float[np.ndarray, "k N 3"] | None = None  # eV/Å²
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
        }
        found = {}
        for name in self.known:
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
            columns = np.asarray(() if self.columns is None else self.columns)
            if columns.shape != (len(self.hessian),) or not np.issubdtype(columns.dtype, np.integer):
                raise LabelError(
                    f"{of}: found {len(self.hessian)} columns of the Hessian and columns={self.columns!r}, "
                    "needed one number 3 * atom + axis for each column."
                )
            if len(columns) and (columns.min() < 0 or columns.max() >= 3 * atoms):
                raise LabelError(
                    f"{of}: found numbers of columns from {columns.min()} to {columns.max()}, needed 0 to "
                    f"{3 * atoms - 1}."
                )
            found["columns"] = columns.astype(np.int32)
        for name, weight in {"": self.weight, **self.weights}.items():
            if not (np.isfinite(weight) and weight >= 0):
                its = f"weight {weight}" + (f" of {name}" if name else "")
                raise LabelError(f"{of}: found {its}, needed a number that is not negative.")
        return replace(self, **found)

    def only(self, properties) -> Labels:
        """These labels, but only those of `properties`."""
        gone = {p: None for p in PROPERTIES if p not in properties}
        return replace(self, **gone, **({"columns": None} if "hessian" in gone else {}))


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
