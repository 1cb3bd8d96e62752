"""A potential against the DFT of a phonopy run; here DFT is a potential too, so that the answer is known."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from conftest import QUICK, small_potential
from PIL import Image

pytest.importorskip("phonopy", reason="phonopy, the extra of that name, is not installed")

from commands import jaxmlip
from crystals import rutile
from phonopy_run import write_run

from jaxmlip.phonons.commensurate import mesh_frequencies
from jaxmlip.phonons.phonopy_files import read_phonopy
from jaxmlip.phonons.supercell import displaced_force_constants
from jaxmlip.studies.compare import Frequencies, compare, draw, smeared_density

SCALE = 0.81  # of the potential's forces against those that are called DFT's


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Salt, and rutile whose atoms are not at rest in the potential."""
    folder = tmp_path_factory.mktemp("runs")
    potential = small_potential(QUICK)
    write_run(folder / "salt", potential, bulk("NaCl", "rocksalt", 5.0), (2, 2, 1), scale=1 / SCALE)
    write_run(folder / "rutile", potential, rutile(), (1, 1, 2), scale=1 / SCALE)
    potential.astype("float32").save(folder / "model")
    return folder


@pytest.fixture(scope="module")
def rows(runs, any_potential):
    return compare(any_potential, [read_phonopy(runs / name) for name in ("salt", "rutile")], (3, 3, 3))


def test_forces_of_a_known_scale_give_its_root_as_ratio_of_every_frequency(rows):
    for row in rows:
        assert row.force_slope == pytest.approx(SCALE, rel=1e-6)
        assert row.hessian_slope == pytest.approx(SCALE, rel=1e-5)
        assert row.mode_slope == pytest.approx(SCALE, rel=1e-5)
        for of in ("maximum", "mean", "rms"):
            assert row.ratio(of) == pytest.approx(SCALE**0.5, rel=1e-5)
        squared = np.sign(row.model_thz) * row.model_thz**2, np.sign(row.dft_thz) * row.dft_thz**2
        np.testing.assert_allclose(squared[0], SCALE * squared[1], atol=1e-5 * np.abs(squared[1]).max())
    assert [row.name for row in rows] == ["salt", "rutile"]
    assert [row.formula for row in rows] == ["NaCl", "SiO2"]
    assert [(row.atoms, row.supercell_atoms) for row in rows] == [(2, 8), (6, 12)]


def test_forces_at_rest_are_reported_and_do_not_count_as_restoring(rows):
    salt, other = rows
    assert salt.residual_force < 1e-10
    assert other.residual_force > 0.01


def test_the_models_frequencies_are_those_of_its_own_displacements(rows, runs, any_potential):
    primitive = read_phonopy(runs / "salt").constants.primitive
    # phonopy displaces once by 0.01 Å where symmetry makes the opposite the same.
    by_us = displaced_force_constants(any_potential, primitive, (2, 2, 1), 0.01)
    found, ours = rows[0].model_thz, mesh_frequencies(by_us, (3, 3, 3))
    np.testing.assert_allclose(found.max(), ours.max(), rtol=1e-3)


def test_imaginary_modes_count_as_nothing_in_mean_and_rms():
    found = Frequencies.of(np.array([[-2.0, 3.0], [0.0, 4.0]]))
    assert found == (4.0, 7 / 4, 2.5, -2.0)


def test_the_density_of_states_counts_every_mode_once():
    thz = np.random.default_rng(0).uniform(-1, 9, (50, 6))
    x, density = smeared_density(thz, 0.2)
    assert np.sum(density) * (x[1] - x[0]) == pytest.approx(6)
    assert np.sum(x * density) * (x[1] - x[0]) == pytest.approx(6 * thz.mean(), abs=0.02)


def test_an_element_that_the_potential_does_not_know_names_the_run(runs, any_potential):
    from dataclasses import replace

    narrow = replace(any_potential, elements=(8, 14))
    with pytest.raises(ValueError, match=r"salt: found Na \(Z = 11\)"):
        compare(narrow, [read_phonopy(runs / "rutile"), read_phonopy(runs / "salt")])


def test_a_mesh_is_three_whole_numbers(runs, any_potential):
    with pytest.raises(ValueError, match=r"mesh=\(3, 0, 3\), needed three positive whole numbers"):
        compare(any_potential, [read_phonopy(runs / "salt")], (3, 0, 3))


def test_the_command_prints_and_writes_what_was_found(runs, rows):
    done = jaxmlip(
        runs, "compare", "salt", "rutile", "--model", "model", "--mesh", "3", "3", "3", "--out", "out"
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((runs / "out" / "compare.json").read_text())
    (found,) = record["models"].values()
    assert [r["name"] for r in found] == ["salt", "rutile"]
    for ours, theirs in zip(rows, found, strict=True):
        assert theirs["ratios"]["maximum"] == pytest.approx(ours.ratio(), rel=1e-3)
        assert theirs["dft"]["maximum"] == pytest.approx(ours.dft.maximum, rel=1e-9)
    line = next(line.split() for line in done.stdout.splitlines() if line.split()[:2] == ["rutile", "SiO2"])
    assert line[4:7] == [f"{rows[1].dft.maximum:.2f}", f"{rows[1].model.maximum:.2f}", "0.900"]
    assert line[9:12] == ["0.810", "0.810", "0.810"]
    assert Image.open(runs / "out" / "compare.png").size[0] > 800


def test_a_mistake_is_answered_in_words(runs):
    shutil.copytree(runs / "salt", runs / "broken")
    (runs / "broken" / "FORCE_SETS").unlink()
    done = jaxmlip(runs, "compare", "salt", "broken", "--model", "model")
    assert done.returncode == 1
    assert "broken has neither forces nor force constants" in done.stderr
    assert "Traceback" not in done.stderr
    done = jaxmlip(runs, "compare", "nowhere", "--model", "model")
    assert done.returncode == 1
    assert "nowhere has none of phonopy_params.yaml" in done.stderr


def test_every_run_and_model_is_in_the_figure(rows, tmp_path):
    draw({"one": rows}).savefig(tmp_path / "one.png", dpi=150)
    draw({"one": rows, "two": rows}).savefig(tmp_path / "two.png", dpi=150)
    blue, red = np.array([0, 114, 178]), np.array([213, 94, 0])

    def pixels(name, colour) -> int:
        picture = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        return int((np.abs(picture - colour).max(axis=-1) < 60).sum())

    assert pixels("one.png", blue) > 500
    assert pixels("one.png", red) == 0
    assert pixels("two.png", red) > 500


@pytest.mark.slow
def test_softening_of_a_public_model_shows_on_real_forces():
    """NaCl of phonopy's examples: CHGNet 0.3.0 is known to be far too soft there."""
    data = os.environ.get("JAXMLIP_DATA")
    if not data:
        pytest.skip("JAXMLIP_DATA does not name the folder of the reference data")
    from conftest import public

    run = read_phonopy(Path(data) / "phonopy_examples_PBE" / "NaCl")
    (row,) = compare(public("chgnet-0.3.0"), [run], (4, 4, 4))
    assert 0.3 < row.force_slope < 0.6
    assert 0.6 < row.ratio("maximum") < 0.9
    assert row.residual_force < 1e-6
