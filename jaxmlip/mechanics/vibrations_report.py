"""Output of `jaxmlip vibrations`: a table, a figure, JSON and frames."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import ase.io
import numpy as np

from jaxmlip.mechanics.vibrations import IMAGINARY, Vibrations, rotations
from jaxmlip.system.files import write_whole, writing_folder
from jaxmlip.system.plots import COLOURS, panels
from jaxmlip.system.tables import Table
from jaxmlip.system.versions import versions

ROWS = 40  # modes in a table; of more, the first and the last


def thermochemistry(
    found: Vibrations, temperature: float, pressure: float, spin: float, symmetry_number: int | None
) -> dict[str, Any]:
    """Thermochemistry at a temperature (K), of a molecule also at a pressure (Pa), by ase.thermochemistry.

    A molecule is an ideal gas, all else is harmonic. If there is none, "model" is None and "reason" says why.
    """
    record: dict[str, Any] = {"model": None, "reason": "", "temperature_K": temperature}
    try:
        gas = found.ideal_gas(spin=spin, symmetry_number=symmetry_number) if found.is_molecule else None
        harmonic = None if gas else found.harmonic()
    except ValueError as error:
        return record | {"reason": str(error)}
    with redirect_stdout(io.StringIO()):  # ASE prints whatever verbose says
        if harmonic:
            return record | {
                "model": "harmonic",
                "internal_energy_eV": float(harmonic.get_internal_energy(temperature, verbose=False)),
                "entropy_eV_per_K": float(harmonic.get_entropy(temperature, verbose=False)),
                "helmholtz_energy_eV": float(harmonic.get_helmholtz_energy(temperature, verbose=False)),
            }
        return record | {
            "model": "ideal gas",
            "geometry": found.geometry,
            "pressure_Pa": pressure,
            "spin": spin,
            "symmetry_number": int(gas.sigma),
            "symmetry_number_counted": symmetry_number is None,
            "enthalpy_eV": float(gas.get_enthalpy(temperature, verbose=False)),
            "entropy_eV_per_K": float(gas.get_entropy(temperature, pressure, verbose=False)),
            "gibbs_energy_eV": float(gas.get_gibbs_energy(temperature, pressure, verbose=False)),
        }


def as_record(found: Vibrations, thermo: dict[str, Any] | None = None) -> dict[str, Any]:
    """All results as lists and numbers for JSON, with units in the names; thermochemistry if given."""
    atoms = found.atoms
    return {
        "what": "vibrations at q = 0, from an exact Hessian; imaginary frequencies are negative",
        "versions": versions("jax", "numpy", "ase", "jaxmlip"),
        "formula": atoms.get_chemical_formula(),
        "symbols": atoms.get_chemical_symbols(),
        "masses_u": atoms.get_masses().tolist(),
        "positions_A": atoms.positions.tolist(),
        "cell_A": atoms.cell.tolist(),
        "pbc": atoms.pbc.tolist(),
        "moving_atoms": found.indices.tolist(),
        "moving_coordinates": found.coordinates.tolist(),
        "rigid_motions_projected_out": found.rigid.shape[1],
        "geometry": found.geometry if found.is_molecule else None,
        "rotational_symmetry_number": rotations(atoms) if found.is_molecule else None,
        "energy_eV": found.energy,
        "max_force_eV_per_A": found.max_force,
        "asymmetry_eV_per_A2": found.asymmetry,
        "frequencies_THz": found.thz.tolist(),
        "frequencies_per_cm": found.per_cm.tolist(),
        "energies_meV": found.mev.tolist(),
        "imaginary_modes": found.imaginary,
        "zero_point_energy_eV": found.zero_point_energy,
        "displacements_per_root_u": found.displacements.tolist(),
        "infrared_intensities": None,
        "infrared_intensities_why_none": "the potential has no dipole moments",
        "thermochemistry": thermo,
    }


def tables(found: Vibrations, thermo: dict[str, Any], potential: str) -> list[Table]:
    """The modes, and what follows from them, for a terminal."""
    n, name = len(found.thz), found.atoms.get_chemical_formula()
    shown = range(n) if n <= ROWS else [*range(ROWS // 2), *range(n - ROWS // 2, n)]
    share = (found.eigenvectors**2).sum(axis=2)
    rows = []
    for k in shown:
        most = int(share[k].argmax())
        who = f"{found.atoms.symbols[most]}{most} {100 * share[k, most]:.0f} %"
        rows.append((k, float(found.per_cm[k]), float(found.mev[k]), float(found.thz[k]), who))
    columns = ("mode", "cm⁻¹", "meV", "THz", "moves most")
    note = f"{n - len(rows)} modes between are not shown; vibrations.json has them" if n > len(rows) else ""
    return [
        Table(f"vibrations of {name}, {potential}", columns, rows, 2, note),
        Table("what follows", ("quantity", "value"), _lines(found, thermo)),
    ]


def _lines(found: Vibrations, thermo: dict[str, Any]) -> list[tuple[str, str]]:
    rigid = {0: "nothing, since atoms are frozen", 3: "translations"}
    lines = [
        ("projected out", rigid.get(found.rigid.shape[1], "translations and rotations")),
        ("energy", f"{found.energy:.6f} eV"),
        ("zero-point energy", f"{found.zero_point_energy:.4f} eV"),
        ("imaginary modes", f"{found.imaginary}, below {IMAGINARY:g} THz"),
        ("largest force", f"{found.max_force:.2g} eV/Å"),
    ]
    if found.is_molecule:
        lines.insert(0, ("geometry", found.geometry))
    if not thermo["model"]:
        return [*lines, ("thermochemistry", f"none: {thermo['reason']}")]
    at = f"{thermo['temperature_K']:g} K"
    if thermo["model"] == "harmonic":
        model = "harmonic" if found.frozen else "harmonic, of the modes at q = 0 alone"
        return [
            *lines,
            ("thermochemistry", model),
            (f"U, TS, F at {at}", _energies(thermo, "internal_energy_eV", "helmholtz_energy_eV")),
        ]
    counted = "counted" if thermo["symmetry_number_counted"] else "given"
    model = f"ideal gas, spin {thermo['spin']:g}, symmetry number {thermo['symmetry_number']} ({counted})"
    at += f" and {thermo['pressure_Pa']:g} Pa"
    return [
        *lines,
        ("thermochemistry", model),
        (f"H, TS, G at {at}", _energies(thermo, "enthalpy_eV", "gibbs_energy_eV")),
    ]


def _energies(thermo: dict[str, Any], first: str, last: str) -> str:
    heat = thermo["temperature_K"] * thermo["entropy_eV_per_K"]
    return f"{thermo[first]:.4f}, {heat:.4f}, {thermo[last]:.4f} eV"


def draw(found: Vibrations, potential: str, path: Path) -> None:
    """Draws each mode as a line at its wavenumber, divided by the elements' shares in Σ|e|² = 1."""
    figure, ((axes,),) = panels(1, 1, (6.4, 2.6), (0, 0))
    share = (found.eigenvectors**2).sum(axis=2)
    symbols = np.array(found.atoms.get_chemical_symbols())
    base = np.zeros(len(found.thz))
    for k, symbol in enumerate(dict.fromkeys(symbols[found.indices].tolist())):
        part = share[:, symbols == symbol].sum(axis=1)
        colour = COLOURS[k % len(COLOURS)]
        axes.vlines(found.per_cm, base, base + part, color=colour, lw=1.6, label=symbol)
        base += part
    if found.imaginary:
        axes.axvline(0, color="0.5", lw=0.7, zorder=0)
    title = f"{found.atoms.get_chemical_formula()}, {potential}"
    if found.imaginary:
        title += " (imaginary modes below 0)"
    axes.set_title(title, loc="left", fontsize=10)
    axes.set(xlabel="wavenumber (cm⁻¹)", ylabel="share in the mode", ylim=(0, 1.05))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=160)


def write(found: Vibrations, thermo: dict[str, Any], about: dict[str, Any], out: Path, frames: int) -> None:
    """Writes vibrations.json, vibrations.png and vibrations.extxyz into the folder `out`.

    `about` is added to the record. The frames are one period of each mode after the other.
    """
    moving = [frame for k in range(len(found.thz)) for frame in found.animation(k, frames=frames)]
    with writing_folder(out) as draft:
        record = about | as_record(found, thermo)
        write_whole(draft / "vibrations.json", json.dumps(record, ensure_ascii=False) + "\n")
        draw(found, about["model"], draft / "vibrations.png")
        ase.io.write(draft / "vibrations.extxyz", moving or [found.atoms], format="extxyz")
