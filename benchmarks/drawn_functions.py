"""Do the tests notice when a function is gone?

    python -m benchmarks.drawn_functions --kept FOLDER [--number 40] [--seed 0]

The default selection of the tests runs once in a copy of the checkout, with coverage that says which test
runs which line, also of processes that tests start. Then functions of jaxmlip and weights_convert are drawn
at random, each as likely as any other. In the copy the body of each is replaced by `raise`, and the tests
that cover it run, the cheapest first: a function is caught if one of them fails, and missed if none does, or
if none covers it. FOLDER keeps the copy and its coverage, so that the same command with another --seed needs
no first step. --number 0 prints the coverage alone.

This file is also the plugin of pytest that the first step needs.
"""

from __future__ import annotations

import ast
import filecmp
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
import tyro

ROOT = Path(__file__).parents[1]
DRAWN = ("jaxmlip", "weights_convert")
MEASURED = (*DRAWN, "experiments")
LEFT_OUT = ("__pycache__", "*.egg-info", "build", "dist")  # of the copy, and hidden folders
WORDS = "this body was drawn"  # of the error in place of a body
FOLDER = "JAXMLIP_DRAWN_FUNCTIONS"  # variable with the folder, for the plugin
COVERAGE_RC = """[run]
source =
    {source}
data_file = {data}
parallel = true
# A process that a test starts keeps what it runs under the name of the test.
context = ${{PYTEST_CURRENT_TEST-}}
disable_warnings = no-data-collected, module-not-imported, module-not-measured
"""


@dataclass(frozen=True)
class Settings:
    """Do the tests notice when a function is gone?"""

    kept: Path  # folder of the copy and its coverage, made by the first call
    number: int = 40  # of functions to draw
    seed: int = 0
    tests: int = 20  # at most for each function, the cheapest of those that cover it
    seconds: float = 600.0  # at most for each function
    source: Path = ROOT  # the checkout


class Function(NamedTuple):
    file: str  # below the checkout
    name: str  # with the names of classes and functions around it
    line: int
    lines: frozenset[int]  # of its body, without those of functions in it

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.name}"


class Verdict(NamedTuple):
    caught: bool
    why: str


@dataclass
class Coverage:
    """What the default selection of the tests ran, by file below the checkout."""

    tests: dict[str, dict[int, set[str]]]  # file -> line -> tests that ran it; "" for what imports ran
    statements: dict[str, set[int]]  # file -> lines with statements
    seconds: dict[str, float]  # of each test that passed
    outcomes: dict[str, int] = field(default_factory=dict)

    def of(self, function: Function) -> list[str]:
        """The tests that cover a function and passed, the cheapest first.

        What ran on import alone is covered by all tests that run anything of the file.
        """
        lines = self.tests[function.file]
        found = set().union(*(lines.get(line, set()) for line in function.lines))
        if found == {""}:
            found = set().union(*lines.values())
        return sorted(found & self.seconds.keys(), key=self.seconds.get)

    def ran(self, function: Function) -> bool:
        return not function.lines.isdisjoint(self.tests[function.file])


def functions(text: str, file: str) -> list[Function]:
    """All functions and methods with a body to replace; those in other functions as well."""
    return list(_functions(ast.parse(text), file, ""))


def _functions(node: ast.AST, file: str, around: str) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{around}{child.name}"
            if not isinstance(child, ast.ClassDef) and _does_something(child):
                yield Function(file, name, child.lineno, frozenset(_own_lines(child)))
            yield from _functions(child, file, f"{name}.")
        else:
            yield from _functions(child, file, around)


def _body(function: ast.FunctionDef) -> list[ast.stmt]:
    """The body without the docstring."""
    return function.body[1:] if ast.get_docstring(function) is not None else function.body


def _does_something(function: ast.FunctionDef) -> bool:
    """Whether the body is more than `...`, `pass` or an error that says that it is for subclasses."""
    return not all(
        isinstance(s, ast.Pass | ast.Raise) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
        for s in _body(function)
    )


def _own_lines(function: ast.FunctionDef) -> set[int]:
    lines = set(range(_body(function)[0].lineno, function.end_lineno + 1))
    inner = (n for n in ast.walk(function) if n is not function and isinstance(n, ast.FunctionDef))
    for node in inner:
        lines -= set(range(_body(node)[0].lineno if _body(node) else node.lineno, node.end_lineno + 1))
    return lines


