"""Sparse Hessians: which elements are zero, which columns are added, and that nothing is lost by it."""

import errno
import functools
import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from ase import Atoms
from commands import here
from conftest import FIRST, MODELS, small_potential
from crystals import chain
from interruptions import StopError, interrupted

import jaxmlip
from jaxmlip import Potential, hessian, sparse_hessian, stream_sparse_hessian
from jaxmlip.crystals.reach import Reach, coupled
from jaxmlip.derivatives.sparse import colouring
from jaxmlip.derivatives.streaming import columns_done
from jaxmlip.models.m3gnet import M3GNet
from jaxmlip.potential import ARCHITECTURES


@pytest.fixture(scope="module")
def long() -> Atoms:
    return chain()


@functools.cache
def whole_of(name: str) -> np.ndarray:
    return hessian(small_potential(name), chain())


@pytest.fixture(scope="module")
def whole(any_potential) -> np.ndarray:
    return whole_of(any_potential.name)


def blocks(h: np.ndarray) -> np.ndarray:
    """Which blocks of two atoms have an element other than zero."""
    return (h.reshape(len(h) // 3, 3, -1, 3) != 0).any(axis=(1, 3))


def test_a_hessian_is_zero_exactly_where_no_atom_sees_both(potential, long):
    """Neither more pairs than needed, nor fewer."""
    found = coupled(potential.graph(long), potential.model.reach).toarray()
    assert 0.2 < found.mean() < 0.9
    np.testing.assert_array_equal(blocks(whole_of(potential.name)), found)


@pytest.mark.parametrize("name", MODELS)
def test_an_atom_sees_one_hop_further_with_each_layer(name):
    config = MODELS[name]
    kind = next(kind for kind, its in ARCHITECTURES.values() if isinstance(config, its))

    def hops(layers: int) -> int:
        change = {"blocks": layers}
        if isinstance(config.blocks, tuple):
            change = {"blocks": config.blocks[:1] * layers, "correlation": (2,) * layers, "edge_channels": ()}
        return kind(replace(config, **change)).reach.hops

    assert [hops(1), hops(2), hops(4)] == [1, 2, 4]


@pytest.mark.slow
def test_messages_that_are_summed_where_their_bond_starts_reach_less_far(long):
    other = small_potential("m3gnet-spherical")
    potential = replace(other, model=M3GNet(replace(other.model.config, at_start=True)))
    found = coupled(potential.graph(long), potential.model.reach).toarray()
    assert found.sum() < coupled(other.graph(long), other.model.reach).toarray().sum()
    np.testing.assert_array_equal(blocks(hessian(potential, long)), found)


def test_a_crystal_narrower_than_the_network_sees_has_no_zeros(any_potential, crystal):
    assert coupled(any_potential.graph(crystal), Reach(1)).toarray().all()


def test_atoms_of_one_colour_share_no_row_and_an_atom_more_needs_no_colour_more(any_potential):
    number = {}
    for atoms in (60, 90, 120):
        found = colouring(any_potential, chain(atoms))
        pairs = found.pairs.toarray()
        assert found.colours.min() == 0
        for row in pairs:
            assert len(set(found.colours[row])) == row.sum()
        number[atoms] = found.number / pairs.sum(axis=1).max()
    assert max(number.values()) < 1.4  # times the least possible number
    assert 3 * colouring(any_potential, chain(120)).number < 120


def check(found: scipy.sparse.csr_array, expected: np.ndarray) -> None:
    assert isinstance(found, scipy.sparse.csr_array)
    np.testing.assert_allclose(found.toarray(), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_a_sparse_hessian_is_the_hessian(any_potential, long, whole):
    found = sparse_hessian(any_potential, long)
    assert found.nnz < whole.size
    assert found.has_sorted_indices
    check(found, whole)


@pytest.mark.slow
def test_a_small_crystal_has_its_whole_hessian(any_potential, crystal):
    check(sparse_hessian(any_potential, crystal), hessian(any_potential, crystal))


def test_chosen_coordinates_are_those_of_the_whole(any_potential, long, whole):
    x = long.positions[:, 0]
    ends = np.flatnonzero((x < 6) | ((x > 27) & (x < 35)))  # two parts that do not see each other
    chosen = np.array([3 * a + i for a in ends for i in range(3) if (a + i) % 4])
    found = colouring(any_potential, long, chosen)
    assert found.number <= len(ends) / 2 + 1
    assert len(found.sums) < len(chosen)
    check(sparse_hessian(any_potential, long, coordinates=chosen[::-1]), whole[np.ix_(chosen, chosen)])
    with pytest.raises(ValueError, match="from 0 to 89"):
        sparse_hessian(any_potential, long, coordinates=[90])


@pytest.mark.slow
def test_float32_passes_the_proof_of_its_zeros(any_potential, long, whole):
    found = sparse_hessian(any_potential.astype("float32"), long)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.toarray(), whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def twice(graph):
    """Two layers of messages: atoms see the neighbours of their neighbours."""
    crystal = jnp.repeat(jnp.arange(len(graph.n_edge)), graph.n_edge, total_repeat_length=len(graph.senders))
    there = jnp.einsum("ek,ekx->ex", graph.edges["shifts"], graph.globals["cell"][crystal])
    r = graph.nodes["positions"]
    square = jnp.sum((r[graph.senders] + there - r[graph.receivers]) ** 2, axis=1)
    weight = jnp.where(square < 16, (1 - square / 16) ** 3, 0.0)
    h = jnp.ones_like(r[:, 0])
    for _ in range(2):
        h = jnp.tanh(jax.ops.segment_sum(h[graph.senders] * weight, graph.receivers, len(r)))
    of_node = jnp.repeat(jnp.arange(len(graph.n_node)), graph.n_node, total_repeat_length=len(r))
    return jax.ops.segment_sum(h, of_node, len(graph.n_node))


def test_an_energy_function_says_how_far_it_sees_and_is_not_believed(long):
    def made(hops: int | None = None) -> Potential:
        return Potential.from_energy(twice, 4.0, [8, 12], dtype="float64", hops=hops)

    check(sparse_hessian(made(2), long), hessian(made(), long))
    with pytest.raises(ValueError, match="sees further than 1 hop along bonds"):
        sparse_hessian(made(1), long)
    with pytest.raises(ValueError, match=r"hops=.* or use jaxmlip\.hessian"):
        sparse_hessian(made(), long)
    with pytest.raises(ValueError, match="hops=0, needed a number from 1 on"):
        made(0)


@pytest.mark.slow
def test_a_network_that_sees_further_than_it_says_is_found_out(long, monkeypatch):
    potential = small_potential(FIRST)
    kind = type(potential.model)
    monkeypatch.setattr(kind, "reach", property(lambda model: Reach(model.config.blocks - 1)))
    with pytest.raises(ValueError, match="sees further than 1 hop "):
        sparse_hessian(potential, long)


def test_memory_is_that_of_columns_and_of_the_result(any_potential, long, whole, monkeypatch):
    monkeypatch.setattr("jaxmlip.derivatives.response.resident", lambda: 10**8)
    dense = jaxmlip.plan_hessian(any_potential, long, memory_limit=60e9)
    sparse = jaxmlip.plan_sparse_hessian(any_potential, long, memory_limit=60e9)
    found = colouring(any_potential, long)
    assert sparse.fixed - dense.fixed == found.size("float64")
    assert sparse.per_column == dense.per_column
    kept = sparse_hessian(any_potential, long, memory_limit=60e9)
    check(kept, whole)
    arrays = kept.data.nbytes + kept.indices.nbytes + 8 * 90 * len(found.sums)
    assert arrays <= found.size("float64") <= 3 * arrays


def test_a_streamed_one_goes_on_and_ends_with_the_same_bits(
    any_potential, long, whole, tmp_path, monkeypatch
):
    first = stream_sparse_hessian(any_potential, long, tmp_path / "first.npz", block_size=8)
    check(first, whole)
    path = tmp_path / "h.npz"
    with monkeypatch.context() as patch:
        interrupted(patch, 3)
        with pytest.raises(StopError):
            stream_sparse_hessian(any_potential, long, path, block_size=8)
    assert not path.exists()
    assert columns_done(path) == 24
    seen = []
    columns = jaxmlip.derivatives.linear_map.columns

    def remember(tangent_map, r, eps, groups, index):
        seen.extend(index.tolist())
        return columns(tangent_map, r, eps, groups, index)

    with monkeypatch.context() as patch:
        patch.setattr("jaxmlip.derivatives.linear_map.columns", remember)
        found = stream_sparse_hessian(any_potential, long, path)
    sums = colouring(any_potential, long).sums
    assert set(seen[: -len(seen) % 8 - 8]) == set(sums[24:].tolist())  # the last block proves the zeros
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, name), getattr(first, name))
    assert columns_done(path) == len(sums)
    assert sorted(p.name for p in tmp_path.glob("h.*")) == ["h.npz", "h.npz.json"]
    (tmp_path / "h.npz.part").touch()  # as a kill leaves it between the last two steps
    stream_sparse_hessian(any_potential, long, path)
    assert sorted(p.name for p in tmp_path.glob("h.*")) == ["h.npz", "h.npz.json"]
    check(scipy.sparse.load_npz(path), whole)


def test_a_streamed_block_of_coordinates_is_that_of_the_whole(any_potential, long, whole, tmp_path):
    chosen = np.arange(7, 70, 2)
    found = stream_sparse_hessian(any_potential, long, tmp_path / "h.npz", chosen)
    check(found, whole[np.ix_(chosen, chosen)])
    with pytest.raises(ValueError, match="differs in the columns"):
        stream_sparse_hessian(any_potential, long, tmp_path / "h.npz")


def test_a_disk_that_is_full_in_the_end_leaves_the_sums(any_potential, long, whole, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "h.npz"
    with monkeypatch.context() as patch:
        patch.setattr("jaxmlip.derivatives.streaming.zipfile.ZipFile", full)
        with pytest.raises(OSError, match=r"h\.npz cannot be written \(No space left"):
            stream_sparse_hessian(any_potential, long, path)
    assert columns_done(path) == len(colouring(any_potential, long).sums)
    check(stream_sparse_hessian(any_potential, long, path), whole)


def test_the_command_says_what_it_saves(tmp_path, long, monkeypatch, capsys):
    potential = small_potential("chgnet-0.3")
    potential.save(tmp_path / "model")
    long.write(tmp_path / "a [long] chain.vasp", direct=True)
    chain(20).write(tmp_path / "short.vasp", direct=True)
    sparse = ("hessian", "--sparse", "--model", "model", "--out")
    done = here(tmp_path, monkeypatch, capsys, *sparse, "h.npz", "a [long] chain.vasp")
    assert done.returncode == 0, done.stderr
    assert "columns" in done.stdout
    found = scipy.sparse.load_npz(tmp_path / "h.npz")
    assert found.shape == (90, 90)
    done = here(tmp_path, monkeypatch, capsys, *sparse, "short.npz", "short.vasp")
    assert "60 sums instead of 60 columns (nothing is saved" in done.stdout
    done = here(tmp_path, monkeypatch, capsys, *sparse, "h.npy", "short.vasp")
    assert done.returncode == 1
    assert "--out h.npy, needed a name that ends in .npz" in done.stderr
