"""A run from the command line, and the record that it leaves."""

import dataclasses
import json
import shutil
import sys
import types

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

import jaxmlip
from jaxmlip import cli
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.training.config import EXAMPLE as CONFIG
from jaxmlip.training.config import ConfigError, DataConfig, read_config
from jaxmlip.training.loop import NotSaved, Resumed, Saved, Stopped, Trained, Validated
from jaxmlip.training.records import METRICS, Records, RunFolderError, open_folder, read_metrics
from jaxmlip.training.splits import divide

pytestmark = pytest.mark.usefixtures("quick", "shared_programs")
METRICS_OF_STEP = {"loss": 0.5, "learning_rate": 1e-3, "forces_mae": 0.25}


def trained(step, **metrics):
    return Trained(step, step / 10, METRICS_OF_STEP | metrics, 100.0, 800.0, 0.01)


def validated(step):
    return Validated(step, step / 10, {"loss": 0.5, "forces_mae": 0.3}, True)


def kinds(folder):
    return [(line["kind"], line["step"]) for line in read_metrics(folder / METRICS)]


def test_events_become_lines_of_json_and_of_text(tmp_path):
    said = []
    with Records(tmp_path, CONFIG, 20, said.append) as records:
        records(validated(0))
        records(trained(1, energy_mae=float("nan")))
        records(Saved(1, tmp_path / "checkpoints" / "00000001"))
        records(NotSaved(2, "disk full"))
        records(Stopped(2, "enough"))
    lines = read_metrics(tmp_path / METRICS)
    assert [line["kind"] for line in lines] == ["validation", "train", "saved", "not saved", "stopped"]
    assert lines[0]["forces_mae"] == 0.3
    assert lines[1]["energy_mae"] is None
    assert (lines[1]["atoms_per_s"], lines[1]["waiting"], lines[1]["epoch"]) == (800.0, 0.01, 0.1)
    assert lines[2]["path"] == "checkpoints/00000001"
    assert said[0].startswith("step 0/20; validation MAE: forces 0.3 eV/Å")
    assert "100 structures/s, 800 atoms/s, waiting 1%" in said[-2]
    assert said[-1] == "stopped after step 2: enough"
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_line_tells_each_validation_once_and_with_its_own_step(tmp_path, monkeypatch):
    said = []
    with Records(tmp_path, CONFIG, 8, said.append) as records:
        for every, events in ((0, [validated(0), trained(1)]), (1e9, [trained(3), trained(4), validated(4)])):
            monkeypatch.setattr("jaxmlip.training.records.EVERY", every)
            for event in events:
                records(event)
        monkeypatch.setattr("jaxmlip.training.records.EVERY", 0)
        for event in (trained(8), validated(8), Stopped(8, "all 8 steps are done")):
            records(event)
    of_training = "loss 0.5, lr 1.0e-03, 100 structures/s, 800 atoms/s, waiting 1%"
    of_validation = "validation MAE: forces 0.3 eV/Å (best)"
    assert said == [
        f"step 0/8; {of_validation}",
        f"step 1/8; epoch 0.1, {of_training}",
        f"step 8/8; epoch 0.8, {of_training}; step 4: {of_validation}",
        f"step 8/8; {of_validation}",
        "stopped after step 8: all 8 steps are done",
    ]


def test_a_run_that_goes_on_drops_the_lines_that_it_will_write_again(tmp_path):
    with Records(tmp_path, CONFIG, 20, print) as records:
        for step in range(1, 6):
            records(trained(step))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "train", "step": 3, "lo')  # killed while it wrote
    with Records(tmp_path, CONFIG, 20, print) as records:
        records(Resumed(3))
        records(trained(4))
    assert kinds(tmp_path) == [("train", 1), ("train", 2), ("train", 3), ("resumed", 3), ("train", 4)]


def test_a_run_that_begins_again_has_a_record_of_its_own(tmp_path):
    for _ in range(2):
        with Records(tmp_path, CONFIG, 20, print) as records:
            records(trained(1))
    assert kinds(tmp_path) == [("train", 1)]


def test_wandb_gets_what_the_file_gets(tmp_path, monkeypatch):
    logged = []

    class Run:
        def log(self, numbers, step):
            logged.append((step, numbers))

        def finish(self):
            logged.append("finished")

    begun = {}
    fake = types.SimpleNamespace(init=lambda **options: begun.update(options) or Run())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Records(tmp_path, dataclasses.replace(CONFIG, wandb=True), 20, print) as records:
        records(trained(1))
    assert begun["config"]["model"]["start"] == "chgnet-0.3.0"
    assert logged[0][0] == 1
    assert logged[0][1]["train/forces_mae"] == 0.25
    assert logged[-1] == "finished"
    monkeypatch.setitem(sys.modules, "wandb", None)
    records = Records(tmp_path, dataclasses.replace(CONFIG, wandb=True), 20, print)
    with records, pytest.raises(ConfigError, match="pip install wandb"):
        records(trained(1))


