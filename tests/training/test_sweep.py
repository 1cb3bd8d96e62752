"""A sweep does each run once, whatever happens to it, and says what is not done."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import quick_network
import quick_sweep
import submitit  # its import closes log handlers, those that pytest makes for a test too
from conftest import write_springs
from workers import cores

from jaxmlip.cli import main
from jaxmlip.system.jobs import Attempt, Job, Slurm, Task
from jaxmlip.system.locks import InUseError, in_use, locked
from jaxmlip.training.config import ConfigError, from_mapping, to_yaml
from jaxmlip.training.records import RunFolderError
from jaxmlip.training.run import run_training
from jaxmlip.training.sweeps import backends
from jaxmlip.training.sweeps.folders import digest, steps_done
from jaxmlip.training.sweeps.sweep import Run, collect, run_all, unfinished, write_table
from jaxmlip.training.sweeps.sweep_file import EXAMPLE, read_sweep

pytestmark = pytest.mark.usefixtures("quick")
KILLS = int(os.environ.get("JAXMLIP_KILLS", "2"))  # how often a sweep is killed
BASE = """
base:
  model:
    architecture: m3gnet
    hyperparameters: {features: 4, bond_cutoff: 3.0, angle_cutoff: 2.6}
  data: {train: [springs.extxyz], fractions: [0.75, 0.25, 0], split_by: crystal}
  loss: {stress: 0, magmoms: 0}
  steps: 5
  batch_size: 4
  tensorboard: false
  checkpoint_every: 1
  report_every: 1
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with crystals, that commands are started in."""
    write_springs(tmp_path, 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
        monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    return tmp_path


def written(here: Path, text: str) -> Path:
    (here / "sweep.yaml").write_text(BASE + text)
    return here / "sweep.yaml"


def runs_of(here: Path, text: str) -> list[Run]:
    return read_sweep(written(here, text))


def counting(here: Path, out: str, processes: int) -> subprocess.Popen:
    """A sweep without training, as a process of its own."""
    return subprocess.Popen(
        [*quick_sweep.WORKER, "sweep", "sweep.yaml", out, str(processes)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def counted(runs: list[Run], out: str) -> None:
    """Does the runs in this process."""
    for run in runs:
        quick_sweep.count(run.folder(out), run.config)


def starts(run: Run, folder: Path) -> int:
    return len(json.loads((run.folder(folder) / "versions.json").read_text())["starts"])


def changed(**changes):
    base = {"model": {"architecture": "m3gnet"}, "data": {"train": ["springs.extxyz"]}}
    return digest(from_mapping(base, changes))


def test_ids_change_with_what_is_computed_and_with_nothing_else(here):
    same = changed()
    assert Run("a b/c", from_mapping({}, {"seed": 3})).id == f"a-b-c-{digest(from_mapping({'seed': 3}))}"
    assert changed(seed=0, devices=4, report_every=1, tensorboard=False, checkpoint_every=7) == same
    shutil.copy("springs.extxyz", "elsewhere.extxyz")
    assert changed(**{"data.train": ["elsewhere.extxyz"]}) == same
    different = [
        {"seed": 1},
        {"final": "last"},
        {"optimizer.learning_rate": 2e-3},
        {"model.hyperparameters": {"features": 8}},
        {"data.train": ["springs.extxyz", "elsewhere.extxyz"]},
        {"data.validation": ["springs.extxyz"]},
    ]
    found = [changed(**change) for change in different]
    with open("springs.extxyz", "a") as file:
        file.write(Path("elsewhere.extxyz").read_text())
    found.append(changed())
    assert len({same, *found}) == 1 + len(found)


def test_ids_are_the_same_in_every_version(here):
    Path("crystals.txt").write_text("these are crystals\n")
    config = from_mapping({"model": {"start": "chgnet-0.3.0"}, "data": {"train": "crystals.txt"}, "seed": 5})
    assert digest(config) == "95049599132a"


def test_a_model_folder_counts_by_its_contents(here):
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        Path(name).mkdir()
        Path(name, "model.safetensors").write_text(text)
    a, b, c = (digest(from_mapping({"model": {"start": name}})) for name in "abc")
    assert a == b != c


def test_axes_make_every_combination_and_runs_are_changes(here):
    runs = runs_of(here, "vary: {seed: [0, 1], optimizer.learning_rate: [1e-2, 1e-3]}")
    assert [r.name for r in runs] == [
        f"seed={s},learning_rate={rate}" for s in (0, 1) for rate in ("1e-2", "1e-3")
    ]
    assert [(r.config.seed, r.config.optimizer.learning_rate) for r in runs[1:3]] == [(0, 1e-3), (1, 1e-2)]
    runs = runs_of(here, "vary: {seed: [0, 1]}\nruns: [{name: long, steps: 9}, {batch_size: 2}]")
    assert [r.name for r in runs] == [
        "long,seed=0",
        "long,seed=1",
        "batch_size=2,seed=0",
        "batch_size=2,seed=1",
    ]
    assert [(r.config.steps, r.config.batch_size) for r in runs] == [(9, 4)] * 2 + [(5, 2)] * 2
    (here / "crystals.extxyz").touch()
    (here / "example.yaml").write_text(EXAMPLE)
    assert len(read_sweep("example.yaml")) == 6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vary: {seed: 3}", "vary.seed: found 3, needed a list of values"),
        ("vary: {sed: [1]}", "run sed=1: sed is no key; did you mean seed"),
        ("vary: {seed: [1, one]}", "run seed=one: seed: found 'one'"),
        ("vary: {seed: [1, 1]}", "found the name seed=1 for two runs"),
        (
            "vary: {optimizer.learning_rate: [1e-2, 0.01]}",
            "runs learning_rate=1e-2 and learning_rate=0.01 comp",
        ),
        ("vary: {batch_size: [0]}", "run batch_size=0: batch_size: found 0, needed 1 or more"),
        ("vary: {optimizer.clip: [1, -1]}", r"run clip=-1: optimizer: found clip=-1\.0, needed a positive"),
        ("vary: {optimizer.warmup_steps: [0, 5]}", "run warmup_steps=5: optimizer: found warmup_steps=5 in"),
        ("vary: {data.train: [nowhere.xyz]}", "nowhere.xyz does not exist"),
        ("vary: {seed: []}", r"vary.seed: found \[\]"),
        ("runs: {seed: 3}", "runs: needed a list of changes"),
        ("runs: [3]", r"runs\[0\]: found 3"),
        ("runs: [{name: 3}]", r"runs\[0\].name: found 3, needed text"),
        ("vary: {seed: [0]}\nruns: [{seed: 1}]", "found seed in vary and in runs"),
        ("seeds: [1]", "seeds is no key of a sweep"),
        ("vary: {seed: [0], seed: [1]}", "seed is there a second time"),
        ("vary: !!python/object/apply:os.system [ls]", "is not YAML"),
        (
            "vary: {" + ", ".join(f"k{n}: [{', '.join('0' * 10)}]" for n in range(9)) + "}",
            "1,000,000,000 runs",
        ),
    ],
)
def test_a_mistake_is_told_with_the_run_that_has_it(here, text, says):
    with pytest.raises(ConfigError, match=says):
        runs_of(here, text)


def test_a_base_may_be_a_file_of_its_own(here):
    Path("base.yaml").write_text("model: {architecture: mace}\ndata: {train: springs.extxyz}")
    Path("sweep.yaml").write_text("base: base.yaml\nvary: {seed: [1]}")
    assert read_sweep("sweep.yaml")[0].config.model.architecture == "mace"
    for text in ("base: other.yaml", "base: [1]", "vary: {seed: [1]}"):
        Path("sweep.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"other.yaml is not a file|base: needed"):
            read_sweep("sweep.yaml")


def test_one_process_at_a_time_is_in_a_folder_and_a_killed_one_lets_go(here, capsys):
    script = "import time, jaxmlip.system.locks as l\nwith l.locked('run'): print(1, flush=1); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert f"process {other.pid} on" in in_use("run")
        with pytest.raises(InUseError, match=f"run is in use by process {other.pid} on"), locked("run"):
            pass
        Path("run.yaml").write_text("\n".join(line[2:] for line in BASE.splitlines()[2:]))
        with pytest.raises(SystemExit):
            main(["train", "run.yaml"])
        assert "is in use by process" in capsys.readouterr().err
        other.kill()
    assert in_use("run") is None
    with locked("run"), pytest.raises(InUseError), locked("run"):
        pass


@pytest.mark.slow
def test_a_sweep_that_is_killed_at_random_moments_ends_with_the_same_table(here, monkeypatch):
    monkeypatch.setattr(backends, "WORKER", quick_sweep.WORKER)
    runs = runs_of(here, "vary: {seed: [0, 1, 2]}")
    with monkeypatch.context() as patch:
        patch.setenv("NPROC", str(max(1, cores() // 2)))  # as each of two processes has
        counted(runs, "whole")
    rng = random.Random(1)
    for k in range(KILLS):
        sweep = counting(here, "killed", 2)
        time.sleep(rng.uniform(1.5, 4.0))
        os.kill(sweep.pid, (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[k % 3])
        sweep.communicate()
    assert run_all(runs, "killed", processes=2) == {}
    for out in ("whole", "killed"):
        write_table(runs, out)
    for name in ("sweep.csv", "sweep.json"):
        one, other = (Path(out, name).read_text() for out in ("whole", "killed"))
        assert one.replace("whole/", "killed/") == other
    assert len(Path("whole/sweep.csv").read_text().splitlines()) == 4
    assert unfinished(runs, "killed") == {}


@pytest.mark.slow
def test_training_that_is_killed_in_a_sweep_goes_on_to_the_same_table(here, monkeypatch):
    monkeypatch.setattr(backends, "WORKER", quick_network.WORKER)
    runs = runs_of(here, "runs: [{name: springs, data.fractions: [1, 0, 0]}]")
    run_training(runs[0].config, runs[0].folder("whole"))
    command = ["sweep", "sweep.yaml", "--out", "killed"]
    told = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    sweep = subprocess.Popen([*quick_network.WORKER, *command], **told)
    folder, until = runs[0].folder("killed"), time.monotonic() + 120
    while not steps_done(folder):
        assert time.monotonic() < until
        time.sleep(0.01)
    sweep.kill()
    sweep.wait()
    while in_use(folder):  # it saves, since the sweep is gone
        time.sleep(0.05)
    assert "saved is step" in unfinished(runs, "killed")["springs"]
    main(command)
    assert starts(runs[0], "killed") == 2
    one, other = (collect(runs, out)["springs"] for out in ("whole", "killed"))
    assert one["after"] == other["after"] != one["before"]


@pytest.mark.slow
def test_two_sweeps_on_one_folder_do_every_run_once(here):
    runs = runs_of(here, "vary: {seed: [0, 1]}")
    both = [counting(here, "out", 1) for _ in range(2)]
    said = [sweep.communicate(timeout=60)[1] for sweep in both]
    assert [sweep.returncode for sweep in both] == [0, 0], said
    assert [starts(run, Path("out")) for run in runs] == [1, 1]
    assert list(collect(runs, "out")) == ["seed=0", "seed=1"]


def test_a_run_that_fails_does_not_stop_the_others(here, monkeypatch, capsys):
    monkeypatch.setattr(backends, "WORKER", quick_sweep.WORKER)
    seeds = f"vary: {{seed: [{quick_sweep.RAISES}, {quick_sweep.CRASHES}, 1]}}"
    runs, said = runs_of(here, seeds), []
    failed = run_all(runs, "out", processes=2, say=said.append)
    assert sorted(failed) == ["seed=13", "seed=14"]
    assert "ValueError: 13 brings bad luck" in failed["seed=13"]
    assert "signal SIGKILL" in failed["seed=14"]
    assert "about to crash" in failed["seed=14"]
    assert [line[:4] for line in said] == ["1/3 ", "2/3 ", "3/3 "]
    main(["sweep", "sweep.yaml", "--out", "out", "--collect"])
    table = capsys.readouterr().out
    assert "1 of 3 runs are finished" in table
    assert "not in the table: seed=13: did not come to a checkpoint; its log ends: ValueError" in table
    assert [row["seed"] for row in write_table(runs, "out")] == [1]
    assert list(json.loads(Path("out/sweep.json").read_text())["unfinished"]) == ["seed=13", "seed=14"]
    assert {r["compared_on"] for r in collect(runs, "out").values()} == {str(max(1, cores() // 2))}


def test_what_was_not_begun_and_results_of_another_configuration_are_not_collected(here):
    runs = runs_of(here, "vary: {seed: [0, 1]}")
    assert unfinished(runs, "out") == {"seed=0": "not begun", "seed=1": "not begun"}
    folder = runs[0].folder("out")
    quick_sweep.count(folder, runs[1].config)
    with pytest.raises(RunFolderError, match="seed: begun with 1, found 0"):
        collect(runs, "out")
    (folder / "results.json").write_text("{")
    with pytest.raises(RunFolderError, match="is damaged"):
        collect(runs, "out")


def collected(capsys) -> tuple[str, str]:
    """What `jaxmlip sweep --collect` says on standard output, in a line, and on standard error."""
    capsys.readouterr()
    main(["sweep", "sweep.yaml", "--out", "out", "--collect"])
    said = capsys.readouterr()
    return " ".join(said.out.split()), " ".join(said.err.split())


@pytest.fixture
def counted_twice(here, monkeypatch, capsys):
    """A sweep of two runs that are finished, and what its table says."""
    monkeypatch.setattr(backends, "WORKER", quick_sweep.WORKER)
    counted(runs_of(here, "vary: {seed: [1, 2]}"), "out")
    assert "2 of 2 runs are finished" in collected(capsys)[0]
    return Path("out/sweep.csv").read_text()


@pytest.mark.slow
def test_runs_whose_configuration_is_the_same_are_the_same_under_any_name(here, counted_twice, capsys):
    """A value is added to `vary`, of which the one that the runs had is the default."""
    runs = runs_of(here, "vary: {seed: [1, 2], optimizer.clip: [null, 10.0]}")
    out, err = collected(capsys)
    assert "2 of 4 runs are finished" in out
    assert "of other configurations" not in out + err
    assert [row["name"] for row in write_table(runs, "out")] == ["seed=1,clip=none", "seed=2,clip=none"]
    assert not Path("out/sweep-1.csv").exists()
    assert run_all(runs, "out", processes=2) == {}
    assert [starts(run, Path("out")) for run in runs] == [1, 1, 1, 1]
    assert len(write_table(runs, "out")) == 4
    renamed = runs_of(here, "runs: [{name: one, seed: 1}]")
    assert renamed[0].folder("out") == runs[0].folder("out") != Path("out", renamed[0].id)
    assert collect(renamed, "out")["one"]["id"] == runs[0].folder("out").name


def test_an_edited_file_keeps_the_table_of_finished_runs_and_counts_them(here, counted_twice, capsys):
    runs = runs_of(here, "vary: {seed: [1, 2], steps: [6]}")
    out, err = collected(capsys)
    assert "0 of 2 runs are finished" in out
    assert "2 finished run(s) of other configurations are in out: seed=1-" in out
    assert "has 2 finished run(s) that the new one lacks, such as seed=1. It is kept as sweep-1.csv" in err
    assert Path("out/sweep-1.csv").read_text() == counted_twice
    assert list(json.loads(Path("out/sweep-1.json").read_text())["finished"]) == ["seed=1", "seed=2"]
    assert len(json.loads(Path("out/sweep.json").read_text())["others"]) == 2
    assert "kept" not in collected(capsys)[1]  # nothing is in the table that would be lost
    counted(runs, "out")
    assert len(write_table(runs, "out")) == 2
    written(here, "vary: {seed: [1, 2]}")
    assert "It is kept as sweep-2.csv" in collected(capsys)[1]
    assert Path("out/sweep.csv").read_text() == counted_twice


def test_flags_of_a_sweep_without_meaning_are_refused(here, capsys):
    written(here, "vary: {seed: [1]}")
    for flags, named in (
        (["--processes", "0"], "found --processes 0, needed a number from 1 on"),
        (["--dry-run", "--collect"], "found --dry-run and --collect, needed one of them"),
    ):
        with pytest.raises(SystemExit):
            main(["sweep", "sweep.yaml", *flags])
        assert named in capsys.readouterr().err


def test_submitit_trains_each_run_in_tasks_that_know_each_other(here, monkeypatch):
    monkeypatch.setattr(backends, "WORKER", quick_sweep.WORKER)
    runs = runs_of(here, f"vary: {{seed: [0, {quick_sweep.RAISES}]}}")
    failed = run_all(runs, "out", slurm={"cluster": "local", "tasks_per_node": 2, "timeout_min": 5})
    assert list(failed) == ["seed=13"]
    assert "13 brings bad luck" in failed["seed=13"]
    assert collect(runs, "out")["seed=0"]["after"]["energy"]["rmse"] == 2  # processes


@pytest.mark.slow
def test_a_job_whose_time_is_up_is_queued_again_and_goes_on(here, monkeypatch):
    monkeypatch.setattr(backends, "WORKER", quick_sweep.WORKER)
    (run,) = runs_of(here, "runs: [{steps: 30}]")
    Path("out").mkdir()
    Path("out", f"{run.id}.yaml").write_text(to_yaml(run.config.absolute()))
    slurm = Slurm(here / "out", {"cluster": "local", "timeout_min": 5})
    (submitted,) = slurm.start([backends.task_of(Path("out", f"{run.id}.yaml"))])
    until = time.monotonic() + 120
    while not steps_done(run.folder("out")):
        assert time.monotonic() < until
        time.sleep(0.05)
    controller = submitted.job.job_id
    for task in Path(f"/proc/{controller}/task/{controller}/children").read_text().split():
        os.kill(int(task), signal.SIGUSR2)  # as SLURM does before the end
    while submitted.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert submitted.code == 0
    assert run.finished("out")
    assert starts(run, Path("out")) == 2


def test_a_job_that_is_about_to_end_stops_its_process_and_is_queued_again(tmp_path):
    words = "import sys; sys.stdin.read(); print('saved what it had'); sys.exit(3)"
    job = Job(Task((sys.executable, "-c", words), tmp_path / "log"))
    job.attempt = Attempt(job.task)
    queued = job.checkpoint()
    assert job.attempt.poll() == 3
    assert "exit code 3" in job.attempt.reason()
    assert "saved what it had" in job.attempt.reason()
    assert isinstance(queued, submitit.helpers.DelayedSubmission)
    assert queued.function.task == job.task
    assert queued.function.attempt is None


def test_parameters_that_submitit_does_not_know_are_told(here, capsys):
    written(here, "")
    with pytest.raises(SystemExit):
        main(["sweep", "sweep.yaml", "--slurm", "cluster=local", "nodez=2"])
    assert "--slurm: Parameter 'nodez' need to be prefixed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sweep", "sweep.yaml", "--processes", "2", "--slurm", "nodes=2"])
    assert "found --processes and --slurm" in capsys.readouterr().err


def test_a_dry_run_tells_what_each_run_costs_and_leaves_nothing_behind(here, capsys):
    written(here, "vary: {seed: [0, 1]}\nruns: [{steps: 5}, {steps: 10}]")
    before = {p for p in here.rglob("*") if "programs" not in str(p)}
    main(["sweep", "sweep.yaml", "--dry-run"])
    assert {p for p in here.rglob("*") if "programs" not in str(p)} == before
    out = capsys.readouterr().out
    cells = [line.split() for line in out.splitlines() if "seed=" in line]
    assert [c[0] for c in cells] == [f"steps={n},seed={s}" for n in (5, 10) for s in (0, 1)]
    assert [c[2:5] for c in cells] == [["6", "5", "0"]] * 2 + [["6", "10", "0"]] * 2
    gflop, tflop, ms, minutes = (np.array([float(c[k]) for c in cells]) for k in (5, 6, 7, 8))
    steps = np.array([5, 5, 10, 10])
    assert len(set(gflop)) == 1
    np.testing.assert_allclose(tflop, gflop * steps / 1e3, rtol=1e-3)
    np.testing.assert_allclose(minutes, ms * steps / 6e4, rtol=1e-2)
    assert "1 program(s)" in out
