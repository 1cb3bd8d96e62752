"""Writing of labelled crystals and their graphs as a data set: `write_dataset`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import warnings
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxmlip.crystals.graph import CLOSEST, Cutoffs
from jaxmlip.data.dataset import FORMAT, MANIFEST, Dataset, DatasetError, lengths, size, with_graph
from jaxmlip.data.encoding import encode
from jaxmlip.data.labels import PROPERTIES, LabelError, LabelledCrystal, functional_name
from jaxmlip.system.borders import in_lines
from jaxmlip.system.files import check_folder, is_remain, sha256, writing_folder
from jaxmlip.system.progress import track
from jaxmlip.system.versions import own_version

SPLITS = ("train", "validation", "test")
# One record to a group, so that fetching one reads no other.
WRITER = "group_size:1,zstd:3"
SHARD_BYTES = 256 << 20  # of records before compression
CHUNK = 32  # crystals sent to a process at once
FEW = 4096  # crystals; starting processes takes longer than making so many graphs
REASONS = 100  # crystals left out that the manifest names, at most


class _Made(NamedTuple):
    """A crystal on its way from the process that made its graph to the shard."""

    record: bytes
    size: tuple[int, int, int, int]
    known: tuple[str, ...]
    elements: tuple[int, ...]
    material: str
    name: str
    functional: str
    closest: float  # Å


class _Alone(NamedTuple):
    """An isolated atom, which goes into the manifest."""

    element: str
    energy: float
    functional: str


class _Bad(NamedTuple):
    reason: str


def _make(crystals: Sequence[LabelledCrystal], cutoffs: Cutoffs) -> list[_Made | _Alone | _Bad]:
    """Makes graphs and records. Runs in other processes too, and touches no device."""
    found: list[_Made | _Alone | _Bad] = []
    for crystal in crystals:
        try:
            if crystal.isolated:
                if (energy := crystal.labels.check(1, crystal.name).energy) is not None:
                    functional = functional_name(crystal.functional)
                    found.append(_Alone(str(crystal.atoms.symbols), energy, functional))
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # atoms close to each other: one warning follows at the end
                crystal = crystal.checked()
                made = with_graph(crystal, cutoffs)
        except ValueError as error:
            found.append(_Bad(str(error)))
            continue
        elements = tuple(int(z) for z in np.unique(made.graph.species))
        closest = float(lengths(made.graph).min(initial=np.inf))
        record = encode(made, crystal.name, crystal.material)
        about = crystal.material, crystal.name, crystal.functional
        found.append(_Made(record, size(made.graph), made.labels.known, elements, *about, closest))
    return found


def _made(
    crystals: Iterable[LabelledCrystal], cutoffs: Cutoffs, processes: int | None
) -> Iterator[_Made | _Alone | _Bad]:
    crystals = iter(crystals)
    processes = processes or os.cpu_count() or 1
    few = list(islice(crystals, FEW))
    crystals = chain(few, crystals)
    chunks = iter(lambda: list(islice(crystals, CHUNK)), [])
    if processes == 1 or len(few) < FEW:
        for chunk in chunks:
            yield from _make(chunk, cutoffs)
        return
    # Not fork: JAX has threads.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        waiting = deque(pool.submit(_make, chunk, cutoffs) for chunk in islice(chunks, 3 * processes))
        try:
            while waiting:
                yield from waiting.popleft().result()
                waiting.extend(pool.submit(_make, chunk, cutoffs) for chunk in islice(chunks, 1))
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass
class _SplitWriter:
    """The shards of one split, in the order in which crystals come."""

    folder: Path
    name: str
    sizes: array = field(default_factory=lambda: array("i"))  # four for each crystal
    counts: Counter = field(default_factory=Counter)
    elements: set[int] = field(default_factory=set)
    functionals: Counter = field(default_factory=Counter)
    shards: list[int] = field(default_factory=list)  # number of records of each
    writer: Any = None
    filled: int = 0

    def add(self, made: _Made) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        if self.writer is None or self.filled > SHARD_BYTES:
            self.close()
            self.writer = ArrayRecordWriter(str(self.folder / f"{self.name}-{len(self.shards):05d}"), WRITER)
            self.shards.append(0)
            self.filled = 0
        self.writer.write(made.record)
        self.filled += len(made.record)
        self.shards[-1] += 1
        self.sizes.extend(made.size)
        self.counts.update(made.known)
        self.elements.update(made.elements)
        self.functionals[made.functional] += 1

    def close(self) -> None:
        if self.writer is not None:
            writer, self.writer = self.writer, None
            writer.close()

    def finish(self) -> dict[str, Any]:
        """Closes the last shard, names all shards, and returns a description of the split."""
        self.close()
        sizes = np.array(self.sizes, np.int32).reshape(-1, 4)
        np.save(self.folder / f"{self.name}-sizes.npy", sizes)
        shards = []
        for k, records in enumerate(self.shards):
            path = self.folder / f"{self.name}-{k:05d}-of-{len(self.shards):05d}.arrayrecord"
            (self.folder / f"{self.name}-{k:05d}").rename(path)
            described = {"file": path.name, "records": records, "bytes": path.stat().st_size}
            shards.append(described | {"sha256": sha256(path)})
        kinds = ("atoms", "short_bonds", "long_bonds", "angles")
        return {
            "crystals": len(sizes),
            "counts": {p: self.counts[p] for p in PROPERTIES},
            "elements": sorted(self.elements),
            "functionals": dict(sorted(self.functionals.items())),
            "largest": dict(zip(kinds, sizes.max(axis=0).tolist(), strict=True)),
            "sum": dict(zip(kinds, sizes.sum(axis=0, dtype=np.int64).tolist(), strict=True)),
            "shards": shards,
        }


def write_dataset(
    folder: str | Path,
    crystals: Iterable[LabelledCrystal],
    cutoffs: Cutoffs,
    *,
    fractions: tuple[float, float, float] = (0.9, 0.05, 0.05),
    seed: int = 0,
    processes: int | None = None,
    skip_bad: bool = False,
    sources: Sequence[str] = (),
) -> Dataset:
    """Writes `crystals` with their graphs as a data set, and opens it. One pass, in constant memory.

    `fractions` go to train, validation and test. The split of a crystal follows from the seed and its
    material, so that crystals of a material stay together. If there are only one or two materials, their
    frames are divided instead, with a warning. Graphs are made by `processes` (default: one for each core;
    scripts then need `if __name__ == "__main__":`). `skip_bad` leaves out, with a warning, crystals that
    cannot be used. `sources` are recorded. Isolated atoms do not count as crystals; the manifest has their
    energies.

    If anything fails, nothing is left in `folder`. Raises DatasetError if `folder` is not empty, if there is
    no crystal, or if the disk is full; LabelError if a crystal cannot be used.
    """
    folder = Path(folder)
    check_new(folder)
    if cutoffs.pairs:
        raise DatasetError(
            f"found a cutoff of pairs of {cutoffs.pairs:.4g} Å, that of a potential with dispersion; needed "
            "those of the network alone, which is what can be trained."
        )
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DatasetError(
            f"found fractions={tuple(fractions)}, needed three for train, validation and test that "
            "add up to 1."
        )
    with writing_folder(folder, last=MANIFEST) as partial, tempfile.TemporaryFile(dir=partial) as spool:
        conversion = _Conversion(partial, spool, fractions, seed, skip_bad)
        with _explained(conversion, folder, partial, crystals):
            with contextlib.closing(_made(track(crystals, "graphs"), cutoffs, processes)) as made:
                for each in made:
                    conversion.add(each)
            manifest = {
                **_origin(cutoffs),
                "seed": seed,
                "fractions": list(fractions),
                "sources": [str(s) for s in sources],
                **conversion.finish(),
            }
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return Dataset(folder)


def check_new(folder: Path) -> None:
    """Raises DatasetError unless `folder` is new or empty, and PlaceError if it cannot be written."""
    if folder.exists() and (not folder.is_dir() or not all(map(is_remain, folder.iterdir()))):
        raise DatasetError(
            f"{folder} exists, needed a new or empty folder. Give another name, or remove it first."
        )
    check_folder(folder)


@contextlib.contextmanager
def _explained(conversion: _Conversion, folder: Path, partial: Path, crystals: Any) -> Iterator[None]:
    """Turns the error of a full disk into a DatasetError that says how much space is needed."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # ArrayRecord reports errors of the operating system as RuntimeError.
        if not any(said in str(error) for said in ("No space left", "File too large", "quota")):
            raise
        written = sum(f.stat().st_size for f in partial.iterdir())
        so_far = conversion.number
        total = len(crystals) if hasattr(crystals, "__len__") else None
        needed = f"about {written * total // max(so_far, 1):,}" if total else f"more than {written:,}"
        raise DatasetError(
            f"{folder} could not be written ({error}): {so_far} crystals took {written:,} bytes, the whole "
            f"data set needs {needed}, and {shutil.disk_usage(partial).free + written:,} bytes are free "
            "without it. All was removed again. Free some space, or write to another disk."
        ) from None


