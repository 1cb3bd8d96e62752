"""Does the Hessian of a large cell stay within the memory that was allowed?

    python -m benchmarks.memory --cells 4 --memory-limit 4 [--model m3gnet-mp-2021.2.8]

The Hessian of rattled NaCl (4 x 4 x 4 cubic cells: 512 atoms) in float64, or with --columns the first columns
alone, and the peak memory of the whole process as the operating system counted it. With --out FILE.npy the
columns are written as they are computed, and a run that was interrupted goes on.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

import jaxmlip
from benchmarks.speed import salt
from jaxmlip.derivatives.streaming import stream_hessian


@dataclass(frozen=True)
class Settings:
    model: str = "chgnet-0.3.0"
    cells: int = 4
    memory_limit: float = 4.0  # GB
    dtype: Literal["float32", "float64"] = "float64"
    columns: int | None = None  # default: all
    out: Path | None = None


def main(settings: Settings) -> None:
    atoms = salt(*[settings.cells] * 3)
    potential = jaxmlip.load(settings.model, settings.dtype)
    limit = settings.memory_limit * 1e9
    before = peak()
    plan = jaxmlip.plan_hessian(potential, atoms, memory_limit=limit)
    columns = np.arange(settings.columns or 3 * len(atoms))
    start = time.perf_counter()
    if settings.out is None:
        h = jaxmlip.hessian_columns(potential, atoms, columns, memory_limit=limit)
    else:
        h = stream_hessian(potential, atoms, settings.out, columns, memory_limit=limit)
    took = time.perf_counter() - start
    print(
        f"{potential.name}, {len(atoms)} atoms, {len(columns)} of {3 * len(atoms)} columns, "
        f"{plan.block_size} at once: {took:.0f} s"
    )
    print(f"predicted {plan.total / 1e9:.2f} GB of at most {settings.memory_limit:g} GB")
    print(f"peak of the process {peak():.2f} GB, of which {before:.2f} GB before")
    print(f"largest element {np.abs(h).max():.3f} eV/Å²")


def peak() -> float:
    """Peak resident memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main(tyro.cli(Settings))
