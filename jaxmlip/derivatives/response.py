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

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import CrystalGraph, has_stress
from jaxmlip.crystals.symmetry import Pairs
from jaxmlip.derivatives import linear_map
from jaxmlip.derivatives.gradients import Along
from jaxmlip.derivatives.linear_map import Gradient
from jaxmlip.derivatives.memory_plan import (
    MemoryLimitError,
    MemoryPlan,
    bytes_of,
    gb,
    plan_within,
    scratch,
)
from jaxmlip.derivatives.proof import prove_waves
from jaxmlip.system import parallel
from jaxmlip.system.allocator import giving_memory_back
from jaxmlip.system.arrays import Array
from jaxmlip.system.console import detail, note
from jaxmlip.system.memory import available, resident
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
    mesh: Mesh | None  # of the devices over which columns are spread

    @property
    def energy_fn(self) -> Callable[[Any, CrystalGraph], Float[Array, " crystals"]]: ...

    def graph(self, crystal: Any) -> CrystalGraph: ...

    def precision(self) -> AbstractContextManager[None]: ...


class Wanted(NamedTuple):
    """Columns of second derivatives that a crystal of N atoms needs: k of them, of one kind."""

    of: Callable  # the program of `linear_map`
    coordinate: np.ndarray  # (k,): 3a + x is that of atom a along x, 3N + 3i + j the strain ε_ij
    q: np.ndarray  # (k, 3), reciprocal lattice units
    strain: tuple[np.ndarray, np.ndarray] | None = None  # (3, 3), and motion of the atoms (N, 3) in Å

    def part(self, some: slice) -> Wanted:
        """Some of the columns."""
        return self._replace(coordinate=self.coordinate[some], q=self.q[some])


