"""Radial and angular bases, as functions of arrays."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlip import safe


def bessel(r: Float[Array, " n"], frequencies: Float[Array, " k"], cutoff: float) -> Float[Array, "n k"]:
    """√(2/c) sin(ω_k r/c) / r: DimeNet eq. (7); the frequencies ω_k start as nπ and are trained."""
    waves = jnp.sin(frequencies * (r[:, None] / cutoff))
    return safe.divide((2 / cutoff) ** 0.5 * waves, r[:, None])


def polynomial_envelope(r: Float[Array, " n"], cutoff: float, p: int) -> Float[Array, " n"]:
    """Falls from 1 at r = 0 to 0 at the cutoff with two vanishing derivatives: DimeNet eq. (8)."""
    x = r / cutoff
    u = 1 + x**p * (-(p + 1) * (p + 2) / 2 + x * (p * (p + 2) - x * p * (p + 1) / 2))
    return jnp.where(x < 1, u, 0.0)


def fourier(angle: Float[Array, " n"], frequencies: Float[Array, " k"]) -> Float[Array, "n 2k+1"]:
    """(1/√2, sin ω_k θ …, cos ω_k θ …) / √π; the frequencies ω_k start as 1, 2, … and are trained."""
    phase = angle[:, None] * frequencies
    constant = jnp.full((len(angle), 1), 0.5**0.5, phase.dtype)
    return jnp.concatenate([constant, jnp.sin(phase), jnp.cos(phase)], axis=1) / jnp.pi**0.5
