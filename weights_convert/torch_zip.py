"""Reads torch checkpoints (the zip format of torch >= 1.6) without torch, and without running their contents.

A checkpoint is a zip archive of raw storages and a pickle that says how they form tensors. A pickle is a
program: it names functions and calls them. The unpickler here knows a short list of harmless constructors. It
replaces every other class or function of the packages that write checkpoints by an inert record of its name
and arguments. Names from anywhere else, such as os.system or builtins.eval, are refused. The file cannot
change the constructors, nor pass a state to a NumPy type (pickle's BUILD), because NumPy trusts such states.

The cost of a file is bounded, too: the opcodes of its pickle, the classes that it names, the bytes of its
storages and tensors, the size of its keys. Files of real models stay far below every bound.
"""

from __future__ import annotations

import io
import itertools
import math
import operator
import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxmlip.system.borders import CheckpointError, brief, cut, guard, listed

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

# Packages whose classes occur in checkpoints of these potentials and of related ones, which they help to
# distinguish. The names become records; the packages are never imported.
RECORDED = {
    *("torch", "numpy", "collections", "chgnet", "pymatgen", "matgl", "dgl", "mace", "e3nn"),
    "mattersim",
    *("cuequivariance", "cuequivariance_torch", "openequivariance", "torch_geometric", "lightning"),
    *("pytorch_lightning", "torchmetrics", "torch_ema", "ase", "scipy", "opt_einsum_fx", "lammps"),
}
# Names of the standard library and the built-ins that do no harm when a file of weights calls them.
HARMLESS = {
    *("argparse.Namespace", "types.SimpleNamespace", "functools.partial", "uuid.UUID", "decimal.Decimal"),
    *("fractions.Fraction", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath"),
    *("datetime.datetime", "datetime.date", "datetime.timedelta", "datetime.timezone"),
    *("copyreg._reconstructor", "copy_reg._reconstructor"),
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in (
            "object",
            "int",
            "float",
            "bool",
            "str",
            "bytes",
            "list",
            "dict",
            "tuple",
            "range",
            "type",
        )
    ),
}
OF_PYTHON = {*sys.stdlib_module_names, "__builtin__", "commands", "copy_reg", "exceptions"}  # or of Python 2

# Names that run code; they can also be reached through a package: torch.serialization.os.system.
RUNNERS = {
    *("os", "posix", "nt", "sys", "subprocess", "builtins", "__builtins__", "importlib", "shutil", "socket"),
    *("ctypes", "pty", "runpy", "pickle", "eval", "exec", "__import__", "__globals__", "__subclasses__"),
}

OLD_FORMAT = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the beginning of files of torch < 1.6

# Upper bounds of a file's cost. The largest published files have 20,000 opcodes, and 30 classes.
MOST_OPCODES = 1_000_000
MOST_CLASSES = 2_000
MOST_PARTS_OF_A_KEY = 16
MOST_AXES = 32
REPEATS = 80e6  # bytes that tensors may have beyond those of their storages; expanded tensors repeat them


class Record:
    """Stands for an object of a class that is not built here, with its origin and its arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any

    # Not __init__: pickle skips it for objects that it makes through their class alone (NEWOBJ).
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
    """The contents of the checkpoint at `path`: tensors as NumPy arrays, other objects as records.

    Raises CheckpointError if the file is no zip checkpoint, is truncated, names something outside the
    packages that write checkpoints, or would cost more memory and time than a file of weights does.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CheckpointError("this is not a file, needed one that torch.save wrote.", path)
    with path.open("rb") as file, guard(path, CheckpointError, "Fetch it again from its source."):
        begin = file.read(len(OLD_FORMAT))
        if begin == OLD_FORMAT:
            raise CheckpointError(
                "this is in the format of torch before 1.6; needed the later format, a zip archive. Save "
                "it again with a newer torch: torch.save(torch.load(FILE), FILE)."
            )
        try:
            with zipfile.ZipFile(file) as archive:
                return _read(archive, path.stat().st_size)
        except zipfile.BadZipFile as error:
            raise CheckpointError(
                f"this is not a zip archive, or is truncated ({error}); needed a checkpoint saved by "
                f"torch.save of torch 1.6 or later. It has {path.stat().st_size} bytes: compare that with "
                "its source and fetch it again."
            ) from None


