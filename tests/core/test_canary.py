"""Faults of jax that would silently spoil every result; pyproject.toml excludes releases that fail here."""

import jax
import numpy as np


def test_jax_computes_sums_of_squares_right_for_many_rows():
    """jax-ml/jax#39103: jax 0.10.2 returned wrong rows here above 16,384 rows on CPU."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        m, rows = rng.normal(size=(3, 3)), rng.normal(size=(40_000, 3))
        found = jax.jit(jax.vmap(lambda r: jax.numpy.sum((m @ r) ** 2)))(rows)
    np.testing.assert_allclose(found, ((rows @ m.T) ** 2).sum(axis=1), rtol=1e-12)
