"""Walks torch modules in a pickled file: records whose states hold tensors and further modules.

Code in a file (bytes of TorchScript, graphs of torch.fx) is never read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxmlip.system.borders import CheckpointError, brief, cut, listed, printable
from weights_convert.torch_zip import Record

# The most attributes of a module, modules above it, and modules in all; published models have some dozens.
MOST_ATTRIBUTES, MOST_LEVELS, MOST_MODULES = 1_000, 30, 20_000
LONGEST_IRREPS = 500  # in characters or in parts; the rest is cut off, as no model needs it
PARTS = ("_parameters", "_buffers", "_modules")  # a torch module keeps its registered members there


def contents(module: Any) -> dict[str, Any]:
    """The plain attributes, tensors and modules that `module` holds, by name; empty for other objects."""
    state = module.state if isinstance(module, Record) else None
    if not isinstance(state, Mapping):
        return {}
    parts = [part for part in map(state.get, PARTS) if isinstance(part, Mapping)]
    if sum(map(len, (state, *parts))) > MOST_ATTRIBUTES:
        raise CheckpointError(f"a {class_of(module)} has more than {MOST_ATTRIBUTES:,} attributes.")
    registered = {name: value for part in parts for name, value in part.items()}
    return registered | {name: value for name, value in state.items() if name not in PARTS}


def at(module: Any, path: str) -> Any:
    """The tensor, module or attribute at the dotted `path` within `module`.

    Raises CheckpointError, which says what is there instead, if the path leads nowhere.
    """
    here, names = module, path.split(".")
    for k, name in enumerate(names):
        inside = contents(here)
        if name not in inside:
            where = ".".join(names[:k]) or "the model"
            shown = listed([key for key in map(_name, inside) if not key.startswith("_")], ", ") or "nothing"
            raise CheckpointError(
                f"{'.'.join(names[: k + 1])} is missing; {where} is a {class_of(here)} with {shown}."
            )
        here = inside[name]
    return here


def get(module: Any, path: str, default: Any) -> Any:
    """Does the same as `at`, with a default if only the last name of `path` is missing."""
    *above, name = path.split(".")
    return contents(at(module, ".".join(above)) if above else module).get(name, default)


def number(module: Any, path: str) -> float:
    """The number at `path`: a tensor of one element or a plain number. Raises CheckpointError otherwise."""
    found = at(module, path)
    if isinstance(found, np.ndarray | np.generic) and found.size == 1 and found.dtype.kind in "biuf":
        return found.item()
    if isinstance(found, int | float):
        return found
    raise CheckpointError(f"{path} is {brief(found)}, needed a number.")


def tensor(module: Any, path: str) -> np.ndarray:
    """The tensor at `path`. Raises CheckpointError if something else is there."""
    found = at(module, path)
    if not isinstance(found, np.ndarray):
        raise CheckpointError(f"{path} is {brief(found)}, needed a tensor.")
    return found


def children(module: Any, path: str) -> list[str]:
    """The paths of the modules in the ModuleList at `path`, in its order."""
    found = at(module, path)
    if class_of(found).split(".")[-1] != "ModuleList":
        raise CheckpointError(f"{path} is {brief(found)}, needed a list of modules.")
    return [f"{path}.{k}" for k in sorted(int(name) for name in contents(found) if name.isdecimal())]


def tensors(module: Any) -> dict[str, np.ndarray]:
    """Every tensor registered in `module` or in a module within it, by its dotted path."""
    found: dict[str, np.ndarray] = {}
    for path, here in walk(module):
        for part in PARTS:
            inside = here.state.get(part) if isinstance(here.state, Mapping) else None
            for name, value in inside.items() if isinstance(inside, Mapping) else ():
                if isinstance(value, np.ndarray):
                    found[f"{path}.{name}" if path else f"{name}"] = value
    return found


def walk(module: Any) -> Iterator[tuple[str, Record]]:
    """`module` and all modules within it, with their dotted paths."""
    left = [("", module, 0)]
    for count in itertools.count():
        if not left:
            return
        path, here, level = left.pop()
        if count > MOST_MODULES or level > MOST_LEVELS:
            raise CheckpointError(
                f"{cut(path, 60)} holds itself, or more than {MOST_LEVELS} levels or {MOST_MODULES:,} "
                "modules; needed modules within modules."
            )
        if not isinstance(here, Record):
            continue
        yield path, here
        inside = here.state.get("_modules") if isinstance(here.state, Mapping) else None
        if isinstance(inside, Mapping):
            left += [
                (f"{path}.{_name(name)}" if path else _name(name), value, level + 1)
                for name, value in reversed(inside.items())
            ]


def _name(name: Any) -> str:
    return cut(name, 100) if isinstance(name, str) else brief(name)


def class_of(value: Any) -> str:
    """The full name of the class of `value`, or of `value` if it is itself a class or function."""
    if not isinstance(value, type):
        value = type(value)
    return cut(printable(value.__qualname__ if issubclass(value, Record) else value.__name__), 120)


def irreps(value: Any, path: str) -> list[tuple[int, int, int]]:
    """Irreps of e3nn, a record or text such as "8x0e+8x1o", as triples of multiplicity, l and parity ±1."""
    try:
        if isinstance(value, str):
            value = value[:LONGEST_IRREPS]
            matches = [re.fullmatch(r"(?:(\d+)x)?(\d+)([eo])", part.strip()) for part in value.split("+")]
            return [(int(m[1] or 1), int(m[2]), 1 if m[3] == "e" else -1) for m in matches]
        pairs = [pair.args[0] for pair in value.args[0][:LONGEST_IRREPS]]
        return [(int(mul), *map(int, irrep.args[0])) for mul, irrep in pairs]
    except (TypeError, ValueError, AttributeError, IndexError):
        raise CheckpointError(f"{path} is {brief(value)}, needed irreps of e3nn.") from None
