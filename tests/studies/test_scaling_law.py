"""The scaling law, on runs of seconds, and on runs that were never made, whose law is known."""

import math
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import QUICK, small_potential
from small_studies import Ran, run_all, tiny_networks
from small_studies.transfer import R2SCAN

import experiments.transfer.scaling_law as scaling_law
from experiments.transfer.power_law import crossing
from experiments.transfer.scaling_figures import (
    METHODS,
    PUBLISHED,
    PUBLISHED_CROSSINGS,
    PUBLISHED_SIZES,
    SCRATCH,
    TRANSFER,
    UNITS,
    Measured,
    report,
    worth,
)
from jaxmlip.data.dataset import DatasetError
from jaxmlip.models.m3gnet import M3GNet, M3GNetConfig
from jaxmlip.potential import ARCHITECTURES, parameter_shapes
from jaxmlip.studies.study import Study, StudyError
from jaxmlip.zoo.load import load

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def settings(ran):
    """Those of the small run."""
    return ran("transfer.scaling_law").settings


@pytest.fixture(scope="module")
def teachers(settings) -> Path:
    return settings.set


class Here:
    """Does the runs of sweeps in this process, but for those whose names end so."""

    def __init__(self):
        self.done: list[str] = []
        self.left = "-8-0"

    def run_all(self, runs, folder, processes=1):
        some = [run for run in runs if not run.name.endswith(self.left)]
        self.done += [run.name for run in some if not run.finished(folder)]
        run_all(some, folder)


@pytest.fixture
def here(monkeypatch) -> Here:
    """Sweeps in this process, of tiny networks, with one program for all runs and no figures of each."""
    found = Here()
    tiny_networks(monkeypatch)
    monkeypatch.setattr(scaling_law, "run_all", found.run_all)
    return found


def measured_alike(done, architecture: str) -> None:
    """Whether scratch and transfer cost the same and have errors, and all figures are there."""
    scratch, transfer = (done.rows[f"{architecture}-4-{m}-16-0"] for m in METHODS)
    assert scratch["flops"] == transfer["flops"] > 1e4
    for row in (scratch, transfer):
        assert all(0 < row["after"][error] < 1e4 for error in UNITS)
    figures = {f"scaling_{architecture}-4.png", f"compute_{architecture}.png"}
    assert {p.name for p in done.out.glob("*.png")} == figures


@pytest.mark.slow
def test_the_smallest_scaling_law_is_measured_and_choices_that_change_no_run_may_change(
    ran, here, monkeypatch
):
    done = ran("transfer.scaling_law")
    measured_alike(done, "m3gnet")
    assert len(list((done.out / "runs").glob("*/results.json"))) == 5  # one is the source of transfer
    assert "### Power laws" in done.text
    here.left = "none"
    monkeypatch.setattr(Study, "write", lambda *_: None)  # others read what is there
    for choice in ({"processes": 2}, {"above": 1}):  # the latter: other fits of the same runs
        scaling_law.main(replace(done.settings, **choice))
    assert not here.done


@pytest.mark.slow
def test_another_architecture_is_measured_and_runs_that_were_never_begun_are_named(
    settings, tmp_path, here, monkeypatch
):
    """Its training is that of any other: test_transfer trains CHGNet and MACE themselves."""
    monkeypatch.setitem(ARCHITECTURES, "chgnet", ARCHITECTURES["m3gnet"])  # a quick one
    given = replace(settings, architectures=("chgnet",), out=tmp_path / "out")
    scaling_law.main(given)
    assert len(here.done) == 3
    done = Ran("transfer.scaling_law", given)
    measured_alike(done, "chgnet")
    assert "2 runs are not finished and in no fit" in done.text
    assert "chgnet-4-scratch-8-0: not begun" in done.text
    assert "### Power laws" not in done.text  # one size makes none
    scaling_law.main(given)
    assert len(here.done) == 3


