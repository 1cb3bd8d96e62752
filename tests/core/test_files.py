"""Files and folders are written as a whole or not at all; where that cannot be is told before the work."""

import ast
import contextlib
import functools
import gzip
import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest
from ase.build import bulk
from ase.io import write
from commands import RUN, environment
from conftest import QUICK, small_potential

from jaxmlip import Potential
from jaxmlip.cli import main
from jaxmlip.system.files import (
    PlaceError,
    check_file,
    check_folder,
    is_remain,
    write_whole,
    writing,
    writing_folder,
)

ROOT = Path(__file__).parents[2]
MOVED = {"jaxmlip/zoo/download.py: unpacked / file.write_bytes"}  # into a temporary folder


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


broken_off = functools.partial(contextlib.suppress, InterruptedError)


def test_a_file_keeps_its_old_contents_and_its_mode_until_the_new_ones_are_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    path.chmod(0o640)
    with broken_off(), writing(path) as draft:
        draft.write_text("ne")
        raise InterruptedError
    assert contents(tmp_path) == {"a.txt": "old"}
    with writing(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert contents(tmp_path) == {"a.txt": "new"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_comes_as_a_whole_and_one_that_is_there_keeps_what_has_other_names(tmp_path):
    folder = tmp_path / "deep" / "m"
    with broken_off(), writing_folder(folder) as draft:
        (draft / "a").write_text("1")
        raise InterruptedError
    assert list(tmp_path.iterdir()) == []
    for text in ("1", "2"):
        with writing_folder(folder, last="a") as draft:
            (draft / "a").write_text(text)
            (draft / "below").mkdir()
            (draft / "below" / "b").write_text(text)
        (folder / "notes").write_text("mine")
    assert contents(tmp_path / "deep") == {"m/a": "2", "m/below/b": "2", "m/notes": "mine"}
    assert {p.name for p in folder.iterdir()} == {"a", "below", "notes"}


def test_a_link_stays_a_link(tmp_path):
    write_whole(tmp_path / "file", "old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_what_a_kill_left_goes_away_and_what_a_living_process_writes_stays(tmp_path):
    path = tmp_path / "a.[1]"
    with writing(path) as draft:
        draft.write_text("by one")
        write_whole(path, "by another")  # sees the draft of the first, which is alive
        assert draft.exists()
    assert path.read_text() == "by one"
    script = (
        "import os, signal, sys\nfrom jaxmlip.system.files import writing\n"
        "with writing(sys.argv[1]) as draft:\n"
        "    draft.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False, env=environment(tmp_path))
    (left,) = (p for p in tmp_path.iterdir() if p != path)
    assert is_remain(left)
    assert path.read_text() == "by one"
    write_whole(path, "again")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_many_may_write_one_file_at_a_time(tmp_path):
    path = tmp_path / "a"

    def many(text: str) -> bool:
        for _ in range(50):
            write_whole(path, text)
            assert path.read_text() in texts
        return True

    texts = [letter * 5000 for letter in "abcd"]
    with ThreadPoolExecutor(len(texts)) as pool:
        assert all(pool.map(many, texts))
    assert os.listdir(tmp_path) == ["a"]


def places(here: Path) -> dict[str, Path]:
    (here / "file").write_text("mine")
    (here / "folder").mkdir()
    os.mkfifo(here / "pipe")
    return {name: here / name for name in ("file", "folder", "pipe")}


def test_a_folder_a_pipe_and_a_missing_folder_are_no_place_for_a_file(tmp_path):
    its = places(tmp_path)
    for path, words in (
        (its["folder"], "is a folder, needed the name of a file"),
        (its["pipe"], "a device or a pipe"),
        (Path("/dev/null"), "a device or a pipe"),
        (tmp_path / "no" / "a", "does not exist"),
        (its["file"] / "a", "does not exist"),
    ):
        with pytest.raises(PlaceError, match=words):
            check_file(path)
        with pytest.raises(PlaceError, match=words):
            write_whole(path, "")
    for path in (its["file"], its["pipe"], its["file"] / "deeper" / "still"):
        with pytest.raises(PlaceError, match="is no folder, needed one"):
            check_folder(path)
    assert {p.name for p in tmp_path.iterdir()} == set(its)
    assert its["file"].read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_place_is_told_with_what_to_do(tmp_path):
    tmp_path.chmod(0o500)
    try:
        for check in (check_file, check_folder):
            with pytest.raises(PlaceError, match=r"cannot be written \(Permission denied\)"):
                check(tmp_path / "a")
    finally:
        tmp_path.chmod(0o700)


def limited(size: int, code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs code in a process that can make no file larger than `size` bytes, as on a full disk."""
    begin = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", begin + code, *arguments],
        env=environment(Path(arguments[-1])),
        capture_output=True,
        text=True,
        check=False,
    )


def test_saving_a_model_on_a_full_disk_says_so_and_leaves_the_old_one(tmp_path):
    old = small_potential(QUICK, "float32")
    old.save(tmp_path / "model")
    before = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    code = (
        "import quick_network\nfrom jaxmlip import Potential\nfrom dataclasses import replace\n"
        "p = Potential.from_folder(sys.argv[1] + '/model')\np = replace(p, name='other')\n"
        "for name in ('model', 'new/one'):\n"
        "    try:\n        p.save(sys.argv[1] + '/' + name)\n"
        "    except OSError as error:\n        print(error)\n"
    )
    done = limited(1000, code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line, name in zip(lines, ("model", "new/one"), strict=True):
        assert name in line
        assert "cannot be written (File too large)" in line
    assert {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["model"]
    assert Potential.from_folder(tmp_path / "model").name == old.name


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a small model and a structure."""
    here = tmp_path_factory.mktemp("work")
    small_potential(QUICK, "float32").save(here / "model")
    salt = bulk("NaCl", "rocksalt", 5.64)
    salt.rattle(0.05, seed=0)
    write(here / "salt.cif", salt)
    frames = [salt.copy() for _ in range(6)]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=k)
    write(here / "many.extxyz", frames)
    return here


@pytest.fixture
def nothing_loads(monkeypatch):
    """A potential that is loaded, or a checkpoint that is converted, is too late for a mistake."""

    def late(*_, **__):
        raise AssertionError("the work began")

    # Imported before any is replaced: each takes `load` from where it is made.
    modules = [import_module(f"jaxmlip.{name}") for name in ("zoo.load", "training.evaluate", "training.run")]
    for module in modules:
        monkeypatch.setattr(module, "load", late)
    monkeypatch.setattr("jaxmlip.zoo.load.load_each", late)
    monkeypatch.setattr("weights_convert.conversion.convert_file", late)
    monkeypatch.setattr("jaxmlip.training.run.export", late)


def refused(capsys, *arguments: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as for users
        with pytest.raises(SystemExit) as end:
            main(arguments)
    said = capsys.readouterr()
    assert end.value.code == 1, said
    assert said.err.count("\n") == 1, said.err
    return said.err


@pytest.mark.parametrize(
    "command",
    [
        ("convert", "salt.cif", "OUT"),
        ("export", "model", "OUT"),
        ("hessian", "salt.cif", "--out", "OUT.npz"),
        ("hessian", "salt.cif", "--out", "OUT.npy"),
        ("phonons", "salt.cif", "--out", "OUT"),
        ("conductivity", "salt.cif", "--out", "OUT"),
        ("elastic", "salt.cif", "--out", "OUT"),
        ("relax", "salt.cif", "--out", "OUT.extxyz"),
        ("softening", "--out", "OUT"),
        ("compare", "salt.cif", "--out", "OUT"),
        ("softening-scale", "many.extxyz", "--out", "OUT"),
        ("evaluate", "--data", "many.extxyz", "--out", "OUT"),
        ("finetune", "--data", "many.extxyz", "--out", "OUT"),
        ("data", "inspect", "many.extxyz", "--figure", "OUT.png"),
        ("data", "convert", "many.extxyz", "--model", "model", "--out", "OUT"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
@pytest.mark.parametrize("there", ["a file", "a folder", "a pipe", "below a file"])
def test_an_out_that_cannot_be_is_told_before_the_work(
    work, tmp_path, monkeypatch, capsys, nothing_loads, command, there
):
    monkeypatch.chdir(work)
    name = next(Path(word).name for word in command if word.startswith("OUT"))
    is_file, place = name != "OUT" or command[0] == "elastic", tmp_path / name
    if (there, is_file) in (("a file", True), ("a folder", False)):
        pytest.skip("that is as it should be")
    if there == "a folder":
        place.mkdir()
    elif there == "a pipe":
        os.mkfifo(place)
    else:
        (tmp_path / "file").write_text("mine")
        place = tmp_path / "file" if there == "a file" else tmp_path / "file" / name
    before = sorted(tmp_path.rglob("*"))
    said = refused(capsys, *(str(place) if word.startswith("OUT") else word for word in command))
    assert str(place) in said or str(tmp_path / "file") in said
    assert any(words in said for words in ("needed", "make it first", "give a new one"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", ["h.txt", "folder", "h"])
def test_hessian_writes_the_name_that_it_says_or_refuses_it(
    work, tmp_path, monkeypatch, capsys, nothing_loads, out
):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, "hessian", str(work / "salt.cif"), "--model", str(work / "model"), "--out", out)
    assert ".npz" in said
    assert ".npy" in said
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_pipe_is_not_read_as_a_checkpoint_or_a_structure(work, tmp_path, monkeypatch, capsys):
    (tmp_path / "below").mkdir()
    for pipe in (tmp_path / "below" / "x.extxyz", tmp_path / "x"):
        os.mkfifo(pipe)
    pipe, out = str(pipe), str(tmp_path / "out")
    monkeypatch.chdir(work)
    for words, command in (
        ("a device or a pipe", ("convert", pipe, out)),
        ("is not a file", ("predict", pipe, "--model", "model")),
        ("no manifest.json", ("predict", "salt.cif", "--model", pipe)),
        ("is not a file", ("hessian", pipe, "--model", "model")),
        ("a device or a pipe", ("data", "inspect", pipe)),
        ("no file of a known format", ("data", "inspect", str(tmp_path / "below"))),
        ("is not a file", ("softening-scale", pipe, "--model", "model")),
        ("needed the folder of a phonopy run", ("compare", pipe, "--model", "model")),
        ("needed the folder of a run", ("export", pipe, out)),
    ):
        assert words in refused(capsys, *command)
    assert {p.name for p in tmp_path.iterdir()} == {"below", "x"}


@pytest.mark.parametrize(
    "words",
    [
        "predict salt.cif --limit 0",
        "hessian salt.cif --memory-limit nan",
        "hessian salt.cif --memory-limit -1",
        "hessian salt.cif --memory-limit 0",
        "hessian salt.cif --block-size 0",
        "hessian salt.cif --atoms -1",
        "hessian salt.cif --atoms 2",
        "phonons salt.cif --memory-limit nan",
        "phonons salt.cif --mesh 0 0 0",
        "phonons salt.cif --mesh 2 2 -2",
        "phonons salt.cif --points 0",
        "phonons salt.cif --width -1",
        "phonons salt.cif --width nan",
        "phonons salt.cif --symprec 0",
        "phonons salt.cif --animate -1 0",
        "phonons salt.cif --born missing",
        "phonons salt.cif --html page.txt",
        "relax salt.cif --steps -1",
        "relax salt.cif --fmax 0",
        "relax salt.cif --fmax nan",
        "relax salt.cif --smax -1",
        "relax salt.cif --pressure inf",
        "relax salt.cif --symprec 0",
        "relax salt.cif --limit 0",
        "relax salt.cif --fixed-cell --pressure 1",
        "softening --memory-limit -1",
        "compare salt.cif --mesh 0 1 1",
        "softening-scale many.extxyz --frames 0",
        "softening-scale many.extxyz --max-force nan",
        "softening-scale many.extxyz --max-force -1",
        "data inspect many.extxyz --every 0",
        "data inspect many.extxyz --limit 0",
        "data inspect many.extxyz --figure histograms",
        "data inspect many.extxyz --figure histograms.txt",
        "data convert many.extxyz --out set --cutoff -1",
        "data convert many.extxyz --out set --cutoff nan",
        "data convert many.extxyz --out set --cutoff 5 --angle-cutoff -1",
        "data convert many.extxyz --out set --model model --validation 2",
        "data convert many.extxyz --out set --model model --test -0.1",
        "data convert many.extxyz --out set --model model --validation 0.6 --test 0.6",
        "data convert many.extxyz --out set --model model --processes 0",
        "data convert many.extxyz --out set --model model --limit -1",
        "data convert many.extxyz --out set --model model --seed -1",
        "train --processes 0 --process 0 --coordinator localhost:1 run.yaml",
        "train --processes 1 --process -1 --coordinator localhost:1 run.yaml",
        "finetune --data many.extxyz --limit 0",
        "finetune --data many.extxyz --epochs 0",
        "finetune --data many.extxyz --batch-size 0",
        "finetune --data many.extxyz --learning-rate nan",
        "finetune --data many.extxyz --learning-rate -1",
        "finetune --data many.extxyz --devices 0",
        "finetune --data many.extxyz --seed -1",
        "finetune --data many.extxyz --replay many.extxyz --replay-crystals 0",
        "sweep run.yaml --processes 0",
        "evaluate --data many.extxyz --limit 0",
    ],
)
def test_an_option_that_cannot_be_is_told_in_a_line_before_anything_is_loaded(
    work, tmp_path, monkeypatch, capsys, nothing_loads, words
):
    for name in ("salt.cif", "many.extxyz", "model"):
        (tmp_path / name).symlink_to(work / name)
    (tmp_path / "run.yaml").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    said = refused(capsys, *words.split())
    assert "ound" in said or "is not a file" in said
    assert "needed" in said or "Let the cell vary" in said
    assert sorted(tmp_path.iterdir()) == before


def test_a_mode_that_is_none_is_told_before_the_phonons_are_computed(work, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(work)
    monkeypatch.setattr("jaxmlip.phonons.report.phonons", lambda *_, **__: pytest.fail("the work began"))
    out = tmp_path / "out"
    for mode in (("9999", "0"), ("0", "6")):
        said = refused(
            capsys, *("phonons", "salt.cif", "--model", "model", "--out", str(out), "--animate", *mode)
        )
        assert " ".join(mode) in said
        assert "branch from 0 to 5" in said
    assert not out.exists()


def test_whatever_is_written_is_moved_into_place():
    found = set()
    for path in (p for package in ("jaxmlip", "experiments") for p in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("write_text", "write_bytes"):
                whose = ast.unparse(node.value)
                if "draft" not in whose and "partial" not in whose:
                    found.add(f"{path.relative_to(ROOT)}: {whose}.{node.attr}")
    assert found == MOVED


def started(work: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments],
        cwd=work,
        env=environment(work),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def killed(work: Path, seconds: float, *arguments: str) -> None:
    """Runs a command for so long, and kills it."""
    process = started(work, *arguments)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("command", "out"),
    [
        (("hessian", "salt.cif", "--model", "model", "--out"), "h.npy"),
        (("relax", "many.extxyz", "--model", "model", "--smax", "5", "--fmax", "0.2", "--out"), "r.extxyz"),
        (("convert", "checkpoint.model"), "m"),
    ],
    ids=["hessian", "relax", "convert"],
)
@pytest.mark.slow
def test_a_command_that_is_killed_leaves_nothing_half_written_and_comes_to_the_same_end(work, command, out):
    golden = ROOT / "tests" / "golden" / "mace" / "one-layer.model.gz"
    (work / "checkpoint.model").write_bytes(gzip.decompress(golden.read_bytes()))
    whole, cut = work / f"whole-{command[0]}", work / f"cut-{command[0]}"
    for folder in (whole, cut):
        folder.mkdir()
    begun = time.monotonic()
    done = started(work, *command, str(whole / out))
    _, said = done.communicate()
    assert done.returncode == 0, said.decode()
    lasted = time.monotonic() - begun
    final = {"h.npy": ["h.npy", "h.npy.json"]}.get(out, [out])
    moments = random.Random(command[0])
    for _ in range(2):
        killed(work, lasted * moments.uniform(0.5, 1), *command, str(cut / out))
        there = {p.name for p in cut.iterdir() if not is_remain(p)}
        assert there <= {*final, "h.npy.part"}
        if out in there:
            assert digests(cut / out) == digests(whole / out)
    again = started(work, *command, str(cut / out))
    _, said = again.communicate()
    assert again.returncode == 0, said.decode()
    assert sorted(p.name for p in cut.iterdir()) == final
    assert digests(cut / out) == digests(whole / out)


def digests(path: Path) -> dict[str, str]:
    """Hashes of a file, or of those in a folder."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
