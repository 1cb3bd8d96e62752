"""`jaxmlip conductivity`: its numbers, its files, what it goes on with, and mistakes before the work."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from commands import complaint, here
from interruptions import StopError, interrupted
from matplotlib.figure import Figure
from pairs import potential

from jaxmlip.cli import main
from jaxmlip.mechanics.relaxation import at_rest
from jaxmlip.phonons.third import second_order, third_order
from jaxmlip.phonons.transport import conductivity, linewidths_by_phonons
from jaxmlip.studies.conductivity import PARTS

phono3py = pytest.importorskip("phono3py")
pytestmark = pytest.mark.filterwarnings("ignore::jaxmlip.phonons.third.SmallSupercellWarning")
SMALL = ("--supercell", "3", "3", "3", "--fc2-supercell", "4", "4", "4", "--mesh", "4", "4", "4")


@pytest.fixture(scope="module")
def pair():
    return potential()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pair):
    """Crystals that are right and wrong."""
    here = tmp_path_factory.mktemp("work [1]")
    rest = at_rest(pair, bulk("Cu", "fcc", 3.7))
    write(here / "Cu [fcc].vasp", rest)
    write(here / "near.vasp", bulk("Cu", "fcc", 3.68))
    write(here / "stretched.vasp", bulk("Cu", "fcc", 1.2 * rest.cell.lengths()[0] * 2**0.5))
    molecule = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]])
    write(here / "molecule.xyz", molecule, format="extxyz")
    a = rest.cell.lengths()[0]
    layer = Atoms("Cu", cell=[[a, 0, 0], [a / 2, a * 0.75**0.5, 0], [0, 0, 12]], pbc=[True, True, False])
    write(here / "layer.xyz", layer, format="extxyz")
    layer.pbc = True
    write(here / "in a box.xyz", layer, format="extxyz")
    isotopes = bulk("Si", "diamond", 5.0)
    isotopes.set_masses([28.0, 29.0])
    write(here / "isotopes.traj", isotopes)
    return here


@pytest.fixture
def run(folder, pair, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: pair)
    out = ("--out", str(tmp_path / "out"))
    return lambda *words: here(folder, monkeypatch, capsys, "conductivity", *words, *out)


@pytest.fixture(scope="module")
def done(folder, pair, tmp_path_factory):
    """The folder of a command that ran to its end, and what it said."""
    out = tmp_path_factory.mktemp("done [1]") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: pair)
        words = [*SMALL, "--relax", "--temperatures", "200", "300", "--out", str(out)]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            main(["conductivity", str(folder / "near.vasp"), *words])
    return out, said.getvalue()


def test_the_command_writes_what_the_library_computes(done, folder, pair):
    out, said = done
    record = json.loads((out / "conductivity.json").read_text())
    crystal = at_rest(pair, read(folder / "near.vasp"))
    third = third_order(pair, crystal, (3, 3, 3))
    second = second_order(pair, crystal, (4, 4, 4))
    found = conductivity(third, second, mesh=(4, 4, 4), temperatures=(200.0, 300.0))
    np.testing.assert_allclose(record["kappa_W_per_m_K"], found.kappa, rtol=1e-4)
    assert record["settings"]["weights_sha256"].keys() == {"pairs"}
    assert record["settings"]["relax"] is True
    assert record["third_order"]["method"] == "exact"
    assert record["third_order"]["checks_eV_per_A3"]["permutation"] < 1e-9
    with np.load(out / "conductivity.npz") as modes:
        whole = modes["modes_W_per_m_K"].sum(axis=(1, 2)) / modes["weights"].sum()
        np.testing.assert_allclose(whole, record["kappa_W_per_m_K"], rtol=1e-12, atol=1e-12)
        assert modes["frequencies_THz"].shape == (record["wave_vectors"], 3)
        assert modes["linewidths_THz"].shape == (2, record["wave_vectors"], 3)
    upto = record["at"]["cumulative"]["mean_free_path"]["W_per_m_K"]
    np.testing.assert_allclose(upto[-1], record["kappa_W_per_m_K"][1], rtol=1e-9, atol=1e-12)
    assert f"{record['mean_kappa_W_per_m_K'][1]:.3f}" in said
    for words in (
        "of 243 columns",
        "64 atoms",
        "8 wave vectors",
        "acoustic sum rule",
        "Cu has metals alone",
        "too small by 1.72 Å",
    ):
        assert words in said
    assert (out / "conductivity.png").stat().st_size > 20_000


def test_phono3pys_own_command_goes_on_with_its_files(done):
    out, _ = done
    record = json.loads((out / "conductivity.json").read_text())
    command = f"{Path(sys.executable).parent}/phono3py --br --mesh 4 4 4 --ts 200 300 --isotope --tt SMM19"
    command += " --symmetrize-tetrahedra --average-degenerate-weights phono3py_params.yaml"
    subprocess.run(command.split(), cwd=out, check=True, capture_output=True)
    import h5py

    with h5py.File(out / "kappa-m444.hdf5") as file:
        its = file["kappa"][()]
    mine = np.array(record["kappa_W_per_m_K"])
    np.testing.assert_allclose(its[:, :3], np.diagonal(mine, axis1=1, axis2=2), rtol=1e-5)


@pytest.mark.slow
def test_an_interrupted_command_goes_on_and_gives_the_same(run, done, monkeypatch, tmp_path):
    words = ("near.vasp", *SMALL, "--relax", "--temperatures", "200", "300")
    monkeypatch.setattr("jaxmlip.phonons.transport.TOGETHER", 3)
    monkeypatch.setattr("jaxmlip.studies.conductivity.draw", lambda *_: Figure())  # which takes a second
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        with pytest.raises(StopError):
            run(*words)
    left = [path.name for path in (tmp_path / "out" / PARTS).rglob("*")]
    assert any(name.endswith(".npy.part") for name in left)
    assert not any(name.startswith("third-") and name.endswith(".npz") for name in left)
    solved = []

    def twice(ph3, third, points, temperatures):
        solved.append(points)
        if len(solved) == 2:
            raise StopError
        return linewidths_by_phonons(ph3, third, points, temperatures)

    with monkeypatch.context() as patch:
        patch.setattr("jaxmlip.mechanics.relaxation.relax_many", None)  # called again, it would raise
        patch.setattr("jaxmlip.phonons.transport.linewidths_by_phonons", twice)
        with pytest.raises(StopError):
            run(*words)
    assert len(solved) == 2
    monkeypatch.setattr("jaxmlip.studies.conductivity.third_order", None)
    monkeypatch.setattr("jaxmlip.studies.conductivity.second_order", None)
    finished = run(*words)
    assert finished.returncode == 0, finished.stderr
    first, again = (json.loads((f / "conductivity.json").read_text()) for f in (done[0], tmp_path / "out"))
    np.testing.assert_allclose(again["kappa_W_per_m_K"], first["kappa_W_per_m_K"], rtol=1e-9, atol=1e-12)
    # Another mesh takes the constants that are there.
    more = run("near.vasp", *SMALL[:-3], "3", "3", "3", "--relax", "--transport", "particles")
    assert more.returncode == 0, more.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["molecule.xyz"], "pbc=[False, False, False], but thermal conductivities need"),
        (["layer.xyz"], "pbc=[True, True, False]"),
        (["isotopes.traj"], "masses that keep 24 of the 48 operations"),
        (["Cu [fcc].vasp", *SMALL[:-1], "3"], "mesh 4 x 4 x 3 for Cu"),
        (["Cu [fcc].vasp", "--temperatures", "0"], "--temperatures 0.0, needed a number above 0"),
        (["Cu [fcc].vasp", "--mesh", "0", "4", "4"], "--mesh 0 4 4"),
        (["Cu [fcc].vasp", "--boundary", "-1"], "--boundary -1.0"),
        (["Cu [fcc].vasp", "--temperatures"], "found no temperature"),
        (["Cu [fcc].vasp", "--step", "0.01"], "a step of 0.01 Å for exact derivatives"),
        (["stretched.vasp", *SMALL], "found imaginary modes of Cu at"),
    ],
    ids=lambda x: " ".join(x[:2]) if isinstance(x, list) else None,
)
def test_a_mistake_is_told_before_third_order_is_computed(
    folder, pair, monkeypatch, capsys, tmp_path, words, said
):
    monkeypatch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: pair)
    monkeypatch.setattr("jaxmlip.studies.conductivity.third_order", None)
    told = complaint(folder, monkeypatch, capsys, "conductivity", *words, "--out", str(tmp_path / "out"))
    assert said in told
    if "stretched" in words[0]:
        assert "q = (" in told
    else:
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", [None, "4.7.1"])
def test_phono3py_is_asked_for_before_anything_is_loaded(folder, monkeypatch, capsys, version):
    if version is None:
        monkeypatch.setitem(sys.modules, "phono3py", None)
    else:
        monkeypatch.setattr(phono3py, "__version__", version)
    monkeypatch.setattr("jaxmlip.zoo.load.load", None)
    told = complaint(folder, monkeypatch, capsys, "conductivity", "near.vasp")
    assert "pip install 'jaxmlip[phono3py]'" in told
    assert version is None or "4.7.1, needed 4.8" in told


def test_vacuum_is_said_to_be_a_part_of_the_volume(run, monkeypatch):
    def stop(*_):
        raise RuntimeError("enough")

    monkeypatch.setattr("jaxmlip.studies.conductivity._say_work", stop)
    told = run("in a box.xyz", *SMALL[:-1], "1").stderr
    assert "12.0 Å of vacuum along lattice vector 3" in told
    assert "enough" in told


@pytest.mark.slow
@pytest.mark.parametrize("method", ["differences", "displaced"])
def test_other_methods_give_nearly_the_same(run, done, tmp_path, method):
    step = ("--method", method, "--step", "0.01")
    finished = run("near.vasp", *SMALL, "--relax", "--temperatures", "200", "300", *step)
    assert finished.returncode == 0, finished.stderr
    exact, other = (json.loads((f / "conductivity.json").read_text()) for f in (done[0], tmp_path / "out"))
    assert "0.01 Å" in other["third_order"]["method"]
    np.testing.assert_allclose(other["kappa_W_per_m_K"], exact["kappa_W_per_m_K"], rtol=0.02, atol=0.02)


def test_hours_are_warned_of(run, monkeypatch, capsys):
    class EnoughError(Exception):
        pass

    def stop(*_):
        raise EnoughError

    monkeypatch.setattr("jaxmlip.studies.conductivity._check_stable", stop)
    monkeypatch.setattr("jaxmlip.studies.conductivity.EACH", 1e-3)
    with pytest.raises(EnoughError):
        run("Cu [fcc].vasp", *SMALL)
    # 8 wave vectors with 32 triplets each, of 27 x 27² products and 27 tetrahedra of 280 each
    assert "wave vectors will need of the order of 116 minutes" in " ".join(capsys.readouterr().out.split())
