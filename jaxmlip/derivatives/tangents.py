"""Many tangents through one linearised function, laid out for speed.

`jax.vmap` of a linearised function puts the axis of the tangents first: (columns, bonds, features). Every
element-wise step then reads its coefficients, one for each bond and feature, anew for each column, and a
fetch moves short rows. Here the axis comes second: (bonds, columns, features). The coefficients of a bond
serve all columns while they are in the cache, and fetches and sums move long rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core


class Columns(NamedTuple):
    """The axis of tangents: how many there are, and what a fetch from another cell does to them."""

    count: int
    wave: Wave | None = None


# Phases of arrays (m, columns, *features) that were fetched from the images (m, 4), as `crystals.fetch` has
# them; the sign is +1 for a fetch and -1 for its transpose.
Wave = Callable[[jax.Array, jax.Array, int], jax.Array]


def second_axis_vmap(f: Callable, *example: Any, wave: Wave | None = None) -> Callable:
    """`f` for arrays with one more axis, at position 1, like jax.vmap(f, in_axes=1, out_axes=1).

    f takes and returns arrays of at least one axis, and must be linear if a `wave` is given; `example` gives
    the shapes of its arguments.
    """
    closed = jax.make_jaxpr(f)(*example)

    def batched(*args):
        columns = Columns(args[0].shape[1], wave)
        outs = _evaluate(closed.jaxpr, closed.consts, [(x, True) for x in args], columns)
        outs = [_spread(*pair, columns) for pair in outs]
        return outs[0] if len(outs) == 1 else tuple(outs)

    return batched


def _evaluate(jaxpr, consts, args, columns: Columns) -> list:
    """Evaluates `jaxpr` on pairs (array, whether it has the axis of columns), and returns such pairs."""
    values: dict = dict(zip(jaxpr.constvars, ((c, False) for c in consts), strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        return (atom.val, False) if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        outputs = _apply(equation, inputs, columns)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation, inputs, columns: Columns) -> list:
    primitive, params = equation.primitive, equation.params
    if primitive.name in ("jit", "pjit"):
        inner = params["jaxpr"]
        return _evaluate(inner.jaxpr, inner.consts, inputs, columns)
    if primitive.name in ("checkpoint", "remat2"):
        return _evaluate(params["jaxpr"], (), inputs, columns)
    if not any(batched for _, batched in inputs):
        outs = primitive.bind(*(x for x, _ in inputs), **params)
        return [(out, False) for out in (outs if primitive.multiple_results else [outs])]
    rule = RULES.get(primitive.name)
    outs = rule(equation, inputs, columns) if rule else None
    if outs is None:
        if columns.wave is not None and (hidden := _fetches_within(params.values())):
            raise NotImplementedError(
                f"a wave meets the operation {primitive.name!r} with {hidden!r} inside, and has no rule to "
                "pass through it; needed a function without it."
            )
        outs = _by_vmap(equation, inputs)
    return [(out, True) for out in (outs if primitive.multiple_results else [outs])]


def _fetches_within(params) -> str:
    """The name of a primitive between cells in the functions (of a loop, say) in `params`; "" for none."""
    for x in params:
        if isinstance(x, tuple | list) and (found := _fetches_within(x)):
            return found
        x = x.jaxpr if isinstance(x, core.ClosedJaxpr) else x
        for equation in x.eqns if isinstance(x, core.Jaxpr) else ():
            name = equation.primitive.name
            if name in ("fetch", "deposit") or (name := _fetches_within(equation.params.values())):
                return name
    return ""


def _spread(x, batched: bool, columns: Columns):
    """x with the axis of columns, which is added if it is missing."""
    if batched:
        return x
    x = jnp.expand_dims(x, min(1, jnp.ndim(x)))
    return jnp.broadcast_to(x, (*x.shape[:1], columns.count, *x.shape[2:]))


def _by_vmap(equation, inputs):
    """The rule for everything else: JAX's own batching, with the axis moved to the second place."""
    axes = [min(1, x.ndim - 1) if batched else None for x, batched in inputs]
    out_axes = [min(1, out.aval.ndim) for out in equation.outvars]
    multiple = equation.primitive.multiple_results
    bind = partial(equation.primitive.bind, **equation.params)
    return jax.vmap(bind, axes, out_axes if multiple else out_axes[0])(*(x for x, _ in inputs))


def _elementwise(equation, inputs, columns):
    shape = equation.outvars[0].aval.shape
    if not shape:
        return None
    shape = (shape[0], columns.count, *shape[1:])

    def fit(x, batched):
        if batched:
            return x
        return jnp.broadcast_to(jnp.expand_dims(x, 1) if np.ndim(x) else x, shape)

    return equation.primitive.bind(*(fit(*pair) for pair in inputs), **equation.params)


def _reduce_sum(equation, inputs, columns):
    axes = equation.params["axes"]
    if 0 in axes:
        return None
    return lax.reduce_sum_p.bind(inputs[0][0], **{**equation.params, "axes": tuple(a + 1 for a in axes)})