def test_the_folder_says_what_was_done_and_with_what(tmp_path):
    for _ in range(2):
        open_folder(tmp_path / "run", CONFIG)
    assert read_config(tmp_path / "run" / "config.yaml") == CONFIG.absolute()
    starts = json.loads((tmp_path / "run" / "versions.json").read_text())["starts"]
    assert len(starts) == 2
    assert {"jax", "flax", "optax", "numpy"} <= starts[0]["packages"].keys()
    assert starts[0]["seed"] == CONFIG.seed
    assert starts[0]["devices"]["number"] >= 1
    assert starts[0]["git"] is None or len(starts[0]["git"]["commit"]) == 40


def test_another_configuration_or_another_folder_is_refused(tmp_path):
    open_folder(tmp_path / "run", dataclasses.replace(CONFIG, seed=7))
    open_folder(tmp_path / "run", CONFIG)  # nothing was begun
    (tmp_path / "run" / "start").mkdir()
    open_folder(tmp_path / "run", dataclasses.replace(CONFIG, keep=5, devices=1))
    with pytest.raises(RunFolderError, match="seed: begun with 0, found 3"):
        open_folder(tmp_path / "run", dataclasses.replace(CONFIG, seed=3))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match="not empty and not the folder of a run"):
        open_folder(tmp_path / "other", CONFIG)
    with pytest.raises(RunFolderError, match="is a file"):
        open_folder(tmp_path / "other" / "thesis.tex", CONFIG)


def labelled(materials):
    return [LabelledCrystal(bulk("Si"), Labels(energy=float(k)), m) for k, m in enumerate(materials)]


def test_crystals_of_one_material_stay_on_one_side_of_a_split():
    crystals = labelled("aabbccddeeffgghhiijj")
    parts = divide(crystals, (0.6, 0.2, 0.2), "material", 0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 12, "validation": 4, "test": 4}
    sides = [{c.material for c in part} for part in parts.values()]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert divide(crystals, (0.6, 0.2, 0.2), "material", 0) == parts
    assert divide(crystals, (0.6, 0.2, 0.2), "material", 1) != parts


def test_ten_crystals_of_one_material_are_nine_and_one_by_crystal():
    crystals = labelled("a" * 10)
    parts = divide(crystals, (0.9, 0.1, 0.0), "crystal", 0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 9, "validation": 1}
    assert list(divide(crystals[:1], (0.9, 0.1, 0.0), "crystal", 0)) == ["train"]
    with pytest.raises(ConfigError, match=r"data\.split_by: crystal"):
        divide(crystals, (0.9, 0.1, 0.0), "material", 0)


