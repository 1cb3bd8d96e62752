"""Crystals say which functional they are of, and functionals are not mixed unless that is meant."""

import json
from dataclasses import replace
from pathlib import Path

import ase.io
import jax
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from small_run import CONFIG as NETWORK

import jaxmlip
from jaxmlip import cli
from jaxmlip.crystals.graph import ELEMENTS, Cutoffs
from jaxmlip.data.dataset import ByFunctional, Concatenated, Dataset, DatasetError, MemorySplit
from jaxmlip.data.encoding import decode, encode
from jaxmlip.data.labels import LabelError, LabelledCrystal, Labels
from jaxmlip.data.readers import read_labelled
from jaxmlip.data.writing import write_dataset
from jaxmlip.potential import random_potential
from jaxmlip.training.config import ConfigError, DataConfig, read_config
from jaxmlip.training.functionals import join
from jaxmlip.training.loop import InterruptedRun, _Signals
from jaxmlip.training.references import refit
from jaxmlip.training.run import _warn_unfitted, run_training
from jaxmlip.training.splits import read, read_splits

pytestmark = pytest.mark.usefixtures("quick", "shared_programs")
CUTOFFS = Cutoffs(3.5, 2.6)
SHIFT = {"PBE": -2.0, "r2SCAN": -9.0, "": 0.0}  # eV per atom
STIFFNESS = {"PBE": 1.0, "r2SCAN": 1.5, "": 1.0}  # eV/Å²


def crystal(k: int, functional: str) -> LabelledCrystal:
    """Atoms bound to their sites by springs, and to the vacuum by what the functional says."""
    rng = np.random.default_rng(k)
    atoms = bulk("Si") if k % 3 else bulk("NaCl", "rocksalt", 5.0)
    moved = 0.1 * rng.normal(size=atoms.positions.shape)
    atoms.positions += moved
    stiff = STIFFNESS[functional]
    energy = stiff * (moved**2).sum() / 2 + SHIFT[functional] * len(atoms)
    labels = Labels(energy=energy, forces=-stiff * moved)
    return LabelledCrystal(atoms, labels, f"m-{k}", f"{functional}-{k}", functional)


def write(path: Path, functional: str, count: int, key: str = "functional") -> str:
    for k in range(count):
        made = crystal(k, functional)
        atoms = made.atoms
        atoms.info |= {"material": made.material} | ({key: functional} if functional else {})
        atoms.calc = SinglePointCalculator(atoms, energy=made.labels.energy, forces=made.labels.forces)
        ase.io.write(path, atoms, append=True)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    return {name: write(folder / f"{name or 'none'}.extxyz", name, 12) for name in SHIFT}


@pytest.mark.parametrize(
    ("key", "written", "expected"),
    [
        ("functional", "r2SCAN", "r2SCAN"),
        ("xc", "R2SCAN", "r2SCAN"),
        ("theory_level", "pbe", "PBE"),
        ("run_type", "GGA_U", "GGA_U"),
        ("xc", 7, ""),
    ],
)
def test_extended_xyz_says_its_functional_under_any_usual_name(tmp_path, key, written, expected):
    atoms = bulk("Si")
    atoms.info = {key: written, "energy": 1.0}
    ase.io.write(tmp_path / "a.extxyz", atoms)
    (found,) = read_labelled(tmp_path / "a.extxyz")
    assert found.functional == expected


def test_a_functional_can_be_stated_for_files_that_do_not_and_does_not_replace_what_they_say(files):
    found = read_labelled([files[""], files["PBE"]], functional="r2scan")
    assert [c.functional for c in found] == ["r2SCAN"] * 12 + ["PBE"] * 12


def test_matpes_documents_say_their_functional(tmp_path):
    from pymatgen.io.ase import AseAtomsAdaptor

    structure = AseAtomsAdaptor.get_structure(bulk("Si")).as_dict()
    documents = [
        {"matpes_id": "m", "functional": f, "structure": structure, "energy": -1.0} for f in ("PBE", "r2SCAN")
    ]
    (tmp_path / "m.json").write_text(json.dumps(documents, default=float))
    assert [c.functional for c in read_labelled(tmp_path / "m.json")] == ["PBE", "r2SCAN"]


INCAR = '<i type="string" name="GGA"> {}</i>\n<i type="string" name="METAGGA">{}</i>\n'
SET = '<i type="logical" name="{}"> T </i>\n'
PAW = "<rc><c> 2</c><c>Si</c><c>  {} Si 05Jan2001 </c></rc>\n"


@pytest.mark.parametrize(
    ("head", "functional"),
    [
        (INCAR.format("PS", "--") + PAW.format("PAW_PBE"), "PBEsol"),
        (INCAR.format("--", "--") + PAW.format("PAW_PBE"), "PBE"),
        (INCAR.format("--", "--") + PAW.format("PAW_PBE") + PAW.format("PAW"), ""),
        (INCAR.format("--", "R2SCAN") + PAW.format("PAW_PBE"), "r2SCAN"),
        (INCAR.format("PE", "--") + SET.format("LDAU"), "PBE+U"),
        (INCAR.format("PE", "--") + SET.format("LHFCALC"), ""),
        (INCAR.format("PE", "MBJ"), ""),
        ("", ""),
    ],
)
def test_vasprun_tells_its_functional_where_its_settings_do(tmp_path, head, functional):
    from jaxmlip.data.readers.vasp import XML_HEAD, _functional

    (tmp_path / "vasprun.xml").write_text(head + "<calculation>\n" + INCAR.format("CA", "SCAN"))
    assert _functional(tmp_path / "vasprun.xml", XML_HEAD, b"<calculation>") == functional


