"""Settings of the whole process: memory that was freed is kept, and so are compiled programs."""

from __future__ import annotations

import contextlib
import os

import jax

from jaxmlip.system.allocator import keep_freed_memory
from jaxmlip.system.files import cache_folder

ONLY_FATAL = 3  # of absl's levels of messages


def set_up_process() -> None:
    """Has this process keep freed memory and compiled programs, as `load` does; a second call does nothing.

    JAXMLIP_MALLOC=system leaves memory alone, a compilation cache of the user's own is kept.
    """
    keep_freed_memory()
    _keep_compiled_programs()


def _keep_compiled_programs() -> None:
    """Has JAX keep compiled programs in the cache folder, unless the user chose a place for them."""
    if jax.config.jax_compilation_cache_dir is not None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    # XLA splits a program for the cores that it may use, and does not tell such programs apart in its cache.
    programs = cache_folder() / "xla" / f"{_cores()}-cores"
    try:
        programs.mkdir(parents=True, exist_ok=True)
    except OSError:  # nothing is lost but time
        return
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # On a CPU with AVX-512, XLA takes the hints prefer-no-gather and prefer-no-scatter in programs that it
    # kept for instructions that the CPU lacks (jax-ml/jax#38445), and warns of a crash at each, wrongly. It
    # cannot be told to leave out this message alone. What fails still raises; JAX_LOGGING_LEVEL shows all.
    if "JAX_LOGGING_LEVEL" not in os.environ:
        with contextlib.suppress(ImportError, AttributeError):  # another jaxlib: the messages stay
            from jaxlib import utils

            utils.absl_set_min_log_level(ONLY_FATAL)


def _cores() -> int:
    """How many cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1
