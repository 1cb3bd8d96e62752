"""Writing that ends early, as when its process is killed."""

import os

import pytest


class StopError(Exception):
    """The end of a process, without the process."""


def interrupted(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    """Makes the next streamed Hessian end after so many blocks."""
    fsync, left = os.fsync, [blocks]

    def stop(file):
        fsync(file)
        if left[0] == 0:
            raise StopError
        left[0] -= 1

    monkeypatch.setattr("jaxmlip.derivatives.streaming.os.fsync", stop)
