"""Hessians of any energy function: columns of it, computed in blocks within a memory limit."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import CrystalGraph
from jaxmlip.derivatives.gradients import gradient
from jaxmlip.derivatives.tangents import second_axis_vmap
from jaxmlip.system.allocator import giving_memory_back
from jaxmlip.system.progress import track


class Differentiable(Protocol):
    """What the functions below need of a potential."""

    dtype: str
    arrays: Any

    @property
    def energy_fn(self) -> Callable[[Any, CrystalGraph], Float[Array, " crystals"]]: ...

    def graph(self, crystal: Any) -> CrystalGraph: ...

    def precision(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class MemoryPlan:
    """What Hessian columns of a crystal will need, in bytes, as XLA reports it for the compiled programs."""

    process: int  # what the process holds already (0 on an accelerator, whose memory is its own)
    fixed: int  # kept while columns are computed: everything that does not depend on the column
    per_column: int  # more for each column of a block
    block_size: int

    @property
    def total(self) -> int:
        """The peak that a block of `block_size` columns leads to."""
        return self.process + self.fixed + self.block_size * self.per_column

    def fitting(self, limit: float) -> int:
        """The largest block that stays within `limit` bytes; 0 where none does."""
        return max(0, int((limit - self.process - self.fixed) // self.per_column))


class MemoryLimitError(MemoryError):
    """Hessian columns that cannot be computed within the memory that was allowed."""


# Columns at once: more than these gain no speed, and take memory.
BLOCK_SIZE = 8
# Bytes that the linearised gradient keeps, times columns: what is computed for a column is of that size.
BLOCK_BYTES = 1.5e9


def hessian(
    potential: Differentiable,
    crystal: Any,
    block_size: int | None = None,
    memory_limit: float | None = None,
    coordinates: Sequence[int] | None = None,
) -> np.ndarray:
    """The Hessian ∂²E/∂r∂r of a crystal, (3N, 3N) in eV/Å², rows and columns in the order x₀ y₀ z₀ x₁ ….

    Atoms move together with all of their images. With `coordinates`, the numbers 3a + x of some, the block of
    these alone, in their order; only its columns are computed. Constraints of the atoms are not asked:
    `jaxmlip.crystals.structures.free_coordinates` tells which coordinates they leave. See `hessian_columns`
    for the other arguments.
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
    room: batching.Capacity | None = None,
) -> np.ndarray:
    """Columns of the Hessian as rows of an array (len(columns), 3N), in eV/Å².

    Column 3a + x belongs to a displacement of atom a along x. The gradient is linearised once, and
    the linear map is applied to `block_size` columns at a time (default: 8, fewer for large crystals, or
    as many of 8 as stay within `memory_limit` bytes, counted for the whole process or, on an accelerator, for
    its memory). In float32 the result has about six digits; load the potential with dtype="float64" for
    phonons. Crystals that are padded to the same `room` share the compiled programs; with a limit and no room
    nothing is padded, since that takes memory.

    Raises MemoryLimitError where the limit cannot be met, naming the block size that can or what is
    needed, before anything large is allocated.
    """
    columns = checked_columns(crystal, columns)
    rows = np.empty((len(columns), 3 * len(crystal)), potential.dtype)

    def keep(start: int, part: np.ndarray) -> None:
        rows[start : start + len(part)] = part

    each_block(potential, crystal, columns, keep, block_size, memory_limit, room)
    return rows


def checked_columns(crystal: Any, columns: Sequence[int]) -> np.ndarray:
    """`columns` as an array. Raises ValueError unless they are columns of the Hessian of `crystal`."""
    columns = np.asarray(columns, dtype=int)
    atoms = len(crystal)
    if columns.ndim != 1 or np.any((columns < 0) | (columns >= 3 * atoms)):
        raise ValueError(f"found columns {columns}, needed a list of numbers from 0 to {3 * atoms - 1}.")
    return columns


def each_block(
    potential: Differentiable,
    crystal: Any,
    columns: np.ndarray,
    keep: Callable[[int, np.ndarray], None],
    block_size: int | None = None,
    memory_limit: float | None = None,
    room: batching.Capacity | None = None,
    done: int = 0,
) -> None:
    """Calls keep(start, rows) with the rows that `hessian_columns` returns, block by block, from `done` on.

    `done` is a multiple of the block size; then the blocks are the same whether or not some are left out.
    """
    if done >= len(columns):
        return
    graph = _packed(potential, crystal, memory_limit, room)
    with _counted(memory_limit), potential.precision():
        planned = block_size
        if memory_limit is not None:
            planned = _plan(potential, graph, block_size, memory_limit, len(columns)).block_size
        tangent_map = _linearise(potential.energy_fn, potential.arrays, graph)
        block = _block_size(tangent_map, planned, len(columns))
        for start in track(range(done, len(columns), block), "Hessian columns"):
            part = columns[start : start + block]
            index = np.resize(part, block)  # the last block repeats some columns
            found = np.asarray(_apply(tangent_map, graph.positions, index))
            keep(start, found[: len(crystal), : len(part)].swapaxes(0, 1).reshape(len(part), -1))


