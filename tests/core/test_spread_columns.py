"""Second derivatives are the same on however many devices and hosts their columns are spread."""

import json
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import FIRST, MODELS, SECOND, SHORT
from processes import free_address, started

SCRIPT = Path(__file__).parents[1] / "spread_columns.py"


def check(run: subprocess.Popen, devices: int, which: str = "few") -> None:
    out, said = run.communicate(timeout=600)
    assert run.returncode == 0, said
    found = json.loads(out.splitlines()[-1])
    assert found.pop("devices") == devices
    if which != "divided":
        assert found.pop("compiled anew") == 0  # for another crystal of the size
        assert found.pop("work") < 1.5 / devices  # of each device, for as many columns
    for name, (error, scale) in found.items():
        assert scale > 0, name
        np.testing.assert_allclose(error, 0, rtol=0, atol=1e-12 * max(1, scale), err_msg=name)


def test_eight_devices_find_the_hessian_and_dynamical_matrices_that_one_does(tmp_path):
    check(started(8, SCRIPT, SHORT, tmp_path, "few"), 8)


@pytest.mark.slow
def test_eight_devices_find_every_quantity_that_one_does(tmp_path):
    check(started(8, SCRIPT, SHORT, tmp_path, "every"), 8)


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in MODELS if name not in SECOND])
def test_eight_devices_spread_every_architecture(model, tmp_path):
    check(started(8, SCRIPT, model, tmp_path, "few"), 8)


@pytest.mark.slow
def test_bonds_are_divided_among_devices_that_cannot_hold_all_of_them(tmp_path):
    check(started(8, SCRIPT, FIRST, tmp_path, "divided"), 8, "divided")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["few", "divided"])
def test_two_processes_of_two_devices_find_what_one_device_does(which, tmp_path):
    address = free_address()
    runs = [started(2, SCRIPT, SHORT, tmp_path, which, address, 2, k) for k in range(2)]
    for run in runs:
        check(run, 4, which)


def test_a_process_without_a_device_is_named(any_potential, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(ValueError, match="found 1 devices, which leave process 1, 2 without any"):
        any_potential.on_devices(1)
