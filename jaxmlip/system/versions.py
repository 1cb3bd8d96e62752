"""Versions of packages, for records of what was computed."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version


def versions(*packages: str) -> dict[str, str]:
    """The versions, by name, of the installed ones among `packages`."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def own_version() -> str:
    """The version of this library, for the records in files that it writes."""
    return versions("jaxmlip").get("jaxmlip", "run from a checkout")
