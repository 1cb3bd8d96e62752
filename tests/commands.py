"""Commands as a user gives them, in a process of their own or in this one."""

import os
import subprocess
import sys
from pathlib import Path

from jaxmlip.cli import main

TESTS = Path(__file__).parent
RUN = "import quick_network; from jaxmlip.cli import main; main()"


def environment(folder: Path) -> dict[str, str]:
    """Of processes that find the checkout and the network of the tests, and keep their files in `folder`."""
    path = os.pathsep.join(filter(None, [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "JAXMLIP_CACHE": str(folder / "cache")}


def jaxmlip(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )


def here(folder: Path, monkeypatch, capsys, *arguments: str) -> subprocess.CompletedProcess:
    """The same in this process, whose start takes no time, and which has compiled most programs."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("JAXMLIP_CACHE", str(folder / "cache"))
    capsys.readouterr()
    code = 0
    try:
        main(arguments)
    except SystemExit as end:
        code = end.code
    return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())


def complaint(folder: Path, monkeypatch, capsys, *arguments: str) -> str:
    """What a command that fails says on standard error, in this process."""
    done = here(folder, monkeypatch, capsys, *arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr
