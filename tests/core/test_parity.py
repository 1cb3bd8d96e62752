"""Converted models repeat the originals, compiled as users compile them; test_more_parity has the others."""

import numpy as np
import parity
import pytest
from conftest import public

import jaxmlip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "chgnet-0.2.0" else n for n in parity.MODELS]
)
def test_energies_forces_stresses_and_moments_repeat_the_original_in_float64(name):
    potential = public(name)
    crystals, wanted = parity.golden(name)
    for crystal, found in zip(crystals, potential.predict(list(crystals.values())), strict=True):
        parity.assert_repeats(found, wanted[crystal], crystal, len(crystals[crystal]))


@pytest.mark.slow
def test_float32_keeps_the_digits_that_screening_needs():
    parity.keeps_the_digits_that_screening_needs("chgnet-0.3.0")


@pytest.mark.slow
def test_a_hessian_repeats_that_of_the_original():
    crystals, wanted = parity.golden("chgnet-0.3.0")
    found = jaxmlip.hessian(public("chgnet-0.3.0"), crystals["MgO_strained"])
    np.testing.assert_allclose(found, wanted["MgO_strained"]["hessian"], rtol=0, atol=1e-7)


def test_an_m3gnet_repeats_a_larger_set_of_reference_values_in_float64():
    parity.repeats_the_larger_set("m3gnet.npz", "m3gnet-matpes-pbe-2025.1")
