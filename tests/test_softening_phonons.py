"""The experiment on phonon softening, on crystals whose reference frequencies are the potential's own."""

import gzip
import json
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase.build import bulk

from experiments.softening import phonons as softening_phonons
from experiments.softening.phonons import CELLS, Settings, main, representatives
from jaxmlip.crystals import batching
from jaxmlip.crystals.symmetry import reduced_mesh, space_group
from jaxmlip.phonons.modes import Modes, mesh_modes
from jaxmlip.studies.phonondb import FREQUENCIES_FILE, STRUCTURES_FILE, Material, MeshModes
from jaxmlip.studies.softening import shared_rooms
from jaxmlip.studies.study import MissingDataError

MESH = (2, 2, 2)
SCALE = 0.8  # of the potential's frequencies against those that are called DFT's


def write_reference(folder, potential) -> None:
    """The two files of the data set, for rocksalt and zincblende, with frequencies of `potential` / SCALE."""
    crystals = [bulk("NaCl", "rocksalt", 5.0), bulk("ZnS", "zincblende", 5.6)]
    columns = {name: {} for name in ("mp_id", "frequencies", "weights", "qpoints", "q_mesh")}
    # The rooms that the experiment takes, so that both share programs.
    rooms = shared_rooms([batching.need([potential.graph(atoms)]) for atoms in crystals])
    for k, (atoms, number) in enumerate(zip(crystals, (225, 216), strict=True)):
        name = str(atoms.symbols)
        atoms.info = {"mp_id": f"mp-{k}", "name": name, "symm.no": number}
        modes = mesh_modes(potential, atoms, MESH, method="exact", room=rooms[k])
        # Another member of each star, in another order, as another program has them.
        q, weights = modes.q_points[::-1], modes.mesh.weights[::-1]
        row = (f"mp-{k}", modes.frequencies[::-1] / SCALE, weights, -q, np.array(MESH))
        for column, values in zip(columns.values(), row, strict=True):
            column[str(k)] = values if isinstance(values, str) else values.tolist()
    folder.mkdir(parents=True)
    ase.io.write(folder / STRUCTURES_FILE, crystals)
    with gzip.open(folder / FREQUENCIES_FILE, "wt") as file:
        json.dump(columns, file)


@pytest.fixture
def settings(tmp_path, any_potential) -> Settings:
    write_reference(tmp_path / "data/phonondb_PBE_103", any_potential)
    any_potential.save(tmp_path / "model")
    return Settings(
        model=(str(tmp_path / "model"),),
        data=tmp_path / "data",
        out=tmp_path / "out",
        supercell=16,  # eight cells, which the mesh fits
        steps=2,
        examples=False,
    )


def record(settings) -> dict:
    return json.loads((settings.out / "record.json").read_text())


def test_a_reference_of_a_known_scale_gives_that_ratio_and_a_second_run_computes_nothing(
    settings, monkeypatch, capsys
):
    main(settings)
    first = record(settings)
    rows = [row for row in first["rows"].values() if row.get("cell") == CELLS[0]]
    assert [row["anions"] for row in rows] == ["halide", "chalcogenide"]
    for row in rows:
        for of in ("maximum", "mean", "lowest"):
            assert row["hessian"][of] == pytest.approx(SCALE * row["dft"][of], rel=1e-3, abs=1e-4)
        for of in ("maximum", "lowest"):
            assert row["displaced"][of] == pytest.approx(row["hessian"][of], rel=0.03, abs=0.1)
    # Two steps bring nothing to rest: that is said, and leaves no row of a relaxed cell.
    resting = [row for key, row in first["rows"].items() if key.endswith("at rest")]
    assert all("did not come to rest" in row["failed"] for row in resting)
    assert "2 of 4 rows failed" in capsys.readouterr().out

    def never(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(softening_phonons, "spectra_of", never)
    main(settings)
    assert record(settings)["tables"] == first["tables"]


def test_every_wave_vector_of_dft_finds_its_star_and_other_weights_are_refused():
    atoms = bulk("ZnS", "zincblende", 5.2)
    mesh = reduced_mesh(MESH, space_group(atoms))
    other = mesh.q_points[::-1] @ space_group(atoms).inverse[7]  # another member of each star, upside down
    modes = Modes(atoms, mesh.q_points, None, None, None, 0, 0, "exact", mesh=mesh)
    dft = MeshModes(other, mesh.weights[::-1], None)
    material = Material("mp-1", "ZnS", "zincblende", atoms, MESH, None, dft)
    np.testing.assert_array_equal(representatives(modes, material), np.arange(len(other))[::-1])
    wrong = replace(dft, weights=mesh.weights)
    with pytest.raises(ValueError, match=r"mp-1 \(ZnS\) and their weights are not those of a mesh"):
        representatives(modes, replace(material, modes=wrong))


def test_missing_data_say_what_to_put_where(tmp_path):
    with pytest.raises(MissingDataError, match=r"phonondb_PBE_103 is not in .*k_SRME"):
        main(Settings(data=tmp_path, out=tmp_path / "out"))
