"""The loader: every crystal once per epoch, in batches of nearly one size, whatever the number of devices."""

import itertools

import jax
import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmlip.crystals.batching import BatchShape
from jaxmlip.crystals.graph import Cutoffs
from jaxmlip.data.dataset import MemorySplit
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.loader import Loader, Plan

CUTOFFS = Cutoffs(4.0, 3.0)
REFERENCES = np.linspace(-1, 1, 95)


def heavy_tailed(n: int, seed: int = 0) -> np.ndarray:
    """Sizes spread as those of Materials Project: median 20 atoms, some of several hundred."""
    atoms = np.clip(np.random.default_rng(seed).lognormal(3.0, 0.8, n), 1, 444).astype(int)
    return np.stack([atoms, 4 * atoms, 30 * atoms, 40 * atoms], axis=1)


plans = st.builds(
    lambda n, batch_size, shards, seed, epochs, replay: Plan(
        heavy_tailed(n, seed),
        batch_size,
        shards,
        seed,
        epochs,
        heavy_tailed(5, 1) if replay else None,
        replay,
    ),
    n=st.integers(1, 300),
    batch_size=st.integers(1, 40),
    shards=st.integers(1, 8),
    seed=st.integers(0, 2**32),
    epochs=st.integers(1, 3),
    replay=st.integers(0, 5),
)


@given(plans)
@settings(max_examples=40, deadline=None)
def test_every_crystal_occurs_once_per_epoch(plan):
    for epoch in range(plan.epochs):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        numbers = np.concatenate([shard for step in steps for shard in plan.batch(step)])
        own = numbers[numbers < len(plan.sizes)]
        np.testing.assert_array_equal(np.sort(own), np.arange(len(plan.sizes)))
        assert len(numbers) - len(own) == plan.replay_batch * plan.steps_per_epoch


@given(plans)
@settings(max_examples=40, deadline=None)
def test_the_room_holds_every_shard_and_no_less_would(plan):
    sizes = np.concatenate([plan.sizes, *([plan.replay_sizes] if plan.replay_batch else [])])
    loads = [
        (*sizes[shard].sum(axis=0), 0, len(shard)) for step in range(plan.steps) for shard in plan.batch(step)
    ]
    assert tuple(plan.shape) == tuple(np.max(loads, axis=0) + np.array([1, 1, 0, 0, 0, 0]))


@given(plans, st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_a_batch_does_not_depend_on_the_number_of_devices(plan, shards):
    other = Plan(
        plan.sizes, plan.batch_size, shards, plan.seed, plan.epochs, plan.replay_sizes, plan.replay_batch
    )
    for step in range(plan.steps):
        assert sorted(np.concatenate(plan.batch(step))) == sorted(np.concatenate(other.batch(step)))


def test_another_seed_makes_other_batches_and_the_same_seed_the_same():
    def first(seed):
        return Plan(heavy_tailed(200), 20, seed=seed).batch(0)[0].tolist()

    assert first(1) == first(1) != first(2)


@pytest.mark.parametrize("shards", [1, 2, 8])
def test_hardly_more_is_padding_than_the_largest_crystal_makes_necessary(shards):
    sizes = heavy_tailed(20_000)
    mean = sizes[:, 0].mean() * 40 / shards
    least = 1 - mean / max(mean, sizes[:, 0].max())
    assert max(Plan(sizes, 40, shards).waste.values()) < least + 0.05


def test_replay_goes_through_all_its_crystals():
    plan = Plan(heavy_tailed(100), 10, 1, 0, 1, heavy_tailed(10), 2)
    replayed = [n - 100 for step in range(5) for n in plan.batch(step)[0] if n >= 100]
    assert sorted(replayed) == list(range(10))


def test_a_crystal_larger_than_the_given_room_is_named():
    sizes = heavy_tailed(50)
    sizes[17] = (900, 4, 5, 6)
    with pytest.raises(ValueError, match=r"crystal 17 has 900 atoms.*Leave the crystal out"):
        Plan(sizes, 4, shape=BatchShape(500, 10**6, 10**6, 10**6, crystals=4))
    with pytest.raises(ValueError, match="smaller batch_size"):
        Plan(heavy_tailed(50), 50, shape=BatchShape(500, 10**6, 10**6, 10**6, crystals=50))


@pytest.fixture(scope="module")
def split() -> MemorySplit:
    rng = np.random.default_rng(5)

    def labelled(k):
        kinds = [("NaCl", "rocksalt", 5.6), ("Cu", "fcc", 3.6), ("Si", "diamond", 5.4)]
        atoms = bulk(*kinds[k % 3], cubic=k % 2 == 0)
        atoms.rattle(0.05, seed=k)
        n = len(atoms)
        constants = {"columns": np.array([0, 2]), "hessian": rng.normal(size=(2, n, 3))} if k % 4 == 0 else {}
        if k % 5 == 0:
            constants |= {"pairs": np.array([[0, 2], [1, 1], [2, 0]]), "third": rng.normal(size=(3, n, 3))}
        labels = Labels(energy=rng.normal(), forces=rng.normal(size=(n, 3)), **constants)
        return LabelledCrystal(atoms, labels)

    return MemorySplit.from_crystals([labelled(k) for k in range(21)], CUTOFFS)


def same(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


def test_a_run_resumed_at_any_step_sees_the_same_batches(split):
    plan = Plan(split.sizes, 4, shards=2, seed=3, epochs=3)
    loader = Loader(split, plan, REFERENCES, mixed=True)
    assert loader.waiting == 0
    whole = list(loader.iterate())
    assert 0 < loader.waiting < 1  # whoever only takes batches waits for them
    assert len(whole) == plan.steps == 18
    for start in (1, 6, 17):
        again = Loader(split, plan, REFERENCES, mixed=True).iterate(start)
        assert all(same(a, b) for a, b in itertools.zip_longest(whole[start:], again))


def test_all_batches_of_a_run_have_one_shape(split):
    loader = Loader(split, Plan(split.sizes, 4, shards=3, epochs=2), REFERENCES)
    assert len({tuple(x.shape for x in jax.tree.leaves(batch)) for batch in loader.iterate()}) == 1


def test_a_crystal_has_the_same_probe_on_any_number_of_devices(split):
    def labels(shards):
        loader = Loader(split, Plan(split.sizes, 8, shards), REFERENCES, np.float64, mixed=True)
        batch = loader.at(1)
        drawn = (batch.probe, batch.hessian, batch.ways, batch.third, batch.energy)
        return sorted(np.concatenate([x[x != 0] for x in drawn]))

    assert len(labels(1)) > 8
    assert labels(1) == labels(2) == labels(5)


def test_hosts_make_the_shards_of_one_batch(split):
    plan = Plan(split.sizes, 6, shards=4)
    whole = Loader(split, plan, REFERENCES).at(2)
    hosts = [Loader(split, plan, REFERENCES, shards=which).at(2) for which in ([0, 1], [2, 3])]
    assert same(whole, jax.tree.map(lambda *x: np.concatenate(x), *hosts))


def test_a_loader_refuses_a_plan_of_another_split(split):
    with pytest.raises(ValueError, match="needed a plan made from the sizes"):
        Loader(split, Plan(split.sizes[:-1], 4), REFERENCES)