def test_a_functional_that_is_no_name_is_refused():
    for name in ("x" * 61, "PBE\n\x1b[31m"):
        with pytest.raises(LabelError, match="needed a name such as r2SCAN"):
            LabelledCrystal(bulk("Si"), Labels(), functional=name).checked()


def test_a_data_set_keeps_functionals_and_one_of_before_states_none(tmp_path, files, capsys):
    crystals = [crystal(k, f) for f in ("PBE", "r2SCAN", "") for k in range(4)]
    made = write_dataset(tmp_path / "d", crystals, CUTOFFS, fractions=(1, 0, 0), processes=1)
    split = made.splits["train"]
    assert split.functionals == {"PBE": 4, "r2SCAN": 4, "": 4}
    assert [split[k].functional for k in range(12)] == [c.functional for c in crystals]
    assert [c.functional for c in made.crystals()] == [c.functional for c in crystals]
    cli.main(["data", "inspect", str(tmp_path / "d")])
    assert "functional: 4 r2SCAN, 4 PBE, 4 not stated" in capsys.readouterr().out

    plain = crystal(0, "")
    example = MemorySplit.from_crystals([plain], CUTOFFS)[0]
    assert b'"[\\"a\\", \\"b\\"]"' in encode(example, "a", "b")  # as it was written before
    assert decode(encode(example, "a", "b"), CUTOFFS).functional == ""
    path = tmp_path / "d" / "dataset.json"
    manifest = json.loads(path.read_text())
    del manifest["splits"]["train"]["functionals"]
    path.write_text(json.dumps(manifest))
    assert Dataset(tmp_path / "d").splits["train"].functionals == {"": 12}


def test_functionals_in_the_training_data_are_counted_and_the_ways_out_are_named(files):
    both = (files["PBE"], files["r2SCAN"])
    with pytest.raises(
        ConfigError,
        match=r"12 r2SCAN, 12 PBE\), .* data.functional: r2SCAN.* model.functionals: \[r2SCAN, PBE\]",
    ):
        read(DataConfig(train=both))
    with pytest.raises(ConfigError, match=r"12 PBE, 12 not stated\).*data.options: {functional: …}"):
        read(DataConfig(train=(files["PBE"], files[""])))
    with pytest.raises(ConfigError, match="12 r2SCAN, 12 PBE"):
        read(DataConfig(train=(files["PBE"],), validation=(files["r2SCAN"],)))
    with pytest.raises(ConfigError, match="found SCAN, but crystals of 12 r2SCAN, 12 PBE in"):
        read(DataConfig(train=both, functional="SCAN"))
    chosen = read(DataConfig(train=both, functional="r2scan"))
    assert {c.functional for part in chosen.values() for c in part} == {"r2SCAN"}
    assert sum(map(len, chosen.values())) == 12
    with pytest.raises(ConfigError, match=r"PBE, r2SCAN, but crystals of train: .* PBE"):
        read(DataConfig(train=(files["PBE"],)), ("PBE", "r2SCAN"))


def test_functionals_of_data_sets_are_told_apart_too(tmp_path):
    for functional in ("PBE", "r2SCAN"):
        crystals = [crystal(k, functional) for k in range(9)]
        write_dataset(tmp_path / functional, crystals, CUTOFFS, fractions=(1, 0, 0), processes=1)
    paths = tuple(str(tmp_path / f) for f in ("PBE", "r2SCAN"))
    with pytest.raises(ConfigError, match="9 r2SCAN, 9 PBE"):
        read(DataConfig(train=paths))
    chosen = read(DataConfig(train=paths, functional="r2SCAN"))["train"]
    again = Dataset(paths[1]).splits["train"]
    assert [chosen[k].labels.energy for k in range(9)] == [again[k].labels.energy for k in range(9)]
    start = random_potential(NETWORK)
    assert start.cutoffs == CUTOFFS
    together = read_splits(DataConfig(train=paths), join(start, ("r2SCAN", "PBE")))["train"]
    assert [together[k].graph.species.max() > ELEMENTS for k in range(18)] == [True] * 9 + [False] * 9
    other = read_splits(DataConfig(train=paths), join(start, ("PBE", "r2SCAN")))["train"]
    assert other.digest != together.digest