@pytest.mark.slow
def test_networks_of_each_architecture_and_width_have_the_elements_of_the_data(settings, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "m3gnet", (M3GNet, M3GNetConfig))  # itself
    given = replace(settings, architectures=("chgnet", "m3gnet", "mace"), width=4, widths=(4, 8), seeds=3)
    found = scaling_law.shapes(given, None, (3, 9))
    names = [f"{architecture}-{width}" for architecture in given.architectures for width in (4, 8)]
    assert [network.name for network in found] == names
    assert [network.seeds for network in found] == [3, 1] * 3
    for network in found:
        shapes = parameter_shapes(ARCHITECTURES[network.architecture][0](network.config))
        assert network.elements == (3, 9)
        assert shapes["reference_energies"][0] > 9
        assert any(network.name.endswith(f"-{width}") for shape in shapes.values() for width in shape)
        assert network.cutoffs.bond == 5.0


@pytest.mark.slow
def test_one_test_material_far_from_all_others_makes_the_mean_and_not_the_median(teachers, monkeypatch):
    test = scaling_law.teacher_set(teachers, R2SCAN).splits["test"]
    of = [test.title(k).material for k in range(len(test))]
    assert len(set(of)) > 2
    scale = dict.fromkeys(of, 0.01) | {of[0]: 100.0}
    moved = []
    for k, material in enumerate(of):
        labels = test[k].labels
        energy = labels.energy + 2 * scale[material]  # of the two atoms of each crystal
        moved.append({"energy": energy, "forces": labels.forces + scale[material]})
    monkeypatch.setattr(scaling_law, "predictions", lambda potentials, split: moved)
    found = scaling_law.held_out_errors(None, test)
    mean = 1e3 * np.mean([scale[material] for material in of])
    for name in ("energy", "forces"):
        assert found[name] == pytest.approx(mean, rel=1e-5)
        assert found[f"{name}, median"] == pytest.approx(10, rel=1e-3)


def test_what_the_data_cannot_give_is_told_before_anything_is_trained(settings, teachers, tmp_path, here):
    settings = replace(settings, out=tmp_path)
    there = len(scaling_law.teacher_set(teachers, R2SCAN).splits["train"])
    with pytest.raises(StudyError, match=f"found 10000, needed 1 to {there}"):
        scaling_law.main(replace(settings, sizes=(8, 10_000)))
    with pytest.raises(StudyError, match="needed at least two above 8"):
        scaling_law.main(replace(settings, above=8))
    with pytest.raises(DatasetError, match="no labels of hse06, only teacher-pbe, teacher-r2scan"):
        scaling_law.main(replace(settings, target="hse06"))
    assert not here.done


def test_a_public_start_keeps_its_network_and_scratch_has_its_shape(settings, teachers, tmp_path):
    start = small_potential(QUICK, "float32")
    target = scaling_law.teacher_set(teachers, R2SCAN)
    elements = scaling_law.elements_of(target)
    (network,) = scaling_law.shapes(settings, start, elements)
    data = scaling_law.prepared(target, network.cutoffs, tmp_path)
    transfer = load(scaling_law.transfer_start(network, None, data, tmp_path))
    scratch = load(scaling_law.random_start(network, 0, data, tmp_path))
    assert transfer.model == scratch.model == start.model
    same = jax.tree.map(np.array_equal, transfer.params["network"], start.params["network"])
    assert all(jax.tree.leaves(same))
    # Labels are -1.5 eV for each unit of atomic number, and next to nothing else; salts fix sums of two.
    found = scratch.params["reference_energies"]
    assert found[3] + found[9] == pytest.approx(-1.5 * (3 + 9), abs=0.05)
    assert found[12] + found[16] == pytest.approx(-1.5 * (12 + 16), abs=0.05)


LAWS = {SCRATCH: (2e4, -0.6), TRANSFER: (500.0, -0.2)}
SIZES = (250, 1000, 2000, 4000, 16000)


