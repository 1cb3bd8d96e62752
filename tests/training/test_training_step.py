"""The training step: its gradient, what it divides by, what it leaves alone."""

from dataclasses import replace
from functools import partial

import flax.traverse_util
import jax
import numpy as np
import optax
import pytest
from ase.build import bulk
from conftest import ONE_LAYER, SHORT, small_potential
from labels import REFERENCES, labelled

from jaxmlip.crystals import batching
from jaxmlip.data.batch import Example, collate, stack
from jaxmlip.data.labels import Labels
from jaxmlip.derivatives.hessian import hessian
from jaxmlip.derivatives.response import Response
from jaxmlip.system import parallel
from jaxmlip.training.losses import LossConfig, errors, means, sums
from jaxmlip.training.optimizer import OptimizerConfig, learning_rate, make_optimizer, trained
from jaxmlip.training.step import (
    flat_params,
    init_state,
    make_eval_step,
    make_train_step,
    potential_of,
)
from jaxmlip.units import GPA_PER_EV_PER_A3

EVERY = LossConfig(energy=1.0, forces=2.0, stress=0.3, magmoms=0.5, hessian=0.7, third=0.2)
FEW = LossConfig(energy=1.0, forces=2.0, stress=0.0, magmoms=0.5)


def batch_of(examples, dtype=np.float64, spare=0):
    shape = batching.exact_shape([e.graph for e in examples])  # third derivatives of padding take long
    shape = shape._replace(atoms=shape.atoms + spare, crystals=len(examples) + spare)
    return collate(examples, shape, REFERENCES, np.random.default_rng(1), dtype)


@partial(jax.jit, static_argnames=("energy_fn", "loss"))
def summed(energy_fn, loss, flat, batch):
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    return sums(loss, errors(energy_fn, params, batch, loss.properties))


def loss_of(potential, loss, flat, batch):
    return means(loss, summed(potential.energy_fn, loss, flat, batch))["loss"]


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(1)


@pytest.mark.slow
def test_the_gradient_of_a_loss_on_all_labels_hessian_columns_included_is_that_of_differences(
    architecture, crystals
):
    follows_from_differences(architecture, crystals, LossConfig(kind="mse", hessian=0.7))


@pytest.mark.slow
@pytest.mark.parametrize("name", [SHORT, "m3gnet-smooth", ONE_LAYER])
def test_the_gradient_of_a_loss_on_columns_of_third_order_is_that_of_differences(name, crystals):
    loss = LossConfig(kind="mse", energy=0, forces=0, stress=0, magmoms=0, third=0.2)
    follows_from_differences(small_potential(name), crystals, loss)


def follows_from_differences(potential, crystals, config: LossConfig) -> None:
    """The gradient of the loss by the parameters, along random ones."""
    batch = batch_of(labelled(potential, crystals[:2]))
    with potential.precision():
        flat = flat_params(potential)
        loss = partial(loss_of, potential, config)
        both = jax.jit(jax.value_and_grad(loss))  # one program
        _, grads = both(flat, batch)
        rng = np.random.default_rng(5)
        along = {n: rng.normal(size=x.shape) for n, x in flat.items() if not n.startswith("constants/")}
        h = 1e-5
        moved = [{n: x + s * h * along[n] if n in along else x for n, x in flat.items()} for s in (1, -1)]
        slope = (both(moved[0], batch)[0] - both(moved[1], batch)[0]) / (2 * h)
        found = sum(np.vdot(grads[n], along[n]) for n in along)
    assert all(np.isfinite(x).all() for x in grads.values())
    np.testing.assert_allclose(found, slope, rtol=1e-6)


