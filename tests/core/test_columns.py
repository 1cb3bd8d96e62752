"""The layout of tangents changes their order in memory and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlip import hessian, hessian_columns, plan_hessian
from jaxmlip.crystals.fetch import gather, scatter_add
from jaxmlip.derivatives import linear_map
from jaxmlip.derivatives.memory_plan import MemoryLimitError
from jaxmlip.derivatives.response import Response
from jaxmlip.derivatives.tangents import second_axis_vmap

index = np.array([0, 2, 2, 1, 3, 0])
w = np.random.default_rng(0).normal(size=(3, 5))
b = np.random.default_rng(1).normal(size=(4, 3))

FUNCTIONS = {
    "element-wise": lambda x: jnp.sin(1.0) * x * b - x / 2 + b,
    "sum over features": lambda x: x.sum(axis=1),
    "sum over rows": lambda x: x.sum(axis=0),
    "product with a matrix": lambda x: x @ w,
    "product from the left": lambda x: jnp.ones((2, 4)) @ x,
    "product of rows": lambda x: jnp.einsum("nf,mf->nm", x, b),
    "product within rows": lambda x: jnp.einsum("nf,nf->n", x, b),
    "product within rows from the left": lambda x: jnp.einsum("nf,nf->n", b, x),
    "a matrix for each row": lambda x: jnp.einsum("nkf,nf->nk", w.reshape(1, 5, 3) * b[:, :1, None], x),
    "fetch": lambda x: x[index],
    "fetch of a column": lambda x: x[:, 1],
    "sum onto rows": lambda x: jnp.zeros((4, 3)).at[index].add(x[index]),
    "slice and pad": lambda x: jnp.pad(x[1:3, :2], ((1, 0), (0, 2))),
    "concatenation of rows": lambda x: jnp.concatenate([x, b, 2 * x]),
    "concatenation of features": lambda x: jnp.concatenate([x, b], axis=1),
    "halves": lambda x: jnp.split(x, [1], axis=1)[1] * 2,
    "transpose": lambda x: x.T * 1.5,
    "reshape": lambda x: x.reshape(2, 2, 3)[:, 1],
    "choice": lambda x: jnp.where(b > 0, x, 0.0),
    "cumulative sum": lambda x: jnp.cumsum(x, axis=1),
    "constant": lambda x: jnp.asarray(b),
    "inner jit": lambda x: jax.jit(lambda y, z: (y * z, z))(x, b)[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_step_gives_what_vmap_gives(name):
    f = FUNCTIONS[name]
    x = np.random.default_rng(2).normal(size=(4, 7, 3)).astype(np.float32)
    axis = min(1, jax.eval_shape(f, x[:, 0]).ndim)
    expected = jax.vmap(f, in_axes=1, out_axes=axis)(x)
    np.testing.assert_allclose(second_axis_vmap(f, x[:, 0])(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_columns_of_a_model_are_those_of_vmap(architecture, crystal):
    graph = Response(architecture, crystal).graph
    with architecture.precision():
        r, eps = map(jnp.asarray, linear_map.point(graph))
        _, tangent_map = linear_map.linearise(architecture.energy_fn, architecture.arrays, graph)

        def still(dr):
            return tangent_map(dr, jnp.zeros_like(eps))[0]

        v = np.random.default_rng(0).normal(size=(len(r), 3, 3))
        expected = jax.jit(jax.vmap(still, 1, 1))(v)
        found = jax.jit(second_axis_vmap(still, r))(v)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_block_size_does_not_change_the_hessian(any_potential, crystal):
    whole = hessian(any_potential, crystal, block_size=15)
    for block in (1, 4):
        np.testing.assert_allclose(
            hessian(any_potential, crystal, block_size=block), whole, rtol=1e-9, atol=1e-9
        )


@pytest.fixture
def steady(monkeypatch):
    """A process that does not grow while a test looks at it."""
    monkeypatch.setattr("jaxmlip.derivatives.response.resident", lambda: 10**8)


def test_a_memory_limit_makes_blocks_smaller_and_is_kept(any_potential, crystal, steady):
    # With any limit nothing is padded.
    free = plan_hessian(any_potential, crystal, block_size=15, memory_limit=1e12)
    limit = free.process + free.fixed + 5.5 * free.per_column
    plan = plan_hessian(any_potential, crystal, memory_limit=limit)
    assert 1 <= plan.block_size < 8
    assert plan.total <= limit


def test_a_memory_limit_with_room_to_spare_is_used(any_potential, crystal, steady, monkeypatch):
    monkeypatch.setattr("jaxmlip.derivatives.response.BLOCK_BYTES", 1)  # any crystal is a large one
    assert plan_hessian(any_potential, crystal).block_size == 1
    assert plan_hessian(any_potential, crystal, memory_limit=2e10).block_size == 8


def test_a_limit_that_a_block_exceeds_is_an_error_that_names_a_block_that_fits(
    any_potential, crystal, steady
):
    free = plan_hessian(any_potential, crystal, block_size=15, memory_limit=1e12)  # nothing is padded
    limit = free.process + free.fixed + 5.5 * free.per_column
    with pytest.raises(MemoryLimitError, match=r"block_size=\d+ fits") as caught:
        hessian(any_potential, crystal, block_size=15, memory_limit=limit)
    fitting = int(str(caught.value).split("block_size=")[-1].split()[0])
    assert plan_hessian(any_potential, crystal, block_size=fitting, memory_limit=limit).total <= limit


def test_a_limit_that_nothing_meets_says_what_is_needed(any_potential, crystal):
    with pytest.raises(MemoryLimitError, match=r"alone needs [\d.e+-]+ GB for 5 atoms"):
        hessian(any_potential, crystal, memory_limit=1000.0)


def test_columns_that_are_not_there_are_refused(any_potential, crystal):
    with pytest.raises(ValueError, match="from 0 to 14"):
        hessian_columns(any_potential, crystal, [15])
    assert hessian_columns(any_potential, crystal, []).shape == (0, 15)


def shifted_sums(x, index, image, around):
    """A sum of fetches from other cells, within `around`, such as jax.checkpoint."""
    return scatter_add(around(lambda x: 2 * gather(x, index, image))(x), index[::-1], len(x))


def test_a_wave_goes_through_what_is_computed_anew_and_is_refused_by_loops_with_fetches_inside():
    rng = np.random.default_rng(0)
    index, image = (
        np.array([0, 1, 1, 2]),
        np.array([[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, -1, 0], [0, 0, 2.0, 0]]),
    )
    x = rng.normal(size=(3, 4, 2))

    def wave(y, image, sign):
        return y * jnp.exp(sign * image[:, 2]).reshape(-1, *(1,) * (y.ndim - 1))

    def response(around):
        linear = jax.linearize(lambda x: shifted_sums(x, index, image, around), x[:, 0])[1]
        return second_axis_vmap(linear, x[:, 0], wave=wave)(x)

    plain = response(lambda f: f)
    still = second_axis_vmap(lambda x: shifted_sums(x, index, image, lambda f: f), x[:, 0])(x)
    assert np.abs(plain - still).max() > 0.1
    np.testing.assert_array_equal(response(jax.checkpoint), plain)
    with pytest.raises(NotImplementedError, match="'scan' with 'fetch'"):
        response(lambda f: lambda x: jax.lax.scan(lambda _, x: (None, f(x)), None, x[None])[1][0])
