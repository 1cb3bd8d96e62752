"""Barriers: what a potential labelled itself is found again; hops are read; hosts are what they should be."""

import json
import os
from pathlib import Path

import ase.io
import numpy as np
import pytest
from conftest import QUICK
from small_studies.softening import OWN, as_dict, magnesium_hop

import experiments.softening.migration as migration
from experiments.softening.hops import read_hops
from jaxmlip.mechanics.neb import barriers, interpolated, path_length


def agrees_on_silicon(done) -> None:
    """Whether the barrier and the forces are those that the potential labelled itself."""
    images = ase.io.read(done.settings.data / "emmet_testfiles/Si_vacancy_NEB_final_images.extxyz", ":")
    energies = [image.info["dft_energy"] for image in images]
    (line,) = done.record["tables"][0]["rows"]
    barrier = max(energies) - (energies[0] + energies[-1]) / 2
    assert line[1:4] == pytest.approx([barrier] * 3, abs=1e-4)
    assert line[4]["value"] == pytest.approx(1, abs=1e-3)
    assert line[5] == pytest.approx(0, abs=1e-4)


def test_a_network_agrees_with_the_barrier_and_the_forces_it_labelled_itself(ran):
    done = ran("softening.migration", QUICK)
    agrees_on_silicon(done)
    assert "approx_neb is not in" in done.text


def test_a_stand_in_agrees_with_itself_and_hops_of_both_layouts_have_the_same_barrier(ran):
    done = ran("softening.migration")
    agrees_on_silicon(done)
    hops, *_ = done.record["tables"][-1]["rows"]
    assert hops[1] == 2
    assert hops[2]["value"] == pytest.approx(0, abs=1e-4)
    hops = {f"{OWN}: hop atomate a1 0+1", f"{OWN}: hop emmet mp-1 0+1"}
    assert set(done.rows) == {f"{OWN}: Si vacancy", *hops}


def test_hops_that_cannot_be_used_are_told_apart_from_files_that_cannot_be_read(tmp_path):
    images = magnesium_hop()
    good = {"images": [as_dict(i) for i in images], "energies": [0.0, 0.5, 0.4, 0.1]}
    path = tmp_path / "hops.json"
    path.write_text(json.dumps({"hops": {"a": good, "b": good | {"energies": None}, "c": {}}}))
    hops, failed = read_hops(path)
    assert [hop.name for hop in hops] == ["hops a"]
    assert hops[0].mobile == 2
    assert list(failed) == ["hops b", "hops c"]
    assert "fewer than three images" in failed["hops b"]
    path.write_text('{"barrier": 0.3}')
    with pytest.raises(ValueError, match=r"found an object with barrier in .*hops\.json, needed"):
        read_hops(path)
    path.write_text("cos(0)")
    with pytest.raises(ValueError, match="is not JSON"):
        read_hops(path)


def test_the_document_of_emmet_has_the_barrier_that_it_states():
    root = os.environ.get("JAXMLIP_DATA", "")
    path = Path(root) / "emmet_testfiles/Si_neb_doc.json.bz2"
    if not path.is_file():
        pytest.skip("emmet_testfiles/Si_neb_doc.json.bz2 is not in the folder that JAXMLIP_DATA names")
    (hop,), failed = read_hops(path)
    assert not failed
    assert barriers(hop.energies)[:2] == pytest.approx((0.158480, 0.158482), abs=1e-6)
    # The atoms of its last image are in another order: one way of 2.4 Å, and none across the cell.
    assert path_length(hop.images)[-1] == pytest.approx(2.36, abs=0.01)


@pytest.mark.parametrize(
    ("host", "formula", "neighbours", "hop"),
    [
        ("MgO", "Mg31O32", 6, 4.25 / 2**0.5),
        ("MgSc2S4", "Mg7S32Sc16", 4, 10.63 * 3**0.5 / 4),
        ("MgTi2S4", "Mg7S32Ti16", 4, 10.2 * 3**0.5 / 4),
        ("TiS2", "MgS36Ti18", 6, 3.41),
    ],
)
def test_the_mobile_magnesium_has_the_neighbours_of_its_host(host, formula, neighbours, hop, monkeypatch):
    monkeypatch.setattr(migration, "_at_rest", lambda potential, cell: cell)
    start, end = migration.HOSTS[host](None)
    assert start.get_chemical_formula("hill") == formula
    moved = np.flatnonzero(np.abs(end.positions - start.positions).max(axis=1) > 1e-6)
    assert start.symbols[moved].get_chemical_formula() == "Mg"
    assert np.linalg.norm(
        interpolated(start, end, 1, "linear")[1].positions[moved] - start.positions[moved]
    ) == (pytest.approx(hop / 2, rel=1e-6))
    for atoms in (start, end):
        anions = np.flatnonzero((atoms.symbols == "O") | (atoms.symbols == "S"))
        d = np.sort(atoms.get_distances(moved[0], anions, mic=True))
        assert d[neighbours - 1] == pytest.approx(d[0], rel=1e-3)
        assert d[neighbours] > 1.3 * d[0]
