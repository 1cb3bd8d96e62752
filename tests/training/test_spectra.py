"""Frequencies are differentiable functions of the parameters of a potential, and labels like energies."""

import json
import warnings
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pairs
import pytest
import small_run
from ase.build import bulk
from conftest import SHORT, small_potential

from jaxmlip.cli import main
from jaxmlip.crystals import batching
from jaxmlip.crystals.primitive import primitive_cells
from jaxmlip.data.batch import Example, SpectraShape, collate
from jaxmlip.data.dataset import MemorySplit
from jaxmlip.data.labels import Averages, Frequencies, Labels
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.mechanics.elasticity import NotAtRestWarning
from jaxmlip.phonons import mesh_modes, phonon_modes, thermodynamics
from jaxmlip.system import parallel
from jaxmlip.training import evaluate
from jaxmlip.training.config import TrainConfig
from jaxmlip.training.loop import Validated, fit
from jaxmlip.training.losses import LossConfig, errors, means, sums
from jaxmlip.training.optimizer import OptimizerConfig
from jaxmlip.training.spectra import averages_of, dynamical_matrices, spectral_errors, squared_frequencies
from jaxmlip.units import J_PER_MOL_PER_EV, KELVIN_PER_EV, in_thz

Q = np.array([[[0.13, -0.41, 0.27], [0.5, 0.2, -0.35]], [[0.0, 0.0, 0.0], [0.1, 0.1, 0.3]]])
SQUARES = jax.jit(squared_frequencies, static_argnums=0)
ERRORS = jax.jit(spectral_errors, static_argnums=0)
LOSS = LossConfig(kind="mse", energy=0, forces=0, stress=0, magmoms=0, frequencies=1.0, averages=0.7)


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
    averages = max(0 if e.labels.averages is None else len(e.labels.averages.what) for e in examples)
    spectra = SpectraShape(shape, 6, waves, averages)
    rng = np.random.default_rng(seed)
    return collate(examples, shape, np.zeros(120), rng, float, spectra=spectra)


@pytest.fixture(scope="module")
def cells(any_potential):
    return cells_of(any_potential)


@pytest.mark.filterwarnings("ignore::jaxmlip.mechanics.elasticity.NotAtRestWarning")
def test_frequencies_of_cells_side_by_side_are_those_of_phonons(any_potential, cells):
    with any_potential.precision():
        squares = np.asarray(SQUARES(any_potential.energy_fn, any_potential.arrays, cells, Q))
    for found, atoms, q in zip(squares, salts(), Q, strict=True):
        wanted = phonon_modes(any_potential, atoms, q).frequencies
        np.testing.assert_allclose(in_thz(found[:, : 3 * len(atoms)]), wanted, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(found[:, 3 * len(atoms) :], 0)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("m3gnet-smooth", "mace-density")]


@pytest.mark.parametrize("name", [SHORT, *SLOW])
@pytest.mark.slow
def test_gradients_of_the_loss_by_the_parameters_are_those_of_differences(name):
    """Along one direction in the space of all parameters. Modes at Γ are degenerate; one crystal has
    frequencies that belong to no branch, the other has averages too."""
    potential = small_potential(name)
    examples = with_frequencies(potential)
    examples[0] = with_frequencies(potential, assigned=np.array([True, False]))[0]
    averages = Averages(
        np.arange(4), np.array([1.0, 4.0, 300.0, 300.0]), np.array([3, 0.1, 0.5, 2]), [65.0], 1.0
    )
    its = examples[1].labels
    examples[1] = examples[1]._replace(labels=replace(its, averages=averages).check(1, "made up"))
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
    matrices = jax.jit(partial(dynamical_matrices, any_potential.energy_fn, any_potential.arrays, cells))
    with any_potential.precision():
        one, other = (np.asarray(matrices(q)) for q in (Q, np.stack([Q[0], Q[1] + 0.2])))
    np.testing.assert_allclose(one[0], other[0], rtol=0, atol=1e-14)
    assert np.abs(one[1] - other[1]).max() > 1e-5


