"""Commands as a user gives them, in a process of their own or in this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxmlip.cli import main


def jaxmlip(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    run = "from jaxmlip.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", run, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "JAXMLIP_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


def complaint(folder: Path, monkeypatch, capsys, *arguments: str) -> str:
    """What a command that fails says on standard error; in this process, whose start takes no time."""
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said
