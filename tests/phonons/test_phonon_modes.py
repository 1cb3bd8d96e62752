"""Phonon modes: symmetry, Fourier sums, slopes, densities of states, thermodynamics, the long-range part."""

import gc
import json
import warnings
import weakref
from dataclasses import replace

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmlip.crystals import symmetry
from jaxmlip.crystals.symmetry import needed_columns, primitive_cell, reduced_mesh, space_group, unfold
from jaxmlip.derivatives import linear_map
from jaxmlip.phonons import bloch
from jaxmlip.phonons.density import _corner_weights, density_of_states, thermodynamics
from jaxmlip.phonons.lattice import (
    Lattice,
    band_modes,
    group_velocities,
    grueneisen,
    mesh_force_constants,
    mesh_modes,
    phonon_modes,
)
from jaxmlip.phonons.modes import animation
from jaxmlip.phonons.nac import NAC, long_range, long_range_slopes, long_range_strained
from jaxmlip.phonons.report import as_record, default_mesh, draw, main, phonons, table
from jaxmlip.phonons.supercell import force_constants
from jaxmlip.units import COULOMB, THZ_PER_ROOT_EV_PER_A2_U

# The crystals of these tests are not at rest in a random network.
pytestmark = pytest.mark.filterwarnings("ignore::jaxmlip.mechanics.elasticity.NotAtRestWarning")
Q = np.array([[0.13, -0.41, 0.27], [0.5, 0.2, -0.35]])


@pytest.fixture(scope="module")
def salt() -> Atoms:
    return bulk("NaCl", "rocksalt", 5.0)


def corundum() -> Atoms:
    """Ten atoms, inversion between them, and a glide plane."""
    from ase.spacegroup import crystal

    whole = crystal(
        ["Al", "O"],
        [(0, 0, 0.352), (0.306, 0, 0.25)],
        spacegroup=167,
        cellpar=[4.8, 4.8, 13.1, 90, 90, 120],
        primitive_cell=True,
    )
    return Atoms(whole.numbers, whole.positions, cell=whole.cell, pbc=True)


@pytest.fixture(scope="module")
def wurtzite() -> Atoms:
    """A space group with a screw axis and a glide plane."""
    return bulk("ZnO", "wurtzite", a=3.2, c=5.2, u=0.38)


def test_the_group_takes_atoms_to_atoms_and_keeps_distances(wurtzite):
    group = space_group(wurtzite)
    assert len(group.rotations) == 12
    np.testing.assert_array_equal(group.orbits, [0, 0, 2, 2] if wurtzite.numbers[1] == 30 else [0, 1, 0, 1])
    identity = np.eye(3)[None]
    np.testing.assert_allclose(
        group.cartesian @ group.cartesian.swapaxes(1, 2), identity + 0 * group.cartesian, atol=1e-9
    )


