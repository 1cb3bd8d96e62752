"""Published files: from the user's own folder, the package index, or their address on the web."""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from jaxmlip.system.console import note
from jaxmlip.system.files import cache_folder
from weights_convert.published import PUBLISHED, Wheel

# A wheel that exists, with its full name so that pip finds it from any Python on any machine.
PIP_TAGS = (
    *("--python-version", "3.11", "--implementation", "cp"),
    *("--abi", "cp311", "--platform", "manylinux2014_x86_64"),
)
UV_TAGS = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux2014")
TIMEOUT = 30  # seconds without an answer


class FetchError(RuntimeError):
    """A published file could not be obtained. The message says what was tried and where to put the file."""


def published_files(name: str, scratch: Path) -> dict[str, Path]:
    """The files of a published model and of others that came with it, by model, in the folder `scratch`.

    Raises FetchError if they cannot be obtained, or are not the published ones.
    """
    tried: list[str] = []
    found = _from_own_folder(name, scratch, tried) or _fetch(name, scratch, tried)
    if name not in found:
        raise FetchError(_how_to_get(name, tried))
    for each, file in found.items():
        _check(each, file)
    return found


def _from_own_folder(name: str, scratch: Path, tried: list[str]) -> dict[str, Path]:
    """The file of the model, or those of its wheel, from the folder JAXMLIP_WEIGHTS, by model."""
    setting = os.environ.get("JAXMLIP_WEIGHTS")
    if not setting:
        tried.append("the folder JAXMLIP_WEIGHTS: not set")
        return {}
    folder, source = Path(setting).expanduser(), PUBLISHED[name]
    if not folder.is_dir():
        tried.append(f"the folder JAXMLIP_WEIGHTS: {folder} is not a folder")
        return {}
    if len(source.files) > 1:
        places = [folder, *sorted(folder.rglob(source.origin.folder))]
        loose = [
            p
            for p in places
            if p.name == source.origin.folder and all((p / file).is_file() for file in source.files)
        ]
        missing = f"no folder {source.origin.folder} with {' and '.join(source.files)}"
    else:
        loose = sorted(folder.rglob(source.file))
        missing = f"no {source.file}"
    if loose:
        return {name: loose[0]}
    found: dict[str, Path] = {}
    if isinstance(source.origin, Wheel):
        found = _from_wheels(sorted(folder.rglob(source.origin.pattern)), source.origin, scratch)
        missing += " and no wheel with it"
    if name not in found:
        tried.append(f"the folder JAXMLIP_WEIGHTS: {missing} is in {folder}")
    return found


def _fetch(name: str, scratch: Path, tried: list[str]) -> dict[str, Path]:
    """The model and the others in the same download, by model, fetched from the published address."""
    if isinstance(PUBLISHED[name].origin, Wheel):
        return _from_index(name, scratch, tried)
    return _from_address(name, scratch, tried)


def _from_address(name: str, scratch: Path, tried: list[str]) -> dict[str, Path]:
    source = PUBLISHED[name]
    target = scratch / source.origin.folder
    target.mkdir()
    note(f"fetching {name} (once) …", stderr=True)
    for file in source.files:
        url = source.origin.of(file)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, (target / file).open("wb") as out:
                shutil.copyfileobj(answer, out)
                size = answer.headers.get("Content-Length")
                if size not in (None, str(out.tell())):
                    raise OSError(f"it broke off after {out.tell()} of {size} bytes")
        except (OSError, http.client.HTTPException) as error:
            tried.append(f"{url}: {error}")
            return {}
    return {name: target if len(source.files) > 1 else target / source.file}


def _from_index(name: str, scratch: Path, tried: list[str]) -> dict[str, Path]:
    """The files of all models in the wheel of this one, fetched from the package index, by model."""
    origin, target = PUBLISHED[name].origin, scratch / "fetched"
    commands = list(_fetch_commands(origin, target))
    if not commands:
        tried.append("the package index: this environment has neither pip nor uv")
        return {}
    note(f"fetching {origin.project} {origin.version} (once) …", stderr=True)
    for tool, command in commands:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
            )
        except OSError as error:
            tried.append(f"{tool}: {error.strerror}")
            continue
        if done.returncode:
            tried.append(f"{tool}: {_complaint(done.stderr or done.stdout)}")
            continue
        found = _from_wheels(target.glob("*.whl"), origin, scratch) or _members(origin, target)
        if name in found:
            return found
        tried.append(f"{tool}: it came without {PUBLISHED[name].file}")
    return {}


