"""
Bring your own JAX model
========================

Any energy written in JAX becomes a potential with exact Hessians, phonons, elastic constants and
relaxation. Here it is Lennard-Jones for argon: ten lines. ``pytest tests/core/test_nequix.py`` does
the same with a network of others.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from ase.build import bulk

import jaxmlip
from jaxmlip import phonons

# %%
# The energy
# ----------
# It takes parameters and a ``jraph.GraphsTuple``, and gives one energy for each graph. An edge runs
# from a sender, whose image lies ``shifts`` cells away, to a receiver; each pair of atoms is there
# twice.


def lennard_jones(params, graph):
    def of_edge(x):
        return jnp.repeat(x, graph.n_edge, axis=0, total_repeat_length=len(graph.senders))

    r = graph.nodes["positions"]
    image = jnp.einsum("ek,ekx->ex", graph.edges["shifts"], of_edge(graph.globals["cell"]))
    square = jnp.sum((r[graph.senders] + image - r[graph.receivers]) ** 2, axis=1)
    inside = (square > 0) & (square < CUTOFF**2)  # padding edges have no length
    ratio = params["sigma"] ** 6 / jnp.where(inside, square, 1.0) ** 3
    end = (1 - square / CUTOFF**2) ** 3  # so that forces and their slopes end smoothly
    pair = jnp.where(inside, 4 * params["epsilon"] * (ratio**2 - ratio) * end, 0.0)
    return jax.ops.segment_sum(pair / 2, of_edge(jnp.arange(len(graph.n_edge))), len(graph.n_edge))


CUTOFF = 9.0  # Å
argon = jaxmlip.Potential.from_energy(
    lennard_jones, CUTOFF, ["Ar"], {"sigma": 3.40, "epsilon": 0.0104}, dtype="float64"
)

# %%
# It is a potential like any other
# --------------------------------
# Before the first wave, a comparison with a supercell proves that nothing in the function passes
# from cell to cell in another way than from senders to receivers.

crystal = jaxmlip.relax(argon, bulk("Ar", "fcc", a=5.3), fix_symmetry=True).atoms
bands = phonons.band_modes(argon, crystal, "GXK,GL", points=61)
elastic = jaxmlip.elastic_tensor(argon, crystal)
print(f"a = {(4 * crystal.cell.volume) ** (1 / 3):.3f} Å, bulk modulus {elastic.hill.bulk:.2f} GPa")

figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
for segment in bands.segments:
    axes.plot(bands.distance[segment.rows], bands.modes.frequencies[segment.rows], "C0")
axes.set(ylabel="frequency (THz)", xlabel="wave vector, Γ X K|Γ L", xticks=[])

# %%
# Cauchy's relation is a test of it: in a cubic crystal of central forces at rest, C12 equals C44.

print("C12, C44:", elastic.C[0, 1].round(3), elastic.C[3, 3].round(3), "GPa")
