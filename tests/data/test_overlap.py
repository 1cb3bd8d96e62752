"""Crystals that are trained on and held out at the same time are counted and said."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from conftest import small_potential, write_springs
from rich.console import Console

from jaxmlip.crystals.graph import Cutoffs
from jaxmlip.data.dataset import ByFunctional, MemorySplit, Selection
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.writing import write_dataset
from jaxmlip.system import parallel
from jaxmlip.training.config import ConfigError, from_mapping
from jaxmlip.training.overlap import shared
from jaxmlip.training.run import prepare

CUTOFFS = Cutoffs(4.0, 3.0, False)


def crystals(seeds, functional=""):
    found = []
    for seed in seeds:
        atoms = bulk("Si") if seed % 2 else bulk("NaCl", "rocksalt", 5.6)
        atoms.rattle(0.05, seed=seed)
        found.append(LabelledCrystal(atoms, Labels(energy=float(seed)), f"m{seed}", functional=functional))
    return found


def split(seeds, functional=""):
    return MemorySplit.from_crystals(crystals(seeds, functional), CUTOFFS)


def test_copies_are_found_in_memory_and_on_disk_whatever_their_labels_and_order(tmp_path):
    train = split(range(10))
    assert shared(split([20, 21]), [train]) == (2, 0)
    assert shared(split([20, 3, 7]), [train]) == (3, 2)
    other = [replace(c, labels=Labels(energy=-1.0)) for c in crystals([4])]
    assert shared(MemorySplit.from_crystals(other, CUTOFFS), [train]) == (1, 1)
    assert shared(split([8]), [split(range(4)), split([8])]) == (1, 1)  # one to replay
    assert shared(Selection(train, np.array([0, 5])), [train]) == (2, 2)
    written = write_dataset(tmp_path / "set", crystals(range(10)), CUTOFFS, fractions=(0.5, 0.3, 0.2))
    assert shared(written.splits["test"], [written.splits["train"]]) == (2, 0)
    assert shared(written.splits["test"], [train]) == (2, 2)


def test_one_crystal_of_two_functionals_is_not_the_same_twice():
    names = ("PBE", "r2SCAN")
    one, other = (ByFunctional(split([1, 2], name), names) for name in names)
    assert shared(one, [other]) == (2, 0)
    assert shared(one, [one]) == (2, 2)


CONFIG = {
    "model": {
        "architecture": "m3gnet",
        "hyperparameters": {
            "features": 4,
            "hidden": 4,
            "radial": 2,
            "blocks": 1,
            "bond_cutoff": 3.0,
            "angle_cutoff": 2.6,
        },
    },
    "data": {"train": ["springs.extxyz"], "split_by": "crystal"},
    "loss": {"stress": 0, "magmoms": 0},
    "steps": 2,
}


@pytest.fixture
def springs(tmp_path, monkeypatch):
    write_springs(tmp_path, 8)
    monkeypatch.chdir(tmp_path)


def prepared(**changes):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        config = from_mapping(CONFIG, changes).checked()
        prepare(config, Path("run"), parallel.make_mesh(1), Console(quiet=True))
    return [str(w.message) for w in said]


@pytest.mark.slow
def test_validation_on_what_is_trained_on_is_said(springs):
    both = {"data.validation": ["springs.extxyz"], "data.test": ["springs.extxyz"]}
    said = [line for line in prepared(**both) if "trained on, too" in line]
    assert len(said) == 2
    assert said[0].startswith("8 of 8 crystals of the validation data are trained on, too")
    assert said[1].startswith("8 of 8 crystals of the test data are trained on, too")
    assert not [line for line in prepared(**{"data.fractions": [0.5, 0.25, 0.25]}) if "too" in line]


def test_a_warm_up_beyond_the_epochs_is_refused_before_anything_starts(springs):
    long = {"steps": None, "epochs": 3, "batch_size": 4, "optimizer.warmup_steps": 6}
    with pytest.raises(ConfigError, match=r"warmup_steps=6 in a run of 6 updates \(6 steps\)"):
        prepared(**{"data.fractions": [1, 0, 0], **long})


def test_moments_that_the_network_does_not_give_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moments = {"magmoms": np.zeros(2), "forces": np.zeros((2, 3))}
    labelled = [replace(c, labels=replace(c.labels, **moments)) for c in crystals(range(4))]
    for folder, name in (("m3gnet", "m3gnet-smooth"), ("chgnet", "chgnet-0.3")):
        potential = small_potential(name, "float32")
        potential.save(folder)
        write_dataset(f"{folder}-set", labelled, potential.cutoffs, fractions=(1, 0, 0))
    given = {
        "model": {"start": "m3gnet"},
        "data.train": ["m3gnet-set"],
        "loss": {"stress": 0, "magmoms": 0.1},
    }
    told = "loss.magmoms: found 0.1, but m3gnet-smooth predicts no magnetic moments"
    assert any(told in line for line in prepared(**given))
    other = {"model": {"start": "chgnet"}, "data.train": ["chgnet-set"]}
    assert not any("moments" in line for line in prepared(**given | other))
    with pytest.raises(ConfigError, match=r"no magnetic moments; needed .* such as loss\.energy"):
        prepared(**given | {"loss": {"energy": 0, "forces": 0, "stress": 0, "magmoms": 1}})
