"""Processes that share the devices of a potential write one Hessian, each a part, and go on after a kill."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pairs
import pytest
import scipy.sparse
import shared_commands
from ase.io import write
from commands import here
from crystals import chain, triclinic
from processes import free_address, started

from jaxmlip import hessian
from jaxmlip.derivatives.sparse import colouring
from jaxmlip.derivatives.streaming import columns_done

ROOT = Path(__file__).parents[2]


def both(script: Path, *arguments: object) -> list[subprocess.Popen]:
    address = free_address()
    return [started(2, script, *arguments, address, 2, k) for k in range(2)]


def wait_for(condition, runs: list[subprocess.Popen]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert all(run.poll() is None for run in runs), [run.communicate()[1] for run in runs]
        assert time.monotonic() < end, "the processes got nowhere"
        time.sleep(0.01)


def end(run: subprocess.Popen) -> None:
    run.send_signal(signal.SIGKILL)
    run.communicate()


@pytest.mark.slow
def test_two_processes_write_one_file_and_go_on_with_what_a_killed_one_has_not_written(tmp_path):
    script, record = ROOT / "tests" / "shared_file.py", tmp_path / "h.npy.json"
    runs = both(script, tmp_path, 0.3)
    try:
        # The second process is killed in the middle, the first one a few blocks later.
        wait_for(lambda: (tmp_path / "h.npy.json.1").exists(), runs)
        end(runs[1])
        done = columns_done(tmp_path / "h.npy")
        wait_for(lambda: columns_done(tmp_path / "h.npy") > done, runs[:1])
    finally:
        for run in runs:
            end(run)
    assert not (tmp_path / "h.npy").exists()
    others = json.loads((tmp_path / "h.npy.json.1").read_text())
    written = set(range(json.loads(record.read_text())["done"]))
    written |= {k for first, last in others for k in range(first, last)}
    assert len(written) == columns_done(tmp_path / "h.npy") < 90

    found = []
    for run in both(script, tmp_path, 0.0):
        out, said = run.communicate(timeout=300)
        assert run.returncode == 0, said
        found.append(json.loads(out.splitlines()[-1]))
    dense = [k for each in found for part in each["h.npy"] for k in part]
    assert sorted(dense) == sorted(set(range(90)) - written)

    potential, atoms = pairs.potential(), chain()
    whole = hessian(potential, atoms)
    close = {"rtol": 0, "atol": 1e-12 * np.abs(whole).max()}
    np.testing.assert_allclose(np.load(tmp_path / "h.npy"), whole, **close)
    np.testing.assert_allclose(scipy.sparse.load_npz(tmp_path / "h.npz").toarray(), whole, **close)
    sums = colouring(potential, atoms).sums
    shares = [each["h.npz"][0] for each in found]
    assert sorted(shares[0] + shares[1]) == sums.tolist()
    assert abs(len(shares[0]) - len(shares[1])) <= 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h.npy", "h.npy.json", "h.npz", "h.npz.json"]


GLOO = {"[Gloo]", "Rank", "is", "connected", "to", "peer", "ranks.", "Expected", "number", "of", "ranks", ":"}


def is_of_gloo(line: str) -> bool:
    """Whether a line, or a part of one, is what XLA's library for several processes prints.

    Threads of it print at the same time, so that one line can be cut by another.
    """
    return all(word in GLOO or word.isdigit() for word in line.replace("[Gloo]", " [Gloo] ").split())


def test_pieces_of_lines_of_the_library_are_told_from_our_own():
    whole = "[Gloo] Rank 1 is connected to 3 peer ranks. Expected number of connected peer ranks is : 3"
    assert all(
        is_of_gloo(line) for line in (whole, whole[31:], "[Gloo] Rank [Gloo] Rank 01 is connected", "")
    )
    assert not any(is_of_gloo(line) for line in ("written to elastic.json", "1 wave vector", whole + " x"))


COMMANDS = {
    "h.npy": "hessian chain.vasp --out h.npy",
    "h.npz": "hessian chain.vasp --sparse --out h.npz",
    "phonons.json": "phonons cell.vasp --mesh 2 1 1 --points 8 --out .",
    "elastic.json": "elastic cell.vasp --out elastic.json",
}


@pytest.mark.slow
def test_each_command_of_two_processes_says_and_writes_what_one_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: pairs.potential())
    for folder in (alone := tmp_path / "alone", together := tmp_path / "together"):
        folder.mkdir()
        write(folder / "chain.vasp", chain(), direct=True)
        write(folder / "cell.vasp", triclinic(), direct=True)
    (tmp_path / "commands.json").write_text(json.dumps([words.split() for words in COMMANDS.values()]))
    script = ROOT / "tests" / "shared_commands.py"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(together)
    runs = both(script, tmp_path / "commands.json")
    expected = {name: here(alone, monkeypatch, capsys, *words.split()) for name, words in COMMANDS.items()}
    said = [run.communicate(timeout=300) for run in runs]
    assert all(run.returncode == 0 for run in runs), said
    first, second = (out.split(f"{shared_commands.END}\n") for out, _ in said)
    assert len(first) == len(second) == len(COMMANDS) + 1
    for k, (name, done) in enumerate(expected.items()):
        assert done.returncode == 0, done.stderr
        assert ours(first[k])[-1] == done.stdout.splitlines()[-1]
        assert ours(second[k]) == []
        numbers = read(alone / name)
        atol = 1e-9 * np.abs(numbers).max()
        np.testing.assert_allclose(read(together / name), numbers, rtol=0, atol=atol, err_msg=name)


def ours(out: str) -> list[str]:
    return [line for line in out.splitlines() if not is_of_gloo(line)]


def read(path: Path) -> np.ndarray:
    """The numbers of a result."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".npz":
        return scipy.sparse.load_npz(path).toarray()
    found = json.loads(path.read_text())
    if "C_GPa" in found:
        return np.array(found["C_GPa"])
    thz = np.array(found["bands"]["frequencies"])
    return thz * np.abs(thz)  # of which the zeros at Γ are as sharp as all others
