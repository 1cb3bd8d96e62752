"""Force slopes by group: a potential's own forces have a slope of 1, and groups are what they say."""

import json
import os
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import QUICK
from small_studies import go
from small_studies.softening import OWN, STAND_INS, Morse, rattled

from experiments.softening import groups
from experiments.softening.forces import Settings
from experiments.softening.groups import lattice_order
from jaxmlip.studies.softening_scale import Frame, evenly, forces_by_material


def labelled(atoms: Atoms, forces, energy=0.0, stress=(0.0,) * 6, **info) -> Atoms:
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True, info=info)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=np.array(stress))
    return atoms


def lay(root: Path, name: str, frames: list[Atoms]) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    ase.io.write(root / name, frames, format="extxyz")


def has_a_slope_of_2(done, name: str) -> None:
    """Against half of its own forces."""
    summary, published = done.record["tables"][:2]
    found = {row[1]: dict(zip(summary["columns"], row, strict=True)) for row in summary["rows"]}
    assert list(found) == ["crystal 300 K", "WBM high-energy", "all off equilibrium"]
    for row, (materials, frames) in zip(found.values(), [(1, 3), (1, 3), (1, 3)], strict=True):
        assert (row["materials"], row["frames"]) == (materials, frames)
        assert row["slope"]["value"] == pytest.approx(2, rel=1e-4)
        assert row["r² (slope of pure shrinkage)"]["value"] == pytest.approx(1, abs=1e-6)
        assert row["cMAE / eV/Å"]["value"] < 1e-4 * row["MAE / eV/Å"]["value"]
    failed = {key: row["failed"] for key, row in done.rows.items() if "failed" in row}
    assert list(failed) == [f"{name}: WBM high-energy: wbm-1-2"]
    assert "frame-1: found no forces" in next(iter(failed.values()))
    assert any("maml_MoNbTaW is not in" in line for line in done.record["findings"])
    assert "published" in published["title"]


def test_against_half_of_its_own_forces_a_stand_in_has_a_slope_of_2(ran):
    has_a_slope_of_2(ran("softening.forces"), OWN)


def test_against_half_of_its_own_forces_a_network_has_a_slope_of_2(ran):
    has_a_slope_of_2(ran("softening.forces", QUICK), QUICK)


def test_materials_of_some_unknown_elements_are_left_out_and_the_others_compared(ran, tmp_path, monkeypatch):
    settings = replace(ran("softening.forces").settings, model=("copper",), out=tmp_path / "out")
    copper = Morse("copper")
    copper.elements = (29,)
    monkeypatch.setitem(STAND_INS, "copper", copper)
    go("softening.forces", settings)
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert any(
        "elements of 1 materials, which are left out: wbm-1-1 (WBM" in line for line in record["findings"]
    )
    assert record["tables"][0]["rows"][0][4]["value"] == pytest.approx(2, rel=1e-4)


def test_a_model_that_errs_by_giving_means_is_told_apart_from_a_soft_one(tmp_path, monkeypatch):
    """Both have a slope of 0.8; only for the first one does shrinkage explain it."""
    rng = np.random.default_rng(0)
    given = [rng.normal(size=(200, 3)) for _ in range(3)]
    beyond = [x + 0.5 * rng.normal(size=x.shape) for x in given]  # what the model cannot know: r² = 0.8
    crystals = [rattled(bulk("Cu", cubic=True).repeat((5, 5, 2)), k) for k in range(3)]
    kinds = {"group": "AIMD-NVT", "description": "frame"}
    frames = [labelled(a, x, temperature_K=300, **kinds) for a, x in zip(crystals, beyond, strict=True)]
    frames += [labelled(a, x / 0.8, temperature_K=900, **kinds) for a, x in zip(crystals, given, strict=True)]
    lay(tmp_path, "mlearn/Cu.extxyz", frames)
    monkeypatch.setattr(
        "experiments.softening.forces.forces_by_material",
        lambda _, left: iter([(name, given) for name in left]),
    )
    go("softening.forces", Settings((OWN,), tmp_path, out=tmp_path / "out"))
    record = json.loads((tmp_path / "out/record.json").read_text())
    slopes = {row[1]: (row[4]["value"], row[9]["value"]) for row in record["tables"][0]["rows"]}
    assert slopes["crystal 300 K"] == pytest.approx((0.8, 1.0), rel=0.1)
    assert slopes["hot crystal"] == pytest.approx((0.8, 0.0), abs=1e-6)


