"""Radial functions and spherical harmonics, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.legendre import legval
from scipy.integrate import simpson
from scipy.special import spherical_jn

from jaxmlip.models.basis import (
    bessel,
    harmonics,
    smooth_mixing,
    spherical_bessel,
    spherical_bessel_norms,
    spherical_bessel_roots,
)

CUTOFF = 5.0


def spherical(r):
    roots = spherical_bessel_roots(3, 2)
    norms = spherical_bessel_norms(roots, CUTOFF).ravel()
    return spherical_bessel(r, jnp.asarray(roots.ravel()), CUTOFF, 3) * norms[None]


def smooth(r):
    return bessel(r, jnp.pi * jnp.arange(1.0, 6.0), CUTOFF) @ smooth_mixing(4)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_spherical_bessel_functions_are_those_of_scipy_with_nodes_at_the_cutoff():
    roots = spherical_bessel_roots(3, 2)
    r = np.linspace(0.4, CUTOFF, 50)
    wanted = [spherical_jn(degree, z * r / CUTOFF) for degree in range(3) for z in roots[degree]]
    found = spherical_bessel(jnp.asarray(r), jnp.asarray(roots.ravel()), CUTOFF, 3)
    np.testing.assert_allclose(found, np.transpose(wanted), atol=1e-13)
    np.testing.assert_allclose(found[-1], 0, atol=1e-14)


@pytest.mark.parametrize(("functions", "families"), [(spherical, 3), (smooth, 1)])
def test_radial_functions_are_orthonormal_within_the_cutoff(functions, families):
    r = np.linspace(1e-6, CUTOFF, 20_001)
    h = np.asarray(functions(jnp.asarray(r)))
    for family in np.split(h, families, axis=1):
        overlap = simpson(family[:, :, None] * family[:, None] * r[:, None, None] ** 2, x=r, axis=0)
        np.testing.assert_allclose(overlap, np.eye(len(overlap)), atol=1e-6)


def test_smooth_functions_vanish_at_the_cutoff_with_two_derivatives():
    for k in range(4):
        one = lambda r, k=k: smooth(r[None])[0, k]  # noqa: E731
        for f in (one, jax.grad(one), jax.grad(jax.grad(one))):
            np.testing.assert_allclose(f(jnp.asarray(CUTOFF)), 0, atol=1e-12)


@pytest.mark.parametrize("functions", [spherical, smooth])
@pytest.mark.slow
def test_padding_has_finite_derivatives_of_three_orders(functions):
    f = lambda r: functions(r[None]).sum()  # noqa: E731
    for _ in range(4):
        assert f(jnp.asarray(0.0)) == 0
        f = jax.grad(f)


def test_products_of_harmonics_add_up_to_legendre_polynomials():
    u, w = np.random.default_rng(0).normal(size=(2, 20, 3))
    u, w = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (u, w))
    product = harmonics(jnp.asarray(u), 3) * harmonics(jnp.asarray(w), 3)
    cosine = np.sum(u * w, axis=1)
    for degree in range(3):
        found = product[:, degree**2 : (degree + 1) ** 2].sum(axis=1)
        np.testing.assert_allclose(found, legval(cosine, np.eye(3)[degree]), atol=1e-14)
