"""What this installation has and lacks: versions, extras, devices, memory, caches.

Nothing here may fail, since it is asked for where something else does: a check that cannot be made is a row
that says why. That is also why each imports what it needs by itself.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from jaxmlip.system.versions import own_version

Row = dict[str, Any]
PROBLEM = "problem"  # the key of what is wrong, in any row
EXTRAS = {
    "phonopy": "files for phonopy, force constants in its supercells, comparisons",
    "phono3py": "thermal conductivity, third order from displacements",
    "slurm": "--slurm of sweeps and screenings",
    "parquet": "the table of a screening as Parquet",
    "html": "a page to look at phonons in a browser",
    "cuequivariance": "MACE on NVIDIA GPUs, with cuequivariance-ops-jax-cu12 or -cu13",
}
SETTINGS = ("JAXMLIP_", "JAX_", "XLA_", "CUDA_VISIBLE_DEVICES")  # how names of variables begin
HARDWARE = {  # what is there if the machine has some, its name, and what makes JAX see it
    "/dev/nvidia0": ("an NVIDIA GPU", "gpu", "pip install 'jax[cuda13]' (or cuda12, for older drivers)"),
    "/dev/accel0": ("a TPU", "tpu", "pip install 'jax[tpu]'"),
}
COMPLETION = (
    "completion by the tab key: jaxmlip --tyro-write-completion bash "
    "~/.local/share/bash-completion/completions/jaxmlip, in a folder that exists (or zsh)"
)
PATIENCE = 1.0  # seconds for the files of one folder
GB, MB = 1e9, 1e6


def examine() -> dict[str, list[Row]]:
    """All that was found, by section; a row that has `problem` says what is wrong and what to do."""
    checks: dict[str, Callable[[], Iterator[Row]]] = {
        "packages": _packages,
        "extras": _extras,
        "devices": _devices,
        "precision": _precision,
        "machine": _machine,
        "folders": _folders,
        "settings": _settings,
    }
    found: dict[str, list[Row]] = {}
    for name, check in checks.items():
        rows = found[name] = []
        try:
            for row in check():
                rows.append(row)  # one by one, so that those before an error stay
        except Exception as error:  # the point of it all
            rows.append({PROBLEM: f"could not be found out: {type(error).__name__}: {error}"})
    return found


def main(as_json: bool = False) -> None:
    """Prints what `examine` finds, as tables or as JSON, with what is wrong at the end."""
    found = examine()
    try:
        from jaxmlip.system.console import say
        from jaxmlip.system.tables import Table, show
    except Exception:  # the packages that tables need are among the missing ones
        as_json = True
    if as_json:
        print(json.dumps(found, indent=1))
        return
    wrong = []
    for name, rows in found.items():
        wrong += [f"{name}: {row[PROBLEM]}" for row in rows if PROBLEM in row]
        if told := [{k: x for k, x in row.items() if k != PROBLEM} for row in rows if set(row) - {PROBLEM}]:
            show(Table.of(name, told, 1))
    for line in wrong:
        say(f"wrong? {line}", style="yellow")
    if not wrong:
        say("nothing is wrong")
    say(COMPLETION)


def _packages() -> Iterator[Row]:
    from packaging.requirements import Requirement

    yield {"package": "Python", "version": platform.python_version(), "needed": ">=3.11"}
    yield {"package": "jaxmlip", "version": own_version(), "needed": ""}
    for line in ["jaxlib", *_required()]:
        its = Requirement(line)
        if its.marker is not None and not its.marker.evaluate({"extra": ""}):
            continue
        row: Row = {"package": its.name, "version": None, "needed": str(its.specifier)}
        how = f"pip install '{its.name}{its.specifier}'"
        try:
            row["version"] = version(its.name)
        except PackageNotFoundError:
            row[PROBLEM] = f"{its.name} is not installed: {how}"
        else:
            if not its.specifier.contains(row["version"], prereleases=True):
                row[PROBLEM] = f"found {its.name} {row['version']}, needed {its.specifier}: {how}"
        yield row


def _required() -> list[str]:
    """The requirements of this package, those of extras included, as its metadata have them."""
    try:
        return requires("jaxmlip") or []
    except PackageNotFoundError:
        raise RuntimeError(
            "jaxmlip is run from a checkout and not installed, so that nothing tells what it requires: "
            "pip install -e . there"
        ) from None


def _extras() -> Iterator[Row]:
    from packaging.requirements import Requirement

    all_ = [Requirement(line) for line in _required()]
    for extra, what in EXTRAS.items():
        its = [r for r in all_ if r.marker is not None and r.marker.evaluate({"extra": extra})]
        found, ready = [], True
        for each in (r for r in its if not r.marker.evaluate({"extra": ""})):
            try:
                installed = version(each.name)
            except PackageNotFoundError:
                found.append(f"no {each.name}")
                ready = False
            else:
                found.append(f"{each.name} {installed}")
                ready &= each.specifier.contains(installed, prereleases=True)
        how = "" if ready else f"pip install 'jaxmlip[{extra}]'"
        yield {"extra": extra, "for": what, "found": ", ".join(found), "get it by": how}


def _devices() -> Iterator[Row]:
    import jax

    there = jax.devices()
    for each in there:
        told = each.memory_stats() or {} if each.platform != "cpu" else {}
        memory = told["bytes_limit"] / GB if "bytes_limit" in told else None
        yield {"device": str(each), "kind": each.device_kind, "memory / GB": memory}
    for file, (name, kind, how) in HARDWARE.items():
        if Path(file).exists() and jax.default_backend() == "cpu" and "JAX_PLATFORMS" not in os.environ:
            yield {PROBLEM: f"{name} is here ({file}), but JAX has no {kind} and computes on the CPU: {how}"}


def _precision() -> Iterator[Row]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    x = np.linspace(1, 2, 64)
    with jax.enable_x64(True):
        found = jax.jit(lambda x: jnp.sqrt(x) @ jnp.sqrt(x))(x)
    off = abs(float(found) - x.sum()) / x.sum()
    row: Row = {"precision": "float64", "found": "works"}
    if found.dtype != np.float64 or not off < 1e-13:
        wrong = f"a sum came in {found.dtype} and off by {off:.0e}, needed float64 and 1e-13"
        row |= {"found": "broken", PROBLEM: f"{wrong}; install other versions of jax and jaxlib"}
    yield row


def _machine() -> Iterator[Row]:
    from jaxmlip.system.memory import available
    from jaxmlip.system.runtime import cores

    yield {"machine": "Python", "found": sys.executable}
    yield {"machine": "jaxmlip", "found": str(Path(__file__).parents[1])}
    yield {"machine": "system", "found": platform.platform()}
    yield {"machine": "cores for this process", "found": cores()}
    yield {"machine": "memory that may be used / GB", "found": round(available() / GB, 1)}


def _folders() -> Iterator[Row]:
    from jaxmlip.system.files import cache_folder, check_folder

    top = cache_folder()
    names = sorted(each.name for each in top.iterdir() if each.is_dir()) if top.is_dir() else []
    held = {"models": "converted models", "xla": "compiled programs"}
    rows = [("cache (JAXMLIP_CACHE)", top), *((held.get(n, n), top / n) for n in names)]
    rows += [(each.parent.name, each.parent) for each in sorted(top.glob("models/*/manifest.json"))]
    for what, setting in (("weights", "JAXMLIP_WEIGHTS"), ("compiled programs", "JAX_COMPILATION_CACHE_DIR")):
        if os.environ.get(setting):
            rows.append((f"{what} ({setting})", Path(os.environ[setting]).expanduser()))
    for what, folder in rows:
        row: Row = {"what": what, "folder": str(folder), "MB": size(folder)}
        if "WEIGHTS" in what:
            if not folder.is_dir():
                row[PROBLEM] = f"JAXMLIP_WEIGHTS: {folder} is no folder; make it, or unset the variable"
        elif folder == top:
            try:
                check_folder(folder)
            except OSError as error:
                row[PROBLEM] = f"{error} Set JAXMLIP_CACHE to a folder that can be written."
        yield row


def _settings() -> Iterator[Row]:
    for name in sorted(os.environ):
        if name.startswith(SETTINGS):
            yield {"variable": name, "value": os.environ[name]}


def size(folder: Path, patience: float = PATIENCE) -> str | float:
    """MB of all files in a folder; after `patience` seconds what was counted so far, as "> 1.2"."""
    total, start = 0, time.monotonic()
    for place, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.lstat(os.path.join(place, file)).st_size
            except OSError:  # removed meanwhile
                continue
        if time.monotonic() - start > patience:
            return f"> {total / MB:.1f}"
    return total / MB
