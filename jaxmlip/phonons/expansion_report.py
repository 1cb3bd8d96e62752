"""Thermal expansion for a terminal, a file and a figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ase.cell
import numpy as np

from jaxmlip.crystals.atoms import crystal_record
from jaxmlip.mechanics.elasticity import VOIGT, to_voigt
from jaxmlip.phonons.expansion import Expansion
from jaxmlip.phonons.quasi_harmonic import QuasiHarmonic
from jaxmlip.system.plots import COLOURS, panels
from jaxmlip.system.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("xx", "yy", "zz", "yz", "xz", "xy")
MICRO = 1e6  # α is shown in 1e-6/K
LARGE = 0.005  # a strain for which higher orders begin to matter
SAME = 1e-4  # of the largest component; those that differ by less are equal


def components(tensors: np.ndarray) -> list[tuple[str, tuple[int, int]]]:
    """The components of symmetric tensors (t, 3, 3) that differ and are not 0, each with all of its names."""
    largest, first = np.abs(tensors).max(), {}
    for (i, j), name in zip(VOIGT, NAMES, strict=True):
        its = tensors[:, i, j]
        if i != j and np.abs(its).max() <= SAME * largest:
            continue
        same = [at for at in first if np.abs(its - tensors[:, at[0], at[1]]).max() <= SAME * largest]
        first.setdefault(same[0] if same else (i, j), []).append(name)
    return [(", ".join(names), at) for at, names in first.items()]


def table(found: Expansion, fit: QuasiHarmonic | None, model: str) -> Table:
    """α and what goes with it at each temperature; β of the fit beside it."""
    parts = components(found.alpha)
    columns = ("T / K", *(f"α {names}" for names, _ in parts), "β", *(["β of fit"] * (fit is not None)))
    columns += ("γ", "C_V / J/K/mol", "C_p", "B_S / GPa", "ΔV / %")
    change = 100 * (found.volume / found.modes.primitive.get_volume() - 1)
    rows = [
        (
            f"{T:g}",
            *(float(MICRO * found.alpha[k][at]) + 0.0 for _, at in parts),
            float(MICRO * found.beta[k]),
            *([float(MICRO * fit.beta[k])] if fit is not None else []),
            float(found.gamma[k]),
            float(found.heat_capacity_v[k]),
            float(found.heat_capacity_p[k]),
            float(found.adiabatic_bulk_modulus[k]),
            float(change[k]),
        )
        for k, T in enumerate(found.temperatures)
    ]
    return Table(f"{_formula(found)}: α and β / 1e-6/K, {model}", columns, rows, 2)


def describe(found: Expansion) -> Iterator[str]:
    """Lines of text on the zero-point strain, the static crystal, and how large the strains are."""
    zero, stiff = np.trace(found.zero_point_strain), found.bulk_modulus
    yield (
        f"zero-point vibrations change the volume by {100 * zero:+.3f} %; the static cell has a bulk modulus "
        f"of {stiff:.1f} GPa"
    )
    largest = np.abs(np.linalg.eigvalsh(found.strain)).max(axis=1)
    k = int(largest.argmax())
    if largest[k] > LARGE:
        yield (
            f"at {found.temperatures[k]:g} K the cell is strained by {100 * largest[k]:.2g} %, of which this "
            "is the first order: --volumes 11 shows how much higher orders are"
        )


def as_record(found: Expansion, static_energy: float) -> dict[str, Any]:
    """All results, for JSON. `static_energy` (eV) is that of the cell without vibrations."""
    atoms, shapes = found.modes.primitive, [ase.cell.Cell(cell).cellpar() for cell in found.cells]
    return {
        "crystal": {
            **crystal_record(atoms),
            "static_energy_eV": static_energy,
            "max_force_eV_per_A": found.modes.max_force,
            "stress_GPa": found.modes.stress,
        },
        "per": f"cell of {len(atoms)} atoms, and mole of such cells",
        "mesh": found.modes.mesh.shape,
        "wave_vectors": len(found.modes.weights),
        "left_out": found.left_out,
        "stiffness_GPa": to_voigt(found.stiffness),
        "bulk_modulus_GPa": found.bulk_modulus,
        "zero_point_strain": found.zero_point_strain,
        "temperature_K": found.temperatures,
        "alpha_per_K": found.alpha,
        "beta_per_K": found.beta,
        "mean_grueneisen": found.mean_grueneisen,
        "grueneisen_parameter": found.gamma,
        "strain": found.strain,
        "cell_A": found.cells,
        "lengths_A": [its[:3] for its in shapes],
        "angles_degrees": [its[3:] for its in shapes],
        "volume_A3": found.volume,
        "heat_capacity_v_J_per_K_mol": found.heat_capacity_v,
        "heat_capacity_p_J_per_K_mol": found.heat_capacity_p,
        "adiabatic_bulk_modulus_GPa": found.adiabatic_bulk_modulus,
        "vibrational_stress_GPa": found.stress,
        "free_energy_eV": static_energy + found.free_energy,
        "gibbs_energy_eV": static_energy + found.gibbs,
        "modes": {
            "q_points": found.modes.q_points,
            "weights": found.modes.weights,
            "frequencies_THz": found.modes.frequencies,
            "grueneisen": found.grueneisen,
        },
    }


def fit_record(fit: QuasiHarmonic | None) -> dict[str, Any] | None:
    """The results of a fit, for JSON."""
    if fit is None:
        return None
    return {
        "equation": fit.equation,
        "volumes_A3": fit.volumes,
        "static_energies_eV": fit.energies,
        "vibrational_free_energies_eV": fit.free_energies,
        "temperature_K": fit.temperatures,
        "volume_A3": fit.volume,
        "beta_per_K": fit.beta,
        "bulk_modulus_GPa": fit.bulk_modulus,
        "heat_capacity_p_J_per_K_mol": fit.heat_capacity_p,
        "gibbs_energy_eV": fit.gibbs,
        "grueneisen_parameter": fit.gamma,
    }


def draw(found: Expansion, fit: QuasiHarmonic | None, model: str) -> Figure:
    """α, heat capacities, the mean Grüneisen parameter and the change of the volume against temperature."""
    figure, axes = panels(2, 2, (4.2, 3.1))
    (left, right), (below, last) = axes
    T, many = found.temperatures, {"marker": "o", "ms": 3}
    for k, (names, at) in enumerate(components(found.alpha)):
        left.plot(T, MICRO * found.alpha[:, at[0], at[1]], color=COLOURS[k], label=f"α {names}", **many)
    left.set(ylabel="thermal expansion (1e-6/K)")
    right.plot(T, found.heat_capacity_v, color=COLOURS[0], label="C_V", **many)
    right.plot(T, found.heat_capacity_p, color=COLOURS[1], label="C_p", **many)
    right.set(ylabel="heat capacity (J/K per mole of cells)")
    below.plot(T, found.gamma, color=COLOURS[0], label="mean Grüneisen parameter", **many)
    below.set(ylabel="γ")
    volume = found.modes.primitive.get_volume()
    last.plot(T, 100 * (found.volume / volume - 1), color=COLOURS[0], label="volume", **many)
    last.set(ylabel="change from the static volume (%)")
    if fit is not None:
        look = {"color": "0.35", "ls": "--", "lw": 1.1}
        left.plot(T, MICRO * fit.beta / 3, label="β / 3, quasi-harmonic fit", **look)
        right.plot(T, fit.heat_capacity_p, label="C_p, quasi-harmonic fit", **look)
        below.plot(T, fit.gamma, label="quasi-harmonic fit", **look)
        last.plot(T, 100 * (fit.volume / volume - 1), label="quasi-harmonic fit", **look)
    for each in axes.flat:
        each.set(xlabel="temperature (K)")
        each.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{_formula(found)}, {model}", fontsize=9)
    return figure


def _formula(found: Expansion) -> str:
    return found.modes.primitive.get_chemical_formula("metal", empirical=True)
