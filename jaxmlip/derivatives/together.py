"""Second derivatives of many crystals, computed together although each is asked for on its own.

For each crystal a task runs that asks for columns of second derivatives whenever it needs some. Tasks wait
for one another: what they ask for is cut into parts of a few columns, and parts of many crystals lie side by
side in one graph, where one call computes a column of each. A crystal that needs many columns is there
several times. So all parts of a call take as long, whatever the crystals need, and all calls have one of few
shapes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from jaxmlip.crystals import batches, batching
from jaxmlip.crystals.graph import CrystalGraph
from jaxmlip.derivatives import linear_map
from jaxmlip.derivatives.linear_map import Gradient
from jaxmlip.derivatives.response import Differentiable, Response, SecondDerivatives, Wanted
from jaxmlip.system.coroutines import Coroutine, give_warnings

T = TypeVar("T")
UNDER_WAY = 128  # tasks at once: enough to fill calls whatever each of them needs
# Bonds and angles in a graph, less if its linear map takes more bytes. In larger ones less stays empty.
MESSAGES, BYTES = 4_000, 1e9
# Columns of a part on each device; of waves, pairs of them.
COLUMNS = {
    linear_map.waves: 8,
    linear_map.waves_and_slopes: 4,
    linear_map.strained_waves: 4,
    linear_map.strained_columns: 8,
}
ALONE = 1_000  # bonds and angles above which a crystal is computed alone, if no given shape holds it
FULL = 0.9  # calls are made that compute as much as this, compared with the best that could be made


class Respond(Protocol):
    """Makes the second derivatives of a crystal, which are computed together with those of other crystals.

    A limit is that of `Response`, for crystals that are so large that they are computed alone.
    """

    def __call__(self, graph: CrystalGraph, memory_limit: float | None = None) -> SecondDerivatives: ...


def together(
    potential: Differentiable,
    tasks: Iterable[Callable[[Respond], T]],
    shapes: Sequence[batching.BatchShape] = (),
) -> Iterator[tuple[int, T | Exception]]:
    """The results of tasks, each with its number from 0 on, in the order in which they end.

    Many tasks are under way at once, and wait for one another where they need second derivatives; otherwise
    one runs at a time. An exception of a task takes the place of its result. `tasks` are taken when there is
    room for them. The warnings of a task are given just before its result.

    `shapes` are as in `batches.side_by_side`; by default one is made for the first tasks that are under way.
    Calls with the same shapes share the compiled programs.
    """
    table, waiting = _Table(potential, shapes), enumerate(tasks)
    under_way: dict[_Guest, int] = {}
    ready: deque[tuple[_Guest, Any]] = deque()
    try:
        while True:
            for k, task in islice(waiting, UNDER_WAY - len(under_way)):
                guest = _Guest(task, potential, shapes)
                under_way[guest] = k
                ready.append((guest, None))
            if not under_way:
                return
            while not ready:
                ready.extend(table.serve())
            guest, answer = ready.popleft()
            guest.go_on(answer)
            if guest.ended:
                k = under_way.pop(guest)
                give_warnings(guest.warnings)
                yield k, guest.result
            else:
                table.put(guest)
    finally:
        for guest in under_way:
            guest.close()


def paying(
    potential: Differentiable,
    graph: CrystalGraph,
    shapes_for: Callable[[float], list[batching.BatchShape]],
    least: float,
) -> tuple[list[batching.BatchShape], float]:
    """Shapes of which the first is as large as pays, and the bytes of its linear map for each message.

    `shapes_for` makes them for MESSAGES bonds and angles, or half as many and so on until the map takes less
    than BYTES, but not for fewer than `least`. `graph` fits into the first of them.
    """
    messages = float(MESSAGES)
    while True:
        shapes = shapes_for(messages)
        kept = Response.side_by_side(potential, [graph], shapes[0]).kept
        if kept < BYTES or messages <= least:
            return shapes, kept / shapes[0].messages
        messages /= 2


class _Guest(Coroutine):
    """A task under way. Its questions are a seat, and what is wanted for the crystal of that seat."""

    def __init__(
        self,
        task: Callable[[Respond], Any],
        potential: Differentiable,
        shapes: Sequence[batching.BatchShape],
    ):
        super().__init__(lambda: task(self._respond))
        self.potential, self._shapes = potential, shapes

    def _respond(self, graph: CrystalGraph, memory_limit: float | None = None) -> SecondDerivatives:
        alone = partial(Response, self.potential, graph, memory_limit=memory_limit)
        size = batching.exact_shape([graph])
        if size.messages > ALONE and not any(shape.fits(size) for shape in self._shapes):
            return alone(shape=batching.close_shape_for if memory_limit is None else None)
        return _Seat(self, graph, alone)


class _Seat(SecondDerivatives):
    """The second derivatives of a crystal, computed together with others as long as its task is under way."""

    def __init__(self, guest: _Guest, graph: CrystalGraph, alone: Callable[[], Response]):
        self.potential, self.atoms, self.graph = guest.potential, len(graph.species), graph
        self.gradient: Gradient | None = None
        self._guest, self._make_alone = guest, alone

    @cached_property
    def _alone(self) -> Response:
        return self._make_alone()

    def find(self, wanted: Wanted) -> np.ndarray:
        return self._guest.ask((self, wanted)) if self._guest.inside else self._alone.find(wanted)

    def first_order(self) -> Gradient:
        if self.gradient is None and self._guest.inside:
            self.strained_columns(np.zeros(0, int))  # comes with any columns, or with none
        return self._alone.gradient_of(0) if self.gradient is None else self.gradient


class _Part(NamedTuple):
    """Some of the columns that a guest waits for."""

    guest: _Guest
    number: int
    seat: _Seat
    wanted: Wanted


class _Table:
    """The parts that wait to be computed."""

    def __init__(self, potential: Differentiable, shapes: Sequence[batching.BatchShape]):
        self.potential, self.shapes = potential, list(shapes)
        self.devices = 1 if potential.mesh is None else potential.mesh.size
        self.parts: list[_Part] = []
        self.found: dict[_Guest, list[np.ndarray | None]] = {}

    def put(self, guest: _Guest) -> None:
        """Takes the question of a guest."""
        seat, wanted = guest.question
        count = len(wanted.coordinate)
        parts = max(1, -(-count // (self.devices * COLUMNS[wanted.of])))
        ends = np.arange(parts + 1) * count // parts
        self.found[guest] = [None] * parts
        self.parts += [_Part(guest, k, seat, wanted.part(slice(*ends[k : k + 2]))) for k in range(parts)]

    def serve(self) -> list[tuple[_Guest, np.ndarray | Exception]]:
        """Computes parts of one kind, in full calls if there are any, and returns complete answers."""
        of = self.parts[0].wanted.of
        alike = [part for part in self.parts if part.wanted.of is of]
        sizes = batching.sizes_of([part.seat.graph for part in alike])
        self._make_room(alike)
        calls = batches.side_by_side(sizes, MESSAGES, self.shapes)
        work = (sizes @ batching.WORK) * [len(part.wanted.coordinate) for part in alike]
        use = np.array([work[batch].sum() / shape.messages for batch, shape in calls])
        failed: dict[_Guest, Exception] = {}
        for k in np.flatnonzero(use >= FULL * use.max()):
            batch, shape = calls[k]
            self._compute([alike[k] for k in batch], shape, failed)
        full = [guest for guest, found in self.found.items() if all(x is not None for x in found)]
        answers = [(guest, np.concatenate(self.found[guest], axis=-2)) for guest in full]
        answers += [*failed.items()]
        for guest, _ in answers:
            del self.found[guest]
        self.parts = [
            p for p in self.parts if p.guest in self.found and self.found[p.guest][p.number] is None
        ]
        return answers

    def _make_room(self, parts: list[_Part]) -> None:
        """Adds a shape for crystals that fit none: in their proportions, and as large as pays."""
        graphs = [p.seat.graph for p in parts]
        homes = [np.all(batching.sizes_of(graphs) <= shape.free[:5], axis=1) for shape in self.shapes]
        homeless = [g for k, g in enumerate(graphs) if not any(home[k] for home in homes)]
        if not homeless:
            return
        whole = batching.exact_shape(homeless)
        each = [*self.shapes, *(batching.exact_shape([graph]) for graph in homeless)]

        def mixed(messages: float) -> list[batching.BatchShape]:
            share = min(1.0, messages / max(1, whole.messages))
            shape = batching.BatchShape(*(int(np.ceil(share * n)) for n in whole))
            # Atoms cost little, and a graph without a place for one more would leave bonds empty.
            shape = shape._replace(atoms=2 * shape.atoms)
            return [batching.any_number(batching.close(batching.BatchShape.covering([shape, *each])))]

        least = max(one.messages for one in each)
        self.shapes += paying(self.potential, homeless[0], mixed, least)[0]

    def _compute(
        self, parts: list[_Part], shape: batching.BatchShape, failed: dict[_Guest, Exception]
    ) -> None:
        seats = {part.seat for part in parts}
        try:
            response = Response.side_by_side(self.potential, [part.seat.graph for part in parts], shape)
            of = parts[0].wanted.of
            found = response.find_each([part.wanted for part in parts], COLUMNS[of])
            for c, (part, its) in enumerate(zip(parts, found, strict=True)):
                self.found[part.guest][part.number] = its
                if part.seat.gradient is None:
                    part.seat.gradient = response.gradient_of(c)
        except Exception as error:
            if len(seats) == 1:
                failed[parts[0].guest] = error
                return
            for seat in seats:  # whose fault it is shows when each is alone
                self._compute([part for part in parts if part.seat is seat], shape, failed)
