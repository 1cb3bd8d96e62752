"""Force constants: the same whichever way they come, and what may be imposed on them."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from crystals import rutile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxmlip.crystals import batching
from jaxmlip.derivatives.hessian import hessian_columns
from jaxmlip.phonons.commensurate import (
    acoustic,
    dynamical_matrices,
    frequencies,
    interpolated_dynamical_matrices,
)
from jaxmlip.phonons.supercell import (
    ForceConstants,
    displaced_force_constants,
    force_constants,
    repeat_distance,
    repeats_within,
    triangular,
    with_space_group,
    with_sum_rule,
)
from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U

CUBIC = [[-1, 1, 1], [1, -1, 1], [1, 1, -1]]  # the cube of a face-centred cell


def turned_salt() -> Atoms:
    """No axis of the crystal lies along x, y or z."""
    salt = bulk("NaCl", "rocksalt", 5.0)
    salt.rotate(37, (1, 2, 3), rotate_cell=True)
    return salt


SYMMETRIC = {
    "rutile": (rutile(), (1, 1, 2)),
    "turned salt in a cube": (turned_salt(), CUBIC),
    "salt with few operations left": (bulk("NaCl", "rocksalt", 5.0), (3, 2, 1)),
    "wurtzite": (bulk("ZnS", "wurtzite", a=3.8, c=6.2, u=0.377), (2, 2, 1)),
    "a cell that is not primitive": (bulk("NaCl", "rocksalt", 5.0, cubic=True), (1, 1, 1)),
}


def triclinic() -> Atoms:
    """A cell without symmetry, with two elements and masses far apart."""
    atoms = bulk("NaCl", "rocksalt", 5.0)
    atoms.numbers[1] = 53
    skew = np.array([[0.0, 0.1, 0.3], [0.2, 0.0, 0.0], [0.1, 0.4, -0.2]])
    atoms.set_cell(atoms.cell.array + skew, scale_atoms=True)
    atoms.positions[1] += [0.1, 0.2, -0.15]
    return atoms


LOPSIDED = ((0, 1, 1), (2, 0, 1), (1, 1, -1))


@pytest.fixture(scope="module")
def shape(any_potential) -> batching.BatchShape:
    """For every supercell here, so that they share compiled programs."""
    pairs = [*SYMMETRIC.values(), (triclinic(), (3, 2, 1)), (triclinic(), LOPSIDED)]
    repeated = [make_supercell(a, s if np.ndim(s) == 2 else np.diag(s)) for a, s in pairs]
    needs = [batching.exact_shape([any_potential.graph(a)]) for a in repeated]
    return batching.BatchShape(*(max(column) + 1 for column in zip(*needs, strict=True)))._replace(crystals=1)


@pytest.fixture(scope="module")
def primitive() -> Atoms:
    return triclinic()


@pytest.fixture(scope="module")
def constants(any_potential, primitive, shape) -> ForceConstants:
    return force_constants(any_potential, primitive, (3, 2, 1), shape=shape)


def assert_same(found: ForceConstants, expected: ForceConstants, tolerance: float) -> None:
    assert found.supercell.tolist() == expected.supercell.tolist()
    np.testing.assert_allclose(found.phi, expected.phi, rtol=0, atol=tolerance)


def counted(monkeypatch) -> list[int]:
    """The columns that are computed from now on."""
    import jaxmlip.phonons.supercell as module

    seen: list[int] = []
    compute = module.hessian_columns

    def remember(potential, crystal, columns, **options):
        seen.extend(columns)
        return compute(potential, crystal, columns, **options)

    monkeypatch.setattr(module, "hessian_columns", remember)
    return seen


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("rutile", 4),
        ("turned salt in a cube", 2),
        ("salt with few operations left", 4),
        ("wurtzite", 4),
        ("a cell that is not primitive", 2),
    ],
)
def test_symmetry_gives_all_columns_as_far_as_the_supercell_has_it(
    any_potential, shape, name, columns, monkeypatch
):
    atoms, supercell = SYMMETRIC[name]
    full = force_constants(any_potential, atoms, supercell, shape=shape)
    seen = counted(monkeypatch)
    found = force_constants(any_potential, atoms, supercell, symmetry=True, shape=shape)
    assert len(seen) == columns
    assert_same(found, full, 1e-10)


def test_a_crystal_without_symmetry_is_computed_whole(any_potential, shape, primitive, constants):
    found = force_constants(any_potential, primitive, (3, 2, 1), symmetry=True, shape=shape)
    assert_same(found, constants, 1e-12)


def test_symmetry_that_the_crystal_has_not_shows_as_a_difference(any_potential, shape):
    """So that the tests above could fail: a tolerance that lets a moved atom pass for a symmetric one."""
    atoms = rutile()
    atoms.positions[2] += [0.01, 0, 0.02]
    full = force_constants(any_potential, atoms, (1, 1, 1), shape=shape)
    found = force_constants(any_potential, atoms, (1, 1, 1), symmetry=True, symprec=0.1, shape=shape)
    assert np.abs(found.phi - full.phi).max() > 1e-4


def test_a_matrix_names_the_supercell_by_its_lattice_vectors(any_potential, shape, primitive):
    """Frequencies at the commensurate wave vectors are those of the supercell's whole Hessian."""
    matrix = np.array(LOPSIDED)
    found = force_constants(any_potential, primitive, matrix, shape=shape)
    supercell = Atoms(cell=matrix @ primitive.cell.array, pbc=True)
    for R in found.cells:
        supercell += Atoms(primitive.numbers, primitive.positions + R @ primitive.cell.array)
    assert len(found.cells) == round(abs(np.linalg.det(matrix)))
    root_mass = np.sqrt(np.repeat(supercell.get_masses(), 3))
    whole = hessian_columns(any_potential, supercell, np.arange(3 * len(supercell)), shape=shape)
    squared = np.linalg.eigvalsh(whole / np.outer(root_mass, root_mass))
    thz = frequencies(found)
    ours = np.sort((np.sign(thz) * thz**2).ravel())
    np.testing.assert_allclose(
        ours, squared * THZ_PER_ROOT_EV_PER_A2_U**2, atol=1e-9 * np.abs(squared).max() * 250
    )
    exact = dynamical_matrices(found)
    between = interpolated_dynamical_matrices(found, found.q_points)
    np.testing.assert_allclose(between, exact, atol=1e-12 * np.abs(exact).max())


