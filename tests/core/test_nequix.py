"""nequix's published architecture, with random weights, as an energy function: against nequix's own results.

Skipped where nequix is not installed: `pip install nequix`, or `pip install --no-deps nequix equinox matscipy
cloudpickle`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

import jaxmlip
from jaxmlip import Potential
from jaxmlip.phonons import force_constants
from jaxmlip.phonons.bloch import dynamical_matrix

pytest.importorskip("nequix")
import jraph
from nequix.calculator import NequixCalculator
from nequix.data import dict_to_graphstuple, preprocess_graph
from nequix.model import Nequix, node_graph_idx, save_model
from nequix.pft.hessian import hessian_linearized

ELEMENTS = [11, 17]  # ascending, as nequix counts species
CONFIG = {
    "cutoff": 5.0,
    "lmax": 2,
    "hidden_irreps": "4x0e + 4x1o + 4x2e",
    "n_layers": 2,
    "radial_basis_size": 6,
    "radial_mlp_size": 8,
    "radial_mlp_layers": 2,
    "radial_polynomial_p": 6.0,
    "mlp_init_scale": 4.0,
    "index_weights": False,
    "layer_norm": True,
    "shift": -2.0,
    "scale": 20.0,
    "avg_n_neighbors": 20.0,
}


def energy(model: Nequix, graph: jraph.GraphsTuple) -> jax.Array:
    cell = jnp.repeat(graph.globals["cell"], graph.n_edge, axis=0, total_repeat_length=len(graph.senders))
    positions = graph.nodes["positions"]
    vectors = positions[graph.senders] - positions[graph.receivers]
    vectors += jnp.einsum("ek,ekx->ex", graph.edges["shifts"], cell)
    nodes = model.node_energies(vectors, graph.nodes["species"], graph.senders, graph.receivers)
    return jraph.segment_sum(nodes[:, 0], node_graph_idx(graph), len(graph.n_node))


@pytest.fixture(scope="module", autouse=True)
def as_nequix_mixes():
    """nequix, not ours to mend, mixes arrays of different ranks and dtypes."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def model() -> Nequix:
    atom_energies = [-1.0, -3.0]
    return Nequix(jax.random.key(0), len(ELEMENTS), **CONFIG, atom_energies=atom_energies)


@pytest.fixture(scope="module")
def potential(model) -> Potential:
    return Potential.from_energy(energy, CONFIG["cutoff"], ELEMENTS, model, name="nequix", dtype="float64")


@pytest.fixture(scope="module")
def calculator(model, tmp_path_factory) -> NequixCalculator:
    path = tmp_path_factory.mktemp("nequix") / "random.nqx"
    save_model(path, model, CONFIG | {"atomic_numbers": ELEMENTS})
    return NequixCalculator(model_path=path, use_kernel=False)


@pytest.fixture(scope="module")
def salt() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", 5.3)
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0.02, 0], [0, 1.01, 0], [0, 0.03, 1]]), scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def their_graph(atoms: Atoms) -> jraph.GraphsTuple:
    """As nequix makes it, in float64."""
    graph = dict_to_graphstuple(preprocess_graph(atoms, dict(zip(ELEMENTS, (0, 1), strict=True)), 5.0, False))
    return graph._replace(
        nodes=graph.nodes | {"positions": atoms.positions},
        edges={"shifts": graph.edges["shifts"].astype(float)},
        globals=graph.globals | {"cell": atoms.cell.array[None]},
    )


def their_hessian(potential: Potential, atoms: Atoms) -> np.ndarray:
    with potential.precision():
        blocks = jax.jit(hessian_linearized)(potential.model.parameters(potential.arrays), their_graph(atoms))
    return np.asarray(blocks).swapaxes(1, 2).reshape(3 * len(atoms), -1)


def test_the_graph_that_nequix_makes_is_that_of_to_jraph(potential, salt):
    theirs, ours = their_graph(salt), potential.graph(salt).to_jraph(ELEMENTS)
    edges = [np.column_stack([g.receivers, g.senders, g.edges["shifts"]]).astype(int) for g in (theirs, ours)]
    np.testing.assert_array_equal(*(np.unique(e, axis=0) for e in edges))
    assert len(edges[0]) == len(edges[1])
    np.testing.assert_array_equal(theirs.nodes["species"], ours.nodes["species"])
    back = jaxmlip.CrystalGraph.from_jraph(theirs, elements=ELEMENTS)
    np.testing.assert_array_equal(back.numbers, salt.numbers)


def test_energy_forces_and_stress_are_those_of_nequix_and_of_its_calculator(potential, calculator, salt):
    found = potential.predict(salt)
    with potential.precision():
        e, forces, stress = jax.jit(lambda model, graph: model(graph))(
            potential.model.parameters(potential.arrays), jraph.pad_with_graphs(their_graph(salt), 4, 200, 2)
        )
    assert np.abs(found["forces"]).max() > 1e-3
    np.testing.assert_allclose(found["energy"], e[0], rtol=1e-13)
    np.testing.assert_allclose(found["forces"], forces[: len(salt)], atol=1e-12)
    np.testing.assert_allclose(found["stress"], stress[0], atol=1e-13)

    theirs, ours = salt.copy(), salt.copy()
    theirs.calc, ours.calc = calculator, jaxmlip.Calculator(potential.astype("float32"))
    np.testing.assert_allclose(ours.get_potential_energy(), theirs.get_potential_energy(), rtol=1e-6)
    np.testing.assert_allclose(ours.get_forces(), theirs.get_forces(), atol=1e-5)
    np.testing.assert_allclose(ours.get_stress(), theirs.get_stress(), atol=1e-6)


def test_the_hessian_and_force_constants_of_a_supercell_are_those_of_nequix(potential, salt):
    H = jaxmlip.hessian(potential, salt)
    np.testing.assert_allclose(H, their_hessian(potential, salt), atol=1e-12)
    np.testing.assert_allclose(H, H.T, atol=1e-12)
    constants = force_constants(potential, salt, (1, 1, 3))
    # Cell by cell, as `constants` counts them.
    supercell = salt * (1, 1, 3)
    columns = their_hessian(potential, supercell)[:, :6]
    np.testing.assert_allclose(
        constants.phi.reshape(3, 6, 6), columns.reshape(3, 6, 6).swapaxes(1, 2), atol=1e-12
    )

    sums = np.fft.ifftn(constants.phi, axes=(0, 1, 2), norm="forward").reshape(-1, 6, 6)
    found = dynamical_matrix(potential, salt, constants.q_points)
    assert np.abs(found.imag).max() > 1e-3
    np.testing.assert_allclose(found, sums, atol=1e-12)


def test_a_relaxed_crystal_is_at_rest_in_nequix_too(potential, calculator, salt):
    relaxed = jaxmlip.relax(potential, salt, fmax=1e-3, cell=False).atoms
    relaxed.calc = calculator
    assert np.abs(relaxed.get_forces()).max() < 1.1e-3
