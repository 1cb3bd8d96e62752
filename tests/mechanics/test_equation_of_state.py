"""Equations of state: known ones are found again, and their bulk modulus is that of linear response."""

import numpy as np
import pairs
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import example, given
from hypothesis import strategies as st

from jaxmlip.mechanics.elasticity import elastic_tensor
from jaxmlip.mechanics.equation_of_state import EquationOfState, birch_murnaghan, equations_of_state
from jaxmlip.units import GPA_PER_EV_PER_A3


def energy(of: EquationOfState, V):
    """Birch's formula as it is printed."""
    y = (of.volume / V) ** (2 / 3)
    terms = (y - 1) ** 3 * of.derivative + (y - 1) ** 2 * (6 - 4 * y)
    return of.energy + 9 * of.volume * of.bulk_modulus / 16 * terms


@given(st.floats(8, 300), st.floats(-50, 10), st.floats(0.01, 3), st.floats(2, 8), st.floats(0.95, 1.05))
@example(8.0, 0.0, 1.0, 4.0, 0.96875)  # B₁ = 4: without a cubic term
def test_an_equation_of_state_is_found_again_from_its_energies(V0, E0, B0, B1, centre):
    expected = EquationOfState(V0, E0, B0, B1)
    V = centre * V0 * np.linspace(0.94, 1.06, 7)
    np.testing.assert_allclose(birch_murnaghan(V, energy(expected, V)), expected, rtol=1e-4, atol=1e-9)


def test_the_bulk_modulus_at_a_volume_is_the_second_derivative_of_the_energy():
    of, V, step = EquationOfState(20.0, -3.0, 0.5, 5.0), 18.0, 1e-3
    expected = V * np.diff(energy(of, V + step * np.array([-1, 0, 1])), 2)[0] / step**2
    assert of.bulk_modulus_at(V) == pytest.approx(expected, rel=1e-5)
    assert of.bulk_modulus_at(of.volume) == pytest.approx(of.bulk_modulus)


def test_what_has_no_minimum_is_refused():
    V = np.linspace(9, 11, 7)
    with pytest.raises(ValueError, match="no minimum"):
        birch_murnaghan(V, -V)
    with pytest.raises(ValueError, match="four or more, finite"):
        birch_murnaghan(V[:3], V[:3])
    with pytest.raises(ValueError, match="four or more, finite"):
        birch_murnaghan(V, V * np.nan)


def test_the_bulk_modulus_is_that_of_linear_response_wherever_the_search_begins():
    potential = pairs.potential(alike=2**0.5)
    salt = [bulk("NaCl", "rocksalt", a) for a in (5.7, 5.3)]
    near, far = equations_of_state(potential, salt, span=0.02)
    assert far.volume == pytest.approx(near.volume, rel=1e-3)
    assert far.bulk_modulus == pytest.approx(near.bulk_modulus, rel=0.05)
    cell = bulk("NaCl", "rocksalt", (4 * near.volume) ** (1 / 3))
    response = elastic_tensor(potential, cell)
    assert np.abs(response.stress).max() < 0.1
    assert near.bulk_modulus * GPA_PER_EV_PER_A3 == pytest.approx(response.voigt.bulk, rel=0.05)


def test_a_crystal_without_a_minimum_disturbs_no_other(any_potential):
    lone = Atoms("He", cell=[9, 9, 9], pbc=True)  # beyond the cutoff from its images
    (found,) = equations_of_state(any_potential, [lone])
    assert isinstance(found, ValueError)
