"""Output of `jaxmlip saddle`: a table, a figure, JSON and frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ase.io
import numpy as np

from jaxmlip.mechanics.saddle import Saddle
from jaxmlip.mechanics.vibrations_report import as_record as of_vibrations
from jaxmlip.system.files import write_whole, writing_folder
from jaxmlip.system.plots import COLOURS, panels
from jaxmlip.system.tables import Table


def as_record(found: Saddle) -> dict[str, Any]:
    """All results as lists and numbers for JSON, with units in the names."""
    energies, forces = np.array(found.history).T
    sides = None
    if found.minima is not None:
        sides = [
            {
                "energy_eV": side.energy,
                "barrier_eV": barrier,
                "converged": side.converged,
                "max_force_eV_per_A": side.max_force,
                "positions_A": side.atoms.positions.tolist(),
            }
            for side, barrier in zip(found.minima, found.barriers, strict=True)
        ]
    return {
        "what": "a saddle point by eigenvector following with exact Hessians (P-RFO)",
        "converged": found.converged,
        "reason": found.reason,
        "energy_eV": found.energy,
        "max_force_eV_per_A": found.max_force,
        "lowest_mode_per_cm": found.imaginary_per_cm,
        "imaginary_modes": found.vibrations.imaginary,
        "force_calls": found.force_calls,
        "hessians": found.hessians,
        "history": {"energy_eV": energies.tolist(), "max_force_eV_per_A": forces.tolist()},
        "minima": sides,
        "vibrations": of_vibrations(found.vibrations),
    }


def table(found: Saddle, potential: str) -> Table:
    """The main numbers, for a terminal."""
    rows = [
        ("converged", "yes" if found.converged else f"no: {found.reason}"),
        ("energy", f"{found.energy:.6f} eV"),
        ("largest force", f"{found.max_force:.2g} eV/Å"),
        ("lowest mode", f"{found.imaginary_per_cm:.1f} cm⁻¹"),
        ("imaginary modes", str(found.vibrations.imaginary)),
        ("force calls", str(found.force_calls)),
        ("exact Hessians", f"{found.hessians}, of {len(found.vibrations.coordinates)} columns"),
    ]
    if found.minima is not None:
        for name, side, barrier in zip(("minus", "plus"), found.minima, found.barriers, strict=True):
            told = "" if side.converged else f", not converged: {side.reason}"
            rows.append((f"barrier from the minimum along {name} the mode", f"{barrier:.4f} eV{told}"))
    name = found.atoms.get_chemical_formula()
    return Table(f"saddle of {name}, {potential}", ("quantity", "value"), rows)


def draw(found: Saddle, potential: str, path: Path) -> None:
    """Draws energy and largest force of each force call."""
    figure, ((left, right),) = panels(1, 2, (3.4, 2.6), (0, 0))
    energies, forces = np.array(found.history).T
    calls = np.arange(1, len(energies) + 1)
    left.plot(calls, energies - found.energy, "o-", color=COLOURS[0], ms=3, lw=1)
    left.set(xlabel="force call", ylabel="energy above the end (eV)")
    right.semilogy(calls, np.maximum(forces, 1e-12), "o-", color=COLOURS[1], ms=3, lw=1)
    right.set(xlabel="force call", ylabel="largest force (eV/Å)")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    title = f"{found.atoms.get_chemical_formula()}, {potential}"
    left.set_title(title if found.converged else f"{title} (not converged)", loc="left", fontsize=10)
    figure.savefig(path, dpi=160)


def write(found: Saddle, about: dict[str, Any], out: Path, frames: int = 20) -> list[str]:
    """Writes saddle.json, saddle.png, saddle.extxyz and mode.extxyz into the folder `out`; gives their names.

    saddle.extxyz has the saddle, or the minimum, the saddle and the other minimum. `about` is added to the
    record.
    """
    images = [found.atoms]
    if found.minima is not None:
        images = [found.minima[0].atoms, found.atoms, found.minima[1].atoms]
    names = ["saddle.json", "saddle.png", "saddle.extxyz", "mode.extxyz"]
    with writing_folder(out) as draft:
        write_whole(draft / names[0], json.dumps(about | as_record(found), ensure_ascii=False) + "\n")
        draw(found, about["model"], draft / names[1])
        ase.io.write(draft / names[2], images, format="extxyz")
        ase.io.write(draft / names[3], found.vibrations.animation(0, frames=frames), format="extxyz")
    return names