class _Conversion:
    """Decides in which split each crystal goes, and counts crystals.

    Until a third material comes, crystals wait in the file `spool`: their frames may have to be divided.
    """

    def __init__(self, folder: Path, spool: IO[bytes], fractions: Sequence[float], seed: int, skip_bad: bool):
        self.fractions, self.seed, self.skip_bad = fractions, seed, skip_bad
        self.writers = {name: _SplitWriter(folder, name) for name in SPLITS}
        self.first_materials: set[str] = set()
        self.spool = spool
        self.number = 0
        self.alone: list[_Alone] = []
        self.bad: list[str] = []
        self.left_out = 0
        self.close: tuple[float, str] = (np.inf, "")

    def add(self, made: _Made | _Alone | _Bad) -> None:
        if isinstance(made, _Alone):
            self.alone.append(made)
            return
        if isinstance(made, _Bad):
            if not self.skip_bad:
                raise LabelError(f"{made.reason} skip_bad=True (--skip-bad) leaves out such crystals.")
            self.left_out += 1
            self.bad += [made.reason] * (len(self.bad) < REASONS)
            return
        self.number += 1
        self.close = min(self.close, (made.closest, made.name))
        if len(self.first_materials) < 3:
            self.first_materials.add(made.material)
            if len(self.first_materials) < 3:
                about = json.dumps(made._replace(record=len(made.record)))
                self.spool.write(about.encode() + b"\n" + made.record)
                return
            self._release(self._by_material)
        self.writers[self._by_material(made)].add(made)

    def finish(self) -> dict[str, Any]:
        if not self.number:
            raise DatasetError(
                f"found no crystal that can be used, and left out {self.left_out}; needed at least one."
                + in_lines(self.bad, self.left_out)
            )
        divided = len(self.first_materials) < 3
        if divided:
            frames = iter(self._by_frame(self.number))
            self._release(lambda made: SPLITS[next(frames)])
            if min(self.number, sum(f > 0 for f in self.fractions)) > 1:
                self._say(
                    f"found {len(self.first_materials)} material(s), too few to keep each in one split: all "
                    "splits have frames of the same material, so errors there say little about other "
                    "materials."
                )
        described = {name: w.finish() for name, w in self.writers.items() if w.sizes}
        for name, fraction in zip(SPLITS, self.fractions, strict=True):
            if fraction > 0 and name not in described:
                self._say(
                    f"none of {self.number} crystal(s) is in the split {name}. If there are more than a few "
                    "crystals, try another seed or a larger fraction."
                )
        if self.left_out:
            self._say(
                f"left out {self.left_out} crystals that cannot be used:{in_lines(self.bad, self.left_out)}"
            )
        if self.close[0] < CLOSEST:
            self._say(f"atoms of {self.close[1]} are {self.close[0]:.3f} Å apart, the least of all.")
        return {
            "divided_by": "frame" if divided else "material",
            "left_out": {"crystals": self.left_out, "reasons": self.bad},
            **({"isolated_atoms": [each._asdict() for each in self.alone]} if self.alone else {}),
            "splits": described,
        }

    def _release(self, where: Callable[[_Made], str]) -> None:
        self.spool.seek(0)
        while about := self.spool.readline():
            made = _Made(*json.loads(about))
            self.writers[where(made)].add(made._replace(record=self.spool.read(made.record)))
        self.spool.close()

    def _by_material(self, made: _Made) -> str:
        digest = hashlib.sha256(f"{self.seed}/{made.material}".encode()).digest()
        u = int.from_bytes(digest[:8], "big") / 2**64
        edges = np.cumsum(self.fractions)
        # The last split with a fraction takes the remainder of rounding.
        last = max(k for k, f in enumerate(self.fractions) if f > 0)
        return SPLITS[min(int(np.searchsorted(edges, u, side="right")), last)]

    def _by_frame(self, n: int) -> Int[np.ndarray, " n"]:
        """A random division of n frames; each requested split gets at least one, if they suffice."""
        asked = [k for k, f in enumerate(self.fractions) if f > 0]
        numbers = np.floor(np.array(self.fractions) * n).astype(int)
        if n >= len(asked):
            numbers[asked] = np.maximum(numbers[asked], 1)
        largest = int(np.argmax(self.fractions))
        numbers[largest] += n - numbers.sum()
        return np.random.default_rng([self.seed, n]).permutation(np.repeat(np.arange(3), numbers))

    @staticmethod
    def _say(text: str) -> None:
        warnings.warn(text, stacklevel=4)


def _origin(cutoffs: Cutoffs) -> dict[str, Any]:
    return {"format": FORMAT, "jaxmlip": own_version(), "cutoffs": cutoffs._asdict()}