def test_what_is_molten_is_measured_and_not_read_off_a_label(tmp_path):
    crystal = rattled(bulk("Si", cubic=True).repeat(2), 0, 0.15)
    melt = crystal.copy()
    melt.set_scaled_positions(np.random.default_rng(0).random((64, 3)))
    assert lattice_order(bulk("Si", cubic=True).repeat(2)) == pytest.approx(1)
    assert lattice_order(crystal) > 0.85
    assert lattice_order(melt) < 0.5
    shift = crystal.copy()
    shift.translate([0.3, 1.0, 2.0])
    assert lattice_order(shift) == pytest.approx(lattice_order(crystal))
    force = np.ones((64, 3))
    frames = [
        labelled(melt, force, group="Vacancy", temperature_K=300, description="frame"),
        labelled(crystal, force, group="Vacancy", temperature_K=3374, description="frame"),
        labelled(crystal, force, group="AIMD-NVT", temperature_K=300, description="expanded structure"),
        labelled(crystal, force, group="AIMD-NVT", temperature_K=1518, description="frame"),
        labelled(crystal, force, group="Elastic", description="frame"),
        labelled(crystal, 0 * force, group="Elastic", description="frame"),
        labelled(crystal, force, group="Surface", description="frame"),
    ]
    lay(tmp_path, "mlearn/Si.extxyz", frames)
    found = {group: len(frames) for (group, _), frames in groups.mlearn(tmp_path / "mlearn").frames.items()}
    assert found == {"melt": 1, "vacancy": 1, "strained": 2, "hot crystal": 1}


def test_alloys_oxides_and_displacements_are_grouped_by_what_the_files_say(tmp_path):
    cell = bulk("Mo", cubic=True).repeat(3)
    notes = ["Md=300-1", "Md=md-3000-2", "Md_90=-3", "Md=md110-300-4", "unrelax=5", "relax=5", "Sur=100"]
    frames = [labelled(cell, np.ones((54, 3)), notes=note) for note in notes]
    for name in ("maml/Mo_AIMD.extxyz", "maml/Multinary_Test.extxyz", "maml/Mo_Surface.extxyz"):
        lay(tmp_path, name, frames)
    found = {key: len(frames) for key, frames in groups.maml(tmp_path / "maml").frames.items()}
    kinds = {"crystal 300 K": 1, "hot crystal": 1, "strained": 2, "unrelaxed alloy": 1, "relaxed alloy": 1}
    assert found == {(g, m): n for m in ("maml/Mo", "maml/MoNbTaW") for g, n in kinds.items()}

    salt = bulk("MgO", "rocksalt", 4.2)
    squeezed = -40 / 160.2 * np.array([1, 1, 1, 0, 0, 0])
    frames = [
        labelled(salt, np.ones((2, 3)), e, s)
        for e, s in ((0, squeezed * 0), (0, squeezed), (3, 0 * squeezed))
    ]
    lay(tmp_path, "poly/MgO.extxyz", frames)
    found = groups.pypolymlp(tmp_path / "poly", 30, 1)
    assert {key: len(frames) for key, frames in found.frames.items()} == {
        ("displaced oxide", "pypolymlp/MgO"): 1
    }
    assert found.left_out == ["pypolymlp/MgO: 2 of 3 frames are beyond 30 GPa or 1 eV/atom"]

    for name in ("Si-nosym__PBE", "Si__PBE", "SnO2__PBEsol"):
        lay(tmp_path, f"phonopy/{name}.extxyz", frames)
    found = groups.phonopy(tmp_path / "phonopy").frames
    assert {key: len(frames) for key, frames in found.items()} == {("small displacement", "phonopy/Si"): 6}


def test_frames_come_back_by_material_in_the_order_they_were_given(any_potential):
    copper, salt = bulk("Cu", cubic=True), bulk("NaCl", "rocksalt", 5.7)
    materials = {
        "Cu": [Frame(str(k), rattled(copper, k), np.zeros((4, 3))) for k in range(3)],
        "NaCl": [Frame(str(k), rattled(salt.repeat((k + 1, 1, 1)), k), np.zeros((0, 3))) for k in range(2)],
    }
    found = dict(forces_by_material(any_potential, materials))
    alone = iter(any_potential.predict([f.atoms for frames in materials.values() for f in frames]))
    for name in materials:
        for forces in found[name]:
            np.testing.assert_allclose(forces, next(alone)["forces"], atol=1e-9)
    assert not list(forces_by_material(any_potential, {}))
    assert evenly(list(range(9)), 3) == [0, 4, 8]
    with pytest.raises(ValueError, match="found 0 frames"):
        evenly([1], 0)


def test_the_vacancy_frames_of_mlearn_are_as_their_readme_warns():
    root = os.environ.get("JAXMLIP_DATA")
    if root is None or not (Path(root) / "mlearn/Si.extxyz.gz").exists():
        pytest.skip("needs mlearn/Si.extxyz.gz in the folder that JAXMLIP_DATA names")
    frames = ase.io.read(Path(root) / "mlearn/Si.extxyz.gz", ":")
    order = {T: [] for T in (300, 3374)}
    for atoms in frames:
        if atoms.info["group"] == "Vacancy":
            order[atoms.info["temperature_K"]].append(lattice_order(atoms))
    assert np.mean(np.array(order[300]) < groups.ORDERED) > 0.9
    assert np.mean(np.array(order[3374]) > groups.ORDERED) > 0.9
