"""Data sets: labelled crystals with their graphs, in memory or as a folder of shards.

A folder holds dataset.json, which says what is in it, and for each split its shards, in the ArrayRecord
format with a checksum for every record, and <split>-sizes.npy. A record is one crystal in the form of
`encoding`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from ase import Atoms
from jaxtyping import Float, Int

from jaxmlip.crystals.graph import ELEMENTS, CrystalGraph, Cutoffs, atomic_number, from_atoms
from jaxmlip.data.batch import Example
from jaxmlip.data.encoding import Title, decode, encode, title
from jaxmlip.data.labels import PROPERTIES, LabelError, LabelledCrystal, Labels, counted
from jaxmlip.system.borders import in_lines, shallow
from jaxmlip.system.progress import track

if TYPE_CHECKING:
    from jaxmlip.potential import Potential

FORMAT = 1  # version of the folder's layout
MANIFEST = "dataset.json"
COINCIDE = 0.05  # Å; atoms closer than this are the same atom twice


class DatasetError(ValueError):
    """A data set cannot be used. The message says what was found, what was needed and what to do."""


class CorruptRecordError(DatasetError):
    """A record is damaged. The message names its file and number."""


@runtime_checkable
class Split(Protocol):
    """Part of a data set, such as that for training, with random access from any thread."""

    sizes: Int[np.ndarray, "n 4"]  # atoms, short bonds, long bonds, angles of each crystal
    cutoffs: Cutoffs
    counts: dict[str, int]  # number of crystals with a label of each of PROPERTIES
    elements: tuple[int, ...]  # species that occur: atomic numbers, but for several functionals
    functionals: dict[str, int]  # number of crystals of each; "": not stated

    @property
    def digest(self) -> str:
        """A hexadecimal digest that changes with any crystal or label, and with their order."""

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
        self.functionals = dict(Counter(e.functional for e in self.examples))

    @classmethod
    def from_crystals(
        cls, crystals: Iterable[LabelledCrystal], cutoffs: Cutoffs, skip_bad: bool = False
    ) -> MemorySplit:
        """The graphs of `crystals` with their labels.

        Raises LabelError, naming the crystal, if it or one of its labels cannot be used. With `skip_bad` such
        crystals are left out with a warning; raises DatasetError if none is left.
        """
        found, bad = [], []
        for crystal in track(crystals, "neighbours"):
            try:
                found.append(example(crystal, cutoffs))
            except ValueError as error:
                if not skip_bad:
                    raise
                bad.append(str(error))
        if bad and not found:
            raise DatasetError(f"none of {len(bad)} crystals can be used. {bad[0]}")
        if bad:
            warnings.warn(f"left out {len(bad)} crystals that cannot be used:{in_lines(bad)}", stacklevel=2)
        return cls(found, cutoffs)

    @cached_property
    def digest(self) -> str:
        found = hashlib.sha256()
        for each in self.examples:
            found.update(encode(each))
        return found.hexdigest()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, k: int) -> Example:
        return self.examples[k]


class Selection:
    """Some crystals of a split, as `Split`. They are read once, when their labels are first asked for."""

    def __init__(self, split: Split, index: Sequence[int] | np.ndarray):
        self.split, self.index, self.cutoffs = split, np.asarray(index, np.int64), split.cutoffs
        self.sizes = split.sizes[self.index]

    @cached_property
    def _held(self) -> tuple[Counter, set[int], Counter]:
        """The labels, elements and functionals that occur."""
        counts, elements, functionals = Counter(dict.fromkeys(PROPERTIES, 0)), set(), Counter()
        for k in range(len(self)):
            try:
                found = self[k]
            except CorruptRecordError:  # training reports it or leaves it out
                continue
            elements |= set(found.graph.species.tolist())
            functionals[found.functional] += 1
            counts.update(found.labels.known)
        return counts, elements, functionals

    @property
    def counts(self) -> dict[str, int]:
        return dict(self._held[0])

    @property
    def elements(self) -> tuple[int, ...]:
        return tuple(sorted(self._held[1]))

    @property
    def functionals(self) -> dict[str, int]:
        return dict(self._held[2])

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.split.digest.encode() + self.index.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, k: int) -> Example:
        return self.split[int(self.index[k])]


class Concatenated:
    """Several splits one after the other, as `Split`. Raises DatasetError if their cutoffs differ."""

    def __init__(self, splits: Sequence[Split]):
        self.splits, self.cutoffs = list(splits), splits[0].cutoffs
        if different := {s.cutoffs for s in splits} - {self.cutoffs}:
            raise DatasetError(
                f"found graphs made with {self.cutoffs} and with {different.pop()}, needed the same cutoffs "
                "in all datasets. Convert the data again."
            )
        self.sizes = np.concatenate([s.sizes for s in splits])
        self.counts = {p: sum(s.counts[p] for s in splits) for p in PROPERTIES}
        self.elements = tuple(sorted({z for s in splits for z in s.elements}))
        self.functionals = dict(sum((Counter(s.functionals) for s in splits), Counter()))
        self._ends = np.cumsum([len(s) for s in splits])

    @property
    def digest(self) -> str:
        return hashlib.sha256("".join(s.digest for s in self.splits).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, k: int) -> Example:
        if not 0 <= k < len(self):
            raise IndexError(f"found crystal {k}, needed 0 to {len(self) - 1}.")
        which = int(np.searchsorted(self._ends, k, side="right"))
        return self.splits[which][int(k - self._ends[which] + len(self.splits[which]))]


class ByFunctional:
    """A split for a potential of the functionals `names`: species encode the functional of a crystal.

    Raises DatasetError if a crystal is of another functional.
    """

    def __init__(self, split: Split, names: Sequence[str]):
        self.split, self.names = split, tuple(names)
        if set(split.functionals) - set(names):
            raise DatasetError(
                f"found crystals of {counted(split.functionals)}, needed those of {', '.join(names)}."
            )
        self.cutoffs, self.sizes, self.counts = split.cutoffs, split.sizes, split.counts
        self.functionals = split.functionals
        # An upper bound: a functional may lack some of these elements.
        shifts = [ELEMENTS * k for k, name in enumerate(names) if split.functionals.get(name)]
        self.elements = tuple(z + shift for shift in shifts for z in split.elements)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.split.digest, self.names]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, k: int) -> Example:
        graph, labels, functional = self.split[k]
        species = graph.species + np.int32(ELEMENTS * self.names.index(functional))
        return Example(graph.replace(species=species), labels, functional)


def example(crystal: LabelledCrystal, cutoffs: Cutoffs) -> Example:
    """The graph of a crystal with its labels.

    Raises LabelError, naming the crystal, as `LabelledCrystal.checked` does, and if two atoms coincide.
    """
    return with_graph(crystal.checked(), cutoffs)


def with_graph(crystal: LabelledCrystal, cutoffs: Cutoffs) -> Example:
    """The graph of a crystal that has been checked, with its labels; see `example`."""
    graph = from_atoms(crystal.atoms, cutoffs)
    length = lengths(graph)
    if len(length) and length.min() < COINCIDE:
        b = length.argmin()
        raise LabelError(
            f"{crystal.name}: atoms {graph.first[b]} and {graph.second[b]} are {length[b]:.3g} Å apart, "
            f"needed at least {COINCIDE} Å. The same atom is probably listed twice."
        )
    return Example(graph, crystal.labels, crystal.functional)


def spectral_labels(split: Split, properties: Sequence[str]) -> Int[np.ndarray, "n 2"]:
    """Whether each crystal of `split` has frequencies (0 or 1), and how many averages over modes it has.

    Of `properties` alone: what is not among them counts as absent. Damaged records have none.
    """
    found = np.zeros((len(split), 2), int)
    asked = [p for p in ("frequencies", "averages") if p in properties and split.counts[p]]
    for k in range(len(split)) if asked else ():
        with contextlib.suppress(CorruptRecordError):  # reported when its batch is made
            labels = split[k].labels
            if "frequencies" in asked and labels.frequencies is not None:
                found[k, 0] = 1
            if "averages" in asked and labels.averages is not None:
                found[k, 1] = len(labels.averages.what)
    return found


def lengths(graph: CrystalGraph) -> Float[np.ndarray, " bonds"]:
    """Lengths of the bonds (Å)."""
    r = graph.positions[graph.second] + graph.shifts @ graph.cell[0] - graph.positions[graph.first]
    return np.linalg.norm(r, axis=1)


def size(graph: CrystalGraph) -> tuple[int, int, int, int]:
    """Numbers of atoms, short bonds, long bonds and angles."""
    return len(graph.species), graph.short, len(graph.first) - graph.short, len(graph.angle_from)


def check(split: Split, potential: Potential) -> None:
    """Raises DatasetError unless `potential` can be trained on `split`: cutoffs, elements, functionals."""
    from ase.data import chemical_symbols

    if potential.cutoffs.pairs:
        raise DatasetError(
            f"{potential.name} has dispersion, and labels of DFT have none; needed the network alone, which "
            "dispersion can be added to afterwards."
        )
    if split.cutoffs != potential.cutoffs:
        raise DatasetError(
            f"found graphs made with {split.cutoffs}, but {potential.name} needs {potential.cutoffs}. "
            "Convert the data again for this model."
        )
    told_apart = split.names if isinstance(split, ByFunctional) else ()
    if told_apart != potential.functionals:
        raise DatasetError(
            f"found data for a potential of {', '.join(told_apart) or 'one functional'}, but "
            f"{potential.name} is of {', '.join(potential.functionals) or 'one'}; needed the same. To train "
            "on several, name them in model.functionals; `jaxmlip export --functional` makes a potential of "
            "one."
        )
    unknown = {chemical_symbols[atomic_number(z)]: 1 for z in split.elements if z not in potential.elements}
    if unknown:
        raise DatasetError(
            f"found the elements {', '.join(unknown)}, but {potential.name} knows {len(potential.elements)} "
            "elements without them. Leave out these crystals, or take another model."
        )


class ShardSplit:
    """A split on disk, as `Split`. Threads may read it at the same time."""

    def __init__(self, folder: Path, name: str, described: dict[str, Any], cutoffs: Cutoffs):
        self.folder, self.cutoffs = folder, cutoffs
        # Older data sets do not count properties that came later.
        self.counts = {p: int(described["counts"].get(p, 0)) for p in PROPERTIES}
        self.elements = tuple(int(z) for z in described["elements"])
        # Older data sets do not have this entry.
        stated = described.get("functionals", {"": described["crystals"]})
        self.functionals = {str(name): int(count) for name, count in stated.items()}
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
                    f"{shard['bytes']:,} bytes. Copy the original file again, or convert the data again."
                )
        path = folder / f"{name}-sizes.npy"
        try:
            self.sizes = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DatasetError(
                f"{path} cannot be read ({error}). Copy the original file again, or convert the data again."
            ) from None
        if self.sizes.shape != (self._ends[-1], 4) or not np.issubdtype(self.sizes.dtype, np.integer):
            raise DatasetError(
                f"{path} holds {self.sizes.dtype} of shape {self.sizes.shape}, needed integers of shape "
                f"{(int(self._ends[-1]), 4)}. Copy the original file again, or convert the data again."
            )

    @property
    def digest(self) -> str:
        """A digest of the shards as they were written."""
        return hashlib.sha256("".join(s["sha256"] for s in self.shards).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, k: int) -> Example:
        """Crystal k. Raises CorruptRecordError, naming shard and record, if it is damaged."""
        where, record = self._record(k)
        try:
            found = decode(record, self.cutoffs)
        except ValueError as error:
            raise _corrupt(where, f"holds {error}") from None
        if size(found.graph) != tuple(self.sizes[k]):
            raise _corrupt(where, "is not the crystal that was written there")
        return found

    def title(self, k: int) -> Title:
        """The title of crystal k."""
        where, record = self._record(k)
        try:
            return title(record)
        except ValueError as error:
            raise _corrupt(where, f"has no name ({error})") from None

    def crystal(self, k: int) -> LabelledCrystal:
        """Crystal k as a reader gave it, but with forces, moments and Hessians rounded to float32."""
        graph, labels, functional = self[k]
        name, material, _ = self.title(k)
        atoms = Atoms(graph.species, graph.positions, cell=graph.cell[0], pbc=graph.periodic[0])
        return LabelledCrystal(atoms, labels, material, name, functional)

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
        f"record {where[1]} of {where[0]} {what}. Copy the original file again, or convert the data again; "
        "skip_corrupt=True leaves such crystals out."
    )


class Dataset:
    """A folder that `write_dataset` made: `manifest` describes it, `splits` has its parts by name.

    Raises DatasetError if a file is missing, cut short or of another layout.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise DatasetError(
                f"{self.folder} has no {MANIFEST}; needed a folder that `jaxmlip data convert` wrote."
            )
        try:
            with shallow():
                self.manifest = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path} is not JSON ({error}); convert the data again.") from None
        found = self.manifest.get("format") if isinstance(self.manifest, dict) else None
        if found != FORMAT:
            raise DatasetError(
                f"{path} has format {found!r}, but this version of jaxmlip reads format {FORMAT}. Convert "
                "the data again with this version."
            )
        try:
            cutoffs = self.manifest["cutoffs"]
            self.cutoffs = Cutoffs(float(cutoffs["bond"]), float(cutoffs["angle"]), bool(cutoffs["listed"]))
            described = dict(self.manifest["splits"])
            shards = [s for d in described.values() for s in d["shards"]]
            files = [s["file"] for s in shards]
            if not described or any(Path(f).name != f for f in [*files, *described]):
                raise ValueError("a split without shards, or a shard elsewhere")
            if not all(isinstance(s["sha256"], str) for s in shards):
                raise ValueError("a shard without its sum")
            self.splits: dict[str, ShardSplit] = {
                name: ShardSplit(self.folder, name, d, self.cutoffs) for name, d in described.items()
            }
        except DatasetError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DatasetError(
                f"{path} does not describe a data set ({error!r}); convert the data again."
            ) from None

    def crystals(self, every: int = 1) -> Iterator[LabelledCrystal]:
        """Every `every`-th crystal, one split after the other, as ShardSplit.crystal gives it."""
        for split in self.splits.values():
            yield from map(split.crystal, range(0, len(split), every))

    def isolated_atoms(self) -> list[LabelledCrystal]:
        """The isolated atoms among the crystals, with their energies, which serve as reference energies.

        Raises DatasetError if the manifest does not describe them.
        """
        try:
            return [
                LabelledCrystal(
                    Atoms(each["element"]),
                    Labels(energy=float(each["energy"])),
                    name=f"{self.folder} isolated {each['element']}",
                    functional=str(each["functional"]),
                    isolated=True,
                )
                for each in self.manifest.get("isolated_atoms", ())
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{self.folder / MANIFEST} does not describe its isolated atoms ({error!r}); convert the "
                "data again."
            ) from None

    def check(self, potential: Potential) -> None:
        """Raises DatasetError unless `potential` can be trained on each split."""
        for split in self.splits.values():
            check(split, potential)


def is_dataset(paths: Sequence[str]) -> bool:
    """True if these are folders that `write_dataset` made.

    Raises DatasetError for a mixture of such folders and files.
    """
    those = [path for path in paths if (Path(path) / MANIFEST).is_file()]
    if those and len(paths) > len(those):
        raise DatasetError(
            f"found the dataset {those[0]} among {len(paths)} paths, needed either datasets or files. "
            "Convert the files, too."
        )
    return bool(those)