@pytest.mark.parametrize("mesh", [(3, 3, 2), (2, 3, 4)])
def test_a_reduced_mesh_stands_for_all_points_whatever_its_shape(any_potential, wurtzite, mesh):
    group = space_group(wurtzite)
    reduced = reduced_mesh(mesh, group)
    assert reduced.weights.sum() == np.prod(mesh)
    assert len(reduced.q_points) < np.prod(mesh)
    D = bloch.dynamical_matrix(any_potential, wurtzite, reduced.q_points)
    expected = bloch.dynamical_matrix(any_potential, wurtzite, reduced.points)
    assert np.abs(expected.imag).max() > 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(unfold(D, reduced, group), expected, rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def doubled() -> Atoms:
    """A cell of two primitive cells, so that a translation is among its operations."""
    return bulk("NaCl", "rocksalt", 5.0).repeat((2, 1, 1))


@pytest.mark.parametrize(
    "name", ["wurtzite", pytest.param("corundum", marks=pytest.mark.slow), "salt", "doubled"]
)
def test_symmetry_gives_the_columns_that_are_not_computed(any_potential, name, request):
    crystal = corundum() if name == "corundum" else request.getfixturevalue(name)
    q = np.array(
        [[0, 0, 0], [0.5, 0, 0], [0.1, 0.1, 0.1], [0.2, -0.2, 0], [0.1, 0.2, 0.2], [0.13, -0.41, 0.27]]
    )
    pairs = needed_columns(q, space_group(crystal))
    assert np.bincount(pairs.wave).min() < 3 * len(crystal) / 2
    found = bloch.dynamical_matrix(any_potential, crystal, q, symmetry=True)
    expected = bloch.dynamical_matrix(any_potential, crystal, q)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_force_constants_of_a_mesh_are_those_of_the_supercell(any_potential, wurtzite):
    found = mesh_force_constants(any_potential, wurtzite, (2, 2, 1))
    expected = force_constants(any_potential, wurtzite, (2, 2, 1))
    np.testing.assert_allclose(found.phi, expected.phi, rtol=0, atol=1e-10)


def test_a_fourier_sum_is_taken_where_it_is_cheaper_and_agrees_with_exact_matrices(any_potential, salt):
    mesh = (16, 16, 16)
    chosen = mesh_modes(any_potential, salt, mesh, tolerance=1e-4)
    assert chosen.method.startswith("Fourier sum from")
    exact = mesh_modes(any_potential, salt, mesh, method="exact")
    assert exact.method == "exact at each wave vector"
    found, expected = chosen.frequencies, exact.frequencies
    squares = np.sign(found) * found**2 - np.sign(expected) * expected**2
    assert np.abs(squares / (2 * np.maximum(np.abs(expected), 0.1))).max() < 2e-4
    assert phonon_modes(any_potential, salt, Q).method == "exact at each wave vector"


def test_what_was_computed_is_freed_with_the_lattice(any_potential, salt):
    gc.disable()
    try:
        lattice = Lattice(any_potential, salt)
        response = weakref.ref(lattice.response)
        del lattice
        assert response() is None
    finally:
        gc.enable()


def test_acoustic_modes_at_gamma_are_still(any_potential, salt):
    found = phonon_modes(any_potential, salt, np.zeros((1, 3)))
    slowest = np.sort(np.abs(found.frequencies[0]))[:3]
    assert slowest.max() < 1e-4
    assert found.asymmetry < 1e-12
    assert found.max_force < 1e-10


def test_eigenvectors_diagonalise_the_matrix_in_the_phases_of_positions(any_potential, wurtzite):
    found = phonon_modes(any_potential, wurtzite, Q)
    D = bloch.dynamical_matrix(any_potential, wurtzite, Q, mass_weighted=True, phase="atoms")
    e = found.eigenvectors
    squares = np.sign(found.frequencies) * (found.frequencies / THZ_PER_ROOT_EV_PER_A2_U) ** 2
    np.testing.assert_allclose(D @ e, e * squares[:, None], rtol=0, atol=1e-12)
    np.testing.assert_allclose(e.conj().swapaxes(1, 2) @ e, np.eye(12) + np.zeros((2, 1, 1)), atol=1e-12)


def test_group_velocities_are_slopes_of_the_branches(any_potential, cell):
    thz, v = group_velocities(any_potential, cell, Q)
    direction, h = np.array([0.3, -0.5, 0.8]), 5e-4  # 1/Å, 2π included
    step = direction @ cell.cell.array.T / (2 * np.pi)

    def at(s):
        return phonon_modes(any_potential, cell, Q + s * step, method="exact").frequencies

    slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    # ω = 2π ν; v = ∂ω/∂k
    expected = 2 * np.pi * slope
    np.testing.assert_allclose(v @ direction, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert np.abs(thz).min() > 1e-2


def test_grueneisen_parameters_are_logarithmic_slopes_of_the_branches(any_potential, cell):
    thz, gamma = grueneisen(any_potential, cell, Q, relaxed=False)

    def at(s):
        strained = cell.copy()
        strained.set_cell(cell.cell.array * (1 + s / 3), scale_atoms=True)
        return phonon_modes(any_potential, strained, Q, method="exact").frequencies

    h = 3e-4
    slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    np.testing.assert_allclose(gamma, -slope / thz, rtol=0, atol=1e-6 * np.abs(gamma).max())
    following = grueneisen(any_potential, cell, Q)[1]
    assert np.abs(following - gamma).max() > 1e-6


def test_the_default_mesh_is_dense_along_short_vectors_and_one_where_nothing_repeats():
    cell = bulk("NaCl", "rocksalt", 5.64, cubic=True) * (1, 2, 4)
    assert default_mesh(cell) == (9, 5, 3)
    cell.pbc = (True, True, False)
    assert default_mesh(cell) == (9, 5, 1)


@pytest.fixture(scope="module")
def on_mesh(any_potential):
    crystal = bulk("ZnO", "wurtzite", a=3.2, c=5.2, u=0.38)
    return mesh_modes(any_potential, crystal, (4, 4, 3), method="exact")


@pytest.mark.parametrize("width", [None, 0.3])
def test_a_density_of_states_counts_every_mode_once(any_potential, on_mesh, width):
    f = on_mesh.frequencies
    thz = np.linspace(f.min() - 3, f.max() + 3, 4001)
    density = density_of_states(on_mesh, thz, width)
    np.testing.assert_allclose(np.trapezoid(density.total, thz), 12, rtol=2e-3)
    np.testing.assert_allclose(density.projected.sum(axis=0), density.total, rtol=0, atol=1e-9)
    every = mesh_modes(any_potential, on_mesh.primitive, (4, 4, 3), symmetry=False, method="exact")
    assert len(every.q_points) > len(on_mesh.q_points)
    whole = density_of_states(every, thz, width)
    np.testing.assert_allclose(density.total, whole.total, rtol=0, atol=1e-4 * whole.total.max())
    np.testing.assert_allclose(density.projected, whole.projected, rtol=0, atol=1e-3 * whole.total.max())


def test_a_mesh_has_the_symmetry_of_the_masses_and_so_has_what_is_summed_over_it(any_potential, doubled):
    one_heavy = doubled.copy()
    masses = one_heavy.get_masses()
    masses[1] = 80.0
    one_heavy.set_masses(masses)
    few, every = (
        mesh_modes(any_potential, one_heavy, (2, 2, 2), symmetry=symmetry, method="exact")
        for symmetry in (True, False)
    )
    assert len(few.q_points) < len(every.q_points)
    means = [found.weights @ found.frequencies for found in (few, every)]
    np.testing.assert_allclose(*means, rtol=0, atol=1e-8)
    densities = [density_of_states(found, width=0.2).projected for found in (few, every)]
    np.testing.assert_allclose(*densities, rtol=0, atol=1e-6)
    # The two chlorine atoms move differently, which the mean over images of elements would hide.
    assert np.abs(densities[1][1] - densities[1][3]).max() > 0.1 * densities[1].max()


def test_a_density_projected_on_atoms_has_no_symmetry_that_the_mesh_lacks(any_potential):
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    perovskite = Atoms("BaTiO3", cell=3 * [3.9], scaled_positions=places, pbc=True)
    few, every = (
        density_of_states(
            mesh_modes(any_potential, perovskite, (1, 3, 3), symmetry=symmetry, method="exact"), width=0.2
        ).projected
        for symmetry in (True, False)
    )
    np.testing.assert_allclose(few, every, rtol=0, atol=1e-6)
    assert np.abs(every[2] - every[4]).max() > 0.01 * every.max()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.floats(0, 1))
def test_weights_of_corners_are_those_of_counting_points_in_a_tetrahedron(corners, where):
    e = np.sort(np.array(corners)) + 0.05 * np.arange(4)
    E = e[0] + where * (e[3] - e[0])
    rng = np.random.default_rng(0)
    inside = rng.dirichlet(np.ones(4), 400_000)  # evenly over the tetrahedron
    width = 0.02 * (e[3] - e[0])
    near = np.abs(inside @ e - E) < width
    counted = (inside * near[:, None]).mean(axis=0) / (2 * width)
    # The same average over the width, of the formula.
    shifts = np.linspace(-width, width, 81) * (1 - 1e-9)
    some = [_corner_weights(E + s, e[None])[0] * (e[0] < E + s < e[3]) for s in shifts]
    np.testing.assert_allclose(np.mean(some, axis=0), counted, rtol=0, atol=0.06 / (e[3] - e[0]))


def test_thermodynamic_functions_are_slopes_of_each_other_and_reach_dulong_and_petit(on_mesh):
    T = np.array([299.0, 300.0, 301.0])
    t = thermodynamics(on_mesh, T)
    np.testing.assert_allclose(-(t.free_energy[2] - t.free_energy[0]) / 2 * 1e3, t.entropy[1], rtol=1e-5)
    np.testing.assert_allclose(300 * (t.entropy[2] - t.entropy[0]) / 2, t.heat_capacity[1], rtol=1e-5)
    real = (on_mesh.frequencies > 1e-2) * on_mesh.weights[:, None]
    hot = thermodynamics(on_mesh, [1e5])
    np.testing.assert_allclose(hot.heat_capacity, 8.31446 * real.sum(), rtol=1e-4)
    cold = thermodynamics(on_mesh, [0.0])
    zero_point = (real * on_mesh.frequencies).sum() / 2 * 6.62607015e-34 * 1e12 * 6.02214076e23 / 1e3
    np.testing.assert_allclose(cold.free_energy, zero_point, rtol=1e-9)
    assert cold.entropy[0] == cold.heat_capacity[0] == 0
    with pytest.raises(ValueError, match="0 or more"):
        thermodynamics(on_mesh, [-1.0])


@pytest.mark.parametrize("slow", [-0.05, -0.005, 0.005, -0.5])
def test_every_mode_that_takes_no_part_is_counted_but_the_three_shifts(any_potential, salt, slow):
    found = mesh_modes(any_potential, salt, (3, 3, 3), method="exact")
    stable = replace(found, frequencies=np.abs(found.frequencies) + 0.1)
    # Whatever rounding makes of them, the shifts at q = 0 take no part, and are not counted.
    assert thermodynamics(stable, [300.0]).left_out == 0
    np.testing.assert_allclose(thermodynamics(stable, [1e5]).heat_capacity, 8.31446 * (6 - 3 / 27), rtol=1e-5)
    soft = stable.frequencies.copy()
    soft[1:, 0] = slow
    soft = replace(stable, frequencies=soft)
    heat = thermodynamics(soft, [1e5])
    np.testing.assert_allclose(heat.left_out, 26 / 27 / 6, rtol=1e-12)
    np.testing.assert_allclose(heat.imaginary, 26 / 27 / 6 if slow == -0.5 else 0, rtol=1e-12)
    np.testing.assert_allclose(heat.heat_capacity, 8.31446 * (5 - 2 / 27), rtol=1e-5)
    for width in (None, 0.02):
        density = density_of_states(soft, width=width)
        if slow < 0:
            assert density.thz[0] < slow
            np.testing.assert_allclose(np.trapezoid(density.total, density.thz), 6, rtol=0.01)


@pytest.fixture(scope="module")
def nac() -> NAC:
    return NAC(np.array([1.1 * np.eye(3), -1.1 * np.eye(3)]), 2.4 * np.eye(3), (3, 3, 3))


def test_the_long_range_part_splits_optical_modes_by_the_plasma_frequency(any_potential, salt, nac):
    direction = np.array([0.2, 0.5, -0.1])
    plain = phonon_modes(any_potential, salt, np.zeros((1, 3))).frequencies[0]
    split = phonon_modes(any_potential, salt, np.zeros((1, 3)), nac=nac, directions=direction[None])
    m = salt.get_masses()
    reduced = m.prod() / m.sum()
    plasma = 4 * np.pi * COULOMB * 1.1**2 / (salt.cell.volume * 2.4 * reduced) * THZ_PER_ROOT_EV_PER_A2_U**2
    squares, before = (np.sort(np.sign(f) * f**2) for f in (split.frequencies[0], plain))
    np.testing.assert_allclose(squares.sum() - before.sum(), plasma, rtol=1e-8)
    assert split.nac is not None
    # Along no direction there is no limit, and nothing is added.
    same = phonon_modes(any_potential, salt, np.zeros((1, 3)), nac=nac).frequencies[0]
    np.testing.assert_allclose(same, plain, rtol=0, atol=1e-6)


def test_the_long_range_part_vanishes_on_its_mesh_and_is_continuous_towards_its_limit(salt, nac):
    q = np.array([[1 / 3, 0, 0], [2 / 3, 1 / 3, 0]])
    scale = np.abs(long_range(nac, salt, np.zeros((1, 3)), np.array([[1.0, 0, 0]]))).max()
    assert np.abs(long_range(nac, salt, q)).max() < 1e-6 * scale
    direction = np.array([0.1, 0.3, -0.2])
    limit = long_range(nac, salt, np.zeros((1, 3)), direction[None])
    near = long_range(nac, salt, 1e-4 * direction[None])
    np.testing.assert_allclose(near, limit, rtol=0, atol=1e-2 * scale * 0.05)
    D = long_range(nac, salt, Q)
    assert bloch.asymmetry(D) < 1e-9 * scale


@pytest.mark.parametrize("vectors", [[[1, 0, 0], [3, 1, 0], [5, -4, 1]], [[2, 1, 0], [5, 3, 0], [4, 3, 1]]])
def test_the_long_range_part_is_that_of_the_crystal_whatever_its_lattice_vectors(salt, nac, vectors):
    """On a mesh of one point the nearest images of an atom in a skewed cell lie several vectors away."""
    skewed = Atoms(salt.symbols, cell=vectors @ salt.cell.array, positions=salt.positions, pbc=True)
    skewed.wrap()
    of_one = replace(nac, mesh=(1, 1, 1))
    waves = np.array(
        [[0.31, 0.12, 0.05], [0.12, 0.31, 0.05], [-0.31, 0.05, 0.12]]
    )  # alike in a cubic crystal
    wanted, *found = (
        np.linalg.eigvalsh(long_range(of_one, atoms, waves @ atoms.cell.array.T)) for atoms in (salt, skewed)
    )
    np.testing.assert_allclose(wanted, wanted[[0, 0, 0]], atol=1e-9)
    np.testing.assert_allclose(*found, wanted, atol=1e-9)


def test_slopes_of_the_long_range_part_are_those_of_differences(salt, nac):
    q = np.array([[0.1, 0.23, -0.4], [0.31, 0.02, 0.17]])
    step, h = np.array([0.3, -0.5, 0.8]), 1e-4
    slopes = np.tensordot(step, long_range_slopes(nac, salt, q), (0, 1))
    found = (long_range(nac, salt, q + h * step) - long_range(nac, salt, q - h * step)) / (2 * h)
    np.testing.assert_allclose(slopes, found, rtol=0, atol=1e-6 * np.abs(found).max())

    along = np.array([[0.0, 0.0, 0.0], [0.3, -0.1, 0.2]])

    def strained(s, all_alike):
        moved = salt.copy()
        moved.set_cell(salt.cell.array * (1 + s * all_alike), scale_atoms=True)
        moved.positions += s * along * (not all_alike)
        return long_range(nac, moved, q)

    for all_alike in (True, False):
        change = (np.eye(3), 0 * along) if all_alike else (np.zeros((3, 3)), along)
        found = (strained(h, all_alike) - strained(-h, all_alike)) / (2 * h)
        slope = long_range_strained(nac, salt, q, *change)
        np.testing.assert_allclose(slope, found, rtol=0, atol=1e-6 * np.abs(found).max())


@pytest.mark.slow
def test_velocities_and_grueneisen_parameters_hold_the_long_range_part(any_potential, cell):
    nac = NAC(np.array([1.1, -0.8, -0.3])[:, None, None] * np.eye(3), 2.4 * np.eye(3), (3, 3, 3))
    q = np.array([[0.1, 0.23, -0.4]])

    def frequencies(q, scale=1.0):
        scaled = cell.copy()
        scaled.set_cell(cell.cell.array * scale, scale_atoms=True)
        return phonon_modes(any_potential, scaled, q, nac=nac, method="exact").frequencies

    step, h = np.array([0.3, -0.5, 0.8]), 3e-5
    thz, v = group_velocities(any_potential, cell, q, nac=nac)
    np.testing.assert_allclose(thz, frequencies(q), rtol=1e-9)
    assert np.abs(thz - group_velocities(any_potential, cell, q)[0]).max() > 1e-2
    along = 2 * np.pi * step @ np.linalg.inv(cell.cell.array).T
    found = 2 * np.pi * (frequencies(q + h * step) - frequencies(q - h * step)) / (2 * h)
    np.testing.assert_allclose(v @ along, found, rtol=0, atol=1e-5 * np.abs(found).max())
    gamma = grueneisen(any_potential, cell, q, nac=nac, relaxed=False)[1]
    found = -(frequencies(q, 1 + h) - frequencies(q, 1 - h)) / (2 * h) / (3 * thz)
    np.testing.assert_allclose(gamma, found, rtol=0, atol=1e-5 * np.abs(found).max())


def test_charges_without_the_symmetry_of_the_crystal_are_said_to_be_and_reduce_no_mesh(any_potential, salt):
    along_x = NAC(np.array([np.diag([2.0, 1, 1]), -np.diag([2.0, 1, 1])]), 2.4 * np.eye(3), (2, 2, 2))
    with pytest.warns(UserWarning, match=r"lack the symmetry of ClNa, by up to 1\."):
        found = mesh_modes(any_potential, salt, (2, 2, 2), nac=along_x)
    assert len(found.q_points) == 8
    uneven = NAC(np.array([np.eye(3), -np.eye(3)]), 2.4 * np.eye(3), (2, 3, 3))
    few, every = (
        mesh_modes(any_potential, salt, (4, 4, 4), nac=uneven, symmetry=symmetry, method="exact")
        for symmetry in (True, False)
    )
    assert len(few.q_points) < len(every.q_points)
    means = [found.weights @ found.frequencies for found in (few, every)]
    np.testing.assert_allclose(*means, rtol=0, atol=1e-6)


def test_charges_of_another_cell_are_refused(any_potential, salt, nac):
    other = NAC(np.zeros((3, 3, 3)), np.eye(3))
    with pytest.raises(ValueError, match=r"shape \(3, 3, 3\).*needed \(2, 3, 3\).*another cell"):
        phonon_modes(any_potential, salt, Q, nac=other)
    with pytest.raises(ValueError, match="positive definite"):
        long_range(NAC(nac.born, -np.eye(3)), salt, Q)


def test_bands_hold_both_ends_of_each_segment_and_name_them(any_potential, salt):
    bands = band_modes(any_potential, salt, "GXK,GL", points=20)
    assert [(s.first, s.last) for s in bands.segments] == [("G", "X"), ("X", "K"), ("G", "L")]
    q = bands.modes.q_points
    np.testing.assert_allclose(q[bands.segments[0].rows][[0, -1]], [[0, 0, 0], [0.5, 0, 0.5]], atol=1e-12)
    assert 18 <= len(q) <= 24
    assert (np.diff(bands.distance) >= 0).all()
    with pytest.raises(ValueError, match=r"unknown points Y.*needed names of this lattice, .*such as GX,KG"):
        band_modes(any_potential, salt, "GY")


@pytest.mark.filterwarnings("ignore:Fe carries magnetic moments")
def test_what_a_cell_is_not_is_said_and_the_work_done(any_potential):
    cubic = bulk("NaCl", "rocksalt", 5.0, cubic=True)
    with pytest.warns(UserWarning, match="is 4 primitive cells"):
        found = phonon_modes(any_potential, cubic, np.zeros((1, 3)))
    assert found.frequencies.shape == (1, 24)
    iron = bulk("Fe", "bcc", 2.8)
    iron.set_initial_magnetic_moments([2.0])
    with pytest.warns(UserWarning, match="magnetic moments"):
        phonon_modes(any_potential, iron, np.zeros((1, 3)))
    with pytest.raises(ValueError, match="three positive whole numbers"):
        mesh_modes(any_potential, iron, (2, 0, 1))
    with pytest.raises(ValueError, match="'auto', 'exact' or 'fourier'"):
        phonon_modes(any_potential, iron, Q, method="fast")


def test_coordinates_of_four_digits_are_said_to_be_nearly_symmetric_and_symprec_takes_them_so(any_potential):
    exact = bulk("ZnO", "wurtzite", a=3.2, c=5.2, u=0.38)
    rounded = exact.copy()
    rounded.set_scaled_positions(exact.get_scaled_positions().round(4))
    q = np.array([[0.0, 0.0, 0.1]])
    with pytest.warns(UserWarning, match=r"nearly P6_3mc \(186\): 12 .*--relax.*symprec=0\.01"):
        split = phonon_modes(any_potential, rounded, q).frequencies[0]
    assert np.diff(split).min() > 1e-7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is not relaxed")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of spglib
        mesh = mesh_modes(any_potential, rounded, (3, 3, 1), symprec=1e-2)
        same = mesh_modes(any_potential, exact, (3, 3, 1))
        whole = phonon_modes(any_potential, rounded, q, symprec=1e-2).frequencies[0]
    assert np.diff(whole).min() < 1e-7
    np.testing.assert_array_equal(mesh.mesh.weights, same.mesh.weights)


def test_what_remains_of_forces_and_stresses_is_told_and_warned_of(any_potential, salt):
    with pytest.warns(UserWarning, match=r"ClNa is not relaxed: forces .* stresses up to .* GPa"):
        found = phonon_modes(any_potential, salt, np.zeros((1, 3)))
    expected = any_potential.predict(salt)["stress"] * 160.21766
    np.testing.assert_allclose(found.stress, expected, rtol=1e-6, atol=1e-9)


def test_an_animation_is_one_period_of_the_wave(any_potential, salt):
    found = phonon_modes(any_potential, salt, np.array([[0.5, 0.0, 0.5]]))
    frames = animation(found, 0, 5, repeats=(2, 1, 2), amplitude=0.2, frames=8)
    still = salt.repeat((2, 1, 2))
    moved = np.array([frame.positions - still.positions for frame in frames])
    np.testing.assert_allclose(moved.sum(axis=0), 0, atol=1e-12)
    assert 0.14 < np.linalg.norm(moved, axis=-1).max() <= 0.2 + 1e-12
    # At this wave vector cells along the first and the third vector are in antiphase.
    np.testing.assert_allclose(moved[:, :2], -moved[:, 2:4], atol=1e-12)
    assert frames[0].info["frequency_THz"] == found.frequencies[0, 5]


def test_the_report_is_json_and_a_figure(any_potential, salt, nac, tmp_path):
    found = phonons(Lattice(any_potential, salt, nac=nac), points=15, mesh=(3, 3, 3))
    record = json.loads(json.dumps(as_record(found)))
    assert record["long_range"]["mesh"] == [3, 3, 3]
    assert np.shape(record["bands"]["frequencies"])[1] == 6
    assert np.sum(record["mesh"]["weights"]) == 27
    assert len(table(found).rows) == 13
    draw(found, tmp_path / "phonons.png")
    assert (tmp_path / "phonons.png").stat().st_size > 10_000


def test_what_the_command_computed_it_computes_once(any_potential, tmp_path, monkeypatch):
    """spglib for each question, the graph, the linear map, and D at each wave vector of a mesh."""
    crystal = bulk("ZnO", "wurtzite", a=3.2, c=5.2, u=0.38)
    asked, graphs, maps, waves = [], [], [], []
    found, graph_of = symmetry.symmetry_dataset, type(any_potential).graph
    linearise, matrices = linear_map.linearise, bloch.matrices

    def dataset(atoms, tolerance, kind=None):
        asked.append((atoms.cell.array.tobytes(), atoms.positions.tobytes(), kind.tobytes(), tolerance))
        return found(atoms, tolerance, kind)

    def matrices_of(its, q_points, group=None):
        waves.extend(map(tuple, q_points.round(9).tolist()))
        return matrices(its, q_points, group)

    monkeypatch.setattr(symmetry, "symmetry_dataset", dataset)
    monkeypatch.setattr(type(any_potential), "graph", lambda *args: graphs.append(1) or graph_of(*args))
    monkeypatch.setattr(linear_map, "linearise", Counted(linearise, maps))
    monkeypatch.setattr(bloch, "matrices", matrices_of)
    main(any_potential, crystal, tmp_path, points=40, mesh=(9, 9, 6), tolerance=0.1)
    record = json.loads((tmp_path / "phonons.json").read_text())
    assert record["bands"]["method"].startswith("Fourier sum")
    assert len(asked) == len(set(asked)) == 2  # within the tolerance, and whether there is more nearly so
    assert (len(graphs), len(maps)) == (1, 1)
    assert len(waves) == len(set(waves))


class Counted:
    """A compiled function that writes down its calls."""

    def __init__(self, function, calls: list):
        self.function, self.calls = function, calls

    def __call__(self, *args):
        # What is traced to learn shapes is not computed.
        if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args[1:])):
            self.calls.append(1)
        return self.function(*args)


