"""How many crystals a minute: phonons on a mesh, crystals side by side against one by one?

    python -m benchmarks.screen [--model m3gnet-matpes-pbe-2025.1 chgnet-0.3.0] [--crystals 103]

The binaries of phononDB-PBE below JAXMLIP_DATA, or the few that come with the package, in random order, with
their cells and meshes. Each way is a process of its own that goes through the crystals twice: first with no
compiled program, as a user's first run is; then again with all of them. The ways: one by one, each crystal in
a shape of its own, as `mesh_modes` does by default; one by one in the shapes of the ladder, which share
programs and compute padding; and side by side (`phonons.lattices`). CPU seconds are those of all threads of
the process, and tell more than minutes where other work is going on. Then, with cells that grow, what a
wave vector costs one by one and side by side: where the gain ends. And what a call costs, by the crystals in
its graph and the waves of each: whether it is the number of calls that binds, or the work in them.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np
import tyro
from ase import Atoms
from ase.build import bulk

import jaxmlip
from benchmarks.library import Compilations
from jaxmlip.crystals import batching
from jaxmlip.derivatives import linear_map
from jaxmlip.phonons import Lattice, lattices
from jaxmlip.potential import Potential
from jaxmlip.studies.phonondb import Material, builtin_materials, read_phonondb
from jaxmlip.system.console import say
from jaxmlip.system.tables import Table, show

WAYS = {"alone": "one by one", "ladder": "one by one, shapes of the ladder", "together": "side by side"}
CELLS = ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2), (3, 2, 2), (3, 3, 2), (3, 3, 3))
COPIES, WAVES = 8, 4  # crystals of each size, and wave vectors of each
CALLS = ((1, 12), (1, 48), (4, 8), (4, 24), (16, 8), (64, 8))  # crystals in a graph, and waves of each
ROUNDS = 4


@dataclass(frozen=True)
class Settings:
    """Which models, how many crystals, and which parts."""

    model: tuple[str, ...] = ("m3gnet-matpes-pbe-2025.1", "chgnet-0.3.0")
    crystals: int = 103
    dtype: str = "float64"
    ways: tuple[str, ...] = tuple(WAYS)
    sizes: bool = True  # measure where the gain ends
    calls: bool = True  # measure what a call costs
    part: str = ""  # alone, ladder, together, sizes or calls: of the processes that this one starts


def materials(number: int) -> list[Material]:
    """Binaries in random order."""
    folder = os.environ.get("JAXMLIP_DATA")
    found = read_phonondb(folder) if folder else builtin_materials()
    return [found[k] for k in np.random.default_rng(0).permutation(len(found))[:number]]


def phonons(potential: Potential, crystals: list[Material], way: str) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each crystal, and its frequencies on its mesh."""
    if way == "together":
        found = lattices(potential, [m.atoms for m in crystals], lambda k, x: x.mesh(crystals[k].mesh))
        for k, modes in found:
            if isinstance(modes, Exception):
                raise modes
            yield k, modes.frequencies
        return
    shape = batching.shape_for if way == "ladder" else None
    for k, m in enumerate(crystals):
        yield k, Lattice(potential, m.atoms, shape=shape).mesh(m.mesh).frequencies


def cpu() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(settings: Settings) -> None:
    """One model in one way, twice: a line of JSON with times and mean frequencies."""
    (model,), way = settings.model, settings.part
    crystals, compiled = materials(settings.crystals), Compilations()
    potential, runs = jaxmlip.load(model, settings.dtype), []
    for _ in range(2):
        used, start, found = cpu(), time.perf_counter(), {}
        for k, thz in phonons(potential, crystals, way):
            found[k] = float(thz.mean())
        runs.append((time.perf_counter() - start, cpu() - used))
    programs = sum(n for name, n in compiled.counts.items() if "waves" in name or "linearise" in name)
    means = [found[k] for k in range(len(crystals))]
    print(json.dumps({"runs": runs, "programs": programs, "means": means}))


def by_size(settings: Settings) -> None:
    """What a wave vector costs, by the number of atoms."""
    (model,) = settings.model
    potential = jaxmlip.load(model, settings.dtype)
    q = np.random.default_rng(0).uniform(-0.5, 0.5, (WAVES, 3))
    rows = []
    for cells in CELLS:
        crystal = bulk("NaCl", "rocksalt", 5.64).repeat(cells)
        atoms: list[Atoms] = []
        for k in range(COPIES):
            atoms.append(crystal.copy())
            atoms[-1].rattle(0.01, seed=k)
        seconds = {}
        for way in ("alone", "together"):
            taken = []
            for _ in range(3):  # the first compiles
                used = cpu()
                if way == "together":
                    all_of_them = lattices(potential, atoms, lambda k, lattice: lattice.exact(q))
                    for _, found in all_of_them:
                        if isinstance(found, Exception):
                            raise found
                else:
                    for one in atoms:
                        Lattice(potential, one).exact(q)
                taken.append(cpu() - used)
            seconds[way] = min(taken[1:]) / COPIES / WAVES
        messages = batching.exact_shape([potential.graph(crystal)]).messages
        row = [f"{seconds[way]:.3g}" for way in seconds]
        rows.append((len(crystal), messages, *row, f"{seconds['alone'] / seconds['together']:.2f}"))
    columns = ("atoms", "bonds and angles", "one by one / CPU s", "side by side / CPU s", "gain")
    show(Table(f"D at a wave vector, {COPIES} crystals, {WAVES} wave vectors each, {model}", columns, rows))