def without_body(text: str, function: Function) -> str:
    """The text of a file in which the body of `function` is an error; its docstring stays."""
    at = {
        n.lineno: n
        for n in ast.walk(ast.parse(text))
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    node = at[function.line]
    first = _body(node)[0]
    start = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))])
    lines = text.splitlines(keepends=True)
    before = lines[start - 1].encode()[: first.col_offset].decode()
    error = f"raise AssertionError({WORDS!r})\n"
    return "".join([*lines[: start - 1], before + error, *lines[node.end_lineno :]])


def copy_checkout(source: Path, kept: Path) -> None:
    """Copies the checkout; its tests find the compiled programs of the original."""
    named = shutil.ignore_patterns(*LEFT_OUT, kept.name)

    def left_out(folder: str, names: list[str]) -> set[str]:
        return named(folder, names) | {n for n in names if n[0] == "." and Path(folder, n).is_dir()}

    shutil.copytree(source, kept / "checkout", ignore=left_out)
    (source / ".pytest_cache").mkdir(exist_ok=True)
    (kept / "checkout" / ".pytest_cache").symlink_to((source / ".pytest_cache").absolute())


def environment(kept: Path) -> dict[str, str]:
    """That of the tests: they import the copy, and this file."""
    given = {k: v for k, v in os.environ.items() if not k.startswith(("COV", "PYTEST"))}
    path = [str(kept / "checkout"), str(ROOT), given.get("PYTHONPATH", "")]
    return given | {"PYTHONPATH": os.pathsep.join(filter(None, path)), FOLDER: str(kept)}


def measure(kept: Path) -> None:
    """Runs the default selection of the tests with coverage, and keeps it in the folder."""
    checkout = kept / "checkout"
    source = [str(checkout / folder) for folder in MEASURED if (checkout / folder).is_dir()]
    rc = COVERAGE_RC.format(source="\n    ".join(source), data=kept / "coverage")
    (kept / "coveragerc").write_text(rc)
    options = [*(f"--cov={folder}" for folder in source), "--cov-context=test", "--cov-report="]
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.drawn_functions", *options]
    command.append(f"--cov-config={kept / 'coveragerc'}")
    start = time.perf_counter()
    done = subprocess.run(command, cwd=checkout, env=environment(kept), check=False)
    if not (kept / "coverage").is_file():
        raise SystemExit(
            f"pytest ended with {done.returncode} and left no coverage; remove {kept} and try again"
        )
    print(f"the tests took {time.perf_counter() - start:.0f} s with coverage", flush=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Lets processes that a test starts be measured."""
    os.environ["COVERAGE_PROCESS_START"] = str(Path(os.environ[FOLDER]) / "coveragerc")
    try:
        return (yield)
    finally:
        del os.environ["COVERAGE_PROCESS_START"]


def pytest_runtest_logreport(report):
    """Keeps outcome and time of a test, in the process that hears of all of them."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        with open(Path(os.environ[FOLDER]) / "tests.jsonl", "a") as file:
            row = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration}
            file.write(json.dumps(row | {"when": report.when}) + "\n")


def read(kept: Path) -> Coverage:
    """What `measure` left in the folder."""
    import coverage

    checkout = kept / "checkout"
    seconds: dict[str, float] = defaultdict(float)
    failed, outcomes = set(), defaultdict(int)
    for line in (kept / "tests.jsonl").read_text().splitlines():
        row = json.loads(line)
        seconds[row["test"]] += row["seconds"]
        if row["outcome"] != "passed":
            failed.add(row["test"])
        if row["when"] == "call" or row["outcome"] != "passed":
            outcomes[row["outcome"]] += 1
    measured = coverage.Coverage(data_file=kept / "coverage", config_file=kept / "coveragerc")
    measured.load()
    data = measured.get_data()
    tests: dict[str, dict[int, set[str]]] = {}
    statements = {}
    for folder in MEASURED:
        for path in sorted((checkout / folder).rglob("*.py")):
            file = str(path.relative_to(checkout))
            by_line = data.contexts_by_lineno(str(path))
            tests[file] = {line: {_test(context) for context in by_line[line]} for line in by_line}
            statements[file] = set(measured.analysis2(str(path))[1])
    passed = {test: taken for test, taken in seconds.items() if test not in failed}
    return Coverage(tests, statements, passed, dict(outcomes))


