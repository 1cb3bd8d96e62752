"""Where the time of a command went: programs that are traced, compiled or read from the cache, and others."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.monitoring

from jaxmlip.system.console import Telling, detail, tells

COMPILED = "/jax/core/compile/backend_compile_duration"  # the cache of programs is asked within
TRACED = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
READ = "/jax/compilation_cache/cache_hits"
LONG = 0.1  # seconds of a program that has a line of its own


class Spent:
    """Listens to JAX, says each program that takes long, and sums up."""

    def __init__(self):
        self.began = time.monotonic()
        self.compiled: list[float] = []  # seconds of each program
        self.read: list[float] = []
        self._is_read = False
        self._spans: list[tuple[float, float]] = []  # of tracing, which nest

    def event(self, event: str, **_) -> None:
        """Receives events of JAX without a duration."""
        self._is_read |= event == READ

    def duration(self, event: str, seconds: float, fun_name: str = "a program", **_) -> None:
        """Receives events of JAX with a duration."""
        if event != COMPILED:
            return
        which, how = (self.read, "read from the cache") if self._is_read else (self.compiled, "compiled")
        which.append(seconds)
        self._is_read = False
        if seconds >= LONG:
            detail(f"{fun_name}: {how} in {seconds:.1f} s")

    def span(self, event: str, start: float, end: float, **_) -> None:
        """Receives events of JAX with their times."""
        if event in TRACED:
            self._spans.append((start, end))

    @property
    def traced(self) -> float:
        """Seconds of tracing; what was traced within other tracing counts once."""
        total, until = 0.0, 0.0
        for start, end in sorted(self._spans):
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total

    def lines(self) -> Iterator[str]:
        """What is said at the end."""
        whole = time.monotonic() - self.began
        compiled, read = sum(self.compiled), sum(self.read)
        if self.compiled or self.read:
            devices = jax.local_devices()
            place = jax.config.jax_compilation_cache_dir or "none is set"
            yield f"on {len(devices)} x {devices[0].device_kind}; cache of programs: {place}"
        yield (
            f"{whole:.1f} s: tracing {self.traced:.1f}, compiling {len(self.compiled)} programs "
            f"{compiled:.1f}, reading {len(self.read)} {read:.1f}, the rest "
            f"{max(0.0, whole - self.traced - compiled - read):.1f}; most memory {_peak() / 1e9:.2f} GB"
        )


def _peak() -> int:
    """The most memory that the process has held, in bytes; Linux counts in units of 1,024."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


@contextmanager
def accounted() -> Iterator[None]:
    """Says where the time within went, if the user asked for details."""
    if not tells(Telling.VERBOSE):
        yield
        return
    spent = Spent()
    jax.monitoring.register_event_listener(spent.event)
    jax.monitoring.register_event_duration_secs_listener(spent.duration)
    jax.monitoring.register_event_time_span_listener(spent.span)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_listener(spent.event)
        jax.monitoring.unregister_event_duration_listener(spent.duration)
        jax.monitoring.unregister_event_time_span_listener(spent.span)
        for line in spent.lines():
            detail(line)
