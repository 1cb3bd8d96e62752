"""Errors of a potential against labels: by property, element, material and functional; suspicious units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.units import Bohr, Hartree, kcal, kJ, mol
from jaxtyping import Float

from jaxmlip.crystals.graph import ELEMENTS, atomic_number
from jaxmlip.derivatives.slopes import force_slope
from jaxmlip.units import EV_PER_THZ, GPA_PER_EV_PER_A3, PER_CM_PER_THZ

SLOPED = (
    "forces",
    "stress",
    "magmoms",
    "hessian",
    "frequencies",
    "averages",
    "third",
)  # not energies, whose zero is arbitrary
CLEAR = 0.7  # the smallest r² at which a slope indicates a unit
NEAR = 1.6  # the factor by which a slope may be off that of a unit
NEAREST = 0.2  # largest error of energies in the right unit, relative to the energy and to the error before
KBAR, GPA = 10 * GPA_PER_EV_PER_A3, GPA_PER_EV_PER_A3
# Ratios of labels in other units to labels in the units of this package.
FACTORS = {
    "stress": {
        -KBAR: "that is kbar with VASP's sign, needed eV/Å³, positive in tension",
        KBAR: "that is kbar, needed eV/Å³",
        GPA: "that is GPa, needed eV/Å³",
        -GPA: "that is GPa of compression, needed eV/Å³, positive in tension",
        -0.1: "that is GPa where VASP's kbar, positive in compression, was needed",
        -1 / KBAR: "that is eV/Å³ where VASP's kbar, positive in compression, was needed",
        -1.0: "that is the other sign: needed positive in tension (of a virial, -V σ)",
    },
    "frequencies": {
        PER_CM_PER_THZ: "that is 1/cm, needed THz",
        1e3 * EV_PER_THZ: "that is meV, needed THz",
        2 * np.pi: "that is an angular frequency in 1/ps, needed THz",
    },
    "forces": {
        Bohr / Hartree: "that is Hartree/Bohr, needed eV/Å",
        Bohr / (Hartree / 2): "that is Ry/Bohr, needed eV/Å",
        mol / kcal: "that is kcal/mol/Å, needed eV/Å",
        -1.0: "that is the gradient of the energy, needed forces",
    },
}
ENERGY_UNITS = {
    "Hartree, needed eV": Hartree,
    "Ry, needed eV": Hartree / 2,
    "kcal/mol, needed eV": kcal / mol,
    "kJ/mol, needed eV": kJ / mol,
}
DRAWS = 10_000_000  # most frames times draws for the interval of one slope


@dataclass(frozen=True, eq=False)
class Pair:
    """One property of one crystal, from DFT and from the model, in the unit of UNITS."""

    species: np.ndarray  # of the crystal
    dft: np.ndarray
    model: np.ndarray


Comparison = dict[str, list[Pair]]  # by property; those without a label are left out


@dataclass(frozen=True)
class Error:
    """Model against DFT, over all components."""

    crystals: int
    values: int
    mae: float
    rmse: float
    slope: float | None  # Σxy / Σxx, x DFT, y model; None for energies, and if all of DFT is zero
    interval: tuple[float, float] | None  # 95 %, by bootstrap over crystals; None for a single one
    r_squared: float | None  # of the line through the origin


def shifted(compared: Comparison, shift: Float[np.ndarray, " elements"]) -> Comparison:
    """`compared` with energies of the model that have `shift` (eV, by atomic number) added."""
    energy = [replace(p, model=p.model + shift[p.species].mean()) for p in compared.get("energy", [])]
    return {**compared, "energy": energy} if energy else compared


def error(pairs: Sequence[Pair], sloped: bool = True) -> Error:
    """Errors and, where `sloped`, the slope through the origin over all components of `pairs`."""
    difference = np.concatenate([np.ravel(p.model - p.dft) for p in pairs]).astype(float)
    slope = None
    if sloped and any(np.any(p.dft) for p in pairs):
        resamples = max(min(2000, DRAWS // len(pairs)), 20)
        slope = force_slope([p.model for p in pairs], [p.dft for p in pairs], resamples=resamples)
    return Error(
        crystals=len(pairs),
        values=len(difference),
        mae=float(np.abs(difference).mean()),
        rmse=float(np.sqrt((difference**2).mean())),
        slope=None if slope is None else slope.slope,
        interval=None if slope is None or len(pairs) == 1 else slope.interval,
        r_squared=None if slope is None or np.isnan(slope.r_squared) else slope.r_squared,
    )


def errors(compared: Comparison) -> dict[str, Error]:
    """Errors by property."""
    return {name: error(pairs, name in SLOPED) for name, pairs in compared.items()}


def by_material(compared: Comparison) -> dict[str, dict[str, Error]]:
    """Errors by reduced formula and by property."""
    groups: dict[str, Comparison] = defaultdict(lambda: defaultdict(list))
    for name, pairs in compared.items():
        for pair in pairs:
            formula = Atoms(atomic_number(pair.species)).get_chemical_formula("metal", empirical=True)
            groups[formula][name].append(pair)
    return {formula: errors(groups[formula]) for formula in sorted(groups)}


def by_functional(compared: Comparison, names: Sequence[str]) -> dict[str, dict[str, Error]]:
    """Errors by functional, which species encode in a potential with several, and by property."""
    groups: dict[str, Comparison] = {name: defaultdict(list) for name in names}
    for prop, pairs in compared.items():
        for pair in pairs if names else ():
            groups[names[(int(pair.species[0]) - 1) // ELEMENTS]][prop].append(pair)
    return {name: errors(found) for name, found in groups.items()}


def by_element(compared: Comparison) -> dict[str, dict[str, Error]]:
    """Errors by element, for the properties of atoms: forces and magnetic moments."""
    groups: dict[int, Comparison] = defaultdict(lambda: defaultdict(list))
    for name in ("forces", "magmoms"):
        for pair in compared.get(name, ()):
            for z in np.unique(pair.species):
                own = pair.species == z
                groups[int(atomic_number(z))][name].append(
                    Pair(pair.species[own], pair.dft[own], pair.model[own])
                )
    return {chemical_symbols[z]: errors(groups[z]) for z in sorted(groups)}


def units_told(compared: Comparison) -> list[str]:
    """Lines on labels that look as if they had a wrong unit or sign.

    A factor between labels and model is suspicious if it is that of a unit: models err by less.
    """
    found = []
    for name, factors in FACTORS.items():
        e = error(pairs) if (pairs := compared.get(name)) else None
        if e is None or not e.slope or e.r_squared is None or e.r_squared < CLEAR:
            continue
        off = {factor: abs(np.log(factor * e.slope)) for factor in factors if factor * e.slope > 0}
        factor = min(off, key=off.get, default=None)
        if factor is not None and off[factor] < np.log(NEAR):
            found.append(f"{name}: labels are {1 / e.slope:.4g} times the model's: {factors[factor]}")
    return found + _energy_unit_told(compared.get("energy", ()))


def _energy_unit_told(pairs: Sequence[Pair]) -> list[str]:
    """A line on energies in a wrong unit, if a factor removes the error. (A slope would need an origin.)"""
    if not pairs:
        return []
    dft, model = np.array([(float(p.dft), float(p.model)) for p in pairs]).T
    atoms = np.array([len(p.species) for p in pairs])
    before = np.sqrt(np.mean((dft - model) ** 2))
    size = np.sqrt(np.mean(model**2))
    factors = {"energies per atom, needed those of whole crystals": atoms} if atoms.max() > 1 else {}
    for words, factor in (factors | ENERGY_UNITS).items():
        after = np.sqrt(np.mean((dft * factor - model) ** 2))
        if after < NEAREST * min(before, size):
            return [f"energy: labels look like {words}: {before:.3g} eV/atom of error would be {after:.3g}"]
    return []


def as_record(found: Mapping[str, Any]) -> dict[str, Any]:
    """Nested errors for JSON."""
    return {k: vars(v) if isinstance(v, Error) else as_record(v) for k, v in found.items()}