def test_splits_together_are_one_after_the_other():
    parts = [MemorySplit.from_crystals([crystal(k, "PBE") for k in ks], CUTOFFS) for ks in ((0, 1), (2,))]
    whole = Concatenated(parts)
    assert [e.labels.energy for e in (whole[0], whole[1], whole[2])] == [
        e.labels.energy for part in parts for e in part.examples
    ]
    assert whole.functionals == {"PBE": 3}
    assert whole.counts["energy"] == 3
    assert whole.elements == (11, 14, 17)
    with pytest.raises(IndexError):
        whole[3]
    other = MemorySplit.from_crystals([crystal(0, "PBE")], Cutoffs(3.0))
    with pytest.raises(DatasetError, match="needed the same cutoffs"):
        Concatenated([parts[0], other])
    with pytest.raises(DatasetError, match="found crystals of 3 PBE, needed those of r2SCAN"):
        ByFunctional(whole, ("r2SCAN",))


CONFIG = """
model:
  architecture: m3gnet
  hyperparameters: {{bond_cutoff: 3.5, angle_cutoff: 2.6}}
  functionals: [PBE, r2scan]
data:
  train: [{PBE}, {r2SCAN}]
  fractions: [0.6, 0.2, 0.2]
loss: {{stress: 0, magmoms: 0}}
optimizer: {{learning_rate: 1e-2, train: [all, references]}}
epochs: 6
batch_size: 5
checkpoint_every: 4
tensorboard: false
"""


@pytest.fixture(scope="module")
def finished(quick, files, tmp_path_factory):
    """A network that has learnt two functionals at once."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "two.yaml").write_text(CONFIG.format(**files))
    cli.main(["train", str(folder / "two.yaml")])
    return folder / "two"


@pytest.mark.slow
def test_one_network_learns_two_functionals_and_tells_its_errors_of_each(finished, files, capsys):
    results = json.loads((finished / "results.json").read_text())
    assert list(results["by_functional"]) == ["PBE", "r2SCAN"]
    found = results["by_functional"].values()
    assert sum(f["after"]["energy"]["crystals"] for f in found) == results["after"]["energy"]["crystals"]
    potential = jaxmlip.load(str(finished / "model"))
    assert potential.functionals == ("PBE", "r2SCAN")
    energies = potential.params["reference_energies"]
    for k, functional in enumerate(potential.functionals):  # those of each, though crystals are the same
        np.testing.assert_allclose(
            energies[[z + ELEMENTS * k for z in (11, 14, 17)]], SHIFT[functional], atol=0.2
        )
    start = jaxmlip.load(str(finished / "start")).params["reference_energies"]
    assert np.abs(energies - start)[[11, 11 + ELEMENTS]].min() > 0  # they were trained

    with pytest.raises(ValueError, match="needed a potential of one"):
        potential.predict(bulk("Si"))
    cli.main(["export", str(finished), str(finished / "r2SCAN"), "--functional", "r2SCAN"])
    one = jaxmlip.load(str(finished / "r2SCAN"))
    assert one.functionals == ()
    assert one.manifest["functional"] == "r2SCAN"
    assert one.elements == (11, 14, 17)
    capsys.readouterr()
    arguments = ["--data", files["PBE"], files["r2SCAN"], "--model", str(finished / "model"), "--json"]
    cli.main(["evaluate", *arguments, "--functional", "r2SCAN"])
    record = json.loads(capsys.readouterr().out)
    assert record["crystals"] == 12
    assert record["all"]["energy"]["mae"] < 0.5
    with pytest.raises(SystemExit):
        cli.main(["evaluate", *arguments])
    assert (
        "has the functionals PBE, r2SCAN, needed one: name that of the data by --functional"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        cli.main(["export", str(finished), str(finished / "no"), "--functional", "SCAN"])
    assert "'SCAN', needed one of those" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_two_functionals_goes_on_as_if_it_had_not_been_stopped(finished, tmp_path, monkeypatch):
    config = read_config(finished / "config.yaml", ["model.name=two"])
    with monkeypatch.context() as patch:
        patch.setattr(_Signals, "received", lambda self, step: step == 6)
        with pytest.warns(UserWarning, match="stopped after step 6"), pytest.raises(InterruptedRun):
            run_training(config, tmp_path / "again")
    again = run_training(config, tmp_path / "again").potential
    expected = jaxmlip.load(str(finished / "model"))
    for found, needed in zip(jax.tree.leaves(again.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_array_equal(found, needed)


def test_elements_whose_reference_energies_nothing_determines_are_named():
    metals = [
        LabelledCrystal(bulk(m), Labels(energy=-1.0), functional="PBE") for m in ("Cu", "Al", "Cu", "Ni")
    ]
    train, test = (MemorySplit.from_crystals(part, CUTOFFS) for part in (metals[:2], metals[1:]))
    found = refit([e.graph.species for e in train.examples], np.array([-1.0, -1.0]), np.zeros(119))
    with pytest.warns(UserWarning, match=r"1 of 3 crystals of the test data have Ni, for which no") as told:
        _warn_unfitted(found, {"train": train, "test": test})
    assert len(told) == 1
    # Of another functional it is another element.
    other = [replace(metal, functional="r2SCAN") for metal in metals[:1]]
    both = MemorySplit.from_crystals(metals[:2] + other, CUTOFFS)
    with pytest.warns(UserWarning, match=r"1 of 3 crystals of the test data have Cu"):
        _warn_unfitted(found, {"test": ByFunctional(both, ("PBE", "r2SCAN"))})
