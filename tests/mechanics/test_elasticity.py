"""Elastic constants by linear response: against stress differences, sound, symmetry and known tensors."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.io import write
from conftest import SHORT, small_potential
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmlip.cli import main
from jaxmlip.crystals import batching
from jaxmlip.derivatives import linear_map
from jaxmlip.derivatives.response import Response
from jaxmlip.mechanics.elasticity import (
    VOIGT,
    Elasticity,
    _needed,
    elastic_tensor,
    elastic_tensors,
    from_voigt,
    internal_strain,
    to_voigt,
    warn_of_residuals,
)
from jaxmlip.mechanics.elasticity_report import as_record, describe
from jaxmlip.phonons import dynamical_matrix
from jaxmlip.units import ATOMIC_MASS, ELEMENTARY_CHARGE, GPA_PER_EV_PER_A3

pytestmark = pytest.mark.filterwarnings("ignore:.*is not relaxed")


def deformed(atoms: Atoms, eps: np.ndarray) -> Atoms:
    moved = atoms.copy()
    moved.set_cell(atoms.cell.array @ (np.eye(3) + (eps + eps.T) / 2), scale_atoms=True)
    return moved


@pytest.fixture(scope="module")
def zincblende() -> Atoms:
    """Two atoms that rest by symmetry, in a cell that is stretched differently along each axis."""
    return deformed(bulk("AlP", "zincblende", 5.0), np.diag([0.02, -0.01, 0.03]))


class Model:
    """A potential whose programs are compiled once, for a shape of one crystal and for one of several."""

    def __init__(self, potential, crystals):
        each = [batching.exact_shape([potential.graph(atoms)]) for atoms in crystals]
        most = (batching.round_up(int(1.2 * max(n))) for n in zip(*each, strict=True))
        self.potential, self.shape = potential, batching.BatchShape(*most)._replace(crystals=1)
        self.side_by_side = self.shape._replace(atoms=2 * self.shape.atoms, crystals=6)

    def elastic(self, atoms: Atoms) -> Elasticity:
        return elastic_tensor(self.potential, atoms, self.shape)

    def predict(self, atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
        """Forces (eV/Å) and stress (GPa); a test below compares them with those of the potential."""
        found = Response(self.potential, atoms, shape=self.shape)
        return found.forces, found.stress * GPA_PER_EV_PER_A3

    def second_derivatives(self, atoms: Atoms) -> np.ndarray:
        """Derivatives by positions and the nine elements of ε, before anything is made symmetric."""
        columns = np.arange(3 * len(atoms) + 9)
        forces, slopes = Response(self.potential, atoms, shape=self.shape).strained_columns(columns)
        return np.concatenate([x.reshape(len(columns), -1) for x in (forces, slopes)], axis=1)


@pytest.fixture(scope="module")
def model(architecture, crystal, zincblende):
    return Model(architecture, [crystal.repeat((2, 1, 1)), zincblende, bulk("Cu")])


def stress_differences(model, atoms, settle=lambda atoms: atoms, step=1e-4) -> np.ndarray:
    """∂σ/∂ε (6, 6) in GPa by central differences; `settle` moves the atoms of a strained crystal."""
    slopes = np.empty((6, 6))
    for column, (i, j) in enumerate(VOIGT):
        eps = np.zeros((3, 3))
        eps[i, j] = step
        up, down = (model.predict(settle(deformed(atoms, sign * eps)))[1] for sign in (1, -1))
        slopes[:, column] = ((up - down) / (2 * step))[*np.transpose(VOIGT)]
    return slopes


def made_of(C: np.ndarray, stress=0.0, density: float = 4000.0) -> Elasticity:
    """The elasticity of a crystal of which nothing but these is known."""
    nothing = np.zeros((1, 3, 6))
    return Elasticity(C, C, nothing, nothing, np.zeros(0), stress * np.eye(3), 0.0, density)


def isotropic(bulk_modulus: float, shear: float, density: float = 4000.0) -> Elasticity:
    C = np.diag([2.0 * shear] * 3 + [shear] * 3)
    C[:3, :3] += bulk_modulus - 2 * shear / 3
    return made_of(C, density=density)


def test_clamped_constants_are_differences_of_the_stress(model, crystal):
    found = model.elastic(crystal)
    expected = stress_differences(model, crystal)
    clamped = replace(found, C=found.clamped)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(clamped.stress_strain, expected, atol=1e-5 * scale)
    assert np.abs(found.clamped - expected).max() > 1e-3 * scale, "the stress is too small to tell"


@pytest.mark.one_model
def test_constants_are_differences_of_the_stress_of_crystals_whose_atoms_have_settled(model, zincblende):
    found = model.elastic(zincblende)
    assert found.max_force < 1e-10
    inverse = np.linalg.pinv(model.second_derivatives(zincblende)[:6, :6], rcond=1e-6)

    def settle(atoms):
        for _ in range(8):  # Newton's method; the Hessian hardly changes
            forces, _ = model.predict(atoms)
            atoms.positions += (inverse @ forces.ravel()).reshape(-1, 3)
        assert np.abs(forces).max() < 1e-10
        return atoms

    expected = stress_differences(model, zincblende, settle)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found.stress_strain, expected, atol=1e-5 * scale)
    assert np.abs(found.clamped - found.C).max() > 1e-3 * scale, "nothing moves within the cell"


@pytest.mark.one_model
def test_internal_strain_is_where_the_atoms_of_a_strained_crystal_settle(model, zincblende):
    found, step, k = model.elastic(zincblende), 1e-4, 5
    eps = np.zeros((3, 3))
    eps[VOIGT[k]] = step
    moved = deformed(zincblende, eps)
    before, _ = model.predict(moved)
    np.testing.assert_allclose(before / step, found.force_strain[:, :, k], rtol=1e-2, atol=1e-3)
    moved.positions += step * found.internal_strain[:, :, k]
    after, _ = model.predict(moved)
    assert np.abs(after).max() < 1e-2 * np.abs(before).max()
    alone = internal_strain(model.potential, zincblende, model.shape)
    np.testing.assert_allclose(alone, found.internal_strain, rtol=0, atol=1e-12)


@pytest.mark.one_model
def test_mixed_derivatives_do_not_depend_on_their_order_and_shifts_cost_nothing(model, crystal):
    joint = model.second_derivatives(crystal)
    np.testing.assert_allclose(joint, joint.T, atol=1e-10 * np.abs(joint).max())
    shifts = np.concatenate([np.tile(np.eye(3), (len(crystal), 1)), np.zeros((9, 3))])
    np.testing.assert_allclose(joint @ shifts, 0, atol=1e-10 * np.abs(joint).max())


@pytest.mark.one_model
def test_sound_velocities_are_the_slopes_of_the_acoustic_branches(model, zincblende):
    """Along one reciprocal vector; the crystal is under stress."""
    b3, cells, root_mass = zincblende.cell.reciprocal()[2], 64, np.sqrt(zincblende.get_masses())
    m = np.arange(1, 6)
    q = np.outer(m / cells, [0, 0, 1])

    def square(matrix, m) -> np.ndarray:
        """(ω/k)² (m²/s²) of the three acoustic waves of k = m b₃ / cells."""
        values, vectors = np.linalg.eigh(matrix)
        in_step = np.einsum("a,axb->xb", root_mass, vectors.reshape(2, 3, 6))
        acoustic = np.sort(np.argsort(-(np.abs(in_step) ** 2).sum(axis=0))[:3])
        k = 2 * np.pi * np.linalg.norm(b3) * m / cells  # 1/Å
        return values[acoustic] / k**2 * ELEMENTARY_CHARGE / ATOMIC_MASS

    matrices = dynamical_matrix(model.potential, zincblende, q, mass_weighted=True, shape=model.shape)
    # To k = 0 by the polynomial through five points; the dispersion is even in k.
    weights = np.linalg.inv(np.vander(m**2.0, increasing=True))[0]
    expected = weights @ [square(*pair) for pair in zip(matrices, m, strict=True)]
    scale = np.abs(expected).max()
    elasticity = model.elastic(zincblende)
    found = elasticity.christoffel(b3)
    np.testing.assert_allclose(np.sign(found) * found**2, expected, atol=1e-4 * scale)
    without_stress = replace(elasticity, stress=np.zeros((3, 3))).christoffel(b3)
    assert np.abs(without_stress**2 - found**2).max() > 1e-3 * scale, "the stress is too small to tell"


@pytest.mark.one_model
def test_a_supercell_has_the_constants_of_its_cell(model, crystal):
    found = model.elastic(crystal)
    twice = model.elastic(make_supercell(crystal, [[1, 1, 0], [0, 1, 0], [1, 0, 2]]))
    scale = np.abs(found.C).max()
    np.testing.assert_allclose(twice.C, found.C, atol=1e-8 * scale)
    np.testing.assert_allclose(twice.clamped, found.clamped, atol=1e-8 * scale)
    assert twice.density == pytest.approx(found.density)


@pytest.mark.one_model
def test_the_tensor_turns_with_the_crystal(model, crystal):
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = crystal.copy()
    turned.set_cell(crystal.cell @ turn.T, scale_atoms=True)
    before, after = model.elastic(crystal), model.elastic(turned)
    expected = np.einsum("ia,jb,kc,ld,abcd->ijkl", turn, turn, turn, turn, before.tensor)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(after.tensor, expected, atol=1e-9 * scale)
    np.testing.assert_allclose(after.eigenvalues, before.eigenvalues, atol=1e-9 * scale)
    np.testing.assert_allclose(after.christoffel(turn @ [1, 2, 3]), before.christoffel([1, 2, 3]), rtol=1e-8)
    assert after.voigt == pytest.approx(before.voigt, rel=1e-8)
    assert after.reuss == pytest.approx(before.reuss, rel=1e-8)


@pytest.mark.one_model
@pytest.mark.slow
def test_crystals_side_by_side_have_the_constants_that_each_has_alone(model, crystal, zincblende):
    """One atom, two and five: some have columns where others have none left."""
    several = [zincblende, bulk("Cu"), crystal, bulk("Cu", a=3.5)]
    programs = linear_map.strained_columns._cache_size()
    together = elastic_tensors(model.potential, several, [model.side_by_side])
    assert (
        linear_map.strained_columns._cache_size() - programs <= 2
    )  # the column blocks of large and of small batches
    for one, atoms in zip(together, several, strict=True):
        alone = model.elastic(atoms)
        scale = np.abs(alone.clamped).max()
        for name in ("C", "clamped", "stress"):
            np.testing.assert_allclose(getattr(one, name), getattr(alone, name), atol=1e-9 * scale)
        np.testing.assert_allclose(one.internal_strain, alone.internal_strain, atol=1e-8)
        np.testing.assert_allclose(one.internal_modes, alone.internal_modes, atol=1e-9 * scale)
        assert one.max_force == pytest.approx(alone.max_force, abs=1e-10)


@pytest.mark.one_model
def test_columns_that_symmetry_gives_are_those_that_were_computed(model, crystal, zincblende):
    """Glide planes, screw axes, a stretched cell, the same doubled, one turned, one without symmetry."""
    turned = bulk("ZnO", "wurtzite", a=3.25, c=5.2, u=0.38)
    turned.rotate(33, (1, 2, 3), rotate_cell=True)
    places = [
        [0, 0, 0],
        [0.5, 0.5, 0.5],
        *([x, x, 0] for x in (0.3, -0.3)),
        *([0.5 + x, 0.5 - x, 0.5] for x in (0.3, -0.3)),
    ]
    rutile = Atoms("Ti2O4", cell=[4.6, 4.6, 2.95], pbc=True, scaled_positions=places)
    doubled = zincblende.repeat((2, 1, 1))
    several = [turned, zincblende, doubled, rutile, bulk("Cu"), crystal]
    needed = [_needed(atoms, 1e-5) for atoms in several]
    assert [len(n.displacements.coordinate) + len(n.strains) for n in needed] == [4, 12, 12, 8, 3, 21]
    every = elastic_tensors(model.potential, several, [model.side_by_side])
    few = elastic_tensors(model.potential, several, [model.side_by_side], symmetry=1e-5)
    for one, other in zip(few, every, strict=True):
        scale = np.abs(other.clamped).max()
        for name in ("C", "clamped", "stress"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-9 * scale)
        np.testing.assert_allclose(one.internal_strain, other.internal_strain, atol=1e-8)
        np.testing.assert_allclose(one.force_strain, other.force_strain, atol=1e-8)
        np.testing.assert_allclose(one.internal_modes, other.internal_modes, atol=1e-9 * scale)


@pytest.mark.one_model
def test_a_crystal_without_linear_response_has_its_error_in_its_place_and_more_crystals_no_new_program(model):
    loose = Atoms("HeNe", [[0, 0, 0], [0, 0, 8]], cell=[14, 14, 16], pbc=True)
    shapes = [model.side_by_side]
    first, second, third = elastic_tensors(model.potential, [bulk("Cu"), loose, bulk("Cu")], shapes)
    assert isinstance(second, ValueError)
    assert "meet no resistance" in str(second)
    np.testing.assert_allclose(first.C, third.C, atol=1e-9 * np.abs(first.C).max())
    before = linear_map.linearise._cache_size(), linear_map.strained_columns._cache_size()
    elastic_tensors(model.potential, [loose, bulk("Cu", a=3.7)], shapes)
    assert (linear_map.linearise._cache_size(), linear_map.strained_columns._cache_size()) == before
    assert elastic_tensors(model.potential, []) == []


@pytest.mark.one_model
def test_one_atom_cannot_move_within_its_cell(model):
    found = model.elastic(bulk("Cu"))
    np.testing.assert_array_equal(found.C, found.clamped)
    assert found.internal_modes.shape == (0,)
    assert found.internal_modes_stable


@pytest.mark.one_model
def test_a_cubic_crystal_has_three_constants(model):
    C = model.elastic(bulk("AlP", "zincblende", 5.0)).C
    pattern = np.diag([C[0, 0]] * 3 + [C[3, 3]] * 3)
    pattern[:3, :3] += C[0, 1] * (1 - np.eye(3))
    np.testing.assert_allclose(C, pattern, atol=1e-9 * np.abs(C).max())
    assert np.ptp([C[0, 0], C[0, 1], C[3, 3]]) > 1e-3 * np.abs(C).max()


@pytest.mark.one_model
def test_internal_modes_are_those_of_the_hessian_and_a_saddle_is_said(model, crystal):
    found, n = model.elastic(crystal), 3 * len(crystal)
    eigenvalues = np.linalg.eigvalsh(model.second_derivatives(crystal)[:n, :n])
    internal = np.delete(eigenvalues, np.argsort(np.abs(eigenvalues))[:3])
    np.testing.assert_allclose(found.internal_modes, internal, atol=1e-8 * np.abs(internal).max())
    for lowest, stable in ((0.1, True), (-0.1, False)):
        there = replace(found, internal_modes=np.array([lowest, 1.0, 2.0]))
        assert there.internal_modes_stable == stable
        assert ("saddle: 1 of 3" in "\n".join(describe(there))) != stable


@pytest.mark.one_model
def test_atoms_that_nothing_holds_are_named(model):
    atoms = Atoms("HeNeHe", [[0, 0, 0], [0, 0, 2], [0, 0, 8]], cell=[14, 14, 16], pbc=True)
    with pytest.raises(ValueError, match=r"displacements of He2Ne besides the three rigid.*2 \(He\)"):
        model.elastic(atoms)


@pytest.mark.one_model
def test_what_remains_of_forces_and_stress_is_what_the_potential_predicts(model, crystal):
    found = model.elastic(crystal)
    prediction = model.potential.predict(crystal)
    forces, stress = model.predict(crystal)
    np.testing.assert_allclose(forces, prediction["forces"], atol=1e-10)
    np.testing.assert_allclose(stress, prediction["stress"] * GPA_PER_EV_PER_A3, atol=1e-9)
    np.testing.assert_array_equal(found.stress, stress)
    assert found.max_force == pytest.approx(np.linalg.norm(forces, axis=1).max())


@pytest.mark.filterwarnings("error")
def test_a_crystal_that_is_not_relaxed_is_warned_of():
    copper, what = bulk("Cu"), "The elastic constants"
    warn_of_residuals(copper, 0.01, 0.1 * np.eye(3), what)
    for force, stress in ((0.01, -0.6), (0.06, 0.1)):
        with pytest.warns(UserWarning, match="Cu is not relaxed: forces up to .* relax it with this"):
            warn_of_residuals(copper, force, stress * np.eye(3), what)


def test_voigt_matrices_and_tensors_are_two_ways_to_write_one_thing():
    C = np.arange(36.0).reshape(6, 6)
    np.testing.assert_array_equal(to_voigt(from_voigt(C)), C)
    tensor = from_voigt(C)
    assert tensor[1, 2, 0, 0] == tensor[2, 1, 0, 0] == C[3, 0]
    assert tensor[2, 2, 1, 0] == C[2, 5]


def test_moduli_and_sound_of_an_isotropic_solid_are_those_of_the_textbook():
    found = isotropic(100.0, 60.0)
    for moduli in (found.voigt, found.reuss, found.hill):
        assert tuple(moduli) == pytest.approx((100.0, 60.0))
        assert moduli.young == pytest.approx(150.0)
        assert moduli.poisson == pytest.approx(0.25)
    assert found.anisotropy == pytest.approx(0, abs=1e-12)
    assert found.stable
    np.testing.assert_allclose(found.eigenvalues, [120.0] * 5 + [300.0])  # 2G and 3K
    transverse, longitudinal = np.sqrt(60e9 / 4000), np.sqrt(180e9 / 4000)  # G, K + 4G/3
    np.testing.assert_allclose(found.christoffel([1, -2, 0.5]), [transverse, transverse, longitudinal])


def test_a_cubic_solid_is_stable_within_borns_three_conditions_and_under_pressure_within_their_successors():
    def cubic(C11, C12, C44, pressure=0.0):
        C = np.diag([C11] * 3 + [C44] * 3).astype(float)
        C[:3, :3] += C12 * (1 - np.eye(3))
        return made_of(C, -pressure)

    assert cubic(100, 50, 30).stable
    assert not cubic(100, 101, 30).stable  # C11 - C12 > 0
    assert not cubic(100, -51, 30).stable  # C11 + 2 C12 > 0
    assert not cubic(100, 50, -1).stable
    # Under a pressure p stress-strain coefficients are, by this C, C11, C12 + p and C44 - p/2.
    np.testing.assert_allclose(
        cubic(100, 50, 30, 10).stress_strain[[0, 0, 3], [0, 1, 3]], [100.0, 60.0, 25.0], atol=1e-12
    )
    assert not cubic(100, 50, 30, 61).stable


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 3))
def test_bounds_of_the_moduli_are_ordered_for_every_stable_crystal(seed, spread):
    A = np.random.default_rng(seed).normal(size=(6, 6))
    found = made_of(100 * (np.eye(6) + spread * A @ A.T))
    assert found.stable
    for upper, middle, lower in zip(found.voigt, found.hill, found.reuss, strict=True):
        assert upper * (1 + 1e-9) >= middle >= lower * (1 - 1e-9) > 0
    assert found.anisotropy >= -1e-9


@pytest.mark.one_model
def test_what_does_not_exist_is_said_in_words(model):
    lone = model.elastic(Atoms("He", cell=[9, 9, 9], pbc=True))
    assert not lone.stable
    assert as_record(lone)["compliance_per_GPa"] is as_record(lone)["moduli_GPa"] is None
    with pytest.raises(ValueError, match=r"singular.*within the cutoff"):
        lone.hill  # noqa: B018
    with pytest.raises(ValueError, match="three numbers, not all 0"):
        isotropic(1, 1).christoffel([0, 0, 0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("elastic")
    small_potential(SHORT).save(here / "model")
    write(here / "POSCAR", bulk("AlP", "zincblende", 5.0))
    write(here / "two.extxyz", [bulk("Cu"), bulk("Cu")])
    return here


def test_the_command_prints_and_saves_the_constants_of_the_crystal_that_it_relaxed(folder, capsys):
    out, start = folder / "elastic.json", bulk("AlP", "zincblende", 5.0)
    command = ["elastic", str(folder / "POSCAR"), "--model", str(folder / "model")]
    main([*command, "--relax", "--out", str(out)])
    printed, record = capsys.readouterr().out, json.loads(out.read_text())
    potential = small_potential(SHORT)
    symbols, places = record["symbols"], record["scaled_positions"]
    rested = Atoms(symbols, cell=record["cell_A"], scaled_positions=places, pbc=True)
    assert np.abs(record["residual"]["stress_GPa"]).max() < 0.1
    assert abs(rested.get_volume() / start.get_volume() - 1) > 0.01
    expected = elastic_tensor(potential, rested)
    np.testing.assert_allclose(record["C_GPa"], expected.C, atol=1e-6)
    np.testing.assert_allclose(record["clamped_GPa"], expected.clamped, atol=1e-6)
    assert record["moduli_GPa"]["hill"]["bulk"] == pytest.approx(expected.hill.bulk)
    assert record["stable"] == expected.stable
    for number in (expected.C[0, 0], expected.C[3, 3], expected.hill.shear):
        assert f"{number:.1f}" in printed


def test_the_command_wants_one_structure(folder, capsys):
    with pytest.raises(SystemExit):
        main(["elastic", str(folder / "two.extxyz"), "--model", str(folder / "model")])
    assert "holds 2 structures, needed one" in capsys.readouterr().err
