"""Energies of two functionals: what least squares take away, what remains, and what is refused."""

from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from small_studies.transfer import ENTRIES, write_dimers, write_elements

from experiments.transfer.energy_pairs import (
    DIMERS,
    ELEMENTS,
    Pairs,
    Part,
    of_elements,
    read_dimers,
    read_elements,
    read_pair,
    read_set,
)
from experiments.transfer.energy_references import compare, correlation, fitted, remaining
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.studies.study import StudyError, data_root

SHIFT = {12: -3.0, 8: -10.0, 13: -5.0, 22: 40.0}  # eV, of the second functional's elements


def pairs_of(functional, n=200, seed=0) -> Pairs:
    """Random compositions; energies of elements and of bonds, the second functional's by `functional`."""
    rng = np.random.default_rng(seed)
    species = [rng.choice(list(SHIFT), rng.integers(1, 8)) for _ in range(n)]
    bonds = rng.normal(-4, 0.5, n) * [len(s) for s in species]
    own = {12: -1.0, 8: -2.0, 13: -1.5, 22: -3.0}
    first = bonds + [sum(own[z] for z in s) for s in species]
    second = functional(bonds) + [sum(own[z] + SHIFT[z] for z in s) for s in species]
    every = np.ones(n, bool)
    groups = [str(k // 4) for k in range(n)]
    return Pairs(
        "trial", ("A", "B"), species, np.stack([first, second], 1), groups, [Part("all", every, every)]
    )


def test_a_shift_of_elements_alone_is_found_and_what_remains_is_the_same():
    pairs = pairs_of(lambda bonds: bonds)
    row = compare(pairs, pairs.parts[0])
    assert abs(row["raw"].value) < 0.7
    assert row["after"].value == pytest.approx(1, abs=1e-12)
    assert row["difference_after"] < 1e-10 < row["difference"]
    assert {int(z): pytest.approx(e) for z, e in SHIFT.items()} == row["shift"]
    assert row["determined"]


def test_correlation_is_that_of_numpy_and_its_interval_is_wider_where_groups_are_alike():
    rng = np.random.default_rng(1)
    xy = rng.multivariate_normal([3, 100], [[1, 0.5], [0.5, 1]], 300)
    alone = correlation(xy, [str(k) for k in range(300)])
    assert alone.value == pytest.approx(np.corrcoef(xy.T)[0, 1])
    assert alone.low < alone.value < alone.high
    copies = correlation(np.repeat(xy, 5, axis=0), [str(k // 5) for k in range(1500)])
    naive = correlation(np.repeat(xy, 5, axis=0), [str(k) for k in range(1500)])
    assert copies.high - copies.low > 1.5 * (naive.high - naive.low)


def test_references_are_fitted_to_the_training_split_alone():
    pairs = pairs_of(lambda bonds: 1.1 * bonds)
    train = np.arange(200) < 50
    found = fitted(pairs, train)
    moved = replace(pairs, energies=np.where(train[:, None], pairs.energies, 1e6))
    np.testing.assert_array_equal(fitted(moved, train)[1].energies, found[1].energies)
    assert np.isfinite(remaining(pairs, found)).all()


def test_crystals_of_elements_that_were_not_fitted_are_left_out_and_counted():
    pairs = pairs_of(lambda bonds: bonds)
    without = np.array([22 not in s for s in pairs.species])
    row = compare(pairs, Part("all", np.ones(200, bool), without))
    assert row["number"] == without.sum()
    assert row["left_out"] == (~without).sum()
    every = np.ones(200, bool)
    groups = [g if 22 not in s else "one" for g, s in zip(pairs.groups, pairs.species, strict=True)]
    alone = compare(replace(pairs, groups=groups), Part("all", every, every, fewest=2))
    assert (alone["number"], alone["unknowns"]) == (without.sum(), 3)


def test_one_unknown_for_each_element_leaves_nothing_and_isolated_atoms_are_taken_instead(ran):
    record = ran("transfer.energy_references").record
    rows = record["rows"]
    elements = rows["elements at rest: all"]
    assert elements["number"] == 3  # oxygen is another material in the other functional
    assert elements["after"] is None
    assert elements["elsewhere"]["rho"]["value"] == pytest.approx(1)
    assert "leave nothing to be compared" in record["findings"][0]
    dimers = rows["dimers: all"], rows["dimers: forces up to 10 eV/Å"]
    assert [row["number"] for row in dimers] == [8, 6]
    assert dimers[1]["after"]["value"] == pytest.approx(1)
    assert dimers[1]["shift"] == {"1": pytest.approx(0.5), "8": pytest.approx(-10.0)}
    teachers = rows["set: a, b: all"]
    assert teachers["number"] + teachers["left_out"] == 32
    assert teachers["number"] == 2 * teachers["groups"] > 20
    assert teachers["raw"]["value"] < 0.9
    assert teachers["after"]["value"] == pytest.approx(1)
    # The published figures stand first.
    assert record["tables"][0]["rows"][0][4:6] == [0.0917, 0.9250]


def test_of_two_files_the_lowest_crystals_of_common_materials_are_taken(tmp_path):
    def frames(name, *of):
        found = []
        for material, formula, energy in of:
            atoms = Atoms(formula, np.eye(3)[: len(Atoms(formula))] * 2, cell=[6, 6, 6], pbc=True)
            atoms.info["material_id"] = material
            atoms.calc = SinglePointCalculator(atoms, energy=energy)
            found.append(atoms)
        ase.io.write(tmp_path / name, found)
        return str(tmp_path / name)

    first = frames("a.extxyz", ("m1", "MgO", -10), ("m1", "MgO", -12), ("m2", "Al", -3), ("m3", "Ti", -8))
    second = frames("b.extxyz", ("m2", "Al", -8), ("m1", "OMg", -30), ("m3", "O", -5), ("m4", "O", -5))
    pairs = read_pair(first, second)
    assert pairs.groups == ["m1", "m2"]
    assert [s.tolist() for s in pairs.species] == [[8, 12], [13]]
    np.testing.assert_allclose(pairs.energies, [[-12, -30], [-3, -8]])
    with pytest.raises(StudyError, match="found no material of one composition in both"):
        read_pair(first, frames("c.extxyz", ("m9", "Al", -8)))


def test_energies_of_formation_take_each_functional_s_own_ground_states():
    atoms = {"hcp-Mg": Atoms("Mg2"), "molecule-O": Atoms("O8"), "rocksalt-MgO": Atoms("MgO")}
    crystals = [LabelledCrystal(a, Labels(), m, f"{m}/ideal") for m, a in atoms.items()]
    energies = np.array([[-3.0, -9.0], [-40.0, -56.0], [-12.0, -17.0]])
    found = of_elements(crystals, energies)
    assert np.isnan(found[:2]).all()
    np.testing.assert_allclose(found[2], [-1.5 - 5.0, -4.5 - 7.0])
    assert np.isnan(of_elements(crystals[1:], energies[1:])).all()


def test_what_is_damaged_or_no_pair_is_answered_in_words(tmp_path):
    write_elements(tmp_path / ELEMENTS, Mg=ENTRIES["Mg"])
    path = tmp_path / ELEMENTS / "MatPES-PBE-Element-Refs.json.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StudyError, match="not as matcalc publishes it"):
        read_elements(tmp_path / ELEMENTS)
    write_dimers(tmp_path / DIMERS, moved=0.1)
    with pytest.raises(StudyError, match="crystal 0 differs between"):
        read_dimers(tmp_path / DIMERS)
    with pytest.raises(StudyError, match=r"has no set\.json; needed a folder that"):
        read_set(tmp_path)
    (tmp_path / "set.json").write_text('{"teachers": ["../a", "b"]}')
    with pytest.raises(StudyError, match="needed at least two"):
        read_set(tmp_path)


def test_on_the_public_data_isolated_atoms_bring_both_functionals_together():
    if data_root(None) is None or not (data_root(None) / ELEMENTS).exists():
        pytest.skip(f"JAXMLIP_DATA has no {ELEMENTS}")
    pairs = read_elements(data_root(None) / ELEMENTS)
    row = compare(pairs, pairs.parts[0])
    assert row["number"] == 63
    assert row["raw"].value < 0.6 < 0.98 < row["elsewhere"]["rho"].value
