"""How long do sparse Hessians take, and how much memory, against all columns?

    python -m benchmarks.sparse --atoms 4000 [--kind slab] [--model m3gnet-matpes-pbe-2025.1] [--every]

A chain of rattled NaCl, a wire of 2 x 2 chains, or a slab of two layers, in float64. It prints the number of
colours, times, and the memory that was predicted beside the peak of the whole process as the operating system
counted it. With --every all columns are computed too, and compared. With --sums so many are timed alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro
from ase import Atoms
from ase.build import bulk

import jaxmlip
from benchmarks.memory import peak
from jaxmlip.derivatives.response import Response
from jaxmlip.derivatives.sparse import colouring


@dataclass(frozen=True)
class Settings:
    """How long do sparse Hessians take, and how much memory?"""

    atoms: int = 500  # about so many
    kind: Literal["chain", "wire", "slab"] = "wire"
    model: str = "chgnet-0.3.0"
    memory_limit: float | None = None  # GB
    block_size: int | None = None
    every: bool = False  # compute all columns, too
    sums: int | None = None  # time so many only; default: all


def crystal(settings: Settings) -> Atoms:
    """Rattled NaCl of about so many atoms: a row of them, 2 x 2 rows along x, or two layers along x and y."""
    if settings.kind == "chain":
        made = Atoms("NaCl", [[0, 0, 0], [2.82, 0, 0]], cell=[5.64, 0, 0]) * (settings.atoms // 2, 1, 1)
    else:
        cells = settings.atoms / 8
        square = round(cells**0.5)
        repeats = (round(cells), 1, 1) if settings.kind == "wire" else (square, square, 1)
        made = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * repeats
    made.pbc = [True, settings.kind == "slab", False]
    made.center(vacuum=10.0, axis=[k for k in range(3) if not made.pbc[k]])
    made.rattle(0.05, seed=0)
    return made


def main(settings: Settings) -> None:
    atoms = crystal(settings)
    potential = jaxmlip.load(settings.model, "float64")
    options = {
        "block_size": settings.block_size,
        "memory_limit": None if settings.memory_limit is None else settings.memory_limit * 1e9,
    }
    with timed("colours"):
        found = colouring(potential, atoms)
    columns, sums = 3 * len(atoms), len(found.sums)
    print(
        f"{potential.name}, {settings.kind} of {len(atoms)} atoms, {atoms.cell.lengths()[0]:.0f} Å long: "
        f"{found.number} colours ({sums} sums of {columns} columns, {sums / columns:.1%}; a row holds "
        f"{np.diff(found.pairs.indptr).max()} atoms at most)"
    )
    before = peak()
    with timed("to compile"):
        plan = jaxmlip.plan_sparse_hessian(potential, atoms, **options)
    print(
        f"predicted {plan.total / 1e9:.2f} GB: {plan.process / 1e9:.2f} of the process, "
        f"{plan.fixed / 1e9:.2f}, and {plan.block_size} times {plan.per_column / 1e9:.3f}"
    )
    if settings.sums is None:
        with timed(f"{sums} sums"):
            h = jaxmlip.sparse_hessian(potential, atoms, **options)
        print(f"{h.nnz} elements ({h.nnz / columns**2:.1%}), {h.nnz / len(atoms):.0f} for each atom")
    else:
        response = Response(potential, atoms, beside=found.size(potential.dtype), **options)
        for what, numbers in (
            ("the map, and one block", found.sums[: plan.block_size]),
            (f"{settings.sums} sums more", found.sums[: settings.sums]),
        ):
            with timed(what):
                deque(response.columns(numbers, found.groups, total=sums), maxlen=0)
    print(f"peak of the process {peak():.2f} GB, of which {before:.2f} GB before")
    if settings.every:
        with timed(f"{columns} columns"):
            dense = jaxmlip.hessian(potential, atoms, **options)
        error, scale = np.abs(h - dense).max(), np.abs(dense).max()
        print(f"peak {peak():.2f} GB; largest difference {error / scale:.1e} of the largest element")


@contextmanager
def timed(what: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what}: {wall:.1f} s, of which the processors worked {cpu:.1f} s", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
