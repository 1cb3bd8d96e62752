"""Reads torch checkpoints (the zip format of torch >= 1.6) without torch, and without running their contents.

A checkpoint is a zip archive of raw storages and a pickle that says how they make up tensors. A pickle is a
program: it names functions and calls them. The unpickler here knows a short list of harmless constructors and
replaces every other class or function of the packages that write checkpoints by an inert record of its name
and arguments. Names from anywhere else, such as os.system or builtins.eval, are refused. Nor can the file
change the constructors or hand a state to a NumPy type (pickle's BUILD), because NumPy trusts such states.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np


class CheckpointError(ValueError):
    """A file that is not the checkpoint that was expected: what was found, what was needed, what to do."""


STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

# Packages whose classes occur in honest checkpoints. Their names become records; they are never imported.
RECORDED = {"torch", "numpy", "collections", "chgnet", "pymatgen", "matgl", "dgl", "mace", "e3nn"}


# Elements of a tensor whose strides repeat its storage; without a bound a short file could fill the memory.
LARGEST_REPEAT = 10**7


class Record:
    """Stands for an object of a class that is not built here: where it is from and what it was given."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any

    # Not __init__, which pickle passes by for objects that it makes through their class alone (NEWOBJ).
    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        made = super().__new__(cls)
        made.args, made.kwargs, made.state = args, kwargs, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    # A pickle may fill a list-like or dict-like object after making it.
    def append(self, item: Any) -> None:
        self.__dict__.setdefault("items", []).append(item)

    def extend(self, items: Any) -> None:
        self.__dict__.setdefault("items", []).extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("entries", {})[key] = value

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<record of {type(self).__qualname__}>"


def read(path: str | Path) -> Any:
    """What the checkpoint at `path` holds: tensors as NumPy arrays, other objects as records.

    Raises CheckpointError where the file is no zip checkpoint, is truncated, or names something outside
    the packages that write checkpoints.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _read(archive, path)
        except CheckpointError:
            raise
        except zipfile.BadZipFile as error:
            raise CheckpointError(
                f"{path} is not a zip archive, or is truncated ({error}); needed a checkpoint saved by "
                f"torch.save of torch 1.6 or later. It has {path.stat().st_size} bytes: compare that with "
                "its source and fetch it again."
            ) from None
        except Exception as error:  # a damaged archive or pickle can fail in any way
            raise CheckpointError(
                f"{path} is a zip archive, but its pickle cannot be read ({type(error).__name__}: {error}); "
                "needed a checkpoint saved by torch.save. Fetch it again from its source."
            ) from None


def _read(archive: zipfile.ZipFile, path: Path) -> Any:
    pickles = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{path} is a zip archive without a torch pickle in it (first entries: "
            f"{archive.namelist()[:3]}); needed a checkpoint saved by torch.save."
        )
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{path}: the entry {info.filename} is compressed, which torch.save never does; needed the "
                "file as it was published. Fetch it again from its source."
            )
    root = pickles[0].removesuffix("/data.pkl")
    if f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder") != b"little":
        raise CheckpointError(f"{path} was saved on a big-endian machine; needed little-endian storages.")
    return _Unpickler(io.BytesIO(archive.read(pickles[0])), archive, root, path).load()


class _StorageType:
    """A storage class of torch, by the type of its elements."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file tries to change the type of a storage")


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, archive: zipfile.ZipFile, root: str, path: Path):
        super().__init__(file, encoding="utf-8")
        self.archive, self.root, self.path = archive, root, path
        self.storages: dict[str, np.ndarray] = {}
        self.records: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in ALLOWED:
            return ALLOWED[full]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _StorageType(STORAGES[name])
        if module.split(".")[0] not in RECORDED:
            raise CheckpointError(
                f"{self.path} asks to load {full}, which has no place in a file of weights; nothing was "
                "run. Do not open this file with torch.load, and fetch it again from a source that you trust."
            )
        if full not in self.records:
            self.records[full] = type(name, (Record,), {"__module__": module, "__qualname__": full})
        return self.records[full]

    def persistent_load(self, pid: Any) -> np.ndarray:
        match pid:
            case ("storage", _StorageType() as kind, str(key), _, int(count)):
                pass
            case _:
                raise pickle.UnpicklingError(f"unknown kind of external object: {str(pid)[:80]}")
        if key not in self.storages:
            raw = self.archive.read(f"{self.root}/data/{key}")
            if len(raw) != count * kind.dtype.itemsize:
                raise CheckpointError(
                    f"{self.path}: storage {key} has {len(raw)} bytes, needed {count} of "
                    f"{kind.dtype}. Fetch the file again from its source."
                )
            self.storages[key] = np.frombuffer(raw, kind.dtype)
        return self.storages[key]