def plan_hessian(
    potential: Differentiable,
    crystal: Any,
    block_size: int | None = None,
    memory_limit: float | None = None,
) -> MemoryPlan:
    """The memory that `hessian` and `hessian_columns` will use for this crystal with these arguments.

    It compiles the programs, which those calls then find compiled. Raises MemoryLimitError as they do.
    """
    graph = _packed(potential, crystal, memory_limit, None)
    with _counted(memory_limit), potential.precision():
        return _plan(potential, graph, block_size, memory_limit, 3 * len(crystal))


def _packed(potential, crystal, memory_limit, room) -> CrystalGraph:
    if memory_limit is not None and not memory_limit > 0:
        raise ValueError(f"found memory_limit={memory_limit}, needed a number of bytes above 0.")
    graph = potential.graph(crystal)
    if room is None and memory_limit is not None:  # padding would take some of it
        room = batching.need([graph])
    return batching.pack([graph], room, np.dtype(potential.dtype))


def _counted(memory_limit: float | None) -> AbstractContextManager:
    """Where memory is limited, what is freed is given back, at the price of asking for it again."""
    return nullcontext() if memory_limit is None else giving_memory_back()


def _kept(tangent_map: Any) -> int:
    """Bytes that a linearised gradient, or its shapes, keeps."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tangent_map))


def _block_size(
    tangent_map: Any, asked: int | None, columns: int, most: int = BLOCK_SIZE, size: float = BLOCK_BYTES
) -> int:
    default = int(max(1, min(most, size / _kept(tangent_map))))
    if asked is None:
        # A power of two, so that crystals of few atoms share programs.
        return min(default, 1 << (columns - 1).bit_length())
    if asked < 1:
        raise ValueError(f"found block_size={asked}, needed at least 1.")
    return min(columns, asked)


def _plan(potential, graph, block_size, memory_limit, columns: int, program=None, blocks=None) -> MemoryPlan:
    """As for Hessian columns, or for another program.

    `program(tangent_map, positions, block)` lowers what runs for each block, whose size is at first
    `blocks(tangent_map, block_size)`.
    """
    program = program or (lambda *args: _apply.lower(*args[:2], np.zeros(args[2], int)))
    # A limit is there to be used: a block reads all that is kept once, however many columns it has.
    limit, size = (np.inf, BLOCK_BYTES) if memory_limit is None else (memory_limit, np.inf)
    args = (potential.energy_fn, potential.arrays, graph)
    tangent_map = jax.eval_shape(partial(_linearise, args[0]), *args[1:])
    block = (blocks or partial(_block_size, columns=columns, size=size))(tangent_map, block_size)
    kept = _kept(tangent_map)
    if _resident() + kept > limit:
        raise MemoryLimitError(
            f"the linearised gradient alone needs {_gb(kept)} for {graph.is_atom.sum()} atoms in "
            f"{potential.dtype}, beside {_gb(_resident())} that the process holds; "
            f"memory_limit={_gb(limit)} was given. Allow more"
            + (", or use float32." if potential.dtype == "float64" else ".")
        )
    fixed = max(kept, _scratch(_linearise.lower(*args)))
    while True:
        per_block = _scratch(program(tangent_map, graph.positions, block))
        # Measured last, since compiling takes memory too, which is not given back at once.
        plan = MemoryPlan(_resident(), fixed, -(-per_block // block), block)
        if plan.total <= limit:
            return plan
        fitting = min(plan.fitting(limit), block - 1)
        if block_size is not None or fitting < 1:
            break
        block = fitting
    raise MemoryLimitError(
        f"block_size={plan.block_size} needs {_gb(plan.total)} ({_gb(plan.process)} held by the process, "
        f"{_gb(fixed)} whatever the block, {_gb(plan.per_column)} for each column); "
        f"memory_limit={_gb(limit)} was given. "
        + (f"block_size={fitting} fits." if fitting >= 1 else "No block size fits: allow more.")
    )


def _resident() -> int:
    """Bytes of memory that this process holds, where they are the memory that JAX computes in."""
    if jax.default_backend() != "cpu":
        return 0
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):  # only Linux has it
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _scratch(lowered) -> int:
    """Bytes that a compiled program needs besides its arguments."""
    memory = lowered.compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


@partial(jax.jit, static_argnames="energy")
def _linearise(energy, params, graph: CrystalGraph):
    """The linear map from displacements to changes of the gradient, as a function that can be passed on."""
    slope = gradient(partial(energy, params), graph)
    return jax.linearize(slope, graph.positions)[1]


@jax.jit
def _apply(tangent_map, positions, index) -> Float[Array, "atoms columns 3"]:
    """The columns of the Hessian with the given numbers."""
    atoms, columns = len(positions), len(index)
    unit = jnp.zeros((atoms, columns, 3), positions.dtype)
    unit = unit.at[index // 3, jnp.arange(columns), index % 3].set(1)
    return second_axis_vmap(tangent_map, positions)(unit)
