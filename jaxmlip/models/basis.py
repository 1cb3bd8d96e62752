"""Radial and angular bases, and features made of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache, partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Float

from jaxmlip.models import safe
from jaxmlip.system.arrays import Array


def bessel(r: Float[Array, " n"], frequencies: Float[Array, " k"], cutoff: float) -> Float[Array, "n k"]:
    """√(2/c) sin(ω_k r/c) / r: DimeNet eq. (7); the frequencies ω_k start as nπ and are trained."""
    waves = jnp.sin(frequencies[None] * (r[:, None] / cutoff))
    return safe.divide((2 / cutoff) ** 0.5 * waves, r[:, None])


def polynomial_envelope(r: Float[Array, "*n"], cutoff: float, p: int) -> Float[Array, "*n"]:
    """Falls from 1 at r = 0 to 0 at the cutoff with two vanishing derivatives: DimeNet eq. (8)."""
    x = r / cutoff
    u = 1 + x**p * (-(p + 1) * (p + 2) / 2 + x * (p * (p + 2) - x * p * (p + 1) / 2))
    return jnp.where(x < 1, u, 0.0)


def fourier(angle: Float[Array, " n"], frequencies: Float[Array, " k"]) -> Float[Array, "n 2*k+1"]:
    """(1/√2, sin ω_k θ …, cos ω_k θ …) / √π; the frequencies ω_k start as 1, 2, … and are trained."""
    phase = angle[:, None] * frequencies[None]
    constant = jnp.full((len(angle), 1), 0.5**0.5, phase.dtype)
    return jnp.concatenate([constant, jnp.sin(phase), jnp.cos(phase)], axis=1) / jnp.pi**0.5


Basis = Callable[[Array, Array], Array]  # (numbers (n,), frequencies (k,)) -> (n, basis), row by row


@flax.struct.dataclass
class Expansion:
    """Features basis(x, ω) W + c of one number x (such as a distance) for each row, not multiplied out yet.

    A product with a matrix K follows. Written as basis(x, ω) (W K) + c K it is a function of x alone, and its
    tangent is its derivative, computed once, times the tangent of x. A column of a Hessian then needs no
    matrix product.
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
        return y if isinstance(self.constant, float) else y + (self.constant @ matrix)[None]

    def array(self) -> Float[Array, "n f"]:
        """The features themselves."""
        y = along(partial(_expand, self.basis), 0, self.x, self.frequencies, self.kernel)
        return y + (self.constant if isinstance(self.constant, float) else self.constant[None])


