"""Second derivatives of the energy by positions and strain: the gradient is linearised once and used often.

The gradient (∂E/∂r, ∂E/∂ε) is linearised at the crystal's positions. The stored linear map takes the most
memory and the most time, and everything of second order follows from it: Hessians, dynamical matrices,
elastic constants. `jaxmlip.derivatives.tangents` explains how many columns go through it at once.

A lattice wave displaces atom j of cell R by u_j e^{2πi q·R}. All intermediate values of a network then
differ from cell to cell by the same phase, so the response of one cell is enough: in the linear map,
each fetch from the cell R away multiplies by e^{2πi q·R}, and each transpose of a fetch by e^{-2πi q·R} (see
`jaxmlip.crystals.fetch`). Real and imaginary parts are carried as two columns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import CrystalGraph, has_stress
from jaxmlip.crystals.symmetry import Pairs
from jaxmlip.derivatives.gradients import strain, stress
from jaxmlip.derivatives.proof import prove_waves
from jaxmlip.derivatives.tangents import second_axis_vmap
from jaxmlip.system.allocator import giving_memory_back
from jaxmlip.system.arrays import Array
from jaxmlip.system.progress import track

# Columns at once: more gain no speed, and take memory. Bytes: size of the linear map times columns, since
# the computation of a column needs about that much.
BLOCK_SIZE, BLOCK_BYTES = 8, 1.5e9
# Real columns of waves at once: small cells need many to be worth a call.
WAVE_COLUMNS, WAVE_BYTES = 96, 4e8
# Up to this number of columns at Γ are computed one by one, gradient included, if the map has more bytes.
FEW, LARGE = 16, 1e9


Room = batching.BatchShape | Callable[[Sequence[CrystalGraph]], batching.BatchShape]


@runtime_checkable
class Differentiable(Protocol):
    """The part of a potential that second derivatives need."""

    dtype: str
    arrays: Any
    model: Any  # knows whether all of its fetches from other cells are known; see `proof`

    @property
    def energy_fn(self) -> Callable[[Any, CrystalGraph], Float[Array, " crystals"]]: ...

    def graph(self, crystal: Any) -> CrystalGraph: ...

    def precision(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class MemoryPlan:
    """Memory (bytes) that columns of second derivatives need, as XLA reports it for the compiled programs."""

    process: int  # already held by the process (0 on an accelerator, which has its own memory)
    fixed: int  # kept while columns are computed: all that does not depend on the column
    per_column: int  # more for each column of a block
    block_size: int

    @property
    def total(self) -> int:
        """Peak memory with a block of `block_size` columns."""
        return self.process + self.fixed + self.block_size * self.per_column

    def fitting(self, limit: float) -> int:
        """The largest block that stays within `limit` bytes; 0 if none does."""
        return max(0, int((limit - self.process - self.fixed) // self.per_column))


class MemoryLimitError(MemoryError):
    """Columns of second derivatives that cannot be computed within the allowed memory."""


class Gradient(NamedTuple):
    """The first derivatives of the energy of a padded graph."""

    positions: Float[Array, "atoms 3"]  # ∂E/∂r, eV/Å
    strain: Float[Array, "crystals 3 3"]  # ∂E/∂ε, eV
    stress: Float[Array, "crystals 3 3"]  # eV/Å³, as `jaxmlip.derivatives.gradients.stress` has it


class Response:
    """A crystal in a potential, with its gradient linearised once: the source of all second derivatives.

    `block_size` columns are computed at once. The default is the fastest, less for large crystals, reduced to
    stay within `memory_limit` bytes, counted for the whole process or, on an accelerator, for its memory.
    Crystals that are padded to the same `shape`, which may be a function of graphs such as
    `batching.close_shape_for`, share the compiled programs. By default it is one of a few; with a memory
    limit nothing is padded. Everything is computed on demand; the linear map lives as long as the response.

    Raises ValueError as `from_atoms` does, and if block size or limit are not above 0.
    """

    def __init__(
        self,
        potential: Differentiable,
        crystal: Any,
        *,
        block_size: int | None = None,
        memory_limit: float | None = None,
        shape: Room | None = None,
    ):
        if block_size is not None and block_size < 1:
            raise ValueError(f"found block_size={block_size}, needed at least 1.")
        if memory_limit is not None and not memory_limit > 0:
            raise ValueError(f"found memory_limit={memory_limit}, needed a number of bytes above 0.")
        graph = potential.graph(crystal)
        if shape is None:
            shape = batching.shape_for if memory_limit is None else batching.exact_shape
        self._begin(potential, [graph], shape, block_size, memory_limit)

    @classmethod
    def side_by_side(
        cls,
        potential: Differentiable,
        graphs: Sequence[CrystalGraph],
        shape: batching.BatchShape | None = None,
    ) -> Response:
        """A response of independent crystals in one graph: a column may combine one column of each."""
        response = cls.__new__(cls)
        response._begin(potential, graphs, shape, None, None)
        return response

    def _begin(self, potential, graphs, shape, block_size, memory_limit) -> None:
        self.potential, self._first = potential, graphs[0]
        shape = shape([self._first]) if callable(shape) else shape
        self.atoms = sum(len(g.species) for g in graphs)
        self.graph = batching.pack(graphs, shape, np.dtype(potential.dtype))
        self.block_size, self.memory_limit = block_size, memory_limit
        self._plans: dict[Callable, MemoryPlan] = {}
        self._blocks: dict[Callable, int] = {}

    @cached_property
    def gradient(self) -> Gradient:
        """The first derivatives of the energy of the padded graph."""
        return jax.device_get(self._linear[0])

    @property
    def forces(self) -> np.ndarray:
        """F (atoms, 3), eV/Å."""
        return -self.gradient.positions[: self.atoms]

    @property
    def stress(self) -> np.ndarray | None:
        """σ (3, 3) of the first crystal, eV/Å³, positive in tension; None for a molecule."""
        return self.gradient.stress[0] if has_stress(self.graph) else None

    @cached_property
    def _linear(self) -> tuple[Gradient, Callable]:
        """The gradient, and the linear map."""
        with self._counted():
            return _linearise(*self._arguments)

    @property
    def _is_linearised(self) -> bool:
        return "_linear" in self.__dict__

    @property
    def _arguments(self) -> tuple[Any, Any, CrystalGraph]:
        return self.potential.energy_fn, self.potential.arrays, self.graph

    @cached_property
    def kept(self) -> int:
        """Bytes that the linear map takes, known before it is made."""
        with self.potential.precision():
            kept = jax.eval_shape(partial(_linearise, self._arguments[0]), *self._arguments[1:])[1]
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Returns freed memory to the system if memory is limited; to allocate it again takes time."""
        limited = self.memory_limit is not None
        with giving_memory_back() if limited else nullcontext(), self.potential.precision():
            yield

    def columns(self, numbers: np.ndarray, done: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Rows (k, 3N) of the Hessian in eV/Å², block by block from column `done` on, each with its start.

        Number 3a + x is that of atom a along x. `done` is a multiple of the block size; then the blocks are
        the same whether or not some are left out. Raises MemoryLimitError if the limit cannot be met, naming
        a block size that fits or the memory needed, before anything large is allocated.
        """
        if done >= len(numbers):
            return
        block = self._block(_columns, len(numbers))
        for start in track(range(done, len(numbers), block), "Hessian columns"):
            part = numbers[start : start + block]
            index = np.resize(part, block)  # the last block repeats some columns
            with self._counted():
                found = np.asarray(_columns(self._linear[1], *_point(self.graph), index))
            yield start, found[: self.atoms, : len(part)].swapaxes(0, 1).reshape(len(part), -1)

    def plan(self, columns: int) -> MemoryPlan:
        """The memory that this number of `columns` of the Hessian will use. It compiles the programs, once.

        Raises MemoryLimitError if a limit cannot be met.
        """
        return self._plan(_columns, columns)

    def plan_waves(self, columns: int) -> MemoryPlan:
        """Like `plan`, for the number of real columns of `waves`, two for each pair."""
        return self._plan(_waves_of, columns)

    def strained_columns(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of second derivatives by positions and strains, as rows (k, atoms, 3) and (k, crystals, 3, 3).

        Each row of `index` (k, m) numbers the coordinates of one column: 3a + x that of atom a along x, and
        3·atoms + 9c + 3i + j the strain ε_ij of crystal c, both counted in the padded graph. Numbers beyond
        these are left out. Units are eV/Å², eV/Å and eV, in float64.
        """
        r, eps = _point(self.graph)
        rows = np.empty((len(index), *r.shape)), np.empty((len(index), *eps.shape))
        block = self._block(_strained_columns, len(index))
        for start in track(range(0, len(index), block), "strains and displacements"):
            part = index[start : start + block]
            with self._counted():
                found = _strained_columns(self._linear[1], r, eps, np.resize(part, (block, part.shape[1])))
            for row, its in zip(rows, found, strict=True):
                row[start : start + len(part)] = np.asarray(its)[:, : len(part)].swapaxes(0, 1)
        return rows

    def waves(self, q_points: np.ndarray, pairs: Pairs) -> np.ndarray:
        """The responses to waves, complex (pairs, 3N) in eV/Å²: columns of D(q) with the phases of cells.

        `pairs` numbers the wave vectors among `q_points` (q, 3), in reciprocal lattice units, and the
        coordinates. Raises MemoryLimitError as `columns` does, and ValueError as `prove_waves`.
        """
        if not q_points.any() and 0 < len(pairs.wave) <= FEW and not self._is_linearised:
            few = self._few(pairs)
            if few is not None:
                return few
        self._prove(q_points)
        return self._all_waves(q_points, pairs)

    def _prove(self, q_points: np.ndarray) -> None:
        """Raises ValueError if waves through the energy of the potential cannot be trusted."""
        if (q_points == q_points.round()).all():  # all cells are in phase
            return

        def respond(graph, q_points, pairs):
            return Response.side_by_side(self.potential, [graph])._all_waves(q_points, pairs)

        prove_waves(self.potential, self._first, respond)

    def _all_waves(self, q_points: np.ndarray, pairs: Pairs) -> np.ndarray:
        real = self._block(_waves_of, 2 * len(pairs.wave))
        return self._in_blocks(
            partial(_waves_of, self._linear[1], *_point(self.graph)), q_points, pairs, real
        )

    def wave_slopes(self, q_points: np.ndarray, pairs: Pairs) -> np.ndarray:
        """Responses as of `waves`, and their derivatives by the components of q: complex (4, pairs, 3N)."""
        self._prove(q_points)
        respond = partial(_waves_and_slopes, self._linear[1], *_point(self.graph))
        return self._in_blocks(respond, q_points, pairs, max(6, self._wave_columns // 4))

    def strained_waves(
        self, q_points: np.ndarray, pairs: Pairs, eps: np.ndarray, along: np.ndarray
    ) -> np.ndarray:
        """Responses as of `waves`, and their derivative by s for a strain 1 + s·`eps`: (2, pairs, 3N).

        The atoms also move by s·`along` (N, 3), in Å.
        """
        self._prove(q_points)
        moving = np.zeros_like(self.graph.positions)
        moving[: self.atoms] = along
        respond = partial(_strained_waves, *self._arguments, np.asarray(eps, self.potential.dtype), moving)
        # Each column counts as two, and computes all that it needs again.
        return self._in_blocks(respond, q_points, pairs, max(6, self._wave_columns // 2))

    @property
    def _wave_columns(self) -> int:
        most = int(max(1, min(WAVE_COLUMNS, WAVE_BYTES / self.kept)))
        return most if self.block_size is None else self.block_size

    def _few(self, pairs: Pairs) -> np.ndarray | None:
        """Responses as of `waves` at Γ (real), one after the other; None if that saves no memory.

        The gradient is recomputed for each, so that the linear map is not stored.
        """
        if self.kept < LARGE:
            return None
        # In a heap that is kept, the scratch memory of a column may not fit into that of the one before.
        with giving_memory_back(), self.potential.precision():
            limit = self.memory_limit
            if limit is not None and _resident() + _scratch(_column.lower(*self._arguments, 0)) > limit:
                return None
            found = []
            for k in pairs.coordinate:
                gradient, column = _column(*self._arguments, int(k))
                found.append(np.asarray(column)[: self.atoms].ravel())
            self.gradient = jax.device_get(gradient)
        return np.array(found, complex)

    def _in_blocks(self, respond, q_points, pairs: Pairs, real: int) -> np.ndarray:
        """`respond(q, index)`, parts (…, atoms, 2, pairs, 3), for all pairs: complex (…, pairs, 3N)."""
        wave, index = pairs
        size, found = max(1, real // 2), []
        for start in track(range(0, len(wave), size), "dynamical matrices"):
            count = len(wave[start : start + size])
            # The last block repeats some of its pairs.
            some = np.resize(np.arange(start, start + count), size)
            with self._counted():
                parts = np.asarray(respond(q_points[wave[some]].astype(self.potential.dtype), index[some]))
            parts = np.moveaxis(
                parts[..., : self.atoms, :, :count, :], (-3, -2), (0, -3)
            )  # 2 … pairs atoms 3
            found.append((parts[0] + 1j * parts[1]).reshape(*parts.shape[1:-2], 3 * self.atoms))
        return np.concatenate(found, axis=-2) if found else np.zeros((0, 3 * self.atoms), complex)

    def _block(self, program: Callable, columns: int) -> int:
        """The number of columns that `program` takes at once, out of `columns`."""
        if self.memory_limit is not None:
            return self._plan(program, columns).block_size
        # A half-empty block costs less than another program.
        self._blocks[program] = max(self._wanted(program, columns), self._blocks.get(program, 0))
        return self._blocks[program]

    def _wanted(self, program: Callable, columns: int, size: float | None = None) -> int:
        """Like `_block`, without a memory limit; `size` (bytes) bounds the stored map times columns."""
        if self.block_size is not None:
            return min(columns, self.block_size)
        most, default = (WAVE_COLUMNS, WAVE_BYTES) if program is _waves_of else (BLOCK_SIZE, BLOCK_BYTES)
        block = int(max(1, min(most, (size or default) / self.kept)))
        # Few columns leave part of a block empty, or each number of them would need its own program.
        while block // 4 >= max(columns, 1):
            block //= 4
        return block

    def _plan(self, program: Callable, columns: int) -> MemoryPlan:
        if program not in self._plans:
            with self._counted():
                self._plans[program] = self._planned(program, columns)
        return self._plans[program]

    def _planned(self, program: Callable, columns: int) -> MemoryPlan:
        # The limit is used in full: a block reads the stored map once, however many columns it has.
        limit, size = (np.inf, None) if self.memory_limit is None else (self.memory_limit, np.inf)
        block = self._wanted(program, columns, size)
        dtype, atoms = self.potential.dtype, self.atoms
        fixed = 0
        if not self._is_linearised:
            if _resident() + self.kept > limit:
                raise MemoryLimitError(
                    f"the linearised gradient alone needs {_gb(self.kept)} for {atoms} atoms in {dtype}, "
                    f"beside {_gb(_resident())} that the process holds; memory_limit={_gb(limit)} was given. "
                    "Allow more" + (", or use float32." if dtype == "float64" else ".")
                )
            fixed = max(self.kept, _scratch(_linearise.lower(*self._arguments)))
        tangent_map = jax.eval_shape(partial(_linearise, self._arguments[0]), *self._arguments[1:])[1]
        while True:
            per_block = _scratch(_lowered(program, tangent_map, self.graph, block))
            # Measured last, since compiling also takes memory that is not returned at once.
            plan = MemoryPlan(_resident(), fixed, -(-per_block // block), block)
            if plan.total <= limit:
                return plan
            fitting = min(plan.fitting(limit), block - 1)
            if self.block_size is not None or fitting < 1:
                break
            block = fitting
        raise MemoryLimitError(
            f"block_size={plan.block_size} needs {_gb(plan.total)} ({_gb(plan.process)} held by the process, "
            f"{_gb(fixed)} whatever the block, {_gb(plan.per_column)} for each column); "
            f"memory_limit={_gb(limit)} was given. "
            + (f"block_size={fitting} fits." if fitting >= 1 else "No block size fits: allow more.")
        )


def _resident() -> int:
    """Bytes of memory that this process holds, if JAX computes in that memory."""
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


def _lowered(program, tangent_map, graph: CrystalGraph, block: int):
    """`program` lowered for a block of `block` columns, to find the memory that it takes."""
    point = _point(graph)
    if program is _waves_of:
        pairs = max(1, block // 2)
        return program.lower(tangent_map, *point, np.zeros((pairs, 3), point[0].dtype), np.zeros(pairs, int))
    return program.lower(tangent_map, *point, np.zeros(block, int))


def _point(graph: CrystalGraph) -> tuple[Array, Array]:
    """The point at which the gradient is linearised: positions, and no strain."""
    return graph.positions, 0 * graph.cell  # NumPy or JAX, in its precision


def _slope(energy, params, graph: CrystalGraph) -> Callable:
    """The function (r, ε) -> ∂E/∂r (eV/Å), ∂E/∂ε (eV)."""

    def total(r, eps):
        return energy(params, strain(graph.replace(positions=r), eps)).sum()

    return jax.grad(total, argnums=(0, 1))


@partial(jax.jit, static_argnames="energy")
def _linearise(energy, params, graph: CrystalGraph):
    """The gradient, and the linear map from (dr, dε) to its change, as a function that can be passed on."""
    slope, tangent_map = jax.linearize(_slope(energy, params, graph), *_point(graph))
    return Gradient(*slope, stress(slope[1], graph)), tangent_map


def _still(tangent_map, eps) -> Callable:
    """The linear map for displacements alone. Strain is 0 and has no axis of columns, so it costs nothing."""
    return lambda dr: tangent_map(dr, jnp.zeros_like(eps))[0]


@jax.jit
def _columns(tangent_map, r, eps, index) -> Float[Array, "atoms columns 3"]:
    """The columns of the Hessian with the given numbers."""
    atoms, columns = len(r), len(index)
    unit = jnp.zeros((atoms, columns, 3), r.dtype)
    unit = unit.at[index // 3, jnp.arange(columns), index % 3].set(1)
    return second_axis_vmap(_still(tangent_map, eps), r)(unit)


@jax.jit
def _strained_columns(tangent_map, r, eps, index):
    """Sums of the columns numbered by index (columns, k): for r (atoms, columns, 3), and for ε."""
    columns = len(index)
    unit = jnp.zeros((r.size + eps.size, columns), r.dtype)
    unit = unit.at[index, jnp.arange(columns)[:, None]].set(1, mode="drop")
    dr, deps = (
        jnp.moveaxis(part.reshape(*x.shape, columns), -1, 1)
        for part, x in zip(jnp.split(unit, [r.size]), (r, eps), strict=True)
    )
    return second_axis_vmap(tangent_map, r, eps)(dr, deps)


@partial(jax.jit, static_argnames="energy")
def _column(energy, params, graph: CrystalGraph, index):
    """The gradient, and column number `index` of the Hessian, (atoms, 3)."""
    r, eps = _point(graph)
    unit = jnp.zeros(r.size, r.dtype).at[index].set(1).reshape(r.shape)
    slope, (column, _) = jax.jvp(_slope(energy, params, graph), (r, eps), (unit, jnp.zeros_like(eps)))
    return Gradient(*slope, stress(slope[1], graph)), column


def _waves(tangent_map, r, eps, q: Float[Array, "pairs 3"], index) -> Float[Array, "atoms 2 pairs 3"]:
    """The gradient's response to waves q of the coordinates numbered `index`: real and imaginary parts."""
    atoms, pairs = len(r), len(q)
    unit = jnp.zeros((atoms, 2, pairs, 3), r.dtype)
    unit = unit.at[index // 3, 0, jnp.arange(pairs), index % 3].set(1)

    def turn(x, image, sign):
        angle = 2 * jnp.pi * sign * (image @ q.T)
        axes = (*angle.shape, *(1,) * (x.ndim - 2))
        c, s = jnp.cos(angle).reshape(axes), jnp.sin(angle).reshape(axes)
        parts = x.reshape(len(x), 2, pairs, *x.shape[2:])
        re, im = parts[:, 0], parts[:, 1]
        return jnp.stack([c * re - s * im, s * re + c * im], axis=1).reshape(x.shape)

    flat = unit.reshape(atoms, 2 * pairs, 3)
    return second_axis_vmap(_still(tangent_map, eps), r, wave=turn)(flat).reshape(unit.shape)


_waves_of = jax.jit(_waves)


@jax.jit
def _waves_and_slopes(tangent_map, r, eps, q, index):
    """The response, and its derivatives by the three components of q: the first axis has four entries."""
    value, slope = jax.linearize(lambda q: _waves(tangent_map, r, eps, q, index), q)
    slopes = [slope(jnp.broadcast_to(direction, q.shape)) for direction in jnp.eye(3, dtype=q.dtype)]
    return jnp.stack([value, *slopes])


@partial(jax.jit, static_argnames="energy")
def _strained_waves(energy, params, graph: CrystalGraph, eps, along, q, index):
    """The response, and its derivative by s where strain is s·eps and atoms also move by s·along."""

    def respond(s):
        moved = strain(graph, jnp.broadcast_to(s * eps, graph.cell.shape))
        moved = moved.replace(positions=moved.positions + s * along)
        point = _point(moved)
        tangent_map = jax.linearize(_slope(energy, params, moved), *point)[1]
        return _waves(tangent_map, *point, q, index)

    return jnp.stack(jax.jvp(respond, (jnp.zeros((), q.dtype),), (jnp.ones((), q.dtype),)))
