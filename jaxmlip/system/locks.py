"""One process at a time in the folder of a run, or in each of many parts of a work."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from jaxmlip.system.files import check_folder

LOCK = "lock"  # in the folder of a run
CLAIMS = "claims"  # in a folder with many parts
WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems without locks


class InUseError(RuntimeError):
    """Another process works in this folder. The message says which one, and since when."""


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keeps other processes out of `folder`, which is made if it does not exist.

    It uses flock(2) on the file `lock`: the kernel releases it when its process ends in any way, so there are
    no stale locks. It holds between hosts if their file system supports such locks (NFS from version 4 on,
    Lustre mounted with `flock`). If there are no locks at all, a warning says so.

    Raises InUseError if another process has it, and PlaceError if the folder cannot be made.
    """
    folder = Path(folder)
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    number = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # A process that calls `in_use` holds the lock for a moment.
        if not any(_taken(number, folder) or time.sleep(0.1) for _ in range(5)):
            raise InUseError(
                f"{folder} is in use by {_owner(number)}. Wait for that process or end it, or give another "
                "folder."
            )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(number, 0)
        os.pwrite(number, f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode(), 0)
        yield
    finally:
        os.close(number)


class Claims:
    """Parts of a work in `folder`, each of which one process at a time may have.

    A part is a byte of one file, locked by fcntl(2): the kernel releases it when its process ends in any way,
    and there is no file for each part. It holds between hosts where `locked` does. Without locks every part
    can be had, with a warning.
    """

    def __init__(self, folder: str | Path):
        self.folder = folder
        self.number = os.open(Path(folder) / CLAIMS, os.O_RDWR | os.O_CREAT, 0o666)

    def close(self) -> None:
        os.close(self.number)

    @contextmanager
    def claimed(self, part: int) -> Iterator[bool]:
        """True within the block if this process has the part, which it then gives back."""
        try:
            fcntl.lockf(self.number, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, part)
        except (BlockingIOError, PermissionError):  # POSIX allows either where another has it
            yield False
            return
        except OSError as error:
            if error.errno not in WITHOUT:
                raise
            _warn_of_no_locks(self.folder, error)
        try:
            yield True
        finally:
            with suppress(OSError):
                fcntl.lockf(self.number, fcntl.LOCK_UN, 1, part)


def in_use(folder: str | Path) -> str | None:
    """The process that has locked `folder`, or None."""
    try:
        number = os.open(Path(folder) / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        return None if _taken(number, folder) else _owner(number)
    finally:
        os.close(number)


def _taken(number: int, folder: str | Path) -> bool:
    """True while this process has the lock."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT:
            raise
        _warn_of_no_locks(folder, error)
    return True


def _warn_of_no_locks(folder: str | Path, error: OSError) -> None:
    warnings.warn(
        f"the file system of {folder} has no locks ({error.strerror}): nothing keeps a second process "
        "from working in this folder.",
        stacklevel=5,
    )


def _owner(number: int) -> str:
    return os.pread(number, 200, 0).decode(errors="replace").strip() or "another process"