def _read(archive: zipfile.ZipFile, size: int) -> Any:
    names = archive.namelist()
    pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"this is a zip archive without a torch pickle in it (first entries: {brief(names[:3])}); needed "
            "a checkpoint saved by torch.save."
        )
    root = pickles[0].removesuffix("/data.pkl")
    if f"{root}/constants.pkl" in names or any(name.startswith(f"{root}/code/") for name in names):
        raise CheckpointError(
            "this is a TorchScript archive, compiled code: mace writes such as _compiled.model, and as "
            "-lammps.pt for LAMMPS. Take the file that it was made from, for mace the .model beside it."
        )
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"the entry {brief(info.filename)} is compressed, which torch.save never does; needed the "
                "file as it was published. Fetch it again from its source."
            )
    if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
        raise CheckpointError("this was saved on a big-endian machine; needed little-endian storages.")
    program = archive.read(pickles[0])
    if not program.endswith(pickle.STOP):
        raise pickle.UnpicklingError("its pickle is cut off")
    # An opcode takes at least a byte; long pickles hold compiled code, in a few long strings.
    if len(program) > MOST_OPCODES and sum(1 for _ in pickletools.genops(program)) > MOST_OPCODES:
        raise CheckpointError(
            f"its pickle has more than {MOST_OPCODES:,} opcodes; a file of weights alone has some thousands."
        )
    return _Unpickler(program, archive, root, size).load()