CONFIG_YAML = """
model:
  architecture: m3gnet
  hyperparameters: {bond_cutoff: 3.5, angle_cutoff: 2.6}
data:
  train: [springs.extxyz]
  fractions: [0.7, 0.2, 0.1]
  split_by: crystal
loss: {stress: 0, magmoms: 0}
optimizer: {learning_rate: 1e-2, ema: 0.9}
monitor: energy_mae
epochs: 4
batch_size: 4
checkpoint_every: 3
report_every: 2
"""


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    """A folder in which a network has learnt springs, by command."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    for k in range(20):
        atoms = bulk("Si") if k % 3 else bulk("NaCl", "rocksalt", 5.0)
        moved = 0.1 * rng.normal(size=atoms.positions.shape)
        atoms.positions += moved
        energy = (moved**2).sum() / 2 - 2.0 * len(atoms)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=-moved)
        ase.io.write(folder / "springs.extxyz", atoms, append=True)
    (folder / "tiny.yaml").write_text(CONFIG_YAML)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["train", "tiny.yaml", "--set", "seed=1"])
    return folder / "tiny"


def test_a_run_leaves_a_model_figures_and_results(finished):
    potential = jaxmlip.load(str(finished / "model"))
    assert potential.elements == (11, 14, 17)
    assert potential.name == "tiny"
    # Fitted to the data: -2 eV for each atom, less what springs store.
    np.testing.assert_allclose(
        np.asarray(potential.params["reference_energies"])[[11, 14, 17]], -2, atol=0.05
    )
    results = json.loads((finished / "results.json").read_text())
    assert results["compared_on"] == "2 of 2 crystals of the test data"
    assert results["after"]["forces"]["mae"] != results["before"]["forces"]["mae"]
    for figure in ("learning_curve.png", "parity.png"):
        assert (finished / figure).read_bytes().startswith(b"\x89PNG")
    assert {kind for kind, _ in kinds(finished)} == {"compiled", "train", "validation", "saved", "stopped"}
    assert read_config(finished / "config.yaml").seed == 1


def test_export_writes_the_same_model_as_the_end_of_the_run(finished, tmp_path):
    cli.main(["export", str(finished), str(tmp_path / "best")])
    exported, model = (jaxmlip.load(str(f)) for f in (tmp_path / "best", finished / "model"))
    assert exported.manifest["sha256"] == model.manifest["sha256"]
    assert exported.manifest["trained"] == model.manifest["trained"]
    cli.main(["export", str(finished), str(tmp_path / "raw"), "--which", "last", "--raw"])
    raw = jaxmlip.load(str(tmp_path / "raw"))
    assert raw.manifest["trained"]["step"] == 16
    assert raw.manifest["sha256"] != model.manifest["sha256"]
    first = min((finished / "checkpoints").iterdir())
    cli.main(["export", str(first), str(tmp_path / "first")])
    assert jaxmlip.load(str(tmp_path / "first")).manifest["trained"]["step"] == int(first.name)


def test_a_finished_run_is_not_trained_again(finished, capsys):
    cli.main(["train", str(finished / "config.yaml")])
    assert "stopped after step 16: all 16 steps are done" in capsys.readouterr().err
    assert kinds(finished)[-2:] == [("resumed", 16), ("stopped", 16)]


@pytest.mark.slow
def test_a_finished_run_takes_more_epochs_and_nothing_else(finished, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(finished, tmp_path / "tiny")
    monkeypatch.chdir(finished.parent)

    def train(*changes):
        capsys.readouterr()
        cli.main(["train", str(folder / "config.yaml"), "--set", *changes])
        return capsys.readouterr().err

    for change, named in (
        (["epochs=2"], "epochs: begun with 4, found 2"),
        (["epochs=6", "seed=2"], "seed: begun with 1, found 2"),
        (["steps=12"], "steps: begun with None, found 12"),
    ):
        with pytest.raises(SystemExit):
            train(*change)
        assert named in capsys.readouterr().err
    said = train("epochs=6")
    assert "16 of 24 steps are done. The optimizer continues from its state" in said
    assert "the learning rate 0.00251 of the schedule of 24 steps" in said
    assert "stopped after step 24: all 24 steps are done" in said
    assert read_config(folder / "config.yaml").epochs == 6
    assert json.loads((folder / "results-16.json").read_text())["stopped"] == "all 16 steps are done"
    assert json.loads((folder / "results.json").read_text())["stopped"] == "all 24 steps are done"
    assert jaxmlip.load(str(folder / "model")).elements == (11, 14, 17)


def test_more_epochs_are_for_a_run_that_is_done(tmp_path):
    open_folder(tmp_path / "run", CONFIG)
    (tmp_path / "run" / "start").mkdir()
    with pytest.raises(RunFolderError, match=r"this one was interrupted.*\n.*begun with 100"):
        open_folder(tmp_path / "run", dataclasses.replace(CONFIG, epochs=200))


def test_export_names_what_is_no_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["export", str(tmp_path), str(tmp_path / "out")])
    assert "needed the folder of a run" in capsys.readouterr().err


def test_mistakes_leave_no_folder_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["finetune", "--data", "gone.extxyz", "--out", "run"])
    assert "data.train: gone.extxyz does not exist" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_flags_of_train_without_meaning_are_refused_and_a_precision_is_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("model: {architecture: m3gnet}\ndata: {train: gone.extxyz}")
    with pytest.raises(SystemExit):
        cli.main(["train", "run.yaml", "--processes", "4"])
    assert "--processes 4 and --process None alone, needed --coordinator" in capsys.readouterr().err
    begun = []
    monkeypatch.setattr("jaxmlip.cli.training._run", lambda config, out: begun.append(config.dtype))
    for flags in ([], ["--dtype", "float64"]):
        cli.main(["train", "run.yaml", *flags])
    assert begun == ["float32", "float64"]


def test_the_example_is_a_configuration(tmp_path, capsys):
    cli.main(["train", "--example"])
    (tmp_path / "example.yaml").write_text(capsys.readouterr().out)
    assert read_config(tmp_path / "example.yaml") == CONFIG
    assert CONFIG.data == DataConfig(train=("crystals.extxyz",))
