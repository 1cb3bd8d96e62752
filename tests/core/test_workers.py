"""The processes that these tests are spread over: each test runs once, where it has to."""

import os
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import workers
from conftest import pytest_collection_modifyitems
from workers import Groups

TESTS = [
    "tests/core/test_parity.py::test_a",
    "tests/core/test_parity.py::test_b[chgnet-0.3]",
    "tests/core/test_laws.py::test_a[chgnet-0.3]",
    "tests/core/test_laws.py::test_a[mace-density]",
    "tests/core/test_graph.py::test_a",
    "tests/core/test_canary.py::test_a",
    "tests/core/test_graph.py::test_b",
    "tests/phonons/test_bloch.py::test_a[mace-density-2]",
    "tests/phonons/test_bloch.py::test_b",
    "tests/phonons/test_bloch.py::test_c[2-chgnet-0.3]",
]


@dataclass(eq=False)
class Process:
    """A process as the scheduler sees it: it runs a test once it knows the next, or that there is none."""

    name: str
    flags: str | None = None
    waiting: list[int] = field(default_factory=list)
    shutting_down: bool = False

    @property
    def gateway(self):
        env = {} if self.flags is None else {"XLA_FLAGS": self.flags}
        return SimpleNamespace(id=self.name, spec=SimpleNamespace(env=env))

    def send_runtest_some(self, tests) -> None:
        assert not self.shutting_down
        self.waiting.extend(tests)

    def shutdown(self) -> None:
        self.shutting_down = True


class Cache(dict):
    """pytest's."""

    set = dict.__setitem__


def spread(
    tests: list[str],
    processes: list[Process],
    crash: str | None = None,
    seconds: dict[str, float] | None = None,
) -> list[tuple[str, str]]:
    """(test, process) in the order in which they run; the process that is to run `crash` is replaced."""
    config = SimpleNamespace(
        option=SimpleNamespace(loadscopereorder=False),
        getvalue=lambda _: ["popen"] * len(processes),
        cache=Cache({workers.DURATIONS: seconds or {}}),
    )
    scheduler = Groups(config)
    for process in processes:
        scheduler.add_node(process)
    for process in processes:
        scheduler.add_node_collection(process, tests)
    scheduler.schedule()
    ran, processes = [], list(processes)
    while able := [p for p in processes if len(p.waiting) > 1 - p.shutting_down]:
        process = able[len(ran) % len(able)]
        test = process.waiting.pop(0)
        if tests[test] == crash:
            crash, process.waiting, process.shutting_down = None, [], True
            assert scheduler.remove_node(process) == tests[test]
            processes.append(Process(process.name, process.flags))
            scheduler.add_node(processes[-1])
            scheduler.add_node_collection(processes[-1], tests)
            scheduler.schedule()
        else:
            ran.append((tests[test], process.name))
            scheduler.mark_test_complete(process, test)
    assert not scheduler.has_pending
    return ran


def test_every_test_runs_once_and_only_what_others_computed_is_optimised():
    ran = spread(TESTS, [Process("a"), Process("b"), Process("optimised", "")])
    assert sorted(test for test, _ in ran) == sorted(TESTS)
    optimised = {test for test, process in ran if process == "optimised"}
    assert optimised == {test for test in TESTS if "parity" in test or "canary" in test}


def test_tests_of_a_model_run_in_one_process_and_so_do_those_of_a_file():
    ran = dict(spread(TESTS, [Process("a"), Process("b"), Process("optimised", "")]))
    quick = [test for test in TESTS if ran[test] != "optimised"]
    for part in ("chgnet-0.3", "mace-density", "test_graph"):
        assert len({ran[test] for test in quick if part in test}) == 1
    assert {ran[test] for test in quick} == {"a", "b"}


@pytest.mark.parametrize(
    ("tests", "processes"),
    [
        (TESTS[:1], [Process("a"), Process("b"), Process("optimised", "")]),  # one group for three processes
        (TESTS[4:5], [Process("a"), Process("optimised", "")]),
        (TESTS[4:6], [Process("optimised", ""), Process("a"), Process("b")]),
        (TESTS, [Process("optimised", "")]),
        (TESTS, [Process("a")]),
        (TESTS, [Process("a"), Process("b")]),  # the user chose the flags for all
    ],
)
def test_no_test_waits_for_a_process_that_is_not_there(tests, processes):
    assert sorted(test for test, _ in spread(tests, processes)) == sorted(tests)


@pytest.mark.parametrize("crash", ["tests/core/test_parity.py::test_a", "tests/core/test_graph.py::test_a"])
def test_what_a_process_that_crashed_left_is_run_by_its_kind(crash):
    ran = spread(TESTS, [Process("a"), Process("b"), Process("optimised", "")], crash)
    assert sorted(test for test, _ in ran) == sorted(TESTS)
    assert all((process == "optimised") == workers.is_optimised(test) for test, process in ran)


