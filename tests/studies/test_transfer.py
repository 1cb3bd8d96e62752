"""Carrying a potential over to another functional: two random networks play the teachers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from conftest import QUICK, small_potential
from small_studies import go
from small_studies.transfer import methods

import experiments.transfer.methods as transfer
from experiments.transfer.material_errors import mean, median
from experiments.transfer.methods import Settings
from experiments.transfer.results import METHODS, interval
from experiments.transfer.stability import decomposition_energies, formation_energies
from jaxmlip.data.dataset import Selection
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.writing import write_dataset
from jaxmlip.models.chgnet import CHGNetConfig
from jaxmlip.models.mace import MACEConfig
from jaxmlip.potential import random_potential
from jaxmlip.system.tables import Estimate
from jaxmlip.training.run import fit_references

OTHERS = {  # a start, and what is done with it
    "chgnet": (
        CHGNetConfig(features=4, radial=3, angular=3, blocks=1, bond_cutoff=4.0, readout=(4,)),
        "refit",
    ),
    "mace": (
        MACEConfig(
            elements=(8, 11, 12, 17),
            channels=2,
            harmonics_l=1,
            correlation=(1, 1),
            cutoff=4.0,
            radial=3,
            radial_widths=(4,),
            readout=4,
        ),
        "scratch",
    ),
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Of a small run, whose data are there: two random networks play the teachers."""
    root = tmp_path_factory.mktemp("transfer")
    return Settings(**methods(root), out=root / "out")


pytestmark = pytest.mark.usefixtures("quick", "runs_alike")


def answered(given: Settings) -> dict:
    """The record of a run whose table has a row for each method, with all five numbers."""
    record = json.loads((given.out / "record.json").read_text())
    assert not any("failed" in row for row in record["rows"].values())
    rows = record["tables"][0]["rows"]
    assert [row[0] for row in rows] == [METHODS[m] for m in given.methods]
    numbers = [cell["value"] for row in rows for cell in row[1:]]
    assert np.isfinite(numbers).all()
    assert len(numbers) == 5 * len(rows)  # energy, forces, stress, decomposition, formation
    return record


@pytest.mark.slow
def test_a_method_gives_a_row_of_the_table(ran):
    record = answered(ran("transfer.methods").settings)
    assert {f["file"] for f in record["figures"]} == {"transfer_gradients.png", "transfer_curves.png"}


