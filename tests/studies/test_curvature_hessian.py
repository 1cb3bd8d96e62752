"""The experiment on force constants, where DFT is the potential itself with forces of a known scale."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from conftest import small_potential

pytest.importorskip("phonopy", reason="phonopy, the extra of that name, is not installed")

from phonopy_run import write_run

from experiments.softening import force_constants as curvature_hessian
from experiments.softening.force_constants import Settings, along, main, ranges, standing_wave
from jaxmlip.phonons.commensurate import dynamical_matrices
from jaxmlip.phonons.supercell import ForceConstants, force_constants

SCALE = 0.81  # of the potential's forces against those that are called DFT's


@pytest.fixture
def settings(tmp_path, any_potential) -> Settings:
    salt = bulk("NaCl", "rocksalt", 5.0)
    write_run(tmp_path / "data/phonopy_examples_PBE/NaCl", any_potential, salt, (2, 2, 1), scale=1 / SCALE)
    any_potential.save(tmp_path / "model")
    return Settings(
        model=(str(tmp_path / "model"),),
        data=tmp_path / "data",
        out=tmp_path / "out",
        runs=("NaCl",),
        silicon=False,
    )


def record(settings) -> dict:
    return json.loads((settings.out / "record.json").read_text())


def test_forces_of_a_known_scale_give_every_slope_and_a_second_run_computes_nothing(settings, monkeypatch):
    main(settings)
    first = record(settings)
    (row,) = first["rows"].values()
    found = row["displaced"]
    assert row["forces"]["slope"] == pytest.approx(SCALE, rel=1e-6)
    for part in (found["all"], found["without_self"], *found["ranges"].values()):
        assert part["slope"] == pytest.approx(SCALE, rel=1e-5)
        assert part["r2"] == pytest.approx(1, abs=1e-8)
    assert list(found["modes"].values()) == pytest.approx([SCALE, SCALE], rel=1e-4)
    assert list(found["thirds"].values()) == pytest.approx(3 * [SCALE], rel=1e-4)
    # Second derivatives are those of displacements of 0.01 Å, up to what is anharmonic.
    assert row["hessian"]["all"]["slope"] == pytest.approx(SCALE, rel=0.02)
    assert row["hessian"]["modes"]["slope"] == pytest.approx(SCALE, rel=0.02)
    assert row["stiffest"]["there"][0] == pytest.approx(SCALE, rel=0.02)
    assert row["stiffest"]["mean"][0] == row["stiffest"]["there"][0]

    def never(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr(curvature_hessian, "measure", never)
    main(settings)
    assert record(settings)["tables"] == first["tables"]


@pytest.mark.one_model
@pytest.mark.parametrize("name", ["m3gnet-smooth", "mace-density"])
def test_the_other_architectures_run_too(name, settings, tmp_path, monkeypatch):
    """Against the force constants of the first, and without the curve, which takes long to compile."""
    small_potential(name).save(tmp_path / "other")
    monkeypatch.setattr(
        curvature_hessian, "along_stiffest", lambda *_: {"THz": 1.0, "mean": 11 * [1.0], "there": 11 * [1.0]}
    )
    main(replace(settings, model=(str(tmp_path / "other"),)))
    (row,) = record(settings)["rows"].values()
    # What second derivatives and displacements of 0.01 Å say is one, whatever the model.
    assert row["hessian"]["modes"]["slope"] == pytest.approx(row["displaced"]["modes"]["slope"], rel=0.02)


@pytest.fixture(scope="module")
def constants(any_potential):
    return force_constants(any_potential, bulk("NaCl", "rocksalt", 5.0), (2, 2, 1))


def test_the_curvature_along_a_standing_wave_is_that_of_its_mode(constants, any_potential):
    squares, vectors = np.linalg.eigh(dynamical_matrices(constants))
    for q in (0, 1):
        atoms, u = standing_wave(constants, constants.q_points[q], vectors[q, :, -1])
        assert np.linalg.norm(u, axis=1).max() == pytest.approx(1)
        masses = atoms.get_masses()[:, None]
        harmonic = squares[q, -1] * (masses * u**2).sum() / (u**2).sum()
        slope, curvature = along(any_potential, atoms, u, [0.0, 1e-3]).T
        assert curvature[0] == pytest.approx(harmonic, rel=1e-8)
        assert slope[1] - slope[0] == pytest.approx(1e-3 * harmonic, rel=0.05)


def test_the_ranges_count_each_pair_once_and_rocksalt_has_six_first_neighbours():
    wide = ForceConstants(bulk("NaCl", "rocksalt", 5.0), np.zeros((4, 4, 4, 2, 3, 2, 3)))
    found = ranges(wide)
    assert (sum(found.values()) == 1).all()
    assert [part.sum() for part in found.values()] == [2, 12, 2 * 128 - 14]
    np.testing.assert_allclose(wide.distances[found["first neighbours"]], 2.5)


def test_unknown_runs_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"found the run .Salt., needed some of NaCl"):
        main(Settings(data=Path(tmp_path), out=tmp_path / "out", runs=("Salt",)))
