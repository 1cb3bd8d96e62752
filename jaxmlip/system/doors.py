"""Front doors of packages: names that are imported when they are first asked for (PEP 562).

A package that imported everything it shows would make each of its modules as slow to import as all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def door(
    package: str, names: Mapping[str, str], rooms: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of `package`.

    `names` maps modules to what the package shows of them, separated by spaces; `rooms` are submodules
    that it shows whole, separated so as well. All are imported when they are asked for.
    """
    places = {name: module for module, listed in names.items() for name in listed.split()}
    rooms = frozenset(rooms.split())

    def getattr_(name: str) -> Any:
        if name in places:
            return getattr(import_module(places[name]), name)
        if name in rooms:
            return import_module(f"{package}.{name}")
        raise AttributeError(
            f"module {package!r} has no attribute {name!r}; dir({package}) lists what it shows",
            name=name,
            obj=sys.modules[package],
        )

    def dir_() -> list[str]:
        return sorted({*places, *rooms})

    return getattr_, dir_
