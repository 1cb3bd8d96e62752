"""Frequencies are differentiable functions of the parameters of a potential, and labels like energies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from conftest import SHORT, small_potential

from jaxmlip.crystals import batching
from jaxmlip.crystals.primitive import primitive_cells
from jaxmlip.data.batch import Example, SpectraShape, collate
from jaxmlip.data.labels import Frequencies, Labels
from jaxmlip.phonons import phonon_modes
from jaxmlip.training.losses import LossConfig, errors, means, sums
from jaxmlip.training.spectra import dynamical_matrices, squared_frequencies
from jaxmlip.units import in_thz

Q = np.array([[[0.13, -0.41, 0.27], [0.5, 0.2, -0.35]], [[0.0, 0.0, 0.0], [0.1, 0.1, 0.3]]])
LOSS = LossConfig(kind="mse", energy=0, forces=0, stress=0, magmoms=0, frequencies=1.0)


def salts():
    """Two atoms and one; the second has another isotope."""
    copper = bulk("Cu")
    copper.set_masses([65.0])
    return [bulk("MgO", "rocksalt", 4.3), copper]


def cells_of(potential):
    return primitive_cells(potential.graphs(salts()), [atoms.get_masses() for atoms in salts()])


def with_frequencies(potential, seed=0, **changes):
    """Examples whose labels are those of no model; each has two wave vectors, those of Q."""
    rng = np.random.default_rng(seed)
    found = []
    for atoms, q in zip(salts(), Q, strict=True):
        thz = np.sort(rng.uniform(1, 12, (2, 3 * len(atoms))), axis=1)
        its = {"q_points": q, "thz": thz, "masses": atoms.get_masses()} | changes
        labels = Labels(frequencies=Frequencies(**its)).check(len(atoms), "made up")
        found.append(Example(potential.graph(atoms), labels))
    return found


def batch_of(examples, waves=6, seed=1):
    shape = batching.exact_shape([e.graph for e in examples])
    spectra = SpectraShape(shape, 6, waves)
    rng = np.random.default_rng(seed)
    return collate(examples, shape, np.zeros(120), rng, float, spectra=spectra)


@pytest.fixture(scope="module")
def cells(any_potential):
    return cells_of(any_potential)


@pytest.mark.filterwarnings("ignore::jaxmlip.mechanics.elasticity.NotAtRestWarning")
def test_frequencies_of_cells_side_by_side_are_those_of_phonons(any_potential, cells):
    with any_potential.precision():
        squares = np.asarray(squared_frequencies(any_potential.energy_fn, any_potential.arrays, cells, Q))
    for found, atoms, q in zip(squares, salts(), Q, strict=True):
        wanted = phonon_modes(any_potential, atoms, q).frequencies
        np.testing.assert_allclose(in_thz(found[:, : 3 * len(atoms)]), wanted, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(found[:, 3 * len(atoms) :], 0)


@pytest.mark.parametrize("name", [SHORT, "m3gnet-smooth", "mace-density"])
def test_gradients_of_the_loss_by_the_parameters_are_those_of_differences(name):
    """Along one direction in the space of all parameters. Modes at Γ are degenerate, and one crystal's
    frequencies belong to no branch."""
    potential = small_potential(name)
    examples = with_frequencies(potential)
    examples[0] = with_frequencies(potential, assigned=np.array([True, False]))[0]
    batch = batch_of(examples, waves=2)
    rng = np.random.default_rng(3)
    along = jax.tree.map(lambda x: rng.normal(size=x.shape) * np.abs(x).mean(), potential.params["network"])

    def loss(network):
        its = potential.arrays | {"network": network}
        return means(LOSS, sums(LOSS, errors(potential.energy_fn, its, batch, LOSS.properties)))["loss"]

    with potential.precision():
        network = potential.arrays["network"]
        both = jax.jit(jax.value_and_grad(loss))  # one program
        slope = both(network)[1]
        found = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.vdot(a, b), slope, along)))
        moved = [both(jax.tree.map(lambda a, b, s=s: a + s * b, network, along))[0] for s in (2e-5, -2e-5)]
        difference = float(moved[0] - moved[1]) / 4e-5
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
    assert abs(difference) > 1e-3
    np.testing.assert_allclose(float(found), difference, rtol=1e-6)


def test_the_gradient_of_a_matrix_holds_no_other_crystal(any_potential, cells):
    """D of the first crystal does not depend on the wave vectors of the second."""
    matrices = partial(dynamical_matrices, any_potential.energy_fn, any_potential.arrays, cells)
    with any_potential.precision():
        one, other = (np.asarray(matrices(q)) for q in (Q, np.stack([Q[0], Q[1] + 0.2])))
    np.testing.assert_allclose(one[0], other[0], rtol=0, atol=1e-14)
    assert np.abs(one[1] - other[1]).max() > 1e-5
