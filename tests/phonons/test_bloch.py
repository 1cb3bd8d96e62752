"""Dynamical matrices from the primitive cell: what they equal, and what their derivatives are."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmlip import hessian_columns
from jaxmlip.crystals.fetch import gather, scatter_add
from jaxmlip.derivatives import linear_map, response
from jaxmlip.derivatives.memory_plan import MemoryLimitError
from jaxmlip.derivatives.response import Response, without_net_force
from jaxmlip.mechanics.elasticity import internal_motion, internal_strain
from jaxmlip.phonons import bloch
from jaxmlip.phonons.bloch import asymmetry, dynamical_matrix, position_phases
from jaxmlip.phonons.supercell import force_constants

Q = np.array([[0.13, -0.41, 0.27], [0.5, 0.2, -0.35]])
STEP = 1e-3


def central(f, step=STEP):
    """df/ds at 0 by central differences of two widths, whose leading errors cancel."""
    near, wide = ((f(s) - f(-s)) / (2 * s) for s in (step, 2 * step))
    return (4 * near - wide) / 3


def test_a_dynamical_matrix_is_the_fourier_sum_of_a_supercells_hessian(network, cell):
    constants = force_constants(network, cell, (2, 1, 3))
    sums = np.fft.ifftn(constants.phi, axes=(0, 1, 2), norm="forward").reshape(-1, 9, 9)
    found = dynamical_matrix(network, cell, constants.q_points)
    assert np.abs(sums).max() > 1e-4
    np.testing.assert_allclose(found, sums, rtol=0, atol=1e-12)


def test_a_dynamical_matrix_is_hermitian_and_conjugate_at_the_opposite_wave_vector(architecture, cell):
    D = dynamical_matrix(architecture, cell, np.concatenate([Q, -Q, Q + np.array([1, 0, -2])]))
    assert np.abs(D.imag).max() > 1e-3 * np.abs(D).max()
    assert asymmetry(D) < 1e-12
    np.testing.assert_allclose(D[2:4], D[:2].conj(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(D[4:], D[:2], rtol=0, atol=1e-12)


def test_a_shift_of_the_whole_crystal_costs_nothing(architecture, cell):
    D = dynamical_matrix(architecture, cell, np.zeros((1, 3)))[0]
    assert np.abs(D.reshape(9, 3, 3).sum(axis=1)).max() < 1e-12
    assert np.abs(D.imag).max() < 1e-12


def test_in_single_precision_a_shift_of_the_whole_crystal_costs_nothing_either(
    any_potential, cell, monkeypatch
):
    single, exact = any_potential.astype("float32"), dynamical_matrix(any_potential, cell, Q[:1])
    q = np.concatenate([np.zeros((1, 3)), Q[:1]])

    def net_force(D) -> float:
        return np.abs(D[0].reshape(3, 3, 9).sum(axis=0)).max() / np.abs(exact).max()

    D = dynamical_matrix(single, cell, q)
    assert net_force(D) < 1e-14
    np.testing.assert_allclose(D[1:], exact, rtol=0, atol=1e-4 * np.abs(exact).max())
    columns = hessian_columns(single, cell, range(9)).reshape(1, 9, 9).swapaxes(1, 2)
    assert net_force(columns) < 2e-7  # they are kept in single precision
    monkeypatch.setattr(response, "without_net_force", lambda rows: rows)
    assert net_force(dynamical_matrix(single, cell, q)) > 1e-8


def test_only_rounding_is_taken_out_of_net_forces():
    rows = np.random.default_rng(0).normal(size=(2, 5, 3))
    rows[0] -= rows[0].mean(axis=0)
    single = rows.astype(np.float32)
    found = without_net_force(single)
    assert np.abs(single[0].sum(axis=0)).max() > 0
    assert np.abs(found[0].sum(axis=0)).max() < 1e-15
    np.testing.assert_array_equal(found[1], single[1])  # its net force is as large as the forces
    np.testing.assert_array_equal(without_net_force(rows), rows)


@pytest.mark.slow
def test_slopes_by_the_wave_vector_are_those_of_differences(any_potential, cell):
    """Waves are ours: what a network makes of them is in the dynamical matrices of each, see above."""
    D, slopes = bloch.slopes(Response(any_potential, cell), Q)
    np.testing.assert_allclose(D, dynamical_matrix(any_potential, cell, Q), rtol=0, atol=1e-12)
    for k, direction in enumerate(np.eye(3)):
        expected = central(lambda s, d=direction: dynamical_matrix(any_potential, cell, Q + s * d))
        np.testing.assert_allclose(slopes[:, k], expected, rtol=0, atol=1e-8 * np.abs(slopes).max())


@pytest.mark.slow
@pytest.mark.parametrize("relaxed", [False, True])
def test_slopes_by_strain_are_those_of_differences(network, cell, relaxed):
    eps = np.array([[1, 0.3, 0], [0.3, 0.5, 0.1], [0, 0.1, -0.2]])
    voigt = [1, 0.5, -0.2, 0.2, 0, 0.6]  # the shear strains doubled
    response = Response(network, cell)
    along = internal_motion(response, cell, eps) if relaxed else np.zeros((3, 3))
    D, slope = bloch.strained(response, Q, eps, along)
    if relaxed:
        np.testing.assert_allclose(along, internal_strain(network, cell) @ voigt, atol=1e-12)
    assert relaxed == (np.abs(along).max() > 1e-3)

    def strained(s: float) -> Atoms:
        moved = cell.copy()
        moved.set_cell(cell.cell.array @ (np.eye(3) + s * eps))
        moved.positions = cell.positions @ (np.eye(3) + s * eps) + s * along
        return moved

    np.testing.assert_allclose(D, dynamical_matrix(network, cell, Q), rtol=0, atol=1e-12)
    expected = central(lambda s: dynamical_matrix(network, strained(s), Q), 2e-4)
    np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-6 * np.abs(slope).max())
    if relaxed:
        # The cell is not at rest: what stays are the forces on fractional coordinates.
        forces = central(
            lambda s: network.predict(strained(s))["forces"] @ (np.eye(3) + s * eps),
            2e-4,
        )
        np.testing.assert_allclose(forces, 0, atol=1e-6 * np.abs(slope).max())


@pytest.mark.slow
def test_neither_blocks_nor_padding_nor_room_change_the_result(any_potential, cell):
    D = dynamical_matrix(any_potential, cell, Q)
    for block in (1, 4, 40):
        found = dynamical_matrix(any_potential, cell, Q, block_size=block)
        np.testing.assert_allclose(found, D, rtol=0, atol=1e-13)
    limit = dynamical_matrix(any_potential, cell, Q, memory_limit=2e10)
    np.testing.assert_allclose(limit, D, rtol=0, atol=1e-13)
    with pytest.raises(MemoryLimitError, match="alone needs"):
        dynamical_matrix(any_potential, cell, Q, memory_limit=1000.0)


def test_the_phases_of_positions_turn_the_matrix_and_leave_its_eigenvalues(any_potential, cell):
    by_cell = dynamical_matrix(any_potential, cell, Q, mass_weighted=True)
    by_atom = dynamical_matrix(any_potential, cell, Q, mass_weighted=True, phase="atoms")
    assert np.abs(by_atom - by_cell).max() > 1e-3 * np.abs(by_cell).max()
    np.testing.assert_allclose(np.linalg.eigvalsh(by_atom), np.linalg.eigvalsh(by_cell), rtol=0, atol=1e-12)
    # An atom written into another cell changes phases of cells, not of positions.
    moved = cell.copy()
    moved.positions[1] += cell.cell[0]
    found = dynamical_matrix(any_potential, moved, Q, mass_weighted=True, phase="atoms")
    np.testing.assert_allclose(found, by_atom, rtol=0, atol=1e-12)
    turned = position_phases(moved, Q) / position_phases(cell, Q)
    expected = np.repeat([np.ones(2), np.exp(2j * np.pi * Q[:, 0]), np.ones(2)], 3, axis=0).T
    np.testing.assert_allclose(turned, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("q_points", "message"),
    [
        ([0.0, 0.5, 0.0], r"shape \(3,\), needed \(q, 3\)"),
        ([[0.0, 0.5]], r"shape \(1, 2\)"),
        ([[0.0, 0.5, np.nan]], "wave vector 0 is not finite"),
    ],
)
def test_wave_vectors_of_another_shape_are_refused(any_potential, cell, q_points, message):
    with pytest.raises(ValueError, match=message):
        dynamical_matrix(any_potential, cell, q_points)


def test_few_columns_at_gamma_are_the_same_without_a_gradient_that_is_kept(any_potential, monkeypatch):
    doubled = bulk("NaCl", "rocksalt", 5.0).repeat((2, 1, 1))
    gamma = np.zeros((1, 3))
    expected = dynamical_matrix(any_potential, doubled, gamma)
    monkeypatch.setattr(response, "LARGE", 0)
    monkeypatch.setattr(linear_map, "linearise", None)
    monkeypatch.setattr(Response, "kept", 1)
    found = dynamical_matrix(any_potential, doubled, gamma, symmetry=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_no_wave_vectors_give_no_matrices(any_potential, cell):
    assert dynamical_matrix(any_potential, cell, np.zeros((0, 3))).shape == (0, 9, 9)


def test_one_program_serves_all_wave_vectors_of_all_crystals_of_a_size(any_potential, cell):
    dynamical_matrix(any_potential, cell, Q)
    before = linear_map.waves._cache_size()
    other = cell.copy()
    other.rattle(0.01, seed=1)
    dynamical_matrix(any_potential, other, Q + 0.1)
    assert linear_map.waves._cache_size() == before


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31))
def test_a_sum_onto_places_is_the_transpose_of_the_fetch_from_them(places, entities, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(places, 2)), rng.normal(size=(entities, 2))
    index, image = rng.integers(0, places, entities), rng.normal(size=(entities, 4))
    with jax.enable_x64(True), warnings.catch_warnings():
        there = jnp.vdot(gather(x, index, image), y)
        back = jnp.vdot(x, scatter_add(y, index, places, image))
        np.testing.assert_allclose(there, back, rtol=1e-12, atol=1e-12)
        # With and without images they are the same to a plain function and to its derivatives.
        slope = jax.grad(lambda x: jnp.sin(gather(x, index, image) * y).sum())(x)
        plain = jax.grad(lambda x: jnp.sin(x[index] * y).sum())(x)
        np.testing.assert_allclose(slope, plain, rtol=1e-12, atol=1e-12)
        many = jax.vmap(lambda x: gather(x, index, image))(jnp.stack([x, 2 * x]))
        np.testing.assert_allclose(many[1], 2 * x[index], rtol=1e-12)
