"""matcalc's calculators of properties with ours underneath: its finite steps meet our derivatives.

Skipped where matcalc is not installed: `pip install matcalc`, or `pip install --no-deps matcalc scikit-learn
threadpoolctl huggingface-hub`.
"""

import warnings

import numpy as np
import pairs
import pytest
from ase.build import bulk

import jaxmlip
from jaxmlip import phonons

matcalc = pytest.importorskip("matcalc", reason="matcalc is not installed")


@pytest.fixture(scope="module")
def potential():
    return pairs.potential(1.1, alike=2**0.5)


@pytest.fixture(scope="module")
def salt(potential):
    return jaxmlip.relax(
        potential, bulk("MgO", "rocksalt", 4.2), fmax=1e-6, smax=1e-6, fix_symmetry=True
    ).atoms


def test_phonon_calc_finds_our_frequencies(potential, salt):
    calc = matcalc.PhononCalc(
        jaxmlip.Calculator(potential),
        supercell_matrix=3 * np.eye(3, dtype=int),
        relax_structure=False,
        write_phonon=False,
    )
    phonon = calc.calc(salt)["phonon"]
    q_points = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 2, 0]]) / 3  # which the supercell repeats
    phonon.run_qpoints(q_points)
    found = phonon.qpoints.frequencies
    exact = phonons.phonon_modes(potential, salt, q_points).frequencies
    np.testing.assert_allclose(found[1:], exact[1:], rtol=2e-3)  # displacements of 0.015 Å


def test_elasticity_calc_finds_our_moduli(potential, salt):
    calc = matcalc.ElasticityCalc(
        jaxmlip.Calculator(potential),
        norm_strains=(-0.001, 0.001),
        shear_strains=(-0.002, 0.002),
        relax_structure=False,
        units_GPa=True,
        r2_min=-1,  # the mean counts the fits of components that vanish
    )
    found, ours = calc.calc(salt), jaxmlip.elastic_tensor(potential, salt)
    assert found["bulk_modulus_vrh"] == pytest.approx(ours.C[:3, :3].mean(), rel=1e-3)
    np.testing.assert_allclose(found["elastic_tensor"].voigt, ours.C, atol=2e-3 * ours.C.max())


def test_qha_calc_finds_our_thermal_expansion(potential, salt):
    span = (-0.045, 0.075)
    lengths = np.cbrt(1 + np.linspace(*span, 5))  # of our volumes
    calc = matcalc.QHACalc(
        jaxmlip.Calculator(potential),
        t_step=25,
        t_max=350,
        relax_structure=False,
        allow_shape_change=False,
        scale_factors=lengths.tolist(),
        phonon_calc_kwargs={"supercell_matrix": 3 * np.eye(3, dtype=int), "write_phonon": False},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what matcalc thinks of its own settings
        found = calc.calc(salt)
    alpha = found["thermal_expansion_coefficients"][found["temperatures"].tolist().index(300)]
    ours = phonons.quasi_harmonic(
        potential, salt, mesh=(12, 12, 12), temperatures=[300.0], volumes=5, span=span
    )
    assert alpha == pytest.approx(ours.beta[0], rel=0.01)
