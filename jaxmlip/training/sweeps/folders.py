"""The folders of a sweep's runs: a hash of what a run computes, and its results.

A run is ID.yaml (its configuration), ID/ (its folder) and ID.log (the output of its process).
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jaxmlip.system.begun import changes, described
from jaxmlip.system.files import sha256
from jaxmlip.training.checkpoints import steps_in
from jaxmlip.training.config import TrainConfig, flat, read_config
from jaxmlip.training.records import CONFIG, FREE, RESULTS, RunFolderError

# Settings that do not change the resulting potential.
IDLE = tuple(key for key in FREE if key != "final")
PATHS = ("data.train", "data.validation", "data.test", "replay.data")


def digest(config: TrainConfig) -> str:
    """A hash of what a run of `config` computes, see `Run.id`."""
    usual, own = flat(TrainConfig()), {}
    for key, value in flat(config).items():
        if key in IDLE or value == usual[key]:
            continue
        if key in PATHS:
            value = [contents(path) for path in value]
        elif key == "model.start" and Path(value).exists():
            value = contents(value)
        own[key] = value
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]


def contents(path: str | Path) -> str:
    """A hash of a file, of a pattern's files, or of all files in a folder. Raises FileNotFoundError."""
    from jaxmlip.data.dataset import MANIFEST

    path = Path(path)
    if (path / MANIFEST).is_file():  # it has the hashes of all shards
        return contents(path / MANIFEST)
    if path.is_file():
        told = path.stat()
        return _hash_of_file(path.absolute(), told.st_mtime_ns, told.st_size)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return _hash([f"{p.relative_to(path)} {contents(p)}" for p in files])
    files = sorted(glob.glob(str(path)))
    if not files:
        raise FileNotFoundError(
            f"{path} does not exist (relative to {Path.cwd()}); its contents are needed for a run's id."
        )
    return _hash([contents(p) for p in files])


@lru_cache(4096)
def _hash_of_file(path: Path, changed: int, size: int) -> str:
    return sha256(path)


def _hash(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@lru_cache(8)
def begun(sweep: Path, changed: int) -> dict[str, list[Path]]:
    """The folders of runs in that of a sweep, by the digest at the end of their names."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(p for p in sweep.iterdir() if p.is_dir()):
        found.setdefault(folder.name.rpartition("-")[2], []).append(folder)
    return found


def beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def steps_done(folder: str | Path) -> int | None:
    """The step of the last checkpoint in the folder of a run, or None."""
    return max(steps_in(Path(folder) / "checkpoints"), default=None)


def results_in(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The contents of results.json in the folder of a run of `config`; None if the run is not finished.

    Raises RunFolderError for results of another configuration.
    """
    try:
        results = json.loads((folder / RESULTS).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise RunFolderError(
            f"{folder / RESULTS} is damaged. Remove it, and start the sweep again."
        ) from None
    # Paths of files do not matter: their contents are in the id.
    free = (*IDLE, *PATHS, "model.start")
    if changed := changes(flat(read_config(folder / CONFIG)), flat(config.absolute()), free):
        raise RunFolderError(
            f"{folder} has the results of another configuration than its name says. It was probably edited. "
            f"Remove that folder, and start the sweep again:\n  {described(changed)}"
        )
    return results
