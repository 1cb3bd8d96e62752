"""Memory that is freed is kept for the next call, and given back where it is counted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource
import numpy as np
from jaxmlip.allocator import giving_memory_back, keep_freed_memory

kept = keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(2**23)  # 64 MB, as the scratch memory of a computation
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
usual = faults()
with giving_memory_back():
    counted = faults()
print(int(kept), usual, counted)
"""


def run(**environment: str) -> tuple[bool, int, int]:
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, usual, counted = map(int, done.stdout.split())
    return bool(kept), usual, counted


def test_memory_is_kept_between_calls_and_given_back_where_it_is_counted():
    kept, usual, counted = run()
    if not kept:
        pytest.skip("the C library of this machine has no mallopt")
    assert usual < 1000  # of the 160,000 pages asked for
    assert counted > 50 * usual


def test_the_allocator_is_left_alone_on_request():
    kept, _, _ = run(JAXMLIP_MALLOC="system")
    assert not kept
