"""How much faster are many relaxations side by side than one after the other by ASE?

    python -m benchmarks.relaxation --structures 30 --alone 10 [--model m3gnet-mp-2021.2.8]

The binaries of `jaxmlip softening` (2 to 4 atoms), atoms displaced by 0.05 Å and cells strained by up to 2 %,
relaxed with their cells to 0.001 eV/Å and 0.01 GPa in float32. Each way runs twice: the second time all
programs are compiled. Only some of the same structures are relaxed one by one.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tyro
from ase import Atoms

import jaxmlip
from jaxmlip.mechanics.relaxation import NotConvergedWarning, Relaxation, relax, relax_many
from jaxmlip.studies.phonondb import builtin_materials
from jaxmlip.system.console import say


@dataclass(frozen=True)
class Settings:
    model: str = "chgnet-0.3.0"
    structures: int = 30
    alone: int = 10  # so many of them are relaxed one by one
    cells: int = 1  # along each lattice vector


def main(settings: Settings) -> None:
    warnings.simplefilter("ignore", NotConvergedWarning)  # counted below
    potential = jaxmlip.load(settings.model)
    crystals = distorted(settings.structures, settings.cells)
    few = crystals[:: max(1, len(crystals) // settings.alone)]
    say(
        f"{potential.name}, {len(crystals)} structures of {min(map(len, crystals))} to "
        f"{max(map(len, crystals))} atoms; s per structure, first time and again; steps; converged"
    )
    report("side by side, L-BFGS", lambda: relax_many(potential, crystals))
    report("side by side, FIRE", lambda: relax_many(potential, crystals, optimiser="FIRE"))
    report("one by one, L-BFGS", lambda: [relax(potential, c) for c in few])
    report("one by one, BFGS of ASE", lambda: [relax(potential, c, optimiser="BFGS") for c in few])


def report(name: str, run: Callable[[], list[Relaxation]]) -> None:
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        found = run()
        seconds.append((time.perf_counter() - start) / len(found))
    steps = [r.steps for r in found]
    say(
        f"{name:24s} {seconds[0]:6.2f} {seconds[1]:6.3f}   mean {np.mean(steps):.0f}, at most {max(steps)}   "
        f"{sum(r.converged for r in found)} of {len(found)}"
    )


def distorted(count: int, cells: int) -> list[Atoms]:
    """Crystals to relax, the same each time."""
    materials = builtin_materials()
    found = []
    for k in range(count):
        rng = np.random.default_rng(k)
        atoms = materials[k % len(materials)].atoms * (cells, cells, cells)
        strain = rng.uniform(-0.02, 0.02, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        found.append(atoms)
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings))