def test_wave_vectors_are_drawn_as_often_as_they_weigh_and_unknown_frequencies_weigh_nothing():
    thz = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 5.0]])
    error = np.array([[0.1, np.nan, np.nan], [0.2, 0.2, np.nan]])
    its = Frequencies(np.eye(3)[:2], thz, np.array([63.5]), np.array([1.0, 3.0]), error=error)
    copper = Example(pairs.potential().graph(bulk("Cu")), Labels(frequencies=its).check(1, "Cu"))
    oxide = with_frequencies(pairs.potential())[0]
    spectra = batch_of([oxide, copper], waves=4000).spectra
    first = spectra.q_points[1, :, 0] == 1
    assert abs(first.mean() - 0.25) < 0.03
    confidence = np.array([100.0, 25.0, 25.0]) / 50  # 1 / error², on average 1; 1 where it is not stated
    wanted = np.where(first[:, None], [confidence[0], 1, 0, 0, 0, 0], [*confidence[1:], 1, 0, 0, 0])
    np.testing.assert_allclose(spectra.weights[1], wanted, rtol=1e-12)
    np.testing.assert_array_equal(spectra.thz[1][first], np.tile([1.0, 2, 0, 0, 0, 0], (first.sum(), 1)))
    assert spectra.assigned.all()


