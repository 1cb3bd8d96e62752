"""Keeps freed memory, so that a CPU does not spend half its time on page faults.

XLA asks for the scratch memory of a computation at its start and frees it at its end: 200 MB for energy and
forces of 216 atoms. By default glibc returns blocks of that size to the kernel, and the next call faults
every page in again, zeroed by the kernel: half of its time. If glibc keeps all freed memory, however much,
the process pays only once. (The largest threshold that mallopt takes is 2 GB; a training step frees more.)
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# malloc.h: parameters of mallopt
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8
NEVER = -1  # as a threshold, see mallopt(3)
USUAL_MAPS = 65536  # the default of M_MMAP_MAX


@cache
def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for its next use; True if that could be done.

    It needs glibc, and works best before JAX has started its threads. JAXMLIP_MALLOC=system leaves the
    allocator alone.
    """
    mallopt = _mallopt()
    if mallopt is None:
        return False
    settings = {
        M_ARENA_MAX: 1,  # arenas of other threads cannot grow beyond 64 MB
        M_MMAP_MAX: 0,  # large blocks come from the heap, which is kept, not from maps, which are not
        M_MMAP_THRESHOLD: 2**20,  # above which maps are allowed again, see below
        M_TRIM_THRESHOLD: NEVER,
        M_TOP_PAD: 64 * 2**20,
    }
    return all(mallopt(parameter, value) for parameter, value in settings.items())


def give_memory_back() -> None:
    """Gives memory that was freed but kept back to the kernel.

    Call it between computations of different sizes: in a kept heap they leave holes of many sizes, which add
    up to several times the memory that any of them needs.
    """
    if keep_freed_memory():
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def giving_memory_back() -> Iterator[None]:
    """A scope for work with a memory limit: kept memory, and large blocks when freed, go to the kernel.

    A kept heap of gigabytes becomes fragmented, and then holds more than was ever in use at once.
    """
    if not keep_freed_memory():
        yield
        return
    give_memory_back()
    _mallopt()(M_MMAP_MAX, USUAL_MAPS)
    try:
        yield
    finally:
        _mallopt()(M_MMAP_MAX, 0)


def _mallopt():
    """The function of that name in the C library, if there is one and it may be used."""
    if not sys.platform.startswith("linux") or os.environ.get("JAXMLIP_MALLOC") == "system":
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)