def test_a_conventional_cell_is_reduced_with_a_line_that_says_so(any_potential, tmp_path, capsys):
    cubic = bulk("NaCl", "rocksalt", 5.0, cubic=True)
    cubic.rotate(30, (1, 2, 3), rotate_cell=True)
    small = {"points": 12, "mesh": (2, 2, 2)}
    records = {}
    for name, crystal, keep in (
        ("reduced", cubic, False),
        ("primitive", primitive_cell(cubic), False),
        ("kept", cubic, True),
    ):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            main(any_potential, crystal, tmp_path / name, keep_cell=keep, **small)
        told = capsys.readouterr().out
        assert ("is 4 primitive cells" in told) == ("--keep-cell" in told) == (name == "reduced")
        words = [str(w.message) for w in said]
        assert sum("is 4 primitive cells" in w for w in words) == (1 if keep else 0)
        assert sum("is not relaxed" in w for w in words) == 1
        records[name] = json.loads((tmp_path / name / "phonons.json").read_text())
    reduced, primitive, kept = (records[name] for name in ("reduced", "primitive", "kept"))
    path = reduced["bands"]["segments"]
    assert path[0]["from"] + "".join(s["to"] for s in path[:9]) == "GXWKGLUWLK"
    assert "".join(s["to"] for s in kept["bands"]["segments"]).startswith("XMGR")
    assert reduced["bands"] == primitive["bands"]
    heat = [r["thermodynamics"] for r in (reduced, kept)]
    assert [t["per"] for t in heat] == [
        "mole of primitive cells (2 atoms)",
        "mole of cells as given (8 atoms, 4 primitive cells)",
    ]
    assert [t["primitive_cells_per_cell"] for t in heat] == [1, 4]
    assert np.abs(reduced["stress_GPa"]).max() > 0.5


@pytest.mark.filterwarnings("ignore:Cl4Na4 is 4 primitive cells")
@pytest.mark.slow
def test_charges_of_a_born_file_serve_the_given_and_the_primitive_cell(any_potential, tmp_path):
    pytest.importorskip("phonopy")
    (tmp_path / "BORN").write_text("14.4\n2 0 0 0 2 0 0 0 2\n1 0 0 0 1 0 0 0 1\n-1 0 0 0 -1 0 0 0 -1\n")
    cubic = bulk("NaCl", "rocksalt", 5.0, cubic=True)
    small = {"points": 6, "mesh": (1, 1, 1), "born": tmp_path / "BORN"}
    for keep, atoms in ((False, 2), (True, 8)):
        main(any_potential, cubic, tmp_path / "out", path="GX", keep_cell=keep, **small)
        record = json.loads((tmp_path / "out" / "phonons.json").read_text())
        charges = np.array(record["long_range"]["born"])[:, 0, 0]
        np.testing.assert_allclose(charges, np.tile([1, -1], atoms // 2))