def _rebuild_tensor(storage, offset, size, stride, *_) -> np.ndarray:
    if not isinstance(storage, np.ndarray):
        raise pickle.UnpicklingError(f"a tensor is made of {type(storage).__name__}, not of a storage")
    size, stride = tuple(size), tuple(stride)
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(not isinstance(n, int) or n < 0 for n in numbers):
        raise pickle.UnpicklingError(f"a tensor has size {size}, stride {stride} and offset {offset}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size:
        return np.empty(size, storage.dtype)
    if math.prod(size) > max(len(storage), LARGEST_REPEAT):
        raise pickle.UnpicklingError(f"a tensor of size {size} repeats a storage of {len(storage)} elements")
    if last >= len(storage):
        raise pickle.UnpicklingError(
            f"a tensor of size {size} reaches element {last} of a storage of {len(storage)}"
        )
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()


class _PlainType:
    """A NumPy type of numbers. The state that a file gives it may tell its byte order, and nothing else."""

    def __init__(self, name: Any, *_: Any):
        self.dtype = np.dtype(str(name))
        if self.dtype.kind not in "biufcSU":
            raise pickle.UnpicklingError(f"found a NumPy type {name}, needed one of numbers or text")

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", "|", "="):
            raise pickle.UnpicklingError(f"found NumPy numbers of byte order {order!r}, needed little-endian")


def _numpy_scalar(kind: Any, raw: Any) -> Any:
    if not isinstance(kind, _PlainType) or not isinstance(raw, bytes):
        raise pickle.UnpicklingError("a NumPy scalar of no plain type")
    return np.frombuffer(raw, kind.dtype)[0]


def _codecs_encode(text: str, encoding: str = "latin1") -> bytes:
    # How old pickle protocols write bytes.
    return str(text).encode("latin1")


def _bytearray(data: Any = b"", *encoding: Any) -> bytearray:
    if not isinstance(data, bytes | str):  # a number would ask for that much memory
        raise pickle.UnpicklingError(f"a bytearray is made of {type(data).__name__}, not of bytes")
    return bytearray(data, *encoding)


class _Constructor:
    """One of the calls that a file may ask for. The file cannot change it."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]):
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file tries to change one of the constructors that it may call")


ALLOWED: dict[str, Any] = {
    # Built-in types cannot be changed, and OrderedDict is also made as an object of its class.
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,  # as pickle protocol 2 writes it
    "builtins.frozenset": frozenset,
    "builtins.slice": slice,
    "builtins.complex": complex,
    "builtins.bytearray": _Constructor(_bytearray),
    "torch._utils._rebuild_tensor_v2": _Constructor(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Constructor(lambda tensor, *_: tensor),
    "torch.Size": _Constructor(lambda sizes=(): tuple(sizes)),
    "torch.device": _Constructor(lambda *name: "torch.device(" + ", ".join(map(str, name)) + ")"),
    "numpy.dtype": _Constructor(_PlainType),
    "numpy.core.multiarray.scalar": _Constructor(_numpy_scalar),
    "numpy._core.multiarray.scalar": _Constructor(_numpy_scalar),
    "_codecs.encode": _Constructor(_codecs_encode),
}
