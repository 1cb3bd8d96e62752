"""`jaxmlip doctor` tells what is there and what is missing, and works where nothing else does."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import jax
import pytest
from commands import here

from jaxmlip import __main__, __version__
from jaxmlip.system import doctor

ROOT = Path(__file__).parents[2]


def told(tmp_path, monkeypatch, capsys) -> dict:
    done = here(tmp_path, monkeypatch, capsys, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_doctor_tells_versions_devices_precision_and_how_large_caches_are(tmp_path, monkeypatch, capsys):
    (tmp_path / "cache" / "models" / "mine").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "mine" / "manifest.json").write_text(" " * 300_000)
    monkeypatch.setenv("JAXMLIP_WEIGHTS", str(tmp_path / "nowhere"))
    monkeypatch.setattr(doctor, "requires", lambda package: ["jax>=0.9", "numpy>=2"])
    found = told(tmp_path, monkeypatch, capsys)
    assert {"package": "jax", "version": jax.__version__, "needed": ">=0.9"} in found["packages"]
    assert [row["device"] for row in found["devices"]] == [str(d) for d in jax.devices()]
    assert found["precision"] == [{"precision": "float64", "found": "works"}]
    sizes = {row["what"]: row["MB"] for row in found["folders"]}
    assert sizes["cache (JAXMLIP_CACHE)"] == sizes["converted models"] == sizes["mine"] == 0.3
    (weights,) = [row for row in found["folders"] if "JAXMLIP_WEIGHTS" in row["what"]]
    assert "no folder; make it" in weights["problem"]
    shown = here(tmp_path, monkeypatch, capsys, "doctor").stdout
    assert "wrong? folders: JAXMLIP_WEIGHTS" in shown
    assert "nothing is wrong" not in shown


def test_what_is_missing_or_too_old_comes_with_the_line_that_gets_it(monkeypatch):
    def version(package):
        if package == "phono3py":
            raise PackageNotFoundError(package)
        return {"jax": "0.10.1", "submitit": "1.0"}.get(package, "5.0")

    lines = ["jax>=0.9,!=0.10.1", "phonopy>=2; extra == 'phonopy'", "phono3py; extra == 'phono3py'"]
    monkeypatch.setattr(doctor, "requires", lambda package: [*lines, "submitit>=1.5; extra == 'slurm'"])
    monkeypatch.setattr(doctor, "version", version)
    found = doctor.examine()
    (wrong,) = [row["problem"] for row in found["packages"] if "problem" in row]
    assert wrong == "found jax 0.10.1, needed !=0.10.1,>=0.9: pip install 'jax!=0.10.1,>=0.9'"
    how = {row["extra"]: (row["found"], row["get it by"]) for row in found["extras"]}
    assert how["phonopy"] == ("phonopy 5.0", "")
    assert how["phono3py"] == ("no phono3py", "pip install 'jaxmlip[phono3py]'")
    assert how["slurm"] == ("submitit 1.0", "pip install 'jaxmlip[slurm]'")


def test_doctor_knows_every_extra_that_users_may_want():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"test", "docs", "all"}


def test_a_check_that_breaks_is_a_line_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("platform.platform", lambda: 1 / 0)
    found = told(tmp_path, monkeypatch, capsys)
    assert [row["machine"] for row in found["machine"][:-1]] == ["Python", "jaxmlip"]
    assert found["machine"][-1]["problem"] == "could not be found out: ZeroDivisionError: division by zero"
    assert found["folders"][0]["what"] == "cache (JAXMLIP_CACHE)"


def test_doctor_works_where_jax_does_not_and_other_commands_name_it(tmp_path):
    (tmp_path / "jax.py").write_text("raise ImportError('jaxlib is of another version')")

    def run(*arguments):
        first = f"import sys; sys.path[:0] = {[str(tmp_path), str(ROOT)]}"
        code = f"{first}; from jaxmlip.__main__ import main; main()"
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrong? devices: could not be found out: ImportError: jaxlib is of another version" in done.stdout
    done = run("models")
    assert done.returncode == 1
    assert done.stderr.startswith("error: jaxmlip cannot start: ImportError('jaxlib is of another")
    assert "`jaxmlip doctor`" in done.stderr


def test_version_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jaxmlip", "--version"])
    __main__.main()
    assert capsys.readouterr().out == f"jaxmlip {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_line_for_completion_by_the_tab_key_makes_a_script(shell, tmp_path, monkeypatch, capsys):
    done = here(tmp_path, monkeypatch, capsys, "--tyro-write-completion", shell, "script")
    assert not done.returncode
    assert "phonons" in (tmp_path / "script").read_text()
