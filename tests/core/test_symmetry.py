"""Space groups: what is one, what cell it repeats with, and that perfect supercells are cheap."""

import tracemalloc

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from jaxmlip.crystals.symmetry import (
    Symmetry,
    completed,
    identity,
    kinds,
    needed_columns,
    primitive_cell,
    space_group,
)


@pytest.fixture
def salt() -> Atoms:
    return bulk("NaCl", "rocksalt", 5.64, cubic=True)


def test_operations_take_atoms_to_places_of_atoms_and_each_comes_once(salt):
    salt.rotate(25, (1, 2, 3), rotate_cell=True)
    salt.positions += [0.3, -7.1, 12.0]  # atoms may lie in any cell
    group = space_group(salt)
    operations = list(group.operations())
    assert len(operations) == group.order == 192
    assert len({(*o.rotation.ravel(), *o.atom) for o in operations}) == 192
    x = salt.cell.scaled_positions(salt.positions)
    for o in operations:
        np.testing.assert_array_equal(salt.numbers[o.atom], salt.numbers)
        apart = x[o.atom] + o.cell - x @ o.rotation.T
        np.testing.assert_allclose(apart, apart[[0]] + 0 * apart, atol=1e-9)
    np.testing.assert_array_equal(group.orbits, [0, 1] * 4)


def test_a_perfect_supercell_has_thousands_of_operations_and_takes_little_memory(salt):
    big = salt.repeat(3)
    tracemalloc.start()
    group = space_group(big)
    pairs = needed_columns(np.zeros((1, 3)), group)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert group.order == 5184
    np.testing.assert_array_equal(pairs.coordinate, [0, 3])
    assert peak < 30e6


def test_of_a_supercell_two_columns_give_all_others(salt):
    """For a matrix that has the symmetry since it depends on distances alone."""
    big = salt.repeat((2, 1, 1))
    apart = big.get_all_distances(mic=True, vector=True)
    r = np.linalg.norm(apart, axis=-1) + np.eye(len(big))
    blocks = np.einsum("ijx,ijy->ijxy", apart, apart) * np.exp(-r)[:, :, None, None]
    # Half of the cell away there are two nearest images, of which one would break the symmetry.
    blocks[r > 2.9] = 0
    D = blocks.transpose(0, 2, 1, 3).reshape(3 * len(big), -1)
    group, gamma = space_group(big), np.zeros((1, 3))
    pairs = needed_columns(gamma, group)
    assert len(pairs.wave) < 8
    found = completed(D[:, pairs.coordinate].T, pairs, gamma, group)
    np.testing.assert_allclose(found[0], D, rtol=0, atol=1e-12)
    every = needed_columns(gamma, identity(len(big)))
    assert len(every.wave) == 3 * len(big)


def test_masses_lower_the_group_of_what_depends_on_them_alone(salt):
    masses = salt.get_masses()
    masses[1] = 80.0
    salt.set_masses(masses)
    assert space_group(salt).order == 192
    assert Symmetry(salt).group_of_masses.order == 48
    assert list(kinds(salt)) == list(salt.numbers)
    assert len(set(kinds(salt, masses=True))) == 3


def test_a_primitive_cell_is_not_turned_and_keeps_masses_and_atoms_where_they_are(salt):
    masses = salt.get_masses()
    masses[salt.numbers == 17] = 34.0
    salt.set_masses(masses)
    salt.rotate(40, (1, 2, 3), rotate_cell=True)
    for crystal in (salt, salt.repeat((2, 1, 3)), salt[[0, 1, 3, 2, 4, 5, 7, 6]]):
        found = primitive_cell(crystal)
        np.testing.assert_array_equal(found.get_masses(), [22.98976928, 34.0])
        np.testing.assert_allclose(found.cell.lengths(), 5.64 / np.sqrt(2))
        np.testing.assert_array_equal(found.positions, crystal.positions[:2])
        # Every atom of the crystal is one of the cell's, shifted by whole lattice vectors.
        for number in (11, 17):
            apart = crystal.positions[crystal.numbers == number] - found.positions[found.numbers == number]
            x = apart @ np.linalg.inv(found.cell.array)
            np.testing.assert_allclose(x, np.rint(x), atol=1e-9)
    assert primitive_cell(found) is found


@pytest.mark.parametrize("what", ["mass", "moment", "place"])
def test_a_crystal_is_not_reduced_where_copies_differ(salt, what):
    if what == "mass":
        masses = salt.get_masses()
        masses[1] += 2.0
        salt.set_masses(masses)
    elif what == "moment":
        salt.set_initial_magnetic_moments([1, 0, -1, 0, 1, 0, -1, 0])
    else:
        salt.positions[1, 0] += 1e-3
    assert len(primitive_cell(salt)) == (4 if what == "moment" else 8)


def test_symmetry_that_rounding_has_hidden_is_named(salt):
    assert Symmetry(salt, 1e-5).hidden is None
    salt.positions[0, 0] += 1e-3
    assert "Fm-3m (225): 192 operations hold within 0.01 Å, 8 within 1e-05 Å" in Symmetry(salt, 1e-5).hidden
    assert Symmetry(salt, 1e-2).hidden is None
