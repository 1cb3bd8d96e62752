"""Frequencies that follow from the force constants of a supercell."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from jaxmlip.derivatives.hessian import hessian
from jaxmlip.models.chgnet import CHGNetConfig
from jaxmlip.phonons.commensurate import (
    acoustic,
    dynamical_matrices,
    frequencies,
    interpolated_dynamical_matrices,
    mesh_frequencies,
)
from jaxmlip.phonons.supercell import ForceConstants, force_constants
from jaxmlip.potential import random_potential
from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U

CONFIG = CHGNetConfig(
    features=8, radial=5, angular=5, blocks=3, readout=(8,), bond_cutoff=4.0, angle_cutoff=3.0
)
REPEATS = (3, 2, 2)  # different, so that no axis can stand for another


@pytest.fixture(scope="module")
def small_potential():
    return random_potential(CONFIG, dtype="float64")


@pytest.fixture(scope="module")
def primitive() -> Atoms:
    """A triclinic cell without symmetry, with two elements and masses far apart."""
    atoms = bulk("NaCl", "rocksalt", 5.0)
    atoms.numbers[1] = 53
    skew = np.array([[0.0, 0.1, 0.3], [0.2, 0.0, 0.0], [0.1, 0.4, -0.2]])
    atoms.set_cell(atoms.cell.array + skew, scale_atoms=True)
    atoms.positions[1] += [0.1, 0.2, -0.15]
    return atoms


@pytest.fixture(scope="module")
def constants(small_potential, primitive) -> ForceConstants:
    return force_constants(small_potential, primitive, REPEATS)


def chain(springs: list[float], cells: int, masses=(20.0,)) -> ForceConstants:
    """Atoms in a row along x, evenly spaced, the k-th joined to the next by springs[k] (eV/Å²)."""
    n = len(masses)
    atoms = Atoms("H" * n, cell=[2.0 * n, 9, 9], positions=[[2.0 * k, 0, 0] for k in range(n)], pbc=True)
    atoms.set_masses(masses)
    phi = np.zeros((cells, 1, 1, n, 3, n, 3))
    for k, spring in enumerate(springs):
        for end, step in ((k, 1), ((k + 1) % n, -1)):
            other = end + step
            phi[0, 0, 0, end, 0, end, 0] += spring
            phi[other // n % cells, 0, 0, end, 0, other % n, 0] -= spring
    return ForceConstants(atoms, phi)


@pytest.mark.slow
def test_commensurate_frequencies_are_those_of_the_supercells_whole_hessian(
    small_potential, primitive, constants
):
    supercell = primitive.repeat(REPEATS)
    root_mass = np.sqrt(np.repeat(supercell.get_masses(), 3))
    squared = np.linalg.eigvalsh(hessian(small_potential, supercell) / np.outer(root_mass, root_mass))
    thz = frequencies(constants)
    found = np.sort((np.sign(thz) * thz**2).ravel())
    np.testing.assert_allclose(found, squared * THZ_PER_ROOT_EV_PER_A2_U**2, atol=1e-9 * np.abs(found).max())


def test_dynamical_matrices_are_hermitian_before_they_are_made_so(constants):
    sums = np.fft.ifftn(constants.phi, axes=(0, 1, 2)).reshape(-1, 6, 6)
    scale = np.abs(sums).max()
    assert np.abs(sums.imag).max() > 1e-3 * scale  # so that transposition alone would not do
    np.testing.assert_allclose(sums, sums.conj().mT, atol=1e-12 * scale)


def test_the_sign_of_the_phase_is_that_of_the_definition(constants):
    k = 5
    q = constants.q_points[k]
    m = np.repeat(constants.primitive.get_masses(), 3)
    D = sum(
        constants.phi[tuple(R)].reshape(6, 6) * np.exp(2j * np.pi * (q @ R)) for R in constants.cells
    ) / np.sqrt(np.outer(m, m))
    np.testing.assert_allclose(dynamical_matrices(constants)[k], D, atol=1e-12 * np.abs(D).max())


def test_a_wave_and_its_reverse_have_the_same_frequencies(constants):
    every = np.linalg.eigvalsh(dynamical_matrices(constants))
    expected = np.sign(every) * np.sqrt(np.abs(every)) * THZ_PER_ROOT_EV_PER_A2_U
    # `mesh_frequencies` computes half of them.
    np.testing.assert_allclose(mesh_frequencies(constants, REPEATS)[1:], expected[1:], rtol=1e-7)


def test_three_modes_at_gamma_have_no_frequency(constants):
    at_gamma = np.sort(np.abs(frequencies(constants)[0]))
    assert at_gamma[:3].max() < 1e-5 * at_gamma[3]
    assert acoustic(constants).frequency < 1e-5 * at_gamma[3]


def test_acoustic_reports_a_broken_sum_rule():
    broken = chain([1.5], cells=4)
    broken.phi[0, 0, 0, 0, 0, 0, 0] += 0.02
    found = acoustic(broken)
    assert found.sum_rule == pytest.approx(0.02)
    assert found.frequency == pytest.approx(np.sqrt(0.02 / 20) * THZ_PER_ROOT_EV_PER_A2_U)


def test_a_chain_of_atoms_has_the_textbook_dispersion():
    """ω = 2 √(K/m) |sin(πq)|, at commensurate wave vectors and between them."""
    spring, mass = 1.5, 20.0
    one = chain([spring], cells=6, masses=(mass,))

    def expected(q):
        return 2 * np.sqrt(spring / mass) * np.abs(np.sin(np.pi * q)) * THZ_PER_ROOT_EV_PER_A2_U

    np.testing.assert_allclose(frequencies(one)[:, -1], expected(np.arange(6) / 6), atol=1e-7)
    found = mesh_frequencies(one, (17, 1, 1))[:, -1]
    np.testing.assert_allclose(found, expected(np.arange(17) / 17), atol=1e-7)


def test_two_masses_open_the_textbook_gap():
    """At the zone boundary of a diatomic chain ω² = 2K/m₁ and 2K/m₂."""
    spring, masses = 1.5, (7.0, 35.0)
    at_boundary = frequencies(chain([spring, spring], cells=4, masses=masses))[2, -2:]
    expected = np.sqrt(2 * spring / np.array(masses[::-1])) * THZ_PER_ROOT_EV_PER_A2_U
    np.testing.assert_allclose(at_boundary, expected, rtol=1e-10)


def test_a_mode_without_restoring_force_has_a_negative_frequency():
    soft = chain([-0.5], cells=4)
    assert frequencies(soft).min() == pytest.approx(-2 * np.sqrt(0.5 / 20) * THZ_PER_ROOT_EV_PER_A2_U)


def test_interpolation_is_exact_at_the_commensurate_wave_vectors(constants):
    exact = dynamical_matrices(constants)
    found = interpolated_dynamical_matrices(constants, constants.q_points)
    np.testing.assert_allclose(found, exact, atol=1e-12 * np.abs(exact).max())
