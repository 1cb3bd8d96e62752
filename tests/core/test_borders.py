"""Messages about files: one line of printable text, whatever a file holds, at little cost."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxmlip.crystals.structures import read_crystals
from jaxmlip.system.borders import CheckpointError, brief, guard, in_lines, listed, one_line, shallow

DOUBLED = [1]
for _ in range(60):
    DOUBLED = [DOUBLED, DOUBLED]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x" * 10**6, "'" + "x" * 59 + "…'"),
        ("\x1b[31m\n\u202e", r"'\x1b[31m\n\u202e'"),
        (10**5000, "a number of 16610 bits"),
        (DOUBLED, "[[[…], […]], [[…], […]]]"),
        ({"a": DOUBLED}, "{'a': [[…], […]]}"),
        (tuple(range(9)), "(0, 1, 2, 3, …)"),
        ((3,), "(3,)"),
        (b"x" * 10**6, "1000000 bytes"),
        (np.zeros((2, 3)), "a tensor of shape (2, 3)"),
        (float("nan"), "nan"),
    ],
    ids=range(10),
)
def test_a_value_is_shown_in_a_few_words_however_large_it_is(value, shown):
    assert brief(value) == shown


def test_a_message_is_one_line_without_control_characters_and_not_long():
    assert one_line("a\n  b\x1b[2J\x07") == r"a b\x1b[2J\x07"
    assert len(one_line("x" * 10**7)) <= 320
    assert in_lines(["a", "b"]) == "\n  a\n  b"
    assert in_lines("abc", count=9, most=2) == "\n  a\n  b\n  and 7 more"
    assert listed([f"item {k}" for k in range(1000)]).endswith("item 9; and 990 more")
    assert len(listed(["x" * 10**6] * 100)) < 300


def refused(error: Exception, place: str = "a.pt") -> CheckpointError:
    with pytest.raises(CheckpointError) as caught, guard(place, CheckpointError, "Fetch it again."):
        raise error
    return caught.value


def test_what_a_file_provokes_becomes_one_kind_of_error_with_its_cause():
    error = refused(ZeroDivisionError("by zero"))
    assert str(error) == "a.pt: cannot be read (ZeroDivisionError: by zero). Fetch it again."
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert str(refused(CheckpointError("found 1,\n needed 2"), "a\n.pt")) == r"a\n.pt: found 1, needed 2"


@pytest.mark.parametrize("error", [NameError("x"), ImportError("x"), FileNotFoundError(2, "gone", "a.pt")])
def test_mistakes_of_the_library_and_missing_files_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught, guard("a.pt", CheckpointError, "Fetch it again."):
        raise error
    assert caught.value is error


@pytest.fixture
def raised_limit():
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)  # as symfc does when it is imported
    yield
    sys.setrecursionlimit(before)


def test_what_is_nested_deeply_is_refused_though_another_package_raised_the_limit(raised_limit, tmp_path):
    text = "[" * 10_000 + "]" * 10_000
    with pytest.raises(CheckpointError, match="RecursionError"), guard(tmp_path, CheckpointError, ""):
        json.loads(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="maximum recursion"):
        read_crystals(tmp_path / "a.json")
    assert sys.getrecursionlimit() == 100_000


def test_the_limit_returns_when_the_last_thread_has_parsed(raised_limit):
    def parsed(k):
        with shallow():
            return sys.getrecursionlimit() + len(json.loads(json.dumps(list(range(k)))))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(parsed, range(2000))) == [1000 + k for k in range(2000)]
    assert sys.getrecursionlimit() == 100_000


def test_who_calls_from_deeper_than_the_limit_may_still_parse(raised_limit):
    def deep(n):
        if n:
            return deep(n - 1)
        with shallow():
            return json.loads("[1]")

    assert deep(3000) == [1]
