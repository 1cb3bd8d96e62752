"""Comparison of the settings recorded in a folder, with which work was begun, with those given now."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any


def changes(
    begun: Mapping[str, Any], now: Mapping[str, Any], free: Container[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """The values in which two records differ, (begun, now), by the path of keys, such as optimizer.clip.

    A missing key counts as None. Keys in `free` may differ.
    """
    was, its = _by_path(begun), _by_path(now)
    keys = sorted(was.keys() | its.keys())
    return {k: (was.get(k), its.get(k)) for k in keys if k not in free and was.get(k) != its.get(k)}


def described(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """One line of text for each of `changes`."""
    return "\n  ".join(f"{key}: begun with {was!r}, found {now!r}" for key, (was, now) in changed.items())


def _by_path(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        path = above + name
        found |= _by_path(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return found
