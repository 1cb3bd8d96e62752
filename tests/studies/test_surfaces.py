"""Surface energies: a model against its own labels errs by nothing, and DFT's are those that are known."""

import json
import os
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from element_frames import CONFIGS, save_models, write

from experiments.datasets import MissingDataError, read
from experiments.softening import surfaces
from experiments.softening.bulk import undeformed
from experiments.softening.surfaces import Settings, energy_of_surface, facet_of, main, normal, slabs_of
from jaxmlip.mechanics.relaxation import relax
from jaxmlip.potential import Potential
from jaxmlip.units import J_PER_M2_PER_EV_PER_A2


def slab(layers: int, a: float = 4.0, along: int = 2) -> Atoms:
    """Copper with two faces (100) and 6 Å between them."""
    atoms = bulk("Cu", a=a, cubic=True).repeat([layers if k == along else 1 for k in range(3)])
    cell = atoms.cell.array
    cell[along, along] += 6.0
    atoms.set_cell(cell)
    return atoms


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def data(tmp_path_factory, models) -> Path:
    """Labels by the first of the models, in the layout of mlearn."""
    potential = Potential.from_folder(models[0])
    a = relax(potential, bulk("Cu", a=4.4, cubic=True), fix_symmetry=True, fmax=0.05).atoms.cell.lengths()[0]
    rough = slab(2, a)
    rough.rattle(0.05, seed=1)
    frames = [
        (bulk("Cu", a=a, cubic=True), {"group": "Elastic", "description": "Ground state crystal"}),
        (slab(1, a), {"group": "Surface", "description": "Cu_surface_mp/Cu_mp-30_(1_0_0)"}),
        (rough, {"group": "Surface", "description": "Cu_surface_mp/Cu_mp-30_(2_1_0)"}),
        (bulk("Cu", a=a, cubic=True), {"group": "Surface", "description": "no vacuum"}),
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
    for facet in ("(100)", "(210)"):
        own, *others = (rows[f"{name}: mlearn/Cu {facet}"] for name in CONFIGS)
        # No relaxation moves anything: the bulk is at its minimum, and any force is below 1000 eV/Å.
        for way in ("as_dft", "relaxed"):
            np.testing.assert_allclose(own[way], own["dft"], atol=2e-6)
        for other in others:
            assert abs(other["as_dft"] - other["dft"]) > 1e-5
    text = (done / "surfaces.md").read_text()
    assert "| chgnet | as in DFT | 2 | 0.000 " in text
    assert "Frames of surfaces without a vacuum of 5.0 Å: 1 of mlearn/Cu; left out." in text
    assert ": mlearn/Li, mlearn/Si, mlearn/Ni, mlearn/Mo, maml/Mo" in text
    assert (done / "surfaces.png").stat().st_size > 10_000


def test_a_run_that_goes_on_gives_the_same_tables_without_computing(done, models, data, monkeypatch):
    before = (done / "surfaces.md").read_text()
    monkeypatch.setattr(Potential, "predict_graphs", None)
    main(Settings(model=tuple(models), out=done, data=data, fmax=1e3, steps=40))
    assert (done / "surfaces.md").read_text() == before


def test_a_slab_that_does_not_come_to_rest_counts_as_in_dft_only(tmp_path, models, data):
    main(Settings(model=(models[0],), out=tmp_path, data=data, fmax=1e-6, steps=0))
    rows = rows_of(tmp_path)
    assert {row["relaxed"] for row in rows.values()} == {None}
    assert all("after 0 steps" in row["reason"] for row in rows.values())
    assert "2 slabs or their bulk did not come to rest" in (tmp_path / "surfaces.md").read_text()


def test_an_element_that_a_model_does_not_know_is_left_out_and_named(tmp_path, models, data):
    replace(Potential.from_folder(models[0]), name="salt", elements=(11, 17)).save(tmp_path / "salt")
    with pytest.raises(RuntimeError, match=r"salt does not know .* mlearn/Cu"):
        main(Settings(model=(str(tmp_path / "salt"),), out=tmp_path / "out", data=data))


def test_a_set_without_a_bulk_crystal_is_left_out_and_named(tmp_path, models, data):
    (tmp_path / "mlearn").mkdir()
    slabs = ase.io.read(data / "mlearn/Cu.extxyz.gz", "1:")
    ase.io.write(tmp_path / "mlearn/Cu.extxyz.gz", slabs)
    with pytest.raises(
        RuntimeError,
        match="mlearn/Cu is left out: found no undeformed crystal and 0 uniaxial strains among 0 frames",
    ):
        main(Settings(model=(models[0],), out=tmp_path, data=tmp_path, materials=("mlearn/Cu",)))


def test_missing_and_unknown_sets_say_what_to_do(tmp_path, models, data):
    with pytest.raises(MissingDataError, match=r"mlearn/Ni\.extxyz\.gz is not in .*github\.com.*--data"):
        main(Settings(model=(models[0],), out=tmp_path, data=data, materials=("mlearn/Ni",)))
    with pytest.raises(ValueError, match="found mlearn/Xx, needed names of data: mlearn/Li"):
        main(Settings(model=(models[0],), out=tmp_path, data=data, materials=("mlearn/Xx",)))


@pytest.mark.parametrize("along", [0, 1, 2])
def test_the_surface_is_found_whichever_lattice_vector_leaves_it(along):
    atoms = slab(2, 4.0, along)
    assert normal(atoms) == along
    assert normal(bulk("Cu", cubic=True)) is None
    # 8 atoms of 3 eV, 0.5 eV for each face of 16 Å²
    assert energy_of_surface(atoms, -23.0, -3.0) == pytest.approx(0.5 / 16)


def test_facets_are_called_as_the_files_call_them():
    assert facet_of({"description": "Si_surface_mp/Si_mp-149_(1_1_0)_reconstructed"}) == "(110) rec."
    assert facet_of({"notes": "Sur=321"}) == "(321)"
    assert facet_of({"notes": "mvl_id=59c55cc6ffc31da19ce29317"}) == ""


def real(name: str) -> list[Path]:
    root = Path(os.environ.get("JAXMLIP_DATA", "/nowhere"))
    files = [root / file for file in surfaces.files_of(name)]
    if not all(file.exists() for file in files):
        pytest.skip(f"no {name}: JAXMLIP_DATA names no folder that has {files[0].name}")
    return files


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("mlearn/Li", 0.45, 0.55), ("mlearn/Si", 1.28, 1.66), ("mlearn/Mo", 2.7, 3.5), ("maml/Mo", 2.8, 3.45)],
)
def test_dft_surface_energies_of_all_facets_are_as_they_should_be(name, low, high):
    found, slabs, _ = slabs_of(real(name))
    values = [energy_of_surface(s.atoms, s.labels.energy, found.energy) for s in slabs.values()]
    values = np.array(values) * J_PER_M2_PER_EV_PER_A2
    assert len(values) >= 11
    assert low < values.min() <= values.max() < high