class SecondDerivatives(ABC):
    """The second derivatives of the energy of one crystal, by displacements, lattice waves and strains."""

    potential: Differentiable
    atoms: int  # their number, N
    graph: CrystalGraph

    @abstractmethod
    def find(self, wanted: Wanted) -> np.ndarray:
        """The columns as rows (…, k, entries)."""

    @abstractmethod
    def first_order(self) -> Gradient:
        """The energy of the crystal and its first derivatives, which second ones bring with them."""

    @property
    def energy(self) -> float:
        """E, eV."""
        return float(self.first_order().energy)

    @property
    def forces(self) -> np.ndarray:
        """F (atoms, 3), eV/Å."""
        return -self.first_order().positions

    @property
    def stress(self) -> np.ndarray | None:
        """σ (3, 3), eV/Å³, positive in tension; None for a molecule."""
        return self.first_order().stress if has_stress(self.graph) else None

    def strained_columns(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Second derivatives by positions and strains, as rows (k, N, 3) and (k, 3, 3).

        Each of `index` (k,) numbers a column: 3a + x that of atom a along x, and 3N + 3i + j the strain ε_ij.
        Units are eV/Å², eV/Å and eV, in float64.
        """
        rows = self.find(Wanted(linear_map.strained_columns, index, np.zeros((len(index), 3))))
        return rows[:, :-9].reshape(-1, self.atoms, 3), rows[:, -9:].reshape(-1, 3, 3)

    def waves(self, q_points: np.ndarray, pairs: Pairs) -> np.ndarray:
        """The responses to waves, complex (pairs, 3N) in eV/Å²: columns of D(q) with the phases of cells.

        `pairs` numbers the wave vectors among `q_points` (q, 3), in reciprocal lattice units, and the
        coordinates. Raises MemoryLimitError if a limit cannot be met, and ValueError as `prove_waves`.
        """
        return self.find(Wanted(linear_map.waves, pairs.coordinate, q_points[pairs.wave]))

    def wave_slopes(self, q_points: np.ndarray, pairs: Pairs) -> np.ndarray:
        """Responses as of `waves`, and their derivatives by the components of q: complex (4, pairs, 3N)."""
        return self.find(Wanted(linear_map.waves_and_slopes, pairs.coordinate, q_points[pairs.wave]))

    def strained_waves(
        self, q_points: np.ndarray, pairs: Pairs, eps: np.ndarray, along: np.ndarray
    ) -> np.ndarray:
        """Responses as of `waves`, and their derivative by s for a strain 1 + s·`eps`: (2, pairs, 3N).

        The atoms also move by s·`along` (N, 3), in Å.
        """
        strain = np.asarray(eps, float), np.asarray(along, float)
        return self.find(Wanted(linear_map.strained_waves, pairs.coordinate, q_points[pairs.wave], strain))


class Response(SecondDerivatives):
    """A crystal in a potential, with its gradient linearised once: the source of all second derivatives.

    Each device of the potential computes `block_size` columns at once. The default is the fastest, less for
    large crystals, reduced to stay within `memory_limit` bytes, counted for the whole process or, on
    accelerators, for the memory of each. Crystals that are padded to the same `shape`, which may be a
    function of graphs such as `batching.close_shape_for`, share the compiled programs. By default it is that
    of `batching.hessian_shape_for`; with a memory limit nothing is padded. `beside` are the bytes that the
    caller will keep of the results; they count as well. Everything is computed on demand; the linear map
    lives as long as the response.

    With `along`, a displacement w (N, 3), the energy is replaced by its slope dE(r + s w)/ds: second
    derivatives are then third derivatives of the energy, along w and two others. `turned` gives those of
    another w from the same programs.

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
        beside: int = 0,
        along: Float[np.ndarray, "atoms 3"] | None = None,
    ):
        if block_size is not None and block_size < 1:
            raise ValueError(f"found block_size={block_size}, needed at least 1.")
        if memory_limit is not None and not memory_limit > 0:
            raise ValueError(f"found memory_limit={memory_limit}, needed a number of bytes above 0.")
        graph = crystal if isinstance(crystal, CrystalGraph) else potential.graph(crystal)
        if shape is None:
            shape = batching.hessian_shape_for if memory_limit is None else batching.exact_shape
        self._begin(potential, [graph], shape, block_size, memory_limit)
        self.beside = beside
        self._along = None if along is None else self._padded(along)

    @classmethod
    def side_by_side(
        cls,
        potential: Differentiable,
        graphs: Sequence[CrystalGraph],
        shape: batching.BatchShape | None = None,
    ) -> Response:
        """A response of independent crystals in one graph, for `find_each`."""
        response = cls.__new__(cls)
        response._begin(potential, graphs, shape, None, None)
        return response

    def turned(self, along: Float[np.ndarray, "atoms 3"]) -> Response:
        """The response of the slope of the energy along another displacement, from the same programs."""
        other = copy.copy(self)
        for known in ("_linear", "_arguments", "gradient"):
            other.__dict__.pop(known, None)
        if self._along is None:  # the map of a slope is larger than that of the energy
            for known in ("_size", "divided", "graph", "kept"):
                other.__dict__.pop(known, None)
            other._plans, other._blocks = {}, {}
        other._along = self._padded(along)
        return other

    def _padded(self, along: np.ndarray) -> np.ndarray:
        w = np.zeros_like(self._whole.positions)
        w[: self.atoms] = along
        return w

    def _begin(self, potential, graphs, shape, block_size, memory_limit) -> None:
        self.potential, self._graphs = potential, graphs
        shape = shape(graphs) if callable(shape) else shape
        self._numbers = [len(g.species) for g in graphs]
        self._starts = np.cumsum([0, *self._numbers])[:-1]
        self.atoms = sum(self._numbers)
        self._whole = batching.pack(graphs, shape, np.dtype(potential.dtype))
        self.block_size, self.memory_limit, self.beside = block_size, memory_limit, 0
        self._along: np.ndarray | None = None
        self._plans: dict[Callable, MemoryPlan] = {}
        self._blocks: dict[Callable, int] = {}

    @cached_property
    def divided(self) -> bool:
        """True if each device holds a part of the bonds, since none can hold the whole linear map.

        One line says so.
        """
        mesh = self.potential.mesh
        if mesh is None or mesh.size == 1 or self._room == np.inf:
            return False
        # A column takes about as much memory as the map.
        fits = 2 * self._size <= self._room
        if parallel.Crew.of(mesh).count > 1:  # all hosts have to do the same
            fits = bool(parallel.least(int(fits)))
        if not fits:
            note(
                f"The linear map of {self.atoms} atoms ({gb(self._size)}) and a column of it need more than "
                f"the {gb(self._room)} that each of {mesh.size} devices has: the bonds are divided among "
                "them.",
                stderr=True,
            )
        return not fits

    @cached_property
    def _size(self) -> int:
        """Bytes of the linear map as a whole."""
        linearise, mesh = linear_map.linearise, self.potential.mesh
        linearise = linearise if mesh is None else linear_map.on_mesh(linearise, mesh)
        energy, arrays = self._energy
        with self.potential.precision():
            return bytes_of(jax.eval_shape(partial(linearise, energy), arrays, self._whole)[1])

    @property
    def _room(self) -> float:
        """Bytes that a device has for the linear map and for columns; infinite if nobody limits them."""
        limit = np.inf if self.memory_limit is None else self.memory_limit
        if jax.default_backend() == "cpu":
            return (limit - resident() - self.beside) / self._copies
        return min(limit, available())

    @cached_property
    def graph(self) -> CrystalGraph:
        """The padded graph."""
        if not self.divided:
            return self._whole
        shape = batching.divisible(batching.shape_of(self._whole), self.potential.mesh.size)
        return batching.pack(self._graphs, shape, np.dtype(self.potential.dtype))

    @cached_property
    def gradient(self) -> Gradient:
        """The energy of the padded graph, and its first derivatives."""
        return jax.device_get(self._linear[0])

    def gradient_of(self, crystal: int) -> Gradient:
        """The energy of a crystal and its first derivatives: a number, (N, 3), (3, 3) and (3, 3)."""
        start = self._starts[crystal]
        its = slice(start, start + self._numbers[crystal])
        found = self.gradient
        return Gradient(*(x[its] if x is found.positions else x[crystal] for x in found))

    def first_order(self) -> Gradient:
        return self.gradient_of(0)

    @cached_property
    def _linear(self) -> tuple[Gradient, Callable]:
        """The gradient, and the linear map."""
        with self._counted():
            return self._on_devices(linear_map.linearise)(*self._arguments)

    def _shapes_of_map(self):
        """The linear map without its numbers."""
        energy, *rest = self._arguments
        linearise = self._on_devices(linear_map.linearise)
        shapes = jax.eval_shape(partial(linearise, energy), *rest)[1]
        if not self.divided:
            return shapes
        places = linearise.lower(energy, *rest).compile().output_shardings[1]
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
        )

    @property
    def _is_linearised(self) -> bool:
        return "_linear" in self.__dict__

    @property
    def _energy(self) -> tuple[Any, Any]:
        """The energy function, or its slope, and the arrays that it depends on."""
        energy, arrays = self.potential.energy_fn, self.potential.arrays
        return (energy, arrays) if self._along is None else (Along(energy), (arrays, self._along))

    @cached_property
    def _arguments(self) -> tuple[Any, Any, CrystalGraph]:
        """What is linearised, on each device."""
        (energy, arrays), graph, mesh = self._energy, self.graph, self.potential.mesh
        if mesh is not None:
            with self.potential.precision():
                arrays = parallel.replicate(arrays, mesh)
                place = linear_map.with_divided_bonds if self.divided else parallel.replicate
                graph = place(graph, mesh)
        return energy, arrays, graph

    @property
    def _devices(self) -> int:
        """The devices that the columns of a block are spread over."""
        return 1 if self.potential.mesh is None or self.divided else self.potential.mesh.size

    def _on_devices(self, program: Callable) -> Callable:
        """`program`, of whose columns each device computes a part; of all, its own part of the bonds."""
        mesh = self.potential.mesh
        return program if mesh is None or self.divided else linear_map.on_mesh(program, mesh)

    @cached_property
    def kept(self) -> int:
        """Bytes that the linear map takes on each device, known before it is made."""
        if not self.divided:
            return self._size
        with self.potential.precision():
            return bytes_of(self._shapes_of_map())

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Returns freed memory to the system if memory is limited; to allocate it again takes time."""
        limited = self.memory_limit is not None
        with giving_memory_back() if limited else nullcontext(), self.potential.precision():
            yield

    def columns(
        self, numbers: np.ndarray, groups: np.ndarray | None = None, total: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Rows (k, 3N) of the Hessian in eV/Å², block by block, each with its start among `numbers`.

        Number 3a + x is that of atom a along x. With `groups` (N, 3) a number is that of a sum of columns, of
        all coordinates that have the number there. A block is that of `block_of` times the number of
        devices; `total` columns (default: these alone) determine it, of which these may be some. Raises
        MemoryLimitError if the limit cannot be met, naming a block size that fits or the memory needed,
        before anything large is allocated.
        """
        if not len(numbers):
            return
        block = self.block_of(total or len(numbers)) * self._devices
        of_all = np.arange(self.graph.positions.size).reshape(-1, 3)
        if groups is not None:
            of_all = np.full_like(of_all, -1)  # padding does not move
            of_all[: self.atoms] = groups
        columns = self._on_devices(linear_map.columns)
        for start in track(range(0, len(numbers), block), "Hessian columns"):
            part = numbers[start : start + block]
            index = np.resize(part, block)  # the last block repeats some columns
            with self._counted():
                found = columns(self._linear[1], *linear_map.point(self.graph), of_all, index)
                found = parallel.gather(found)
            rows = found[: self.atoms, : len(part)].swapaxes(0, 1)
            if groups is None:
                rows = without_net_force(rows).astype(found.dtype, copy=False)
            yield start, rows.reshape(len(part), -1)

    def block_of(self, columns: int) -> int:
        """The number of columns of the Hessian that each device computes at once, out of `columns` of all."""
        return self._block(linear_map.columns, columns)

    def plan(self, columns: int) -> MemoryPlan:
        """The memory that this number of `columns` of the Hessian will use. It compiles the programs, once.

        Raises MemoryLimitError if a limit cannot be met.
        """
        return self._plan(linear_map.columns, columns)

    def plan_waves(self, columns: int) -> MemoryPlan:
        """Like `plan`, for the number of real columns of `waves`, two for each pair."""
        return self._plan(linear_map.waves, columns)

    def find(self, wanted: Wanted) -> np.ndarray:
        count = len(wanted.coordinate)
        if wanted.of is linear_map.waves:
            if not wanted.q.any() and 0 < count <= FEW and not self._is_linearised:
                few = self._few(wanted.coordinate)
                if few is not None:
                    return few
            block = max(1, self._block(wanted.of, 2 * count) // 2)
        elif wanted.of is linear_map.strained_columns:
            block = self._block(wanted.of, count)
        else:
            # Each column counts as four or two; those of strain compute all that they need again.
            share = {linear_map.waves_and_slopes: 4, linear_map.strained_waves: 2}[wanted.of]
            block = max(6, self._wave_columns // share) // 2
        return self.find_each([wanted], block)[0]

    def find_each(self, wanted: Sequence[Wanted], block: int) -> list[np.ndarray]:
        """What each crystal wants, all of one kind; a column of all together has one column of each.

        Each device takes `block` columns at once, of waves pairs of them.
        """
        of = wanted[0].of
        if of is linear_map.strained_columns:
            return self._strained_columns(wanted, block * self._devices)
        for graph, its in zip(self._graphs, wanted, strict=True):
            self._prove(graph, its.q)
        return self._waves(wanted, block * self._devices)

    def _given(self, wanted: Sequence[Wanted]) -> tuple[Any, ...]:
        """The first arguments of the program, which all columns share."""
        if wanted[0].of is not linear_map.strained_waves:
            return self._linear[1], *linear_map.point(self.graph)
        moving, eps = (np.zeros_like(x) for x in linear_map.point(self.graph))
        for c, (its, start, n) in enumerate(zip(wanted, self._starts, self._numbers, strict=True)):
            eps[c], moving[start : start + n] = its.strain
        return *self._arguments, eps, moving

    def _side_by_side(self, wanted: Sequence[Wanted]) -> tuple[np.ndarray, np.ndarray]:
        """Wave vectors (columns, crystals, 3), and the numbers of coordinates in the whole graph."""
        r, eps = linear_map.point(self.graph)
        shape = max(len(its.coordinate) for its in wanted), len(eps)
        q, index = np.zeros((*shape, 3), r.dtype), np.full(shape, r.size + eps.size)  # beyond the last: none
        for c, (its, start, n) in enumerate(zip(wanted, self._starts, self._numbers, strict=True)):
            k, strains = its.coordinate, its.coordinate - 3 * n
            q[: len(k), c] = its.q
            index[: len(k), c] = np.where(strains < 0, 3 * start + k, r.size + 9 * c + strains)
        return q, index

    def _strained_columns(self, wanted: Sequence[Wanted], size: int) -> list[np.ndarray]:
        """Rows (k, 3N + 9) of each crystal, from `size` columns at once."""
        r, eps = linear_map.point(self.graph)
        index = self._side_by_side(wanted)[1]
        rows = np.empty((len(index), *r.shape)), np.empty((len(index), *eps.shape))
        columns = self._on_devices(linear_map.strained_columns)
        for start in track(range(0, len(index), size), "strains and displacements"):
            part = index[start : start + size]
            with self._counted():
                found = columns(self._linear[1], r, eps, np.resize(part, (size, part.shape[1])))
            for row, its in zip(rows, found, strict=True):
                row[start : start + len(part)] = parallel.gather(its)[:, : len(part)].swapaxes(0, 1)
        found = []
        for c, (its, start, n) in enumerate(zip(wanted, self._starts, self._numbers, strict=True)):
            k = len(its.coordinate)
            by_r, by_eps = rows[0][:k, start : start + n], rows[1][:k, c]
            found.append(np.concatenate([by_r.reshape(k, 3 * n), by_eps.reshape(k, 9)], axis=1))
        return found

    def _prove(self, graph: CrystalGraph, q: np.ndarray) -> None:
        """Raises ValueError if waves through the energy of the potential cannot be trusted."""
        if (q == q.round()).all():  # all cells are in phase
            return

        def respond(graph, q_points, pairs):
            wanted = Wanted(linear_map.waves, pairs.coordinate, q_points[pairs.wave])
            alone = Response.side_by_side(self.potential, [graph])
            return alone._waves([wanted], len(pairs.wave) * self._devices)[0]

        prove_waves(self.potential, graph, respond)

    @property
    def _wave_columns(self) -> int:
        most = int(max(1, min(WAVE_COLUMNS, WAVE_BYTES / self.kept)))
        return most if self.block_size is None else self.block_size

    def _few(self, coordinates: np.ndarray) -> np.ndarray | None:
        """Responses as of `waves` at Γ (real), one after the other; None if that saves no memory.

        The gradient is recomputed for each, so that the linear map is not stored.
        """
        if self.kept < LARGE:
            return None
        arguments = *self._energy, self.graph  # on one device
        # In a heap that is kept, the scratch memory of a column may not fit into that of the one before.
        with giving_memory_back(), self.potential.precision():
            limit = self.memory_limit
            if limit is not None and resident() + scratch(linear_map.column.lower(*arguments, 0)) > limit:
                return None
            found = []
            for k in coordinates:
                gradient, column = linear_map.column(*arguments, int(k))
                found.append(without_net_force(np.asarray(column)[: self.atoms]).ravel())
            self.gradient = jax.device_get(gradient)
        return np.array(found, complex)

    def _waves(self, wanted: Sequence[Wanted], size: int) -> list[np.ndarray]:
        """Responses to waves, complex (…, k, 3N) of each crystal, from `size` columns at once."""
        respond = partial(self._on_devices(wanted[0].of), *self._given(wanted))
        q, index = self._side_by_side(wanted)
        found = []
        for start in track(range(0, len(q), size), "columns of D(q)"):
            count = len(q[start : start + size])
            # The last block repeats some of its columns.
            some = np.resize(np.arange(start, start + count), size)
            with self._counted():
                parts = parallel.gather(respond(q[some], index[some]))  # … atoms 2 columns 3
            re, im = np.moveaxis(parts[..., : self.atoms, :, :count, :], (-3, -2), (0, -3))
            found.append(re + 1j * im)  # … columns atoms 3
        whole = np.concatenate(found, axis=-3) if found else np.zeros((0, self.atoms, 3), complex)
        each = []
        for its, start, n in zip(wanted, self._starts, self._numbers, strict=True):
            own = whole[..., : len(its.coordinate), start : start + n, :]
            if its.of is linear_map.waves:
                uniform = (its.q == its.q.round()).all(axis=1)
                own = np.where(uniform[:, None, None], without_net_force(own), own)
            each.append(own.reshape(*own.shape[:-2], 3 * n))
        return each

    def _block(self, program: Callable, columns: int) -> int:
        """The number of columns that a device takes through `program` at once, out of `columns` of all."""
        if self.memory_limit is not None:
            return self._plan(program, columns).block_size
        # A half-empty block costs less than another program.
        self._blocks[program] = max(self._wanted(program, columns), self._blocks.get(program, 0))
        return self._blocks[program]

    def _wanted(self, program: Callable, columns: int, size: float | None = None) -> int:
        """Like `_block`, of one device, without a memory limit; `size` (bytes) bounds map times columns."""
        columns = -(-columns // self._devices)
        if self.block_size is not None:
            return min(columns, self.block_size)
        most, default = (
            (WAVE_COLUMNS, WAVE_BYTES) if program is linear_map.waves else (BLOCK_SIZE, BLOCK_BYTES)
        )
        block = int(max(1, min(most, (size or default) / self.kept)))
        # Few columns leave part of a block empty, or each number of them would need its own program.
        while block // 4 >= max(columns, 1):
            block //= 4
        return block

    def _lowered(self, program: Callable, tangent_map, block: int):
        """`program` lowered for `block` columns on each device, to find the memory that it takes."""
        its = self._on_devices(program)
        point = linear_map.point(self.graph)
        crystals = len(point[1])
        if program is linear_map.waves:
            pairs = self._devices * max(1, block // 2)
            q = np.zeros((pairs, crystals, 3), point[0].dtype)
            return its.lower(tangent_map, *point, q, np.zeros((pairs, crystals), int))
        index = np.zeros((self._devices * block, crystals), int)
        if program is linear_map.columns:
            return its.lower(tangent_map, *point, np.zeros(point[0].shape, int), index[:, 0])
        return its.lower(tangent_map, *point, index)

    @property
    def _copies(self) -> int:
        """How many devices share the memory that is counted: those of a CPU do."""
        shared = self.potential.mesh is not None and jax.default_backend() == "cpu"
        return len(parallel.local_shards(self.potential.mesh)) if shared else 1

    def _plan(self, program: Callable, columns: int) -> MemoryPlan:
        if program not in self._plans:
            with self._counted():
                plan = self._plans[program] = self._planned(program, columns)
            detail(
                f"memory for {plan.block_size} columns at once: {gb(plan.total)}, of which "
                f"{gb(plan.process)} are held already, {gb(plan.fixed)} are kept and "
                f"{gb(plan.per_column)} are for each column"
            )
        return self._plans[program]

    def _planned(self, program: Callable, columns: int) -> MemoryPlan:
        # The limit is used in full: a block reads the stored map once, however many columns it has.
        limit, size = (np.inf, None) if self.memory_limit is None else (self.memory_limit, np.inf)
        block = self._wanted(program, columns, size)
        dtype, atoms, copies = self.potential.dtype, self.atoms, self._copies
        beside = self.beside if jax.default_backend() == "cpu" else 0
        fixed = beside
        if not self._is_linearised:
            if resident() + beside + copies * self.kept > limit:
                raise MemoryLimitError(
                    f"the linearised gradient alone needs {gb(copies * self.kept)} for {atoms} atoms in "
                    f"{dtype}, beside {gb(resident())} that the process holds; "
                    f"memory_limit={gb(limit)} was given. Allow more"
                    + (", or use float32." if dtype == "float64" else ".")
                )
            fixed += copies * max(
                self.kept, scratch(self._on_devices(linear_map.linearise).lower(*self._arguments))
            )
        tangent_map = self._shapes_of_map()
        several = parallel.Crew.of(self.potential.mesh).count > 1
        return plan_within(
            limit,
            block,
            fixed=fixed,
            for_block=lambda block: copies * scratch(self._lowered(program, tangent_map, block)),
            held=resident,
            # Hosts may hold different amounts; all have to compute the same block.
            agreed=parallel.least if several else lambda fitting: fitting,
            smaller=self.block_size is None,
        )


def without_net_force(rows: np.ndarray) -> np.ndarray:
    """Forces (…, atoms, 3) in answer to displacements, those of single precision with their mean taken out.

    To shift all atoms together costs no energy, so that the mean is rounding (the acoustic sum rule), and
    would be seen in frequencies, which are roots of numbers near 0. An energy that depends on where the
    crystal is has a larger mean, which stays. In double precision nothing changes.
    """
    eps = np.finfo(np.float32).eps
    if np.finfo(rows.dtype).eps < eps:
        return rows
    mean = rows.mean(axis=-2, keepdims=True, dtype=np.result_type(rows.dtype, np.float64))
    scale = np.abs(rows).max(axis=(-2, -1), keepdims=True, initial=0)
    return rows - np.where(np.abs(mean) <= eps**0.5 * scale, mean, 0)
