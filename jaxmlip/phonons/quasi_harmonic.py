"""Thermal expansion by the quasi-harmonic approximation: phonons at several volumes, and a fit by phonopy.

At each volume the crystal is relaxed, its shape and its atoms, and has its own phonons. At each temperature
E(V) + F(V, T) is fitted by an equation of state, whose minimum is the volume at that temperature: A. Togo,
L. Chaput, I. Tanaka and G. Hug, Phys. Rev. B 81, 174301 (2010). Unlike `expansion` it holds what is of higher
order in the vibrations. The shape of the cell is that of the static crystal at the volume, so that volumes
alone are what it gives for crystals that are not cubic.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from jaxmlip.crystals.atoms import as_atoms, check_repeats
from jaxmlip.mechanics.elasticity import NotAtRestWarning
from jaxmlip.mechanics.relaxation import relax_many
from jaxmlip.phonons.density import STILL, Thermodynamics, thermodynamics
from jaxmlip.phonons.expansion import checked_temperatures
from jaxmlip.phonons.imaginary import check_stable
from jaxmlip.phonons.many import lattices
from jaxmlip.phonons.modes import Modes
from jaxmlip.phonons.phonopy_files import import_phonopy
from jaxmlip.system.progress import paced
from jaxmlip.units import J_PER_MOL_PER_EV

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

    from jaxmlip.potential import Potential

FEWEST = 5  # volumes, by which phonopy fits entropies
SPAN = (-0.03, 0.06)  # smallest and largest change of the volume
STEP = 0.02  # of each temperature: its neighbours, with which phonopy differentiates
FORCE, STRESS = 1e-4, 1e-3  # eV/Å and GPa, of the crystals at each volume
Equation = Literal["vinet", "birch_murnaghan", "murnaghan"]


@dataclass(frozen=True, eq=False)
class QuasiHarmonic:
    """What a fit at v volumes gives at t temperatures; for the cell as given, a mole is one of such cells."""

    crystals: list[Atoms]  # relaxed at each volume
    energies: Float[np.ndarray, " v"]  # eV, of the static crystals
    free_energies: Float[np.ndarray, "t v"]  # eV, of the vibrations, zero-point energy included
    equation: Equation
    temperatures: Float[np.ndarray, " t"]  # K
    volume: Float[np.ndarray, " t"]  # Å³
    beta: Float[np.ndarray, " t"]  # 1/K: volumetric thermal expansion
    bulk_modulus: Float[np.ndarray, " t"]  # GPa, isothermal
    heat_capacity_p: Float[np.ndarray, " t"]  # J/K/mol
    gibbs: Float[np.ndarray, " t"]  # eV, of the static crystal and its vibrations
    gamma: Float[np.ndarray, " t"]  # the Grüneisen parameter V β B / C_V

    @property
    def volumes(self) -> Float[np.ndarray, " v"]:
        """Å³, those of the fit."""
        return np.array([atoms.get_volume() for atoms in self.crystals])


def quasi_harmonic(
    potential: Potential,
    crystal: Atoms | Structure,
    *,
    mesh: tuple[int, int, int],
    temperatures: Sequence[float],
    volumes: int = 11,
    span: tuple[float, float] = SPAN,
    equation: Equation = "vinet",
    pressure: float = 0.0,
    **options: Any,
) -> QuasiHarmonic:
    """The quasi-harmonic thermal expansion of a crystal, fitted by phonopy at a `pressure` in GPa.

    As many `volumes` are spread evenly over `span`, changes of that of `crystal`, which should be at rest. At
    each the crystal is relaxed, its space group kept, and has phonons on `mesh`; temperatures are in K.
    `options` are those of `Lattice` but shape. A volume at some temperature that lies outside the span is
    warned of: it is extrapolated.

    Raises ImportError if phonopy is not installed; ImaginaryModesError, with the volume, if a mode is
    imaginary; RuntimeError if a crystal does not come to rest, or phonopy cannot fit; and ValueError for a
    crystal that does not repeat in three directions, and for numbers that make no sense.
    """
    T, atoms = checked_temperatures(temperatures), as_atoms(crystal).copy()
    check_repeats(atoms, "thermal expansion coefficients")
    _check(volumes, span, equation)
    import_phonopy()
    atoms.set_constraint()
    changes = np.linspace(*span, volumes)
    crystals, energies = _relaxed(potential, atoms, changes)
    several = _modes(potential, crystals, changes, mesh, options)
    # phonopy differentiates by the temperatures before and after.
    around = (T[:, None] * (1 + STEP * np.array([-1, 0, 1]))).ravel()
    found = [thermodynamics(modes, around) for modes in several]
    lowest = energies.min()  # of which phonopy's solver would lose digits
    fit = _fitted(crystals, energies - lowest, found, around, equation, pressure)
    volume = fit.volume_temperature[1::3]
    _warn(crystals, found, T, volume)
    return QuasiHarmonic(
        crystals=crystals,
        energies=energies,
        free_energies=np.array([heat.free_energy[1::3] for heat in found]).T * 1e3 / J_PER_MOL_PER_EV,
        equation=equation,
        temperatures=T,
        volume=volume,
        beta=fit.thermal_expansion[1::3],
        bulk_modulus=fit.bulk_modulus_temperature[1::3],
        heat_capacity_p=np.array(fit.heat_capacity_P_polyfit)[1::3],
        gibbs=lowest + fit.gibbs_temperature[1::3],
        gamma=np.array(fit.gruneisen_temperature)[1::3],
    )


def _check(volumes: int, span: tuple[float, float], equation: str) -> None:
    """Raises ValueError for numbers that make no sense."""
    if volumes < FEWEST:
        raise ValueError(f"found {volumes} volumes, needed {FEWEST} or more for the fit.")
    if not -1 < span[0] < span[1]:
        raise ValueError(
            f"found the span {span}, needed the smallest and the largest change of the volume, such as "
            f"{SPAN}."
        )
    if equation not in get_args(Equation):
        raise ValueError(f"found equation={equation!r}, needed one of {', '.join(get_args(Equation))}.")


def _warn(
    crystals: Sequence[Atoms], found: Sequence[Thermodynamics], temperatures: np.ndarray, volume: np.ndarray
) -> None:
    """Warns of modes that are left out, and of volumes at `temperatures` that lie outside of the fit's."""
    name = crystals[0].get_chemical_formula()
    if slow := max(heat.left_out for heat in found):
        warnings.warn(
            f"up to {100 * slow:.2g} % of the modes of {name} are at {STILL:g} THz or below at some volumes, "
            "and left out there: the free energy of the fit is not smooth.",
            stacklevel=3,
        )
    first, last = (atoms.get_volume() for atoms in (crystals[0], crystals[-1]))
    outside = np.flatnonzero((volume < first) | (volume > last))
    if len(outside):
        k = outside[0]
        warnings.warn(
            f"the volume of {name} at {temperatures[k]:g} K, {volume[k]:.4g} Å³, is outside of those of the "
            f"fit, {first:.4g} to {last:.4g} Å³: it is extrapolated. Needed a wider span.",
            stacklevel=3,
        )


