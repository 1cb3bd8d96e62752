"""Compiled programs: a process can hold only a limited number of them.

XLA maps each kernel of a program into memory separately, in three pieces: 2,000 to 3,000 pieces for the
energy and the Hessian of crystals of one shape. Linux allows a process 65,530 pieces; beyond that LLVM ends
the process without a traceback.
"""

from __future__ import annotations

import gc
from functools import cache
from pathlib import Path

import jax
import jax.monitoring

from jaxmlip.system.console import note

# Options for programs that take long to compile and milliseconds to run.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# Fraction of the pieces that the kernel allows. Energy and Hessian of one MACE in five shapes, which most
# libraries of small crystals need, map 16,700; one program more may take a thousand.
SHARE = 0.27


class Programs:
    """Counts the pieces of memory that a process maps, and drops compiled programs when there are many."""

    def __init__(self, limit: int | None = None, share: float = SHARE):
        """`limit` is the number of pieces that the kernel allows, None if there is none.

        Programs may map this `share` of them.
        """
        self.limit, self.share = limit, share
        self.left = 0  # pieces that were mapped when programs had been dropped
        self.compiled = True  # True if anything was compiled since the last count
        self.dropped = False

    def note(self, event: str, duration: float, **_) -> None:
        """Receives events of JAX."""
        self.compiled |= event.endswith("backend_compile_duration")

    def make_room(self) -> None:
        """Drops all compiled programs if too many pieces are mapped. Not to be called while JAX traces.

        Programs that are still needed are compiled again, or read from the compilation cache. Pieces are
        counted only after a compilation, because counting takes milliseconds.
        """
        if not self.compiled or self.limit is None:
            return
        self.compiled = False
        # Pieces that other code maps remain, and are no reason to drop programs each time.
        if (before := mapped()) <= max(self.share * self.limit, 2 * self.left):
            return
        jax.clear_caches()
        gc.collect()
        self.left = mapped()
        if not self.dropped:
            self.dropped = True
            note(
                f"Compiled programs were dropped, since {before:,} pieces of memory were mapped and Linux "
                f"allows {self.limit:,} (vm.max_map_count). This is said once.",
                stderr=True,
            )


@cache
def programs() -> Programs:
    """The programs of this process."""
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
