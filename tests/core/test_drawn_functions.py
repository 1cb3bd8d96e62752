"""Functions that are drawn: found wherever they stand, lost without their docstring, and caught by a test."""

import ast

import pytest
from documents import ROOT

from benchmarks import drawn_functions
from benchmarks.drawn_functions import WORDS, Settings, functions, without_body

SOURCE = '''
"""A module."""
import functools


def plain(x):
    """Adds."""
    return x + 1


class Thing:
    @property
    def size(self):
        def inner(y):
            return y

        return inner(2)

    def abstract(self):
        """For subclasses."""
        raise NotImplementedError

    def of_a_protocol(self): ...


if True:

    @functools.cache
    def generator():
        yield 1
        yield 2
'''
TESTS = """
import subprocess, sys
from jaxmlip.one import Thing, generator, plain

def test_plain():
    try:
        assert plain(1) == 2
    except AssertionError:
        pass

def test_size():
    assert Thing().size == 2

def test_generator():
    code = "from jaxmlip.one import generator; assert list(generator()) == [1, 2]"
    subprocess.run([sys.executable, "-c", code], check=True)
"""


def test_functions_are_found_with_the_lines_of_their_own_bodies():
    found = {f.name: f for f in functions(SOURCE, "one.py")}
    assert list(found) == ["plain", "Thing.size", "Thing.size.inner", "generator"]
    lines = SOURCE.splitlines()

    def text(name: str) -> str:
        return " ".join(lines[k - 1].strip() for k in sorted(found[name].lines)).strip()

    assert text("plain") == "return x + 1"
    assert text("Thing.size") == "def inner(y):  return inner(2)"
    assert text("Thing.size.inner") == "return y"
    assert str(found["plain"]) == "one.py:6 plain"


def test_a_function_without_its_body_keeps_its_name_its_decorators_and_its_docstring():
    for function in functions(SOURCE, "one.py"):
        text = without_body(SOURCE, function)
        assert text.count(WORDS) == 1
        before, after = ({f.name for f in functions(t, "one.py")} for t in (SOURCE, text))
        assert after < before
        assert text.count("@") == SOURCE.count("@")
    assert '"""Adds."""\n    raise' in without_body(SOURCE, functions(SOURCE, "one.py")[0])


@pytest.mark.parametrize("file", ["jaxmlip/potential.py", "jaxmlip/models/mace.py", "benchmarks/worker.py"])
def test_every_function_of_a_file_can_lose_its_body(file):
    text = (ROOT / file).read_text()
    found = functions(text, file)
    assert found
    for function in found:
        ast.parse(without_body(text, function))


@pytest.mark.slow
def test_what_a_test_swallows_is_missed_and_what_a_process_of_a_test_needs_is_caught(tmp_path, capsys):
    mine = tmp_path / "mine"
    for name, text in {
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-n 2'\n",
        "jaxmlip/__init__.py": "",
        "jaxmlip/one.py": SOURCE,
        "jaxmlip/unknown.py": "def never():\n    return 1\n",
        "tests/test_one.py": TESTS,
        ".settings.yaml": "",
        ".environment/large": "",
    }.items():
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(text)
    drawn_functions.main(Settings(tmp_path / "kept", source=mine))
    said = capsys.readouterr().out
    assert (tmp_path / "kept/checkout/.settings.yaml").exists()
    assert not (tmp_path / "kept/checkout/.environment").exists()
    assert "tests: 3 passed" in said
    assert "no test runs jaxmlip/unknown.py:2" not in said
    assert "no test runs jaxmlip/unknown.py:1 never" in said
    assert "MISSED jaxmlip/unknown.py:1 never: no test covers it" in said
    assert "MISSED jaxmlip/one.py:6 plain: none failed: 1 of 1 tests" in said
    for name in ("Thing.size", "Thing.size.inner", "generator"):
        assert f" {name}: 1 of 1 tests" in said.replace("caught", ""), said
    assert "3 of 5 caught, drawn of 5 (seed 0)" in said
