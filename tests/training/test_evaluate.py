"""A potential against labels: errors, slopes, and for whom they are."""

import json
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from small_run import CONFIG

from jaxmlip import cli
from jaxmlip.data.dataset import DatasetError, MemorySplit
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.potential import random_potential
from jaxmlip.training import errors, evaluate
from jaxmlip.units import GPA_PER_EV_PER_A3

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def potential(quick):
    return random_potential(CONFIG, seed=1, dtype="float64", name="small")


@pytest.fixture(scope="module")
def frames():
    """Crystals of two materials, each twice."""
    rng = np.random.default_rng(0)
    found = []
    for atoms in (bulk("Si"), bulk("NaCl", "rocksalt", 5.6), bulk("Si"), bulk("NaCl", "rocksalt", 5.7)):
        atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def labelled(potential, frames):
    """What the potential predicts, forces 25 % larger and energies 0.1 eV/atom higher: its slope is 0.8."""
    found = []
    for atoms, p in zip(frames, potential.predict(frames), strict=True):
        labels = Labels(p["energy"] + 0.1 * len(atoms), 1.25 * p["forces"], p["stress"])
        found.append(LabelledCrystal(atoms, labels))
    return found


@pytest.fixture(scope="module")
def compared(potential, labelled):
    return evaluate.compare(potential, MemorySplit.from_crystals(labelled, potential.cutoffs))


def test_errors_and_slopes_are_those_that_were_put_in(compared, labelled):
    found = errors.errors(compared)
    forces = np.concatenate([c.labels.forces.ravel() for c in labelled])
    assert found["energy"].mae == pytest.approx(0.1)
    assert found["energy"].slope is None
    assert found["forces"].slope == pytest.approx(0.8)
    assert found["forces"].r_squared == pytest.approx(1)
    assert found["forces"].mae == pytest.approx(0.2 * np.abs(forces).mean())
    assert found["forces"].rmse == pytest.approx(0.2 * np.sqrt((forces**2).mean()))
    assert found["forces"].crystals == 4
    assert found["forces"].values == 24
    assert found["stress"].mae < 1e-10


def test_stress_is_in_gpa_and_energy_per_atom(compared, labelled):
    np.testing.assert_allclose(compared["stress"][0].dft, GPA_PER_EV_PER_A3 * labelled[0].labels.stress)
    np.testing.assert_allclose(compared["energy"][1].dft, labelled[1].labels.energy / 2)


def test_materials_and_elements_have_their_own_rows(compared, labelled):
    by_material = errors.by_material(compared)
    assert list(by_material) == ["NaCl", "Si"]
    silicon = [np.abs(labelled[k].labels.forces).mean() for k in (0, 2)]
    assert by_material["Si"]["forces"].mae == pytest.approx(0.2 * np.mean(silicon))
    by_element = errors.by_element(compared)
    assert list(by_element) == ["Na", "Si", "Cl"]
    sodium = np.concatenate([labelled[k].labels.forces[0] for k in (1, 3)])
    assert by_element["Na"]["forces"].mae == pytest.approx(0.2 * np.abs(sodium).mean())
    assert by_element["Na"]["forces"].values == 6
    assert "energy" not in by_element["Na"]


def test_missing_labels_are_left_out_and_vanishing_ones_have_no_slope(potential, frames):
    labels = [Labels(energy=1.0), Labels(forces=np.zeros((2, 3))), Labels(), Labels()]
    crystals = [LabelledCrystal(a, its) for a, its in zip(frames, labels, strict=True)]
    split = MemorySplit.from_crystals(crystals, potential.cutoffs)
    found = errors.errors(evaluate.compare(potential, split))
    assert list(found) == ["energy", "forces"]
    assert (found["energy"].crystals, found["forces"].crystals) == (1, 1)
    assert found["forces"].slope is None
    assert evaluate.compare(potential, MemorySplit([], potential.cutoffs)) == {}


def test_hessian_columns_are_compared_with_those_of_the_model(potential, frames, monkeypatch):
    whole = np.random.default_rng(2).normal(size=(6, 6))
    monkeypatch.setattr(
        "jaxmlip.derivatives.hessian.hessian_columns", lambda potential, atoms, columns, shape: whole[columns]
    )
    columns = np.array([0, 4])
    crystals = [LabelledCrystal(atoms, Labels()) for atoms in frames]
    labels = Labels(columns=columns, hessian=2 * whole[columns].reshape(2, 2, 3))
    crystals[1] = LabelledCrystal(frames[1], labels)
    split = MemorySplit.from_crystals(crystals, potential.cutoffs)
    found = errors.errors(evaluate.compare(potential, split))["hessian"]
    assert found.slope == pytest.approx(0.5)
    assert found.values == 12


def test_of_a_slab_the_stress_in_its_plane_is_compared_and_of_a_molecule_none(potential, frames):
    slab, molecule = frames[0].copy(), frames[0].copy()
    slab.pbc, molecule.pbc = (True, False, True), False
    stress = np.diag([0.01, 0.02, 0.03])
    crystals = [LabelledCrystal(atoms, Labels(0.0, stress=stress)) for atoms in (slab, molecule)]
    compared = evaluate.compare(potential, MemorySplit.from_crystals(crystals, potential.cutoffs))
    assert len(compared["energy"]) == 2
    (pair,) = compared["stress"]
    normal = np.cross(slab.cell[2], slab.cell[0])
    np.testing.assert_allclose(pair.dft @ normal, 0, atol=1e-12)
    np.testing.assert_allclose(pair.model, potential.predict(slab)["stress"] * GPA_PER_EV_PER_A3)
    along = np.array([slab.cell[0], slab.cell[2]])
    np.testing.assert_allclose(along @ pair.dft @ along.T, along @ stress @ along.T * GPA_PER_EV_PER_A3)


