"""MatterSim: Yang et al., arXiv:2405.04967; an M3GNet (Chen & Ong 2022) with its own choices.

Letters and equations are those of `m3gnet`. What is different: the weight σ(W_v v + b_v) in (2) is that of
atom i, in the middle of the angle, not of its end k; the sum over angles is then the same in all blocks.
Messages are summed at the atom i where their bond starts, as the paper's (5) says, and the weight of those to
atoms is silu(W h). Radial functions of bonds are smooth at the cutoff, those of angles are spherical Bessel
functions. Each element has its own scale of the energy.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxmlip.crystals.fetch import gather, scatter_add
from jaxmlip.crystals.graph import CrystalGraph, Cutoffs, bond_vectors
from jaxmlip.crystals.reach import Reach
from jaxmlip.models import safe
from jaxmlip.models.activations import silu, silu_gate
from jaxmlip.models.basis import polynomial_envelope, smooth_radial, spherical_radial
from jaxmlip.models.layers import Linear
from jaxmlip.models.m3gnet import Gated, Message, both_harmonics, legendre_factors, sum_over_angles
from jaxmlip.models.network import Network
from jaxmlip.system.arrays import Array


@dataclass(frozen=True)
class MatterSimConfig:
    """Options in which the published models differ, and others; the defaults are those of 1.0.0-1M."""

    features: int = 128  # width of atom and bond features, and of hidden layers
    radial: int = 4  # number n of radial functions, for bonds and for each degree
    angular: int = 4  # number of degrees l, from 0 on; at most 4
    blocks: int = 3  # three-body terms, each with a graph convolution
    bond_cutoff: float = 5.0  # Å
    angle_cutoff: float = 4.0  # Å, of the bonds in three-body terms
    elements: int = 94  # embedded atomic numbers, from hydrogen on

    def __post_init__(self):
        if not 1 <= self.angular <= 4:
            raise ValueError(f"found angular={self.angular}, needed 1 to 4 degrees.")


class ThreeBody(nn.Module):
    """Updates bonds by the angles that they make, of which `angles` is the sum: eqs. (2) and (3)."""

    features: int

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, angles: Float[Array, "short 2 ln"]):
        i, j, far = (x[: graph.short] for x in (graph.first, graph.second, graph.images))
        weight = jax.lax.logistic(Linear(angles.shape[-1], name="atom")(v))  # σ(W_v v_i + b_v)
        e_tilde = angles * jnp.stack([gather(weight, i), gather(weight, j, far)], axis=1)
        return silu_gate(*jnp.split(Linear(2 * self.features, bias=False, name="bond")(e_tilde), 2, axis=-1))


class MatterSim(Network):
    """Maps a graph to the energy of each atom (eV, without reference energies)."""

    config: MatterSimConfig

    @property
    def cutoffs(self) -> Cutoffs:
        return Cutoffs(self.config.bond_cutoff, self.config.angle_cutoff, listed=False)

    @property
    def reach(self) -> Reach:
        # What a bond learns of other bonds at its start it tells the atom there.
        return Reach(self.config.blocks)

    @nn.compact
    def __call__(self, graph: CrystalGraph) -> dict[str, Float[Array, " atoms"]]:
        c, short, f = self.config, graph.short, self.config.features
        vectors = bond_vectors(graph)
        r = safe.norm(vectors)
        h = smooth_radial(r, c.radial, c.bond_cutoff)
        angles = self._angles(graph, vectors[:short], r[:short])

        element = jnp.maximum(graph.species - 1, 0)  # species are the same in every cell
        v = self.param("elements", nn.initializers.normal(1.0), (c.elements, f))[element]
        e = silu(Linear(f, bias=False, name="bond_embedding")(h))[:, None]
        e = jnp.concatenate([e, e], axis=1)
        for t in range(c.blocks):
            learnt = ThreeBody(f, name=f"three_body_{t}")(graph, v, angles)
            e = jnp.concatenate([e[:short] + learnt, e[short:]])  # (3)
            e = e + Message((f, f), name=f"bond_update_{t}")(graph, v, e, h)  # (4)
            m = Message((f, f), activated=True, name=f"atom_update_{t}")(graph, v, e, h)
            v = v + scatter_add(m[:, 0], graph.first, len(v))  # (5)
            v = v + scatter_add(m[:, 1], graph.second, len(v), graph.images)

        energy = Gated((f, 1), linear=True, name="readout")(Linear(2 * f, name="readout_first")(v))[:, 0]
        energy = energy * self.param("scale", nn.initializers.ones, (c.elements,))[element]
        return {"site_energies": jnp.where(graph.is_atom, energy, 0.0)}

    def _angles(self, graph: CrystalGraph, vectors, r) -> Float[Array, "short 2 ln"]:
        """The sum over k in (2) without the weight, for each l and n."""
        c = self.config
        f_c = polynomial_envelope(r, c.angle_cutoff, 3)
        radial = spherical_radial(r, c.angular, c.radial, c.bond_cutoff).array() * f_c[:, None]
        radial = (radial * legendre_factors(c.angular, c.radial))[:, None]
        Y = both_harmonics(safe.unit(vectors, r), c.angular, c.radial)
        return sum_over_angles(graph, jnp.concatenate([radial, radial], axis=1), Y) * f_c[:, None, None]
