"""File systems without locks: work goes on, with a warning."""

import errno
import fcntl
import os

import pytest

from jaxmlip.system.locks import Claims, in_use, locked


@pytest.fixture
def without_locks(monkeypatch):
    def never(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, never)


def test_a_folder_without_locks_is_used_with_a_warning_that_names_it(tmp_path, without_locks):
    for work in (lambda: locked(tmp_path / "run"), lambda: Claims(tmp_path).claimed(3)):
        with pytest.warns(UserWarning, match=f"{tmp_path}.*no locks"), work() as mine:
            assert mine in (None, True)
    with pytest.warns(UserWarning, match=r"run.*no locks"):
        assert in_use(tmp_path / "run") is None


def test_an_error_of_another_kind_is_no_missing_lock(tmp_path, monkeypatch):
    def never(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, never)
    for work in (lambda: locked(tmp_path / "run"), lambda: Claims(tmp_path).claimed(3)):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)), work():
            pass
