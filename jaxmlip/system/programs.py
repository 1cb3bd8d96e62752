"""Compiled programs, of which a process can hold only so many.

XLA maps each kernel of a program into memory by itself, three pieces for each: 2,000 to 3,000 for the energy
and the Hessian of crystals of one shape. Linux allows a process 65,530 pieces; beyond them LLVM ends it
without a traceback.
"""

from __future__ import annotations

import gc
from functools import cache
from pathlib import Path

import jax
import jax.monitoring

from jaxmlip.system.console import say

# Of the pieces that the kernel allows. Energy and Hessian of one MACE in five shapes, which most libraries of
# small crystals need, map 16,700; one program more may take a thousand.
SHARE = 0.27


class Programs:
    """Counts the pieces of memory that a process maps, and drops its compiled programs when they are many."""

    def __init__(self, limit: int | None = None):
        """`limit` is the number of pieces that are allowed; None if there is no limit."""
        self.limit = limit
        self.allowed = SHARE * limit if limit else float("inf")
        self.compiled = True  # something, since they were counted last
        self.dropped = False

    def note(self, event: str, duration: float, **_) -> None:
        """Receives events of JAX."""
        self.compiled |= event.endswith("backend_compile_duration")

    def make_room(self) -> None:
        """Drops all compiled programs if too many pieces are mapped. Not to be called while JAX traces.

        Programs that are still needed are compiled anew, or read from the compilation cache. It counts only
        after a compilation, since counting takes milliseconds.
        """
        if not self.compiled or self.limit is None:
            return
        self.compiled = False
        if (before := mapped()) <= self.allowed:
            return
        jax.clear_caches()
        gc.collect()
        # What others map does not go away by this, and is no reason to drop programs each time.
        self.allowed = max(SHARE * self.limit, 2 * mapped())
        if not self.dropped:
            self.dropped = True
            say(
                f"Compiled programs were dropped, since {before:,} pieces of memory were mapped and Linux "
                f"allows {self.limit:,} (vm.max_map_count). This is said once.",
                stderr=True,
            )


@cache
def programs() -> Programs:
    """Those of this process."""
    found = Programs(most_mapped())
    jax.monitoring.register_event_duration_secs_listener(found.note)
    return found


def mapped() -> int:
    """The number of pieces of memory that this process maps; 0 if the system does not tell."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # only Linux has it
        return 0


def most_mapped() -> int | None:
    """The number of pieces that the kernel allows; None if it does not tell."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return None
