"""Functions whose derivatives of every order stay finite at padding.

A padding bond has zero length. So every quantity of a bond must be finite at r = 0, with its first, second
and third derivatives: those occur in forces, Hessians and losses on Hessians.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxmlip.system.arrays import Array


def norm(r: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
    """|r|, with zero derivatives of every order at r = 0."""
    r2 = jnp.sum(r**2, axis=-1)
    # Both `where` matter: with the outer one alone, 0 meets the infinite slope of the root.
    return jnp.where(r2 > 0, jnp.sqrt(jnp.where(r2 > 0, r2, 1.0)), 0.0)


def divide(a: Float[Array, "*#n"], b: Float[Array, "*#n"]) -> Float[Array, "*#n"]:
    """a / b, of shapes that broadcast, and 0 with zero derivatives of every order where b = 0."""
    return jnp.where(b != 0, a / jnp.where(b != 0, b, 1.0), 0.0)


def unit(r: Float[Array, "*n 3"], length: Float[Array, "*n"]) -> Float[Array, "*n 3"]:
    """r / |r| for a `length` that `norm` gave, and 0 for length 0."""
    return divide(r, length[..., None])
