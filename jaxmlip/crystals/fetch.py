"""The one way to fetch across bonds, and its transpose, the sum onto the places fetched from.

All cells of a crystal are alike, so for an energy the cell of an atom's neighbour does not matter. For a
lattice wave it does: displacements differ from cell to cell by a phase e^{2πi q·R}. Fetches that leave their
cell are therefore primitives of their own in a traced function, `fetch_p` and `deposit_p`, that carry the
cells along. JAX treats them as a gather and a scatter-add; code that evaluates a linearised function for a
wave (`tangents.second_axis_vmap`) intercepts them and applies the phases.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Float, Int

from jaxmlip.system.arrays import Array

fetch_p = Primitive("fetch")
deposit_p = Primitive("deposit")


def gather(
    x: Float[Array, "n *features"],
    index: Int[Array, " m"],
    image: Float[Array, "m 4"] | None = None,
) -> Float[Array, "m *features"]:
    """x[index], where entity e fetches from the cell image[e, :3] away (None: from its own).

    image[e, 3] is the number of its crystal, since each has waves of its own.

    Models make every fetch through this function and every sum onto something shared through its transpose,
    `scatter_add`, so that a wave needs only two rules.
    """
    if image is None:
        return _take(x, index)
    return fetch_p.bind(*map(jnp.asarray, (x, index, image)))


def scatter_add(
    y: Float[Array, "m *features"],
    index: Int[Array, " m"],
    size: int,
    image: Float[Array, "m 4"] | None = None,
) -> Float[Array, "n *features"]:
    """Sum of y over the entities that fetch from each of `size` places: the transpose of `gather`."""
    if image is None:
        return _add(y, index, size)
    return deposit_p.bind(*map(jnp.asarray, (y, index, image)), size=size)


def _take(x, index):
    return jnp.asarray(x).at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _add(y, index, size):
    zeros = jnp.zeros((size, *y.shape[1:]), y.dtype)
    return zeros.at[index].add(y, mode="promise_in_bounds", wrap_negative_indices=False)


def _define(primitive: Primitive, plain, shape, transpose) -> None:
    """Registers with JAX a primitive that is linear in its first argument.

    `plain` is that primitive when all cells are alike.
    """

    def alike(x, index, image, **params):
        return plain(x, index, **params)

    primitive.def_impl(jax.jit(alike, static_argnames="size"))
    primitive.def_abstract_eval(
        lambda x, index, image, **params: ShapedArray((shape(index, **params), *x.shape[1:]), x.dtype)
    )
    mlir.register_lowering(primitive, mlir.lower_fun(alike, multiple_results=False))

    def jvp(primals, tangents, **params):
        x, index, image = primals
        out, dx = primitive.bind(x, index, image, **params), tangents[0]
        if type(dx) is ad.Zero:
            return out, ad.Zero.from_primal_value(out)
        return out, primitive.bind(dx, index, image, **params)

    def batch(args, dims, **params):
        x, index, image = args
        if dims[0] is None or dims[1] is not None or dims[2] is not None:
            # Graphs batched by jax.vmap, which lattice waves do not use.
            return jax.vmap(partial(alike, **params), dims)(*args), 0
        return primitive.bind(jnp.moveaxis(x, dims[0], 1), index, image, **params), 1

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = lambda ct, x, index, image, **params: (
        ad.Zero(x.aval) if type(ct) is ad.Zero else transpose(ct, x, index, image),
        None,
        None,
    )
    batching.primitive_batchers[primitive] = batch


_define(
    fetch_p,
    _take,
    shape=lambda index: index.shape[0],
    transpose=lambda ct, x, index, image: deposit_p.bind(ct, index, image, size=x.aval.shape[0]),
)
_define(
    deposit_p,
    _add,
    shape=lambda index, size: size,
    transpose=lambda ct, y, index, image: fetch_p.bind(ct, index, image),
)
