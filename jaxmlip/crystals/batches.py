"""Batches: crystals that are computed together, and the shapes of their arrays.

Crystals that are known beforehand are sorted into bins (`predicted`). Crystals that move, and come and go,
share one shape that grows and shrinks with them (`InFlight`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int

from jaxmlip.crystals.batching import WORK, BatchShape, any_number, exact_shape, padded_shape, sizes_of
from jaxmlip.crystals.graph import CrystalGraph
from jaxmlip.system.progress import track

MESSAGES = 30_000  # bonds and angles in a batch; more gains no speed on a CPU
# Crystals that move at once: beyond a thousand, time on a CPU is proportional to their number, and in larger
# batches the last crystals would finish in a mostly empty batch.
MOVING_ON_CPU = 2_000
SIZE = 0.05  # how much a large crystal is preferred to one that is more alike the free space
AHEAD = 1_000  # crystals searched for those that fill a batch; searching all would take n² steps
SPARE = 0.15  # share of a shape left free for neighbours that come and go
GROWTH = 0.5  # the same, once crystals did not fit
# Crystals that have needed less than 1 / SHRINK of a shape for PATIENCE steps get a smaller one. Compiling
# its program takes about as long as those steps did, and most crystals end before.
SHRINK, PATIENCE = 4, 50


@runtime_checkable
class Predicts(Protocol):
    """The part of a potential that batches need."""

    def predict_graphs(self, graphs: Sequence[CrystalGraph], shape: BatchShape) -> list[Any]: ...


def predicted(
    potential: Predicts,
    graphs: Sequence[CrystalGraph],
    *,
    messages: int = MESSAGES,
    shapes: Sequence[BatchShape] = (),
    what: str = "energies and forces",
) -> list[Any]:
    """Predictions for `graphs`, in the same order, computed in batches; `what` names the progress bar.

    See `side_by_side` for the other arguments.
    """
    found: list[Any] = [None] * len(graphs)
    for k, prediction in each_predicted(potential, graphs, messages=messages, shapes=shapes, what=what):
        found[k] = prediction
    return found


def each_predicted(
    potential: Predicts,
    graphs: Sequence[CrystalGraph],
    *,
    messages: int = MESSAGES,
    shapes: Sequence[BatchShape] = (),
    what: str = "energies and forces",
) -> Iterator[tuple[int, Any]]:
    """Like `predicted`, but yields the number and prediction of each graph once its batch is computed."""
    for batch, shape in track(side_by_side(sizes_of(graphs), messages, shapes), what):
        yield from zip(batch, potential.predict_graphs([graphs[k] for k in batch], shape), strict=True)


def shapes_for(
    sizes: Int[np.ndarray, "n kinds"] | Sequence[CrystalGraph],
    messages: float,
    spare: float = 0.0,
) -> list[BatchShape]:
    """A few shapes, ascending, of which the last holds the largest of the crystals.

    The first holds about `messages` bonds and angles, with atoms, bonds and angles in the proportion of all
    crystals together; each other shape is four times the one before. `spare` is as in `shape_for`.
    """
    sizes = _as_sizes(sizes)
    if not len(sizes):
        return []
    whole, largest = BatchShape.holding(sizes.sum(0), len(sizes)), BatchShape.holding(sizes.max(0), 1)
    found: list[BatchShape] = []
    while not (found and found[-1].fits(largest)):
        share = min(1.0, messages * 4 ** len(found) / max(1, whole.messages))
        found.append(any_number(padded_shape(BatchShape(*(int(np.ceil(share * n)) for n in whole)), spare)))
    return found


def side_by_side(
    sizes: Int[np.ndarray, "n kinds"] | Sequence[CrystalGraph],
    messages: int,
    shapes: Sequence[BatchShape] = (),
) -> list[tuple[list[int], BatchShape]]:
    """Batches of indices of crystals, those with similar numbers of atoms together, and their shapes.

    Crystals are given as graphs or by their sizes, see `sizes_of`; data sets have none of pairs. Each goes
    into the first of `shapes` that holds it. By default, and for crystals that fit none of them, `shapes_for`
    makes the shapes.
    """
    sizes = _as_sizes(sizes)
    homeless = (
        ~np.any([_fit(sizes, shape) for shape in shapes], axis=0) if shapes else np.ones(len(sizes), bool)
    )
    found = []
    left = np.argsort(-sizes[:, 0], kind="stable")
    for shape in [*shapes, *shapes_for(sizes[homeless], messages)]:
        held = _fit(sizes[left], shape)
        waiting, left = left[held], left[~held]
        while len(waiting):
            batch = _filling(sizes[waiting[:AHEAD]], shape.free)
            found.append((waiting[batch].tolist(), shape))
            waiting = np.delete(waiting, batch)
    return found


def chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    """`items` in consecutive parts of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