def test_the_loss_is_made_of_what_predict_hessian_and_third_derivatives_give(any_potential, crystals):
    examples = labelled(any_potential, crystals[:2])
    batch = batch_of(examples, spare=3)
    with any_potential.precision():
        found = means(EVERY, summed(any_potential.energy_fn, EVERY, flat_params(any_potential), batch))
    own = np.asarray(any_potential.params["reference_energies"], float)
    error = {p: [] for p in EVERY.properties}
    weight = {p: [] for p in EVERY.properties}
    start = 0
    for atoms, (_, labels, _) in zip(crystals, examples, strict=False):
        p, n = any_potential.predict(atoms), len(atoms)
        probe = np.asarray(batch.probe[start : start + n]).ravel()
        column = hessian(any_potential, atoms) @ probe
        one, other = np.asarray(batch.ways[:, start : start + n])
        slope = Response(any_potential, atoms, along=one)
        ((_, second),) = slope.columns(np.array([other.argmax()]))
        start += n
        error["energy"] += [
            (p["energy"] - own[atoms.numbers].sum() - labels.energy + REFERENCES[atoms.numbers].sum()) / n
        ]
        error["forces"] += [p["forces"] - labels.forces]
        error["stress"] += [GPA_PER_EV_PER_A3 * (p["stress"] - labels.stress)]
        error["magmoms"] += [p["magmoms"] - labels.magmoms]
        k = int(np.flatnonzero(labels.columns == probe.argmax())[0])
        error["hessian"] += [column.reshape(n, 3) - labels.hessian[k]]
        (k,) = np.flatnonzero((labels.pairs == [one.argmax(), other.argmax()]).all(axis=1))
        error["third"] += [second.reshape(n, 3) - labels.third[k]]
        for name in weight:
            weight[name] += [np.full(np.shape(error[name][-1]), labels.weight_of(name))]
    for name in error:
        x, w = (np.concatenate([np.ravel(y) for y in z[name]]) for z in (error, weight))
        np.testing.assert_allclose(found[f"{name}_mae"], np.average(np.abs(x), weights=w), rtol=1e-8)
        np.testing.assert_allclose(found[f"{name}_rmse"], np.average(x**2, weights=w) ** 0.5, rtol=1e-8)


def test_of_a_stress_the_part_along_vectors_that_repeat_is_learnt_and_of_a_molecule_none(
    any_potential, crystals
):
    slab, molecule = crystals[0].copy(), crystals[1].copy()
    slab.pbc, molecule.pbc = (True, True, False), False
    examples = labelled(any_potential, [crystals[0], crystals[1]])
    examples = [
        e._replace(graph=any_potential.graph(atoms), labels=replace(e.labels, weight=1.0).only(("stress",)))
        for e, atoms in zip(examples, (slab, molecule), strict=True)
    ]
    loss = LossConfig(energy=0, forces=0, magmoms=0, stress=1.0)
    with any_potential.precision():
        found = means(
            loss, summed(any_potential.energy_fn, loss, flat_params(any_potential), batch_of(examples))
        )
    normal = np.cross(*slab.cell.array[:2])
    normal /= np.linalg.norm(normal)
    along = np.eye(3) - np.outer(normal, normal)
    off = any_potential.predict(slab)["stress"] - along @ examples[0].labels.stress @ along
    np.testing.assert_allclose(found["stress_mae"], GPA_PER_EV_PER_A3 * np.abs(off).mean(), rtol=1e-8)


@pytest.mark.parametrize("kind", ["huber", "mse", "mae"])
def test_losses_are_those_of_the_books(kind):
    x = np.array([-2.0, -0.05, 0.0, 0.08, 0.5])
    books = {"huber": optax.losses.huber_loss(x, delta=0.1), "mse": x**2, "mae": np.abs(x)}
    np.testing.assert_allclose(LossConfig(kind=kind).of(x), books[kind], rtol=1e-6)