def _fetch_commands(origin: Wheel, target: Path) -> Iterable[tuple[str, list[str]]]:
    python, only = sys.executable, ("--no-deps", "--only-binary", ":all:")
    if importlib.util.find_spec("pip"):
        quiet = ("--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2")
        pip = (python, "-m", "pip", "download", *quiet, *only, *PIP_TAGS)
        yield "pip download", [*pip, "-d", str(target), origin.requirement]
    if uv := shutil.which("uv"):
        # uv has no `download`; this unpacks the wheel, and runs nothing in it.
        install = (uv, "pip", "install", "--quiet", "--python", python, *only, *UV_TAGS)
        yield "uv pip install --target", [*install, "--target", str(target), origin.requirement]


def _from_wheels(wheels: Iterable[Path], origin: Wheel, scratch: Path) -> dict[str, Path]:
    """The files of weights in the first valid one of `wheels`, extracted into `scratch`, by model."""
    for wheel in wheels:
        unpacked = scratch / "unpacked"
        unpacked.mkdir(exist_ok=True)
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    file = member.rsplit("/", 1)[-1]
                    if any(file in its.files for its in PUBLISHED.values() if its.origin == origin):
                        (unpacked / file).write_bytes(archive.read(member))
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):  # a damaged archive
            warnings.warn(f"{wheel} is damaged or truncated and is passed over.", stacklevel=6)
            continue
        return _members(origin, unpacked)
    return {}


def _members(origin: Wheel, folder: Path) -> dict[str, Path]:
    return {
        name: file
        for name, source in PUBLISHED.items()
        if source.origin == origin
        for file in sorted(folder.rglob(source.file))[:1]
    }


def _check(name: str, place: Path) -> None:
    source = PUBLISHED[name]
    if not (difference := source.difference(place)):
        return
    if source.sure:
        raise FetchError(
            f"{difference}, that of the published {name}. The file is damaged or another one: remove it and "
            "fetch it again. To use it as it is, give its path to load."
        )
    warnings.warn(
        f"{difference}, which one place alone has noted of the published {name}: it may be another version "
        "of it, or not that model at all.",
        stacklevel=6,
    )


def _how_to_get(name: str, tried: list[str]) -> str:
    source = PUBLISHED[name]
    begin = (
        f"{name} is not in the cache ({cache_folder()}), and could not be obtained. Tried:\n  "
        + "\n  ".join(tried)
    )
    if isinstance(source.origin, Wheel):
        needed = (
            f"Needed: {source.file}, or a wheel that holds it. Where there is a network, run\n"
            f"  pip download --no-deps {source.origin.requirement}\n"
            "put the wheel, of whatever platform, or the file into a folder of this machine, and set the "
            "environment variable JAXMLIP_WEIGHTS to that folder."
        )
    else:
        into = f"a folder named {source.origin.folder} in " if len(source.files) > 1 else ""
        needed = (
            f"Needed: {' and '.join(source.files)}. Where there is a network, fetch\n  "
            + "\n  ".join(map(source.origin.of, source.files))
            + f"\nput what you get into {into}a folder of this machine, and set the environment variable "
            "JAXMLIP_WEIGHTS to that folder."
        )
    return f"{begin}\n{needed}"


def _complaint(output: str) -> str:
    """The last line of the output of a tool, without addresses: they can hold passwords."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")] or lines or ["it says nothing"]
    text = re.sub(r"\S+://\S+", "…", errors[-1])
    text = re.sub(r"host='[^']*'", "host=…", text)
    return re.sub(r"(?i)\b(?:[a-z0-9-]+\.)+(?!whl\b)[a-z]{2,}\b(?::\d+)?", "…", text)[:300]
