"""Inspection: what is wrong in a set of crystals is found, and nothing is made up."""

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmlip.cli import main
from jaxmlip.data.inspection import NEAR, SAME, figure, fingerprint, inspect
from jaxmlip.data.labels import LabelledCrystal, Labels


def labelled(atoms: Atoms, name: str, energy: float, **labels) -> LabelledCrystal:
    return LabelledCrystal(atoms, Labels(energy=energy, **labels), name=name).checked()


def rattled(seed: int, element: str = "Cu") -> Atoms:
    atoms = bulk(element, "fcc", 3.6, cubic=True)
    atoms.rattle(0.05, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def clean() -> list[LabelledCrystal]:
    """Two elements at very different energies, scattered by 10 meV/atom."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(40):
        element, energy = ("Cu", -4.0) if k % 2 else ("Pt", -6.5)
        forces = rng.normal(size=(4, 3))
        labels = {"forces": forces - forces.mean(axis=0)}
        if k < 10:
            labels["stress"] = -np.eye(3) * 0.01 * k
        energy = 4 * (energy + 0.01 * rng.normal())
        found.append(labelled(rattled(k, element), f"frame {k}", energy, **labels))
    return found


def test_a_clean_set_has_no_outliers(clean):
    found = inspect(iter(clean))
    assert (found.crystals, found.materials) == (40, 2)
    assert found.elements == {"Cu": 20, "Pt": 20}
    assert found.properties == {"energy": 40, "forces": 40, "stress": 10}
    assert found.outliers == found.exact_duplicates == found.near_duplicates == []


def test_spreads_are_of_the_known_labels_alone(clean):
    found = inspect(clean)
    assert "largest moment" not in found.spreads
    pressure = found.spreads["pressure"]
    assert pressure.count == 10
    np.testing.assert_allclose((pressure.min, pressure.max), (0, 0.09 * 160.2176634), atol=1e-9)
    largest = [np.linalg.norm(c.labels.forces, axis=1).max() for c in clean]
    np.testing.assert_allclose(found.spreads["largest force"].median, np.median(largest))
    components = np.sqrt(np.mean(clean[0].labels.forces ** 2))
    np.testing.assert_allclose(found.values["RMS force"][0], components)


def test_each_kind_of_fault_is_named(clean):
    strong = np.zeros((4, 3))
    strong[0, 0], strong[1, 0] = 30, -30
    close = rattled(100)
    close.positions[1] = close.positions[0] + [0.9, 0, 0]
    faults = [
        labelled(rattled(101), "far", -4 * 4.0 + 4 * 0.5),
        labelled(rattled(102), "strong", -16.0, forces=strong),
        labelled(rattled(103), "pulled", -16.0, forces=np.full((4, 3), 0.1)),
        labelled(close, "close", -16.0),
        labelled(clean[1].atoms, "twice", clean[1].labels.energy + 0.1),
    ]
    found = inspect([*clean, *faults])
    assert [(o.kind, o.crystal) for o in found.outliers] == [
        ("energy", "far"),
        ("force", "strong"),
        ("net force", "pulled"),
        ("distance", "close"),
        ("conflict", "twice"),
    ]
    assert found.exact_duplicates == [("twice", 1)]
    by_name = {o.crystal: o.value for o in found.outliers}
    assert by_name["far"] == pytest.approx(0.5, abs=0.02)
    assert by_name["twice"] == pytest.approx(0.025)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), shifts=st.lists(st.integers(-2, 2), min_size=12, max_size=12))
def test_a_fingerprint_does_not_see_order_or_whole_lattice_vectors(seed, shifts):
    atoms = rattled(seed % 1000)
    order = np.random.default_rng(seed).permutation(4)
    other = atoms[order]
    other.positions += np.reshape(shifts, (4, 3)) @ atoms.cell.array
    assert fingerprint(other, SAME * 10) == fingerprint(atoms, SAME * 10)
    moved = atoms.copy()
    moved.positions[2, 1] += 0.05
    changed = atoms.copy()
    changed.numbers[0] = 28
    for different in (moved, changed):
        assert fingerprint(different, NEAR) != fingerprint(atoms, NEAR)


def test_a_crystal_moved_by_less_than_the_resolution_is_a_near_duplicate():
    grid = bulk("Cu", "fcc", 4.0, cubic=True)
    moved = grid.copy()
    moved.positions[0] += 0.002
    found = inspect([labelled(grid, "one", -1.0), labelled(moved, "other", -1.0)])
    assert (found.exact_duplicates, found.near_duplicates) == ([], [("other", 0)])


@pytest.fixture
def file(clean, tmp_path):
    frames = []
    for crystal in clean:
        atoms, labels = crystal.atoms.copy(), crystal.labels
        atoms.calc = SinglePointCalculator(atoms, energy=labels.energy, forces=labels.forces)
        frames.append(atoms)
    ase.io.write(tmp_path / "mine.extxyz", [*frames, frames[3]])
    return tmp_path / "mine.extxyz"


def test_the_command_prints_tables_and_draws(file, capsys):
    main(["data", "inspect", str(file), "--figure", str(file.parent / "a.png")])
    said = capsys.readouterr().out
    for words in ("41 crystals of 2 materials; with Cu 21, Pt 20", "energy per atom", "1 exact duplicates"):
        assert words in said
    assert "pressure" not in said
    assert (file.parent / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_json(file, capsys):
    main(["data", "inspect", str(file), "--json", "--limit", "5"])
    found = json.loads(capsys.readouterr().out)
    assert found["crystals"] == 5
    assert found["spreads"]["energy per atom"]["count"] == 5


def test_a_converted_set_has_the_statistics_of_its_files(file, capsys):
    folder = str(file.parent / "converted")
    main(["data", "convert", str(file), "--out", folder, "--cutoff", "4", "--validation", "0.2"])
    capsys.readouterr()
    found = []
    for path in (str(file), folder):
        main(["data", "inspect", path, "--json"])
        found.append(json.loads(capsys.readouterr().out))
    before, after = found
    for same in ("crystals", "materials", "elements", "properties"):
        assert after[same] == before[same]
    assert len(after["exact_duplicates"]) == 1
    for name, spread in before["spreads"].items():
        assert after["spreads"][name] == pytest.approx(spread, rel=1e-6)
    main(["data", "inspect", folder, "--json", "--limit", "5"])
    assert json.loads(capsys.readouterr().out)["crystals"] == 5
    for arguments, said in ((["--energy-key", "E"], "named already"), ([str(file)], "among 2 paths")):
        with pytest.raises(SystemExit):
            main(["data", "inspect", folder, *arguments])
        assert said in capsys.readouterr().err


def test_a_mistake_is_answered_on_standard_error(file, capsys):
    with pytest.raises(SystemExit):
        main(["data", "inspect"])
    assert "found no path" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["data", "inspect", str(file.parent / "mien.extxyz")])
    assert "mien.extxyz is neither a file nor a folder" in capsys.readouterr().err


def test_a_set_without_labels_can_be_drawn(tmp_path):
    figure(inspect([LabelledCrystal(rattled(1), Labels())]), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_stresses_in_kbar_are_flagged(clean, tmp_path, capsys):
    kilobars = [
        labelled(rattled(k), f"frame {k}", -16.0, stress=np.diag([-20.0, 3.0, 0.1 * k])) for k in range(12)
    ]
    found = inspect(kilobars)
    assert [o.kind for o in found.outliers] == ["stress"] * 12
    assert found.outliers[0].value == pytest.approx(20 * 160.2176634)
    (line,) = found.units
    assert line.startswith("stress: 12 of 12 exceed 500 GPa")
    assert inspect(clean).units == []


@pytest.mark.parametrize("per_atom", [False, True])
def test_energies_per_atom_are_told_from_totals(per_atom):
    rng = np.random.default_rng(2)
    crystals = []
    for k in range(20):
        atoms = rattled(k, ("Cu", "Pt")[k % 2]) * ((1, 1, 1 + k % 3))
        energy = (-4.0, -6.5)[k % 2] + 0.02 * rng.normal()
        crystals.append(labelled(atoms, f"frame {k}", energy * (1 if per_atom else len(atoms))))
    told = inspect(crystals).units
    assert [line[:7] for line in told] == ["energy:"] * per_atom


def test_molecules_and_slabs_are_inspected_along_the_directions_that_repeat():
    dimer = Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])
    longer = Atoms("N2", [[0, 0, 0], [0, 0, 1.2]])
    slab = Atoms("Cu", cell=[2.5, 2.5, 0], pbc=[True, True, False])
    crystals = [LabelledCrystal(atoms, Labels(energy=-1.0)) for atoms in (dimer, longer, slab)]
    found = inspect(crystals)
    np.testing.assert_allclose(found.values["shortest distance"], [1.1, 1.2, 2.5])
    assert np.isnan(found.values["volume per atom"]).all()
    assert found.exact_duplicates == found.near_duplicates == []


def test_the_command_says_what_it_flags_and_goes_round_broken_files(file, capsys):
    frames = ase.io.read(file, ":")
    for k, atoms in enumerate(frames):
        atoms.calc = SinglePointCalculator(atoms, energy=-4.0, stress=np.array([20.0, 3, k, 0, 0, 0]))
    kilobar = file.with_name("kilobar.extxyz")
    ase.io.write(kilobar, frames)
    cut = file.with_name("cut.extxyz")
    cut.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(SystemExit):
        main(["data", "inspect", str(cut), str(kilobar)])
    capsys.readouterr()
    main(["data", "inspect", str(cut), str(kilobar), "--skip-bad"])
    said = capsys.readouterr()
    assert "81 crystals" in said.out
    assert "units? stress: 41 of 41" in said.out
    assert "cut.extxyz: left out 1 that cannot be used" in said.err
