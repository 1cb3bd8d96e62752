"""Hessians larger than memory, or slow to compute: written block by block, and resumed when interrupted.

Columns are written block by block into a NumPy file, which is called NAME.npy.part until the last column is
written. Beside it, NAME.npy.json records the crystal and potential, and the progress. A block counts as done
once it is on the disk, so a process that is killed loses one block at most. Of a sparse Hessian the sums of
columns are written in this way, into NAME.npz.part; in the end they are told apart into NAME.npz.

If the devices of a potential belong to several processes, each writes a share of the columns into the same
file, and all but the first record what they have written in files of their own, NAME.npy.json.K. When the
work goes on, that is added to NAME.npy.json, and what is left is shared out anew among the processes that
there are then.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import jax
import numpy as np
import scipy.sparse

from jaxmlip.crystals import batching
from jaxmlip.crystals.atoms import as_atoms, check_crystal
from jaxmlip.derivatives.hessian import checked_columns
from jaxmlip.derivatives.response import Differentiable, Response
from jaxmlip.derivatives.sparse import Colouring, colouring, prove
from jaxmlip.system.files import write_whole, writing
from jaxmlip.system.parallel import Crew

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


class Known(Differentiable, Protocol):
    """A potential with an identity."""

    name: str
    model: Any
    params: Any

    def on_own_devices(self) -> Known: ...


FORMAT = 1  # of the JSON file
# These must be equal for two runs to write into one file.
IDENTITY = {
    "structure": "cell, elements or positions",
    "parameters": "the network or its parameters",
    "dtype": "the precision",
    "columns": "the columns",
    "along": "the displacement along which the slope is taken",
    "sums": "the way in which this version of jaxmlip adds columns",
}


def stream_hessian(
    potential: Known,
    crystal: Atoms | Structure,
    path: str | Path,
    columns: Sequence[int] | None = None,
    block_size: int | None = None,
    memory_limit: float | None = None,
    along: np.ndarray | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Columns of the Hessian (default: all), as from `hessian_columns`, in the file `path` (.npy).

    With `along`, a displacement (N, 3), they are those of the Hessian of the slope along it, as `Response`
    has it: third derivatives of the energy.

    Returns the array (len(columns), 3N) in eV/Å² as np.load(path, mmap_mode="r") gives it: on disk, not in
    memory. Memory holds one block of columns beside what `hessian_columns` needs. After each block `progress`
    is called with the number of columns that are there. An interrupted run resumes when it is called again
    with the same crystal, potential and columns, with the block size that it began with; the numbers are the
    same bit by bit on the same machine. A complete file is returned as it is.

    If the devices of the potential belong to several processes, all of them make the same call, with a path
    on a file system that they share, and each writes a part of the columns. When the work goes on, the
    processes may be more or fewer.

    Raises ValueError if `path` holds something else (another crystal, potential, precision or choice of
    columns), RuntimeError if another run is writing it or another process of this one has failed, OSError if
    the disk is full (before anything is computed, if the file system can tell), and MemoryLimitError as
    `hessian_columns` does. Finished columns stay valid.
    """
    atoms = _checked(crystal)
    columns = np.arange(3 * len(atoms)) if columns is None else checked_columns(atoms, columns)
    path = _named(path, ".npy", "NumPy's format")
    work = _Work(path, atoms, columns, along=along, progress=progress)
    _stream(potential, work, block_size, memory_limit, lambda response: os.replace(work.part, work.path))
    return np.load(work.path, mmap_mode="r")


def stream_sparse_hessian(
    potential: Known,
    crystal: Atoms | Structure,
    path: str | Path,
    coordinates: Sequence[int] | Colouring | None = None,
    block_size: int | None = None,
    memory_limit: float | None = None,
) -> scipy.sparse.csr_array:
    """The Hessian as of `sparse_hessian`, in the file `path` (.npz), which scipy.sparse.load_npz reads.

    Returns what that reads. Sums of columns are written as they are computed, and all else is as
    `stream_hessian` has it. The Hessian is made of them in the end, some atoms at a time; the disk then holds
    both for a moment. In place of coordinates their `colouring` can be given, if it is known. Raises
    ValueError as `sparse_hessian` does, too.
    """
    atoms = _checked(crystal)
    given = isinstance(coordinates, Colouring)
    found = coordinates if given else colouring(potential, atoms, coordinates)
    if len(found.colours) != len(atoms):
        raise ValueError(f"found colours of {len(found.colours)} atoms, needed those of {len(atoms)}.")
    work = _Work(_named(path, ".npz", "that of scipy.sparse"), atoms, found.coordinates, found)
    _stream(potential, work, block_size, memory_limit, lambda response: _tell_apart(work, response))
    return scipy.sparse.load_npz(work.path)


