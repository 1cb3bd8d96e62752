"""Cache of converted models on this machine, a folder for each name."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from pathlib import Path

from jaxmlip.potential import ManifestError, Potential, read_folder
from jaxmlip.system.borders import brief
from jaxmlip.system.console import detail
from jaxmlip.system.files import cache_folder
from jaxmlip.zoo.download import published_files
from weights_convert.published import MODELS, Source


def models_folder() -> Path:
    """The folder of converted models, which has a folder for each name."""
    return cache_folder() / "models"


def cached() -> list[str]:
    """The names of `MODELS` whose converted models, of one head at least, are on this machine."""
    return [
        name
        for name, source in MODELS.items()
        if any((_kept(name, head) / "manifest.json").is_file() for head in source.heads or (None,))
    ]


def _kept(name: str, head: str | None) -> Path:
    return models_folder() / (name if head is None else f"{name}-{head}")


def load_known(name: str, head: str | None = None) -> Potential:
    """The potential of a name of `MODELS`: from the cache, or found, converted and cached now.

    `head` is one of its heads if it has any.

    Raises FetchError if its file cannot be obtained, CheckpointError if it cannot be converted.
    """
    kept = _kept(name, head)
    if kept.exists():
        try:
            found = read_kept(kept, MODELS[name])
            detail(f"{name}: from the cache, {kept}")
            return found
        except (ManifestError, OSError) as error:
            warnings.warn(
                f"the converted model in the cache cannot be used, and is made again: {error}", stacklevel=3
            )
    with tempfile.TemporaryDirectory(prefix="jaxmlip-", ignore_cleanup_errors=True) as scratch:
        found = published_files(name, Path(scratch))
        made = {each: _convert_and_keep(each, file, head) for each, file in found.items()}
    return made[name]


def read_kept(folder: Path, source: Source) -> Potential:
    """The converted model in the cache. Raises ManifestError unless it is complete and of this source."""
    potential, changed = read_folder(folder)
    # Refused here: users may change their own folders on purpose, but not this one.
    if changed:
        raise ManifestError(changed)
    found = potential.manifest.get("source_sha256")
    if source.sure and not source.git and source.sha256 != found:
        raise ManifestError(
            f"it was made of a source with sha256 {brief(found)}, needed {source.sha256}.", folder
        )
    return potential


def _convert_and_keep(name: str, file: Path, head: str | None) -> Potential:
    """Converts `file` and installs the result in the cache atomically, even beside other processes."""
    from weights_convert.conversion import convert_file  # late, because it imports jaxmlip

    potential = convert_file(file, name, head)
    folder = models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside its place, because a rename is atomic only within a file system.
        with tempfile.TemporaryDirectory(
            prefix=f".{name}-", dir=folder, ignore_cleanup_errors=True
        ) as beside:
            potential.save(Path(beside) / "new")
            potential = Potential.from_folder(Path(beside) / "new")
            put_in_place(Path(beside) / "new", _kept(name, head), MODELS[name])
    except OSError as error:
        warnings.warn(
            f"the converted model cannot be kept in {folder} ({error.strerror or error}), and will be made "
            "again next time. Set JAXMLIP_CACHE to a folder that can be written.",
            stacklevel=4,
        )
    return potential


def put_in_place(new: Path, target: Path, source: Source) -> None:
    """Renames `new` to `target`, unless another process has put a valid model there meanwhile."""
    for attempt in range(10):
        with contextlib.suppress(OSError):
            os.rename(new, target)
            return
        with contextlib.suppress(ManifestError, OSError):
            read_kept(target, source)
            return
        # The folder there is damaged, or another process is just replacing it.
        with contextlib.suppress(OSError):
            os.rename(target, new.with_name(f"damaged-{attempt}"))
    raise OSError(f"{target} is in the way and cannot be replaced")
