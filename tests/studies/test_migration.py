"""Barriers: what a potential labelled itself is found again; hops are read; hosts are what they should be."""

import bz2
import json
import os
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import small_potential
from pymatgen.io.ase import AseAtomsAdaptor
from stand_in import StandIn

import experiments.softening.migration as migration
from experiments.softening.hops import read_hops
from experiments.softening.migration import Settings, main
from jaxmlip.mechanics.neb import barriers, interpolated, path_length, vacancy_hop

LOOSE = 1e3  # eV/Å: every guess is at rest, so that barriers are those of the guess


def saved(name: str, folder):
    potential = small_potential(name, "float32")
    potential.save(folder / name)
    return potential


class Springs(StandIn):
    """All atoms are tied to one place."""

    name = "springs"

    def predict_one(self, species, positions, cell):
        x = positions - (0, 1, 2)
        return {"energy": float(np.sum(x**2)), "forces": -2 * x, "stress": np.eye(3)}


def silicon() -> list[Atoms]:
    """A hop in a cell of four atoms, with the last image in another order."""
    cell = bulk("Si").repeat((2, 1, 1))
    cell.rattle(0.05, seed=1)
    images = interpolated(*vacancy_hop(cell, 0, 2), 3, "linear")
    images[-1] = images[-1][[1, 0, 2]]
    return images


def write_silicon(potential, folder) -> list[float]:
    """The files of emmet with labels of the potential; returns the energies of the images."""
    folder.mkdir(parents=True)
    images = silicon()
    labels = potential.predict(images)  # one program with the experiment
    for k, (image, p) in enumerate(zip(images, labels, strict=True)):
        image.info |= {"image": k, "step": 0, "dft_energy": p["energy"]}
        image.calc = SinglePointCalculator(image, energy=p["energy"], forces=p["forces"], stress=p["stress"])
    ase.io.write(folder / "Si_vacancy_NEB_ionic_steps.extxyz.gz", images, format="extxyz")
    ase.io.write(folder / "Si_vacancy_NEB_final_images.extxyz", images)
    return [p["energy"] for p in labels]


def hop_images() -> list[Atoms]:
    host = bulk("TiS", "zincblende", 5.0)
    start, end = host.copy(), host.copy()
    start.append("Mg")
    end.append("Mg")
    start.positions[-1] = (0.4, 0.5, 0.5) @ host.cell.array
    end.positions[-1] = (0.6, 0.5, 0.5) @ host.cell.array
    return interpolated(start, end, 2, "linear")


def as_dict(atoms: Atoms) -> dict:
    return json.loads(json.dumps(AseAtomsAdaptor.get_structure(atoms).as_dict(), default=str))


def atomate(images, energies) -> dict:
    """A document of the approx_neb collection."""
    outputs = [
        {"output": {"structure": as_dict(i), "energy": float(e)}}
        for i, e in zip(images, energies, strict=True)
    ]
    inner = [{"index": k, **o} for k, o in enumerate(outputs[1:-1])]
    return {"wf_uuid": "a1", "end_points": [outputs[0], outputs[-1]], "images": {"0+1": inner[::-1]}}


@pytest.mark.one_model
@pytest.mark.parametrize("name", ["chgnet-0.3", "m3gnet-smooth", "mace-density"])
def test_a_potential_agrees_with_the_barrier_and_the_forces_it_labelled_itself(name, tmp_path, capsys):
    potential = saved(name, tmp_path)
    energies = write_silicon(potential, tmp_path / "data/emmet_testfiles")
    settings = Settings((str(tmp_path / name),), tmp_path / "data", tmp_path / "out", hosts=(), fmax=LOOSE)
    main(settings)
    record = json.loads((tmp_path / "out/record.json").read_text())
    (line,) = record["tables"][0]["rows"]
    barrier = max(energies) - (energies[0] + energies[-1]) / 2
    assert line[1:4] == pytest.approx([barrier] * 3, abs=1e-4)
    assert line[4]["value"] == pytest.approx(1, abs=1e-3)
    assert line[5] == pytest.approx(0, abs=1e-4)
    assert "approx_neb is not in" in capsys.readouterr().out
    assert (tmp_path / "out/migration.png").stat().st_size > 1e4


def test_hops_of_both_layouts_give_the_same_barrier_and_resume_without_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(migration, "load_models", lambda names: {"springs": Springs()})
    images = hop_images()
    energies = [p["energy"] for p in Springs().predict(images)]
    folder = tmp_path / "data/approx_neb"
    folder.mkdir(parents=True)
    (folder / "atomate.json").write_text(json.dumps([atomate(images, energies)]))
    emmet = {"mp-1": {"hops": {"0+1": {"images": [as_dict(i) for i in images], "energies": energies}}}}
    (folder / "emmet.json.bz2").write_bytes(bz2.compress(json.dumps(emmet).encode()))
    settings = Settings(
        (str(tmp_path / "chgnet-0.3"),), tmp_path / "data", tmp_path / "out", hosts=(), fmax=LOOSE
    )
    main(settings)
    before = (tmp_path / "out/migration.md").read_text()
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert record["tables"][0]["rows"][0][1] == 2
    assert record["tables"][0]["rows"][0][2]["value"] == pytest.approx(0, abs=1e-4)
    assert set(record["rows"]) == {"springs: hop atomate a1 0+1", "springs: hop emmet mp-1 0+1"}

    monkeypatch.setattr("jaxmlip.mechanics.neb.approximate_bands", lambda *_: pytest.fail("computed again"))
    main(settings)
    assert (tmp_path / "out/migration.md").read_text() == before


def test_hops_that_cannot_be_used_are_told_apart_from_files_that_cannot_be_read(tmp_path):
    images = hop_images()
    good = {"images": [as_dict(i) for i in images], "energies": [0.0, 0.5, 0.4, 0.1]}
    path = tmp_path / "hops.json"
    path.write_text(json.dumps({"hops": {"a": good, "b": good | {"energies": None}, "c": {}}}))
    hops, failed = read_hops(path)
    assert [hop.name for hop in hops] == ["hops a"]
    assert hops[0].mobile == 2
    assert list(failed) == ["hops b", "hops c"]
    assert "fewer than three images" in failed["hops b"]
    path.write_text('{"barrier": 0.3}')
    with pytest.raises(ValueError, match=r"hops\.json holds an object with barrier; needed"):
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