def test_a_label_that_is_missing_changes_nothing_whatever_stands_in_its_place(any_potential, crystals, mesh):
    """Neither the loss nor one bit of a gradient sees it."""
    examples = labelled(any_potential, crystals[:2])
    without = [examples[0], examples[1]._replace(labels=examples[1].labels.only(("energy", "stress")))]
    batch = batch_of(without)
    other = jax.tree.map(np.copy, batch)
    n = len(crystals[0])
    other.forces[n:] = 1e3
    value = jax.jit(jax.value_and_grad(partial(loss_of, any_potential, FEW)))
    with any_potential.precision():
        flat = flat_params(any_potential)
        np.testing.assert_equal(jax.device_get(value(flat, batch)), jax.device_get(value(flat, other)))


def test_the_loss_of_a_batch_is_that_of_its_parts_added_up(any_potential, crystals):
    examples = labelled(any_potential, crystals[:3])

    shape = batching.shape_for([e.graph for e in examples])

    def of(part):
        batch = collate(part, shape, REFERENCES, np.random.default_rng(1), float)
        return summed(any_potential.energy_fn, FEW, flat_params(any_potential), batch)

    with any_potential.precision():
        parts = jax.tree.map(lambda a, b: a + b, of(examples[:1]), of(examples[1:]))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), of(examples), parts)


def run(potential, examples, config, mesh, steps=3, loss=FEW):
    dtype = np.dtype(potential.dtype)
    batch = stack([batch_of(examples, dtype)])
    state = init_state(potential, config, steps, mesh)
    step = make_train_step(potential, loss, config, steps, mesh)
    history = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        history.append(jax.device_get(metrics))
    return state, history, step


def test_training_lowers_the_loss_and_leaves_frozen_parameters_alone(any_potential, crystals, mesh):
    potential = any_potential  # whose parameters all have an effect
    examples = labelled(potential, crystals[:2])
    config = OptimizerConfig(learning_rate=5e-2, freeze=("bond", "^network/elements$"), clip=10.0, ema=0.9)
    state, history, step = run(potential, examples, config, mesh, steps=24)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert history[0]["crystals"] == 2
    assert history[0]["atoms"] == len(crystals[0]) + len(crystals[1])
    assert step.jitted._cache_size() == 1
    last, average = (potential_of(potential, state, ema=e) for e in (False, True))
    before, after, mean = (
        flax.traverse_util.flatten_dict(p.params, sep="/") for p in (potential, last, average)
    )
    for name, x in before.items():
        moves = name.startswith("network/") and "bond" not in name and name != "network/elements"
        assert np.array_equal(x, after[name]) != moves, name
    assert not np.array_equal(after["network/magmom/kernel"], mean["network/magmom/kernel"])


def test_runs_of_other_rates_and_lengths_share_a_program(any_potential, crystals, mesh):
    potential = any_potential.astype("float32")
    batch = stack([batch_of(labelled(any_potential, crystals[:1]), np.dtype("float32"))])
    others = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=3), 50
    lowered = []
    for config, steps in ((OptimizerConfig(), 10), others):
        step = make_train_step(potential, FEW, config, steps, mesh)
        arguments = step.arguments(init_state(potential, config, steps, mesh), batch)
        lowered.append(step.jitted.lower(*arguments).as_text())
        _, metrics = step(arguments[0], batch)
        assert float(metrics["learning_rate"]) == float(learning_rate(config, steps)(0))
    assert lowered[0] == lowered[1]


