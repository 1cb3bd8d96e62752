"""Processes that the tests are spread over: how many, what runs in which, and the programs that they keep.

Each compiles a part of the programs, so that none meets Linux's limit of mapped memory, which
jaxmlip.system.programs explains.
"""

import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

# The tests compile hundreds of programs and run each once or twice: LLVM's optimiser and XLA's newer way to
# fuse would cost more than they gain. XLA ends a process that gives it a flag which it does not know.
QUICK = "--xla_backend_optimization_level=0" + (
    " --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.9.") else ""
)
# What is compared with others' numbers is computed as users do, with optimisation, in a process of its own.
OPTIMISED = (
    "test_canary.py",
    "test_parity.py",
    "test_mace_conversion.py::test_a_converted_model_repeats_the_original[density]",
)
SHARED = (
    "chgnet-0.3",
    "chgnet-0.2",
    "chgnet-options",
    "m3gnet-smooth",
    "m3gnet-spherical",
    "mattersim",
    "matgl-chgnet",
    "mace-density",
    "mace-residual",
    "mace-nonlinear",
)
KEPT = Path(__file__).parents[1] / ".pytest_cache/d/programs"  # `pytest --cache-clear` drops them
MOST_KEPT = 2 * 2**30  # bytes; those of one state of the code take a tenth
MEMORY = 4 * 2**30  # bytes for each process
DURATIONS = "durations/tests"  # in pytest's cache
THREADS = 2  # for each process: crystals of tests are small


def cores() -> int:
    """How many cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1


def environment(user: Mapping[str, str]) -> dict[str, str]:
    """Variables that limit threads and keep compiled programs from run to run; what a user set stays."""
    threads = user.get("NPROC", str(min(THREADS, cores())))
    limits = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    added = dict.fromkeys(limits, threads) if cores() > THREADS else {}
    if "JAX_COMPILATION_CACHE_DIR" not in user:
        # XLA splits a program for its threads, and does not tell such programs apart when kept.
        added["JAX_COMPILATION_CACHE_DIR"] = str(KEPT / f"{threads}-threads")
        added["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # hundreds of small ones take longest
        added["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as jaxmlip.system.runtime explains
    return {name: value for name, value in added.items() if name not in user}


def drop_kept_programs(folder: Path = KEPT, most: int = MOST_KEPT) -> str | None:
    """Drops all kept programs if those of many states of the code have gathered, and says so."""
    size = sum(path.stat().st_size for path in folder.rglob("*"))
    if size <= most:
        return None
    shutil.rmtree(folder)
    return f"kept programs: {size / 2**30:.1f} GiB dropped, more than {most / 2**30:g} GiB"


def set_flags(config) -> None:
    """Sets XLA's flags, which it reads when it first compiles; those that a user set stay."""
    optimised = named_files(config) and all(is_optimised(argument) for argument in config.args)
    os.environ.setdefault("XLA_FLAGS", "" if optimised else QUICK)


def named_files(config) -> bool:
    """Whether files of tests, or tests in them, were asked for by name, and no folder."""
    return all(Path(argument.split("::")[0]).suffix == ".py" for argument in config.args)


def number_of_workers(config) -> int:
    """Processes for `-n auto`: one for each core as far as memory lasts, and one for what is optimised.

    None for a file or two: to start processes would take longer than they save.
    """
    if named_files(config) and len(config.args) < 3:
        return 0
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # the system does not tell
        memory = 0
    return max(2, min(cores() + 1, memory // MEMORY))


def is_optimised(nodeid: str) -> bool:
    file, *test = nodeid.split("::", 1)
    return "::".join([Path(file).name, *test]).startswith(OPTIMISED)


class Groups(LoadScopeScheduling):
    """Gives each process one group of tests after another, those that took longest last time first.

    The last process compiles with optimisation.
    """

    def __init__(self, config, log=None):
        super().__init__(config, log)
        self.seconds = known_durations(config)

    def _split_scope(self, nodeid: str) -> str:
        """The tests of a model, which share programs, wherever they are; or else those of a file."""
        file, _, test = nodeid.partition("::")
        if is_optimised(nodeid):
            return "optimised"
        return next((model for model in SHARED if model in test), file)

    def _assign_work_unit(self, node) -> None:
        scope = self._next(node)
        if scope is None:
            node.shutdown()
            return
        self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)

    def _reschedule(self, node) -> None:
        if self._next(node) is None and not node.shutting_down:
            node.shutdown()
        else:
            super()._reschedule(node)

    def _next(self, node) -> str | None:
        """The longest group that is for this process, or whose own process there is no more."""
        there = {optimises(other) for other in self.nodes if not other.shutting_down}
        able = []
        for scope, tests in list(self.workqueue.items()):
            if all(tests.values()):  # what a process had done before it crashed
                del self.workqueue[scope]
                continue
            wanted = scope == "optimised"
            if wanted == optimises(node) or wanted not in there:
                able.append(scope)
        return max(able, key=self._expected, default=None)

    def _expected(self, scope: str) -> float:
        """Seconds that a group took, with a mean for each test that has not run here; 0 where none has."""
        tests = self.workqueue[scope]
        mean = sum(self.seconds.values()) / max(1, len(self.seconds))
        return sum(self.seconds.get(test, mean) for test in tests)


class Durations:
    """What each test took, kept in pytest's cache for the order of the next run."""

    def __init__(self, config):
        self.config = config
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "cache"):
            took = {test: round(seconds, 2) for test, seconds in self.seconds.items()}
            self.config.cache.set(DURATIONS, known_durations(self.config) | took)


def known_durations(config) -> dict[str, float]:
    """Seconds of each test when it last ran; none with `-p no:cacheprovider`."""
    return config.cache.get(DURATIONS, {}) if hasattr(config, "cache") else {}


def optimises(node) -> bool:
    return node.gateway.spec.env.get("XLA_FLAGS") == ""