def _expand(basis: Basis, x, frequencies, kernel):
    return basis(x, frequencies) @ kernel


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def along(f: Callable[..., Float[Array, "n m"]], order: int, x: Float[Array, " n"], *params):
    """∂ⁿ/∂xⁿ f(x, *params) for n = `order`, where row i of f depends on x[i] alone.

    The derivative with respect to x is the next order, computed once: linearised, f costs one product for
    each row and column, whatever network it is. Derivatives with respect to `params` are taken as usual.
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


def spherical_bessel(
    r: Float[Array, " n"], roots: Float[Array, " k"], cutoff: float, degrees: int
) -> Float[Array, "n k"]:
    """j_l(z r/c) for l from 0 to `degrees` - 1. The `roots` z are split equally among the l, in order."""
    x = r[:, None] / cutoff * roots[None]
    bonded = x > 0
    x = jnp.where(bonded, x, 1.0)
    columns = []
    for degree, y in enumerate(jnp.split(x, degrees, axis=1)):
        before, j = jnp.cos(y) / y, jnp.sin(y) / y
        for k in range(degree):
            before, j = j, (2 * k + 1) / y * j - before
        columns.append(j)
    return jnp.where(bonded, jnp.concatenate(columns, axis=1), 0.0)


@cache
def spherical_bessel_roots(degrees: int, count: int) -> np.ndarray:
    """The first `count` positive roots of j_l for each l below `degrees`: (degrees, count)."""
    from scipy.optimize import brentq  # here, since it takes a second that few processes need
    from scipy.special import spherical_jn

    roots = [np.pi * np.arange(1, count + degrees)]
    for degree in range(1, degrees):
        # They lie between the roots of the degree below.
        pairs = itertools.pairwise(roots[-1])
        roots.append(np.array([brentq(partial(spherical_jn, degree), *pair, xtol=1e-15) for pair in pairs]))
    return np.array([its[:count] for its in roots])


def spherical_bessel_norms(roots: np.ndarray, cutoff: float) -> np.ndarray:
    """√(2/c³) / |j_{l+1}(z)|, for `roots` (degrees, count): factors that normalise j_l(z r/c) in [0, c]."""
    from scipy.special import spherical_jn

    above = [spherical_jn(degree + 1, z) for degree, z in enumerate(roots)]
    return (2 / cutoff**3) ** 0.5 / np.abs(above)


def smooth_mixing(count: int) -> np.ndarray:
    """The matrix (count + 1, count) that mixes `bessel` with frequencies π, 2π, … into the functions h_m.

    The h_m are orthonormal within the cutoff and vanish there with their first two derivatives: Kocer, Mason
    & Erturk, arXiv:1907.02384, from whom f, e, d and the recursion for h are taken.
    """
    h: list[np.ndarray] = []
    d = 1.0
    for m in range(count):
        f = np.zeros(count + 1)
        f[m : m + 2] = np.array([m + 2, m + 1]) * (-1) ** m / np.hypot(m + 1, m + 2)
        e = m**2 * (m + 2) ** 2 / (4 * (m + 1) ** 4 + 1)
        before, d = d, 1 - e / d
        h.append((f + (e / before) ** 0.5 * h[-1]) / d**0.5 if h else f)
    return np.stack(h, axis=1)


def smooth_radial(r: Float[Array, " n"], count: int, cutoff: float) -> Expansion:
    """The functions h_m of `smooth_mixing`."""
    frequencies, kernel = np.pi * np.arange(1, count + 2), smooth_mixing(count)
    basis = partial(bessel, cutoff=cutoff)
    return Expansion(basis, r, jnp.asarray(frequencies, r.dtype), jnp.asarray(kernel, r.dtype))


def spherical_radial(r: Float[Array, " n"], degrees: int, count: int, cutoff: float) -> Expansion:
    """√(2/c³) j_l(z_ln r/c) / |j_{l+1}(z_ln)|, orthonormal within the cutoff: `count` for each degree l."""
    roots = spherical_bessel_roots(degrees, count)
    frequencies, kernel = roots.ravel(), np.diag(spherical_bessel_norms(roots, cutoff).ravel())
    basis = partial(spherical_bessel, cutoff=cutoff, degrees=degrees)
    return Expansion(basis, r, jnp.asarray(frequencies, r.dtype), jnp.asarray(kernel, r.dtype))


def harmonics(u: Float[Array, "n 3"], degrees: int) -> Float[Array, "n {degrees**2}"]:
    """Real spherical harmonics Y_lm of unit vectors for l below `degrees`, which is at most 4.

    They are scaled so that Σ_m Y_lm(u) Y_lm(w) = P_l(u·w). At u = 0 all but Y_00 vanish.
    """
    x, y, z = u.T
    columns = [jnp.ones_like(x), x, y, z]
    columns += [3**0.5 * x * y, 3**0.5 * y * z, 3**0.5 * z * x]
    columns += [3**0.5 / 2 * (x * x - y * y), z * z - (x * x + y * y) / 2]
    if degrees > 3:
        along, across = x * x - y * y, 4 * z * z - x * x - y * y
        columns += [z * (z * z - 1.5 * (x * x + y * y)), 0.375**0.5 * x * across, 0.375**0.5 * y * across]
        columns += [3.75**0.5 * z * along, 15**0.5 * x * y * z]
        columns += [0.625**0.5 * x * (along - 2 * y * y), 0.625**0.5 * y * (2 * x * x + along)]
    return jnp.stack(columns[: degrees**2], axis=1)