def columns_done(path: str | Path) -> int:
    """The number of columns, or of sums of columns, that have been written for `path` so far."""
    record = _sidecar(Path(path))
    if not record.is_file():
        return 0
    spans = _spans_of(json.loads(record.read_text())) + _written_by_others(record)
    return int(_mask(spans, max(last for _, last in spans)).sum())


@dataclass(frozen=True)
class _Work:
    """What is written, and where."""

    path: Path
    atoms: Atoms
    columns: np.ndarray  # those that are wanted
    colouring: Colouring | None = None  # of a sparse Hessian
    along: np.ndarray | None = None  # if the slope along it takes the place of the energy
    progress: Callable[[int], None] | None = None

    @property
    def numbers(self) -> np.ndarray:
        """The numbers of the columns, or of the sums of columns, that are computed and written."""
        return self.columns if self.colouring is None else self.colouring.sums

    @property
    def groups(self) -> np.ndarray | None:
        """The sum that each coordinate belongs to; None if no columns are added."""
        return None if self.colouring is None else self.colouring.groups

    @property
    def part(self) -> Path:
        """The file while it is not complete."""
        return self.path.with_name(self.path.name + ".part")

    @property
    def record(self) -> Path:
        """The JSON file beside it."""
        return _sidecar(self.path)

    def identity(self, potential: Known) -> dict[str, Any]:
        """What must be the same for the work to go on."""
        atoms = self.atoms
        found = {
            "structure": _sha256(atoms.cell.array, atoms.pbc, atoms.numbers, atoms.positions),
            "parameters": _sha256(
                potential.model.identity(potential.params).encode(), *jax.tree.leaves(potential.params)
            ),
            "dtype": potential.dtype,
            "columns": self.columns.tolist(),
        }
        if self.along is not None:
            found["along"] = _sha256(np.asarray(self.along, float))
        return found if self.groups is None else found | {"sums": _sha256(self.groups.astype(np.int64))}


def _stream(
    potential: Known,
    work: _Work,
    block_size: int | None,
    memory_limit: float | None,
    finish: Callable[[Response], None],
) -> None:
    """Computes and writes what is left of the work, unless the file is complete."""
    crew, potential = Crew.of(potential.mesh), potential.on_own_devices()
    state = None
    with crew.together():
        if crew.first:
            state = _begun(potential, work, block_size, memory_limit)
    state = crew.from_first(state)
    if state is None:
        return
    with contextlib.ExitStack() as stack:
        with crew.together():
            file = stack.enter_context(_opened(work.part, crew))
            if crew.first and not state["done"]:
                _reserve(file, work, np.dtype(potential.dtype))
        with crew.together():
            response = Response(
                potential,
                work.atoms,
                block_size=state["block_size"],
                memory_limit=memory_limit,
                shape=batching.BatchShape(*state["room"]),
                along=work.along,
            )
            _compute(response, work, file, state, crew)
        with crew.together():
            if crew.first:
                finish(response)
                _complete(work, state)


def _begun(
    potential: Known, work: _Work, block_size: int | None, memory_limit: float | None
) -> dict[str, Any] | None:
    """The state of the work that is to be done; None if the file is complete."""
    state = _earlier(work, potential)
    if work.path.exists():
        _complete(work, state)
        return None
    if state["done"] == 0:
        graph = potential.graph(work.atoms)
        shape_for = batching.hessian_shape_for if memory_limit is None else batching.exact_shape
        shape = shape_for([graph])
        state |= {
            "format": FORMAT,
            "formula": work.atoms.get_chemical_formula(),
            "potential": potential.name,
            "versions": {name: version(name) for name in ("jax", "numpy")},
            # These determine the order of sums, and so the last bits.
            "room": list(shape),
            "block_size": block_size,
        }
    others = _records_of_others(work.record)
    if state["done"] == 0 or others:
        _write(work.record, state)
    for other in others:  # now it is all in the one record
        other.unlink()
    return state


