"""Pairs of atoms in place of a network, which are quick to compile."""

import jax
import jax.numpy as jnp
import numpy as np
import shared_shapes  # noqa: F401, also in processes that import no more than this

from jaxmlip.potential import Potential

REACH = 4.5  # Å
ELEMENTS = range(1, 60)
ANIONS = (8, 17)


def pairs(params, graph):
    """Morse pairs that end smoothly at REACH (eV); each element has its own size.

    Two cations, or two anions, are at rest `params["alike"]` times as far apart as the sum of their sizes.
    """
    owner = jnp.repeat(jnp.arange(len(graph.n_edge)), graph.n_edge, total_repeat_length=len(graph.senders))
    there = jnp.einsum("ek,ekx->ex", graph.edges["shifts"], graph.globals["cell"][owner])
    x, size = graph.nodes["positions"], params["readout_size"][graph.nodes["species"]]
    square = jnp.sum((x[graph.senders] + there - x[graph.receivers]) ** 2, axis=1)
    inside = square < REACH**2
    r = jnp.sqrt(jnp.where(inside, square, 1.0))
    anion = params["anion"][graph.nodes["species"]]
    apart = jnp.where(anion[graph.senders] == anion[graph.receivers], params["alike"], 1.0)
    decay = jnp.exp(-1.4 * (r - apart * (size[graph.senders] + size[graph.receivers])))
    bond = 0.4 * (decay**2 - 2 * decay) * (1 - (r / REACH) ** 2) ** 3 / 2  # each bond is there twice
    return jax.ops.segment_sum(jnp.where(inside, bond, 0.0), owner, len(graph.n_edge))


def potential(scale: float = 1.0, alike: float = 1.0) -> Potential:
    """Rocksalt is stable if atoms that are `alike` keep √2 times as far apart as others; else metals are."""
    params = {
        "readout_size": scale * (1.2 + 0.004 * np.array(ELEMENTS)),  # Å; `train: [readout]` finds it
        "anion": 1.0 * np.isin(ELEMENTS, ANIONS),
        "alike": np.array(alike),
    }
    return Potential.from_energy(pairs, REACH, ELEMENTS, params, name="pairs", dtype="float64", hops=1)