def test_refitted_references_take_away_what_differs_by_element(compared, potential):
    rng = np.random.default_rng(1)
    shift = rng.normal(size=21)
    moved = errors.shifted(compared, shift)
    found = evaluate.references_of(moved, np.zeros(21))
    back = errors.errors(errors.shifted(moved, found.energies))
    assert back["energy"].mae < 1e-4  # the ridge leaves a little: Na and Cl always come together
    assert back["forces"] == errors.errors(compared)["forces"]


def write(path, labelled):
    for crystal in labelled:
        atoms, labels = crystal.atoms.copy(), crystal.labels
        stress = labels.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        atoms.calc = SinglePointCalculator(atoms, energy=labels.energy, forces=labels.forces, stress=stress)
        ase.io.write(path, atoms, format="extxyz", append=True)


def test_the_command_prints_and_writes_what_it_found(potential, labelled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    potential.save(tmp_path / "own")
    write("some.extxyz", labelled)
    arguments = ["evaluate", "--data", "some.extxyz", "--model", "own", "--dtype", "float64"]
    cli.main([*arguments, "--out", "found"])
    out = capsys.readouterr().out
    assert "by material" in out
    assert "0.800" in out
    assert (tmp_path / "found" / "parity.png").stat().st_size > 1000
    record = json.loads((tmp_path / "found" / "evaluation.json").read_text())
    assert record["all"]["forces"]["slope"] == pytest.approx(0.8, abs=1e-4)
    assert record["by_element"]["Cl"]["forces"]["crystals"] == 2
    cli.main([*arguments, "--refit-references", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["all"]["energy"]["mae"] < 1e-4
    shifts = record["reference_energies_shifted_by"]
    assert shifts["Si"] == pytest.approx(0.1, abs=1e-4)


def test_the_command_names_what_it_cannot_use(potential, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    potential.save(tmp_path / "own")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--data", "gone.extxyz", "--model", "own"])
    assert "gone.extxyz does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--model", "own"])
    assert "--data" in capsys.readouterr().err


def test_an_element_unknown_to_the_potential_is_named(potential):
    from jaxmlip.training.config import DataConfig
    from jaxmlip.training.splits import read_one

    atoms = bulk("Lr", "fcc", 5.0)
    crystal = LabelledCrystal(atoms, Labels(energy=0.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxmlip.training.splits._crystals", lambda paths, data: [crystal])
        with pytest.raises(DatasetError, match="Lr"):
            read_one(DataConfig(train=("x",)), "all", potential)


def scaled(compared, name, factor):
    """`compared` with other labels for one property."""
    return {**compared, name: [replace(p, dft=p.dft * factor) for p in compared[name]]}


@pytest.mark.parametrize(
    ("name", "factor", "words"),
    [
        ("stress", -1602.18, "kbar with VASP's sign"),
        ("stress", 1602.18, "that is kbar, needed"),
        ("stress", 160.218, "that is GPa, needed"),
        ("stress", -0.1, "VASP's kbar, positive in compression, was needed"),
        ("stress", -1.0, "the other sign"),
        ("forces", 1 / 51.422, "Hartree/Bohr"),
        ("forces", 1 / 25.711, "Ry/Bohr"),
        ("forces", -1.0, "gradient"),
        ("energy", 1 / 2, "energies per atom"),  # of two atoms
        ("energy", 1 / 27.2114, "Hartree"),
    ],
)
def test_labels_in_another_unit_are_told_by_their_ratio(compared, name, factor, words):
    if name == "energy":  # as large as energies of DFT are
        compared = {
            **compared,
            name: [replace(p, dft=p.dft - 5, model=p.model - 5) for p in compared[name]],
        }
    assert errors.units_told(compared) == []
    (line,) = errors.units_told(scaled(compared, name, factor))
    assert line.startswith(f"{name}: labels")
    assert words in line


def test_a_poor_model_is_no_matter_of_units(compared):
    rng = np.random.default_rng(3)
    for slope in (0.3, 0.8, 1.3):
        poor = {
            name: [replace(p, model=slope * p.dft + 0.2 * rng.normal(size=p.dft.shape)) for p in pairs]
            for name, pairs in compared.items()
        }
        assert errors.units_told(poor) == []


def test_evaluation_without_a_label_is_an_error(potential, frames, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    potential.save(tmp_path / "own")
    ase.io.write("bare.extxyz", frames, format="extxyz")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--data", "bare.extxyz", "--model", "own"])
    assert "found no label that small predicts in 4 crystals" in capsys.readouterr().err


def test_the_command_leaves_out_what_is_broken_and_keeps_to_a_limit(
    potential, labelled, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    potential.save(tmp_path / "own")
    write("some.extxyz", labelled)
    text = (tmp_path / "some.extxyz").read_text()
    (tmp_path / "cut.extxyz").write_text(text[: len(text) - 60])
    arguments = ["evaluate", "--data", "cut.extxyz", "--model", "own", "--dtype", "float64", "--json"]
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert "--skip-bad" in capsys.readouterr().err
    cli.main([*arguments, "--skip-bad"])
    out, err = capsys.readouterr()
    assert json.loads(out)["crystals"] == 3
    assert "cut.extxyz: left out 1" in err
    cli.main([*arguments, "--limit", "2"])
    assert json.loads(capsys.readouterr().out)["crystals"] == 2
