"""`jaxmlip phonons` from the command line to its files, beside phonopy with our own calculator.

Run by `python -m benchmarks.phonons --command`. Both compute bands, a mesh of wave vectors, the density of
states and thermodynamics, each in a process of its own, from import to files, with programs compiled before.
phonopy displaces atoms of growing supercells by its 0.01 Å, until its error is that of ours, or no longer
falls, or it takes four times as long. Errors are the largest deviations on the path from exact frequencies.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal

import jaxmlip
from jaxmlip.phonons.lattice import phonon_modes
from jaxmlip.phonons.lines import wide_mesh
from jaxmlip.system.console import PlainConsole
from jaxmlip.system.tables import Table, show

REACHES = (12.0, 16.0, 20.0, 24.0, 28.0, 32.0)  # Å, of phonopy's supercells
MOST_ATOMS = 2500
PATIENCE = 4  # a supercell that takes so many times as long as we do is the last
PHONOPY = Path(__file__).with_name("peer_phonopy.py")


def crystals() -> dict[str, Atoms]:
    rutile = crystal(
        ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.6, 4.6, 2.96, 90, 90, 90]
    )
    return {
        "NaCl": bulk("NaCl", "rocksalt", 5.6),
        "ZnO": bulk("ZnO", "wurtzite", a=3.25, c=5.2, u=0.382),
        "TiO2": Atoms(rutile.numbers, rutile.positions, cell=rutile.cell, pbc=True),
    }


class Run(NamedTuple):
    seconds: float
    cpu: float  # of all threads, s


def timed(arguments: list[str]) -> Run:
    """One run of a process. Raises RuntimeError with its last words if it fails."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{arguments[:2]} failed: {done.stderr[-500:]}")
    return Run(took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def median(runs: list[Run]) -> Run:
    return Run(*np.median(runs, axis=0).tolist())


def command(model: str, rounds: int, terminal: PlainConsole) -> None:
    """Prints a line for each crystal and way, and all of them as a table in the end."""
    rows = []

    def row(name: str, way: str, run: Run, error: float) -> None:
        terminal.print(f"{name}, {way}: {run.seconds:.1f} s, {run.cpu:.1f} CPU s, {error:.1e} THz")
        rows.append((name, way, run.seconds, run.cpu, f"{error:.1e}"))

    potential = jaxmlip.load(model, "float64")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, atoms in crystals().items():
            file = folder / f"{name}.cif"
            ase.io.write(file, atoms)
            atoms = ase.io.read(file)
            ours = [str(Path(sys.executable).with_name("jaxmlip")), "phonons", str(file), "--model", model]
            ours += ["--out", str(folder / name)]
            first = timed(ours)  # compiles all programs that are not compiled yet
            own = median([timed(ours) for _ in range(rounds)])
            record = json.loads((folder / name / "phonons.json").read_text())
            q = np.array(record["bands"]["q_points"])
            exact = phonon_modes(potential, atoms, q, method="exact").frequencies
            error = np.abs(np.array(record["bands"]["frequencies"]) - exact).max()
            terminal.print(f"{name}: the first run took {first.seconds:.1f} s")
            row(name, "jaxmlip phonons", own, error)
            np.save(folder / "q.npy", q)
            mesh = record["mesh"]["shape"]
            best, stalled = np.inf, 0
            for reach in REACHES:
                repeats = wide_mesh(atoms, reach)
                if np.prod(repeats) * len(atoms) > MOST_ATOMS:
                    break
                theirs = [sys.executable, str(PHONOPY), str(file), model]
                theirs += [json.dumps(repeats), json.dumps(mesh)]
                theirs += [str(folder / "q.npy"), str(folder / "theirs.npy")]
                timed(theirs)
                run = median([timed(theirs) for _ in range(rounds)])
                off = np.abs(np.sort(np.load(folder / "theirs.npy"), axis=1) - exact).max()
                row(name, f"phonopy, {' x '.join(map(str, repeats))}", run, off)
                stalled = stalled + 1 if off > 0.9 * best else 0  # one step may lengthen one axis alone
                if off <= error or stalled == 2 or run.seconds > PATIENCE * own.seconds:
                    break
                best = min(best, off)
    columns = ("crystal", "way", "s", "CPU s", "largest error / THz")
    show(Table(f"phonons of a file, {model}, float64", columns, rows, 1))
    terminal.print(f"{os.cpu_count()} cores; medians of {rounds}")