def _relaxed(potential: Potential, atoms: Atoms, changes: np.ndarray) -> tuple[list[Atoms], np.ndarray]:
    """The crystal relaxed at each change of its volume, and the static energies (eV)."""
    scaled = []
    for change in changes:
        moved = atoms.copy()
        moved.set_cell(atoms.cell * (1 + change) ** (1 / 3), scale_atoms=True)
        scaled.append(moved)
    tight = {"fmax": FORCE, "smax": STRESS, "fix_symmetry": True, "constant_volume": True}
    found = relax_many(potential, scaled, **tight)
    for change, its in zip(changes, found, strict=True):
        if not its.converged:
            raise RuntimeError(
                f"{atoms.get_chemical_formula()} at {1 + change:.4g} times its volume did not come to rest: "
                f"{its.reason}. Take a smaller span."
            )
    rest = [its.atoms.copy() for its in found]  # without the results
    for each in rest:
        each.set_constraint()
    return rest, np.array([its.energy for its in found])


def _modes(
    potential: Potential,
    crystals: Sequence[Atoms],
    changes: np.ndarray,
    mesh: tuple[int, int, int],
    options: dict[str, Any],
) -> list[Modes]:
    """The modes of each crystal on the mesh; none may be imaginary."""
    each = lattices(potential, crystals, lambda _, lattice: lattice.mesh(mesh), **options)
    found: dict[int, Modes] = {}
    told: dict[str, warnings.WarningMessage] = {}
    with paced(len(crystals), 0, "phonons at volumes") as show:
        while len(found) < len(crystals):
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                k, modes = next(each)
            # They are under stress on purpose; the rest is told once.
            told |= {str(w.message): w for w in heard if not issubclass(w.category, NotAtRestWarning)}
            if isinstance(modes, Exception):
                raise modes
            name = f"{modes.primitive.get_chemical_formula()} at {1 + changes[k]:.4g} times its volume"
            check_stable(modes.primitive, modes.q_points, modes.frequencies, modes.mesh.weights, name)
            found[k] = modes
            show(len(found), "")
    for warning in told.values():
        warnings.warn(warning.message, warning.category, stacklevel=3)
    return [found[k] for k in range(len(crystals))]


def _fitted(
    crystals: Sequence[Atoms],
    energies: np.ndarray,
    found: Sequence[Thermodynamics],
    temperatures: np.ndarray,
    equation: Equation,
    pressure: float,
) -> Any:
    """phonopy's QHA object, after its run. Raises RuntimeError if it cannot fit."""
    from phonopy.qha.core import QHA

    volumes = [atoms.get_volume() for atoms in crystals]
    names = ("heat_capacity", "entropy", "free_energy")
    by_T = (np.array([getattr(heat, name) for heat in found]).T for name in names)
    its = QHA(volumes, energies, temperatures, *by_T, pressure=pressure or None, eos=equation)
    try:
        its.run()
    except RuntimeError as error:
        raise RuntimeError(
            f"phonopy cannot fit the equation of state ({error}): the volumes "
            f"{volumes[0]:.4g} to {volumes[-1]:.4g} Å³ may hold no minimum of the free energy. Relax the "
            "crystal first, or take another span."
        ) from None
    return its