def test_what_took_longest_last_time_comes_first():
    seconds = dict.fromkeys(TESTS, 1.0) | {"tests/core/test_graph.py::test_b": 9.0}
    first, *_ = spread(TESTS, [Process("a")], seconds=seconds)
    assert "test_graph" in first[0]
    assert spread(TESTS, [Process("a")])[0][0] == "tests/core/test_parity.py::test_a"  # nothing is known
    config = SimpleNamespace(cache=Cache({workers.DURATIONS: {"b": 2.0}}))
    durations = workers.Durations(config)
    for seconds in (0.5, 1.0, 0.25):  # set up, called, torn down
        durations.pytest_runtest_logreport(SimpleNamespace(nodeid="a", duration=seconds))
    durations.pytest_sessionfinish()
    assert config.cache[workers.DURATIONS] == {"a": 1.75, "b": 2.0}
    del config.cache  # `-p no:cacheprovider`
    durations.pytest_sessionfinish()
    assert workers.known_durations(config) == {}


def test_a_file_or_two_run_in_this_process_and_more_in_as_many_as_memory_and_cores_allow(monkeypatch):
    def number(*args: str) -> int:
        return workers.number_of_workers(SimpleNamespace(args=args))

    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**34 // 4096}  # 16 GiB
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(workers, "cores", lambda: 8)
    assert (
        number("tests/core/test_graph.py") == number("a/test_a.py::test_b", "a/test_a.py::test_c[.py]") == 0
    )
    assert number("tests") == number("tests/core") == number("a.py", "b.py", "c.py") == 4
    monkeypatch.setattr(workers, "cores", lambda: 2)
    assert number("tests") == 3
    sizes["SC_PHYS_PAGES"] = 2**20 // 4  # 1 GiB
    assert number("tests") == 2


def test_programs_are_kept_for_each_number_of_threads_and_what_a_user_set_stays(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 8)
    assert workers.environment({})["JAX_COMPILATION_CACHE_DIR"].endswith(".pytest_cache/d/programs/2-threads")
    assert workers.environment({})["OMP_NUM_THREADS"] == "2"
    user = {"NPROC": "4", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1"}
    added = workers.environment(user)
    assert added["JAX_COMPILATION_CACHE_DIR"].endswith("4-threads")
    assert not added.keys() & user.keys()
    assert "JAX_COMPILATION_CACHE_DIR" not in workers.environment({"JAX_COMPILATION_CACHE_DIR": "/mine"})


def test_kept_programs_are_dropped_when_too_many_have_gathered(tmp_path):
    folder = tmp_path / "programs"
    assert workers.drop_kept_programs(folder, 0) is None  # nothing was kept yet
    (folder / "2-threads").mkdir(parents=True)
    (folder / "2-threads" / "one").write_bytes(bytes(2**20))
    assert workers.drop_kept_programs(folder, 2**30) is None
    assert "0.0 GiB" in workers.drop_kept_programs(folder, 2**19)
    assert not folder.exists()


def test_slow_proofs_are_left_out_unless_they_are_asked_for():
    """Laws of the quick network stay, of it alone where that is marked; a file that is named runs whole."""

    class Item:
        def __init__(self, name: str, *marks: str, **params):
            self.name, self.marks, self.callspec = name, {*marks}, SimpleNamespace(params=params)

        def get_closest_marker(self, name: str) -> bool:
            return name in self.marks

        def add_marker(self, name: str) -> None:
            self.marks.add(name)

    def names(args=("tests",), **options) -> set[str]:
        items = [
            Item("test_a"),
            Item("test_b", "slow"),
            *(Item(f"test_c[{name}]", potential=name) for name in ("quick", "chgnet-0.2", "mace-density")),
            *(Item(f"test_d[{name}]", "one_model", network=name) for name in ("quick", "m3gnet-smooth")),
            Item("test_e", "one_model"),
            Item("test_f[chgnet-0.2]"),
        ]
        chosen = {"all": False, "markexpr": "", "keyword": ""} | options
        hook = SimpleNamespace(pytest_deselected=lambda items: None)
        pytest_collection_modifyitems(
            SimpleNamespace(args=args, option=SimpleNamespace(**chosen), hook=hook), items
        )
        return {item.name for item in items}

    every = names(all=True)
    assert len(every) == 8
    assert "test_d[m3gnet-smooth]" not in every
    left_out = {"test_b", "test_c[chgnet-0.2]", "test_c[mace-density]"}
    assert names() == names(args=("tests/core", "tests/core/test_a.py")) == every - left_out
    assert names(markexpr="slow") == names(keyword="b") == names(args=("tests/core/test_a.py",)) == every
