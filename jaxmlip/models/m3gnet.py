"""M3GNet: Chen & Ong, Nature Computational Science 2, 718 (2022), section "Methods".

The letters and the numbers of equations are the paper's: v for atoms, e for bonds, θ_jik for the angle at
atom i between its bonds to j and k, f_c for the envelope, ⊕ for features side by side.

Features of bonds have a direction. Their arrays have the shape (bonds, 2, features); the two are
first -> second and second -> first, and both are kept at the bond's first atom. Messages run along that
direction, from i to j, as in the code that the published weights were fitted with; the paper's (5) sums the
messages of each i, as later versions of that code do.

The sum over k in (2) is not taken for each pair of bonds. By the addition theorem P_l(cos θ_jik) is a sum of
products of spherical harmonics of the two bonds. So one sum over the bonds of atom i serves all of them, and
each bond subtracts its own contribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.crystals.fetch import gather, scatter_add
from jaxmlip.crystals.graph import CrystalGraph, Cutoffs, bond_vectors
from jaxmlip.crystals.reach import Reach
from jaxmlip.models import safe
from jaxmlip.models.activations import silu, silu_gate
from jaxmlip.models.basis import Expansion, harmonics, polynomial_envelope, smooth_radial, spherical_radial
from jaxmlip.models.layers import Linear
from jaxmlip.models.network import Network
from jaxmlip.system.arrays import Array


@dataclass(frozen=True)
class M3GNetConfig:
    """Options in which the published models differ; the defaults are those of MatPES 2025.1."""

    features: int = 64  # width of atom and bond features
    hidden: int = 128  # width of the hidden layers of the gated MLPs
    radial: int = 3  # number n of radial functions for each degree
    angular: int = 3  # number of degrees l, from 0 on; at most 3
    blocks: int = 3  # three-body terms, each with a graph convolution
    bond_cutoff: float = 5.0  # Å
    angle_cutoff: float = 4.0  # Å, of the bonds in three-body terms
    smooth: bool = True  # radial functions whose first two derivatives vanish at the cutoff too
    elements: int = 94  # embedded atomic numbers, from hydrogen on
    at_start: bool = False  # messages are summed at the atom where their bond starts, not where it ends

    def __post_init__(self):
        if not 1 <= self.angular <= 3:
            raise ValueError(f"found angular={self.angular}, needed 1, 2 or 3 degrees.")


class Gated(nn.Module):
    """The rest of a gated MLP after its first linear layer; x holds its core and gate side by side."""

    features: tuple[int, ...]  # of the layers that follow
    linear: bool = False  # no activation after the last layer of the core

    @nn.compact
    def __call__(self, x: Float[Array, "*n two_h"]) -> Float[Array, "*n f"]:
        core, gate = jnp.split(x, 2, axis=-1)
        for k, width in enumerate(self.features, start=1):
            core = Linear(width, name=f"core_{k}")(silu(core))
            gate = Linear(width, name=f"gate_{k}")(silu(gate))
        return core * jax.lax.logistic(gate) if self.linear else silu_gate(core, gate)


class ThreeBody(nn.Module):
    """Updates bonds by the angles that they make: eqs. (2) and (3)."""

    config: M3GNetConfig

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, radial, Y, f_c) -> Float[Array, "short 2 f"]:
        c, short = self.config, graph.short
        i, j, far = graph.first[:short], graph.second[:short], graph.images[:short]
        atom = jax.lax.logistic(Linear(c.radial * c.angular, name="atom")(v))  # σ(W_v v_k + b_v)
        end = jnp.stack([gather(atom, j, far), gather(atom, i)], axis=1)
        x = radial[:, None] * end  # of bond ik, for each l and n
        e_tilde = sum_over_angles(graph, x, Y) * f_c[:, None, None]  # (2)
        return silu_gate(*jnp.split(Linear(2 * c.features, bias=False, name="bond")(e_tilde), 2, axis=-1))


class Message(nn.Module):
    """φ(v_i ⊕ v_j ⊕ e_ij) ∘ W h(r_ij) for both directions of each bond."""

    features: tuple[int, ...]  # of the layers of φ
    activated: bool = False  # silu(W h) in place of W h

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, h: Expansion) -> Float[Array, "bonds 2 f"]:
        hidden, *later = self.features
        x = of_both_directions(graph, v, e, 2 * hidden)
        weight = Linear(later[-1], bias=False, name="weight")(h)
        weight = silu(weight) if self.activated else weight
        return Gated(tuple(later), name="phi")(x) * weight[:, None]


def of_both_directions(graph: CrystalGraph, v, e, width: int) -> Float[Array, "bonds 2 {width}"]:
    """W [v_i, v_j, e_ij] + b for both directions of each bond, with layers of the module that calls this."""
    first, second, far = graph.first, graph.second, graph.images
    start, end = jnp.split(Linear(2 * width, bias=False, name="atoms")(v), 2, axis=-1)
    x = Linear(width, name="bond")(e)
    forward = x[:, 0] + gather(start, first) + gather(end, second, far)
    backward = x[:, 1] + gather(start, second, far) + gather(end, first)
    return jnp.stack([forward, backward], axis=1)


class M3GNet(Network):
    """Maps a graph to the energy of each atom (eV, without reference energies)."""

    config: M3GNetConfig

    @property
    def cutoffs(self) -> Cutoffs:
        return Cutoffs(self.config.bond_cutoff, self.config.angle_cutoff, listed=False)

    @property
    def reach(self) -> Reach:
        # A bond learns of the others at its start before it tells the atom at its end, or at its start.
        return Reach(self.config.blocks, over_angles=not self.config.at_start)

    @nn.compact
    def __call__(self, graph: CrystalGraph) -> dict[str, Float[Array, " atoms"]]:
        c, short = self.config, graph.short
        vectors = bond_vectors(graph)
        r = safe.norm(vectors)
        f_c = polynomial_envelope(r[:short], c.angle_cutoff, 3)
        h = self._radial(r, c.radial if c.smooth else c.radial * c.angular)
        radial = self._radial(r[:short], c.radial * c.angular).array() * f_c[:, None]
        radial = radial * legendre_factors(c.angular, c.radial)
        Y = both_harmonics(safe.unit(vectors[:short], r[:short]), c.angular, c.radial)

        table = self.param("elements", nn.initializers.normal(1.0), (c.elements, c.features))
        v = table[jnp.maximum(graph.species - 1, 0)]  # species are the same in every cell
        e = silu(Linear(c.features, name="bond_embedding")(h))[:, None]
        e = jnp.concatenate([e, e], axis=1)
        widths = (c.hidden, c.hidden, c.features)
        for t in range(c.blocks):
            learnt = ThreeBody(c, name=f"three_body_{t}")(graph, v, radial, Y, f_c)
            e = jnp.concatenate([e[:short] + learnt, e[short:]])  # (3)
            e = e + Message(widths, name=f"bond_update_{t}")(graph, v, e, h)  # (4)
            m = Message(widths, name=f"atom_update_{t}")(graph, v, e, h)
            at_first, at_second = (m[:, 0], m[:, 1]) if c.at_start else (m[:, 1], m[:, 0])
            v = v + scatter_add(at_second, graph.second, len(v), graph.images)  # (5)
            v = v + scatter_add(at_first, graph.first, len(v))

        x = Linear(2 * c.features, name="readout_first")(v)
        energy = Gated((c.hidden, c.hidden, 1), linear=True, name="readout")(x)[:, 0]
        energy = energy * self.param("scale", nn.initializers.ones, (1,))
        return {"site_energies": jnp.where(graph.is_atom, energy, 0.0)}

    def _radial(self, r, count: int) -> Expansion:
        c = self.config
        if c.smooth:
            return smooth_radial(r, count, c.bond_cutoff)
        return spherical_radial(r, c.angular, c.radial, c.bond_cutoff)


def both_harmonics(u: Float[Array, "short 3"], degrees: int, radial: int) -> Float[Array, "short 2 lmn"]:
    """Y_lm of the short bonds, of directions `u`, seen from both ends; the same for each n."""
    odd = [(-1.0) ** l for l in range(degrees) for _ in range(2 * l + 1)]  # Y_lm(-u) = (-1)^l Y_lm(u)
    Y = harmonics(u, degrees)[:, None] * jnp.asarray([[np.ones(degrees**2), odd]], u.dtype)
    return jnp.repeat(Y, radial, axis=-1)


def legendre_factors(degrees: int, radial: int) -> Float[Array, "1 ln"]:
    """√((2l+1)/4π) for each l and n: Y_l0(θ) is P_l(cos θ) times that."""
    return np.repeat(((2 * np.arange(degrees) + 1) / (4 * np.pi)) ** 0.5, radial)[None]


def sum_over_angles(
    graph: CrystalGraph, x: Float[Array, "short 2 ln"], Y: Float[Array, "short 2 lmn"]
) -> Float[Array, "short 2 ln"]:
    """Σ_k P_l(cos θ_jik) x_ik over the short bonds of atom i but for ij, for both directions of each ij."""
    short, atoms = graph.short, len(graph.species)
    i, j, far = graph.first[:short], graph.second[:short], graph.images[:short]
    degrees = Y.shape[-1] // x.shape[-1]
    spread = jnp.asarray(_orders(degrees, x.shape[-1] // degrees), x.dtype)
    # Σ_k P_l(cos θ_jik) x_ik = Σ_m Y_lm(r_ij) Σ_k Y_lm(r_ik) x_ik
    moments = (x @ spread) * Y
    total = scatter_add(moments[:, 0], i, atoms) + scatter_add(moments[:, 1], j, atoms, far)
    total = jnp.stack([gather(total, i), gather(total, j, far)], axis=1)
    return (total * Y) @ spread.T - x  # k is not j


def _orders(degrees: int, count: int) -> np.ndarray:
    """The matrix that repeats the values for l and n for each m."""
    per_m = np.repeat(np.eye(degrees), 2 * np.arange(degrees) + 1, axis=1)
    return np.kron(per_m, np.eye(count))