@pytest.mark.filterwarnings("ignore::jaxmlip.mechanics.elasticity.NotAtRestWarning")
def test_errors_are_those_of_phonons_and_a_frequency_of_no_branch_has_the_nearest():
    """Two signed roots of squares differ by 1e-4 from the frequencies at 5 THz: (SOFT / 5)⁴ / 4."""
    potential = pairs.potential(alike=2**0.5)
    salt = bulk("MgO", "rocksalt", 4.3)
    q = np.array([[0.1, 0.2, 0.4], [0.5, 0.0, 0.5]])
    its = phonon_modes(potential, salt, q).frequencies
    assert its.min() > 4.0
    labels = its + np.array([0.3, -0.2, 0.1, 0.4, -0.3, 0.2])
    labels[1] = np.sort(labels[1])
    measured = np.full((1, 6), np.nan)
    measured[0, :2] = its[0, 5] + 0.1, its[0, 0] - 0.1
    frequencies = Frequencies(
        np.concatenate([q, q[:1]]),
        np.concatenate([labels, measured]),
        salt.get_masses(),
        assigned=np.array([True, True, False]),
    )
    example = Example(potential.graph(salt), Labels(frequencies=frequencies).check(2, "MgO"))
    batch = batch_of([example], waves=20)
    with potential.precision():
        its_errors = ERRORS(potential.energy_fn, potential.arrays, batch.spectra)
    found = np.asarray(its_errors["frequencies"][0])[0]
    spectra = jax.tree.map(lambda x: np.asarray(x)[0], (batch.spectra.q_points, batch.spectra.assigned))
    drawn = np.where(spectra[1], np.isclose(spectra[0], q[1]).all(axis=1), 2).astype(int)
    assert set(drawn) == {0, 1, 2}
    for row, k in zip(found, drawn, strict=True):
        if k < 2:
            np.testing.assert_allclose(row, its[k] - frequencies.thz[k], rtol=0, atol=3e-4)
        else:
            np.testing.assert_allclose(row[:2], [-0.1, 0.1], rtol=0, atol=0.02)
    # Evaluation has the nearest frequency itself, and all wave vectors.
    (pair,) = evaluate.compare(potential, MemorySplit([example], potential.cutoffs))["frequencies"]
    np.testing.assert_allclose(pair.model, [*its.ravel(), its[0, 5], its[0, 0]], rtol=0, atol=1e-9)
    np.testing.assert_allclose(pair.dft, [*labels.ravel(), *measured[0, :2]], rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore::jaxmlip.mechanics.elasticity.NotAtRestWarning")
def test_averages_are_those_of_phonons_on_a_mesh_with_a_random_origin():
    potential = pairs.potential(alike=2**0.5)
    salt, kelvin = bulk("MgO", "rocksalt", 4.3), np.array([100.0, 300.0])
    modes = mesh_modes(potential, salt, (8, 8, 8))
    f, weights = modes.frequencies, modes.weights
    bell = np.exp(-0.5 * ((f - 9.0) / 0.5) ** 2) / (0.5 * (2 * np.pi) ** 0.5)
    heat = thermodynamics(modes, kelvin)
    gas = 6 * J_PER_MOL_PER_EV / KELVIN_PER_EV
    whole = [np.average(x.mean(axis=1), weights=weights) for x in (f, f**2, bell)]
    wanted = np.array([*whole, *heat.heat_capacity / gas, *heat.entropy / gas])
    what, at = np.array([0, 0, 1, 2, 2, 3, 3]), np.array([1.0, 2.0, 9.0, *kelvin, *kelvin])
    averages = Averages(what, at, np.maximum(0.5 * wanted, 0.01), salt.get_masses(), 0.5)
    labels = Labels(averages=averages).check(2, "MgO")
    example = Example(potential.graph(salt), labels)
    off = []
    for seed in range(8):
        batch = batch_of([example], waves=0, seed=seed)
        assert batch.spectra.q_points.shape == (1, 8, 3)
        with potential.precision():
            found = ERRORS(potential.energy_fn, potential.arrays, batch.spectra)
        assert set(found) == {"averages"}
        off.append(np.asarray(found["averages"][0])[0])
    model = np.mean(off, axis=0) * labels.averages.scale + labels.averages.values
    # At Γ, which no random origin meets, the whole mesh has three modes without heat.
    np.testing.assert_allclose(model, wanted, rtol=0.06)
    split = MemorySplit([example], potential.cutoffs)
    (pair,) = evaluate.compare(potential, split)["averages"]
    np.testing.assert_allclose(pair.model * labels.averages.scale, wanted, rtol=0.03)
    np.testing.assert_array_equal(pair.dft, labels.averages.values / labels.averages.scale)


def test_in_float32_no_kind_of_average_spoils_the_derivatives_of_another():
    """A density has a place at 0 THz, which others divide by; 300 K is no power of a frequency."""
    thz = jnp.array([[[0.0, 3.0, 14.0]]], jnp.float32)
    what, at = jnp.array([[1, 2, 3, 0]]), jnp.array([[0.0, 300.0, 300.0, 2.0]], jnp.float32)
    share, present, width = jnp.ones((1, 1), jnp.float32), jnp.ones((1, 3), bool), jnp.ones(1, jnp.float32)
    found = jax.jacobian(lambda f: averages_of(f, share, present, what, at, width))(thz)
    assert np.isfinite(found).all()
    assert (np.abs(found[0, :, 0, 0, 1]) > 1e-4).all()


def stiffer(materials):
    """Salts with the frequencies of a potential whose atoms are larger, and one crystal without."""
    teacher, q = pairs.potential(1.02, 2**0.5), np.random.default_rng(2).uniform(-0.5, 0.5, (6, 3))
    found = []
    for name in materials:
        salt = bulk(name, "rocksalt", 4.4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotAtRestWarning)
            thz = phonon_modes(teacher, salt, q).frequencies
        labels = Labels(frequencies=Frequencies(q, thz, salt.get_masses())).check(2, name)
        found.append(Example(teacher.graph(salt), labels))
    return MemorySplit([*found, Example(teacher.graph(bulk("Cu")), Labels(energy=-1.0))], teacher.cutoffs)


def test_a_wave_vector_does_not_depend_on_the_device_and_a_batch_only_on_its_step():
    split = stiffer(["MgO", "CaO", "NaCl"])
    marked = np.array([[1, 0]] * 3 + [[0, 0]])
    plans = [Plan(split.sizes, 4, n, epochs=2, waves=2, spectra=marked) for n in (1, 2)]
    one, two = (Loader(split, plan, np.zeros(120), np.float64).at(1).spectra for plan in plans)
    assert one.thz.shape == (1, 3, 2, 6)
    assert two.thz.shape == (2, 2, 2, 6)

    def drawn(spectra):
        """By frequency, so that neither order counts."""
        rows = zip(spectra.thz.reshape(-1, 6), spectra.q_points.reshape(-1, 3), strict=True)
        return {tuple(thz): tuple(q) for thz, q in rows if thz.any()}

    assert drawn(one) == drawn(two)
    assert len(drawn(one)) > 3
    assert Plan(split.sizes, 4, epochs=2, spectra=0 * marked, waves=2).spectra_shape is None


@pytest.mark.slow
def test_a_potential_learns_frequencies_and_evaluation_says_so(tmp_path):
    train, test = stiffer(["MgO", "CaO", "NaCl", "KCl"]), stiffer(["CaO"])
    potential, mesh = pairs.potential(alike=2**0.5), parallel.make_mesh(1)
    plan = Plan(train.sizes, 5, epochs=40, waves=4, spectra=np.array([[1, 0]] * 4 + [[0, 0]]))
    loader = Loader(train, plan, potential.params["reference_energies"], np.float64)
    settings = TrainConfig(
        loss=LossConfig(energy=0, forces=0, stress=0, magmoms=0, frequencies=1.0),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        monitor="frequencies_mae",
        validate_every=20,
        dtype="float64",
    )
    seen = []
    fitted = fit(potential, loader, test, settings, mesh, tmp_path, seen.append)
    told = [event.metrics["frequencies_mae"] for event in seen if isinstance(event, Validated)]
    assert told[-1] < 0.2 * told[0]
    before, after = (
        evaluate.errors(evaluate.compare(its, test))["frequencies"] for its in (potential, fitted.potential)
    )
    assert before.values == after.values == 36
    assert after.mae < 0.2 * before.mae
    assert abs(after.slope - 1) < 0.2 * abs(before.slope - 1)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_command_learns_from_a_file_of_phonons(tmp_path, monkeypatch, capsys):
    """The file is pymatgen's, with two crystals."""
    from pymatgen.core import Lattice
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.phonon.bandstructure import PhononBandStructure

    documents = []
    for name, a in (("NaCl", 5.6), ("MgO", 4.2)):
        salt = bulk(name, "rocksalt", a)
        bands = np.sort(np.random.default_rng(1).uniform(2, 8, (6, 5)), axis=0)
        structure = AseAtomsAdaptor.get_structure(salt)
        q = np.random.default_rng(2).uniform(-0.5, 0.5, (5, 3))
        found = PhononBandStructure(q, bands, Lattice(salt.cell.reciprocal()), structure=structure)
        documents.append({"phonon_bandstructure": found.as_dict()})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phonons [PBE].json").write_text(json.dumps(documents))
    small_run.start().save(tmp_path / "small")
    small = ["--model", "small", "--preset", "phonons", "--out", "run"]
    small += ["--learning-rate", "0.02", "--epochs", "6"]
    changes = [word for key in ("waves=2", "data.fractions=[1,0,0]") for word in ("--set", key)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of properties without labels
        main(["finetune", "--data", "phonons [PBE].json", *small, *changes])
    said = capsys.readouterr()
    assert "2 wave vectors" in said.err
    assert "12 complex columns" in said.err
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert list(results["before"]) == ["frequencies"]
    assert results["units"]["frequencies"] == "THz"
    assert results["after"]["frequencies"]["mae"] < results["before"]["frequencies"]["mae"]
