"""How many programs does a library of different crystals compile, and how long does each crystal take?

    python -m benchmarks.library [--model chgnet-0.3.0 m3gnet-matpes-pbe-2025.1 mace]

One process predicts 300 different crystals of 1 to 20 atoms and computes the Hessian of each, in the plain
loop that users write, with one model after the other: metals, the cells of phononDB-PBE, and those of the set
of elastic constants below JAXMLIP_DATA, all rattled. "mace" has random weights. Programs are counted that JAX
asks XLA for, whether or not the compilation cache holds them. A few crystals are then computed in programs of
their exact size too: how much longer the shared ones take is what padding costs.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from ase import Atoms
from ase.build import bulk

import jaxmlip
from experiments.datasets import BINARIES, read_binaries
from jaxmlip.crystals import batching
from jaxmlip.derivatives.hessian import hessian_columns
from jaxmlip.models.mace import MACEConfig
from jaxmlip.potential import Potential, random_potential
from jaxmlip.studies.phonondb import builtin_materials
from jaxmlip.system.programs import mapped

METALS = "Cu Al Na Au Pt Ni Ag Pb Fe W"
MACE = MACEConfig(elements=tuple(range(1, 95)), channels=32, hidden_l=1)
KINDS = {"energy and forces": "jit(_predict)", "linearise": "jit(linearise)", "columns": "jit(columns)"}
MOST_ATOMS = 20
SOME = 60  # every so-many-th crystal is computed in programs of its exact size, too
WARM = 30  # crystals, after which times count


@dataclass(frozen=True)
class Settings:
    """Which models, and how many crystals."""

    model: tuple[str, ...] = ("chgnet-0.3.0", "m3gnet-matpes-pbe-2025.1", "mace")
    crystals: int = 300
    dtype: str = "float32"
    exact: bool = True  # compute some in programs of their exact size, which are compiled for that


def library(number: int) -> list[Atoms]:
    """Different crystals, rattled, in random order."""
    rng = np.random.default_rng(0)
    found = [m.atoms for m in builtin_materials()] + [bulk(symbol) for symbol in METALS.split()]
    path = Path(os.environ.get("JAXMLIP_DATA", ".")) / BINARIES
    binaries = [entry["atoms"] for entry in read_binaries(path).values()]
    small = [atoms for atoms in binaries if len(atoms) <= MOST_ATOMS]
    found = (found + [small[k] for k in rng.permutation(len(small))])[:number]
    for atoms in found:
        atoms.rattle(0.02, rng=rng)
    return [found[k] for k in rng.permutation(len(found))]


class Compilations:
    """Counts the programs that JAX compiles, by name."""

    def __init__(self):
        self.counts: Counter = Counter()
        jax.monitoring.register_event_duration_secs_listener(self.hear)

    def hear(self, event: str, duration: float, **about: Any) -> None:
        if event.endswith("backend_compile_duration"):
            self.counts[about.get("fun_name", "")] += 1


def seconds(potential: Potential, atoms: Atoms, exact: bool = False) -> float:
    """Seconds for energy, forces, stress and the Hessian of a crystal, neighbours included."""
    start = time.perf_counter()
    if exact:
        graph = potential.graph(atoms)
        shape = batching.exact_shape([graph])
        potential.predict_graphs([graph], shape)
        hessian_columns(potential, atoms, np.arange(3 * len(atoms)), shape=shape)
    else:
        potential.predict(atoms)
        jaxmlip.hessian(potential, atoms)
    return time.perf_counter() - start


def measure(name: str, potential: Potential, crystals: list[Atoms], settings: Settings) -> None:
    compiled, most, taken = Compilations(), 0, []
    for atoms in crystals:
        taken.append(seconds(potential, atoms))
        most = max(most, mapped())
    counts = compiled.counts.copy()
    repeated = np.array([min(seconds(potential, atoms) for _ in range(2)) for atoms in crystals[WARM:]])
    after = np.array(taken[WARM:])
    print(f"{name}: {len(crystals)} crystals of {min(map(len, crystals))} to {max(map(len, crystals))} atoms")
    for kind, program in KINDS.items():
        print(f"  compiled, {kind}: {counts[program]}")
    print(f"  compiled, all else: {sum(counts.values()) - sum(counts[p] for p in KINDS.values())}")
    print(f"  most pieces of memory mapped: {most:,}")
    print(f"  first {WARM} crystals: {sum(taken[:WARM]):.1f} s; the others: {after.sum():.1f} s")
    print(
        f"  a crystal of the others: median {np.median(after):.3f} s, mean {after.mean():.3f} s; repeated at "
        f"once: median {np.median(repeated):.3f} s, mean {repeated.mean():.3f} s; median of the ratios "
        f"{np.median(after / repeated):.2f}, of the means {after.mean() / repeated.mean():.2f}"
    )
    if settings.exact:
        some = crystals[::SOME]
        for atoms in some:
            seconds(potential, atoms), seconds(potential, atoms, exact=True)
        padded = [min(seconds(potential, atoms) for _ in range(3)) for atoms in some]
        exact = [min(seconds(potential, atoms, exact=True) for _ in range(3)) for atoms in some]
        print(
            f"  padding, {len(some)} crystals: {sum(padded) / sum(exact):.2f} times the time of exact sizes "
            f"(from {min(np.divide(padded, exact)):.2f} to {max(np.divide(padded, exact)):.2f})"
        )


def main(settings: Settings) -> None:
    warnings.simplefilter("ignore")  # rattled crystals of any kind
    crystals = library(settings.crystals)
    for name in settings.model:
        potential = random_potential(MACE) if name == "mace" else jaxmlip.load(name)
        measure(name, potential.astype(settings.dtype), crystals, settings)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
