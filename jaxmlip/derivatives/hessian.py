"""Hessians of crystals, whole or some of their columns; see `jaxmlip.derivatives.response`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmlip.crystals import batching
from jaxmlip.derivatives.memory_plan import MemoryPlan
from jaxmlip.derivatives.response import Differentiable, Response


def hessian(
    potential: Differentiable,
    crystal: Any,
    block_size: int | None = None,
    memory_limit: float | None = None,
    coordinates: Sequence[int] | None = None,
) -> np.ndarray:
    """The Hessian ∂²E/∂r∂r of a crystal, (3N, 3N) in eV/Å², rows and columns in the order x₀ y₀ z₀ x₁ ….

    Atoms move together with all of their images. With `coordinates`, some numbers 3a + x, it is the block of
    these, in their order; only its columns are computed. Constraints of the atoms are ignored:
    `jaxmlip.crystals.structures.free_coordinates` gives the coordinates that they leave free. See
    `hessian_columns` for the other arguments.
    """
    columns = np.arange(3 * len(crystal)) if coordinates is None else checked_columns(crystal, coordinates)
    rows = hessian_columns(potential, crystal, columns, block_size, memory_limit)
    return rows if coordinates is None else rows[:, columns]


def hessian_columns(
    potential: Differentiable,
    crystal: Any,
    columns: Sequence[int],
    block_size: int | None = None,
    memory_limit: float | None = None,
    shape: batching.BatchShape | None = None,
) -> np.ndarray:
    """Columns of the Hessian as rows of an array (len(columns), 3N), in eV/Å².

    Column 3a + x belongs to a displacement of atom a along x. See `Response` for the other arguments, and
    for more columns of the same crystal later. In float32 the result has about six digits; load the potential
    with dtype="float64" for phonons.

    Raises MemoryLimitError if the limit cannot be met, naming a block size that fits or the memory needed,
    before anything large is allocated.
    """
    columns = checked_columns(crystal, columns)
    rows = np.empty((len(columns), 3 * len(crystal)), potential.dtype)
    response = Response(potential, crystal, block_size=block_size, memory_limit=memory_limit, shape=shape)
    for start, part in response.columns(columns):
        rows[start : start + len(part)] = part
    return rows


def checked_columns(crystal: Any, columns: Sequence[int]) -> np.ndarray:
    """`columns` as an array. Raises ValueError unless they are columns of the Hessian of `crystal`."""
    columns = np.asarray(columns, dtype=int)
    atoms = len(crystal)
    if columns.ndim != 1 or np.any((columns < 0) | (columns >= 3 * atoms)):
        raise ValueError(f"found columns {columns}, needed a list of numbers from 0 to {3 * atoms - 1}.")
    return columns


def plan_hessian(
    potential: Differentiable,
    crystal: Any,
    block_size: int | None = None,
    memory_limit: float | None = None,
) -> MemoryPlan:
    """The memory that `hessian` and `hessian_columns` will use for this crystal with these arguments.

    It compiles the programs, which those calls then reuse. Raises MemoryLimitError as they do.
    """
    response = Response(potential, crystal, block_size=block_size, memory_limit=memory_limit)
    return response.plan(3 * len(crystal))
