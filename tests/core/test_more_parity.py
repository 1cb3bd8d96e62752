"""Further models and values repeat the originals, as in test_parity, in programs that compile sooner."""

import functools

import jax
import numpy as np
import pytest
from conftest import public
from parity import (
    MODELS,
    REFERENCE,
    golden,
    keeps_the_digits_that_screening_needs,
    reference,
    repeats_the_larger_set,
)

import jaxmlip
from jaxmlip.crystals import batching

# What matgl gives with wrong bond numbers in the three-body term: eV/atom, eV/Å.
AS_SHIPPED = {"energy": 3e-4, "forces": 1.5e-3}


@pytest.mark.slow
def test_float32_of_the_older_network_keeps_the_digits_that_screening_needs():
    keeps_the_digits_that_screening_needs("chgnet-0.2.0")


@functools.partial(jax.jit, static_argnums=0)
def features_before_the_last_convolution(model, params, graph):
    layer = f"atom_conv_{model.config.blocks - 2}"
    _, kept = model.apply({"params": params}, graph, capture_intermediates=lambda m, _: m.name == layer)
    (features,) = kept["intermediates"][layer]["__call__"]
    return features


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_atom_features_before_the_last_convolution_repeat_the_original(name):
    potential = public(name)
    crystals, wanted = golden(name)
    graphs = [potential.graph(atoms) for atoms in crystals.values()]
    with potential.precision():
        features = jax.device_get(
            features_before_the_last_convolution(
                potential.model, potential.arrays["network"], batching.pack(graphs)
            )
        )
    for crystal, found in zip(crystals, batching.split_atoms(features, graphs), strict=True):
        np.testing.assert_allclose(
            found, wanted[crystal]["atom_features"], rtol=0, atol=1e-9, err_msg=crystal
        )


# Each pair of an architecture and a crystal compiles a program; these have two between them.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "crystal"),
    [("chgnet-0.2.0", "MgO_strained"), ("chgnet-0.3.0", "CO2_box"), ("chgnet-r2scan", "CO2_box")],
)
def test_a_hessian_repeats_that_of_the_original(name, crystal):
    potential = public(name)
    crystals, wanted = golden(name)
    found = jaxmlip.hessian(potential, crystals[crystal])
    np.testing.assert_allclose(found, wanted[crystal]["hessian"], rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "name"),
    [(f, n) for f, names in REFERENCE.items() for n in names if n != "m3gnet-matpes-pbe-2025.1"],
)
def test_a_larger_set_of_reference_values_is_repeated_in_float64(file, name):
    repeats_the_larger_set(file, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE["m3gnet.npz"])
def test_right_bond_numbers_move_m3gnet_little(name):
    structures, values = reference("m3gnet.npz")
    potential, key = public(name), REFERENCE["m3gnet.npz"][name]
    crystals = [crystal for crystal in structures if f"{key}/{crystal}/energy_as_shipped" in values]
    for crystal, found in zip(crystals, potential.predict([structures[c] for c in crystals]), strict=True):
        for quantity, bound in AS_SHIPPED.items():
            scale = len(structures[crystal]) if quantity == "energy" else 1
            shipped = values[f"{key}/{crystal}/{quantity}_as_shipped"]
            assert np.abs(found[quantity] - shipped).max() / scale < bound, (crystal, quantity)


# A crystal in a triclinic cell, and the ideal one whose angles of 180° have no direction of their own.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "crystal"),
    [
        ("m3gnet-mp-2021.2.8", "MgO_prim_strained"),
        ("m3gnet-matpes-pbe-2025.1", "NaCl_prim_eq"),
    ],
)
def test_an_m3gnet_hessian_repeats_that_of_the_original(name, crystal):
    structures, values = reference("m3gnet.npz")
    found = jaxmlip.hessian(public(name), structures[crystal])
    wanted = values[f"{REFERENCE['m3gnet.npz'][name]}/{crystal}/hessian"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
