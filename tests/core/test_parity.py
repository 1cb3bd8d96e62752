"""The converted models repeat the originals.

weights_convert.golden recorded CHGNet in tests/golden; JAXMLIP_REFERENCE names a folder with more values.
"""

import functools
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from ase import Atoms
from conftest import public

import jaxmlip
from jaxmlip.crystals import batching
from jaxmlip.zoo import load as sources

SLOW = pytest.mark.slow
MODELS = ["chgnet-0.2.0", "chgnet-0.3.0", "chgnet-r2scan"]
# Of both sides in float64: eV/atom, eV/Å, eV/Å³, eV, μB.
EXACT = {"energy": 1e-8, "forces": 1e-7, "stress": 1e-8, "site_energies": 1e-8, "magmoms": 1e-7}


@functools.cache
def golden(name: str) -> tuple[dict[str, Atoms], dict[str, dict[str, np.ndarray]]]:
    """The crystals, and what the original gives for each."""
    values: dict[str, dict[str, np.ndarray]] = {}
    with np.load(Path(__file__).parents[1] / "golden" / f"{name}.npz") as archive:
        for key in archive.files:
            if "/" in key:
                crystal, quantity = key.split("/")
                values.setdefault(crystal, {})[quantity] = archive[key]
    crystals = {
        key: Atoms(its["numbers"], positions=its["positions"], cell=its["cell"], pbc=True)
        for key, its in values.items()
    }
    return crystals, values


def assert_repeats(found, wanted, crystal: str, atoms: int) -> None:
    """`found` and `wanted`: quantity -> values of one crystal."""
    for quantity, tolerance in EXACT.items():
        if quantity not in wanted:
            continue
        scale = atoms if quantity == "energy" else 1
        np.testing.assert_allclose(
            found[quantity] / scale,
            wanted[quantity] / scale,
            rtol=0,
            atol=tolerance,
            err_msg=f"{quantity} of {crystal}",
        )


@pytest.mark.parametrize("name", MODELS)
def test_energies_forces_stresses_and_moments_repeat_the_original_in_float64(name):
    potential = public(name)
    crystals, wanted = golden(name)
    for crystal, found in zip(crystals, potential.predict(list(crystals.values())), strict=True):
        assert_repeats(found, wanted[crystal], crystal, len(crystals[crystal]))


@pytest.mark.parametrize("name", [pytest.param("chgnet-0.2.0", marks=SLOW), "chgnet-0.3.0"])
def test_float32_keeps_the_digits_that_screening_needs(name):
    potential = public(name, "float32")
    crystals, wanted = golden(name)
    for crystal, found in zip(crystals, potential.predict(list(crystals.values())), strict=True):
        assert found["forces"].dtype == np.float32
        assert abs(found["energy"] - wanted[crystal]["energy"]) / len(crystals[crystal]) < 2e-5
        assert np.abs(found["forces"] - wanted[crystal]["forces"]).max() < 2e-4


@functools.partial(jax.jit, static_argnums=0)
def features_before_the_last_convolution(model, params, graph):
    layer = f"atom_conv_{model.config.blocks - 2}"
    _, kept = model.apply({"params": params}, graph, capture_intermediates=lambda m, _: m.name == layer)
    (features,) = kept["intermediates"][layer]["__call__"]
    return features


@pytest.mark.parametrize("name", MODELS)
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


# Each pair of an architecture and a crystal compiles a program; these have three between them.
HESSIANS = [
    ("chgnet-0.3.0", "MgO_strained"),
    pytest.param("chgnet-0.2.0", "MgO_strained", marks=SLOW),
    pytest.param("chgnet-0.3.0", "CO2_box", marks=SLOW),
    pytest.param("chgnet-r2scan", "CO2_box", marks=SLOW),
]


@pytest.mark.parametrize(("name", "crystal"), HESSIANS)
def test_a_hessian_repeats_that_of_the_original(name, crystal):
    potential = public(name)
    crystals, wanted = golden(name)
    found = jaxmlip.hessian(potential, crystals[crystal])
    np.testing.assert_allclose(found, wanted[crystal]["hessian"], rtol=0, atol=1e-7)


# The larger set: the names that it has for the models, by file.
REFERENCE = {
    "chgnet.npz": {name: name.removeprefix("chgnet-") for name in MODELS},
    "m3gnet.npz": {
        name: source.origin.folder
        for name, source in sources.MODELS.items()
        if source.architecture == "m3gnet"
    },
}
# CHGNet is compared above; one M3GNet is enough for every day.
REFERENCED = [
    pytest.param(file, name, marks=[] if name == "m3gnet-matpes-pbe-2025.1" else SLOW)
    for file, names in REFERENCE.items()
    for name in names
]
# What matgl gives with wrong bond numbers in the three-body term: eV/atom, eV/Å.
AS_SHIPPED = {"energy": 3e-4, "forces": 1.5e-3}


def reference(file: str) -> tuple[dict[str, Atoms], dict[str, np.ndarray]]:
    """The larger set of reference values, where this machine has it."""
    folder = os.environ.get("JAXMLIP_REFERENCE")
    if not folder or not (Path(folder) / file).is_file():
        pytest.skip(f"JAXMLIP_REFERENCE names no folder with {file} and structures.json")
    from ase.io.jsonio import read_json

    with np.load(Path(folder) / file) as archive:
        return read_json(Path(folder) / "structures.json"), dict(archive)


@pytest.mark.parametrize(("file", "name"), REFERENCED)
def test_a_larger_set_of_reference_values_is_repeated_in_float64(file, name):
    structures, values = reference(file)
    potential, key = public(name), REFERENCE[file][name]
    compared = [crystal for crystal in structures if f"{key}/{crystal}/energy" in values]
    assert len(compared) > 10
    found = potential.predict([structures[crystal] for crystal in compared])
    for crystal, prediction in zip(compared, found, strict=True):
        recorded = {q: values[f"{key}/{crystal}/{q}"] for q in EXACT if f"{key}/{crystal}/{q}" in values}
        assert_repeats(prediction, recorded, crystal, len(structures[crystal]))


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
