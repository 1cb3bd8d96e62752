"""The commands of docs/many_devices.md do what the page says, as far as one CPU can tell."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
import quick_network
from conftest import write_springs
from documents import ROOT, Command, block, commands, understood
from processes import free_address

PAGE = "docs/many_devices.md"
CONFIG = """
model:
  architecture: m3gnet  # as which the quick network plays
  hyperparameters: {features: 4, bond_cutoff: 3.0, angle_cutoff: 2.6}
data: {train: [springs.extxyz], fractions: [1, 0, 0]}
loss: {stress: 0, magmoms: 0}
steps: 1
batch_size: 8
tensorboard: false
"""
# As srun does: two tasks with the variables by which a process knows the others.
SRUN = """#!/bin/bash
export SLURM_JOB_ID={job} SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $!
"""


def ours() -> list[Command]:
    """All `jaxmlip` commands of the page."""
    return [command for command in commands(ROOT / PAGE) if command.typed and command.words[0] == "jaxmlip"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with what the commands need, and programs of the names that they call."""
    write_springs(tmp_path, 8)
    (tmp_path / "train.yaml").write_text(CONFIG)
    job = (int(free_address().split(":")[1]) - 61440) % 4096  # from which JAX makes the port
    scripts = {
        "jaxmlip": f'#!/bin/bash\nexec {" ".join(quick_network.WORKER)} "$@"\n',
        "srun": SRUN.format(job=job),
    }
    for name, text in scripts.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        script = tmp_path / "bin" / name
        script.write_text(text)
        script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(script: str) -> None:
    done = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def begun(folder: Path) -> dict:
    return json.loads((folder / "versions.json").read_text())["starts"][-1]


def test_eight_simulated_devices_train(here):
    script = block(PAGE, "device_count=8").text
    flags = os.environ["XLA_FLAGS"].replace(" ", "\\ ")
    run(script.replace("XLA_FLAGS=", f"XLA_FLAGS={flags}\\ "))
    assert begun(here / "simulated")["devices"]["number"] == 8
    assert (here / "simulated" / "results.json").is_file()


@pytest.mark.slow
def test_the_slurm_file_trains_in_tasks_that_find_each_other(here, monkeypatch):
    script = block(PAGE, "srun jaxmlip train").text
    assert "#SBATCH --signal=TERM@300" in script
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    monkeypatch.setenv("XLA_FLAGS", flags)
    run(script)
    found = begun(here / "run")
    assert (found["processes"], found["devices"]["number"]) == (2, 2)
    assert (here / "run" / "results.json").is_file()


def test_every_command_of_the_page_says_what_its_text_says():
    asked = [understood(command.words)[1] for command in ours()]
    assert len(asked) >= 13
    together = [options["together"] for options in asked if "together" in options]
    assert sum(its.distributed for its in together) == 4
    hosts = [(its.processes, its.process) for its in together if its.coordinator]
    assert hosts == [(2, 0), (2, 1)] * 2
    slurm = [[v for each in o["slurm"] for v in each] for o in asked if o.get("slurm")]
    assert slurm[1][1:3] == ["nodes=2", "tasks_per_node=4"]


def test_submitit_knows_the_parameters_of_the_page(tmp_path):
    import submitit

    from jaxmlip.training.config import reader_options

    executor = submitit.AutoExecutor(tmp_path, cluster="debug")
    for command in ours():
        if "--slurm" in (words := command.words):
            executor.update_parameters(**reader_options(words[words.index("--slurm") + 1 :]))
