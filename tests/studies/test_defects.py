"""Point defects: a model errs by nothing against its own labels; melts and defects are what they are."""

import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import SHORT
from small_studies.softening import OWN, SOFT, STAND_INS

from experiments.softening import defects
from experiments.softening.defects import formation_energy, material, order, repeats, with_defect
from jaxmlip.potential import Potential


def moved(atoms: Atoms, how_far: float, seed: int) -> Atoms:
    atoms = atoms.copy()
    atoms.rattle(how_far, seed=seed)
    return atoms


def errs_by_nothing(rows: dict, name: str) -> None:
    """Whether the frames that a potential labelled itself have its energies and forces."""
    row = rows[f"{name}: Cu frames"]
    for side in ("vacancy", "bulk"):
        np.testing.assert_allclose(row[side]["model"], row[side]["dft"], atol=1e-5)
        assert row[side]["slope"]["value"] == pytest.approx(1, abs=1e-3)
    assert formation_energy(row, "error").value == pytest.approx(0, abs=1e-4)


def costs_what_the_potential_says(done, name: str, potential) -> None:
    it = material([done.settings.data / "mlearn/Cu.extxyz.gz"])
    row = done.rows[f"{name}: Cu vacancy"]
    # The bulk is at its minimum, and any force is below 1000 eV/Å: the defect stays where it starts.
    start = with_defect(it.bulk.cube, "fcc", it.repeat, "vacancy")
    e, cube = (p["energy"] for p in potential.predict([start, it.bulk.cube]))
    assert row["atoms"] == 3
    assert row["energy"] == pytest.approx(e - 3 / 4 * cube, abs=1e-4)


def test_a_model_agrees_with_its_own_labels_and_a_softer_one_does_not(ran):
    done = ran("softening.defects")
    errs_by_nothing(done.rows, OWN)
    for side in ("vacancy", "bulk"):
        assert done.rows[f"{SOFT}: Cu frames"][side]["slope"]["value"] == pytest.approx(0.75, abs=1e-3)
    assert "Vacancy cells that have melted: 1 of Cu; left out." in done.text
    assert "because not in" in done.text
    assert "Ge, Mo, Ni" in done.text


def test_a_relaxed_vacancy_costs_what_the_potential_says(ran):
    costs_what_the_potential_says(ran("softening.defects"), OWN, STAND_INS[OWN])


@pytest.mark.slow
def test_a_network_agrees_with_the_frames_and_the_vacancy_that_it_labelled_itself(ran):
    done = ran("softening.defects", SHORT)
    errs_by_nothing(done.rows, SHORT)
    costs_what_the_potential_says(done, SHORT, Potential.from_folder(done.settings.model[0]))


@pytest.mark.parametrize(("kind", "a"), [("bcc", 3.2), ("fcc", 3.6), ("diamond", 5.4)])
def test_each_defect_has_the_atoms_and_the_distances_that_it_should(kind, a):
    symbol = {"bcc": "Mo", "fcc": "Cu", "diamond": "Si"}[kind]
    cube = bulk(symbol, kind, a=a, cubic=True)
    n = 8 * len(cube)
    for defect, (replaced, places) in defects.DEFECTS[kind].items():
        atoms = with_defect(cube, kind, 2, defect)
        assert len(atoms) == n - replaced + len(places)
        assert repeats(atoms, kind) == 2
        distances = atoms.get_all_distances(mic=True)
        assert distances[distances > 0].min() > 0.35 * a
        # Only what is near has moved.
        assert (
            sum(np.abs(atoms.positions / a * 8 - np.rint(atoms.positions / a * 8)).max(axis=1) > 1e-6) < n / 2
        )


@pytest.mark.parametrize(("kind", "symbol"), [("bcc", "Mo"), ("fcc", "Cu"), ("diamond", "Si")])
def test_a_crystal_and_a_melt_are_told_apart_wherever_the_origin_is(kind, symbol):
    cell = bulk(symbol, kind, a=4.0, cubic=True).repeat(3)
    cell.translate([0.7, -0.3, 1.1])
    assert order(cell, kind) == pytest.approx(1)
    del cell[5]
    assert order(moved(cell, 0.15, 0), kind) > 0.7
    assert order(moved(cell, 2.0, 0), kind) < 0.3


def test_the_formation_energy_is_what_a_harmonic_crystal_leaves():
    rng = np.random.default_rng(0)
    hot, hotter = rng.uniform(1, 2, 12), rng.uniform(1, 2, 15)
    row = {
        "vacancy": {"dft": 1.3 + 2 * hot, "model": 0.9 + 1.5 * hot, "squares": hot},
        "bulk": {"dft": 2 * hotter, "model": 1.5 * hotter, "squares": hotter},
    }
    for side, value in {"dft": 1.3, "model": 0.9, "error": -0.4}.items():
        assert formation_energy(row, side) == pytest.approx((value, value, value))


@pytest.mark.parametrize(
    ("name", "frames", "molten"), [("Li", 40, 0), ("Si", 32, 32), ("Cu", 4, 0), ("Ni", 4, 0)]
)
def test_vacancy_cells_of_mlearn_are_told_from_melts(name, frames, molten):
    path = Path(os.environ.get("JAXMLIP_DATA", "/nowhere")) / f"mlearn/{name}.extxyz.gz"
    if not path.exists():
        pytest.skip(f"JAXMLIP_DATA names no folder that has {path.name}")
    it = material([path])
    assert (len(it.vacancies), it.molten) == (frames, molten)
    above = [f.labels.energy - len(f.atoms) * it.bulk.energy for f in it.vacancies]
    assert 0 < min(above) / len(it.vacancies[0].atoms) < max(above) / len(it.vacancies[0].atoms) < 0.15