def _test(context: str) -> str:
    """The name of a test in a context of pytest-cov, or of a process that the test started."""
    return re.sub(r"\|(setup|run|teardown)$| \((setup|call|teardown)\)$", "", context)


def run_tests(kept: Path, tests: list[str], seconds: float) -> tuple[int | None, str]:
    """Exit status of pytest and what it printed; None if it was not through in time."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    process = subprocess.Popen(
        command,
        cwd=kept / "checkout",
        env=environment(kept),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that what the tests started ends with them
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, ""
    return process.returncode, said


def judge(kept: Path, function: Function, covered: Coverage, settings: Settings) -> Verdict:
    """Whether a test notices that the body of a function is gone."""
    all_tests = covered.of(function)
    if not all_tests:
        return Verdict(False, "no test covers it")
    tests = all_tests[: settings.tests]
    path = kept / "checkout" / function.file
    whole = path.read_text()
    start = time.perf_counter()
    try:
        path.write_text(without_body(whole, function))
        status, said = run_tests(kept, tests, settings.seconds)
    finally:
        path.write_text(whole)
    how = f"{len(tests)} of {len(all_tests)} tests, {time.perf_counter() - start:.0f} s"
    if status is None:
        return Verdict(False, f"not through: {how}")
    if status == 0:
        return Verdict(False, f"none failed: {how}")
    # Without the error's own words it may be something else that fails.
    if WORDS not in said and run_tests(kept, tests, settings.seconds)[0] != 0:
        return Verdict(False, f"fail without that, too: {how}")
    return Verdict(True, how)


def show_coverage(covered: Coverage, known: list[Function]) -> None:
    """Prints shares of lines and functions by folder, and the functions that no test runs."""
    print(f"tests: {', '.join(f'{n} {outcome}' for outcome, n in covered.outcomes.items())}")
    rows = defaultdict(lambda: [0, 0, 0, 0])
    for file, lines in covered.statements.items():
        for row in (rows[str(Path(file).parent)], rows["all"]):
            row[0] += len(lines & covered.tests[file].keys())
            row[1] += len(lines)
    for function in known:
        for row in (rows[str(Path(function.file).parent)], rows["all"]):
            row[2] += covered.ran(function)
            row[3] += 1
    print(f"{'':32} {'lines':>14} {'':>7} {'functions':>12}")
    for folder, (ran, lines, entered, defined) in rows.items():
        share = f"{100 * ran / max(lines, 1):.1f} %"
        print(f"{folder:32} {ran:6,} of {lines:6,} {share:>7} {entered:5,} of {defined:5,}")
    for function in known:
        if not covered.ran(function):
            print(f"no test runs {function}")


def changed(source: Path, kept: Path) -> list[str]:
    """Files of the copy that are different, or there no more, in the checkout."""
    copies = [p for folder in (*MEASURED, "tests") for p in (kept / "checkout" / folder).rglob("*.py")]
    here = [(source / p.relative_to(kept / "checkout"), p) for p in copies]
    return [str(p) for p, q in here if not p.is_file() or not filecmp.cmp(p, q, shallow=False)]


def main(settings: Settings) -> None:
    kept = settings.kept.absolute()
    if not (kept / "coverage").is_file():
        copy_checkout(settings.source, kept)
        measure(kept)
    elif different := changed(settings.source, kept):
        print(f"{kept} is of before {len(different)} files changed; results are those of its copy")
    covered = read(kept)
    known = [f for file in covered.tests for f in functions((kept / "checkout" / file).read_text(), file)]
    show_coverage(covered, known)
    pool = [function for function in known if function.file.startswith(DRAWN)]
    drawn = random.Random(settings.seed).sample(pool, min(settings.number, len(pool)))
    missed = []
    for function in drawn:
        verdict = judge(kept, function, covered, settings)
        missed += [] if verdict.caught else [(function, verdict)]
        print(f"{'caught' if verdict.caught else 'MISSED'} {function}: {verdict.why}", flush=True)
    if drawn:
        print(
            f"{len(drawn) - len(missed)} of {len(drawn)} caught, drawn of {len(pool)} (seed {settings.seed})"
        )
    for function, verdict in missed:
        print(f"missed: {function}: {verdict.why}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
