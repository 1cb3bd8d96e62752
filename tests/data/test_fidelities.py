"""Several functionals on one network: species of their own, everything else shared."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import MODELS

from jaxmlip.crystals.graph import ELEMENTS, atomic_number
from jaxmlip.data.dataset import ByFunctional, MemorySplit
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.potential import Potential, random_potential
from jaxmlip.training.errors import by_element, by_functional, by_material
from jaxmlip.training.evaluate import compare
from jaxmlip.training.functionals import join, select

NAMES = ("PBE", "r2SCAN", "HSE06")


@partial(jax.jit, static_argnames="energy")
def energies(energy, params, graph):
    return energy.with_sites(params, graph)[1]["site_energies"]


def sites(potential, graph):
    """The energies of the atoms of a graph (eV)."""
    with potential.precision():
        return np.asarray(energies(potential.energy_fn, potential.arrays, jax.tree.map(jnp.asarray, graph)))


def test_the_atomic_number_of_a_species_does_not_depend_on_its_functional():
    z = np.arange(119)
    np.testing.assert_array_equal(atomic_number(z), z)
    np.testing.assert_array_equal(atomic_number(z[1:] + 2 * ELEMENTS), z[1:])


def test_each_functional_of_a_joined_potential_predicts_what_the_one_predicted_that_it_was_made_of(
    architecture, crystal, tmp_path
):
    join(architecture, NAMES).save(tmp_path)
    joined = Potential.from_folder(tmp_path, "float64")
    assert joined.functionals == NAMES
    graph = architecture.graph(crystal)
    before = sites(architecture, graph)
    for k, name in enumerate(NAMES):
        shifted = graph.replace(species=graph.species + ELEMENTS * k)
        np.testing.assert_allclose(sites(joined, shifted), before, rtol=0, atol=1e-12)
        chosen = select(joined, name)
        assert chosen.elements == architecture.elements
        assert chosen.model == architecture.model
        chosen.save(tmp_path / name)
        again = Potential.from_folder(tmp_path / name)
        assert again.manifest["functional"] == name
        assert again.functionals == ()
        for path, old in jax.tree.leaves_with_path(architecture.params):
            new = again.params
            for key in path:
                new = new[key.key]
            padding = path[0].key == "reference_energies"  # of which the first is
            np.testing.assert_array_equal(
                new[padding:] if padding else new, old[padding:] if padding else old
            )


def test_what_one_functional_learns_of_an_element_leaves_the_others_as_they_are(any_potential, crystal):
    joined = join(any_potential, ("PBE", "r2SCAN"))
    table = joined.params["network"]["elements"].copy()
    table[ELEMENTS:] += 0.3  # rows of r2SCAN
    network = joined.params["network"] | {"elements": table}
    joined = replace(joined, params=joined.params | {"network": network})
    graph = any_potential.graph(crystal)
    before = sites(any_potential, graph)
    np.testing.assert_array_equal(sites(select(joined, "PBE"), graph), before)
    assert np.abs(sites(select(joined, "r2SCAN"), graph) - before).max() > 1e-3


def test_a_potential_of_several_functionals_is_not_used_without_choosing_one(any_potential):
    joined = join(any_potential, ("PBE", "r2SCAN"))
    with pytest.raises(ValueError, match=r"functionals PBE, r2SCAN, needed a potential of one: .*select"):
        joined.predict(Atoms("He", cell=[9, 9, 9], pbc=True))
    with pytest.raises(ValueError, match=r"'SCAN', needed one of those that .* has: PBE, r2SCAN"):
        select(joined, "SCAN")
    with pytest.raises(ValueError, match="it is of one functional alone"):
        select(any_potential, "PBE")
    with pytest.raises(ValueError, match="already"):
        join(joined, ("PBE", "SCAN"))
    for names in ((), ("PBE",), ("PBE", "PBE"), ("PBE", "")):
        with pytest.raises(ValueError, match="two or more different names"):
            join(any_potential, names)


@pytest.mark.slow
def test_hessian_columns_are_compared_with_the_functional_that_they_are_of(monkeypatch):
    potential = random_potential(MODELS["m3gnet-spherical"], seed=3)
    joined = join(potential, NAMES[:2])
    asked = []

    def columns_of(one, atoms, columns, shape):
        asked.append((one.manifest["functional"], atoms.get_chemical_formula()))
        return np.zeros((6, len(columns)))

    monkeypatch.setattr("jaxmlip.derivatives.hessian.hessian_columns", columns_of)
    labels = Labels(columns=np.array([0, 4]), hessian=np.zeros((2, 2, 3)))
    labelled = [LabelledCrystal(bulk("Si"), labels, functional=name) for name in NAMES[:2]]
    split = ByFunctional(MemorySplit.from_crystals(labelled, potential.cutoffs), NAMES[:2])
    compared = compare(joined, split)
    assert asked == [("PBE", "Si2"), ("r2SCAN", "Si2")]
    assert list(by_material(compared)) == ["Si"]
    assert list(by_element({"forces": compared["hessian"]})) == ["Si"]
    assert by_functional(compared, NAMES[:2])["r2SCAN"]["hessian"].crystals == 1
