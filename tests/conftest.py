"""Potentials and crystals that the tests share.

Laws are proved on small networks with random parameters, so that they need no weights; parity is proved on
the public weights, fetched once, and skipped with the reason where they cannot be had.
"""

import warnings
from dataclasses import replace

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from jaxmlip.models.chgnet import CHGNetConfig
from jaxmlip.models.m3gnet import M3GNetConfig
from jaxmlip.potential import random_potential

SMALL_CHGNET = {
    "features": 8,
    "radial": 5,
    "angular": 5,
    "blocks": 3,
    "bond_cutoff": 4.0,
    "angle_cutoff": 3.0,
}
SMALL_M3GNET = {"features": 8, "hidden": 6, "radial": 2, "blocks": 2, "bond_cutoff": 4.0, "angle_cutoff": 3.0}
MODELS = {
    "chgnet-0.3": CHGNetConfig(**SMALL_CHGNET, readout=(8, 8)),
    "chgnet-0.2": CHGNetConfig(**SMALL_CHGNET, readout=(8,), envelope=5, norm=False, output_bias=True),
    "m3gnet-smooth": M3GNetConfig(**SMALL_M3GNET),
    "m3gnet-spherical": M3GNetConfig(**{**SMALL_M3GNET, "blocks": 1}, smooth=False),
}


def small_potential(name: str, dtype: str = "float64"):
    """A potential whose parameters are all random, biases and reference energies included."""
    potential = random_potential(MODELS[name], seed=7, dtype=dtype, name=name)
    rng = np.random.default_rng(7)
    params = jax.tree.map(lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(x.dtype), potential.params)
    return replace(potential, params=params)


@pytest.fixture(scope="session", params=list(MODELS))
def potential(request):
    return small_potential(request.param)


@pytest.fixture(scope="session")
def crystal() -> Atoms:
    """Five atoms in a triclinic cell narrower than the cutoff: images of one neighbour, and self images."""
    rng = np.random.default_rng(3)
    cell = np.array([[3.6, 0.3, 0.0], [-0.5, 4.1, 0.4], [0.6, 0.2, 4.4]])
    base = np.array([[0, 0, 0], [0.5, 0.5, 0.1], [0.5, 0.0, 0.5], [0.0, 0.5, 0.55], [0.45, 0.55, 0.6]])
    return Atoms("MgAlO2H", cell=cell, pbc=True, scaled_positions=base + 0.03 * rng.normal(size=(5, 3)))


@pytest.fixture(scope="session")
def crystals(crystal) -> list[Atoms]:
    """Crystals of several sizes and densities, one of them without any bond."""
    salt = bulk("NaCl", "rocksalt", 5.64, cubic=True)
    salt.rattle(0.1, seed=2)
    return [crystal, bulk("Cu"), salt, Atoms("He", cell=[9, 9, 9], pbc=True), bulk("Si")]


def public(name: str, dtype: str = "float64"):
    """A public potential; the test is skipped, with the reason, where its weights cannot be had."""
    import jaxmlip
    from jaxmlip.sources import FetchError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return jaxmlip.load(name, dtype)
    except FetchError as error:
        pytest.skip(f"the weights of {name} cannot be had: {error}")
