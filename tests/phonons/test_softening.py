"""Phonon softening: the reference, the summary, the record and its figure; the experiment on known scales."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from PIL import Image
from rich.console import Console
from small_studies.softening import FREQUENCY, MESH, write_phonondb

from experiments.softening.phonons import CELLS
from jaxmlip.crystals import batching
from jaxmlip.crystals.symmetry import reduced_mesh, space_group
from jaxmlip.data.readers.phonondb import STRUCTURES_FILE, MeshModes, primitive_cell
from jaxmlip.derivatives.memory_plan import MemoryLimitError
from jaxmlip.phonons.lattice import mesh_modes
from jaxmlip.studies.phonondb import Material, Spectrum, builtin_materials, read_phonondb
from jaxmlip.studies.softening import draw, shared_shapes, softening, summary, table
from jaxmlip.studies.softening import main as command

# The crystals of these tests are not at rest in a random network.
pytestmark = pytest.mark.filterwarnings("ignore::jaxmlip.mechanics.elasticity.NotAtRestWarning")


def row(formula: str, ratio: float, displaced: float = 1.0, lowest: float = 0.0) -> dict:
    """A made-up row whose ratios are as given, those of the mean half as large."""

    def spectrum(scale, lowest=0.0):
        return {"maximum": 8.0 * scale, "mean": 4.0 * scale / 2, "lowest": lowest}

    return {
        "formula": formula,
        "structure": "rocksalt",
        "atoms": 128,
        "dft": {"maximum": 8.0, "mean": 4.0, "lowest": 0.0},
        "hessian": spectrum(ratio, lowest),
        "displaced": spectrum(displaced),
    }


@pytest.fixture
def salt() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", 5.0, cubic=True)
    atoms.info = {"mp_id": "mp-1", "name": "NaCl", "symm.no": 225}
    atoms.info["primitive_matrix"] = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return atoms


@pytest.fixture
def phonondb(tmp_path, salt) -> Path:
    write_phonondb(tmp_path / "data", [salt], [np.arange(12.0).reshape(2, 6)])
    return tmp_path / "data"


def text_of(rows) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table(rows, "a model"))
    return captured.get()


def test_the_summary_holds_the_geometric_mean_the_median_and_the_count_below_1():
    rows = [row("A", 0.5, 1.1), row("B", 0.8, 1.2), row("C", 1.25, 0.9)]
    found = summary(rows)
    highest, mean = found["hessian"]["maximum"], found["hessian"]["mean"]
    assert highest["geometric_mean"] == pytest.approx(0.5 ** (1 / 3))  # 0.5 · 0.8 · 1.25 = 0.5
    assert highest["median"] == pytest.approx(0.8)
    assert highest["below_1"] == 2
    assert mean["geometric_mean"] == pytest.approx(0.5 ** (1 / 3) / 2)
    assert mean["below_1"] == 3
    assert found["displaced"]["maximum"]["geometric_mean"] == pytest.approx((1.1 * 1.2 * 0.9) ** (1 / 3))
    assert found["displaced"]["maximum"]["below_1"] == 1
    assert found["materials"] == 3


def test_the_interval_of_the_geometric_mean_covers_it_and_shrinks_with_more_materials():
    few = [row("A", 0.7), row("B", 0.9), row("C", 1.0), row("D", 0.8)]
    widths = []
    for rows in (few, 9 * few):
        found = summary(rows)["hessian"]["maximum"]
        low, high = found["interval"]
        assert low < found["geometric_mean"] < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 3, rel=0.15)  # 1/√9


def test_a_compound_is_named_by_its_anion():
    kinds = {"NaCl": "halide", "PbTe": "chalcogenide", "LiH": "hydride", "MgO": "oxide", "BAs": "pnictide"}
    for formula, kind in (kinds | {"SiC": "carbide"}).items():
        atoms = bulk(formula, "rocksalt", 5.0)
        assert Material("", formula, "rocksalt", atoms, (1, 1, 1), Spectrum(1, 1, 0)).anions == kind


def test_imaginary_modes_are_counted_and_add_nothing_to_the_mean():
    thz = np.array([[-3.0, 1.0], [2.0, 5.0]])
    assert Spectrum.of(thz) == Spectrum(5.0, 2.0, -3.0)
    assert Spectrum.of(thz, np.array([3, 1])) == Spectrum(5.0, (3 * 0.5 + 3.5) / 4, -3.0)
    found = summary([row("A", 0.9, lowest=-0.5), row("B", 0.9, lowest=-1e-7)])
    assert found["hessian"]["with_imaginary_modes"] == 1
    assert found["displaced"]["with_imaginary_modes"] == 0


def test_a_material_without_a_real_mode_has_ratio_0_and_so_has_the_geometric_mean():
    hopeless = row("A", 1.0) | {"hessian": {"maximum": -1.0, "mean": 0.0, "lowest": -4.0}}
    assert summary([hopeless, row("B", 1.0)])["hessian"]["maximum"]["geometric_mean"] == 0


def test_the_table_shows_the_numbers_of_each_row():
    rows = [row("LiF", 0.731, 0.917, lowest=-1.23), row("MgO", 1.02, 0.855)]
    lines = {line.split()[0]: line.split() for line in text_of(rows).splitlines() if line.split()}
    # structure, N, DFT, Hessian, ratio, displaced, ratio, ratios of the mean, lowest
    assert " ".join(lines["LiF"][1:]) == "rs 128 8.00 5.85 0.731 7.34 0.917 0.365 0.459 -1.23"
    assert " ".join(lines["MgO"][1:]) == "rs 128 8.00 8.16 1.020 6.84 0.855 0.510 0.427 0.00"


def test_the_builtin_materials_are_a_spread_of_primitive_cells_with_their_source():
    materials = builtin_materials()
    assert 16 <= len(materials) <= 20
    assert {m.structure for m in materials} == {"rocksalt", "zincblende", "wurtzite"}
    for m in materials:
        assert len(m.atoms) == (4 if m.structure == "wurtzite" else 2), m.formula
        assert m.atoms.get_chemical_formula(empirical=True) in (m.formula, _reversed(m.formula))
        assert 0 < m.dft.mean < m.dft.maximum < 45, m.formula
    path = Path(__file__).parents[2] / "jaxmlip" / "studies" / "phonondb_pbe.json"
    assert "MPA2suite/k_SRME" in json.loads(path.read_text())["source"]["published_in"]
    assert path.stat().st_size < 60_000


def _reversed(formula: str) -> str:
    return Atoms(formula).get_chemical_formula(empirical=True)


def test_the_builtin_materials_agree_with_the_files_that_they_come_from():
    folder = os.environ.get("JAXMLIP_DATA")
    if not folder:
        pytest.skip("JAXMLIP_DATA does not name the folder of the reference data")
    published = {m.id: m for m in read_phonondb(folder)}
    assert len(published) == 103
    for ours in builtin_materials():
        theirs = published[ours.id]
        assert (ours.formula, ours.structure, ours.mesh) == (theirs.formula, theirs.structure, theirs.mesh)
        np.testing.assert_array_equal(ours.atoms.numbers, theirs.atoms.numbers)
        np.testing.assert_allclose(ours.atoms.cell.array, theirs.atoms.cell.array, atol=1e-9)
        np.testing.assert_allclose(ours.atoms.positions, theirs.atoms.positions, atol=1e-8)
        for name in ("maximum", "mean", "lowest"):
            assert getattr(ours.dft, name) == pytest.approx(getattr(theirs.dft, name), abs=6e-5)


def test_their_highest_frequencies_are_those_that_matbench_discovery_publishes():
    folder = os.environ.get("JAXMLIP_DATA")
    if not folder:
        pytest.skip("JAXMLIP_DATA does not name the folder of the reference data")
    path = Path(folder) / "phonondb_PBE_103" / "matbench_discovery_kappa-103-analysis.jsonl"
    with path.open() as lines:
        numbers, model = json.loads(next(lines))["_base"]["material_ids"], json.loads(next(lines))
    quantiles = np.reshape(model["freq_pairs"]["dft"], (len(numbers), -1))
    highest = dict(zip(numbers, quantiles[:, -1], strict=True))
    for ours in builtin_materials():
        assert ours.dft.maximum == pytest.approx(highest[ours.id], abs=0.0051)


def test_the_reader_reduces_cells_and_averages_frequencies_with_their_weights(tmp_path, salt):
    thz = np.arange(12.0).reshape(2, 6)
    write_phonondb(tmp_path, [salt], [thz])
    (material,) = read_phonondb(tmp_path)
    assert (material.id, material.formula, material.structure) == ("mp-1", "NaCl", "rocksalt")
    assert len(material.atoms) == 2
    assert material.atoms.cell.volume == pytest.approx(salt.cell.volume / 4)
    assert material.dft == Spectrum(11.0, 5.5, 0.0)


def test_missing_data_are_named_with_the_place_where_they_are_published(tmp_path):
    (tmp_path / STRUCTURES_FILE).touch()
    with pytest.raises(FileNotFoundError, match=r"(?s)no kappas.*github\.com/MPA2suite/k_SRME.*--data"):
        read_phonondb(tmp_path)
    with pytest.raises(FileNotFoundError, match=STRUCTURES_FILE):
        read_phonondb(tmp_path / "nowhere")


def test_files_of_different_materials_are_refused(phonondb, salt):
    salt.info["mp_id"] = "mp-2"
    ase.io.write(phonondb / STRUCTURES_FILE, [salt])
    with pytest.raises(ValueError, match="mp-1, mp-2 are in only one"):
        read_phonondb(phonondb)


def test_frequencies_that_do_not_belong_to_the_cell_are_refused(tmp_path, salt):
    write_phonondb(tmp_path, [salt], [np.zeros((2, 12))])
    with pytest.raises(ValueError, match=r"frequencies of shape \(2, 12\).*needed 6 branches"):
        read_phonondb(tmp_path)


def test_a_cell_that_the_crystal_does_not_repeat_with_is_refused(salt):
    salt.numbers[0] = 19
    with pytest.raises(ValueError, match="does not repeat with the cell"):
        primitive_cell(salt, salt.info["primitive_matrix"])


def test_crystals_of_like_size_share_a_room_and_others_do_not():
    small, alike, large = (
        batching.BatchShape(129, s, 1600, a) for s, a in ((257, 1536), (257, 1700), (1100, 39000))
    )
    shapes = shared_shapes([small, large, alike])
    assert shapes[0] == shapes[2] != shapes[1]
    for shape, need in zip(shapes, (small, large, alike), strict=True):
        assert shape.fits(need)


def test_a_memory_limit_that_cannot_be_met_is_said(any_potential):
    with pytest.raises(MemoryLimitError, match="alone needs"):
        softening(any_potential, builtin_materials()[:1], 16, memory_limit=1e3)


def test_a_run_writes_rows_that_repeat_the_phonons_of_the_potential(
    any_potential, tmp_path, phonondb, capsys
):
    potential = replace(any_potential, name="a random network")
    potential.save(tmp_path / "model")
    command([str(tmp_path / "model")], phonondb, tmp_path / "out", supercell=8)

    record = json.loads((tmp_path / "out" / "softening.json").read_text())
    assert set(record) >= {"settings", "versions", "reference", "models"}
    (found,) = record["models"]["a random network"]["rows"]
    (material,) = read_phonondb(phonondb)
    expected = mesh_modes(potential, material.atoms, material.mesh, symmetry=False).frequencies
    assert found["hessian"]["maximum"] == pytest.approx(expected.max(), rel=1e-9)
    assert found["ratios"]["hessian"]["maximum"] == pytest.approx(expected.max() / 11.0, rel=1e-9)
    total = record["models"]["a random network"]["summary"]["hessian"]["maximum"]["geometric_mean"]
    assert total == pytest.approx(expected.max() / 11.0, rel=1e-9)
    assert np.max(found["frequencies"]) == pytest.approx(expected.max(), abs=1e-5)
    assert np.sum(found["weights"]) == np.prod(material.mesh)
    assert f"{expected.max():.2f}" in capsys.readouterr().out

    assert Image.open(tmp_path / "out" / "softening.png").size[0] > 1000


def test_every_material_and_model_is_in_the_figure(tmp_path):
    def drawn(rows_by_model) -> np.ndarray:
        draw(rows_by_model).savefig(tmp_path / "figure.png", dpi=150)
        return np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))

    rows = [row("A", 0.5), row("B", 0.9)]
    one, other, two = (
        drawn(x) for x in ({"m": rows}, {"m": [*rows, row("C", 0.7)]}, {"m": rows, "n": [row("A", 0.6)] * 2})
    )
    blue, red = np.array([0, 114, 178]), np.array([213, 94, 0])

    def pixels(picture, colour) -> int:
        return int((np.abs(picture.astype(int) - colour).max(axis=-1) < 90).sum())

    assert pixels(one, blue) > 100
    assert pixels(other, blue) > pixels(one, blue) + 20
    assert pixels(one, red) == 0
    assert pixels(two, red) > 100


def test_a_reference_of_a_known_scale_gives_that_ratio(ran):
    done = ran("softening.phonons")
    rows = [row for row in done.rows.values() if row.get("cell") == CELLS[0]]
    assert [row["anions"] for row in rows] == ["halide", "chalcogenide"]
    for row in rows:
        for of in ("maximum", "mean", "lowest"):
            assert row["hessian"][of] == pytest.approx(FREQUENCY * row["dft"][of], rel=1e-3, abs=1e-4)
        for of in ("maximum", "lowest"):
            assert row["displaced"][of] == pytest.approx(row["hessian"][of], rel=0.03, abs=0.1)
    # Two steps bring nothing to rest: that is said, and leaves no row of a relaxed cell.
    resting = [row for key, row in done.rows.items() if key.endswith("at rest")]
    assert all("did not come to rest" in row["failed"] for row in resting)
    assert "2 of 4 rows failed" in done.text


def test_every_wave_vector_of_dft_finds_its_star_and_other_weights_are_refused():
    atoms = bulk("ZnS", "zincblende", 5.2)
    mesh = reduced_mesh(MESH, space_group(atoms))
    other = mesh.q_points[::-1] @ space_group(atoms).inverse[7]  # another member of each star, upside down
    dft = MeshModes(other, mesh.weights[::-1], None)
    np.testing.assert_array_equal(dft.representatives(mesh), np.arange(len(other))[::-1])
    wrong = replace(dft, weights=mesh.weights)
    with pytest.raises(ValueError, match=rf"weights differ from the mesh {re.escape(str(MESH))}"):
        wrong.representatives(mesh)
    with pytest.raises(ValueError, match=r"0\.2 steps off the mesh"):
        replace(dft, q_points=other + 0.1).representatives(mesh)
