"""The ASE calculator in the work that ASE users do with it."""

import ase.db
import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from conftest import QUICK, small_potential

import jaxmlip.potential
from jaxmlip import Calculator, hessian


@pytest.fixture
def atoms(any_potential, crystal):
    found = crystal.copy()
    found.calc = Calculator(any_potential)
    return found


def test_every_property_is_what_the_potential_predicts(any_potential, atoms):
    p = any_potential.predict(atoms)
    np.testing.assert_allclose(atoms.get_potential_energy(), p["energy"])
    np.testing.assert_allclose(atoms.get_potential_energy(force_consistent=True), p["energy"])
    np.testing.assert_allclose(atoms.get_potential_energies(), p["site_energies"])
    np.testing.assert_allclose(atoms.get_forces(), p["forces"])
    np.testing.assert_allclose(atoms.get_stress(voigt=False), p["stress"])
    np.testing.assert_allclose(atoms.get_magnetic_moments(), p["magmoms"])


def test_the_total_moment_is_the_sum_of_those_of_the_atoms(any_potential, atoms):
    total = any_potential.predict(atoms)["magmoms"].sum()
    assert atoms.get_magnetic_moment() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_come_back_from_a_database_of_ase_as_they_were_in_any_precision(crystal, tmp_path, count):
    atoms = crystal[:count]
    atoms.calc = Calculator(small_potential(QUICK, "float32"))
    forces, stress, moments = atoms.get_forces(), atoms.get_stress(), atoms.get_magnetic_moments()
    database = ase.db.connect(tmp_path / "x.db")
    database.write(atoms)
    row = database.get(1)
    np.testing.assert_array_equal(row.forces, forces)
    np.testing.assert_array_equal(row.stress, stress)
    np.testing.assert_array_equal(row.toatoms().get_magnetic_moments(), moments)
    for name, value in atoms.calc.results.items():
        assert np.asarray(value).dtype == np.float64, name


def test_slabs_have_the_stress_in_their_plane_and_molecules_none(any_potential, crystal):
    slab = crystal.copy()
    slab.pbc = [True, True, False]
    slab.calc = Calculator(any_potential)
    normal = np.cross(*slab.cell.array[:2])
    np.testing.assert_allclose(slab.get_stress(voigt=False) @ normal, 0, atol=1e-12)
    assert np.abs(slab.get_stress()).max() > 1e-4
    slab.pbc = False
    with pytest.raises(PropertyNotImplementedError, match="stress"):
        slab.get_stress()
    assert np.isfinite(slab.get_forces()).all()


def test_a_model_folder_makes_a_calculator_and_what_is_no_potential_is_refused(
    any_potential, atoms, tmp_path
):
    any_potential.save(tmp_path / "model")
    other = atoms.copy()
    other.calc = Calculator(tmp_path / "model")
    np.testing.assert_allclose(other.get_potential_energy(), atoms.get_potential_energy(), rtol=1e-5)
    with pytest.raises(ValueError, match=r"chgnet-0\.3\.0"):  # the nearest name
        Calculator("chgnet-0.3")
    with pytest.raises(TypeError, match="found float"):
        Calculator(0.3)


def test_a_model_without_magnetic_moments_has_none(crystal):
    atoms = crystal.copy()
    atoms.calc = Calculator(small_potential("m3gnet-smooth"))
    with pytest.raises(PropertyNotImplementedError, match="magmoms"):
        atoms.get_magnetic_moments()


def test_ase_finds_the_stress_that_differences_of_its_energies_give(atoms):
    numerical = calculate_numerical_stress(atoms, eps=1e-5)
    np.testing.assert_allclose(atoms.get_stress(), numerical, rtol=1e-4, atol=1e-7)


def test_vibrations_by_ase_have_the_frequencies_of_the_hessian(any_potential, atoms, tmp_path):
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-3)
    vibrations.run()
    by_ase = vibrations.get_vibrations().get_hessian_2d()
    exact = hessian(any_potential, atoms)
    np.testing.assert_allclose(by_ase, exact, atol=1e-4 * np.abs(exact).max())


def test_a_relaxation_with_its_cell_lowers_the_energy(atoms):
    before = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.02).run(fmax=0.01, steps=4)
    assert atoms.get_potential_energy() < before


def test_200_steps_of_molecular_dynamics_compile_at_most_twice_and_conserve_energy(short_potential):
    atoms = bulk("W", cubic=True) * (2, 2, 1)
    atoms.calc = Calculator(short_potential)
    rng = np.random.default_rng(0)
    atoms.set_velocities(rng.normal(size=(8, 3)) * np.sqrt(units.kB * 600 / atoms.get_masses())[:, None])
    before = jaxmlip.potential._predict._cache_size()
    bonds, energies = set(), []

    def watch():
        bonds.add(len(short_potential.graph(atoms).first))
        energies.append(atoms.get_total_energy())

    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    dynamics.attach(watch)
    dynamics.run(200)
    assert len(bonds) > 1, "the number of neighbours never changed, so nothing was proved"
    assert jaxmlip.potential._predict._cache_size() - before <= 2
    kinetic = 1.5 * units.kB * 600 * len(atoms)
    assert np.ptp(energies) < 0.05 * kinetic
