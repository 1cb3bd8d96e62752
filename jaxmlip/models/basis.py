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
        y = along(partial(_expand, self.basis), 0, self.x, self.frequencies, self.kernel @ matrix)
        return y if isinstance(self.constant, float) else y + self.constant @ matrix

    def array(self) -> Float[Array, "n f"]:
        """The features themselves."""
        return along(partial(_expand, self.basis), 0, self.x, self.frequencies, self.kernel) + self.constant


def _expand(basis: Basis, x, frequencies, kernel):
    return basis(x, frequencies) @ kernel


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def along(f: Callable[..., Float[Array, "n m"]], order: int, x: Float[Array, " n"], *params):
    """∂ⁿ/∂xⁿ f(x, *params) for n = `order`, where row i of f depends on x[i] alone.

    Its derivative by x is the next order, computed once: linearised, f costs one product for each row and
    column, whatever network it is. Derivatives by `params` are taken in the ordinary way.
    """
    return _nth(f, order)(x, *params)


@partial(along.defjvp, symbolic_zeros=True)
def _(f, order, primals, tangents):
    (x, *params), (dx, *dparams) = primals, tangents
    y = along(f, order, x, *params)
    dy = jnp.zeros_like(y)
    if type(dx) is not SymbolicZero:
        dy = along(f, order + 1, x, *params) * dx[:, None]
    is_zero = lambda d: type(d) is SymbolicZero  # noqa: E731
    if not all(map(is_zero, jax.tree.leaves(dparams, is_leaf=is_zero))):  # training
        dparams = jax.tree.map(
            lambda d: jnp.zeros(d.shape, d.dtype) if is_zero(d) else d, dparams, is_leaf=is_zero
        )
        dy = dy + jax.jvp(lambda *p: _nth(f, order)(x, *p), params, dparams)[1]
    return y, dy


def _nth(f, order: int):
    for _ in range(order):
        f = partial(_slope, f)
    return f


def _slope(f, x, *params):
    return jax.jvp(lambda x: f(x, *params), (x,), (jnp.ones_like(x),))[1]
