"""Energy functions of others over a jraph.GraphsTuple: all that the library gives, of ten lines of JAX."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.lj import LennardJones

import jaxmlip
from jaxmlip import Potential
from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import bond_vectors, from_atoms
from jaxmlip.data.dataset import MemorySplit
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.phonons import force_constants, group_velocities
from jaxmlip.phonons.bloch import dynamical_matrix
from jaxmlip.potential import ManifestError
from jaxmlip.system import parallel
from jaxmlip.training.functionals import join
from jaxmlip.training.loop import OtherRunError, fit
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig

CUTOFF, SIGMA, EPSILON = 5.0, 2.6, 0.02


def per_edge(graph, x):
    """What is the same for all edges of a graph."""
    return jnp.repeat(x, graph.n_edge, axis=0, total_repeat_length=len(graph.senders))


def lennard_jones(params, graph):
    there = jnp.einsum("ek,ekx->ex", graph.edges["shifts"], per_edge(graph, graph.globals["cell"]))
    r = graph.nodes["positions"]
    square = jnp.sum((r[graph.senders] + there - r[graph.receivers]) ** 2, axis=1)
    c6, c6_cut = ((params["sigma"] ** 2 / s) ** 3 for s in (square, CUTOFF**2))
    bond = 2 * params["epsilon"] * (c6**2 - c6 - c6_cut**2 + c6_cut)  # each bond is there twice
    return jax.ops.segment_sum(bond, per_edge(graph, jnp.arange(len(graph.n_edge))), len(graph.n_edge))


def embedded(graph):
    """Many-body, with messages of neighbours' messages, no parameters, and sums onto senders."""
    there = jnp.einsum("ek,ekx->ex", graph.edges["shifts"], per_edge(graph, graph.globals["cell"]))
    r = graph.nodes["positions"]
    vectors = r[graph.senders] + there - r[graph.receivers]
    weight = jnp.exp(-0.5 * jnp.sum(vectors**2, axis=1))[:, None]
    charge = 1.0 + graph.nodes["species"][:, None].astype(r.dtype)

    @jax.checkpoint
    def update(h):
        sent = jax.ops.segment_sum(jnp.tanh(h[graph.receivers]) * weight, graph.senders, len(r))
        return jnp.sin(sent) + jnp.zeros_like(h).at[graph.receivers].add(h[graph.senders] * weight)

    energy = jnp.sum(update(update(charge)), axis=1)
    of_node = jnp.repeat(jnp.arange(len(graph.n_node)), graph.n_node, total_repeat_length=len(r))
    return jax.ops.segment_sum(energy, of_node, len(graph.n_node))


def made(sigma: float = SIGMA) -> Potential:
    params = {"sigma": np.float64(sigma), "epsilon": np.float64(EPSILON)}
    return Potential.from_energy(lennard_jones, CUTOFF, ["Ar", "Ne"], params, name="lj", dtype="float64")


@pytest.fixture(scope="module")
def potential() -> Potential:
    return made()


@pytest.fixture(scope="module")
def many_body() -> Potential:
    return Potential.from_energy(embedded, 4.0, [12, 13, 8], dtype="float64")


@pytest.fixture(scope="module")
def argon() -> Atoms:
    """Sheared, rattled, and narrower than the cutoff."""
    atoms = bulk("Ar", "fcc", 4.0) * (1, 1, 2)
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0.02, 0], [0, 1.01, 0], [0, 0.03, 1]]), scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def reference(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF)
    return atoms


def test_energies_forces_and_stresses_are_those_of_ase(potential, argon):
    slab = fcc111("Ar", (2, 2, 2), a=4.0, vacuum=8.0, periodic=True)
    slab.pbc = [True, True, False]
    molecule = Atoms("ArNe", [[0, 0, 0], [2.9, 0.3, 0.1]])
    alone = Atoms("Ne", cell=[12, 12, 12], pbc=True)
    crystals = [argon, slab, molecule, alone, bulk("Ar", "fcc", 4.1, cubic=True)]
    for atoms, found in zip(crystals, potential.predict(crystals), strict=True):
        wanted = reference(atoms)
        np.testing.assert_allclose(found["energy"], wanted.get_potential_energy(), atol=1e-12)
        np.testing.assert_allclose(found["forces"], wanted.get_forces(), atol=1e-12)
        if atoms.pbc.all():
            np.testing.assert_allclose(found["stress"], wanted.get_stress(voigt=False), atol=1e-12)
        assert "site_energies" not in found
    with pytest.raises(ValueError, match=r"Kr \(Z = 36\)"):
        potential.predict(bulk("Kr"))