def test_matrices_that_span_the_same_lattice_give_the_same(any_potential, shape, primitive, constants):
    matrix = np.diag([3, 2, 1])
    other = np.array([[1, 1, 0], [0, 1, 0], [3, -2, 1]]) @ matrix
    assert_same(force_constants(any_potential, primitive, other, shape=shape), constants, 1e-12)


@settings(max_examples=60, deadline=None)
@given(arrays(int, (3, 3), elements=st.integers(-5, 5)))
def test_the_triangular_matrix_spans_the_lattice_of_the_given_one(matrix):
    volume = abs(round(np.linalg.det(matrix)))
    if volume == 0:
        with pytest.raises(ValueError, match="determinant that is not zero"):
            triangular(matrix)
        return
    found = triangular(matrix)
    change = found @ np.linalg.inv(matrix)
    np.testing.assert_allclose(change, change.round(), atol=1e-9)
    assert abs(round(np.linalg.det(change))) == 1
    assert not np.tril(found, -1).any()
    assert (found.diagonal() > 0).all()
    assert ((found >= 0) & (found <= found.diagonal())).all()

    phi = np.zeros((*found.diagonal(), 1, 3, 1, 3))
    constants = ForceConstants(bulk("Cu"), phi, tuple(found[np.triu_indices(3, 1)]))
    np.testing.assert_array_equal(constants.number(constants.cells), np.arange(volume))
    shifted = constants.cells + np.array([2, -1, 3]) @ matrix
    np.testing.assert_array_equal(constants.number(shifted), np.arange(volume))
    # Each wave vector fits the supercell, and no two are the same wave.
    waves = constants.q_points @ found.T
    np.testing.assert_allclose(waves, waves.round(), atol=1e-9)
    gram = np.exp(2j * np.pi * constants.q_points @ constants.cells.T)
    np.testing.assert_allclose(gram @ gram.conj().T, volume * np.eye(volume), atol=1e-6)


def disturbed(constants: ForceConstants, size: float) -> ForceConstants:
    noise = np.random.default_rng(5).normal(size=constants.phi.shape)
    return replace(constants, phi=constants.phi + size * noise)


def test_the_sum_rule_holds_once_imposed_and_keeps_the_symmetry_of_the_indices(constants):
    rough = disturbed(constants, 1e-3)
    assert acoustic(rough).sum_rule > 1e-3
    found = with_sum_rule(rough)
    assert acoustic(found).sum_rule < 1e-14
    flat = found.phi.reshape(-1, *found.phi.shape[3:])
    reverse = flat[found.number(-found.cells)].transpose(0, 3, 4, 1, 2)
    np.testing.assert_allclose(flat, reverse, atol=1e-15)
    assert found.imposed == {"sum_rule": pytest.approx(np.abs(found.phi - rough.phi).max())}


