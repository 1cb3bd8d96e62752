"""A conductivity for a terminal, a file and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmlip.crystals.atoms import crystal_record
from jaxmlip.phonons.density import STILL
from jaxmlip.phonons.spectrum import Cumulative, Spectrum
from jaxmlip.phonons.third import SecondOrder, ThirdOrder
from jaxmlip.phonons.transport import Conductivity
from jaxmlip.system.plots import COLOURS, panels
from jaxmlip.system.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def table(found: Conductivity, model: str) -> Table:
    """κ at each temperature."""
    names, places = ["xx", "yy", "zz"], [(0, 0), (1, 1), (2, 2)]
    off = np.abs(found.kappa - found.kappa * np.eye(3)).max()
    if off > 1e-4 * np.abs(found.kappa).max():
        names, places = [*names, "yz", "xz", "xy"], [*places, (1, 2), (0, 2), (0, 1)]
    rows = [
        (
            f"{T:g}",
            *(float(kappa[place]) + 0.0 for place in places),
            float(np.trace(kappa) / 3),
            *([float(np.trace(apart) / 3)] if found.transport == "wigner" else []),
        )
        for T, kappa, apart in zip(found.temperatures, found.kappa, found.coherences, strict=True)
    ]
    columns = ("T / K", *names, "mean", *(["of it coherences"] * (found.transport == "wigner")))
    return Table(f"{_formula(found)}: κ / W/m/K, {model}", columns, rows)


def summary(found: Conductivity, temperature: float) -> dict[str, float]:
    """Lifetimes (ps) at one temperature, over all modes of the mesh: quantiles, and how many are short."""
    t = int(np.abs(found.temperatures - temperature).argmin())
    lives, periods = found.lifetimes[t], 1 / np.maximum(found.thz, 1e-9)
    alive = np.isfinite(lives) & (found.thz > 0)
    weights = np.broadcast_to(found.weights[:, None], alive.shape)[alive]
    order = np.argsort(lives[alive])
    share = np.cumsum(weights[order]) / weights.sum()
    low, median, high = (float(lives[alive][order][np.searchsorted(share, x)]) for x in (0.1, 0.5, 0.9))
    short = float(weights[(lives < periods)[alive]].sum() / weights.sum())
    return {"tenth_ps": low, "median_ps": median, "nine_tenths_ps": high, "shorter_than_a_period": short}


def describe(found: Conductivity, temperature: float, across: Mapping[str, Cumulative]) -> list[str]:
    """Lines of text on lifetimes, and on what carries the heat, at one temperature."""
    lives = summary(found, temperature)
    return [
        f"lifetimes at {temperature:g} K: median {lives['median_ps']:.3g} ps, eight in ten between "
        f"{lives['tenth_ps']:.3g} and {lives['nine_tenths_ps']:.3g} ps; "
        f"{100 * lives['shorter_than_a_period']:.2g} % of the modes live shorter than one period",
        f"half of κ at {temperature:g} K is of modes up to {across['frequency'].half():.3g} THz, and of mean "
        f"free paths up to {across['mean_free_path'].half():.3g} nm",
    ]


def modes_of(found: Conductivity) -> dict[str, np.ndarray]:
    """What is known of each mode, for conductivity.npz: Q wave vectors, B bands, T temperatures."""
    return {
        "temperatures_K": found.temperatures,
        "mesh": np.array(found.mesh),
        "q_points": found.q_points,
        "weights": found.weights,
        "frequencies_THz": found.thz,
        "velocities_km_per_s": found.velocities,
        "heat_capacities_eV_per_K": found.heat_capacities,
        "linewidths_THz": found.linewidths,
        "isotope_linewidths_THz": found.isotope_linewidths,
        "lifetimes_ps": found.lifetimes,
        "mean_free_paths_nm": found.mean_free_paths,
        "modes_W_per_m_K": found.modes,
    }


def as_record(
    found: Conductivity,
    third: ThirdOrder,
    second: SecondOrder,
    density: Spectrum,
    across: Mapping[str, Cumulative],
) -> dict[str, Any]:
    """All results but those of single modes, for JSON."""
    atoms = found.cells.primitive
    units = {"frequency": "THz", "mean_free_path": "nm"}
    return {
        "crystal": crystal_record(atoms),
        "third_order": {
            "method": third.method,
            "supercell": found.cells.supercell_matrix.T,
            "checks_eV_per_A3": asdict(third.checks),
        },
        "second_order": {"supercell": second.cells.supercell_matrix.T},
        "mesh": found.mesh,
        "wave_vectors": len(found.weights),
        "temperature_K": found.temperatures,
        "kappa_W_per_m_K": found.kappa,
        "particles_W_per_m_K": found.particles,
        "coherences_W_per_m_K": found.coherences,
        "mean_kappa_W_per_m_K": np.trace(found.kappa, axis1=1, axis2=2) / 3,
        "at": {
            "temperature_K": density.temperature,
            "lifetimes": summary(found, density.temperature),
            "spectrum": {"method": density.method, "THz": density.thz, "W_per_m_K_THz": density.kappa},
            "cumulative": {by: {units[by]: each.x, "W_per_m_K": each.kappa} for by, each in across.items()},
        },
    }


def draw(found: Conductivity, density: Spectrum, across: Mapping[str, Cumulative], model: str) -> Figure:
    """κ against temperature; its spectrum; its sum up to mean free paths; lifetimes against frequencies."""
    figure, axes = panels(2, 2, (4.2, 3.3))
    left, right, below = axes[0, 0], axes[0, 1], axes[1, 0]
    for k, (names, x) in enumerate(_distinct(found.kappa)):
        left.plot(found.temperatures, found.kappa[:, x, x], "o-", ms=3, color=COLOURS[k], label=f"κ {names}")
        if found.transport == "wigner":
            between = found.coherences[:, x, x]
            left.plot(found.temperatures, between, ":", color=COLOURS[k], label=f"of it coherences {names}")
    left.set(xlabel="temperature (K)", ylabel="κ (W/m/K)", yscale="log")
    left.legend(frameon=False, fontsize=8)
    mean = {by: np.trace(each.kappa, axis1=1, axis2=2) / 3 for by, each in across.items()}
    right.fill_between(
        density.thz, np.trace(density.kappa, axis1=1, axis2=2) / 3, color=COLOURS[0], alpha=0.4, lw=0
    )
    right.set(xlabel="frequency (THz)", ylabel="κ per frequency (W/m/K/THz)", xlim=(0, density.thz[-1]))
    right.set_ylim(bottom=0)
    twin = right.twinx()
    twin.plot(across["frequency"].x, mean["frequency"], color=COLOURS[1], lw=1.2)
    twin.set_ylabel("cumulative κ (W/m/K)", color=COLOURS[1])
    twin.set_ylim(bottom=0)
    below.plot(across["mean_free_path"].x, mean["mean_free_path"], color=COLOURS[0], lw=1.2)
    below.set(xlabel="mean free path (nm)", ylabel="cumulative κ (W/m/K)", xscale="log")
    below.set_ylim(bottom=0)
    shown = density.temperature
    _draw_lifetimes(axes[1, 1], found, shown)
    title = f"{_formula(found)}, {model}"
    figure.suptitle(
        f"{title}; all but the first panel at {shown:g} K, κ the mean of xx, yy and zz", fontsize=9
    )
    return figure


def _formula(found: Conductivity) -> str:
    return found.cells.primitive.get_chemical_formula("metal", empirical=True)


def _distinct(kappa: np.ndarray) -> list[tuple[str, int]]:
    """The diagonal components that differ, each with the names of all that are equal to it."""
    first: dict[int, list[int]] = {}
    for x in range(3):
        off = {y: np.abs(kappa[:, x, x] - kappa[:, y, y]).max() for y in first}
        same = [y for y in off if off[y] < 1e-3 * np.abs(kappa).max()]
        first.setdefault(same[0] if same else x, []).append(x)
    return [(", ".join("xyz"[x] * 2 for x in its), y) for y, its in first.items()]


def _draw_lifetimes(axes: Axes, found: Conductivity, temperature: float) -> None:
    t = int(np.abs(found.temperatures - temperature).argmin())
    # Where the crystal moves as a whole linewidths are rounding, and lifetimes any number.
    used = np.isfinite(found.lifetimes[t]) & (found.thz > STILL)
    axes.plot(found.thz[used], found.lifetimes[t][used], ".", ms=2, color=COLOURS[0], rasterized=True)
    thz = np.linspace(found.thz.max() / 100, found.thz.max(), 100)
    axes.plot(thz, 1 / thz, color="0.4", lw=0.9, label="one period")
    axes.set(xlabel="frequency (THz)", ylabel="lifetime (ps)", yscale="log")
    axes.legend(frameon=False, fontsize=8)
