"""A head that is named where a model is named is the one that is computed, trained or compared."""

import gzip
import json
from pathlib import Path

import ase.io
import jax
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import QUICK, small_potential
from rich.console import Console

import jaxmlip
from jaxmlip.cli import main
from jaxmlip.data.dataset import Dataset
from jaxmlip.system import parallel
from jaxmlip.training.config import ConfigError, finetune_config
from jaxmlip.training.run import prepare
from jaxmlip.zoo.cache import cached
from jaxmlip.zoo.load import load_each
from weights_convert import published
from weights_convert.torch_zip import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden" / "mace"
HEADS = ("pbe", "r2scan")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a checkpoint of two heads, and for each a crystal with what the original computes."""
    folder = tmp_path_factory.mktemp("heads")
    (folder / "two.model").write_bytes(gzip.decompress((GOLDEN / "two-heads.model.gz").read_bytes()))
    for head in HEADS:
        with np.load(GOLDEN / f"two-heads.{head}.npz") as archive:
            its = {key.partition("/")[2]: archive[key] for key in archive.files if "LiCoO2" in key}
        atoms = Atoms(its["numbers"], its["positions"], cell=its["cell"], pbc=True)
        found = {"energy": float(its["energy"]), "forces": its["forces"]}
        atoms.calc = SinglePointCalculator(atoms, **found)
        ase.io.write(folder / f"{head}.extxyz", [atoms] * 2)
    small_potential(QUICK, "float32").save(folder / "chgnet")
    return folder


@pytest.fixture(autouse=True)
def inside(here, monkeypatch):
    monkeypatch.chdir(here)


@pytest.fixture
def two_heads(here, monkeypatch, tmp_path):
    """The name of a public model with two heads, its file in the own folder, and an empty cache."""
    monkeypatch.setenv("JAXMLIP_WEIGHTS", str(here))
    monkeypatch.setenv("JAXMLIP_CACHE", str(tmp_path / "cache"))
    files = {"two.model": published.digest(here / "two.model", ())}
    heads = {"pbe": "PBE", "r2scan": "r2SCAN"}
    origin = published.Address("https://nowhere.invalid/two")
    source = published.Source("mace", files, origin, "MIT", "that of its head", "tiny", heads=heads)
    monkeypatch.setitem(published.MODELS, "two-web", source)
    return "two-web"


def test_a_public_model_with_heads_keeps_each_with_its_functional(two_heads, monkeypatch):
    expected = {head: jaxmlip.load("two.model", "float64", head=head) for head in HEADS}
    for again in (False, True):
        if again:  # from the cache
            monkeypatch.setattr("jaxmlip.zoo.cache.published_files", None)
        for head, functional in zip(HEADS, ("PBE", "r2SCAN"), strict=True):
            found = jaxmlip.load(two_heads, "float64", head=head)
            jax.tree.map(np.testing.assert_array_equal, found.params, expected[head].params)
            said = found.manifest["head"], found.manifest["functional"]
            assert (found.name, *said) == (two_heads, head, functional)
    assert cached() == [two_heads]
    names = [its.name for its in load_each([two_heads] * 2, heads=HEADS)]
    assert names == ["two-web:pbe", "two-web:r2scan"]


@pytest.mark.parametrize("head", [None, "scan"])
def test_a_public_model_with_heads_needs_one_of_them(two_heads, head):
    with pytest.raises(ValueError, match=rf"found head={head!r}, needed one of .* two-web has: pbe, r2scan"):
        jaxmlip.load(two_heads, head=head)


def test_evaluate_compares_the_head_that_it_is_given(tmp_path, capsys):
    for head, other in (HEADS, HEADS[::-1]):
        errors = []
        for of in (head, other):
            capsys.readouterr()
            model = ["--model", "two.model", "--head", of, "--dtype", "float64"]
            main(["evaluate", "--data", f"{head}.extxyz", *model, "--json"])
            errors.append(json.loads(capsys.readouterr().out)["all"]["energy"]["mae"])
        assert errors[0] < 1e-8 < 1e-3 < errors[1]


def test_training_begins_with_the_head_that_it_is_given(tmp_path):
    flags = {"model.start": "two.model", "model.head": "r2scan", "data.train": ["r2scan.extxyz"]}
    config = finetune_config("few", flags, ["data.fractions=[1, 0, 0]", "loss.stress=0"]).checked()
    potential, *_ = prepare(config, tmp_path / "run", parallel.make_mesh(1), Console(quiet=True))
    expected = jaxmlip.load("two.model", head="r2scan")
    jax.tree.map(np.testing.assert_array_equal, potential.params, expected.params)
    assert potential.manifest["head"] == "r2scan"
    with pytest.raises(CheckpointError, match="--head pbe on the command line"):
        prepare(
            finetune_config("few", flags | {"model.head": None}),
            tmp_path / "run",
            parallel.make_mesh(1),
            Console(quiet=True),
        )


def test_finetune_takes_a_head(monkeypatch):
    begun = []

    def begin(config, out):
        begun.append(config.model)
        raise ValueError("enough")

    monkeypatch.setattr("jaxmlip.training.run.run_training", begin)
    with pytest.raises(SystemExit):
        main(["finetune", "--data", "pbe.extxyz", "--model", "two.model", "--head", "pbe"])
    assert (begun[0].start, begun[0].head) == ("two.model", "pbe")
    with pytest.raises(ConfigError, match="head"):
        finetune_config("few", {"model.architecture": "mace", "model.head": "pbe"}).checked()


def test_a_data_set_gets_the_cutoffs_of_a_checkpoint_with_heads(tmp_path, capsys):
    common = ["data", "convert", "pbe.extxyz", "--out", str(tmp_path / "set"), "--validation", "0"]
    main([*common, "--test", "0", "--model", "two.model", "--head", "pbe"])
    assert Dataset(tmp_path / "set").cutoffs == jaxmlip.load("two.model", head="pbe").cutoffs
    with pytest.raises(SystemExit):
        main([*common, "--cutoff", "5", "--head", "pbe"])
    assert "--head pbe without --model" in capsys.readouterr().err


def test_softening_scale_tells_two_heads_of_one_file_apart(tmp_path, capsys):
    models = ["--model", "two.model", "--model", "two.model", "--head", "pbe", "--head", "r2scan"]
    main(["softening-scale", "pbe.extxyz", *models, "--dtype", "float64", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "softening_scale.json").read_text())
    assert record["settings"]["dtype"] == "float64"
    assert record["settings"]["heads"] == {"two.model:pbe": "pbe", "two.model:r2scan": "r2scan"}
    assert list(record["models"]) == ["two.model:pbe", "two.model:r2scan"]
    slopes = [its[0]["slope"] for its in record["models"].values()]
    assert slopes[0] == pytest.approx(1, abs=1e-6)
    assert slopes[1] != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("command", "usual"),
    [
        (["softening"], "float64"),
        (["compare", "run"], "float64"),
        (["softening-scale", "pbe.extxyz"], "float32"),
    ],
)
def test_commands_against_dft_take_heads_and_a_precision(command, usual, monkeypatch, capsys):
    def told(models, dtype, heads):
        raise ValueError(f"{models} {dtype} {heads}")

    monkeypatch.setattr("jaxmlip.zoo.load.load_each", told)
    monkeypatch.setattr("jaxmlip.studies.compare.read_phonopy", lambda folder: None)
    with pytest.raises(SystemExit):
        main([*command, "--model", "two.model", "--head", "pbe"])
    assert f"('two.model',) {usual} ('pbe',)" in capsys.readouterr().err
    for dtype in ("float32", "float64"):
        with pytest.raises(SystemExit):
            main([*command, "--dtype", dtype])
        assert f"('chgnet-0.3.0',) {dtype} ()" in capsys.readouterr().err


def test_heads_are_of_checkpoint_files_and_models_keep_their_own_names():
    one, two = load_each(["chgnet", "two.model"], heads=["r2scan"])
    assert (one.name, two.name, two.manifest["head"]) == (QUICK, "two", "r2scan")
    for models, heads, named in (
        (["chgnet"], ["pbe"], r"found the heads pbe and 0 checkpoint file\(s\)"),
        (["two.model"], ["pbe", "r2scan"], r"found the heads pbe, r2scan and 1 checkpoint file\(s\)"),
        (["two.model", "two.model"], ["pbe"], "found two.model:pbe twice"),
    ):
        with pytest.raises(ValueError, match=named):
            load_each(models, heads=heads)