def test_nothing_nearer_obeys_the_sum_rule(constants):
    """The change is orthogonal to every difference of force constants that obey it."""
    rough = disturbed(constants, 1e-3)
    change = with_sum_rule(rough).phi - rough.phi
    other = with_sum_rule(disturbed(constants, 0.1)).phi
    assert abs(np.vdot(change, other - with_sum_rule(rough).phi)) < 1e-12
    assert np.linalg.norm(change) > 1e-3


def test_the_sum_rule_changes_no_wave_but_the_one_at_gamma(constants):
    rough = disturbed(constants, 1e-3)
    before, after = dynamical_matrices(rough), dynamical_matrices(with_sum_rule(rough))
    np.testing.assert_allclose(after[1:], before[1:], atol=1e-14)
    assert np.abs(after[0] - before[0]).max() > 1e-6


@pytest.mark.parametrize("name", SYMMETRIC)
def test_the_space_group_once_imposed_is_a_projection_that_leaves_exact_constants(any_potential, shape, name):
    atoms, supercell = SYMMETRIC[name]
    exact = force_constants(any_potential, atoms, supercell, symmetry=True, shape=shape)
    assert with_space_group(exact).imposed["space_group"] < 1e-10
    rough = disturbed(exact, 1e-3)
    once = with_space_group(rough)
    assert once.imposed["space_group"] > 1e-3
    assert with_space_group(once).imposed["space_group"] < 1e-14
    assert np.linalg.norm(once.phi - exact.phi) < np.linalg.norm(rough.phi - exact.phi)
    # The sum rule keeps the symmetry.
    both = with_sum_rule(once)
    assert with_space_group(both).imposed["space_group"] < 1e-14
    assert set(both.imposed) == {"space_group", "sum_rule"}


def test_what_is_imposed_is_off_by_default_and_reported(any_potential, shape):
    atoms, supercell = SYMMETRIC["rutile"]
    assert force_constants(any_potential, atoms, supercell, shape=shape).imposed == {}
    found = force_constants(any_potential, atoms, supercell, sum_rule=True, space_group=True, shape=shape)
    assert set(found.imposed) == {"space_group", "sum_rule"}
    assert max(found.imposed.values()) < 1e-9  # an exact Hessian has both


def test_small_displacements_give_the_hessian_and_padding_changes_nothing(
    any_potential, shape, primitive, constants
):
    scale = np.abs(constants.phi).max()
    for shared in (None, shape):
        by_forces = displaced_force_constants(any_potential, primitive, (3, 2, 1), 1e-4, shape=shared)
        assert_same(by_forces, constants, 1e-5 * scale)
    assert_same(force_constants(any_potential, primitive, (3, 2, 1)), constants, 1e-12 * scale)


def test_displacements_that_symmetry_needs_give_those_of_all_coordinates(any_potential):
    """Along equivalent directions exactly, although the energy is not harmonic over the displacement."""
    salt = bulk("NaCl", "rocksalt", 4.0)
    few = displaced_force_constants(any_potential, salt, (2, 2, 2), 0.05, symmetry=True)
    every = displaced_force_constants(any_potential, salt, (2, 2, 2), 0.05)
    exact = force_constants(any_potential, salt, (2, 2, 2))
    scale = np.abs(every.phi).max()
    assert_same(few, every, 1e-9 * scale)
    assert np.abs(exact.phi - every.phi).max() > 1e-4 * scale


def test_of_all_supercells_that_fit_the_roundest_is_taken():
    fcc = bulk("Cu").cell.array
    assert repeats_within(fcc, 64) == (4, 4, 4)
    assert repeats_within(np.diag([3.0, 3.0, 6.0]), 33) == (4, 4, 2)
    assert repeat_distance(fcc, (2, 2, 2)) == pytest.approx(3.61 * np.sqrt(2))


@pytest.mark.parametrize(
    "supercell", [(2, 2), (2, 2, 0), (2, 2, 1.5), np.ones((3, 3)), np.eye(3) / 2, (2, 2, np.nan)]
)
def test_what_is_no_supercell_is_refused(any_potential, primitive, supercell):
    with pytest.raises(ValueError, match=r"three positive whole numbers, how often .* or a matrix"):
        force_constants(any_potential, primitive, supercell)


def test_two_atoms_in_one_place_have_no_symmetry_to_use(any_potential, primitive):
    doubled = primitive + primitive[:1]
    with pytest.raises(ValueError, match="spglib finds no symmetry of INa"):
        force_constants(any_potential, doubled, (1, 1, 1), symmetry=True)