@pytest.mark.parametrize(
    ("name", "facet", "value"),
    [("W", "(110)", 3.21), ("W", "(100)", 3.96), ("Nb", "(110)", 2.07), ("Ta", "(110)", 2.34)],
)
def test_dft_surface_energies_of_maml_are_those_that_are_known(name, facet, value):
    found, slabs, _ = slabs_of(real(f"maml/{name}"))
    gamma = energy_of_surface(slabs[facet].atoms, slabs[facet].labels.energy, found.energy)
    assert gamma * J_PER_M2_PER_EV_PER_A2 == pytest.approx(value, abs=0.01)


def test_the_energy_of_a_crystal_without_its_frame_follows_from_strained_ones():
    (path,) = real("mlearn/Si")
    frames = [f for f in read(path) if f.atoms.info["group"] == "Elastic"]
    exact = undeformed(frames)
    fitted = undeformed([f for f in frames if f.atoms.info["description"] != "Ground state crystal"])
    assert fitted.kind == exact.kind == "diamond"
    assert fitted.a == pytest.approx(exact.a, abs=1e-4)
    assert fitted.energy == pytest.approx(exact.energy, abs=2e-4)
    with pytest.raises(ValueError, match="needed one or 6"):
        undeformed([f for f in frames if f.atoms.info.get("mode", 9) > 2 and "mode" in f.atoms.info])
