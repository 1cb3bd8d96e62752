"""Point defects: a model errs by nothing against its own labels; melts and defects are what they are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from element_frames import CONFIGS, save_models, write

from experiments.softening import defects
from experiments.softening.defects import (
    Settings,
    formation_energy,
    main,
    material,
    order,
    repeats,
    with_defect,
)
from jaxmlip.mechanics.relaxation import relax
from jaxmlip.potential import Potential


def moved(atoms: Atoms, how_far: float, seed: int) -> Atoms:
    atoms = atoms.copy()
    atoms.rattle(how_far, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def data(tmp_path_factory, models) -> Path:
    """Labels by the first of the models, in the layout of mlearn: a cube, or a cube that lacks an atom."""
    potential = Potential.from_folder(models[0])
    cube = relax(potential, bulk("Cu", a=4.4, cubic=True), fix_symmetry=True, fmax=0.05).atoms
    vacancy = cube[1:]
    hot = 0.12
    frames = [
        (cube, {"group": "Elastic", "description": "Ground state crystal"}),
        *((moved(vacancy, hot, k), {"group": "Vacancy"}) for k in range(10)),
        (moved(vacancy, 1.0, 3), {"group": "Vacancy"}),
        *((moved(cube, hot, k), {"group": "AIMD-NVT"}) for k in range(30)),
        (moved(cube, 0.01, 3), {"group": "AIMD-NVT"}),
    ]
    folder = tmp_path_factory.mktemp("data")
    write(folder / "mlearn/Cu.extxyz.gz", potential, frames)
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory, models, data) -> Path:
    out = tmp_path_factory.mktemp("done")
    main(Settings(model=tuple(models), out=out, data=data, fmax=1e3, steps=40))
    return out


def rows_of(out: Path) -> dict:
    return json.loads((out / "record.json").read_text())["rows"]


def test_a_model_agrees_with_its_own_labels_and_others_do_not(done):
    rows = rows_of(done)
    for side in ("vacancy", "bulk"):
        own, *others = (rows[f"{name}: Cu frames"][side] for name in CONFIGS)
        np.testing.assert_allclose(own["model"], own["dft"], atol=1e-5)
        assert own["slope"]["value"] == pytest.approx(1, abs=1e-3)
        for other in others:
            assert abs(other["slope"]["value"] - 1) > 0.01
    assert formation_energy(rows["chgnet: Cu frames"], "error").value == pytest.approx(0, abs=1e-4)
    text = (done / "defects.md").read_text()
    assert "Vacancy cells that have melted: 1 of Cu; left out." in text
    assert "Not in" in text
    assert "Ge, Mo, Ni" in text
    assert (done / "defects.png").stat().st_size > 10_000


def test_a_relaxed_vacancy_costs_what_the_potential_says(done, models, data):
    potential = Potential.from_folder(models[0])
    it = material([data / "mlearn/Cu.extxyz.gz"])
    row = rows_of(done)["chgnet: Cu vacancy"]
    # The bulk is at its minimum, and any force is below 1000 eV/Å: the defect stays where it starts.
    start = with_defect(it.bulk.cube, "fcc", it.repeat, "vacancy")
    e, cube = (p["energy"] for p in potential.predict([start, it.bulk.cube]))
    assert row["atoms"] == 3
    assert row["energy"] == pytest.approx(e - 3 / 4 * cube, abs=1e-4)


def test_a_run_that_goes_on_gives_the_same_tables_without_computing(done, models, data, monkeypatch):
    before = (done / "defects.md").read_text()
    monkeypatch.setattr(Potential, "predict_graphs", None)
    main(Settings(model=tuple(models), out=done, data=data, fmax=1e3, steps=40))
    assert (done / "defects.md").read_text() == before


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
