"""The model of step time says of 8 simulated devices what their program says."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from processes import started

from jaxmlip.training.step_time import DEVICES, Device, Work, padding, step_time, summed_bytes

PLAIN = Device("plain", 1e12, 1e11, 4, 1e9, 1e8, 1e-6, 1e-5, 0.0)
WORK = Work(flops=1e9, bytes=2e8, parameters=1_000_000, loading=1e-4)


@pytest.fixture(scope="module")
def programs():
    process = started(8, Path(__file__).parents[1] / "simulated_devices.py")
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return json.loads(printed)


@pytest.mark.slow
def test_padding_is_what_eight_devices_compute_too_much(programs):
    one, eight = programs["1"], programs["8"]
    assert one["padding"] < 0.01
    assert eight["padding"] == pytest.approx(0.25, abs=0.03)  # 12 equal crystals in 16 places
    for what in ("flops", "bytes"):
        share = one[what] / 8 * (1 - one["padding"]) / (1 - eight["padding"])
        assert eight[what] == pytest.approx(share, rel=0.05), what


@pytest.mark.slow
def test_devices_add_the_gradients_of_all_parameters_once(programs):
    one, eight = programs["1"], programs["8"]
    assert one["parameters"] == eight["parameters"]
    few = eight["summed"] - 4 * eight["parameters"]  # sums of errors and counts
    assert 0 <= few < 200


def test_padding_grows_with_the_devices_that_share_a_batch():
    rng = np.random.default_rng(0)
    atoms = np.clip(rng.lognormal(3.0, 0.8, 2000), 1, 444).astype(int)
    sizes = np.stack([atoms, 4 * atoms, 30 * atoms, 40 * atoms], axis=1)
    found = [padding(sizes, 64, n) for n in (1, 8, 64)]
    assert found == sorted(found)
    assert found[0] < 0.1 < 0.5 < found[2] < 1
    largest = atoms.max() * len(sizes) / 64 * 64  # at 64 devices each has room for the largest crystal
    assert found[2] == pytest.approx(1 - atoms.sum() / largest, abs=0.02)


def test_one_device_adds_nothing_and_many_are_bound_by_the_sum():
    assert step_time(WORK, PLAIN, 1, 100) == (100 * 2e-3, 100 * 1e-4, 0.0)
    assert summed_bytes(1_000_000, 2) == 4e6
    four, eight = (step_time(WORK, PLAIN, n, 100) for n in (4, 8))
    assert four.summing == pytest.approx(6e6 / 1e9 + 2 * 2 * 1e-6)  # within a host
    assert eight.summing == pytest.approx(7e6 / 1e8 + 2 * 3 * 1e-5)  # over the network
    assert eight.input == four.input / 2  # two hosts
    many = step_time(WORK, PLAIN, 1024, 100)
    assert many.total == pytest.approx(8e6 / 1e8 + 2e-4, rel=0.02)


def test_padding_and_the_loader_bound_what_devices_gain():
    alone, half = step_time(WORK, PLAIN, 4, 100), step_time(WORK, PLAIN, 4, 100, waste=0.5)
    assert half.work == 2 * alone.work
    slow = WORK._replace(loading=1.0)
    assert step_time(slow, PLAIN, 4, 100).total == 100 + step_time(slow, PLAIN, 4, 100).summing


def test_data_sheets_are_in_flop_and_byte_per_second():
    for device in DEVICES:
        assert 1e14 < device.peak < 1e15
        assert device.network <= device.link < device.memory < device.peak
        assert not math.isnan(step_time(WORK, device, 256, 1024, 0.3).total)