def _broadcast_in_dim(equation, inputs, columns):
    x, dims = inputs[0][0], equation.params["broadcast_dimensions"]
    shape = equation.params["shape"]
    if len(inputs) > 1 or not dims or dims[0] != 0:
        return None
    return lax.broadcast_in_dim(x, (shape[0], columns.count, *shape[1:]), (0, 1, *(d + 1 for d in dims[1:])))


def _reshape(equation, inputs, columns):
    x, sizes = inputs[0][0], equation.params["new_sizes"]
    if not sizes or sizes[0] != x.shape[0] or equation.params["dimensions"] is not None:
        return None
    return lax.reshape(x, (sizes[0], columns.count, *sizes[1:]))


def _squeeze(equation, inputs, columns):
    dims = equation.params["dimensions"]
    return None if 0 in dims else lax.squeeze(inputs[0][0], [d + 1 for d in dims])


def _slice(equation, inputs, columns):
    p = equation.params
    start, limit = p["start_indices"], p["limit_indices"]
    strides = p["strides"] or (1,) * len(start)
    return lax.slice(
        inputs[0][0],
        (start[0], 0, *start[1:]),
        (limit[0], columns.count, *limit[1:]),
        (strides[0], 1, *strides[1:]),
    )


def _pad(equation, inputs, columns):
    (x, _), (value, spread) = inputs
    config = equation.params["padding_config"]
    return None if spread else lax.pad(x, value, [config[0], (0, 0, 0), *config[1:]])


def _concatenate(equation, inputs, columns):
    d = equation.params["dimension"]
    parts = [_spread(*pair, columns) for pair in inputs]
    return lax.concatenate(parts, d + 1 if d else 0)


def _split(equation, inputs, columns):
    axis = equation.params["axis"]
    return lax.split_p.bind(inputs[0][0], **{**equation.params, "axis": axis + 1 if axis else 0})


def _dot_general(equation, inputs, columns):
    (x, x_batched), (w, w_batched) = inputs
    (over_x, over_w), (batch_x, batch_w) = equation.params["dimension_numbers"]

    def bind(x, w, numbers):
        return lax.dot_general_p.bind(x, w, **{**equation.params, "dimension_numbers": numbers})

    def later(axes):
        return tuple(d + 1 for d in axes)

    if not batch_x:
        if w_batched or 0 in over_x:
            return None
        return bind(x, w, ((later(over_x), over_w), ((), ())))
    if batch_x != (0,) or batch_w != (0,):
        return None
    if not w_batched:  # the columns come out as the first free axis, which is their place
        return bind(x, w, ((later(over_x), over_w), ((0,), (0,))))
    if not x_batched:
        if x.ndim == 1 + len(over_x):  # no axis of x is left to come before the columns
            return bind(w, x, ((later(over_w), over_x), ((0,), (0,))))
        if x.size * columns.count > w.size:
            return None
        x = _spread(x, False, columns)
    return bind(x, w, ((later(over_x), later(over_w)), ((0, 1), (0, 1))))


def _gather(equation, inputs, columns):
    (x, _), (index, index_batched) = inputs
    p = equation.params
    numbers, rank = p["dimension_numbers"], x.ndim - 1
    rows = lax.GatherDimensionNumbers(tuple(range(1, rank)), (0,), (0,))
    if index_batched or index.ndim != 2 or numbers != rows or p["slice_sizes"][1:] != x.shape[2:]:
        return None
    numbers = lax.GatherDimensionNumbers(tuple(range(1, rank + 1)), (0,), (0,))
    return lax.gather(x, index, numbers, (1, *x.shape[1:]), mode=p["mode"])


def _scatter_add(equation, inputs, columns):
    x, (index, index_batched), (y, y_batched) = inputs
    rank = np.ndim(x[0]) - x[1]
    rows = lax.ScatterDimensionNumbers(tuple(range(1, rank)), (0,), (0,))
    p = equation.params
    if index_batched or not y_batched or index.ndim != 2 or p["dimension_numbers"] != rows:
        return None
    numbers = lax.ScatterDimensionNumbers(tuple(range(1, rank + 1)), (0,), (0,))
    return lax.scatter_add(_spread(*x, columns), index, y, numbers, mode=p["mode"])


def _fetch(equation, inputs, columns):
    (x, _), (index, _), (image, _) = inputs
    y = equation.primitive.bind(x, index, image)
    return y if columns.wave is None else columns.wave(y, image, 1)


def _deposit(equation, inputs, columns):
    (y, _), (index, _), (image, _) = inputs
    if columns.wave is not None:
        y = columns.wave(y, image, -1)
    return equation.primitive.bind(y, index, image, **equation.params)


RULES = {
    **dict.fromkeys(
        ("mul", "add_any", "add", "sub", "neg", "div", "select_n", "convert_element_type", "copy"),
        _elementwise,
    ),
    "reduce_sum": _reduce_sum,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "slice": _slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "split": _split,
    "dot_general": _dot_general,
    "gather": _gather,
    "scatter-add": _scatter_add,
    "fetch": _fetch,
    "deposit": _deposit,
}
