"""Phonons of slabs, wires and molecules: those of a crystal whose images are out of reach, and no others."""

import warnings

import numpy as np
import pytest
from ase import Atoms

from jaxmlip import phonons
from jaxmlip.crystals.atoms import in_box
from jaxmlip.crystals.symmetry import primitive_cell, space_group
from jaxmlip.phonons.lattice import mesh_force_constants

CELL = [[3.2, 0, 0], [-1.6, 1.6 * 3**0.5, 0], [0, 0, 0]]


@pytest.fixture(scope="module")
def slab() -> Atoms:
    """A hexagonal layer of MgO, rumpled; mirrored, it would be another."""
    return Atoms("MgO", [[0, 0, 0.3], [1.6, 1.6 / 3**0.5, 0]], cell=CELL, pbc=[True, True, False])


def quiet(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no crystal of a random potential is at rest
        return function(*args, **options)


def test_a_slab_has_the_phonons_of_a_crystal_of_slabs_far_apart(any_potential, slab):
    crystal = slab.copy()
    crystal.set_cell([*CELL[:2], [0, 0, 25]])
    crystal.pbc = True
    tilted = slab.copy()  # the third vector of a slab means nothing
    tilted.set_cell([*CELL[:2], [1, 2, 25]])
    tilted.positions[:, 2] += 40
    q = [[0, 0, 0], [0.2, 0.1, 0], [1 / 3, 1 / 3, 0]]
    expected = quiet(phonons.phonon_modes, any_potential, crystal, q, symmetry=False, method="exact")
    for given in (slab, tilted):
        for symmetry in (True, False):
            found = quiet(phonons.phonon_modes, any_potential, given, q, symmetry=symmetry, method="exact")
            np.testing.assert_allclose(found.frequencies, expected.frequencies, atol=1e-6)
    bands = quiet(phonons.band_modes, any_potential, slab, points=9)
    assert [(s.first, s.last) for s in bands.segments] == [("G", "M"), ("M", "K"), ("K", "G")]
    mesh = quiet(phonons.mesh_modes, any_potential, slab, (3, 3, 1))
    assert len(mesh.q_points) < 9
    constants = mesh_force_constants(any_potential, slab, (3, 3, 1))
    by_supercell = phonons.force_constants(any_potential, slab, (3, 3, 1))
    np.testing.assert_allclose(constants.phi, by_supercell.phi, atol=1e-8)


def test_symmetry_is_that_of_the_slab_and_not_of_the_box_around_it():
    """Two different layers at half the height of their box: a shift that the crystal has, and no slab."""
    layers = Atoms("MgMg", [[0, 0, 0], [0, 0, 4]], cell=[3, 3, 8], pbc=True)
    assert len(primitive_cell(layers)) == 1
    layers.pbc = [True, True, False]
    assert primitive_cell(layers) is layers
    assert space_group(layers).order == 16  # 4/mmm, the mirror between the layers
    wide = layers.repeat((2, 1, 1))
    reduced = primitive_cell(wide)
    assert len(reduced) == 2
    np.testing.assert_allclose(reduced.cell.lengths(), [3, 3, 8])
    assert reduced.pbc.tolist() == [True, True, False]


def test_waves_run_along_vectors_that_repeat_alone(any_potential, slab):
    wire = Atoms("MgO", [[0, 0, 0], [0, 0, 2]], cell=[0, 0, 4.3], pbc=[False, False, True])
    bands = quiet(phonons.band_modes, any_potential, wire, points=3)
    assert not bands.modes.q_points[:, :2].any()
    molecule = Atoms("MgO", [[0, 0, 0], [0, 0, 2]])
    shifts = quiet(phonons.phonon_modes, any_potential, molecule, [[0, 0, 0]]).frequencies
    assert (np.abs(shifts) < 1e-3).sum() >= 3
    for run, words in (
        (lambda: phonons.phonon_modes(any_potential, slab, [[0, 0, 0.5]]), r"\[0.0, 0.0, 0.5\].*MgO"),
        (lambda: phonons.mesh_modes(any_potential, slab, (2, 2, 2)), r"\(2, 2, 2\).*True, True, False"),
        (lambda: phonons.force_constants(any_potential, slab, (2, 2, 2)), "True, True, False"),
        (lambda: phonons.band_modes(any_potential, molecule), "False, False, False"),
        (lambda: phonons.grueneisen(any_potential, slab, [[0, 0, 0]]), "True, True, False"),
    ):
        with pytest.raises(ValueError, match=words):
            quiet(run)


def test_a_box_keeps_its_volume_and_gets_a_height_where_it_has_none(slab):
    boxed = in_box(slab)
    assert boxed.cell.rank == 3
    np.testing.assert_allclose(boxed.cell[:2] @ boxed.cell[2], 0, atol=1e-12)
    given = slab.copy()
    given.set_cell([*CELL[:2], [5, 3, 12]])
    assert in_box(given).cell.volume == pytest.approx(given.cell.volume, rel=1e-12)
    assert slab.cell.rank == 2
