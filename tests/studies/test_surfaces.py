"""Surface energies: a model against its own labels errs by nothing, and DFT's are those that are known."""

import os
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from conftest import SHORT
from small_studies import Ran, go
from small_studies.softening import OWN, SOFT, slab

from experiments.datasets import MissingDataError, read
from experiments.softening import surfaces
from experiments.softening.bulk import undeformed
from experiments.softening.surfaces import energy_of_surface, facet_of, normal, slabs_of
from jaxmlip.units import J_PER_M2_PER_EV_PER_A2

FACETS = ("(100)", "(210)")


def test_a_model_agrees_with_its_own_labels_and_a_softer_one_does_not(ran):
    done = ran("softening.surfaces")
    for facet in FACETS:
        own, soft = (done.rows[f"{name}: mlearn/Cu {facet}"] for name in (OWN, SOFT))
        # No relaxation moves anything: the bulk is at its minimum, and any force is below 1000 eV/Å.
        for way in ("as_dft", "relaxed"):
            np.testing.assert_allclose(own[way], own["dft"], atol=2e-6)
        assert soft["as_dft"] == pytest.approx(0.75 * soft["dft"], rel=1e-6)
    assert "| own | as in DFT | 2 | 0.000 " in done.text
    assert "Frames of surfaces without a vacuum of 5.0 Å: 1 of mlearn/Cu; left out." in done.text
    assert ": mlearn/Li, mlearn/Si, mlearn/Ni, mlearn/Mo, maml/Mo" in done.text


def test_a_network_agrees_with_the_surfaces_that_it_labelled_itself(ran):
    rows = ran("softening.surfaces", SHORT).rows
    for facet in FACETS:
        own = rows[f"{SHORT}: mlearn/Cu {facet}"]
        for way in ("as_dft", "relaxed"):
            np.testing.assert_allclose(own[way], own["dft"], atol=2e-6)


def test_a_slab_that_does_not_come_to_rest_counts_as_in_dft_only(ran, tmp_path):
    settings = replace(ran("softening.surfaces").settings, model=(OWN,), out=tmp_path, fmax=1e-6, steps=0)
    go("softening.surfaces", settings)
    found = Ran("softening.surfaces", settings)
    assert {row["relaxed"] for row in found.rows.values()} == {None}
    assert all("after 0 steps" in row["reason"] for row in found.rows.values())
    assert "2 slabs or their bulk did not come to rest" in found.text


def test_a_set_without_a_bulk_crystal_is_left_out_and_named(ran, tmp_path):
    settings = ran("softening.surfaces").settings
    (tmp_path / "mlearn").mkdir()
    slabs = ase.io.read(settings.data / "mlearn/Cu.extxyz.gz", "1:")
    ase.io.write(tmp_path / "mlearn/Cu.extxyz.gz", slabs)
    words = "mlearn/Cu is left out: found no undeformed crystal and 0 uniaxial strains among 0 frames"
    with pytest.raises(RuntimeError, match=words):
        go("softening.surfaces", replace(settings, out=tmp_path, data=tmp_path, materials=("mlearn/Cu",)))


def test_a_set_that_was_asked_for_and_is_missing_says_where_it_is_published(ran, tmp_path):
    settings = replace(ran("softening.surfaces").settings, out=tmp_path, materials=("mlearn/Ni",))
    with pytest.raises(MissingDataError, match=r"mlearn/Ni\.extxyz\.gz is not in .*github\.com.*--data"):
        go("softening.surfaces", settings)


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
    with pytest.raises(ValueError, match="needed an undeformed crystal or 6"):
        undeformed([f for f in frames if f.atoms.info.get("mode", 9) > 2 and "mode" in f.atoms.info])
