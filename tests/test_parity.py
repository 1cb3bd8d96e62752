"""The converted models repeat the originals, of which weights_convert.golden recorded tests/golden."""

import functools
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from ase import Atoms
from conftest import public

import jaxmlip
from jaxmlip import batching

MODELS = ["chgnet-0.2.0", "chgnet-0.3.0", "chgnet-r2scan"]
# Of both sides in float64: eV/atom, eV/Å, eV/Å³, eV, μB.
EXACT = {"energy": 1e-8, "forces": 1e-7, "stress": 1e-8, "site_energies": 1e-8, "magmoms": 1e-7}


@functools.cache
def golden(name: str) -> tuple[dict[str, Atoms], dict[str, dict[str, np.ndarray]]]:
    """The crystals, and what the original gives for each."""
    values: dict[str, dict[str, np.ndarray]] = {}
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as archive:
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


@pytest.mark.parametrize("name", ["chgnet-0.2.0", "chgnet-0.3.0"])
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
    ("chgnet-0.2.0", "MgO_strained"),
    ("chgnet-0.3.0", "MgO_strained"),
    ("chgnet-0.3.0", "CO2_box"),
    ("chgnet-r2scan", "CO2_box"),
]


@pytest.mark.parametrize(("name", "crystal"), HESSIANS)
def test_a_hessian_repeats_that_of_the_original(name, crystal):
    potential = public(name)
    crystals, wanted = golden(name)
    found = jaxmlip.hessian(potential, crystals[crystal])
    np.testing.assert_allclose(found, wanted[crystal]["hessian"], rtol=0, atol=1e-7)


def reference() -> tuple[dict[str, Atoms], dict[str, np.ndarray]]:
    """The larger set of reference values, where this machine has it."""
    folder = os.environ.get("JAXMLIP_REFERENCE")
    if not folder or not (Path(folder) / "chgnet.npz").is_file():
        pytest.skip("JAXMLIP_REFERENCE names no folder with chgnet.npz and structures.json")
    from ase.io.jsonio import read_json

    with np.load(Path(folder) / "chgnet.npz") as archive:
        return read_json(Path(folder) / "structures.json"), dict(archive)


@pytest.mark.parametrize("name", MODELS)
def test_a_larger_set_of_reference_values_is_repeated_in_float64(name):
    structures, values = reference()
    potential, version = public(name), name.removeprefix("chgnet-")
    compared = [key for key in structures if f"{version}/{key}/energy" in values]
    assert len(compared) > 10
    found = potential.predict([structures[key] for key in compared])
    for key, prediction in zip(compared, found, strict=True):
        wanted = {quantity: values[f"{version}/{key}/{quantity}"] for quantity in EXACT}
        assert_repeats(prediction, wanted, key, len(structures[key]))
