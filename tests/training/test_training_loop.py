"""A run that is stopped in any way and goes on ends where one ends that was never stopped."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import small_run
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmlip.crystals.graph import Cutoffs
from jaxmlip.data.dataset import CorruptRecordError, DatasetError, MemorySplit
from jaxmlip.data.loader import Loader
from jaxmlip.potential import Potential
from jaxmlip.system import parallel
from jaxmlip.training import loop
from jaxmlip.training.checkpoints import CheckpointError, Checkpoints
from jaxmlip.training.loop import (
    Compiled,
    DivergedError,
    InterruptedRun,
    NotSaved,
    OtherRunError,
    Resumed,
    Saved,
    Stopped,
    Trained,
    Validated,
)
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig, learning_rate
from jaxmlip.training.step import Needs

pytestmark = pytest.mark.usefixtures("quick", "runs_alike")  # all but the first run

SETTINGS = small_run.SETTINGS
SCRIPT = Path(small_run.__file__)
KILLS = int(os.environ.get("JAXMLIP_KILLS", "2"))  # how often the run of the kill test is killed


@pytest.fixture(scope="module")
def whole(quick, tmp_path_factory):
    """A run that nothing happened to: its result, its events, its folder, and what it compiled."""
    folder, events, arrays, made = tmp_path_factory.mktemp("whole"), [], [], []

    def kept(make):
        return lambda *a: made.append(make(*a)) or made[-1]

    def report(event):
        events.append(event)
        if isinstance(event, Validated):  # when no step is under way
            gc.collect()
            arrays.append(len(jax.live_arrays()))

    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_train_step", "make_eval_step"):
            patch.setattr(loop, name, kept(getattr(loop, name)))
        fitted = small_run.run(folder, replace(SETTINGS, keep=100), report)
    return {
        "fitted": fitted,
        "events": events,
        "folder": folder,
        "arrays": arrays,
        "programs": [f.jitted._cache_size() for f in made],
    }


def until(whole, step: int, folder: Path) -> Path:
    """A copy of the folder of the whole run as it was after `step`."""
    shutil.copytree(whole["folder"], folder)
    for saved in Checkpoints(folder / "checkpoints").steps:
        if saved > step:
            shutil.rmtree(Checkpoints(folder / "checkpoints").path(saved))
    return folder


def of_kind(events, *kinds):
    return [e for e in events if isinstance(e, kinds)]


def equal(a: Potential, b: Potential) -> None:
    """The parameters are the same, bit for bit."""
    assert jax.tree.structure(a.params) == jax.tree.structure(b.params)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.slow
def test_training_lowers_the_loss_and_returns_the_best_step_of_validation(whole):
    fitted = whole["fitted"]
    first, *_, last = of_kind(whole["events"], Trained)
    assert last.metrics["loss"] < first.metrics["loss"] / 2
    best = min(fitted.history, key=lambda h: h["forces_mae"])
    assert fitted.best == best["step"]
    assert [h["step"] for h in fitted.history] == list(range(0, 41, 5))  # before, and after each epoch
    assert (fitted.step, fitted.reason) == (40, "all 40 steps are done")


@pytest.mark.slow
def test_the_metrics_before_the_first_step_are_those_of_the_potential_itself(whole):
    potential, data = small_run.start(), small_run.split(7, 1)
    errors = []
    for e in data.examples:
        shape = loop.batching.shape_for([e.graph])
        found = potential.predict_graphs([e.graph], shape)[0]
        errors.append((abs(found["energy"] - e.labels.energy) / 2, found["forces"] - e.labels.forces))
    metrics = whole["fitted"].history[0]
    assert metrics["energy_mae"] == pytest.approx(np.mean([e for e, _ in errors]), rel=1e-5)
    assert metrics["forces_mae"] == pytest.approx(np.abs([f for _, f in errors]).mean(), rel=1e-5)
    assert "stress_mae" not in metrics  # nothing of it is labelled


def test_what_a_step_needs_is_said_once_before_the_first_and_more_than_there_is_is_warned_of(
    whole, tmp_path, monkeypatch
):
    (told,) = of_kind(whole["events"], Compiled)
    assert whole["events"].index(told) < whole["events"].index(of_kind(whole["events"], Trained)[0])
    assert told.step == 0
    assert told.needs.memory > 0
    assert told.needs.held > 0
    assert told.needs.flops > 0
    assert whole["programs"] == [1] * len(whole["programs"]), "what was compiled to be asked is taken"

    monkeypatch.setattr(loop, "available", lambda: -1.0)  # the shared program says that it needs nothing
    with pytest.warns(UserWarning, match=r"a step needs .*batch_size"):
        small_run.run(until(whole, 35, tmp_path / "run"))


def test_events_tell_of_every_step_once_and_in_order(whole):
    events = whole["events"]
    trained = of_kind(events, Trained)
    assert [e.step for e in trained] == sorted({e.step for e in trained})
    assert trained[-1].step == 40
    assert trained[0].crystals_per_second is None  # compilation
    assert all(e.crystals_per_second > 0 and e.atoms_per_second > 0 for e in trained[1:])
    assert all(0 <= e.waiting <= 1 for e in trained)
    assert [e.step for e in of_kind(events, Saved)] == Checkpoints(whole["folder"] / "checkpoints").steps
    assert [e.step for e in of_kind(events, Validated) if e.best][-1] == whole["fitted"].best
    assert isinstance(events[-1], Stopped)


def test_a_run_compiles_one_program_for_training_and_one_for_validation(whole):
    assert whole["programs"] == [1, 1]


def test_no_array_is_left_on_the_device_from_step_to_step(whole):
    assert len(set(whole["arrays"][1:])) == 1


def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(whole, tmp_path):
    events = []
    folder = until(whole, 15, tmp_path / "run")
    fitted = small_run.run(folder, SETTINGS, events.append)
    assert events[0] == Resumed(15)
    equal(fitted.last, whole["fitted"].last)
    equal(fitted.potential, whole["fitted"].potential)
    assert (fitted.best, fitted.history) == (whole["fitted"].best, whole["fitted"].history)
    assert {30, 35, 40, fitted.best} <= set(Checkpoints(folder / "checkpoints").steps)


def test_a_run_that_is_done_is_not_trained_again(whole, tmp_path):
    events = []
    fitted = small_run.run(until(whole, 40, tmp_path / "run"), SETTINGS, events.append)
    assert [type(e) for e in events] == [Resumed, Stopped]
    equal(fitted.potential, whole["fitted"].potential)


def test_ctrl_c_saves_and_the_run_goes_on_to_the_same_bits(whole, tmp_path):
    def interrupt(event):
        if isinstance(event, Validated) and event.step == 10:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    quick = replace(SETTINGS, checkpoint_every=1000)
    with (
        pytest.raises(
            InterruptedRun, match=r"SIGINT: stopped after step 10 of 40\. The last saved step is 10"
        ) as error,
        pytest.warns(UserWarning, match="The same command continues from there"),
    ):
        small_run.run(tmp_path, quick, interrupt)
    assert error.value.code == 128 + signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    events = []
    equal(small_run.run(tmp_path, quick, events.append).last, whole["fitted"].last)
    assert events[0] == Resumed(10)


def script(folder: Path, seconds: float = 0.0, devices: int = 1) -> subprocess.Popen:
    """The run of small_run.py in a process of its own, with standard error in the file errors beside it."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    with errors_of(folder).open("w") as errors:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(seconds)],
            env={**os.environ, "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def errors_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".errors")


def wait_for(process: subprocess.Popen, words: str) -> None:
    """Reads what the process says until it says `words`, or ends."""
    next((line for line in process.stdout if words in line), None)


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_bits(whole, tmp_path):
    rng, killed = np.random.default_rng(0), 0
    while killed < KILLS:
        process = script(tmp_path / "run", seconds=0.05)
        wait_for(process, "Trained")
        time.sleep(rng.uniform(0, 0.4))  # a step takes about 0.05 s, a checkpoint follows every fifth
        process.kill()
        process.communicate()
        killed += 1
    events = []
    fitted = small_run.run(tmp_path / "run", SETTINGS, events.append)
    assert isinstance(events[0], Resumed)
    equal(fitted.last, whole["fitted"].last)
    equal(fitted.potential, whole["fitted"].potential)


@pytest.mark.slow
def test_sigterm_saves_and_ends_the_process_with_a_word_on_how_to_go_on(tmp_path):
    process = script(tmp_path / "run", seconds=0.05)
    wait_for(process, "Trained(step=5")
    process.terminate()
    process.communicate(timeout=60)
    errors = errors_of(tmp_path / "run").read_text()
    assert process.returncode == 128 + signal.SIGTERM
    assert "The same command continues from there" in errors
    newest = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    assert f"last saved step is {newest.step}" in " ".join(errors.split())
    assert newest.step >= 5


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(whole, tmp_path):
    process = script(until(whole, 20, tmp_path / "run"), devices=4)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, errors_of(tmp_path / "run").read_text()
    assert "Resumed(step=20)" in said
    found = Potential.from_folder(tmp_path / "run" / "last").params["network"]
    for x, y in zip(
        jax.tree.leaves(found), jax.tree.leaves(whole["fitted"].last.params["network"]), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(whole, tmp_path):
    folder, events = until(whole, 35, tmp_path / "run"), []
    (Checkpoints(folder / "checkpoints").path(35) / "run.json").write_text("{}")
    with pytest.warns(UserWarning, match="Going back to the checkpoint of step 30"):
        fitted = small_run.run(folder, SETTINGS, events.append)
    assert events[0] == Resumed(30)
    equal(fitted.last, whole["fitted"].last)


class Broken(Loader):
    """A loader whose batch 13 cannot be read."""

    def at(self, step):
        if step == 13:
            raise CorruptRecordError("train-0003.array_record, record 7: damaged")
        return super().at(step)


def test_what_was_learnt_before_the_data_failed_is_saved(whole, tmp_path):
    with pytest.raises(CorruptRecordError, match="record 7"):
        small_run.run(tmp_path, SETTINGS, kind=Broken)
    assert Checkpoints(tmp_path / "checkpoints").steps[-1] == 13
    equal(small_run.run(tmp_path, SETTINGS).last, whole["fitted"].last)


def test_a_checkpoint_that_cannot_be_written_does_not_stop_training(whole, tmp_path, monkeypatch):
    save = Checkpoints.save

    def sometimes(self, step, arrays, record):
        if step == 10:
            raise CheckpointError("the checkpoint of step 10 was not saved: No space left on device.")
        save(self, step, arrays, record)

    monkeypatch.setattr(Checkpoints, "save", sometimes)
    events = []
    with pytest.warns(UserWarning, match=r"No space left on device\. Training goes on"):
        fitted = small_run.run(tmp_path, SETTINGS, events.append)
    assert {e.step for e in of_kind(events, NotSaved)} == {10}
    assert Checkpoints(tmp_path / "checkpoints").steps[-1] == 40
    equal(fitted.last, whole["fitted"].last)


def test_training_stops_when_validation_no_longer_improves(tmp_path):
    wild = replace(SETTINGS, optimizer=OptimizerConfig(learning_rate=3.0), patience=2, monitor="loss")
    fitted = small_run.run(tmp_path, wild)
    assert fitted.step == fitted.best + 10  # two epochs
    assert "has not improved in 2 validations" in fitted.reason
    values = [h["loss"] for h in fitted.history]
    assert min(values) == values[-3]
    with pytest.raises(AssertionError):
        equal(fitted.last, fitted.potential)
    again = small_run.run(tmp_path, wild)  # the best one from its checkpoint
    equal(again.potential, fitted.potential)
    assert again.reason == fitted.reason


def test_a_loss_that_is_not_finite_names_the_step_and_the_crystals_and_keeps_the_last_good_state(tmp_path):
    data, mesh = small_run.split(20, 0), parallel.make_mesh(1)
    train = small_run.loader(mesh)
    bad = int(train.plan.batch(7)[0][0])
    examples = list(data.examples)
    examples[bad] = examples[bad]._replace(labels=replace(examples[bad].labels, energy=1e25))
    train = Loader(MemorySplit(examples, data.cutoffs), train.plan, train.reference_energies, np.float32)
    mse = replace(SETTINGS, loss=LossConfig(kind="mse", stress=0.0, magmoms=0.0))
    first = next(s + 1 for s in range(40) if bad in train.plan.batch(s)[0])
    with pytest.raises(DivergedError) as error:
        loop.fit(small_run.start(), train, None, mse, mesh, tmp_path)
    assert f"loss is inf at step {first}" in str(error.value)
    shown = str(error.value).split("crystals ")[1].split(" of the training set")[0]
    assert sorted(map(int, shown.split(", "))) == sorted(train.plan.batch(first - 1)[0])
    last = Checkpoints(tmp_path / "checkpoints").latest()
    assert last.step == 5 * ((first - 1) // 5)
    assert str(Checkpoints(tmp_path / "checkpoints").path(last.step)) in str(error.value)
    assert all(np.isfinite(x).all() for x in last.arrays.values())


def dead(losses: bool = True):
    """A step that changes nothing, since its gradient is zero."""

    def make(*_):
        def step(state, batch):
            told = {"loss": 0.5 * losses, "grad_norm": 0.0, "learning_rate": 1e-2, "crystals": 4, "atoms": 8}
            return state.replace(step=state.step + 1), told

        step.needs = lambda *_: Needs(0, 0, 0.0)
        return step

    return make


def test_a_gradient_that_stays_zero_ends_the_run_as_nan_does(tmp_path, monkeypatch):
    make, taken = loop.make_train_step, []

    def dies(*settings):
        real = make(*settings)

        def step(state, batch):
            taken.append(1)
            state, metrics = real(state, batch)
            return state, metrics | ({} if len(taken) <= 7 else {"grad_norm": 0.0})

        step.needs = real.needs
        return step

    monkeypatch.setattr(loop, "make_train_step", dies)
    with pytest.raises(DivergedError, match="gradient has been exactly zero since step 8,") as error:
        small_run.run(tmp_path, replace(SETTINGS, keep=100))
    assert f"The last checkpoint before is {Checkpoints(tmp_path / 'checkpoints').path(5)}" in str(
        error.value
    )
    assert len(taken) < 40


def test_a_run_that_ends_without_a_gradient_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "make_train_step", dead())
    with pytest.warns(UserWarning, match="gradient was exactly zero in the last 10 steps"):
        small_run.run(tmp_path, replace(SETTINGS, steps=10))


def test_where_the_loss_is_zero_too_nothing_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "make_train_step", dead(losses=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert small_run.run(tmp_path, SETTINGS).step == 40


@pytest.mark.slow
def test_a_run_that_is_done_goes_on_with_more_epochs_from_its_optimizer_state(whole, tmp_path):
    """The rate is constant: then the steps are those of a run that was to be longer from the beginning."""
    constant = replace(SETTINGS, optimizer=replace(SETTINGS.optimizer, schedule="constant"))
    long = small_run.run(tmp_path / "long", constant, epochs=4)
    small_run.run(tmp_path / "short", constant, epochs=2)
    events = []
    more = small_run.run(tmp_path / "short", constant, events.append, epochs=4)
    assert events[0] == Resumed(10)
    equal(more.last, long.last)
    assert more.history == long.history
    assert more.reason == "all 20 steps are done"


@pytest.mark.slow
def test_the_rate_of_a_longer_run_is_that_of_the_longer_schedule(tmp_path):
    small_run.run(tmp_path, SETTINGS, epochs=2)
    events = []
    small_run.run(tmp_path, SETTINGS, events.append, epochs=4)
    first = of_kind(events, Trained)[0]
    schedule = learning_rate(SETTINGS.optimizer, 20)
    assert first.step == 11
    assert first.metrics["learning_rate"] == pytest.approx(float(schedule(10)))
    assert float(schedule(10)) > 1e-3 > float(learning_rate(SETTINGS.optimizer, 10)(10))


def test_a_run_that_is_not_done_or_was_longer_does_not_change_its_length(whole, tmp_path):
    for folder, epochs in ((until(whole, 15, tmp_path / "run"), 9), (whole["folder"], 4)):
        with pytest.raises(OtherRunError, match=f"steps: begun with 40, found {5 * epochs}"):
            small_run.run(folder, SETTINGS, epochs=epochs)


def test_another_setting_or_data_set_is_refused_with_what_differs(whole):
    other = replace(SETTINGS, optimizer=replace(SETTINGS.optimizer, learning_rate=0.02), patience=3)
    with pytest.raises(OtherRunError) as error:
        small_run.run(whole["folder"], other, seed=3, count=17)
    for part in (
        "optimizer.learning_rate: begun with 0.01, found 0.02",
        "patience: begun with None, found 3",
        "seed: begun with 0, found 3",
        "training set: begun with '20 crystals",
        "found '17 crystals",
    ):
        assert part in str(error.value)
    assert "keep" not in str(error.value)  # how often to save may change


@pytest.mark.parametrize("change", ["value", "kind"])
def test_a_run_does_not_go_on_with_other_labels_of_the_same_crystals(whole, monkeypatch, change):
    """The same sizes and settings: what differs is one energy, or that one crystal has no forces."""
    examples = list(small_run.split(20, 0).examples)
    labels = examples[3].labels
    other = replace(labels, energy=labels.energy + 1e-3) if change == "value" else labels.only(("energy",))
    examples[3] = examples[3]._replace(labels=other)
    changed, validation = MemorySplit(examples, small_run.split(20, 0).cutoffs), small_run.split(7, 1)
    monkeypatch.setattr(small_run, "split", lambda count, seed: changed if count == 20 else validation)
    with pytest.raises(OtherRunError) as error:
        small_run.run(whole["folder"], SETTINGS)
    said = str(error.value)
    assert "training set: begun with '20 crystals with 40 atoms; 20 energy, 20 forces (" in said
    assert f"found '20 crystals with 40 atoms; 20 energy, {20 if change == 'value' else 19} forces (" in said
    assert "validation" not in said


def test_settings_that_do_not_fit_the_data_are_refused(tmp_path):
    mesh = parallel.make_mesh(1)
    train, data, potential = small_run.loader(mesh), small_run.split(7, 1), small_run.start()
    with pytest.raises(ValueError, match="plan has 40 steps"):
        loop.fit(potential, train, data, replace(SETTINGS, steps=41), mesh, tmp_path)
    with pytest.raises(ValueError, match="patience=2 without a validation set"):
        loop.fit(potential, train, None, replace(SETTINGS, patience=2), mesh, tmp_path)
    with pytest.raises(ValueError, match="keep: found 0"):
        loop.fit(potential, train, data, replace(SETTINGS, keep=0), mesh, tmp_path)
    with pytest.raises(
        ValueError, match=r"found monitor='stress_mae', but validation gives only loss, energy_mae"
    ):
        loop.fit(potential, train, data, replace(SETTINGS, monitor="stress_mae"), mesh, tmp_path)
    shifted = replace(potential, params=potential.params | {"reference_energies": np.zeros(21)})
    with pytest.raises(ValueError, match="reference energies"):
        loop.fit(shifted, train, data, SETTINGS, mesh, tmp_path / "new")
    short = MemorySplit(data.examples, Cutoffs(3.0, 2.0))
    with pytest.raises(DatasetError, match="Convert the data again"):
        loop.fit(potential, train, short, SETTINGS, mesh, tmp_path / "new")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 8))
def test_validation_takes_every_crystal_once_in_groups_that_fit(atoms, each, shards):
    sizes = np.array(atoms)[:, None] * [1, 2, 3, 4]
    groups = loop._groups(sizes, each, shards)
    assert sorted(k for g in groups for k in g) == list(range(len(atoms)))
    assert len(groups) % shards == 0
    assert max(map(len, groups)) <= each
    shape = loop._shape(sizes, groups)
    for g in groups:
        n, short, long, angles = sizes[g].sum(axis=0) if g else np.zeros(4, int)
        assert shape.fits(loop.batching.BatchShape(n + 1, short + 1, long, angles, crystals=len(g)))
