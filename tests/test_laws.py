"""Laws of physics and of the library that hold for every model, each written once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import make_supercell
from conftest import MODELS, small_potential

from jaxmlip import batching, hessian, hessian_columns
from jaxmlip.derivatives import gradient, hvp

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def rotation() -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def assert_same(a, b, **tolerance):
    for name in ("energy", "forces", "stress", "site_energies", "magmoms"):
        if name in a or name in b:
            np.testing.assert_allclose(a[name], b[name], err_msg=name, **(tolerance or TIGHT))


def test_energy_is_unchanged_and_forces_and_stress_turn_with_the_crystal(potential, crystal):
    turn, turned = rotation(), crystal.copy()
    turned.set_cell(crystal.cell @ turn.T, scale_atoms=True)
    p, q = potential.predict(crystal), potential.predict(turned)
    assert_same(q, {**p, "forces": p["forces"] @ turn.T, "stress": turn @ p["stress"] @ turn.T})


def test_a_reflection_changes_no_energy(potential, crystal):
    mirrored = crystal.copy()
    mirrored.set_cell(crystal.cell.array * [1, 1, -1], scale_atoms=True)
    np.testing.assert_allclose(
        potential.predict(mirrored)["energy"], potential.predict(crystal)["energy"], **TIGHT
    )


def test_nothing_changes_when_the_crystal_is_shifted_across_its_cell(potential, crystal):
    shifted = crystal.copy()
    shifted.positions += [1.3, -2.1, 9.7]
    wrapped = shifted.copy()
    wrapped.wrap()
    assert_same(potential.predict(shifted), potential.predict(crystal))
    assert_same(potential.predict(wrapped), potential.predict(crystal))


def test_another_choice_of_lattice_vectors_changes_nothing(potential, crystal):
    other = crystal.copy()
    other.set_cell(np.array([[1, 0, 0], [1, 1, 0], [-1, 2, 1]]) @ crystal.cell.array)
    assert_same(potential.predict(other), potential.predict(crystal))


def test_atoms_can_be_listed_in_any_order(potential, crystal):
    order = np.array([3, 0, 4, 1, 2])
    p, q = potential.predict(crystal), potential.predict(crystal[order])
    per_atom = ("forces", "site_energies", "magmoms")
    assert_same(q, {k: x[order] if k in per_atom else x for k, x in p.items()})


def test_a_supercell_has_the_energy_of_its_cells_and_their_forces(potential, crystal):
    p = potential.predict(crystal)
    q = potential.predict(make_supercell(crystal, [[2, 0, 0], [0, 1, 0], [1, 0, 1]], order="cell-major"))
    per_atom = {"forces", "site_energies", "magmoms"} & p.keys()
    twice = {k: np.concatenate([p[k], p[k]]) for k in per_atom}
    assert_same(q, {**twice, "energy": 2 * p["energy"], "stress": p["stress"]})


def test_a_batch_gives_what_each_crystal_gives_alone(architecture, crystals):
    together = architecture.predict(crystals)
    for alone, one in zip(map(architecture.predict, crystals), together, strict=True):
        assert_same(one, alone)


def test_site_energies_add_up_to_the_energy(potential, crystals):
    for p in potential.predict(crystals):
        np.testing.assert_allclose(p["site_energies"].sum(), p["energy"], **TIGHT)


def test_padding_changes_nothing_up_to_second_derivatives(architecture, crystal):
    graph = architecture.graph(crystal)
    exact = batching.need([graph])
    wide = batching.Capacity(*(n + 13 for n in exact[:4]), crystals=3)
    v = np.random.default_rng(1).normal(size=(len(crystal), 3))
    found = []

    def derivatives(packed, padded):
        energy = architecture.energy
        return energy(packed), gradient(energy, packed)(packed.positions), hvp(energy, packed, padded)

    for room in (exact, wide):
        packed = batching.pack([graph], room)
        padded = np.zeros_like(packed.positions)
        padded[: len(v)] = v
        with architecture.precision():
            e, slope, curvature = jax.jit(derivatives)(packed, padded)
        assert np.isfinite(slope).all()
        assert np.isfinite(curvature).all()
        np.testing.assert_array_equal(e[1:], 0)
        np.testing.assert_array_equal(slope[len(v) :], 0)
        np.testing.assert_array_equal(curvature[len(v) :], 0)
        found.append((e[0], slope[: len(v)], curvature[: len(v)]))
    for narrow, padded in zip(*found, strict=True):
        np.testing.assert_allclose(narrow, padded, **TIGHT)


def test_a_loss_on_a_hessian_column_has_finite_derivatives_by_every_parameter(architecture, crystal):
    packed = batching.pack([architecture.graph(crystal)])

    def loss(params):
        energy = partial(architecture.energy_fn, params)
        v = jnp.zeros_like(packed.positions).at[0, 0].set(1.0)
        return jnp.sum(hvp(energy, packed, v) ** 2)

    with architecture.precision():
        slopes = jax.jit(jax.grad(loss))(architecture.arrays)
    flat = jnp.concatenate([x.ravel() for x in jax.tree.leaves(slopes)])
    assert np.isfinite(flat).all()
    assert np.abs(flat).max() > 0


def test_a_potential_can_first_be_used_inside_a_function_that_is_compiled(crystal):
    fresh = small_potential("chgnet-0.3")
    packed = batching.pack([fresh.graph(crystal)])
    with fresh.precision():
        jax.jit(fresh.energy)(packed)
        assert np.isfinite(fresh.energy(packed)).all()


def test_forces_are_differences_of_energies(potential, crystal):
    step = 1e-4
    moved = []
    for sign in (1, -1):
        for k in range(3 * len(crystal)):
            atoms = crystal.copy()
            atoms.positions.reshape(-1)[k] += sign * step
            moved.append(atoms)
    energies = np.array([p["energy"] for p in potential.predict(moved)]).reshape(2, -1)
    slope = (energies[1] - energies[0]) / (2 * step)
    np.testing.assert_allclose(potential.predict(crystal)["forces"].ravel(), slope, rtol=1e-5, atol=1e-6)


def test_stress_is_differences_of_energies_under_strain(potential, crystal):
    step, stress, moved = 1e-5, np.zeros((3, 3)), []
    pairs = [(a, b) for a in range(3) for b in range(a, 3)]
    for a, b in pairs:
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            atoms = crystal.copy()
            atoms.set_cell(crystal.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            moved.append(atoms)
    energies = np.array([p["energy"] for p in potential.predict(moved)]).reshape(-1, 2)
    for (a, b), (up, down) in zip(pairs, energies, strict=True):
        stress[a, b] = stress[b, a] = (up - down) / (2 * step) / crystal.get_volume()
    np.testing.assert_allclose(potential.predict(crystal)["stress"], stress, rtol=1e-5, atol=1e-8)


def test_the_hessian_is_differences_of_forces_and_symmetric_with_three_zero_modes(potential, crystal):
    h = hessian(potential, crystal)
    step, moved = 1e-4, []
    for k in range(len(h)):
        for sign in (1, -1):
            atoms = crystal.copy()
            atoms.positions.reshape(-1)[k] += sign * step
            moved.append(atoms)
    forces = np.array([p["forces"].ravel() for p in potential.predict(moved)]).reshape(-1, 2, len(h))
    scale = np.abs(h).max()
    np.testing.assert_allclose(h, (forces[:, 1] - forces[:, 0]) / (2 * step), atol=1e-5 * scale)
    np.testing.assert_allclose(h, h.T, atol=1e-10 * scale)
    shifts = np.tile(np.eye(3), (len(crystal), 1))
    np.testing.assert_allclose(h @ shifts, 0, atol=1e-10 * scale)


def test_hessian_columns_are_hessian_vector_products(architecture, crystal):
    columns = [4, 0, 13]
    rows = hessian_columns(architecture, crystal, columns, block_size=2)
    packed = batching.pack([architecture.graph(crystal)])
    product = jax.jit(partial(hvp, architecture.energy, packed))
    for row, k in zip(rows, columns, strict=True):
        v = np.zeros_like(packed.positions)
        v.reshape(-1)[k] = 1
        with architecture.precision():
            column = product(v)
        np.testing.assert_allclose(row, np.ravel(column)[: len(row)], **TIGHT)


def trimer(d: float) -> Atoms:
    """Al is d away from Mg, which is bonded to O."""
    return Atoms("MgOAl", [[0, 0, 0], [2, 0, 0], [0, d, 0]], cell=[14, 14, 14], pbc=True)


def test_the_energy_is_smooth_where_a_neighbour_crosses_a_cutoff(potential):
    """A bond appears at one cutoff, an angle at the other."""
    cutoffs = [cutoff for cutoff in potential.cutoffs[:2] if cutoff]
    if not getattr(potential.model.config, "smooth", True):
        cutoffs = cutoffs[1:]  # see the next test
    for cutoff in cutoffs:
        step = 1e-3
        trimers = [trimer(d) for d in cutoff + step * np.arange(-4, 5)]
        counts = {(g.short, len(g.first)) for g in map(potential.graph, trimers)}
        assert len(counts) == 2, "no neighbour crosses the cutoff"
        pull = np.array([p["forces"][2, 1] for p in potential.predict(trimers)])
        slope = np.diff(pull) / step
        # A kink of the force would show as a step of its slope that does not shrink with the spacing.
        assert np.abs(np.diff(slope)).max() < 0.05 * np.abs(pull).max() + 1e-4
        assert np.abs(np.diff(pull)).max() < 0.05 * np.abs(pull).max() + 1e-6


def test_spherical_bessel_functions_let_forces_jump_at_the_cutoff_but_not_energies():
    """The radial functions of Chen & Ong without the smooth recursion vanish there with a slope."""
    potential = small_potential("m3gnet-spherical")
    below, above = (potential.predict(trimer(4.0 + d)) for d in (-1e-9, 1e-9))
    assert (
        len(potential.graph(trimer(4.0 - 1e-9)).first) == len(potential.graph(trimer(4.0 + 1e-9)).first) + 1
    )
    np.testing.assert_allclose(below["energy"], above["energy"], rtol=0, atol=1e-7)
    assert np.abs(below["forces"] - above["forces"]).max() > 1e-3


def test_an_isolated_atom_is_the_limit_of_pulling_atoms_apart(potential):
    alone = [Atoms(s, cell=[10, 10, 10], pbc=True) for s in ("Mg", "O")]
    pair = Atoms("MgO", [[0, 0, 0], [0, 0, 4 - 1e-10]], cell=[20, 20, 20], pbc=True)
    *single, both = potential.predict([*alone, pair])
    np.testing.assert_allclose(both["site_energies"], [p["energy"] for p in single], atol=1e-9)
    for p in single:
        np.testing.assert_array_equal(p["forces"], 0)
        np.testing.assert_array_equal(p["stress"], 0)
    np.testing.assert_array_equal(hessian(potential, alone[0]), 0)


def test_float32_is_close_to_float64(potential, crystal):
    name = potential.name
    assert name in MODELS
    single = small_potential(name, "float32").predict(crystal)
    assert single["forces"].dtype == np.float32
    assert_same(single, potential.predict(crystal), rtol=1e-4, atol=2e-4)