class _StorageType:
    """A storage class of torch, by the type of its elements."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file tries to change the type of a storage")


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler: its steps can be watched, and only the file can put objects in its memo."""

    def __init__(self, program: bytes, archive: zipfile.ZipFile, root: str, size: int):
        super().__init__(io.BytesIO(program), encoding="utf-8")
        self.archive, self.root = archive, root
        self.unread = size  # bytes that storages may still take: entries of an archive can share their bytes
        self.unmade = size + REPEATS  # bytes that tensors may still take
        self.storages: dict[str, np.ndarray] = {}
        self.records: dict[str, type] = {}
        self.own = {
            "torch._utils._rebuild_tensor_v2": _Constructor(self._tensor),
            "builtins.getattr": _Constructor(self._attribute),
            "__builtin__.getattr": _Constructor(self._attribute),
        }

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self.own:
            return self.own[full]
        if full in ALLOWED:
            return ALLOWED[full]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _StorageType(STORAGES[name])
        if module.split(".")[0] not in RECORDED and full not in HARMLESS:
            raise CheckpointError(_stranger(module, name))
        return self._record(module, name)

    def _record(self, module: str, name: str) -> type:
        full = f"{module}.{name}"
        if full not in self.records:
            if not RUNNERS.isdisjoint(full.split(".")):
                raise CheckpointError(_accusation(cut(full, 120)))
            if len(self.records) == MOST_CLASSES:
                raise CheckpointError(f"it names more than {MOST_CLASSES:,} classes, needed some dozens.")
            self.records[full] = type(name, (Record,), {"__module__": module, "__qualname__": full})
        return self.records[full]

    def _attribute(self, owner: Any, name: Any) -> type:
        """A method or function as pickle writes it, getattr(owner, name): a record of its name."""
        kind = owner if isinstance(owner, type) else type(owner)
        if not issubclass(kind, Record) or not isinstance(name, str):
            raise CheckpointError(_accusation(f"getattr({brief(owner)}, {brief(name)})"))
        if kind.__qualname__ == "torch._C._VariableFunctionsClass":  # torch keeps torch.tanh there
            return self._record("torch", name)
        return self._record(kind.__module__, f"{kind.__name__}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        match pid:
            case ("storage", _StorageType() as kind, str(key), _, int(count)):
                pass
            case _:
                raise pickle.UnpicklingError(f"found an external object {brief(pid)}, needed a storage")
        if key not in self.storages:
            entry = self.archive.getinfo(f"{self.root}/data/{key}")
            self.unread -= entry.file_size
            if self.unread < 0:
                raise CheckpointError("its storages have more bytes than the file. Fetch it again.")
            raw = self.archive.read(entry)
            if len(raw) != count * kind.dtype.itemsize:
                raise CheckpointError(
                    f"storage {brief(key)} has {len(raw)} bytes, needed {brief(count)} of {kind.dtype}. "
                    "Fetch the file again from its source."
                )
            self.storages[key] = np.frombuffer(raw, kind.dtype)
        return self.storages[key]

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
        if not isinstance(storage, np.ndarray):
            raise pickle.UnpicklingError(f"a tensor is made of {brief(storage)}, not of a storage")
        size, stride = tuple(size), tuple(stride)
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > MOST_AXES or not all(map(_is_count, numbers)):
            raise pickle.UnpicklingError(
                f"a tensor has size {brief(size)}, stride {brief(stride)} and offset {brief(offset)}"
            )
        if 0 in size:
            return np.empty(size, storage.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= len(storage):
            raise pickle.UnpicklingError(
                f"a tensor of size {brief(size)} reaches element {last} of a storage of {len(storage)}"
            )
        self.unmade -= math.prod(size) * storage.itemsize
        if self.unmade < 0:
            raise CheckpointError(
                "a tensor repeats its storage, or many share one, beyond the size of the file and "
                f"{REPEATS / 1e6:.0f} MB: found size {brief(size)}, stride {brief(stride)}."
            )
        if stride == _strides_in_a_row(size):
            return storage[offset : last + 1].reshape(size).copy()
        steps = tuple(step * storage.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()

    # Hashing nested tuples, each of which holds the next one twice, takes for ever: keys are checked first.

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        _check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        _check_keys(self.stack)
        super().load_frozenset()

    def load_reduce(self) -> None:
        if len(self.stack) > 1:
            _check_call(*self.stack[-2:])
        super().load_reduce()

    def _instantiate(self, klass: Any, args: Any) -> None:
        _check_call(klass, args)
        super()._instantiate(klass, args)

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it holds bytes of pickle protocol 5, which torch.save does not write")

    dispatch = {  # noqa: RUF012 (same as in pickle)
        **pickle._Unpickler.dispatch,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.REDUCE[0]: load_reduce,
        pickle.BYTEARRAY8[0]: _refuse,
        pickle.NEXT_BUFFER[0]: _refuse,
        pickle.READONLY_BUFFER[0]: _refuse,
    }


def _stranger(module: str, name: str) -> str:
    """The reason to refuse a class or function without a record; an accusation if it would run something."""
    full = cut(f"{module}.{name}", 120)
    if module.split(".")[0] in OF_PYTHON:
        return _accusation(full)
    if module == "__main__":
        return (
            f"it holds a {full}, a class of the script that saved it, and nothing else knows that; nothing "
            "was run. Save the weights without it, in one of the layouts of the trainers."
        )
    return (
        f"it holds a {full}, of a package whose files are not read here; nothing was run. Needed a "
        "checkpoint of chgnet, matgl, mace-torch or mattersim, saved by their own trainers."
    )


def _accusation(what: str) -> str:
    return (
        f"it asks to load {what}, which has no place in a file of weights; nothing was run. Do not open this "
        "file with torch.load, and fetch it again from a source that you trust."
    )


def _strides_in_a_row(size: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    return tuple(itertools.accumulate(size[:0:-1], operator.mul, initial=1))[::-1] if size else ()


def _is_count(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _check_keys(keys: Iterable[Any]) -> None:
    """Raises UnpicklingError if hashing one of `keys`, or comparing it, could be much work."""
    for key in keys:
        if type(key) is str:
            continue
        parts, left = [key], MOST_PARTS_OF_A_KEY
        while parts:
            part = parts.pop()
            left -= 1
            if isinstance(part, tuple | frozenset) and len(part) <= left:
                parts.extend(part)
            elif isinstance(part, tuple | frozenset) or (isinstance(part, int) and part.bit_length() > 64):
                left = -1
            if left < 0:
                raise pickle.UnpicklingError("a key of a dictionary or set has too many parts or digits")


def _check_call(function: Any, args: Any) -> None:
    """Does the same as `_check_keys` for the pairs that an OrderedDict is made of."""
    if function is OrderedDict and args:
        _check_keys(pair[0] for pair in args[0])


def _set_of(kind: type) -> Callable[..., Any]:
    def make(items: Iterable[Any] = ()) -> Any:
        items = list(items)
        _check_keys(items)
        return kind(items)

    return make


class _PlainType:
    """A NumPy type of numbers. The state that a file gives it may only set its byte order."""

    def __init__(self, name: Any, *_: Any):
        if not isinstance(name, str) or len(name) > 20:
            raise pickle.UnpicklingError(f"found a NumPy type {brief(name)}, needed one of numbers or text")
        self.dtype = np.dtype(name)
        if self.dtype.kind not in "biufcSU":
            raise pickle.UnpicklingError(f"found a NumPy type {name}, needed one of numbers or text")

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", "|", "="):
            raise pickle.UnpicklingError(
                f"found NumPy numbers of byte order {brief(order)}, needed little-endian"
            )


def _numpy_scalar(kind: Any, raw: Any) -> Any:
    if not isinstance(kind, _PlainType) or not isinstance(raw, bytes):
        raise pickle.UnpicklingError("a NumPy scalar of no plain type")
    return np.frombuffer(raw, kind.dtype)[0]


def _codecs_encode(text: Any, encoding: Any = "latin1") -> bytes:
    # Old pickle protocols write bytes like this.
    if not isinstance(text, str):
        raise pickle.UnpicklingError(f"bytes are made of {brief(text)}, not of text")
    return text.encode("latin1")


def _bytearray(data: Any = b"", *encoding: Any) -> bytearray:
    if not isinstance(data, bytes | str):  # a number would allocate that much memory
        raise pickle.UnpicklingError(f"a bytearray is made of {type(data).__name__}, not of bytes")
    return bytearray(data, *encoding)


def _device(*name: Any) -> str:
    return "torch.device(" + listed([x if isinstance(x, str) else brief(x) for x in name], ", ") + ")"


class _Constructor:
    """A call that a file may ask for. The file cannot change it."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]):
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file tries to change one of the constructors that it may call")


ALLOWED: dict[str, Any] = {
    # Built-in types cannot be changed, and OrderedDict is also made through its class.
    "collections.OrderedDict": OrderedDict,
    "builtins.set": _Constructor(_set_of(set)),
    "__builtin__.set": _Constructor(_set_of(set)),  # name in pickle protocol 2
    "builtins.frozenset": _Constructor(_set_of(frozenset)),
    "__builtin__.frozenset": _Constructor(_set_of(frozenset)),
    "builtins.slice": slice,
    "__builtin__.slice": slice,
    "builtins.complex": complex,
    "__builtin__.complex": complex,
    "builtins.bytearray": _Constructor(_bytearray),
    "torch._utils._rebuild_parameter": _Constructor(lambda tensor, *_: tensor),
    "torch.Size": _Constructor(lambda sizes=(): tuple(sizes)),
    "torch.device": _Constructor(_device),
    "numpy.dtype": _Constructor(_PlainType),
    "numpy.core.multiarray.scalar": _Constructor(_numpy_scalar),
    "numpy._core.multiarray.scalar": _Constructor(_numpy_scalar),
    "_codecs.encode": _Constructor(_codecs_encode),
}
