"""The experiment on force constants, where DFT is the potential itself with forces of a known scale."""

import numpy as np
import pytest
from ase.build import bulk

pytest.importorskip("phonopy", reason="phonopy, the extra of that name, is not installed")

from small_studies.softening import CURVATURE

from experiments.softening.force_constants import along, ranges, standing_wave
from jaxmlip.phonons.commensurate import dynamical_matrices
from jaxmlip.phonons.supercell import ForceConstants, force_constants


@pytest.mark.slow
def test_forces_of_a_known_scale_give_every_slope(ran):
    (row,) = ran("softening.force_constants").rows.values()
    found = row["displaced"]
    assert row["forces"]["slope"] == pytest.approx(CURVATURE, rel=1e-6)
    for part in (found["all"], found["without_self"], *found["ranges"].values()):
        assert part["slope"] == pytest.approx(CURVATURE, rel=1e-5)
        assert part["r2"] == pytest.approx(1, abs=1e-8)
    assert list(found["modes"].values()) == pytest.approx([CURVATURE] * 2, rel=1e-4)
    assert list(found["thirds"].values()) == pytest.approx([CURVATURE] * 3, rel=1e-4)
    # Second derivatives are those of displacements of 0.01 Å, up to what is anharmonic.
    assert row["hessian"]["all"]["slope"] == pytest.approx(CURVATURE, rel=0.02)
    assert row["hessian"]["modes"]["slope"] == pytest.approx(CURVATURE, rel=0.02)
    assert row["stiffest"]["there"][0] == pytest.approx(CURVATURE, rel=0.02)
    assert row["stiffest"]["mean"][0] == row["stiffest"]["there"][0]


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
