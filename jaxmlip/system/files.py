"""Files and folders that are written as a whole or not at all; the cache folder; sha256.

New contents are written beside their place, in a hidden folder of the same file system, and moved there when
they are complete; until then, and if anything goes wrong, the old contents stay. What a killed process left
beside a file is removed when that file is written again.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

REMAIN = "-new-"  # in the names of hidden folders for incomplete files


class PlaceError(OSError):
    """A place cannot be written to. The message says what was found there and what to do."""


def cache_folder() -> Path:
    """The folder for files that can be made again: JAXMLIP_CACHE, or the user's cache folder."""
    own = os.environ.get("JAXMLIP_CACHE")
    return Path(own).expanduser() if own else Path(platformdirs.user_cache_dir("jaxmlip"))


def write_whole(path: str | Path, text: str) -> None:
    """Writes a text file (UTF-8) atomically: old or new at every moment. Raises as `writing` does."""
    with writing(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A file to write, with the name of `path`; at the end of the block it replaces `path`.

    Raises PlaceError as `check_file` does, and OSError, with what to do, if writing fails.
    """
    target = _checked_file(path)
    with _explained(path), _beside(target) as draft:
        yield draft
        if target.exists():
            shutil.copymode(target, draft)
        os.replace(draft, target)


@contextlib.contextmanager
def writing_folder(path: str | Path, last: str | None = None) -> Iterator[Path]:
    """An empty folder to write to; at the end of the block it replaces `path`.

    If `path` exists, its files of the same names are replaced one by one, `last` the last of them, and
    others stay. Raises PlaceError as `check_folder` does, and OSError, with what to do, if writing fails.
    """
    target = _checked_folder(path)
    place = _there(target)
    with _explained(path), _beside(place / target.name) as draft:
        draft.mkdir()
        yield draft
        if place != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(draft, target)
            return
        files = sorted(each.relative_to(draft) for each in draft.rglob("*") if each.is_file())
        for file in files:
            (target / file.parent).mkdir(parents=True, exist_ok=True)
            _checked_file(target / file)
        for file in sorted(files, key=lambda file: file.name == last):
            os.replace(draft / file, os.path.realpath(target / file))


def sha256(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: str | Path) -> None:
    """Raises PlaceError if no file can be written at `path`: something else is there, or it is forbidden."""
    _try(_checked_file(path).parent, path)


def check_folder(path: str | Path) -> None:
    """Raises PlaceError if no files can be written into a folder `path`, which need not exist yet."""
    _try(_there(_checked_folder(path)), path)


def is_remain(path: Path) -> bool:
    """True for a draft: left by a process that was killed, or being written by one that is running."""
    return path.name.startswith(".") and REMAIN in path.name


def _checked_file(path: str | Path) -> Path:
    target = Path(os.path.realpath(path))  # a link stays a link
    if target.is_dir():
        raise PlaceError(f"{path} is a folder, needed the name of a file to write.")
    if target.exists() and not target.is_file():
        raise PlaceError(f"{path} is a device or a pipe, needed the name of a file to write.")
    if target.exists() and not os.access(target, os.W_OK):
        raise PlaceError(f"{path} may not be changed; give another name, or chmod it.")
    if not target.parent.is_dir():
        raise PlaceError(f"the folder of {path} does not exist; make it first.")
    return target


def _checked_folder(path: str | Path) -> Path:
    target = Path(os.path.realpath(path))
    there = _there(target)
    if not there.is_dir():
        which = path if there == target else there
        raise PlaceError(f"{which} is no folder, needed one to write to; give another name.")
    return target


def _there(target: Path) -> Path:
    """The path itself if it exists, or the nearest existing folder above it."""
    return next(place for place in (target, *target.parents) if place.exists())


def _try(folder: Path, path: str | Path) -> None:
    """Makes a folder in `folder` and removes it: no other check covers all reasons for failure."""
    with _explained(path):
        os.rmdir(tempfile.mkdtemp(prefix=f".{REMAIN}", dir=folder))


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A path with the name of `target`, in a folder of our own beside it that is removed in the end.

    The folder is locked: that distinguishes folders of running processes from those that a kill left.
    """
    prefix = f".{target.name[:40]}{REMAIN}"
    for left in target.parent.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(OSError), _locked(left) as ours:
            if ours:
                shutil.rmtree(left, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        try:
            with _locked(folder, wait=True):
                if folder.exists():  # else another process removed it as left over before it was locked
                    yield folder / target.name
                    return
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Holds the lock of a folder; False if another process has it, or if it cannot be locked."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


@contextlib.contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    """Says what to do if writing fails; errors of reading meanwhile are left as they are."""
    try:
        yield
    except OSError as error:
        place = os.fsdecode(error.filename or REMAIN)
        if error.errno is None or (REMAIN not in place and os.path.realpath(place) != os.path.realpath(path)):
            raise
        told = PlaceError(
            f"{path} cannot be written ({error.strerror or error}). Make room, or choose a place that can be "
            "written; what was there before is as it was."
        )
        told.errno = error.errno
        raise told from None