def _compute(response: Response, work: _Work, file: BinaryIO, state: dict[str, Any], crew: Crew) -> None:
    """Computes and writes this process's part of the columns that are left."""
    array = np.load(work.part, mmap_mode="r")
    begin, row, total = array.offset, array.strides[0], len(work.numbers)
    del array
    done = _mask(_spans_of(state), total)
    mine, own = np.array_split(np.flatnonzero(~done), crew.count)[crew.index], np.zeros(total, bool)
    for start, rows in response.columns(work.numbers[mine], work.groups, total=total):
        places = mine[start : start + len(rows)]
        own[places] = True
        with _explained(work.part):
            for first, last in _spans(own[places[0] : places[-1] + 1]):
                at = np.searchsorted(places, places[0] + first)
                file.seek(begin + (places[0] + first) * row)
                file.write(np.ascontiguousarray(rows[at : at + last - first]).data)
            file.flush()
            os.fsync(file.fileno())
        if crew.first:
            state.update(block_size=response.block_of(total), **_told(done | own))
            _write(work.record, state)
            if work.progress is not None:
                work.progress(state["done"])
        else:
            _write(_record_of(work.record, crew.index), _spans(own))


def _complete(work: _Work, state: dict[str, Any]) -> None:
    """Records that everything is written, and removes what was needed until then."""
    if state["done"] < len(work.numbers):
        _write(work.record, state | {"done": len(work.numbers), "spans": None})
    for left in (*_records_of_others(work.record), work.part):
        left.unlink(missing_ok=True)


def _tell_apart(work: _Work, response: Response) -> None:
    """Writes the sparse Hessian, in the format of scipy.sparse.save_npz, without holding it in memory."""
    sums, found = np.load(work.part, mmap_mode="r"), work.colouring

    def rows() -> Iterator[scipy.sparse.csr_array]:
        return found.told_apart(sums)

    prove(found, response, rows)
    counts = np.concatenate([np.diff(part.indptr) for part in rows()])
    ends = np.concatenate([[0], np.cumsum(counts)])
    index = np.int32 if max(ends[-1], 3 * found.atoms) < 2**31 else np.int64
    shape = (len(found.coordinates),) * 2
    small = {"format": b"csr", "shape": shape, "_is_array": True, "indptr": ends.astype(index)}
    with writing(work.path) as draft, open(draft, "wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, value in small.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=False)
            for name, dtype in (("data", sums.dtype), ("indices", np.dtype(index))):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, _header((int(ends[-1]),), dtype))
                    for part in rows():
                        member.write(np.ascontiguousarray(getattr(part, name), dtype).data)
        file.flush()
        os.fsync(file.fileno())


def _checked(crystal: Atoms | Structure) -> Atoms:
    atoms = as_atoms(crystal)
    check_crystal(atoms)
    return atoms


def _named(path: str | Path, suffix: str, what: str) -> Path:
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"found the file name {path.name}, needed one that ends in {suffix}, {what}.")
    return path


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _record_of(record: Path, process: int) -> Path:
    """The record of what a process other than the first has written since it began."""
    return record.with_name(f"{record.name}.{process}")


def _records_of_others(record: Path) -> list[Path]:
    found = record.parent.glob(f"{glob.escape(record.name)}.*")
    return sorted(path for path in found if path.suffix[1:].isdecimal())


def _written_by_others(record: Path) -> list[list[int]]:
    return [span for path in _records_of_others(record) for span in json.loads(path.read_text())]


def _spans_of(state: dict[str, Any]) -> list[list[int]]:
    """The columns that are done, as pairs of a first place and the one after the last."""
    return state.get("spans") or [[0, state["done"]]]


def _mask(spans: Sequence[Sequence[int]], size: int) -> np.ndarray:
    """True at the places of `spans`, of so many."""
    mask = np.zeros(size, bool)
    for first, last in spans:
        mask[first:last] = True
    return mask


