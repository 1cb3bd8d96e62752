"""The same global batch gives the same parameters, however many devices and processes share it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


def start(out: Path, devices: int, *address: str) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, str(HERE / "data_parallel.py"), str(out), *address],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*runs: subprocess.Popen) -> None:
    said = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs), said


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "params.npz"
    finish(start(out, 1))
    return np.load(out)


def check(expected, out: Path, devices: int) -> None:
    found = np.load(out)
    assert found["devices"] == devices
    names = set(expected.files) - {"devices"}
    assert {n.split("/")[0] for n in names} == set(TOLERANCE)
    for name in names:
        atol = TOLERANCE[name.split("/")[0]]
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=atol, err_msg=name)


def test_eight_devices_end_where_one_does(alone, tmp_path):
    finish(start(tmp_path / "params.npz", 8))
    check(alone, tmp_path / "params.npz", 8)


def test_two_processes_end_where_one_does(alone, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    finish(*(start(tmp_path / "params.npz", 2, coordinator, "2", str(k)) for k in range(2)))
    check(alone, tmp_path / "params.npz", 4)
