"""The one way to fetch across bonds, and its transpose, the sum onto what was fetched from.

All cells of a crystal are alike, so for an energy it does not matter in which cell the neighbour of an atom
lives. For a lattice wave it does: its displacements differ from cell to cell by a phase e^{2πi q·R}. Fetches
that leave their cell are therefore steps of their own in a traced function, `fetch_p` and `deposit_p`, that
carry the cells along. To everything in JAX they are a gather and a scatter-add; who evaluates a linearised
function for a wave (`columns.second_axis_vmap`) finds them there and multiplies by the phases.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float, Int

fetch_p = Primitive("fetch")
deposit_p = Primitive("deposit")


def gather(
    x: Float[Array, "n *features"],
    index: Int[Array, " m"],
    image: Float[Array, "m 3"] | None = None,
) -> Float[Array, "m *features"]:
    """x[index], where entity e fetches from the cell `image[e]` away (None: from its own).

    Models make every fetch through this function and every sum onto something shared through its transpose,
    `scatter_add`, so that a wave meets two rules.
    """
    if image is None:
        return _take(x, index)
    return fetch_p.bind(*map(jnp.asarray, (x, index, image)))


def scatter_add(
    y: Float[Array, "m *features"],
    index: Int[Array, " m"],
    size: int,
    image: Float[Array, "m 3"] | None = None,
) -> Float[Array, "n *features"]:
    """Sum of y over the entities that fetch from each of `size` places: the transpose of `gather`."""
    if image is None:
        return _add(y, index, size)
    return deposit_p.bind(*map(jnp.asarray, (y, index, image)), size=size)


def _take(x, index):
    return jnp.asarray(x).at[index].get(mode="promise_in_bounds")


def _add(y, index, size):
    zeros = jnp.zeros((size, *y.shape[1:]), y.dtype)
    return zeros.at[index].add(y, mode="promise_in_bounds")


def _define(primitive: Primitive, plain, shape, transpose) -> None:
    """Tells JAX what it has to know of a step that is linear in its first argument.

    `plain` is that step where all cells are alike.
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
            # Graphs side by side by jax.vmap, through which no wave is sent.
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
