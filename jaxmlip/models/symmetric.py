"""The symmetric contraction of MACE: Batatia et al., NeurIPS 2022, eqs. (10) and (11), and its couplings.

Eq. (10) multiplies ν copies of the atomic basis A of an atom and channel and couples them to spherical
tensors B_LM = Σ_η w_η Σ U^η_{M, i₁ … i_ν} A_{i₁} … A_{i_ν}; i runs over all (l, m). The copies are equal,
so only the part of U that is symmetric in its indices acts: a polynomial in A with one coefficient for each
sorted product A_{i₁} … A_{i_ν}, i₁ ≤ … ≤ i_ν, most of which vanish by symmetry. For l ≤ 3 and ν = 3, of 4096
products 77 stay for L = 0 and about 93 for each component of L = 1. The polynomial's coefficients depend on
the element and channel, not on positions: they are computed once, and then a product costs a few hundred
multiplications instead of a product with U.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxmlip.system.arrays import Array

if TYPE_CHECKING:
    import e3nn_jax as e3nn

SMALLEST = 1e-9  # coefficient of an orthonormal basis; smaller ones are rounding errors

# e3nn_jax is imported inside functions: it takes most of a second, which users of other models save.


def natural(l_max: int) -> e3nn.Irreps:
    """One irrep of each l ≤ l_max with the parity of the spherical harmonics, 0e + 1o + 2e + …"""
    import e3nn_jax as e3nn

    return e3nn.Irreps([(1, (l, (-1) ** l)) for l in range(l_max + 1)])


def clebsch_gordan(l1: int, l2: int, l3: int) -> Float[np.ndarray, "m1 m2 m3"]:
    """The coupling of l₁ and l₂ to l₃ in the real basis of e3nn, with Σ C² = 1."""
    import e3nn_jax as e3nn

    return e3nn.clebsch_gordan(l1, l2, l3)


def spherical_harmonics(u: Float[Array, "bonds 3"], l_max: int) -> list[Float[Array, "bonds _"]]:
    """Y_l of unit vectors for each l ≤ l_max, normalised so that Σ_m Y_lm² = 2l + 1; zero vectors give 0."""
    import e3nn_jax as e3nn

    y = e3nn.spherical_harmonics(natural(l_max), u, normalize=False, normalization="component").array
    return [y[:, l**2 : (l + 1) ** 2] for l in range(l_max + 1)]


@functools.cache
def couplings(l_max: int, L: int, degree: int) -> np.ndarray:
    """A basis of all symmetric couplings of `degree` copies of `natural(l_max)` to one irrep L.

    Its shape is (2L + 1, (l_max + 1)², …, (l_max + 1)², paths).
    """
    import e3nn_jax as e3nn

    irrep = e3nn.Irrep(L, (-1) ** L)
    basis = e3nn.reduced_symmetric_tensor_product_basis(natural(l_max), degree, keep_ir=[irrep])
    paths = basis.irreps.count(irrep)
    return np.moveaxis(basis.array.reshape(*basis.shape[:-1], paths, 2 * L + 1), -1, 0)


def folded(tensor: Float[np.ndarray, "M *i paths"]) -> dict[tuple[int, ...], np.ndarray]:
    """The coefficients of a coupling tensor by (M, i₁, …, i_ν), i₁ ≤ … ≤ i_ν, each of shape (paths,).

    A coefficient is the sum of the entries over all orders of its indices.
    """
    degree = tensor.ndim - 2
    found = {}
    for index in itertools.combinations_with_replacement(range(tensor.shape[1]), degree):
        orders = sorted(set(itertools.permutations(index)))
        total = sum(tensor[(slice(None), *order)] for order in orders)
        found |= {(M, *index): row for M, row in enumerate(total)}
    return dict(sorted(found.items()))


@functools.cache
def terms(l_max: int, L: int, degree: int) -> Int[np.ndarray, "terms {1+degree}"]:
    """The coefficients of such couplings that can differ from zero, as sorted rows (M, i₁, …, i_ν)."""
    coefficients = folded(couplings(l_max, L, degree))
    rows = [key for key, row in coefficients.items() if np.abs(row).max(initial=0) > SMALLEST]
    return np.array(rows, int).reshape(len(rows), 1 + degree)


def initial_coupling(
    l_max: int, L: int, degree: int, paths: int | None = None
) -> Float[np.ndarray, "terms paths"]:
    """The coefficients of `couplings` in the order of `terms`; `paths` beyond those of the basis are zero."""
    coefficients = folded(couplings(l_max, L, degree))
    made = np.array([coefficients[tuple(row)] for row in terms(l_max, L, degree)])
    return made if paths is None else np.pad(made, [(0, 0), (0, paths)])[:, :paths]


def contract(
    coefficients: dict[int, Float[Array, "rows _ channels"]],
    A: Float[Array, "atoms lm channels"],
    l_max: int,
    L: int,
) -> Float[Array, "atoms {2*L+1} channels"]:
    """Sums coefficient times A_{i₁} … A_{i_ν} over degrees ν and terms: the components of B_L.

    `coefficients` has an array for each degree, in the order of `terms`, with a row for each atom or for all.
    """
    total = 0.0
    for degree, c in coefficients.items():
        rows = terms(l_max, L, degree)
        products = c
        for i in rows[:, 1:].T:
            products = products * A[:, i]
        sizes = np.bincount(rows[:, 0], minlength=2 * L + 1)
        parts = jnp.split(products, np.cumsum(sizes)[:-1], axis=1)
        total = total + jnp.stack([part.sum(axis=1) for part in parts], axis=1)
    return total
