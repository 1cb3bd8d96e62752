"""Files that damage or malice made: each is loaded or refused in one line, with little memory and time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "hostile_files.py"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and limits of memory")
def test_random_damage_and_malice_is_refused_in_one_line_or_harmless(request):
    count = request.config.getoption("hostile") or (200 if request.config.getoption("all") else 8)
    command = [sys.executable, str(SCRIPT), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *faults, last = map(json.loads, done.stdout.splitlines())
    assert not faults, "\n".join(map(str, faults[:5]))
    assert last["tried"] == count
    assert last["loaded"] < count / 2  # most variants are no model any more
