"""Activations with their derivatives written out.

A Hessian contains each activation in the forward pass, in the backward pass and in the tangents of both.
Automatic differentiation of x / (1 + exp(-x)) leaves a chain of factors at each of these places. Written out,
only one factor for each derivative remains, and a linearised gradient keeps a third of the memory. Third
order contains the third derivatives as well. This is done for SiLU, which the published networks have.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxmlip.system.arrays import Array


@jax.custom_jvp
def silu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """x σ(x), with derivatives of every order."""
    return x * jax.lax.logistic(x)


@silu.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return silu(x), _silu_slope(x) * dx


@jax.custom_jvp
def _silu_slope(x):
    s = jax.lax.logistic(x)
    return s * (1 + x * (1 - s))


@_silu_slope.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _silu_slope(x), _silu_curvature(x) * dx


@jax.custom_jvp
def _silu_curvature(x):
    s = jax.lax.logistic(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


@_silu_curvature.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _silu_curvature(x), _silu_third(x) * dx


def _silu_third(x):
    s = jax.lax.logistic(x)
    slope = s * (1 - s)
    return slope * (3 * (1 - 2 * s) + x * (1 - 6 * slope))


@jax.custom_jvp
def silu_gate(core: Float[Array, "*n"], gate: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """silu(core) σ(gate), the end of a gated MLP, with derivatives of every order."""
    return silu(core) * jax.lax.logistic(gate)


@silu_gate.defjvp
def _(primals, tangents):
    by_core, by_gate = _gate_slopes(*primals)
    return silu_gate(*primals), by_core * tangents[0] + by_gate * tangents[1]


@jax.custom_jvp
def _gate_slopes(core, gate):
    s = jax.lax.logistic(gate)
    return _silu_slope(core) * s, silu(core) * (s * (1 - s))


@_gate_slopes.defjvp
def _(primals, tangents):
    d_core, d_gate = tangents
    twice_core, mixed, twice_gate = _gate_curvatures(*primals)
    return _gate_slopes(*primals), (
        twice_core * d_core + mixed * d_gate,
        mixed * d_core + twice_gate * d_gate,
    )


@jax.custom_jvp
def _gate_curvatures(core, gate):
    """The second derivatives, by core twice, by both, and by gate twice."""
    s = jax.lax.logistic(gate)
    slope = s * (1 - s)
    return (
        _silu_curvature(core) * s,
        _silu_slope(core) * slope,
        silu(core) * (slope * (1 - 2 * s)),
    )


@_gate_curvatures.defjvp
def _(primals, tangents):
    (core, gate), (d_core, d_gate) = primals, tangents
    s = jax.lax.logistic(gate)
    slope = s * (1 - s)
    curvature = slope * (1 - 2 * s)
    by_core, by_gate = _silu_curvature(core) * slope, _silu_slope(core) * curvature
    return _gate_curvatures(core, gate), (
        _silu_third(core) * s * d_core + by_core * d_gate,
        by_core * d_core + by_gate * d_gate,
        by_gate * d_core + silu(core) * (slope * (1 - 6 * slope)) * d_gate,
    )


# By the names that the chgnet package has for them. ReLU has kinks: forces jump there, and second derivatives
# are those between them.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": silu,
    "scaledsilu": lambda x: silu(x) / 0.6,
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "softplus": jax.nn.softplus,
    "sigmoid": jax.lax.logistic,
    "tanh": jnp.tanh,
}


def gated(activation: str, core: Float[Array, "*n"], gate: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """activation(core) σ(gate), the end of a gated MLP."""
    if activation == "silu":
        return silu_gate(core, gate)
    return ACTIVATIONS[activation](core) * jax.lax.logistic(gate)