def by_call(settings: Settings) -> None:
    """What a call costs for each bond or angle and real column, by its extent."""
    (model,) = settings.model
    potential, rows = jaxmlip.load(model, settings.dtype), []
    graph, rng = potential.graph(bulk("NaCl", "rocksalt", 5.69)), np.random.default_rng(0)
    coordinates = 3 * len(graph.species)
    for crystals, waves in CALLS:
        graphs = [graph] * crystals
        shape = batching.exact_shape(graphs)
        packed = batching.pack(graphs, shape, np.dtype(settings.dtype))
        q = rng.uniform(-0.5, 0.5, (waves, crystals, 3)).astype(settings.dtype)
        index = coordinates * np.arange(crystals) + rng.integers(coordinates, size=(waves, 1))
        with potential.precision():
            tangent_map = linear_map.linearise(potential.energy_fn, potential.arrays, packed)[1]
            arguments = tangent_map, *linear_map.point(packed), q, index
            program = linear_map.waves.lower(*arguments).compile()
            taken = []
            for _ in range(ROUNDS + 1):
                used = cpu()
                jax.block_until_ready(program(*arguments))
                taken.append(cpu() - used)
        seconds, work = min(taken[1:]), 2 * waves * shape.messages
        operations, moved = (program.cost_analysis()[what] for what in ("flops", "bytes accessed"))
        each = (
            f"{1e6 * seconds / work:.1f}",
            f"{1e-6 * operations / work:.2f}",
            f"{1e-6 * moved / work:.2f}",
        )
        rate = f"{1e-9 * operations / seconds:.0f}"
        rows.append((crystals, waves, shape.messages, f"{1e3 * seconds:.1f}", *each, rate))
    columns = ("crystals", "waves of each", "bonds and angles", "CPU ms", "CPU µs", "MFLOP", "MB", "GFLOP/s")
    title = f"A call, in all and for each bond or angle and real column, {model}, {settings.dtype}"
    show(Table(title, columns, rows))


def started(settings: Settings, model: str, part: str) -> subprocess.CompletedProcess:
    """A process that does one part, with no compiled program at first."""
    with tempfile.TemporaryDirectory() as programs:
        given = ["--model", model, "--crystals", str(settings.crystals), "--dtype", settings.dtype]
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.screen", *given, "--part", part],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": programs},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )


def main(settings: Settings) -> None:
    warnings.simplefilter("ignore")  # DFT's cells are not the model's
    if settings.part:
        return {"sizes": by_size, "calls": by_call}.get(settings.part, measure)(settings)
    number = len(materials(settings.crystals))
    for model in settings.model:
        rows, first, means = [], {}, {}
        for way in settings.ways:
            told = json.loads(started(settings, model, way).stdout.splitlines()[-1])
            means[way] = np.array(told["means"])
            for run, (wall, used) in zip(("nothing compiled", "again"), told["runs"], strict=True):
                rates = 60 * number / wall, 60 * number / used
                first.setdefault(run, rates)
                gain = [f"{rate / base:.2f}" for rate, base in zip(rates, first[run], strict=True)]
                programs = told["programs"] if run != "again" else 0
                rates = [f"{rate:.3g}" for rate in rates]
                rows.append((WAYS[way], run, programs, rates[0], gain[0], rates[1], gain[1]))
        columns = ("", "", "programs", "crystals a minute", "gain", "a CPU minute", "gain")
        show(Table(f"Phonons of {number} binaries, {model}, {settings.dtype}", columns, rows))
        off = max(np.abs(its - means[settings.ways[0]]).max() for its in means.values())
        say(f"mean frequencies differ by at most {off:.1e} THz")
        for part, wanted in {"sizes": settings.sizes, "calls": settings.calls}.items():
            if wanted:
                print(started(settings, model, part).stdout)
    say(f"{os.cpu_count()} cores, jaxmlip {jaxmlip.__version__}")
    return None


if __name__ == "__main__":
    main(tyro.cli(Settings))
