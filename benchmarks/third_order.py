"""What do third-order force constants cost, exact, and from phono3py's displacements with the same forces?

    python -m benchmarks.third_order [--model m3gnet-mp-2021.2.8]
    python -m benchmarks.third_order --peer chgnet | matgl | matgl4 [--peer-python PYTHON]

Rock salt, 64 atoms, and wurtzite, 72 atoms, in float64: seconds for the linear map of one displacement and
for a column, in those of the Hessian; programs compiled for the first of them; seconds for all constants,
exact and from differences of Hessian columns, with the programs compiled; and seconds for the forces on all
supercells that phono3py displaces (if it is installed), in this library and, extrapolated from one of them,
in the original package.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import tyro
from ase import Atoms
from ase.build import bulk

import jaxmlip
from benchmarks.library import KINDS, Compilations
from benchmarks.speed import Peer, peer_of, seconds
from jaxmlip.crystals import batching
from jaxmlip.derivatives.response import Response
from jaxmlip.phonons.cells import Cells
from jaxmlip.phonons.third import SmallSupercellWarning, ThirdOrder, third_order
from jaxmlip.potential import Potential
from jaxmlip.system.console import say

CRYSTALS = {
    "rock salt": (bulk("NaCl", "rocksalt", 5.64, cubic=True), (2, 2, 2)),
    "wurtzite": (bulk("ZnO", "wurtzite", a=3.25, c=5.2, u=0.382), (3, 3, 2)),
}


@dataclass(frozen=True)
class Settings:
    model: str = "m3gnet-mp-2021.2.8"
    crystals: tuple[Literal["rock salt", "wurtzite"], ...] = ("rock salt", "wurtzite")
    rounds: int = 3
    differences: bool = True  # of exact Hessian columns too
    displaced: bool = True  # with phono3py, if it is installed
    peer: Literal["chgnet", "matgl", "matgl4"] | None = None
    peer_python: Annotated[str, tyro.conf.arg(help="interpreter that has the peer installed")] = (
        sys.executable
    )


def column(potential: Potential, atoms: Atoms, along: np.ndarray | None, rounds: int) -> tuple[float, float]:
    """Seconds for the linear map, and for a column of it, in blocks as large as a call has them."""

    def response() -> Response:
        return Response(potential, atoms, shape=batching.close_shape_for, along=along)

    made = response()
    block = made.block_of(24)

    def columns(number: int) -> None:
        for _ in made.columns(np.arange(number), total=24):
            pass

    def linearise() -> None:
        for _ in response().columns(np.arange(1), total=24):
            pass

    columns(24)  # compiles, and makes the map
    one, all_ = seconds(lambda: columns(1), rounds), seconds(lambda: columns(24), rounds)
    blocks = -(-24 // block)
    return seconds(linearise, rounds) - one, all_ / (blocks * block)


def timed(work) -> tuple[float, ThirdOrder]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def displaced(potential: Potential, atoms: Atoms, supercell, exact: ThirdOrder, peer: Peer | None) -> None:
    try:
        took, found = timed(lambda: third_order(potential, atoms, supercell, method="displaced"))
        took, found = timed(lambda: third_order(potential, atoms, supercell, method="displaced"))
    except ImportError as error:
        say(f"  no displacements: {error}")
        return
    off = np.abs(found.fc3 - exact.fc3).max()
    say(f"  displaced: {took:.1f} s ({found.method}), off by {off:.2g} eV/Å³")
    if peer is not None:
        count = int(found.method.split(", ")[1].split()[0])
        moved = found.cells.supercell.copy()
        moved.rattle(0.01, seed=0)
        one = peer.best(lambda threads: float(np.median(peer.times("predict", moved, 5, threads))))
        say(f"  the same supercells in the original: {count} of {one:.3f} s, {count * one:.1f} s")


def measure(name: str, potential: Potential, settings: Settings, peer: Peer | None) -> None:
    atoms, supercell = CRYSTALS[name]
    cells = Cells.of(atoms, supercell)
    w = np.zeros((len(cells.supercell), 3))
    w[0, 0] = 1
    of_map, of_column = column(potential, cells.supercell, None, settings.rounds)
    compiled = Compilations()
    work = lambda: third_order(potential, atoms, supercell)  # noqa: E731
    first, exact = timed(work)
    counts = {kind: compiled.counts[KINDS[kind]] for kind in ("linearise", "columns")}
    busy = time.process_time()
    took = seconds(work, settings.rounds)
    busy = (time.process_time() - busy) / settings.rounds
    map3, column3 = column(potential, cells.supercell, w, settings.rounds)
    say(f"{name}, {len(cells.supercell)} atoms, {settings.model}, float64, {os.cpu_count()} cores")
    say(f"  linear map: {map3:.2f} s, {map3 / of_map:.1f} of the Hessian's {of_map:.2f} s")
    say(f"  column: {column3:.3f} s, {column3 / of_column:.2f} of the Hessian's {of_column:.3f} s")
    told = ", ".join(f"{count} of {program}" for program, count in counts.items())
    say(f"  programs compiled: {told}; the first run took {first:.1f} s")
    say(f"  exact: {took:.1f} s ({busy:.1f} s of all cores together)")
    say("    " + str(exact.checks).replace("\n", "\n    "))
    if settings.differences:
        work = lambda: third_order(potential, atoms, supercell, method="differences")  # noqa: E731
        work()
        took, found = timed(work)
        off = np.abs(found.fc3 - exact.fc3).max()
        say(f"  differences: {took:.1f} s ({found.method}), off by {off:.2g} eV/Å³")
    if settings.displaced:
        displaced(potential, atoms, supercell, exact, peer)


def main(settings: Settings) -> None:
    warnings.simplefilter("ignore", SmallSupercellWarning)
    potential = jaxmlip.load(settings.model, "float64")
    if settings.peer is None:
        for name in settings.crystals:
            measure(name, potential, settings, None)
        return
    if {"chgnet": "chgnet"}.get(settings.peer, "m3gnet") != settings.model.split("-")[0]:
        raise SystemExit(f"{settings.peer} does not have {settings.model}; give --model.")
    with closing(peer_of(settings, settings.model, "float64")) as peer:
        for name in settings.crystals:
            measure(name, potential, settings, peer)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
