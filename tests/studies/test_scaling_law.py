"""The scaling law, on runs of seconds, and on runs that were never made, whose law is known."""

import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from ase.build import bulk
from conftest import small_potential

import experiments.transfer.scaling_law as scaling_law
from experiments.training.networks import small
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
from jaxmlip.crystals.graph import Cutoffs
from jaxmlip.data.dataset import DatasetError
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.writing import write_dataset
from jaxmlip.studies.study import StudyError
from jaxmlip.training.run import run_training
from jaxmlip.zoo.load import load

TINY = {
    "m3gnet": {"features": 4, "hidden": 4, "blocks": 1, "radial": 2, "angular": 2},
    "chgnet": {"features": 4, "radial": 3, "angular": 3, "blocks": 1, "bond_cutoff": 5.0, "readout": [4]},
    "mace": {
        "channels": 4,
        "hidden_l": 1,
        "harmonics_l": 1,
        "correlation": [2],
        "blocks": ["density"],
        "cutoff": 5.0,
        "radial": 3,
        "radial_widths": [4],
    },
}
PBE, R2SCAN = "teacher-pbe", "teacher-r2scan"


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> Path:
    """Rock salts whose ions are bound to their sites by springs, stiffer ones in the second functional."""
    folder = tmp_path_factory.mktemp("set")
    pairs = [a + b for a in ("Li", "Na", "K", "Mg", "Ca", "Rb") for b in ("F", "Cl", "O", "S", "Br")]
    for name, stiffness, of_atom in ((PBE, 1.0, -0.2), (R2SCAN, 1.2, -1.5)):
        rng = np.random.default_rng(0)
        made = []
        for k in range(60):
            atoms = bulk(pairs[k % len(pairs)], "rocksalt", 4.8)
            moved = 0.02 * rng.normal(size=atoms.positions.shape)
            atoms.positions += moved
            labels = Labels(
                energy=float(of_atom * atoms.numbers.sum() + stiffness * (moved**2).sum() / 2),
                forces=-stiffness * moved,
                stress=np.zeros((3, 3)),
            )
            made.append(LabelledCrystal(atoms, labels, material=f"rocksalt-{pairs[k % len(pairs)]}"))
        write_dataset(folder / name, made, Cutoffs(5.0, 4.0, False), fractions=(0.6, 0.2, 0.2), processes=1)
    return folder


class Here:
    """Does the runs of sweeps in this process, since each other one would spend seconds on imports."""

    def __init__(self):
        self.done: list[str] = []
        self.left = ""  # the end of the names of runs that are never begun

    def run_all(self, runs, folder, processes=1):
        for run in runs:
            if not run.finished(folder) and not (self.left and run.name.endswith(self.left)):
                run_training(run.config, run.folder(folder))
                self.done.append(run.name)


@pytest.fixture
def here(monkeypatch, runs_alike) -> Here:
    """Sweeps in this process, of tiny networks, with one program for all runs and no figures of each."""
    found = Here()
    monkeypatch.setattr(scaling_law, "run_all", found.run_all)
    monkeypatch.setattr(scaling_law, "small", lambda its, width: TINY.get(its) or small(its, width))
    return found


def smallest(teachers: Path, out: Path, **changes) -> scaling_law.Settings:
    return scaling_law.Settings(
        **{
            "set": teachers,
            "source": PBE,
            "target": R2SCAN,
            "width": 4,
            "widths": (),
            "sizes": (8, 16),
            "above": 4,
            "seeds": 1,
            "epochs": 1,
            "least_steps": 9,  # as many as an epoch of the source has, so that one program is enough
            "validations": 2,
            "batch_size": 4,
            "out": out,
            **changes,
        }
    )


@pytest.mark.parametrize(
    "architecture", ["m3gnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("chgnet", "mace"))]
)
def test_the_smallest_scaling_law_is_measured_and_measured_once(
    architecture, teachers, tmp_path, here, capsys, monkeypatch
):
    settings = smallest(teachers, tmp_path / "out", architectures=(architecture,))
    if architecture != "m3gnet":  # all of it is proved once, and that it is for all architectures
        here.left = "-8-0"
    scaling_law.main(settings)
    said = capsys.readouterr().out
    assert len(here.done) == 5 - 2 * bool(here.left)  # one is the source of transfer
    rows = json.loads((settings.out / "record.json").read_text())["rows"]
    scratch, transfer = (rows[f"{architecture}-4-{m}-16-0"] for m in METHODS)
    assert scratch["flops"] == transfer["flops"] > 1e4
    for row in (scratch, transfer):
        assert all(0 < row["after"][error] < 1e4 for error in UNITS)
    figures = {f"scaling_{architecture}-4.png", f"compute_{architecture}.png"}
    assert {p.name for p in settings.out.glob("*.png")} == figures
    if here.left:
        assert "2 runs are not finished and in no fit" in said
        assert f"{architecture}-4-scratch-8-0: not begun" in said
        assert "### Power laws" not in said  # one size makes none
    else:
        assert "### Power laws" in said

    monkeypatch.setattr(scaling_law, "forecast", None)
    scaling_law.main(replace(settings, processes=2))
    assert capsys.readouterr().out == said
    scaling_law.main(replace(settings, above=1))  # other fits of the same runs
    assert len(here.done) == 5 - 2 * bool(here.left)
    with pytest.raises(StudyError, match="epochs: 1 there, 2 here"):
        scaling_law.main(replace(settings, epochs=2))


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


def test_what_the_data_cannot_give_is_told_before_anything_is_trained(teachers, tmp_path, here):
    settings = smallest(teachers, tmp_path)
    there = len(scaling_law.teacher_set(teachers, R2SCAN).splits["train"])
    with pytest.raises(StudyError, match=f"found 10000, needed 1 to {there}"):
        scaling_law.main(replace(settings, sizes=(8, 10_000)))
    with pytest.raises(StudyError, match="needed at least two above 8"):
        scaling_law.main(replace(settings, above=8))
    with pytest.raises(DatasetError, match="no labels of hse06, only teacher-pbe, teacher-r2scan"):
        scaling_law.main(replace(settings, target="hse06"))
    with pytest.raises(ValueError, match="'transformer', needed one of chgnet, m3gnet, mace"):
        scaling_law.main(replace(settings, architectures=("transformer",)))
    assert not here.done


def test_a_public_start_keeps_its_network_and_scratch_has_its_shape(teachers, tmp_path):
    start = small_potential("m3gnet-smooth", "float32")
    target = scaling_law.teacher_set(teachers, R2SCAN)
    elements = scaling_law.elements_of(target)
    (network,) = scaling_law.shapes(smallest(teachers, tmp_path), start, elements)
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
