"""The energy along a straight line of displacements: its derivatives up to the fourth, exactly."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.crystals import batching
from jaxmlip.derivatives.response import Differentiable
from jaxmlip.system.programs import QUICKLY

ORDER = 4
SPARE = 0.25  # of bonds and angles, so that the crystal farther along the line shares its program


def derivatives_along(
    potential: Differentiable, crystal, directions: Float[np.ndarray, "k atoms 3"]
) -> Float[np.ndarray, "k 5"]:
    """dⁿE(r + x w)/dxⁿ at x = 0 for n = 0 to 4 and each of the directions w, in eV times the unit of w / Åⁿ.

    By four nested forward derivatives; all directions and crystals of one padded shape share a program.

    Raises ValueError as `Potential.graph` does, and if the directions are not those of the crystal's atoms.
    """
    graph = potential.graph(crystal)
    w, n = np.asarray(directions, float), len(graph.positions)
    if w.ndim != 3 or w.shape[1:] != (n, 3):
        raise ValueError(f"found directions of shape {w.shape}, needed (k, {n}, 3).")
    packed = batching.pack([graph], batching.shape_for([graph], SPARE), np.dtype(potential.dtype))
    padded = np.zeros((len(w), *packed.positions.shape), potential.dtype)
    padded[:, :n] = w
    with potential.precision():
        found = [_along(potential.energy_fn, potential.arrays, packed, one) for one in padded]
        return np.array(jax.device_get(found), float).reshape(-1, ORDER + 1)


# To optimise four nested derivatives would take minutes.
@partial(jax.jit, static_argnames="energy", compiler_options=QUICKLY)
def _along(energy, params, graph, w):
    def value(x):
        return (energy(params, graph.replace(positions=graph.positions + x * w)).sum(),)

    def one_more(f):
        def found(x):
            values, slopes = jax.jvp(f, (x,), (jnp.ones_like(x),))
            return (*values, slopes[-1])

        return found

    for _ in range(ORDER):
        value = one_more(value)
    return jnp.stack(value(jnp.zeros((), w.dtype)))
