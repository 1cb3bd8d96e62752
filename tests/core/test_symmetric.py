"""The symmetric contraction of MACE is eq. (10) of its paper; new models can express as much as files do."""

import gzip
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlip.models import symmetric
from weights_convert import modules, torch_zip

CASES = [(l, L, nu) for l, L, nu in itertools.product((1, 2, 3), (0, 1, 2), (1, 2, 3)) if L - l < 1]


@pytest.mark.parametrize(("l_max", "L", "degree"), CASES)
def test_the_couplings_of_a_new_model_are_independent(l_max, L, degree):
    made = symmetric.initial_coupling(l_max, L, degree)
    assert len(made) == len(symmetric.terms(l_max, L, degree))
    assert np.linalg.matrix_rank(made) == made.shape[1] > 0


@pytest.mark.parametrize("L", [0, 1])
def test_a_contraction_is_the_sum_over_all_products_of_the_atomic_basis(L):
    rng, l_max = np.random.default_rng(0), 2
    A = rng.normal(size=(5, (l_max + 1) ** 2, 4))
    expected, coefficients = 0.0, {}
    for degree in (1, 2, 3):
        coupling = symmetric.couplings(l_max, L, degree)
        w = rng.normal(size=(5, coupling.shape[-1], 4))
        letters = "ijk"[:degree]
        factors = ",".join(f"n{i}f" for i in letters)
        expected = expected + np.einsum(f"M{letters}p,npf,{factors}->nMf", coupling, w, *[A] * degree)
        folded = symmetric.initial_coupling(l_max, L, degree)
        coefficients[degree] = np.einsum("tp,npf->ntf", folded, w)
    with jax.enable_x64(True):
        found = symmetric.contract(
            {degree: jnp.asarray(c) for degree, c in coefficients.items()}, jnp.asarray(A), l_max, L
        )
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("L", "degree"), [*itertools.product((0, 1), (1, 2, 3))])
def test_couplings_of_a_new_model_span_those_of_a_file(L, degree, tmp_path):
    packed = Path(__file__).parents[1] / "golden" / "mace" / "density.model.gz"
    file = tmp_path / "density.model"
    file.write_bytes(gzip.decompress(packed.read_bytes()))
    name = f"products.0.symmetric_contractions.contractions.{L}.U_matrix_{degree}"
    U = np.asarray(modules.tensors(torch_zip.read(file))[name], float)
    U = U if L else U[None]
    l_max = round(U.shape[1] ** 0.5) - 1
    folded = symmetric.folded(U)
    theirs = np.array([folded[tuple(row)] for row in symmetric.terms(l_max, L, degree)])
    ours = symmetric.initial_coupling(l_max, L, degree)
    rank = np.linalg.matrix_rank
    assert rank(np.hstack([ours, theirs]), tol=1e-6) == rank(theirs, tol=1e-6) == ours.shape[1]