class InFlight:
    """Predictions for crystals that move, and come and go, in one shape until they outgrow it.

    The shape has spare padding for new neighbours. It grows by half when crystals need more, and shrinks when
    most of it has long been empty. `shape` is the first shape; by default it is made for the first crystals,
    or for those that `expect` names. With `several=False` it is for one crystal at a time.
    """

    def __init__(self, potential: Predicts, shape: BatchShape | None = None, *, several: bool = True):
        self.potential, self.shape, self.several = potential, shape, several
        self.wasted = 0  # calls in which most of the shape was empty

    def expect(self, graphs: Sequence[CrystalGraph]) -> None:
        """Makes a shape for the largest of `graphs`, or for a batch with a fair share of every kind."""
        if self.shape is None and graphs:
            self.shape = moving_shape(sizes_of(graphs))

    def admits(self, active: Sequence[CrystalGraph], waiting: Sequence[CrystalGraph]) -> list[bool]:
        """True for each of `waiting` that fits beside `active`; the first fits if none is active."""
        free, found = np.array(self.shape) / (1 + SPARE) - exact_shape(active), []
        nobody = not active
        for graph in waiting:
            size = exact_shape([graph]).free
            found.append(nobody or bool(np.all(size <= free)))
            if found[-1]:
                nobody = False
                free -= size
        return found

    def __call__(self, graphs: Sequence[CrystalGraph]) -> list[Any]:
        """Predictions in the same order, in as few calls as MESSAGES or a larger shape allow."""
        most = max(MESSAGES, self.shape.messages if self.shape else 0)
        ends = np.cumsum(sizes_of(graphs) @ WORK)
        found: list[Any] = []
        while (start := len(found)) < len(graphs):
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
            found += self.potential.predict_graphs(graphs[start:stop], self._shape_for(graphs[start:stop]))
        return found

    def _shape_for(self, graphs: Sequence[CrystalGraph]) -> BatchShape:
        needed = exact_shape(graphs)
        if self.shape is None or self.wasted == PATIENCE:
            self._change(padded_shape(needed, SPARE))
        elif not self.shape.fits(needed):
            self._change(BatchShape.covering([padded_shape(needed, GROWTH), self.shape]))
        self.wasted = self.wasted + 1 if SHRINK * needed.messages < self.shape.messages else 0
        return self.shape

    def _change(self, shape: BatchShape) -> None:
        self.shape, self.wasted = any_number(shape) if self.several else shape, 0


def moving_shape(sizes: Int[np.ndarray, "n 5"]) -> BatchShape:
    """The shape in which crystals of these sizes (see `sizes_of`) move: it holds each, often several."""
    most = MOVING_ON_CPU if jax.default_backend() == "cpu" else MESSAGES
    whole = BatchShape.holding(sizes.sum(0), len(sizes))
    share = min(1.0, most / whole.messages)
    mixed = BatchShape(*(int(share * n) for n in whole))
    largest = BatchShape.covering([mixed, BatchShape.holding(sizes.max(0), 1)])
    return any_number(padded_shape(largest, SPARE))


def _as_sizes(crystals) -> Int[np.ndarray, "n 5"]:
    if not isinstance(crystals, np.ndarray):
        return sizes_of(crystals)
    sizes = np.zeros((len(crystals), 5), int)
    if len(sizes):
        sizes[:, : crystals.shape[1]] = crystals
    return sizes


def _fit(sizes: Int[np.ndarray, "n 5"], shape: BatchShape) -> np.ndarray:
    return np.all(sizes <= shape.free[:5], axis=1)


def _filling(sizes: Int[np.ndarray, "n 5"], free: Int[np.ndarray, " 6"]) -> list[int]:
    """Indices of crystals that go into the free space together.

    The first comes first; then always the one whose bonds and angles are most nearly in the proportion that
    is still free. If each took the next that fits, one kind would be full first, and a fifth of the others
    stay empty.
    """
    sizes = np.column_stack([sizes, np.ones(len(sizes), int)])
    work, whole = slice(1, 4), np.maximum(free, 1)
    share = sizes[:, work] / whole[work]
    length = np.maximum(np.linalg.norm(share, axis=1), 1e-9)
    found: list[int] = []
    fits = np.all(sizes <= free, axis=1)
    while fits.any():
        left = np.flatnonzero(fits)
        room = free[work] / whole[work]
        alike = share[left] @ room / (length[left] * max(np.linalg.norm(room), 1e-9)) + SIZE * length[left]
        found.append(int(left[np.argmax(alike)] if found else left[0]))
        free = free - sizes[found[-1]]
        fits[found[-1]] = False
        fits &= np.all(sizes <= free, axis=1)
    return found
