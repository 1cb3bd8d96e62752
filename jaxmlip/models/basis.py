"""Radial and angular bases, and features made of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
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


Basis = Callable[[Array, Array], Array]  # (numbers (n,), frequencies (k,)) -> (n, basis), row by row


@flax.struct.dataclass
class Expansion:
    """Features basis(x, ω) W + c of one number x for each row, such as a distance, not yet multiplied out.

    What follows is a product with a matrix K. Written basis(x, ω) (W K) + c K it is a function of x alone,
    and its tangent is its derivative, computed once, times that of x: no matrix product for each column of
    a Hessian.
    """

    basis: Basis = flax.struct.field(pytree_node=False)
    x: Float[Array, " n"]
    frequencies: Float[Array, " k"]
    kernel: Float[Array, "basis f"]
    constant: Float[Array, " f"] | float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self.x), self.kernel.shape[1])

    def __matmul__(self, matrix: Float[Array, "f m"]) -> Float[Array, "n m"]:
        y = expand(self.basis, 0, self.x, self.frequencies, self.kernel @ matrix)
        return y if isinstance(self.constant, float) else y + self.constant @ matrix

    def array(self) -> Float[Array, "n f"]:
        """The features themselves."""
        return expand(self.basis, 0, self.x, self.frequencies, self.kernel) + self.constant


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def expand(
    basis: Basis,
    order: int,
    x: Float[Array, " n"],
    frequencies: Float[Array, " k"],
    kernel: Float[Array, "basis m"],
) -> Float[Array, "n m"]:
    """∂ⁿ/∂xⁿ basis(x, ω) K for n = `order`; its derivative by x is the next order."""
    for _ in range(order):
        basis = partial(_slope, basis)
    return basis(x, frequencies) @ kernel


@partial(expand.defjvp, symbolic_zeros=True)
def _(basis, order, primals, tangents):
    (x, frequencies, kernel), (dx, *d_params) = primals, tangents
    y = expand(basis, order, x, frequencies, kernel)
    dy = jnp.zeros_like(y)
    if type(dx) is not SymbolicZero:
        dy = expand(basis, order + 1, x, frequencies, kernel) * dx[:, None]
    if any(type(d) is not SymbolicZero for d in d_params):  # training
        d_params = [jnp.zeros(d.shape, d.dtype) if type(d) is SymbolicZero else d for d in d_params]
        for _ in range(order):
            basis = partial(_slope, basis)
        dy = dy + jax.jvp(lambda w, k: basis(x, w) @ k, (frequencies, kernel), tuple(d_params))[1]
    return y, dy


def _slope(basis: Basis, x, frequencies):
    return jax.jvp(lambda x: basis(x, frequencies), (x,), (jnp.ones_like(x),))[1]