@pytest.mark.slow
def test_every_method_begins_as_its_references_say(settings, tmp_path):
    given = replace(settings, methods=tuple(METHODS), out=tmp_path / "out")
    go("transfer.methods", given)
    record = answered(given)
    before = {method: record["rows"][f"{method}/0"]["before"]["energy"] for method in METHODS}
    assert before["trainable"] == before["frozen"] > before["refit"] == before["readout"]
    # The source's own shift is zero but for its noise, and that of the target is the same.
    assert before["fidelities"] == pytest.approx(before["refit"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["chgnet", "mace"])
def test_other_architectures_start_from_a_given_potential_with_graphs_of_its_own(
    settings, tmp_path, architecture
):
    config, method = OTHERS[architecture]
    random_potential(config, name=architecture).save(tmp_path / "start")
    start = {"start": str(tmp_path / "start"), "methods": (method,), "crystals": None, "epochs": 1}
    given = replace(settings, out=tmp_path / "out", **start)
    go("transfer.methods", given)
    answered(given)


def test_where_functionals_differ_by_a_shift_of_elements_refitted_references_leave_no_error(
    settings, tmp_path
):
    given = replace(settings, out=tmp_path)
    start = small_potential(QUICK, "float32")
    sets = (transfer.teacher_set(settings.set, name) for name in ("pbe", "shifted"))
    trial = transfer.Trial(given, tmp_path, start, *sets)
    found = fit_references(start, trial.splits["train"])
    refitted = replace(start, params=start.params | {"reference_energies": found.energies})
    before, after = (trial.compared([potential]) for potential in (start, refitted))
    assert mean(np.array(before["energy"])) > 0.5
    for name in ("energy", "formation", "decomposition"):
        assert mean(np.array(after[name])) < 1e-5, name


def test_what_is_wrong_is_said_before_anything_is_trained(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "run_training", None)
    given = replace(settings, out=tmp_path / "out")
    with pytest.raises(ValueError, match="found seeds=0, needed 1 or more"):
        transfer.main(replace(given, seeds=0))
    with pytest.raises(ValueError, match="found pbe as source and as target"):
        transfer.main(replace(given, target="pbe"))
    with pytest.raises(ValueError, match="no labels of scan, only pbe, r2scan, shifted"):
        transfer.main(replace(given, target="scan"))
    with pytest.raises(ValueError, match=r"has \d+ crystals for training, but --crystals asks for 1000"):
        transfer.main(replace(given, crystals=1000))
    labelled = [LabelledCrystal(bulk("Na") * (2, 1, 1), Labels(energy=float(k)), f"m{k}") for k in range(40)]
    cutoffs = small_potential(QUICK).cutoffs
    for name, count in (("pbe", 40), ("r2scan", 39)):
        write_dataset(tmp_path / "other" / name, labelled[:count], cutoffs, fractions=(0.6, 0.2, 0.2))
    with pytest.raises(ValueError, match="have different crystals for"):
        transfer.main(replace(given, set=tmp_path / "other"))
    assert not given.out.exists()


def test_crystals_with_elements_that_a_seed_does_not_train_on_are_left_out_and_counted(settings, tmp_path):
    source, target = (transfer.teacher_set(settings.set, name) for name in ("pbe", "r2scan"))
    start, given = small_potential(QUICK), replace(settings, out=tmp_path, crystals=3)
    trial = transfer.Trial(given, tmp_path, start, source, target)
    known = set(Selection(target.splits["train"], drawn(target, 3)).elements)
    assert known < set(target.splits["test"].elements)
    for name in ("validation", "test"):
        every = target.splits[name]
        kept = [k for k in range(len(every)) if set(every[k].graph.species.tolist()) <= known]
        assert [title.name for _, title in transfer.examples(trial.splits[name])] == [
            every.title(k).name for k in kept
        ]
    assert trial.counts()["left out"] == len(target.splits["test"]) - len(trial.test) > 0


def drawn(dataset, crystals: int) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(len(dataset.splits["train"]))[:crystals])


def test_formation_and_decomposition_energies_are_those_of_a_hull_drawn_by_hand():
    na, cl, salt, subsalt = (np.array(z) for z in ([11], [17, 17], [11, 17], [11, 11, 17]))
    crystals = [na, na, cl, salt, salt, subsalt, np.array([11, 8])]
    energies = [-1.0, -0.9, -4.0, -4.0, -3.6, -4.3, -9.0]
    formed = formation_energies(crystals, energies, [True] * 7)
    np.testing.assert_allclose(formed[3:6], [-0.5, -0.3, -0.1], atol=1e-12)
    assert np.isnan([*formed[:3], formed[6]]).all()  # elements, and a compound of one that is not there
    decomposed = decomposition_energies(crystals, energies, [True] * 7)
    np.testing.assert_allclose(decomposed[3:6], [-0.5 + 0.075, -0.3 + 0.075, -0.1 + 0.5 * 2 / 3], atol=1e-8)
    assert np.isnan([*decomposed[:3], decomposed[6]]).all()


def test_the_median_is_of_materials_that_have_the_property_and_the_mean_of_all_numbers():
    sums = np.array([[2.0, 1], [30, 10], [0, 0], [400, 4]])
    assert median(sums) == 3
    assert mean(sums) == 432 / 15
    assert np.isnan(median(sums[2:3]))


def test_the_interval_of_a_difference_is_narrow_where_materials_are_hard_for_both():
    hard = np.random.default_rng(0).uniform(1, 9, size=60)
    one = [np.stack([2 * hard, np.full(60, 2.0)], axis=1)] * 2
    other = [np.stack([2 * hard + 1, np.full(60, 2.0)], axis=1)] * 2
    assert interval(one, unit=10).value == pytest.approx(10 * hard.mean())
    wide, narrow = interval(one, unit=10), interval(other, one, unit=10)
    assert wide.high - wide.low > 5
    assert narrow == pytest.approx(Estimate(5, 5, 5))
