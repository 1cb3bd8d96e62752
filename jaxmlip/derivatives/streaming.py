"""Hessians larger than memory, or slow to compute: written block by block, and resumed when interrupted.

Columns are written block by block into a NumPy file, which is called NAME.npy.part until the last column is
written. Beside it, NAME.npy.json records the crystal and potential, and the progress. A block counts as done
once it is on the disk, so a process that is killed loses one block at most.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import jax
import numpy as np

from jaxmlip.crystals import batching
from jaxmlip.crystals.atoms import as_atoms, check_crystal
from jaxmlip.derivatives.hessian import checked_columns
from jaxmlip.derivatives.response import Differentiable, Response
from jaxmlip.system.files import write_whole

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


class Known(Differentiable, Protocol):
    """A potential with an identity."""

    name: str
    model: Any
    params: Any


FORMAT = 1  # of the JSON file
# These must be equal for two runs to write into one file.
IDENTITY = {
    "structure": "cell, elements or positions",
    "parameters": "the network or its parameters",
    "dtype": "the precision",
    "columns": "the columns",
}


def stream_hessian(
    potential: Known,
    crystal: Atoms | Structure,
    path: str | Path,
    columns: Sequence[int] | None = None,
    block_size: int | None = None,
    memory_limit: float | None = None,
) -> np.ndarray:
    """Columns of the Hessian (default: all), as from `hessian_columns`, in the file `path` (.npy).

    Returns the array (len(columns), 3N) in eV/Å² as np.load(path, mmap_mode="r") gives it: on disk, not in
    memory. Memory holds one block of columns beside what `hessian_columns` needs. An interrupted run resumes
    when it is called again with the same crystal, potential and columns, with the block size that it began
    with; the numbers are the same bit by bit on the same machine. A complete file is returned as it is.

    Raises ValueError if `path` holds something else (another crystal, potential, precision or choice of
    columns), RuntimeError if another process is writing it, OSError if the disk is full (before anything is
    computed, if the file system can tell), and MemoryLimitError as `hessian_columns` does. Finished columns
    stay valid.
    """
    path = _named(path)
    atoms = as_atoms(crystal)
    check_crystal(atoms)
    columns = np.arange(3 * len(atoms)) if columns is None else checked_columns(atoms, columns)
    identity = _identity(potential, atoms, columns)
    record, part = _sidecar(path), path.with_name(path.name + ".part")
    state = _earlier(path, part, record, identity, potential.name)
    if path.exists():
        return np.load(path, mmap_mode="r")
    if state["done"] == 0:
        graph = potential.graph(atoms)
        shape = batching.shape_for([graph]) if memory_limit is None else batching.exact_shape([graph])
        state |= {
            "format": FORMAT,
            "formula": atoms.get_chemical_formula(),
            "potential": potential.name,
            "versions": {name: version(name) for name in ("jax", "numpy")},
            # These determine the order of sums, and so the last bits.
            "room": list(shape),
            "block_size": block_size,
        }
        _write(record, state)
    with _alone(part) as file:
        if state["done"] == 0:
            _reserve(file, part, record, (len(columns), 3 * len(atoms)), np.dtype(potential.dtype))
        array = np.load(part, mmap_mode="r")
        begin, row = array.offset, array.strides[0]
        del array

        response = Response(
            potential,
            atoms,
            block_size=state["block_size"],
            memory_limit=memory_limit,
            shape=batching.BatchShape(*state["room"]),
        )
        for start, rows in response.columns(columns, done=state["done"]):
            with _explained(part):
                file.seek(begin + start * row)
                file.write(np.ascontiguousarray(rows).data)
                file.flush()
                os.fsync(file.fileno())
            state.update(done=start + len(rows), block_size=response.block_of(len(columns)))
            _write(record, state)
    os.replace(part, path)
    return np.load(path, mmap_mode="r")


def columns_done(path: str | Path) -> int:
    """The number of columns that `stream_hessian` has written for `path` so far."""
    record = _sidecar(_named(path))
    return json.loads(record.read_text())["done"] if record.is_file() else 0


def _named(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".npy":
        raise ValueError(f"found the file name {path.name}, needed one that ends in .npy, NumPy's format.")
    return path


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _identity(potential: Known, atoms: Atoms, columns: np.ndarray) -> dict[str, Any]:
    return {
        "structure": _sha256(atoms.cell.array, atoms.pbc, atoms.numbers, atoms.positions),
        "parameters": _sha256(
            potential.model.identity(potential.params).encode(), *jax.tree.leaves(potential.params)
        ),
        "dtype": potential.dtype,
        "columns": columns.tolist(),
    }


def _sha256(*parts: np.ndarray | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _earlier(path: Path, part: Path, record: Path, identity: dict[str, Any], name: str) -> dict[str, Any]:
    """The state of an earlier run with this identity, or that of a new one."""
    if not record.is_file():
        for found in (path, part):
            if found.exists():
                raise ValueError(
                    f"{found} exists without {record.name}, so nobody can tell whose Hessian it is; needed a "
                    "new name, or remove it."
                )
        return identity | {"done": 0}
    try:
        state = json.loads(record.read_text())
        differing = [what for key, what in IDENTITY.items() if state[key] != identity[key]]
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
            f"{record.name} says that {path.name} is the Hessian of {told}; what is asked for with {name} "
            f"differs in {', '.join(differing)}. Choose another file name, or remove {record} and what it "
            "describes."
        )
    if state["done"] and not path.exists() and not part.exists():
        raise ValueError(
            f"{record} describes {path.name}, which is missing, and so is {part.name}; remove {record.name} "
            "to begin anew."
        )
    return state


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[BinaryIO]:
    """The file, open for writing by this process alone. The lock ends with the process."""
    with _explained(part):
        handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(handle, "r+b") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"another process is writing {part}; wait until it is done, or choose another file name."
            ) from None
        except (ImportError, OSError):  # a system, or a file system, without locks
            pass
        yield file


def _reserve(file: BinaryIO, part: Path, record: Path, shape: tuple[int, int], dtype: np.dtype) -> None:
    """Makes an array file of full size, in which only the header is written."""
    size = int(np.prod(shape)) * dtype.itemsize
    header = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
    try:
        with _explained(part, f" ({size / 1e9:.3g} GB)"):
            file.truncate(0)
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), file.tell(), size)
            else:
                file.truncate(file.tell() + size)
    except OSError:
        for each in (part, record):
            each.unlink(missing_ok=True)
        raise


def _write(record: Path, state: dict[str, Any]) -> None:
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