def test_the_calculator_and_relaxation_take_it(potential, argon):
    atoms = argon.copy()
    atoms.calc = jaxmlip.Calculator(potential)
    np.testing.assert_allclose(atoms.get_forces(), reference(argon).get_forces(), atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(), reference(argon).get_stress(), atol=1e-12)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_potential_energies()
    relaxed = jaxmlip.relax(potential, argon, fmax=1e-4, smax=1e-5).atoms
    assert np.abs(reference(relaxed).get_forces()).max() < 1e-4
    assert np.abs(reference(relaxed).get_stress()).max() < 2e-5


def test_the_hessian_is_that_of_differences_symmetric_and_blind_to_shifts(potential, argon):
    H, step = jaxmlip.hessian(potential, argon), 1e-4
    for k in range(len(H)):
        ends = []
        for sign in (1, -1):
            moved = reference(argon)
            moved.positions[k // 3, k % 3] += sign * step
            ends.append(moved.get_forces().ravel())
        np.testing.assert_allclose(H[k], (ends[1] - ends[0]) / (2 * step), atol=1e-6)
    np.testing.assert_allclose(H, H.T, atol=1e-12)
    np.testing.assert_allclose(H.reshape(len(H), -1, 3).sum(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize("kind", ["pair", "many-body"])
@pytest.mark.slow
def test_dynamical_matrices_are_the_fourier_sums_of_a_supercells_hessian(
    kind, potential, many_body, argon, cell
):
    its, atoms = (potential, argon) if kind == "pair" else (many_body, cell)
    constants, n = force_constants(its, atoms, (2, 1, 3)), 3 * len(atoms)
    sums = np.fft.ifftn(constants.phi, axes=(0, 1, 2), norm="forward").reshape(-1, n, n)
    found = dynamical_matrix(its, atoms, constants.q_points)
    assert np.abs(found.imag).max() > 1e-3
    np.testing.assert_allclose(found, sums, rtol=0, atol=1e-12)


def test_the_cells_of_a_slab_and_of_a_wire_are_told_apart(many_body):
    slab = Atoms("MgO", [[0, 0, 0], [1.5, 1.4, 0.3]], cell=[3.0, 3.2, 0], pbc=[True, True, False])
    wire = Atoms("MgO", [[0, 0, 0], [1.5, 1.4, 0.3]], cell=[0, 3.2, 0], pbc=[False, True, False])
    for atoms, repeats in ((slab, (2, 3, 1)), (wire, (1, 3, 1))):
        constants = force_constants(many_body, atoms, repeats)
        sums = np.fft.ifftn(constants.phi, axes=(0, 1, 2), norm="forward").reshape(-1, 6, 6)
        np.testing.assert_allclose(dynamical_matrix(many_body, atoms, constants.q_points), sums, atol=1e-12)


def pooled(params, graph):
    """Each atom feels the energy of all."""
    energy = lennard_jones(params, graph)
    return energy + 0.1 * energy**2


def sorted_by_senders(params, graph):
    order = jnp.argsort(graph.senders)
    edges = {"shifts": graph.edges["shifts"][order]}
    graph = graph._replace(senders=graph.senders[order], receivers=graph.receivers[order], edges=edges)
    return lennard_jones(params, graph)


def from_a_table(params, graph):
    """Pairs of atoms as a matrix, which says nothing of cells."""
    there = jnp.einsum("ek,ekx->ex", graph.edges["shifts"], per_edge(graph, graph.globals["cell"]))
    r = graph.nodes["positions"]
    one_hot = (graph.senders[:, None] == jnp.arange(len(r), dtype=jnp.int32)[None]).astype(r.dtype)
    square = jnp.sum((one_hot @ r + there - r[graph.receivers]) ** 2, axis=1)
    bond = params["epsilon"] * jnp.exp(-square / params["sigma"] ** 2)
    return jax.ops.segment_sum(bond, per_edge(graph, jnp.arange(len(graph.n_edge))), len(graph.n_edge))


def test_the_supercell_of_the_proof_is_that_of_ase(argon):
    """Graphs of the same bonds: in every direction the cells are where the waves have their phases."""
    from ase.build import make_supercell

    from jaxmlip.derivatives.proof import CELLS, supercell, wave_of_cells

    for pbc in ([True, True, True], [True, False, True], [False, True, False]):
        atoms = argon.copy()
        atoms.pbc = pbc
        found = supercell(from_atoms(atoms, 5.0))
        matrix = np.rint(found.cell[0] @ np.linalg.inv(atoms.cell.array)).astype(int)
        assert round(np.linalg.det(matrix)) == CELLS
        assert not (matrix @ wave_of_cells(np.array(pbc)) % CELLS).any()
        wanted = from_atoms(make_supercell(atoms, matrix), 5.0)
        lengths = [np.sort(np.linalg.norm(bond_vectors(g), axis=1)) for g in (found, wanted)]
        np.testing.assert_allclose(*lengths, atol=1e-4)


@pytest.mark.parametrize(
    ("fn", "why"), [(pooled, "5 cells"), (sorted_by_senders, "sort"), (from_a_table, "5 cells|'eq'")]
)
def test_a_wave_through_a_function_that_mixes_cells_is_refused_and_a_supercell_is_not(fn, why, potential):
    mixing = Potential.from_energy(
        fn, CUTOFF, potential.elements, potential.params["network"], dtype="float64"
    )
    atoms, q = bulk("Ar", "fcc", 4.0), [[0.1, 0.2, 0.3]]
    for computed in (dynamical_matrix, group_velocities):
        with pytest.raises(ValueError, match=why):
            computed(mixing, atoms, q)
    assert np.abs(dynamical_matrix(mixing, atoms, [[0.0, 0.0, 0.0]])).max() < 1e-12
    assert np.abs(force_constants(mixing, atoms, (2, 1, 1)).phi).max() > 1e-3


def test_parameters_of_any_pytree_reach_the_function_in_their_shape(argon):
    def fn(params, graph):
        (sigma, (count, name)), box = params["pair"], params["box"]
        assert (count, name) == (2, "twice")
        return count / 2 * lennard_jones({"sigma": sigma[0], "epsilon": box.x["~/w"]}, graph)

    class Box:
        def __init__(self, x):
            self.x = x

    jax.tree_util.register_pytree_node(Box, lambda b: ((b.x,), None), lambda _, x: Box(*x))
    params = {"pair": (np.array([SIGMA]), (2, "twice")), "box": Box({"~/w": np.float32(EPSILON)})}
    its = Potential.from_energy(fn, CUTOFF, [18], params, dtype="float64")
    assert its.parameter_count == 2 + 19
    np.testing.assert_allclose(
        its.predict(argon)["energy"], reference(argon).get_potential_energy(), rtol=1e-6
    )
    back = its.model.parameters(its.params)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    with pytest.raises(ValueError, match="'a'"):
        Potential.from_energy(fn, CUTOFF, [18], {"a": np.ones(2), "a/b": np.ones(2)})


@pytest.mark.parametrize(
    ("fn", "found"),
    [
        (lambda graph: jnp.sum(graph.nodes["positions"]), r"shape \(\)"),
        (lambda graph: graph.nodes["positions"][:, 0], r"shape \(\d+,\)"),
        (lambda graph: graph.n_node.astype(jnp.float32), "float32"),
        (lambda graph: 1.0, "float"),
    ],
)
def test_a_function_that_returns_no_energy_of_each_graph_is_refused(fn, found, argon):
    its = Potential.from_energy(fn, CUTOFF, [18], dtype="float64")
    with pytest.raises(ValueError, match=found):
        its.predict(argon)


def test_settings_without_meaning_are_refused():
    for cutoff, elements, found in (
        (0.0, [18], "cutoff=0"),
        (np.inf, [18], "cutoff=inf"),
        (5.0, [], "elements="),
        (5.0, [18, "Ar"], "elements="),
        (5.0, ["Xx"], "'Xx'|0"),
        (5.0, [119], "119"),
    ):
        with pytest.raises(ValueError, match=found):
            Potential.from_energy(embedded, cutoff, elements)


def test_potentials_of_one_function_share_programs_and_those_of_others_do_not(potential):
    assert made(3.0).energy_fn == potential.energy_fn
    assert hash(made(3.0).energy_fn) == hash(potential.energy_fn)
    other = Potential.from_energy(
        lambda params, graph: lennard_jones(params, graph), CUTOFF, [18], {"a": 1.0}
    )
    again = Potential.from_energy(lennard_jones, 4.0, ["Ar", "Ne"], potential.params["network"])
    assert len({its.energy_fn for its in (potential, other, again, made())}) == 3


def split(count: int, seed: int) -> MemorySplit:
    labelled = []
    for k in range(count):
        atoms = bulk("Ar", "fcc", 4.0 + 0.1 * (k % 3)) * (1, 1, 2)
        atoms.rattle(0.1, seed=seed + k)
        wanted = reference(atoms)
        labels = Labels(
            energy=wanted.get_potential_energy() - 1.0,
            forces=wanted.get_forces(),
            stress=wanted.get_stress(voigt=False),
        )
        labelled.append(LabelledCrystal(atoms, labels))
    return MemorySplit.from_crystals(labelled, made().cutoffs)


def trained(folder, potential: Potential, epochs: int):
    mesh = parallel.make_mesh(1)
    data, references = split(12, 0), potential.params["reference_energies"]
    loader = Loader(data, Plan(data.sizes, 4, 1, 0, epochs), references, np.float64)
    settings = replace(
        small_run.SETTINGS,
        loss=LossConfig(stress=0.1, magmoms=0.0),
        optimizer=OptimizerConfig(
            learning_rate=2e-2, schedule="constant", train=("all", "references"), freeze=("epsilon",)
        ),
    )
    return fit(potential, loader, split(4, 100), settings, mesh, folder)


@pytest.mark.usefixtures("runs_alike")
@pytest.mark.slow
def test_training_finds_the_parameters_of_the_labels_goes_on_and_is_saved(argon, tmp_path):
    start = made(2.75)
    shorter = trained(tmp_path / "run", start, 4)
    fitted = trained(tmp_path / "run", start, 20)
    whole = trained(tmp_path / "whole", start, 20)
    for x, y in zip(jax.tree.leaves(fitted.last.params), jax.tree.leaves(whole.last.params), strict=True):
        np.testing.assert_array_equal(x, y)
    assert fitted.step == 5 * shorter.step
    assert abs(fitted.potential.params["network"]["sigma"] - SIGMA) < 0.05
    assert fitted.potential.params["network"]["epsilon"] == EPSILON
    assert fitted.potential.params["reference_energies"][18] < -0.1
    assert fitted.history[-1]["forces_mae"] < 0.3 * fitted.history[0]["forces_mae"]
    other = Potential.from_energy(
        pooled, CUTOFF, start.elements, start.params["network"], name="lj", dtype="float64"
    )
    with pytest.raises(OtherRunError, match=r"hyperparameters\.function"):
        trained(tmp_path / "run", other, 20)

    fitted.potential.save(tmp_path / "saved")
    with pytest.raises(ManifestError, match="with_parameters"):
        Potential.from_folder(tmp_path / "saved")
    again = start.with_parameters(tmp_path / "saved")
    assert again.predict(argon)["energy"] == fitted.potential.predict(argon)["energy"]
    with pytest.raises(ManifestError, match="pooled"):
        other.with_parameters(tmp_path / "saved")
    fewer = Potential.from_energy(lennard_jones, CUTOFF, start.elements, {"sigma": np.float64(1)})
    with pytest.raises(ManifestError, match="epsilon: unknown"):
        fewer.with_parameters(tmp_path / "saved")
    with pytest.raises(ValueError, match="function"):
        join(start, ["PBE", "r2SCAN"])


def test_padding_gives_no_gradient_of_parameters_that_is_none():
    """Where atoms meet the slope of a norm is not finite; no edge of padding has that length."""

    def fn(params, graph):
        there = jnp.einsum("ek,ekx->ex", graph.edges["shifts"], per_edge(graph, graph.globals["cell"]))
        r = graph.nodes["positions"]
        length = jnp.linalg.norm(r[graph.senders] + there - r[graph.receivers], axis=1)
        bond = params["w"] * jnp.exp(-length)
        return jax.ops.segment_sum(bond, per_edge(graph, jnp.arange(len(graph.n_edge))), len(graph.n_edge))

    its = Potential.from_energy(fn, 3.5, [14], {"w": np.float32(1.0)})
    graph = its.graph(bulk("Si"))
    shape = batching.shape_for([graph])._replace(crystals=3)
    packed = batching.pack([graph], shape, np.float32)

    def squared(params):
        from jaxmlip.derivatives.gradients import energy_forces_stress

        e, forces, stress = energy_forces_stress(lambda g: its.energy_fn(params, g), packed)
        return (e**2).sum() + (forces**2).sum() + (stress**2).sum()

    slopes = jax.jit(jax.grad(squared))(its.arrays)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    assert slopes["network"]["w"] > 0


def test_a_streamed_hessian_is_that_in_memory_and_goes_on_with_the_same_function_alone(argon, tmp_path):
    def times(factor):
        def energy(params, graph):
            return factor * lennard_jones(params, graph)

        params = made().params["network"]
        return Potential.from_energy(energy, CUTOFF, [18], params, dtype="float64")

    streamed = jaxmlip.stream_hessian(times(1.0), argon, tmp_path / "H.npy")
    np.testing.assert_allclose(np.asarray(streamed), jaxmlip.hessian(made(), argon), atol=1e-12)
    assert np.array_equal(jaxmlip.stream_hessian(times(1.0), argon, tmp_path / "H.npy"), streamed)
    for other in (times(2.0), times(np.linspace(1.0, 1.1, 2)[1])):
        with pytest.raises(ValueError, match="parameters"):
            jaxmlip.stream_hessian(other, argon, tmp_path / "H.npy")


def test_the_morse_potential_of_the_pages_holds_copper_together():
    text = (Path(__file__).parents[2] / "docs" / "own_energy.md").read_text()
    names: dict = {}
    exec(text.split("```python")[1].split("```")[0], names)
    assert names["relaxed"].converged
    # The parameters are those of Girifalco and Weizer (1959), fitted to copper's lattice constant.
    assert abs(names["relaxed"].atoms.cell.lengths()[0] * 2**0.5 - 3.61) < 0.02
    assert names["bands"].modes.frequencies.min() > -1e-3