def imagined(noise: float = 0.0, seeds: int = 3) -> list[Measured]:
    """Runs whose errors follow LAWS above 500 crystals."""
    rng = np.random.default_rng(1)
    found = []
    for method, (coefficient, slope) in LAWS.items():
        for size in SIZES:
            for seed in range(seeds):
                error = coefficient * size**slope * math.exp(noise * rng.normal()) * (1 + 9 * (size < 500))
                errors = dict.fromkeys(UNITS, error) | {"forces": 2 * error}
                before = dict.fromkeys(UNITS, 400.0)
                found.append(Measured("m3gnet", "m", method, size, seed, before, errors, 10, 0.5, 1e9 * size))
    return found


def cells(tables, title: str) -> list[list]:
    (found,) = (t.rows for t in tables if t.title == title)
    return found


def test_a_known_law_comes_out_of_the_runs_with_what_transfer_is_worth():
    tables, figures, findings = report(imagined(0.05), 500, ["m"], {})
    for _, error, method, slope, _, points, *_ in cells(tables, "Power laws"):
        assert slope.low < LAWS[method][1] < slope.high, (error, method)
        assert points == 12  # three seeds of the four sizes above the bound
    assert len(figures) == 2
    assert "transfer from 1,000 crystals errs by" in findings[0]


def test_without_noise_the_crossing_and_the_worth_are_those_of_the_laws():
    rows = imagined()
    tables, _, _ = report(rows, 500, ["m"], {})
    met = 40 ** (1 / 0.4)  # 2·10⁴ x^-0.6 = 500 x^-0.2
    for _, _, told in cells(tables, "Where scratch catches up with transfer"):
        assert float(told.split()[0].replace(",", "")) == pytest.approx(met, rel=1e-2)
    from experiments.transfer.scaling_figures import _laws

    measured, by_law = worth(rows, dict(_laws(rows, 500)), "m", "energy", 1000)
    needed = (125.6 / 2e4) ** (-1 / 0.6)  # 500 · 1000^-0.2 = 125.6
    for told in (measured, by_law):
        assert float(told.split()[0].replace(",", "")) == pytest.approx(needed, rel=1e-2)


def test_a_run_that_is_not_finished_is_in_no_fit_and_named():
    rows = [r for r in imagined() if (r.method, r.size, r.seed) != (SCRATCH, 16000, 2)]
    tables, _, findings = report(rows, 500, ["m"], {"m-scratch-16000-2": "saved is step 400"})
    points = {(error, method): n for _, error, method, _, _, n, *_ in cells(tables, "Power laws")}
    assert points["energy", SCRATCH] == 11
    assert points["energy", TRANSFER] == 12
    assert findings[-1] == "1 runs are not finished and in no fit (m-scratch-16000-2: saved is step 400)."


def test_a_sweep_without_any_result_still_says_what_is_left():
    tables, figures, findings = report([], 500, ["m"], {"m-source": "not begun"})
    assert [t.title for t in tables if t.rows] == ["The published scaling law, from its points"]
    assert not figures
    assert "m-source: not begun" in findings[0]


@pytest.mark.parametrize("error", PUBLISHED_CROSSINGS)
def test_the_fit_gives_back_the_published_slopes_and_crossings(error):
    for method in METHODS:
        line = PUBLISHED[error, method]
        slope = line.law.slope
        assert slope.value == pytest.approx(line.slope, abs=2e-3)
        assert slope.low < line.slope < slope.high
        assert line.law.r_squared == pytest.approx(line.r_squared, abs=2e-3)
    met = crossing(*(PUBLISHED[error, method].law for method in METHODS))
    assert met.value == pytest.approx(PUBLISHED_CROSSINGS[error], rel=0.01)
    assert met.low < PUBLISHED_CROSSINGS[error] < met.high


def test_the_published_fits_include_the_point_drawn_at_a_thousand():
    """Without it, R² of forces from scratch would be 0.983, and 0.978 is printed."""
    from experiments.transfer.power_law import fit

    line = PUBLISHED["forces", SCRATCH]
    without = fit(PUBLISHED_SIZES[1:], line.points[1:]).r_squared
    assert abs(without - line.r_squared) > 3 * abs(line.law.r_squared - line.r_squared)