def _spans(mask: np.ndarray) -> list[list[int]]:
    """The spans in which `mask` is True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return edges.reshape(-1, 2).tolist()


def _told(done: np.ndarray) -> dict[str, Any]:
    """What a record says of the columns that are done: how many, and which if they are not the first."""
    count = int(done.sum())
    return {"done": count, "spans": None if done[:count].all() else _spans(done)}


def _sha256(*parts: np.ndarray | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _earlier(work: _Work, potential: Known) -> dict[str, Any]:
    """The state of an earlier run of this work, or that of a new one."""
    path, part, record, identity = work.path, work.part, work.record, work.identity(potential)
    if not record.is_file():
        for found in (path, part):
            if found.exists():
                raise ValueError(
                    f"{found} exists without {record.name}, so nobody can tell whose Hessian it is; needed a "
                    "new name, or remove it."
                )
        for other in _records_of_others(record):  # of a run whose own record was removed
            other.unlink()
        return identity | {"done": 0}
    try:
        state = json.loads(record.read_text())
        differing = [IDENTITY[key] for key in identity if state[key] != identity[key]]
        if len(differing) > 1 and IDENTITY["sums"] in differing:  # it follows from the others
            differing.remove(IDENTITY["sums"])
        told = f"{state['formula']} with {state['potential']}, {state['dtype']}"
        known = state["format"] == FORMAT and {"room", "block_size", "done"} <= state.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise ValueError(
            f"{record} is not what this version of jaxmlip writes beside {path.name}; needed another "
            "name for the Hessian, or remove both."
        )
    if differing:
        raise ValueError(
            f"{record.name} says that {path.name} is the Hessian of {told}; what is asked for with "
            f"{potential.name} differs in {', '.join(differing)}. Choose another file name, or remove "
            f"{record} and what it describes."
        )
    state |= _told(_mask(_spans_of(state) + _written_by_others(record), len(work.numbers)))
    if state["done"] and not path.exists() and not part.exists():
        raise ValueError(
            f"{record} describes {path.name}, which is missing, and so is {part.name}; remove {record.name} "
            "to begin anew."
        )
    return state


@contextlib.contextmanager
def _opened(part: Path, crew: Crew) -> Iterator[BinaryIO]:
    """The file, open for writing by this process, or these, alone. The lock ends with the first of them."""
    # Hosts write to the same file at once. What is written straight to the disk is never more than is meant:
    # otherwise NFS may write a whole page, in which a part is another host's.
    straight = os.O_DSYNC if crew.count > 1 else 0
    with _explained(part):
        handle = os.open(part, os.O_RDWR | os.O_CREAT | straight, 0o666)
    with os.fdopen(handle, "r+b") as file:
        try:
            import fcntl

            if crew.first:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"another process is writing {part}; wait until it is done, or choose another file name."
            ) from None
        except (ImportError, OSError):  # a system, or a file system, without locks
            pass
        yield file


def _header(shape: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
    return {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}


def _reserve(file: BinaryIO, work: _Work, dtype: np.dtype) -> None:
    """Makes an array file of full size, in which only the header is written."""
    shape = (len(work.numbers), 3 * len(work.atoms))
    size = int(np.prod(shape)) * dtype.itemsize
    try:
        with _explained(work.part, f" ({size / 1e9:.3g} GB)"):
            file.truncate(0)
            np.lib.format.write_array_header_1_0(file, _header(shape, dtype))
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), file.tell(), size)
            else:
                file.truncate(file.tell() + size)
    except OSError:
        for each in (work.part, work.record):
            each.unlink(missing_ok=True)
        raise


def _write(record: Path, state: Any) -> None:
    with _explained(record):
        write_whole(record, json.dumps(state) + "\n")


@contextlib.contextmanager
def _explained(file: Path, size: str = "") -> Iterator[None]:
    """Adds a remedy to errors about files that cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # it already has a remedy
            raise
        why = os.strerror(error.errno)
        told = type(error)(
            f"{file}{size} cannot be written ({why}). Make room, or choose a folder that can be "
            "written; columns that are done stay, and the same call goes on from there."
        )
        told.errno = error.errno
        raise told from None
