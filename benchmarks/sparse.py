"""How long do sparse Hessians take, and how much memory, against all columns?

    python -m benchmarks.sparse --atoms 4000 [--kind slab] [--model m3gnet-matpes-pbe-2025.1] [--every]

A wire of rattled NaCl (2 x 2 rows of atoms), or a slab of two layers, in float64. It prints the number of
colours, the time, and the memory that was predicted beside the peak of the whole process as the operating
system counted it: run one size in a process. With --every all columns are computed too, and compared. With
--sums only the first sums are computed, and the time for all follows from them.
"""

from __future__ import annotations

import time
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
    kind: Literal["wire", "slab"] = "wire"
    model: str = "chgnet-0.3.0"
    memory_limit: float | None = None  # GB
    every: bool = False  # compute all columns, too
    sums: int | None = None  # compute so many only; default: all


def crystal(kind: str, atoms: int) -> Atoms:
    """A wire along x, or a slab along x and y, of NaCl with about so many atoms."""
    cells = atoms / 8
    repeats = (round(cells), 1, 1) if kind == "wire" else (round(cells**0.5), round(cells**0.5), 1)
    made = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * repeats
    made.pbc = [True, kind == "slab", False]
    made.center(vacuum=10.0, axis=[k for k in range(3) if not made.pbc[k]])
    made.rattle(0.05, seed=0)
    return made


def main(settings: Settings) -> None:
    atoms = crystal(settings.kind, settings.atoms)
    potential = jaxmlip.load(settings.model, "float64")
    limit = None if settings.memory_limit is None else settings.memory_limit * 1e9
    start = time.perf_counter()
    found = colouring(potential, atoms)
    took = time.perf_counter() - start
    columns, sums = 3 * len(atoms), len(found.sums)
    print(
        f"{potential.name}, {settings.kind} of {len(atoms)} atoms, {atoms.cell.lengths()[0]:.0f} Å long: "
        f"{found.number} colours ({sums} sums of {columns} columns, {sums / columns:.1%}; a row holds "
        f"{np.diff(found.pairs.indptr).max()} atoms), found in {took:.1f} s"
    )
    start, before = time.perf_counter(), peak()
    plan = jaxmlip.plan_sparse_hessian(potential, atoms, memory_limit=limit)
    print(f"predicted {plan.total / 1e9:.2f} GB, compiled in {time.perf_counter() - start:.0f} s")
    start = time.perf_counter()
    if settings.sums is None:
        h = jaxmlip.sparse_hessian(potential, atoms, memory_limit=limit)
        took = time.perf_counter() - start
        print(f"{plan.block_size} at once: {took:.0f} s, {1e3 * took / sums:.0f} ms a sum")
        print(f"{h.nnz} elements, {h.nnz / columns**2:.1%}; {h.nnz / len(atoms):.0f} for each atom")
    else:
        partly(potential, atoms, found, settings.sums, limit, plan.block_size)
    print(f"peak of the process {peak():.2f} GB, of which {before:.2f} GB before")
    if settings.every:
        start = time.perf_counter()
        dense = jaxmlip.hessian(potential, atoms, memory_limit=limit)
        took = time.perf_counter() - start
        error, scale = np.abs(h - dense).max(), np.abs(dense).max()
        print(f"all columns: {took:.0f} s, peak {peak():.2f} GB; largest difference {error / scale:.1e}")


def partly(potential, atoms: Atoms, found, sums: int, limit: float | None, block: int) -> None:
    """The time of some sums, and of all."""
    response = Response(
        potential, atoms, memory_limit=limit, block_size=block, beside=found.size(potential.dtype)
    )
    start = time.perf_counter()
    first = next(iter(response.columns(found.sums[:block], found.groups)))
    once = time.perf_counter() - start
    start = time.perf_counter()
    for _ in response.columns(found.sums[block : block + sums], found.groups, total=len(found.sums)):
        pass
    each = (time.perf_counter() - start) / sums
    print(
        f"{block} at once: the first {len(first[1])} in {once:.0f} s, then {1e3 * each:.0f} ms a sum: all in "
        f"{once + each * len(found.sums):.0f} s"
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
