"""Memory that is freed is kept for the next call, and given back where it is counted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource
import numpy as np
from jaxmlip.system.allocator import giving_memory_back, keep_freed_memory

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


def output(script: str, **environment: str) -> list[str]:
    """The words that a process of its own prints."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_memory_is_kept_between_calls_and_given_back_where_it_is_counted():
    kept, usual, counted = map(int, output(SCRIPT))
    if not kept:
        pytest.skip("the C library of this machine has no mallopt")
    assert usual < 1000  # of the 160,000 pages asked for
    assert counted > 50 * usual


LARGE = """
import resource
import numpy as np
from jaxmlip.system.allocator import keep_freed_memory

kept = keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**28 + 2**25)  # 2.4 GB, as a step of training
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(int(kept), faults())
"""


@pytest.mark.slow
def test_blocks_beyond_the_largest_threshold_are_kept_too():
    kept, again = map(int, output(LARGE))
    if not kept:
        pytest.skip("the C library of this machine has no mallopt")
    assert again < 1000  # of 590,000 pages


HOLES = """
from pathlib import Path
import numpy as np
from jaxmlip.system.allocator import give_memory_back, keep_freed_memory

def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

print(int(keep_freed_memory()), end=" ")
large, small = [], []
for _ in range(20):
    large.append(np.ones(2**21))  # 16 MB, as scratch memory
    small.append(np.ones(2**10))  # what lives longer
del large
print(megabytes(), end=" ")
give_memory_back()
print(megabytes())
"""


def test_holes_in_the_heap_are_given_back_between_runs():
    kept, before, after = map(float, output(HOLES))
    if not kept:
        pytest.skip("the C library of this machine has no mallopt")
    assert before - after > 250  # of 335 MB in holes


def test_the_allocator_is_left_alone_on_request():
    kept, *_ = output(SCRIPT, JAXMLIP_MALLOC="system")
    assert kept == "0"
