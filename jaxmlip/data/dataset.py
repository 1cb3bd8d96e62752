"""Data sets: labelled crystals with their graphs, in memory or as a folder of shards.

A folder holds dataset.json, which says what is in it, and for each split its shards, in the ArrayRecord
format with a checksum for every record, and <split>-sizes.npy. A record is one crystal in the safetensors
format: arrays and text, nothing that could be executed. Angles are not stored: they follow from the bonds,
and would take about as much space as everything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import warnings
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import safetensors.numpy
from jaxtyping import Int

from jaxmlip.data.batch import Example
from jaxmlip.data.labels import PROPERTIES, LabelError, LabelledCrystal, Labels
from jaxmlip.graph import CLOSEST, CrystalGraph, Cutoffs, angle_pairs, from_atoms
from jaxmlip.progress import track

if TYPE_CHECKING:
    from jaxmlip.potential import Potential

FORMAT = 1  # of the folder; another number is another layout
SPLITS = ("train", "validation", "test")
# One record to a group, so that fetching one reads no other.
WRITER = "group_size:1,zstd:3"
SHARD_BYTES = 256 << 20  # of records before compression
COINCIDE = 0.05  # Å; atoms closer than this are the same atom twice
CHUNK = 32  # crystals sent to a process at once
FEW = 4096  # crystals whose graphs take no longer than the start of processes does
REASONS = 100  # how many of the crystals that were left out the manifest names


class DatasetError(ValueError):
    """A data set that cannot be used: what was found, what was needed, what to do."""


class CorruptRecordError(DatasetError):
    """A record that is not what was written: its file and number."""


class Split(Protocol):
    """Part of a data set, such as that for training, with random access from any thread."""

    sizes: Int[np.ndarray, "n 4"]  # atoms, short bonds, long bonds, angles of each crystal
    cutoffs: Cutoffs
    counts: dict[str, int]  # how many crystals have each of PROPERTIES
    elements: tuple[int, ...]  # atomic numbers that occur

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> Example: ...


class MemorySplit:
    """A split whose crystals are kept in memory."""

    def __init__(self, examples: Iterable[Example], cutoffs: Cutoffs):
        self.examples = list(examples)
        self.cutoffs = cutoffs
        self.sizes = np.array([size(e.graph) for e in self.examples], np.int32).reshape(-1, 4)
        known = [e.labels.known for e in self.examples]
        self.counts = {p: sum(p in k for k in known) for p in PROPERTIES}
        self.elements = tuple(sorted({int(z) for e in self.examples for z in e.graph.species}))

    @classmethod
    def from_crystals(cls, crystals: Iterable[LabelledCrystal], cutoffs: Cutoffs) -> MemorySplit:
        """The graphs of `crystals` with their labels.

        Raises LabelError where a label or a crystal cannot be used, naming it.
        """
        return cls([example(crystal, cutoffs) for crystal in track(crystals, "neighbours")], cutoffs)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, k: int) -> Example:
        return self.examples[k]


def example(crystal: LabelledCrystal, cutoffs: Cutoffs) -> Example:
    """The graph of a crystal with its labels.

    Raises LabelError, naming the crystal, where `checked` does and where two atoms coincide.
    """
    return _example(crystal.checked(), cutoffs)


def _example(crystal: LabelledCrystal, cutoffs: Cutoffs) -> Example:
    graph = from_atoms(crystal.atoms, cutoffs)
    length = _lengths(graph)
    if len(length) and length.min() < COINCIDE:
        b = length.argmin()
        raise LabelError(
            f"{crystal.name}: atoms {graph.first[b]} and {graph.second[b]} are {length[b]:.3g} Å apart, "
            f"needed at least {COINCIDE} Å. The same atom is probably listed twice."
        )
    return Example(graph, crystal.labels)


def _lengths(graph: CrystalGraph) -> np.ndarray:
    r = graph.positions[graph.second] + graph.shifts @ graph.cell[0] - graph.positions[graph.first]
    return np.linalg.norm(r, axis=1)


def size(graph: CrystalGraph) -> tuple[int, int, int, int]:
    """How many atoms, short bonds, long bonds and angles."""
    return len(graph.species), graph.short, len(graph.first) - graph.short, len(graph.angle_from)


def check(split: Split, potential: Potential) -> None:
    """Raises DatasetError unless `potential` can be trained on `split`: its cutoffs, and its elements."""
    from ase.data import chemical_symbols

    if split.cutoffs != potential.cutoffs:
        raise DatasetError(
            f"the graphs of this data set were made with {split.cutoffs}, and {potential.name} needs "
            f"{potential.cutoffs}. Convert the data again for this model."
        )
    unknown = [chemical_symbols[z] for z in split.elements if z not in potential.elements]
    if unknown:
        raise DatasetError(
            f"the data set has {', '.join(unknown)}, and {potential.name} was made for "
            f"{len(potential.elements)} elements without them. Leave out those crystals, or take another "
            "model."
        )


# Records


def encode(example: Example, name: str = "", material: str = "") -> bytes:
    """One crystal as bytes: what belongs to it, in the smallest numbers that hold it.

    Positions, cell, energy and stress stay in float64; forces, magnetic moments and Hessians become float32,
    whose rounding is far below the noise of DFT.
    """
    g, labels = example
    tensors = {
        "positions": g.positions,
        "species": g.species.astype(np.uint8),
        "cell": g.cell[0],
        "first": _small(g.first),
        "second": _small(g.second),
        "shifts": _small(g.shifts.astype(np.int64)),
        "short": np.array(g.short, np.int32),
        "weight": np.array(labels.weight),
    }
    kept = {"energy": np.float64, "stress": np.float64}
    for p in labels.known:
        tensors[p] = np.asarray(getattr(labels, p), kept.get(p, np.float32))
    if labels.hessian is not None:
        tensors["columns"] = labels.columns.astype(np.int32)
    tensors = {key: np.asarray(x, order="C") for key, x in tensors.items()}
    # One entry: the order of several would be random, and so would the bytes.
    return safetensors.numpy.save(tensors, {"crystal": json.dumps([name, material])})


def decode(record: bytes, cutoffs: Cutoffs) -> Example:
    """The crystal that `encode` was given. Raises ValueError where the bytes are none."""
    try:
        t = safetensors.numpy.load(record)
        atoms = len(t["species"])
        first, second, shifts = (t[key].astype(np.int32) for key in ("first", "second", "shifts"))
        short, bonds = int(t["short"]), len(first)
        shapes = {"positions": (atoms, 3), "cell": (3, 3), "second": (bonds,), "shifts": (bonds, 3)}
        wrong = [key for key, shape in shapes.items() if t[key].shape != shape]
        wrong += [key for key, x in t.items() if x.dtype.kind not in "iuf"]
        ends = np.concatenate([first, second])
        if wrong or not 0 <= short <= bonds or (bonds and not 0 <= ends.min() <= ends.max() < atoms):
            raise ValueError(f"arrays that do not fit each other: {', '.join(wrong) or 'numbers of bonds'}")
        if not (np.isfinite(t["positions"]).all() and np.isfinite(t["cell"]).all()):
            raise ValueError("positions or a cell that are not finite")
        if atoms and not 1 <= t["species"].min() <= t["species"].max() <= 118:
            raise ValueError("atomic numbers that no element has")
        starts = ends[np.r_[:short, bonds : bonds + short]] if cutoffs.listed else ends[:0]
        angle_from, angle_to = angle_pairs(starts, atoms)
        graph = CrystalGraph(
            positions=t["positions"].astype(np.float64),
            species=t["species"].astype(np.int32),
            cell=t["cell"].astype(np.float64)[None],
            crystal=np.zeros(atoms, np.int32),
            first=first,
            second=second,
            shifts=shifts.astype(float),
            angle_from=angle_from,
            angle_to=angle_to,
            short=short,
        )
        known = {p: t[p] for p in (*PROPERTIES, "columns") if p in t}
        return Example(graph, Labels(**known, weight=float(t["weight"])).check(atoms, "labels"))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"other arrays than a crystal has ({error!r})") from None
    except safetensors.SafetensorError as error:
        raise ValueError(f"not safetensors ({error})") from None


def _small(x: np.ndarray) -> np.ndarray:
    """x in the smallest signed integers that hold it."""
    most = int(np.abs(x).max(initial=0))
    return x.astype(next(t for t in (np.int8, np.int16, np.int32) if most <= np.iinfo(t).max))


# Writing


class _Made(NamedTuple):
    """A crystal on its way from the process that made its graph to the shard."""

    record: bytes
    size: tuple[int, int, int, int]
    known: tuple[str, ...]
    elements: tuple[int, ...]
    material: str
    name: str
    closest: float  # Å


class _Bad(NamedTuple):
    reason: str


def _make(crystals: Sequence[LabelledCrystal], cutoffs: Cutoffs) -> list[_Made | _Bad]:
    """Graphs and records; runs in other processes too, and touches no device."""
    found: list[_Made | _Bad] = []
    for crystal in crystals:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of close atoms: said once, at the end
                crystal = crystal.checked()
                made = _example(crystal, cutoffs)
        except ValueError as error:
            found.append(_Bad(str(error)))
            continue
        elements = tuple(int(z) for z in np.unique(made.graph.species))
        closest = float(_lengths(made.graph).min(initial=np.inf))
        record = encode(made, crystal.name, crystal.material)
        found.append(
            _Made(
                record,
                size(made.graph),
                made.labels.known,
                elements,
                crystal.material,
                crystal.name,
                closest,
            )
        )
    return found


def _made(
    crystals: Iterable[LabelledCrystal], cutoffs: Cutoffs, processes: int | None
) -> Iterator[_Made | _Bad]:
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
    shards: list[int] = field(default_factory=list)  # the number of records of each
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

    def close(self) -> None:
        if self.writer is not None:
            writer, self.writer = self.writer, None
            writer.close()

    def finish(self) -> dict[str, Any]:
        """Closes the last shard, gives all their names, and describes the split."""
        self.close()
        sizes = np.array(self.sizes, np.int32).reshape(-1, 4)
        np.save(self.folder / f"{self.name}-sizes.npy", sizes)
        shards = []
        for k, records in enumerate(self.shards):
            path = self.folder / f"{self.name}-{k:05d}-of-{len(self.shards):05d}.arrayrecord"
            (self.folder / f"{self.name}-{k:05d}").rename(path)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            shards.append(
                {"file": path.name, "records": records, "bytes": path.stat().st_size, "sha256": digest}
            )
        kinds = ("atoms", "short_bonds", "long_bonds", "angles")
        return {
            "crystals": len(sizes),
            "counts": {p: self.counts[p] for p in PROPERTIES},
            "elements": sorted(self.elements),
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
    """Writes `crystals` with their graphs as a data set, and opens it. One pass, in flat memory.

    `fractions` go to train, validation and test. The side that a crystal falls on follows from the seed and
    its material, so that crystals of a material stay together; where there are only one or two materials
    their frames are divided instead, with a warning. Graphs are made by `processes` (default: one for each
    core; scripts then need `if __name__ == "__main__":`). `skip_bad` leaves out, with a warning, crystals
    that cannot be used. `sources` are recorded.

    Nothing is left in `folder` unless all was written. Raises DatasetError where `folder` is not empty, where
    no crystal came, and where the disk is full; LabelError where a crystal cannot be used.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(
            f"{folder} exists, needed a new or empty folder. Give another name or remove it first."
        )
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DatasetError(
            f"found fractions={tuple(fractions)}, needed three for train, validation and test that "
            "add up to 1."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    conversion = _Conversion(partial, fractions, seed, skip_bad)
    try:
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
        (partial / "dataset.json").write_text(json.dumps(manifest, indent=1) + "\n")
        partial.chmod(0o755)
        partial.rename(folder)
    except (OSError, RuntimeError) as error:
        # ArrayRecord reports what the operating system says as RuntimeError.
        if not any(said in str(error) for said in ("No space left", "File too large", "quota")):
            raise
        written = sum(f.stat().st_size for f in partial.iterdir())
        so_far = conversion.number
        total = len(crystals) if hasattr(crystals, "__len__") else None
        needed = f"about {written * total // max(so_far, 1):,}" if total else f"more than {written:,}"
        raise DatasetError(
            f"{folder} could not be written ({error}): {so_far} crystals took {written:,} bytes, the whole "
            f"data set needs {needed}, and {shutil.disk_usage(partial).free + written:,} bytes are free "
            "without it. Nothing was left behind; make room or write elsewhere."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Dataset(folder)


class _Conversion:
    """Decides where each crystal goes, and counts.

    As long as only one or two materials were seen, crystals wait in a file: they may have to be divided.
    """

    def __init__(self, folder: Path, fractions: Sequence[float], seed: int, skip_bad: bool):
        self.fractions, self.seed, self.skip_bad = fractions, seed, skip_bad
        self.writers = {name: _SplitWriter(folder, name) for name in SPLITS}
        self.first_materials: set[str] = set()
        self.spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.number = 0
        self.bad: list[str] = []
        self.left_out = 0
        self.close: tuple[float, str] = (np.inf, "")

    def add(self, made: _Made | _Bad) -> None:
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
                f"found no crystal that can be used and {self.left_out} that cannot, needed at least one."
                + "".join(f"\n  {reason}" for reason in self.bad[:10])
            )
        divided = len(self.first_materials) < 3
        if divided:
            frames = iter(self._by_frame(self.number))
            self._release(lambda made: SPLITS[next(frames)])
            if min(self.number, sum(f > 0 for f in self.fractions)) > 1:
                self._say(
                    f"found {len(self.first_materials)} material(s), too few to keep each on one side: "
                    "frames of one material are in all splits, so errors there say little about "
                    "other materials."
                )
        described = {name: w.finish() for name, w in self.writers.items() if w.sizes}
        for name, fraction in zip(SPLITS, self.fractions, strict=True):
            if fraction > 0 and name not in described:
                self._say(
                    f"of {self.number} crystal(s) none fell to {name}. Where there are more than a few, "
                    "another seed or a larger fraction helps."
                )
        if self.left_out:
            self._say(
                f"left out {self.left_out} crystals that cannot be used:\n  "
                + "\n  ".join(self.bad[:10])
                + (f"\n  and {self.left_out - 10} more" if self.left_out > 10 else "")
            )
        if self.close[0] < CLOSEST:
            self._say(f"atoms of {self.close[1]} are {self.close[0]:.3f} Å apart, the least of all.")
        return {
            "divided_by": "frame" if divided else "material",
            "left_out": {"crystals": self.left_out, "reasons": self.bad},
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
        # The last with a fraction takes what rounding leaves.
        last = max(k for k, f in enumerate(self.fractions) if f > 0)
        return SPLITS[min(int(np.searchsorted(edges, u, side="right")), last)]

    def _by_frame(self, n: int) -> Int[np.ndarray, " n"]:
        """A random division of n frames; each split that is asked for gets one at least, if they suffice."""
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
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("jaxmlip")
    except PackageNotFoundError:
        own = "not installed"
    return {"format": FORMAT, "jaxmlip": own, "cutoffs": cutoffs._asdict()}


# Reading


class ShardSplit:
    """A split on disk, as `Split`. Threads may read it at the same time."""

    def __init__(self, folder: Path, name: str, described: dict[str, Any], cutoffs: Cutoffs):
        self.folder, self.cutoffs = folder, cutoffs
        self.counts = {p: int(described["counts"][p]) for p in PROPERTIES}
        self.elements = tuple(int(z) for z in described["elements"])
        self.shards = described["shards"]
        self._ends = np.cumsum([int(s["records"]) for s in self.shards])
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()
        for shard in self.shards:
            path = self._path(shard)
            found = path.stat().st_size if path.is_file() else None
            if found != shard["bytes"]:
                raise DatasetError(
                    f"{path} {'is missing' if found is None else f'has {found:,} bytes'}, needed "
                    f"{shard['bytes']:,} bytes. Copy it again from where the data set was made, or convert "
                    "again."
                )
        path = folder / f"{name}-sizes.npy"
        try:
            self.sizes = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DatasetError(f"{path} cannot be read ({error}). Copy it again, or convert again.") from None
        if self.sizes.shape != (self._ends[-1], 4) or not np.issubdtype(self.sizes.dtype, np.integer):
            raise DatasetError(
                f"{path} holds {self.sizes.dtype} of shape {self.sizes.shape}, needed integers of shape "
                f"{(int(self._ends[-1]), 4)}. Copy it again, or convert again."
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, k: int) -> Example:
        """Crystal k. Raises CorruptRecordError, naming shard and record, where it is damaged."""
        where, record = self._record(k)
        try:
            found = decode(record, self.cutoffs)
        except ValueError as error:
            raise _corrupt(where, f"holds {error}") from None
        if size(found.graph) != tuple(self.sizes[k]):
            raise _corrupt(where, "is not the crystal that was written there")
        return found

    def name(self, k: int) -> tuple[str, str]:
        """The name and the material of crystal k."""
        where, record = self._record(k)
        try:
            header = json.loads(record[8 : 8 + int.from_bytes(record[:8], "little")])["__metadata__"]
            name, material = json.loads(header["crystal"])
            return str(name), str(material)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _corrupt(where, f"has no name ({error})") from None

    def _path(self, shard: dict[str, Any]) -> Path:
        return self.folder / shard["file"]

    def _record(self, k: int) -> tuple[tuple[Path, int], bytes]:
        if not 0 <= k < len(self):
            raise IndexError(f"found crystal {k}, needed 0 to {len(self) - 1}.")
        shard = int(np.searchsorted(self._ends, k, side="right"))
        own = int(k - self._ends[shard] + self.shards[shard]["records"])
        where = self._path(self.shards[shard]), own
        try:
            return where, self._reader(shard).read([own])[0]
        except (RuntimeError, IndexError, ValueError) as error:
            raise _corrupt(where, f"cannot be read ({str(error).splitlines()[0]})") from None

    def _reader(self, shard: int):
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if shard not in self._readers:
                # No reading ahead: records are asked for in random order.
                path = str(self._path(self.shards[shard]))
                self._readers[shard] = ArrayRecordReader(path, "readahead_buffer_size:0")
            return self._readers[shard]


def _corrupt(where: tuple[Path, int], what: str) -> CorruptRecordError:
    return CorruptRecordError(
        f"record {where[1]} of {where[0]} {what}. Copy the file again from where it was made or convert "
        "again; skip_corrupt=True leaves such crystals out."
    )


class Dataset:
    """A folder that `write_dataset` made: `manifest` says what is in it, `splits` are its parts by name.

    Raises DatasetError where a file is missing, cut short or of another layout.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / "dataset.json"
        if not path.is_file():
            raise DatasetError(
                f"{self.folder} has no dataset.json; needed a folder that `jaxmlip data convert` wrote."
            )
        try:
            self.manifest = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path} is not JSON ({error}); convert the data again.") from None
        found = self.manifest.get("format") if isinstance(self.manifest, dict) else None
        if found != FORMAT:
            raise DatasetError(
                f"{path} has format {found!r}, this version of jaxmlip reads format {FORMAT}. Convert the "
                "data again with this version."
            )
        try:
            cutoffs = self.manifest["cutoffs"]
            self.cutoffs = Cutoffs(float(cutoffs["bond"]), float(cutoffs["angle"]), bool(cutoffs["listed"]))
            described = dict(self.manifest["splits"])
            files = [s["file"] for d in described.values() for s in d["shards"]]
            if not described or any(Path(f).name != f for f in [*files, *described]):
                raise ValueError("a split without shards, or a shard elsewhere")
            self.splits: dict[str, Split] = {
                name: ShardSplit(self.folder, name, d, self.cutoffs) for name, d in described.items()
            }
        except DatasetError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DatasetError(
                f"{path} does not describe a data set ({error!r}); convert the data again."
            ) from None

    def check(self, potential: Potential) -> None:
        """Raises DatasetError unless `potential` can be trained on each split."""
        for split in self.splits.values():
            check(split, potential)
