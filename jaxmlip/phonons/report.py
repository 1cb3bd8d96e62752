"""Output of `jaxmlip phonons`: a table, a figure, JSON, and files for phonopy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np
from ase.data import chemical_symbols

from jaxmlip.crystals.atoms import crystal_record, in_box
from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.crystals.symmetry import Symmetry
from jaxmlip.mechanics.vibrations import IMAGINARY
from jaxmlip.phonons.density import (
    STILL,
    Density,
    Thermodynamics,
    density_of_states,
    thermodynamics,
)
from jaxmlip.phonons.lattice import TOLERANCE, Lattice
from jaxmlip.phonons.lines import wide_mesh
from jaxmlip.phonons.modes import Bands, Modes, animation, band_path, period, ticks
from jaxmlip.phonons.nac import NAC
from jaxmlip.phonons.page import page
from jaxmlip.phonons.phonopy_files import read_born, write_phonopy
from jaxmlip.system.console import note
from jaxmlip.system.files import write_whole, writing_folder
from jaxmlip.system.parallel import reports
from jaxmlip.system.plots import COLOURS, panels
from jaxmlip.system.tables import Table, show
from jaxmlip.system.versions import versions

if TYPE_CHECKING:
    from ase import Atoms

    from jaxmlip.potential import Potential

SPACING = 0.02  # 1/Å, without 2π, between the wave vectors of the default mesh
WIDE = 14.0  # Å, width of the supercell of the force constants for phonopy
TEMPERATURES = np.arange(0.0, 1001.0, 10.0)  # K


@dataclass(frozen=True, eq=False)
class Phonons:
    """Bands, density of states and thermodynamics of one crystal in one potential."""

    lattice: Lattice
    bands: Bands
    mesh: Modes
    density: Density
    thermodynamics: Thermodynamics

    @property
    def potential(self) -> str:
        """The name of the potential."""
        return self.lattice.response.potential.name

    @property
    def copies(self) -> int:
        """The number of primitive cells in the cell; thermodynamic quantities are for a mole of cells."""
        return self.lattice.symmetry.copies

    @property
    def cells(self) -> str:
        """A description of the cell, for thermodynamic quantities, which are for a mole of it."""
        n = len(self.mesh.primitive)
        if self.copies == 1:
            return f"primitive cells ({n} atoms)"
        return f"cells as given ({n} atoms, {self.copies} primitive cells)"


def phonons(
    lattice: Lattice,
    *,
    path: str | None = None,
    points: int = 101,
    mesh: tuple[int, int, int] | None = None,
    width: float | None = None,
) -> Phonons:
    """Everything that `jaxmlip phonons` shows; see `band_modes`, `mesh_modes` and `density_of_states`.

    The cell is taken as it is, primitive or not.
    """
    band_path(lattice.atoms, path, points)  # a wrong path raises before anything is computed
    # The mesh first: bands reuse what is computed for it.
    on_mesh = lattice.mesh(mesh or default_mesh(lattice.atoms))
    bands = lattice.bands(path, points)
    density, heat = density_of_states(on_mesh, width=width), thermodynamics(on_mesh, TEMPERATURES)
    return Phonons(lattice, bands, on_mesh, density, heat)


def default_mesh(crystal: Atoms, spacing: float = SPACING) -> tuple[int, int, int]:
    """A mesh whose wave vectors are at most `spacing` (1/Å) apart along each reciprocal lattice vector."""
    lengths = np.linalg.norm(np.linalg.inv(crystal.cell.array).T, axis=1)
    points = np.maximum(1, np.ceil(lengths / spacing)).astype(int)
    return tuple(np.where(crystal.pbc, points, 1).tolist())


def draw(found: Phonons, path: Path) -> None:
    """Draws bands, and beside them the density of states with the share of each element."""
    bands, atoms = found.bands, found.mesh.primitive
    figure, ((left, right),) = panels(1, 2, (4.5, 4.8), (0, 0), sharey=True, width_ratios=(3, 1))
    for segment in bands.segments:
        left.plot(
            bands.distance[segment.rows], bands.modes.frequencies[segment.rows], color=COLOURS[0], lw=1.1
        )
    places, names = ticks(bands)
    for x in places:
        left.axvline(x, color="0.8", lw=0.7, zorder=0)
    left.set_xticks(places, names)
    left.set(xlim=(places[0], places[-1]), ylabel="frequency (THz)", xlabel="wave vector")
    density = found.density
    right.plot(density.total, density.thz, color="0.25", lw=1.1, label="total")
    numbers = atoms.numbers
    for k, z in enumerate(dict.fromkeys(numbers.tolist())):
        share = density.projected[numbers == z].sum(axis=0)
        right.fill_betweenx(
            density.thz,
            share,
            color=COLOURS[(k + 1) % len(COLOURS)],
            alpha=0.45,
            lw=0,
            label=chemical_symbols[z],
        )
    right.set(xlabel="density of states (1/THz)", xlim=(0, 1.08 * density.total.max()))
    right.legend(frameon=False, fontsize=8)
    lowest = min(bands.modes.frequencies.min(), found.mesh.frequencies.min())
    for axes in (left, right):
        axes.axhline(0, color="0.5", lw=0.7, zorder=0)
    highest = max(bands.modes.frequencies.max(), density.thz[density.total > 0].max(initial=0))
    left.set_ylim(min(0, 1.06 * lowest), 1.04 * highest)
    title = f"{atoms.get_chemical_formula('metal')}, {found.potential}"
    if lowest < IMAGINARY:
        title += " (imaginary modes below 0)"
    left.set_title(title, loc="left", fontsize=10)
    figure.savefig(path, dpi=160)


def as_record(found: Phonons) -> dict[str, Any]:
    """All results, for JSON."""
    bands, mesh, t = found.bands, found.mesh, found.thermodynamics
    atoms, modes = mesh.primitive, bands.modes
    return {
        "what": "phonons of a crystal in a potential; frequencies in THz, negative where imaginary",
        "potential": found.potential,
        "versions": versions("jax", "numpy", "jaxmlip"),
        "crystal": crystal_record(atoms),
        "max_force_eV_per_A": modes.max_force,
        "stress_GPa": None if modes.stress is None else modes.stress.tolist(),
        "asymmetry_eV_per_A2": max(modes.asymmetry, mesh.asymmetry),
        "long_range": None if modes.nac is None else _nac_record(modes.nac),
        "bands": {
            "method": modes.method,
            "segments": [
                {"from": s.first, "to": s.last, "start": s.rows.start, "stop": s.rows.stop}
                for s in bands.segments
            ],
            "distance_per_A": bands.distance.tolist(),
            "q_points": modes.q_points.tolist(),
            "frequencies": modes.frequencies.tolist(),
        },
        "mesh": {
            "method": mesh.method,
            "shape": list(mesh.mesh.shape),
            "q_points": mesh.q_points.tolist(),
            "weights": mesh.mesh.weights.tolist(),
            "frequencies": mesh.frequencies.tolist(),
        },
        "density_of_states": {
            "method": found.density.method,
            "THz": found.density.thz.tolist(),
            "total_per_THz": found.density.total.tolist(),
            "by_atom_per_THz": found.density.projected.tolist(),
        },
        "thermodynamics": {
            "per": f"mole of {found.cells}",
            "atoms_per_cell": len(atoms),
            "primitive_cells_per_cell": found.copies,
            "left_out": t.left_out,
            "imaginary": t.imaginary,
            "temperature_K": t.temperature.tolist(),
            "free_energy_kJ_per_mol": t.free_energy.tolist(),
            "entropy_J_per_K_mol": t.entropy.tolist(),
            "heat_capacity_J_per_K_mol": t.heat_capacity.tolist(),
        },
    }


def _nac_record(p: NAC) -> dict[str, Any]:
    return {
        "method": "Gonze & Lee 1997",
        "born": p.born.tolist(),
        "dielectric": p.dielectric.tolist(),
        "mesh": list(p.mesh),
    }


def table(found: Phonons) -> Table:
    """A table of the main numbers, for a terminal."""
    modes, t = found.mesh, found.thermodynamics
    room = int(np.abs(t.temperature - 300).argmin())
    every = np.concatenate([modes.frequencies.ravel(), found.bands.modes.frequencies.ravel()])
    rows = (
        ("highest frequency", f"{every.max():.3f} THz"),
        ("mean frequency", f"{modes.weights @ np.maximum(modes.frequencies, 0).mean(axis=1):.3f} THz"),
        ("lowest frequency", f"{round(every.min(), 3) + 0.0:.3f} THz"),
        ("imaginary modes", f"{100 * t.imaginary:.2g} % of the mesh, below {IMAGINARY:g} THz"),
        ("left out of F, S, C_V", f"{100 * t.left_out:.2g} % of the mesh, at {STILL:g} THz or below"),
        ("a mole is one of", found.cells),
        ("zero-point energy", f"{t.free_energy[0]:.3f} kJ/mol"),
        (f"F, S, C_V at {t.temperature[room]:g} K", _at(t, room)),
        ("largest force", f"{modes.max_force:.2g} eV/Å"),
        ("largest stress", "-" if modes.stress is None else f"{np.abs(modes.stress).max():.2g} GPa"),
        ("bands", found.bands.modes.method),
        ("mesh", f"{' x '.join(map(str, modes.mesh.shape))}, {modes.method}"),
        ("density of states", found.density.method),
    )
    title = f"phonons of {modes.primitive.get_chemical_formula('metal')}, {found.potential}"
    return Table(title, ("quantity", "value"), rows)


def _at(t: Thermodynamics, k: int) -> str:
    return f"{t.free_energy[k]:.3f} kJ/mol, {t.entropy[k]:.3f} and {t.heat_capacity[k]:.3f} J/K/mol"


def main(
    potential: Potential,
    crystal: Atoms,
    out: Path,
    *,
    born: Path | None = None,
    animate: tuple[int, int] | None = None,
    html: Path | None = None,
    source: str = "",
    keep_cell: bool = False,
    tolerance: float = TOLERANCE,
    symprec: float = SYMPREC,
    memory_limit: float | None = None,
    **settings: Any,
) -> None:
    """Runs the command: prints `table`, and writes JSON, a figure and files for phonopy to `out`.

    The primitive cell is used unless `keep_cell`. A `page` is written to `html`, with the name of the file
    `source` at its head. `settings` go to `phonons`. Raises ValueError if `animate` is no mode of the path,
    before anything is computed.
    """
    symmetry = Symmetry(in_box(crystal), symprec)
    if not keep_cell:
        symmetry = _reduced(symmetry)
    if animate is not None:
        _check_mode(animate, symmetry.atoms, settings)
    nac = None if born is None else read_born(born, symmetry.atoms, symprec)
    lattice = Lattice(
        potential, symmetry, nac=nac, tolerance=tolerance, symprec=symprec, memory_limit=memory_limit
    )
    found = phonons(lattice, **settings)
    show(table(found))
    constants = lattice.constants(wide_mesh(lattice.atoms, WIDE))
    if not reports():
        return
    with writing_folder(out) as draft:
        draw(found, draft / "phonons.png")
        write_whole(draft / "phonons.json", json.dumps(as_record(found), ensure_ascii=False) + "\n")
        written = ["phonons.json", "phonons.png"]
        try:
            write_phonopy(constants, draft, nac)
            written += ["phonopy_params.yaml", "FORCE_CONSTANTS"]
        except ImportError as error:
            note(f"no files for phonopy: {error}")
        if animate is not None:
            modes = found.bands.modes
            repeats = tuple(period(x) for x in modes.q_points[animate[0]])
            ase.io.write(draft / "mode.extxyz", animation(modes, *animate, repeats=repeats))
            written.append("mode.extxyz")
    note(f"written to {out}: {', '.join(written)}")
    if html is not None:
        functional = ", ".join(potential.functionals) or str(potential.manifest.get("functional", ""))
        said = {"model": potential.name, "functional": functional, "source": source, "mode": animate}
        write_whole(html, page(found.bands, found.density, **said))
        note(f"written to {html}")


def _check_mode(animate: tuple[int, int], crystal: Atoms, settings: Mapping[str, Any]) -> None:
    where = {name: settings[name] for name in ("path", "points") if name in settings}
    q, branch = animate
    waves, branches = len(band_path(crystal, **where).q_points), 3 * len(crystal)
    if not (0 <= q < waves and 0 <= branch < branches):
        raise ValueError(
            f"found --animate {q} {branch}, needed a wave vector from 0 to {waves - 1} and a branch from 0 "
            f"to {branches - 1}, numbered as in phonons.json."
        )


def _reduced(symmetry: Symmetry) -> Symmetry:
    """The symmetry of the primitive cell; prints a line if this is another cell than the given one."""
    if symmetry.copies > 1:
        note(
            f"{symmetry.atoms.get_chemical_formula()} is {symmetry.copies} primitive cells: wave vectors "
            "and all numbers are for the primitive cell, "
            f"{symmetry.primitive.atoms.get_chemical_formula()}, in the same axes (--keep-cell keeps the "
            "cell as it is)"
        )
    return symmetry.primitive
