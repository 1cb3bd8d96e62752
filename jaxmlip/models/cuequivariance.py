"""MACE's two products as kernels for NVIDIA GPUs: `jaxmlip.load(..., products="cuequivariance")`.

Eqs. (8) and (10) of Batatia et al. 2022 are polynomials with few terms of many channels each, in which
channels do not mix. XLA makes each factor or each product an array in memory. cuequivariance's "uniform_1d"
kernel computes all terms of a channel in registers, and so do its derivatives of any order. On other devices
plain JAX computes the same polynomials, more slowly than `mace` does: that is for tests.
"""

from __future__ import annotations

import functools

import cuequivariance as cue
import cuequivariance_jax as cuex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.models import symmetric
from jaxmlip.models.mace import Products, message_paths
from jaxmlip.system.arrays import Array


def messages(
    harmonics: list[Float[Array, "bonds _"]],
    weights: Float[Array, "ends features"],
    sent: Float[Array, "ends components f"],
    l: int,
) -> Float[Array, "ends paths m f"]:
    """Messages as of `mace.messages`."""
    f = sent.shape[2]
    signs = np.concatenate([np.full(2 * k + 1, (-1.0) ** k) for k in range(len(harmonics))])
    there = jnp.concatenate(harmonics, axis=1)
    both = jnp.concatenate([there, there * jnp.asarray(signs, there.dtype)])  # Y(-r) for second atoms
    polynomial = message_polynomial(sent.shape[1], len(harmonics) - 1, l, f)
    found = _evaluated(polynomial, [weights, both, sent.reshape(len(sent), -1)])
    return found.reshape(len(found), -1, 2 * l + 1, f)


def contract(
    coefficients: dict[int, Float[Array, "rows _ channels"]],
    A: Float[Array, "atoms lm channels"],
    l_max: int,
    L: int,
) -> Float[Array, "atoms {2*L+1} channels"]:
    """Contractions as of `symmetric.contract`."""
    n, _, channels = A.shape
    polynomial = contraction_polynomial(l_max, L, tuple(coefficients), channels)
    found = _evaluated(polynomial, [x.reshape(len(x), -1) for x in (*coefficients.values(), A)])
    return found.reshape(n, 2 * L + 1, channels)


PRODUCTS = Products(messages, contract)


@functools.cache
def message_polynomial(components: int, harmonics_l: int, l: int, f: int) -> cue.SegmentedPolynomial:
    """Σ √(2l + 1) C_l₁l₂l R Y_l₂ h_l₁ of the radial weights, harmonics and features of an end of a bond."""
    # Weights, features and messages have a channel for each u; harmonics are the same for all u.
    product = cue.SegmentedTensorProduct.from_subscripts("u,,u,u")
    paths = [(l1, l2) for l1, l2, l3 in message_paths(components, harmonics_l) if l3 == l]
    product.add_segments(0, len(paths) * [(f,)])
    product.add_segments(1, (harmonics_l + 1) ** 2 * [()])
    product.add_segments(2, components * [(f,)])
    product.add_segments(3, len(paths) * (2 * l + 1) * [(f,)])
    for p, (l1, l2) in enumerate(paths):
        coupling = (2 * l + 1) ** 0.5 * symmetric.clebsch_gordan(l1, l2, l)
        for x, y, z in np.argwhere(np.abs(coupling) > symmetric.SMALLEST).tolist():
            product.add_path(p, l2**2 + y, l1**2 + x, p * (2 * l + 1) + z, c=coupling[x, y, z])
    return cue.SegmentedPolynomial.eval_last_operand(product)


@functools.cache
def contraction_polynomial(
    l_max: int, L: int, degrees: tuple[int, ...], channels: int
) -> cue.SegmentedPolynomial:
    """The sum over degrees of the terms of `symmetric.terms`; inputs: coefficients of each degree, and A."""
    segment = (channels,)
    A = cue.SegmentedOperand(ndim=1, segments=(l_max + 1) ** 2 * [segment])
    B = cue.SegmentedOperand(ndim=1, segments=(2 * L + 1) * [segment])
    inputs, products = [], []
    for k, degree in enumerate(degrees):
        rows = symmetric.terms(l_max, L, degree).tolist()
        product = cue.SegmentedTensorProduct.from_subscripts(",".join((degree + 2) * "u"))
        inputs.append(cue.SegmentedOperand(ndim=1, segments=len(rows) * [segment]))
        product.add_segments(0, len(rows) * [segment])
        for factor in range(1, degree + 1):
            product.add_segments(factor, A.num_segments * [segment])
        product.add_segments(degree + 1, B.num_segments * [segment])
        for term, (M, *factors) in enumerate(rows):
            product.add_path(term, *factors, M, c=1.0)
        buffers = (k, *degree * (len(degrees),), len(degrees) + 1)
        products.append((cue.Operation(buffers), product))
    return cue.SegmentedPolynomial([*inputs, A], [B], products)


def _evaluated(polynomial: cue.SegmentedPolynomial, inputs: list[Array]) -> Array:
    method = "uniform_1d" if jax.default_backend() == "gpu" else "naive"
    shape = jax.ShapeDtypeStruct((len(inputs[-1]), polynomial.outputs[0].size), inputs[0].dtype)
    return cuex.segmented_polynomial(polynomial, inputs, [shape], method=method)[0]
