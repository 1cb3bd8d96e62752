"""Functions that stop where they ask and go on when they are answered, so that many are under way at once.

Python's own generators and coroutines can stop only in functions that are written as such, all the way down
from the first call. These stop anywhere.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any


class Coroutine:
    """A function under way: `go_on` runs it up to its next question, or to its end.

    It runs in a thread of its own, but only while `go_on` waits for it, so that it needs no locks. Inside, it
    calls `ask(question)`, which returns the answer. Warnings are kept in `warnings` until someone gives them.
    """

    def __init__(self, function: Callable[[], Any]):
        self.question: Any = None
        self.ended = False
        self.result: Any = None  # what the function returned, or the exception that it raised
        self.warnings: list[warnings.WarningMessage] = []
        self._answer: Any = None
        self._closed = self._running = False
        self._turn, self._stop = threading.Semaphore(0), threading.Semaphore(0)
        context = copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._run, function), daemon=True)

    @property
    def inside(self) -> bool:
        """True for code that the function calls."""
        return threading.current_thread() is self._thread

    def go_on(self, answer: Any = None) -> None:
        """Runs the function until it asks or ends. An `answer` that is an exception is raised where it asked.

        Raises what the function raised if that is no Exception, such as SystemExit.
        """
        self._answer = answer
        with warnings.catch_warnings(record=True) as given:
            self._running = True
            if self._thread.ident is None:
                self._thread.start()
            else:
                self._turn.release()
            self._wait()
        self.warnings += given
        if self.ended and isinstance(self.result, BaseException) and not isinstance(self.result, Exception):
            raise self.result

    def ask(self, question: Any) -> Any:
        """The answer to `question`, for code that the function calls."""
        self.question = question
        self._stop.release()
        self._turn.acquire()
        if self._closed:
            raise _ClosedError
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer

    def close(self) -> None:
        """Ends the function where it is, as an exception would that nobody catches."""
        if self._running:  # `go_on` was interrupted
            self._wait()
        self._closed = True
        if self._thread.ident is not None and not self.ended:
            self._turn.release()
            self._thread.join()

    def _wait(self) -> None:
        self._stop.acquire()
        self._running = False

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            self.result = function()
        except BaseException as error:
            self.result = error
        self.ended = True
        self._stop.release()


class _ClosedError(BaseException):
    """The function has to end, although its question was not answered."""


def give_warnings(given: Iterable[warnings.WarningMessage]) -> None:
    """Gives warnings that were kept, as if they came now."""
    for one in given:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno, source=one.source)