@pytest.mark.usefixtures("quick")
def test_a_trained_potential_computes_what_training_computed_also_after_a_save(
    any_potential, crystals, mesh, tmp_path
):
    """Reference energies and the scale included, and the error before the first step is that of `predict`."""
    from jaxmlip.potential import Potential

    own = np.asarray(any_potential.params["reference_energies"], float)
    atoms = crystals[0]
    labels = Labels(energy=1.0, forces=np.ones((len(atoms), 3))).check(len(atoms), "it")
    shape = batching.shape_for([any_potential.graph(atoms)])
    batch = stack(
        [collate([Example(any_potential.graph(atoms), labels)], shape, own, np.random.default_rng(0), float)]
    )
    config = OptimizerConfig(learning_rate=0.05, train=("scale", "references"))
    state = init_state(any_potential, config, 4, mesh)
    step = make_train_step(any_potential, LossConfig(), config, 4, mesh)
    evaluate = make_eval_step(any_potential, LossConfig(), mesh)

    def check(potential, metrics):
        p = potential.predict(atoms)
        np.testing.assert_allclose(metrics["energy_mae"], abs(p["energy"] - 1.0) / len(atoms), rtol=1e-9)
        np.testing.assert_allclose(metrics["forces_mae"], np.abs(p["forces"] - 1).mean(), rtol=1e-9)

    with any_potential.precision():
        check(any_potential, means(LossConfig(), evaluate(state.eval_params, batch)))
        for _ in range(3):
            state, _ = step(state, batch)
        after = potential_of(any_potential, state)
        assert after.params["scale"] != 1
        after.save(tmp_path)
        check(
            Potential.from_folder(tmp_path, "float64"),
            means(LossConfig(), evaluate(state.eval_params, batch)),
        )


def test_the_words_for_groups_of_parameters_find_them_in_every_model(architecture):
    names = flat_params(architecture)
    assert trained(OptimizerConfig(train=("scale",)), names) == ["scale"]
    assert trained(OptimizerConfig(train=("references",)), names) == ["reference_energies"]
    readout = trained(OptimizerConfig(train=("readout",)), names)
    everything = trained(OptimizerConfig(), names)
    assert 0 < len(readout) < len(everything)
    assert set(readout) < set(everything)
    assert not any(n.startswith("constants") for n in everything)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"freeze": ("elemants",)}, "network/elements"),
        ({"train": ("(",)}, "regular expression"),
        ({"freeze": ("all",)}, "no parameter to train"),
    ],
)
def test_a_pattern_that_finds_nothing_is_refused_with_the_near_names(any_potential, config, says):
    with pytest.raises(ValueError, match=says):
        trained(OptimizerConfig(**config), flat_params(any_potential))


def test_the_learning_rate_warms_up_and_ends_where_it_should():
    rate = learning_rate(OptimizerConfig(warmup_steps=10, learning_rate=1e-2, final_learning_rate=1e-4), 100)
    assert [float(rate(k)) for k in (0, 5, 10)] == pytest.approx([0, 5e-3, 1e-2])
    assert float(rate(100)) == pytest.approx(1e-4)


def test_accumulated_batches_make_the_update_of_their_mean():
    params, rng = {"w": np.ones(3)}, np.random.default_rng(0)
    grads = [{"w": rng.normal(size=3)} for _ in range(2)]
    mean = {"w": (grads[0]["w"] + grads[1]["w"]) / 2}
    moved = []
    for accumulate, given in ((1, [mean]), (2, grads)):
        optimizer = make_optimizer(OptimizerConfig(accumulate=accumulate), lambda _: 1e-3)
        state, x = optimizer.init(params), params
        for g in given:
            with jax.numpy_dtype_promotion("standard"):  # Optax mixes whole numbers and others
                updates, state = optimizer.update(g, state, x)
            x = optax.apply_updates(x, updates)
        moved.append(x["w"])
    np.testing.assert_allclose(*moved, rtol=1e-6)
    assert abs(moved[0] - 1).min() > 1e-4


def test_energies_of_thousands_of_electronvolts_lose_nothing_in_float32(any_potential, mesh):
    """The references of r2SCAN reach thousands of eV; what is left of them is exact to a µeV per atom."""
    single = any_potential.astype("float32")
    atoms = bulk("Cu", cubic=True).repeat(2)
    references = np.full(120, -4321.0987, np.float32)  # as a checkpoint may have them
    labels = Labels(energy=float(references[29]) * len(atoms) + 0.25).check(len(atoms), "copper")
    graph = single.graph(atoms)
    batch = collate(
        [Example(graph, labels)], batching.shape_for([graph]), references, np.random.default_rng(0)
    )
    assert batch.energy[0] == pytest.approx(0.25, abs=1e-7)
