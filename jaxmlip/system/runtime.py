"""Settings of the process: freed memory and compiled programs are kept, garbage is collected rarely."""

from __future__ import annotations

import contextlib
import gc
import os

import jax

from jaxmlip.system.allocator import keep_freed_memory
from jaxmlip.system.files import cache_folder

ONLY_FATAL = 3  # a level of absl's messages
RARELY = (100_000, 50, 50)  # thresholds of Python's garbage collector


def set_up_process() -> None:
    """Makes this process keep freed memory and compiled programs, as `load` does; a second call does nothing.

    JAXMLIP_MALLOC=system leaves memory alone. A compilation cache that the user has set stays.
    """
    keep_freed_memory()
    _keep_compiled_programs()


def collect_rarely() -> None:
    """Makes Python look for circular garbage a hundred times less often; only for our own programs.

    JAX traces a network as hundreds of thousands of small, long-lived objects. Searching them again and
    again, as Python does by default, takes a tenth of the time of `jaxmlip phonons` on a small crystal.
    """
    gc.set_threshold(*RARELY)


def _keep_compiled_programs() -> None:
    """Makes JAX keep compiled programs in the cache folder, unless the user chose a place for them."""
    if jax.config.jax_compilation_cache_dir is not None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    # XLA splits a program for the available cores, but its cache does not distinguish such programs.
    programs = cache_folder() / "xla" / f"{cores()}-cores"
    try:
        programs.mkdir(parents=True, exist_ok=True)
    except OSError:  # only time is lost
        return
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # On a CPU with AVX-512, XLA takes the hints prefer-no-gather and prefer-no-scatter in cached programs for
    # instructions that the CPU lacks (jax-ml/jax#38445), and wrongly warns of a crash at each. This message
    # cannot be switched off alone. Failures still raise; JAX_LOGGING_LEVEL shows all messages.
    if "JAX_LOGGING_LEVEL" not in os.environ:
        with contextlib.suppress(ImportError, AttributeError):  # in another jaxlib the messages stay
            from jaxlib import utils

            utils.absl_set_min_log_level(ONLY_FATAL)


def cores() -> int:
    """The number of cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1
