"""Couplings of modes, linewidths and Grüneisen parameters from constants: what they are derivatives of."""

import numpy as np
import pytest
from ase.build import bulk
from embedded import third_derivatives
from springs import springs

from jaxmlip.phonons.cells import Cells
from jaxmlip.phonons.coupling import couplings, grueneisen_of, linewidths
from jaxmlip.phonons.imaginary import ImaginaryModesError
from jaxmlip.phonons.phono3py_files import to_phono3py
from jaxmlip.phonons.third import SecondOrder, ThirdOrder, checked

SILICON, SALT = bulk("Si"), bulk("NaCl", "rocksalt", 5.0)
MESH = (3, 3, 3)


def embedded(atoms, supercell) -> tuple[ThirdOrder, np.ndarray]:
    """Constants that reach across the supercell, and all third derivatives of the latter."""
    cells = Cells.of(atoms, supercell)
    whole = third_derivatives(cells.supercell)
    phi = np.ascontiguousarray(whole[cells.p2s])
    return ThirdOrder(cells, phi, "by hand", checked(phi, cells)), whole


@pytest.fixture(scope="module")
def silicon() -> tuple[ThirdOrder, SecondOrder]:
    """Of two supercells; in the smaller one atoms have several nearest images."""
    return embedded(SILICON, (2, 2, 2))[0], springs(SILICON, (3, 3, 3), reach=1.7)[1]


def test_couplings_are_third_derivatives_along_three_waves():
    third, whole = embedded(SALT, (3, 2, 1))
    cells, rng = third.cells, np.random.default_rng(0)
    second = SecondOrder(cells, rng.normal(size=(2, 12, 3, 3)))
    q = np.array([[1 / 3, 0, 0], [1 / 3, 0.5, 0], [1 / 3, -0.5, 0]])
    found = couplings(third, second, q)
    atom, R = cells.places
    waves = found.patterns[:, :, atom] * np.exp(2j * np.pi * q @ R.T)[:, None, :, None]
    np.testing.assert_allclose(np.linalg.norm(found.patterns, axis=(2, 3)), 1, rtol=1e-12)
    expected = np.einsum("ijkabc,xia,yjb,zkc->xyz", whole, *waves, optimize=True) / 6  # cells
    scale = np.abs(expected).max()
    assert scale > 0.1
    np.testing.assert_allclose(found.bare, expected, rtol=0, atol=1e-12 * scale)
    u = found.eigenvectors / np.sqrt(np.repeat(cells.primitive.get_masses(), 3))[:, None]
    lengths = np.linalg.norm(u, axis=1)
    by_mass = np.einsum("xyz,x,y,z->xyz", found.bare, *lengths)
    np.testing.assert_allclose(found.weighed, by_mass, rtol=1e-12)
    with pytest.raises(ValueError, match=r"0\.5.*add up to whole"):
        couplings(third, second, q[[0, 0, 1]])


def test_a_mode_whose_wave_is_its_own_reverse_is_real():
    third, second = embedded(SALT, (2, 1, 1))[0], springs(SALT, (2, 2, 2))[1]
    found = couplings(third, second, [[0.5, 0, 0], [0.5, 0, 0], [0, 0, 0]])
    assert not found.eigenvectors.imag.any()
    assert np.abs(found.weighed.imag).max() < 1e-12 * np.abs(found.weighed).max()


def test_linewidths_are_those_of_phono3py(silicon):
    pytest.importorskip("phono3py")
    third, second = silicon
    q = np.array([[0, 0, 0], [1 / 3, 0, 0], [1 / 3, -1 / 3, 0]])
    T = (0.0, 30.0, 300.0)
    found = linewidths(third, second, q, MESH, T, smearing=0.3)
    ph3 = to_phono3py(third, second)
    ph3.mesh_numbers, ph3.sigmas = MESH, [0.3]
    ph3.init_phph_interaction()
    away = ph3.grid.addresses[:, None] / MESH - q
    same = (np.abs(away - away.round()) < 1e-9).all(axis=2)
    numbers = same.argmax(axis=0)
    theirs = ph3.run_imag_self_energy(numbers, T, frequency_points_at_bands=True).gammas[0]
    assert theirs.max() > 1e-3
    # Their constants of nature are older ones.
    np.testing.assert_allclose(found.gamma, theirs, rtol=2e-6, atol=1e-9 * theirs.max())
    np.testing.assert_allclose(found.thz[0, 3:], ph3.get_phonon_data()[0][numbers[0]][3:], rtol=1e-6)


def test_linewidths_grow_with_the_number_of_phonons(silicon):
    found = linewidths(*silicon, [0, 0, 0], MESH, (0.0, 3000.0, 6000.0), smearing=0.5)
    cold, warm, hot = found.gamma[:, 0, 3:]
    assert (cold > 0).all()
    np.testing.assert_allclose(hot, 2 * warm, rtol=0.01)  # n is kT/hν there
    np.testing.assert_array_equal(found.gamma[:, 0, :3], 0)
    assert np.ptp(hot) < 1e-12  # degenerate modes have one
    np.testing.assert_allclose(found.lifetimes[2, 0, 3:], 1 / (4 * np.pi * hot))


def test_imaginary_modes_are_refused_with_their_wave_vector(silicon):
    third, second = silicon
    soft = SecondOrder(second.cells, -second.fc2)
    with pytest.raises(ImaginaryModesError, match=r"imaginary modes of Si2 at 27 of 27 wave vectors"):
        linewidths(third, soft, [0, 0, 0], MESH)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperatures": [-1.0]}, r"temperatures=\[-1\.0\]"),
        ({"smearing": 0.0}, r"smearing=0\.0"),
        ({"mesh": (2, 2)}, r"mesh \(2, 2\)"),
        ({"q_points": [0.0, 0.5]}, r"\(1, 2\), needed \(Q, 3\)"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(silicon, options, words):
    with pytest.raises(ValueError, match=words):
        linewidths(*silicon, **{"q_points": [0, 0, 0], "mesh": MESH, **options})


def test_constants_of_two_crystals_are_refused(silicon):
    third, other = silicon[0], springs(SALT, (2, 2, 2))[1]
    for call in (couplings, grueneisen_of):
        with pytest.raises(ValueError, match=r"Na.*Cl.*Si2"):
            call(third, other, np.zeros((3, 3)))
