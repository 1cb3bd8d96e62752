"""One process at a time in the folder of a run."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from jaxmlip.system.files import check_folder

LOCK = "lock"  # in the folder of a run
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
        warnings.warn(
            f"the file system of {folder} has no locks ({error.strerror}): nothing keeps a second process "
            "from working in this folder.",
            stacklevel=4,
        )
    return True


def _owner(number: int) -> str:
    return os.pread(number, 200, 0).decode(errors="replace").strip() or "another process"
