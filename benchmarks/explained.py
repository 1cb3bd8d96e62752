"""The figures of two explanations: what a supercell misses of D(q), and what the kink of CHGNet does.

    python -m benchmarks.explained --figure supercells --out docs
    python -m benchmarks.explained --figure kink --out docs

Each takes a minute or two on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from ase import Atoms
from ase.build import bulk

import jaxmlip
from jaxmlip import phonons
from jaxmlip.phonons.commensurate import interpolated_frequencies
from jaxmlip.studies.phonondb import builtin_materials
from jaxmlip.system.console import say
from jaxmlip.system.plots import COLOURS, panels
from jaxmlip.units import in_thz

REPEATS = (2, 3, 4, 5, 6, 7)
MODELS = ("chgnet-0.3.0", "m3gnet-mp-2021.2.8")
STEPS = np.geomspace(1e-4, 0.1, 31)  # Å


@dataclass(frozen=True)
class Settings:
    """What is drawn, and where to."""

    figure: Literal["supercells", "kink"]
    out: Path = Path(".")
    """folder for supercells.png or kink.png"""


def main(settings: Settings) -> None:
    drawn = {"supercells": supercells, "kink": kink}[settings.figure]()
    path = settings.out / f"{settings.figure}.png"
    drawn.savefig(path, dpi=110)
    say(f"written to {path}")


def supercells():
    """The highest branch of MgO near Γ, and the largest error on the path, by supercells and by D(q)."""
    potential = jaxmlip.load("m3gnet-mp-2021.2.8", dtype="float64")
    atoms = jaxmlip.relax(potential, bulk("MgO", "rocksalt", a=4.25), fix_symmetry=True).atoms
    lattice = phonons.Lattice(potential, atoms, method="exact")
    bands = lattice.bands("XGL", points=61)
    exact = bands.modes.frequencies
    figure, ((left, right),) = panels(1, 2, (3.6, 3.1), (0, 0))
    errors = []
    for k, n in enumerate(REPEATS):
        # Those of a supercell of n x n x n cells, by the wave vectors that fit it
        thz = interpolated_frequencies(lattice.constants((n, n, n)), bands.modes.q_points)
        errors.append(np.abs(thz - exact).max())
        say(f"{n} x {n} x {n}, {2 * n**3} atoms: off by up to {errors[-1]:.4f} THz")
        if n < 5:
            left.plot(bands.distance, thz[:, -1], color=COLOURS[k + 1], lw=1, ls="--", label=f"{n}³ cells")
    left.plot(bands.distance, exact[:, -1], color=COLOURS[0], lw=1.6, label="D(q)")
    corners = [bands.distance[s.rows][0] for s in bands.segments] + [bands.distance[-1]]
    left.set_xticks(corners, ["X", "Γ", "L"])
    left.set(ylabel="highest frequency (THz)", xlim=(corners[0], corners[-1]))
    left.legend(frameon=False, fontsize=8)
    right.semilogy(REPEATS, errors, "o-", color=COLOURS[1])
    right.set(xlabel="supercell: repeats along each vector", ylabel="largest error on the path (THz)")
    right.set_xticks(REPEATS)
    left.set_title("MgO, M3GNet MP-2021.2.8", loc="left", fontsize=9)
    return figure


def kink():
    """The optical mode of LiF at Γ, in DFT's cell: its frequency by forces at a displacement."""
    figure, ((axes,),) = panels(1, 1, (4.6, 3.1), (0, 0))
    (atoms,) = (m.atoms for m in builtin_materials() if m.formula == "LiF")
    for k, name in enumerate(MODELS):
        potential = jaxmlip.load(name, dtype="float64")
        at_rest, thz = optical(potential, atoms)
        label = name.removesuffix("-2021.2.8")
        axes.semilogx(STEPS, thz, color=COLOURS[k], lw=1.3, label=label)
        axes.plot(STEPS[0] / 2, at_rest, "o", color=COLOURS[k], clip_on=False)
        say(f"{name}: {at_rest:.2f} THz by the Hessian, {np.interp(0.03, STEPS, thz):.2f} by ±0.03 Å")
    axes.set(xlim=(STEPS[0] / 2, STEPS[-1]), ylim=(0, None))
    axes.set(xlabel="displacement of Li (Å); dots: the Hessian", ylabel="optical mode of LiF at Γ (THz)")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def optical(potential, atoms: Atoms) -> tuple[float, np.ndarray]:
    """Frequencies (THz) of the mode at Γ along x: from the Hessian, and from the force at each of STEPS."""
    masses = atoms.get_masses()
    pattern = np.array([1.0, -masses[0] / masses[1]])  # the centre of mass stays
    weight = (masses * pattern**2).sum()
    H = np.asarray(jaxmlip.hessian(potential, atoms))[::3, ::3]
    moved = []
    for step in STEPS:
        its = atoms.copy()
        its.positions[:, 0] += step * pattern
        moved.append(its)
    forces = np.array([p["forces"][:, 0] for p in potential.predict(moved)])
    return float(in_thz(pattern @ H @ pattern / weight)), in_thz(-(forces @ pattern) / STEPS / weight)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
