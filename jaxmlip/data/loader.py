"""The plan of the batches of a run, and the batches themselves, read ahead by threads."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from jaxmlip.crystals.batching import BatchShape
from jaxmlip.data.batch import SHIFTED, Batch, Example, SpectraShape, collate, stack
from jaxmlip.data.dataset import CorruptRecordError, Split
from jaxmlip.system.progress import track

WINDOW = 64  # batches whose crystals are distributed together; more save little padding and mix less
FULL = 1 << 60  # heavier than any batch
KINDS = ("atoms", "short bonds", "long bonds", "angles")


@dataclass(eq=False)
class Plan:
    """The crystals of each batch of a run. They follow from the sizes, the batch size and the seed.

    An epoch is a random permutation of all crystals, cut into windows of about 64 batches. The crystals of a
    window are dealt to its batches, and those of a batch to the shards (devices), such that all have nearly
    the same total size: one shape fits all with little padding. Every crystal occurs once per epoch. The
    crystals of a batch do not depend on the number of shards. If batch_size does not divide the number of
    crystals, some batches have fewer.

    With `replay_sizes` each batch has `replay_batch` more crystals from a second set, in permutations of its
    own; its crystal k is numbered len(sizes) + k.

    `spectra` has of each crystal what `dataset.spectral_labels` gives: whether it has frequencies, at `waves`
    wave vectors in each batch, and how many averages over modes.

    Raises ValueError, naming the crystal, if a given `shape` is too small.
    """

    sizes: Int[np.ndarray, "n 4"]  # atoms, short bonds, long bonds, angles of each crystal
    batch_size: int
    shards: int = 1
    seed: int = 0
    epochs: int = 1
    replay_sizes: Int[np.ndarray, "m 4"] | None = None
    replay_batch: int = 0
    shape: BatchShape | None = None  # of each shard; default: the smallest that fits all shards of the run
    waves: int = 0
    spectra: Int[np.ndarray, "n+m 2"] | None = None
    spectra_shape: SpectraShape | None = field(
        init=False
    )  # of each shard; None if no crystal has such labels
    waste: dict[str, float] = field(init=False)  # the fraction of `shape` that is padding, by KINDS

    def __post_init__(self):
        self.sizes = _checked(self.sizes, "sizes")
        n = len(self.sizes)
        for name in ("batch_size", "shards", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"found {name}={getattr(self, name)}, needed at least 1.")
        replays = self.replay_sizes is not None and self.replay_batch > 0
        if replays:
            self.replay_sizes = _checked(self.replay_sizes, "replay_sizes")
            if self.replay_batch > len(self.replay_sizes):
                raise ValueError(
                    f"found replay_batch={self.replay_batch} and only {len(self.replay_sizes)} crystals to "
                    "replay. Give a smaller replay_batch, or more crystals."
                )
        self.batch_size = min(self.batch_size, n)
        self.steps_per_epoch = -(-n // self.batch_size)
        self.steps = self.steps_per_epoch * self.epochs
        # One more row, of zeros, for empty places: number -1.
        rows = [self.sizes, self.replay_sizes] if replays else [self.sizes]
        self._sizes = np.concatenate([*rows, np.zeros((1, 4), np.int64)])
        self._spectra = np.zeros((len(self._sizes), 2), int)
        if self.spectra is not None:
            self._spectra[: len(self.spectra)] = self.spectra
        # Each branch of each wave vector takes two columns of second derivatives, real and imaginary.
        waves = self.waves * self._spectra[:, 0] + SHIFTED**3 * (self._spectra[:, 1] > 0)
        self._cost = cost(self._sizes) * (1 + 6 * waves * self._sizes[:, 0])
        self._lock = threading.Lock()
        self._replay_pass = lru_cache(2)(self._replay_pass)
        self._epoch = lru_cache(2)(self._epoch)
        self._measure()

    def batch(self, step: int) -> list[Int[np.ndarray, " k"]]:
        """The numbers of the crystals of batch `step`, one array for each shard."""
        if not 0 <= step < self.steps:
            raise IndexError(f"found step {step}, needed 0 to {self.steps - 1}.")
        epoch, k = divmod(step, self.steps_per_epoch)
        with self._lock:
            numbers, shard = self._epoch(epoch)
        here = numbers[k] >= 0
        return [numbers[k][here & (shard[k] == s)] for s in range(self.shards)]

    def _epoch(self, epoch: int) -> tuple[Int[np.ndarray, "steps k"], Int[np.ndarray, "steps k"]]:
        """The crystals of all batches of an epoch (-1 for an empty place), and the shard of each."""
        numbers = _batches(self._cost[: len(self.sizes)], self.steps_per_epoch, self.seed, 0, epoch)
        if len(self._sizes) > len(self.sizes) + 1:
            per_pass = len(self.replay_sizes) // self.replay_batch
            steps = epoch * self.steps_per_epoch + np.arange(self.steps_per_epoch)
            passes = steps // per_pass
            replayed = np.concatenate(
                [self._replay_pass(p)[steps[passes == p] % per_pass] for p in np.unique(passes)]
            )
            numbers = np.concatenate([numbers, replayed], axis=1)
        return _deal(numbers, self._cost, self.shards)

    def _replay_pass(self, number: int) -> Int[np.ndarray, "batches k"]:
        """One permutation of the crystals to replay, cut to whole batches."""
        n = len(self.sizes)
        cost = self._cost[n:-1]
        batches = len(cost) // self.replay_batch
        # The remainder that fills no batch is left out of this pass; the next permutation leaves out others.
        return n + _batches(cost, batches, self.seed, 1, number, keep=batches * self.replay_batch)

    def _measure(self) -> None:
        """Sets `shape` and `waste` by going through the run."""
        most, total = np.zeros((2, 5), np.int64), np.zeros(4)
        waving = self._spectra.any(axis=1)
        rows = np.arange(self.steps_per_epoch)
        for epoch in track(range(self.epochs), "sizes of batches"):
            numbers, shard = self._epoch(epoch)
            loads = np.zeros((2, len(rows), self.shards, 5), np.int64)  # of all, of those with spectra
            for number, to in zip(numbers.T, shard.T, strict=True):
                its = np.concatenate([self._sizes[number], (number >= 0)[:, None]], axis=1)
                loads[0, rows, to] += its
                loads[1, rows, to] += its * waving[number][:, None]
            most = np.maximum(most, loads.max(axis=(1, 2)))
            total += loads[0, ..., :4].sum(axis=(0, 1))
        needed, cells = (BatchShape.holding(its[:4], int(its[4])) for its in most)
        largest = int(self._sizes[waving, 0].max(initial=0))
        self.spectra_shape = SpectraShape.holding(cells, largest, self._spectra, self.waves)
        if self.shape is None:
            self.shape = needed
        elif not self.shape.fits(needed):
            raise ValueError(self._too_small(needed))
        shards = self.steps * self.shards
        self.waste = {
            kind: float(1 - t / (shards * h)) if h else 0.0
            for kind, t, h in zip(KINDS, total, self.shape.free[:4], strict=True)
        }

    def _too_small(self, needed: BatchShape) -> str:
        excess = (self._sizes - self.shape.free[:4]).max(axis=1)
        worst = int(excess.argmax())
        if excess[worst] > 0:
            own = len(self.sizes)
            where = f"crystal {worst}" if worst < own else f"crystal {worst - own} of the replay"
            found = ", ".join(f"{n} {kind}" for n, kind in zip(self._sizes[worst], KINDS, strict=True))
            return (
                f"{where} has {found}; the given shape holds {tuple(self.shape)}, including one atom and one "
                f"short bond for padding. Leave the crystal out, or give shape={tuple(needed)}, which fits."
            )
        return (
            f"batches of {self.batch_size} crystals on {self.shards} devices need shape={tuple(needed)}, "
            f"found {tuple(self.shape)}. Give a smaller batch_size, or leave out shape: then one that fits "
            "is chosen."
        )


def _checked(sizes: np.ndarray, name: str) -> np.ndarray:
    sizes = np.asarray(sizes, dtype=np.int64)
    if sizes.ndim != 2 or sizes.shape[1] != 4 or not len(sizes):
        raise ValueError(
            f"found {name} of shape {sizes.shape}, needed (crystals, 4) with at least one crystal, to make "
            "batches from."
        )
    return sizes


def cost(sizes: np.ndarray) -> np.ndarray:
    """The work that a crystal takes: its directed bonds, angles and atoms."""
    return 2 * (sizes[:, 1] + sizes[:, 2]) + sizes[:, 3] + sizes[:, 0]


def _batches(
    cost: np.ndarray, batches: int, seed: int, stream: int, epoch: int, keep: int | None = None
) -> Int[np.ndarray, "batches k"]:
    """The first `keep` crystals of a permutation, in `batches` parts of nearly the same number and total
    cost; -1 fills a part that has one less."""
    rng = np.random.default_rng([seed, stream, epoch])
    order = rng.permutation(len(cost))[:keep]
    places = -(-len(order) // batches)
    windows = max(1, batches // WINDOW)
    edges = np.arange(windows + 1) * batches // windows  # where windows begin, in batches
    ends = edges * len(order) // batches  # the same in crystals
    found = np.full((batches, places), -1)
    widths = np.diff(edges)
    for width in np.unique(widths):  # two at most
        which = np.flatnonzero(widths == width)
        slot = np.arange(width * places)
        inside = slot < np.diff(ends)[which][:, None]
        numbers = np.where(inside, order[np.minimum(ends[which][:, None] + slot, len(order) - 1)], -1)
        numbers, batch = _deal(numbers, cost, width, places)
        by_batch = np.take_along_axis(numbers, np.argsort(batch, axis=1, kind="stable"), axis=1)
        found[(edges[which][:, None] + np.arange(width)).ravel()] = by_batch.reshape(-1, places)
    return rng.permutation(found)  # else the first batch of each window would have its largest crystal


def _deal(
    numbers: Int[np.ndarray, "rows k"], cost: np.ndarray, hands: int, places: int | None = None
) -> tuple[Int[np.ndarray, "rows k"], Int[np.ndarray, "rows k"]]:
    """The crystals of each row (-1: none), the largest first, and the hand that each is dealt to.

    Each goes to the lightest hand that still has one of its `places` free.
    """
    weight = np.where(numbers >= 0, cost[numbers], -1)
    by_size = np.argsort(-weight, axis=1, kind="stable")
    numbers = np.take_along_axis(numbers, by_size, axis=1)
    weight = np.maximum(np.take_along_axis(weight, by_size, axis=1), 0)
    hand = np.zeros_like(numbers)
    if hands == 1:
        return numbers, hand
    rows = np.arange(len(numbers))
    held, count = (np.zeros((len(rows), hands), np.int64) for _ in range(2))
    for k in range(numbers.shape[1]):
        to = hand[:, k] = held.argmin(axis=1)
        held[rows, to] += weight[:, k]
        if places is not None:
            count[rows, to] += 1
            held[rows, to] += FULL * (count[rows, to] == places)
    return numbers, hand


class Loader:
    """The batches of a plan. `at(step)` depends on the plan and the step alone, so a run resumes exactly.

    `reference_energies` (eV, by atomic number) and `mixed` go to `collate`. `shards` are those that this host
    feeds (default: all). `skip_corrupt` leaves out the crystals of damaged records, with a warning for each;
    `skipped` has their numbers and the reasons.
    """

    def __init__(
        self,
        split: Split,
        plan: Plan,
        reference_energies: Float[np.ndarray, " elements"],
        dtype=np.float32,
        shards: Sequence[int] | None = None,
        mixed: bool = False,
        replay: Split | None = None,
        skip_corrupt: bool = False,
    ):
        splits = [split] if replay is None else [split, replay]
        if len(split) != len(plan.sizes) or sum(map(len, splits)) < len(plan._sizes) - 1:
            raise ValueError(
                f"found {' and '.join(str(len(s)) for s in splits)} crystals and a plan for "
                f"{len(plan.sizes)} and {len(plan._sizes) - 1 - len(plan.sizes)} to replay, needed a plan "
                "made from the sizes of these splits."
            )
        self.split, self.replay, self.plan = split, replay, plan
        self.reference_energies, self.dtype, self.mixed = reference_energies, dtype, mixed
        self.shards = list(range(plan.shards)) if shards is None else list(shards)
        self.skip_corrupt = skip_corrupt
        self.skipped: dict[int, str] = {}
        self._waited = self._elapsed = 0.0

    @property
    def waiting(self) -> float:
        """The fraction of the time of `iterate` for which its consumer waited for batches."""
        return self._waited / self._elapsed if self._elapsed else 0.0

    def at(self, step: int) -> Batch:
        """Batch `step`, with this host's shards as leading axis. Raises DatasetError at damaged records."""
        batch = self.plan.batch(step)
        return stack([self._shard(batch[k], step) for k in self.shards])

    def iterate(self, start: int = 0, threads: int = 2, ahead: int = 4) -> Iterator[Batch]:
        """Batches from `start` to the last; `threads` threads make up to `ahead` of them in advance."""
        absl = logging.getLogger("absl")
        level = absl.level
        absl.setLevel(logging.ERROR)  # importing grain warns that it will not profile its own processes
        import grain

        absl.setLevel(level)
        steps = grain.MapDataset.range(start, self.plan.steps).map(self.at)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        batches = iter(steps.to_iter_dataset(options))
        self._waited, began = 0.0, time.perf_counter()
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            now = time.perf_counter()
            self._waited, self._elapsed = self._waited + now - asked, now - began
            if batch is None:
                return
            yield batch

    def _shard(self, numbers: np.ndarray, step: int) -> Batch:
        found = [(int(n), e) for n in numbers if (e := self._example(int(n))) is not None]
        # A crystal's probe and wave vectors must not depend on the device that it is on.
        drawn = {"hessian", "frequencies", "averages", "third"}
        rngs = [
            np.random.default_rng([self.plan.seed, step, n]) if drawn.intersection(e.labels.known) else None
            for n, e in found
        ]
        return collate(
            [e for _, e in found],
            self.plan.shape,
            self.reference_energies,
            rngs,
            self.dtype,
            self.mixed,
            self.plan.spectra_shape,
        )

    def _example(self, number: int) -> Example | None:
        own = len(self.split)
        try:
            return self.split[number] if number < own else self.replay[number - own]
        except CorruptRecordError as error:
            if not self.skip_corrupt:
                raise
            if number not in self.skipped:
                self.skipped[number] = str(error)
                warnings.warn(f"left out crystal {number}: {error}", stacklevel=2)
            return None
