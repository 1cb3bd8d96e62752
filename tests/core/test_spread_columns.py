"""Second derivatives are the same on however many devices and hosts their columns are spread."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from addresses import free_address
from conftest import FIRST, MODELS, SECOND

HERE = Path(__file__).parents[1]
ARCHITECTURES = [name for name in MODELS if name not in SECOND]


def start(model: str, folder: Path, devices: int, *address: str) -> subprocess.Popen:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, str(HERE / "spread_columns.py"), model, str(folder), *address],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check(run: subprocess.Popen, devices: int) -> None:
    out, said = run.communicate(timeout=600)
    assert run.returncode == 0, said
    found = json.loads(out.splitlines()[-1])
    assert found.pop("devices") == devices
    found.pop("model")
    assert found.pop("compiled anew") == 0  # for another crystal of the size
    for name, (error, scale) in found.items():
        assert scale > 0, name
        np.testing.assert_allclose(error, 0, rtol=0, atol=1e-12 * max(1, scale), err_msg=name)


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=[] if m == FIRST else pytest.mark.slow) for m in ARCHITECTURES]
)
def test_eight_devices_find_what_one_does(model, tmp_path):
    check(start(model, tmp_path, 8), 8)


def test_two_processes_find_what_one_device_does(tmp_path):
    address = free_address()
    runs = [start(FIRST, tmp_path, 2, address, "2", str(k)) for k in range(2)]
    for run in runs:
        check(run, 4)
