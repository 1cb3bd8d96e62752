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


def start(model: str, folder: Path, devices: int, which: str, *address: str) -> subprocess.Popen:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, str(HERE / "spread_columns.py"), model, str(folder), which, *address],
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


def test_eight_devices_find_the_hessian_and_dynamical_matrices_that_one_does(tmp_path):
    check(start(FIRST, tmp_path, 8, "few"), 8)


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in MODELS if name not in SECOND])
def test_eight_devices_find_every_quantity_that_one_does(model, tmp_path):
    check(start(model, tmp_path, 8, "every"), 8)


@pytest.mark.slow
def test_two_processes_of_two_devices_find_what_one_device_does(tmp_path):
    address = free_address()
    runs = [start(FIRST, tmp_path, 2, "every", address, "2", str(k)) for k in range(2)]
    for run in runs:
        check(run, 4)
