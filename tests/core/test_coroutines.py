"""Functions that stop where they ask."""

import threading
import warnings

import pytest

from jaxmlip.system.coroutines import Coroutine, give_warnings


def test_a_function_stops_at_each_question_and_goes_on_with_its_answer():
    def function():
        return deep(1) + deep(2)

    def deep(x):  # not written as a coroutine
        return one.ask(f"what of {x}?")

    one = Coroutine(function)
    one.go_on()
    assert (one.question, one.ended, one.inside) == ("what of 1?", False, False)
    one.go_on(10)
    assert one.question == "what of 2?"
    one.go_on(5)
    assert (one.ended, one.result) == (True, 15)


def test_an_exception_is_the_result_and_one_given_as_an_answer_is_raised_inside():
    def function():
        with pytest.raises(KeyError):
            one.ask("first")
        one.ask("second")

    one = Coroutine(function)
    one.go_on()
    one.go_on(KeyError("lost"))
    assert one.question == "second"
    one.go_on(ValueError("no"))
    assert one.ended
    assert str(one.result) == "no"
    leaving = Coroutine(lambda: (_ for _ in ()).throw(SystemExit(3)))
    with pytest.raises(SystemExit):
        leaving.go_on()


def test_closing_runs_what_is_to_be_done_at_the_end_and_leaves_no_thread():
    before, done = threading.active_count(), []

    def function():
        try:
            one.ask("forever")
        finally:
            done.append(1)

    one = Coroutine(function)
    one.go_on()
    assert threading.active_count() == before + 1
    one.close()
    assert done == [1]
    assert threading.active_count() == before
    Coroutine(function).close()  # not begun
    assert done == [1]


def test_warnings_are_kept_and_given_later():
    def function():
        warnings.warn("early", UserWarning, stacklevel=1)
        one.ask("?")
        warnings.warn("late", DeprecationWarning, stacklevel=1)

    one = Coroutine(function)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        one.go_on()
        one.go_on()
        with pytest.warns() as given:
            give_warnings(one.warnings)
    assert [(str(w.message), w.category) for w in given] == [
        ("early", UserWarning),
        ("late", DeprecationWarning),
    ]
