"""The same global batch gives the same parameters, however many devices and processes share it."""

import os
import subprocess
from pathlib import Path

import data_parallel
import jax
import numpy as np
import pairs
import pytest
from conftest import write_springs
from processes import COMMAND, free_address, started

from jaxmlip.cli import main
from jaxmlip.potential import Potential
from jaxmlip.system import parallel

SCRIPT = Path(data_parallel.__file__)
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


def finish(*runs: subprocess.Popen) -> None:
    said = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs), said


@pytest.fixture(scope="module")
def alone():
    return data_parallel.learnt(parallel.make_mesh())


def check(expected, out: Path, devices: int) -> None:
    found = dict(np.load(out))
    assert found.pop("devices") == devices
    assert found.keys() == expected.keys()
    assert {n.split("/")[0] for n in found} == set(TOLERANCE)
    for name, x in expected.items():
        atol = TOLERANCE[name.split("/")[0]]
        np.testing.assert_allclose(found[name], x, rtol=0, atol=atol, err_msg=name)


@pytest.mark.slow
def test_training_moves_what_all_devices_are_to_end_with(alone):
    began = pairs.potential().params["network"]["readout_size"]
    for kind in ("float32", "float64", "float64/frequencies"):
        ended = next(x for name, x in alone.items() if name.startswith(kind) and name.endswith("size"))
        assert np.abs(ended - began).max() > 1e-3


@pytest.mark.slow
def test_eight_devices_end_where_one_does(alone, tmp_path):
    finish(started(8, SCRIPT, tmp_path / "params.npz"))
    check(alone, tmp_path / "params.npz", 8)


@pytest.mark.slow
def test_two_processes_end_where_one_does(alone, tmp_path):
    coordinator = free_address()
    finish(*(started(2, SCRIPT, tmp_path / "params.npz", coordinator, 2, k) for k in range(2)))
    check(alone, tmp_path / "params.npz", 4)


CONFIG = """
model:
  architecture: chgnet
  hyperparameters: {features: 4, radial: 3, angular: 3, blocks: 1, bond_cutoff: 3.5, readout: [4]}
data: {train: [springs.extxyz], fractions: [0.75, 0.25, 0], split_by: crystal}
loss: {stress: 0, magmoms: 0}
optimizer: {learning_rate: 1e-2}
steps: 4
batch_size: 4
dtype: float64
final: last
tensorboard: false
"""


@pytest.mark.slow
def test_the_command_in_two_processes_ends_where_it_does_in_one(tmp_path, monkeypatch):
    write_springs(tmp_path, 12)
    (tmp_path / "springs.yaml").write_text(CONFIG)
    train = ["train", "springs.yaml", "--out"]
    together = [*train, "two", "--coordinator", free_address(), "--processes", "2", "--process"]
    path = filter(None, [str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.chdir(tmp_path)
    runs = [started(1, *COMMAND, *together, k) for k in range(2)]
    main([*train, "one"])
    finish(*runs)
    one, two = (Potential.from_folder(tmp_path / name / "model", "float64") for name in ("one", "two"))
    assert [p.manifest["trained"]["step"] for p in (one, two)] == [4, 4]
    began = Potential.from_folder(tmp_path / "one" / "start", "float64")
    moved = 0.0
    for x, y, z in zip(*(jax.tree.leaves(p.params) for p in (one, two, began)), strict=True):
        np.testing.assert_allclose(y, x, rtol=0, atol=1e-12)
        moved = max(moved, np.abs(x - z).max())
    assert moved > 1e-3
