"""CHGNet as matgl has it, a network of its own; after Deng et al., Nat. Mach. Intell. 5, 1031 (2023).

Letters are those of `chgnet`: v for atoms, e for bonds, a for angles, φ for gated MLPs, L for linear layers.
What is different: features of bonds have a direction, and are kept as in `m3gnet`. Bonds learn from
their atoms as well as from their angles. A message runs along its bond, and is summed at the atom where that
ends; a bond learns at the atom where it starts, from the bonds that end there. Features of atoms and bonds
pass a layer norm after each convolution. The envelope of a radial function is taken of its value, not of the
distance, so features vanish at the cutoff with a slope.

A bond between an atom and its own image is a bond like any other. matgl takes the features of the opposite
direction for those, so its energies depend on the choice of the cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxmlip.crystals.fetch import gather, scatter_add
from jaxmlip.crystals.graph import BondEnds, CrystalGraph, Cutoffs, bond_vectors
from jaxmlip.crystals.reach import Reach
from jaxmlip.models import safe
from jaxmlip.models.basis import Expansion, bessel, polynomial_envelope
from jaxmlip.models.chgnet import Gate, GatedMLP, multiplied_out
from jaxmlip.models.layers import MLP, CentredNorm, Linear, matrix, multiples_of
from jaxmlip.models.m3gnet import of_both_directions
from jaxmlip.models.network import Network
from jaxmlip.system.arrays import Array

STRAIGHT = 1 - 1e-7  # cosines of angles are cut off here, since arccos has no derivative at 1


@dataclass(frozen=True)
class MatglCHGNetConfig:
    """Options in which published models differ, and others; the defaults are those of MatPES 2025.2.10."""

    features: int = 128  # width of atom, bond and angle features, and of hidden layers
    radial: int = 63  # number of radial basis functions
    angular: int = 32  # number of frequencies of angles, besides zero
    blocks: int = 5  # atom convolutions; angles act between them
    bond_cutoff: float = 6.0  # Å, of the atom graph
    angle_cutoff: float = 3.0  # Å, of the bond graph
    envelope: int = 5  # exponent p of the cutoff polynomial
    norm: bool = True  # layer norms in the gated MLPs and after the convolutions
    bond_update: bool = True  # bonds learn from their atoms
    readout: tuple[int, ...] = (128, 128)  # hidden widths of the readout
    elements: int = 94  # embedded atomic numbers, from hydrogen on

    def phi(self, hidden: bool) -> GatedMLP:
        """The options of a gated MLP with or without a hidden layer."""
        return GatedMLP((self.features,) * (1 + hidden), "layer" if self.norm else "none")


class LayerNorm(nn.Module):
    """Layer norm (Ba et al. 2016) of the last axis."""

    @nn.compact
    def __call__(self, x: Float[Array, "*n f"]) -> Float[Array, "*n f"]:
        centred = x - x.mean(axis=-1, keepdims=True)
        return CentredNorm(name="norm")(centred.reshape(-1, x.shape[-1])).reshape(x.shape)


class Message(nn.Module):
    """ẽ_ij φ(v_i ‖ e_ij ‖ v_j) for both directions of each bond"""

    config: MatglCHGNetConfig

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, weight) -> Float[Array, "bonds 2 f"]:
        f = self.config.features
        x = of_both_directions(graph, v, e, 2 * f)
        y = Gate(self.config.phi(hidden=True), name="phi")(x.reshape(-1, 2 * f))
        return y.reshape(e.shape) * weight[:, None]


class AtomConv(nn.Module):
    """e_ij ← e_ij + ẽ_ij φ_e(v_i ‖ e_ij ‖ v_j), then v_j ← v_j + L_v[ Σ_i ẽ_ij φ_v(v_i ‖ e_ij ‖ v_j) ]"""

    config: MatglCHGNetConfig
    last: bool  # nothing reads the bonds after it

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, weights):
        c, (of_atoms, of_bonds) = self.config, weights
        if c.bond_update:
            e = e + Message(c, name="bond_update")(graph, v, e, of_bonds)
        m = Message(c, name="atom_update")(graph, v, e, of_atoms)
        total = scatter_add(m[:, 0], graph.second, len(v), graph.images)
        total = total + scatter_add(m[:, 1], graph.first, len(v))
        v = v + Linear(c.features, bias=False, name="out")(total)
        if c.norm:
            v = LayerNorm(name="atom_norm")(v)
            e = e if self.last else LayerNorm(name="bond_norm")(e)
        return v, e


class BondConv(nn.Module):
    """e_ik ← e_ik + L_e[ Σ_j ẽ_ji ẽ_ik φ_e(e_ji ‖ a_jik ‖ v_i ‖ e_ik) ] for an atom i bonded to j and k"""

    config: MatglCHGNetConfig

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, a, ends: BondEnds, weight):
        of_leaving, of_arriving = weight  # at the ends, and at the second end of each angle
        x = AngleInput(self.config, hidden=True, name="inputs")(graph, v, e, a, ends)
        message = Gate(self.config.phi(hidden=True), name="phi")(x) * of_arriving
        total = of_leaving * scatter_add(message, graph.angle_from, len(of_leaving))
        total = scatter_add(total, jnp.arange(2 * graph.short), 2 * graph.short, ends.image)
        total = jnp.stack(jnp.split(total, 2), axis=1)
        return e + Linear(self.config.features, bias=False, name="out")(total)


class AngleUpdate(nn.Module):
    """a_jik ← a_jik + φ_a(e_ji ‖ a_jik ‖ v_i ‖ e_ik)"""

    config: MatglCHGNetConfig

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, a, ends: BondEnds):
        x = AngleInput(self.config, hidden=False, name="inputs")(graph, v, e, a, ends)
        return multiplied_out(a) + Gate(self.config.phi(hidden=False), name="phi")(x)


class AngleInput(nn.Module):
    """The first linear layer of φ_e and φ_a, W [e_ji, a_jik, v_i, e_ik] + b.

    An angle leads from the bond that leaves its atom, ik, to the one that arrives, ji.
    """

    config: MatglCHGNetConfig
    hidden: bool

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, a, ends: BondEnds) -> Float[Array, "angles two_f"]:
        f, number = self.config.features, jnp.arange(2 * graph.short)
        # The sum has zero mean if each of its terms has.
        groups = 2 if self.config.norm and not self.hidden else 0
        bonds = Linear(4 * f, bias=False, centred=2 * groups, name="bonds")(e)
        arriving, leaving = jnp.split(bonds, 2, axis=-1)
        leaving = gather(jnp.concatenate([leaving[:, 0], leaving[:, 1]]), number, ends.image)
        arriving = gather(jnp.concatenate([arriving[:, 1], arriving[:, 0]]), number, ends.image)
        of_atom = Linear(2 * f, bias=False, centred=groups, name="atom")(v)
        leaving = leaving + gather(of_atom, ends.atom)
        of_angle = Linear(2 * f, centred=groups, name="angle")(a)
        return gather(leaving, graph.angle_from) + gather(arriving, graph.angle_to) + of_angle


class MatglCHGNet(Network):
    """Maps a graph to the energy (eV, without reference energies) and magnetic moment (μB) of each atom."""

    config: MatglCHGNetConfig

    @property
    def cutoffs(self) -> Cutoffs:
        return Cutoffs(self.config.bond_cutoff, self.config.angle_cutoff)

    @property
    def reach(self) -> Reach:
        # What a bond learns through angles, the atom where it starts has learnt before.
        return Reach(self.config.blocks)

    @nn.compact
    def __call__(self, graph: CrystalGraph) -> dict[str, Float[Array, " atoms"]]:
        c, f, short = self.config, self.config.features, graph.short
        vectors = bond_vectors(graph)
        r = safe.norm(vectors)
        ends = graph.short_ends()

        # Radial bases of the atom graph and of the bond graph, and angular basis.
        radial = partial(enveloped, cutoff=c.bond_cutoff, p=c.envelope)
        radial_short = partial(enveloped, cutoff=c.angle_cutoff, p=c.envelope)
        ω = self.param("bond_frequencies", multiples_of(jnp.pi), (c.radial,))
        ω_short = self.param("short_bond_frequencies", multiples_of(jnp.pi), (c.radial,))
        ω_angle = self.param("angle_frequencies", multiples_of(1.0, first=0), (c.angular + 1,))
        angle = self._angle(graph, safe.unit(vectors[:short], r[:short]), ends)

        # Embeddings v⁰, e⁰, a⁰ and the weights ẽ of the messages.
        table = self.param("elements", nn.initializers.normal(1.0), (c.elements, f))
        v = table[jnp.maximum(graph.species - 1, 0)]  # species are the same in every cell
        e = Expansion(radial, r, ω, matrix(self, "bond_embedding", (c.radial, f))).array()[:, None]
        e = jnp.concatenate([e, e], axis=1)
        a = Expansion(waves, angle, ω_angle, matrix(self, "angle_embedding", (2 * c.angular + 1, f)))
        names = ("atom_weight", "bond_weight") if c.bond_update else ("atom_weight",)
        weights = [Expansion(radial, r, ω, matrix(self, name, (c.radial, f))).array() for name in names]
        weights = (weights[0], weights[-1])
        kernel = matrix(self, "short_bond_weight", (c.radial, f))
        at_ends = Expansion(radial_short, r[:short], ω_short, kernel).array()
        at_ends = gather(at_ends, ends.bond, ends.image)
        angle_weight = at_ends, gather(at_ends, graph.angle_to)

        last = c.blocks - 1
        for t in range(last):
            v, e = AtomConv(c, last=False, name=f"atom_conv_{t}")(graph, v, e, weights)
            learnt = BondConv(c, name=f"bond_conv_{t}")(graph, v, e[:short], a, ends, angle_weight)
            if t < last - 1:  # nothing reads the angles after the last bond convolution
                a = AngleUpdate(c, name=f"angle_update_{t}")(graph, v, learnt, a, ends)
            e = jnp.concatenate([learnt, e[short:]])

        magmom = Linear(1, name="magmom")(v)[:, 0]
        v, _ = AtomConv(c, last=True, name=f"atom_conv_{last}")(graph, v, e, weights)
        energy = MLP((*c.readout, 1), name="readout")(v)[:, 0]
        energy = energy * self.param("scale", nn.initializers.ones, (1,))
        return {
            "site_energies": jnp.where(graph.is_atom, energy, 0.0),
            "magmoms": jnp.where(graph.is_atom, magmom, 0.0),
        }

    def _angle(self, graph: CrystalGraph, direction, ends: BondEnds) -> Float[Array, " angles"]:
        u = gather(direction, ends.bond, ends.image) * ends.sign[:, None]
        cosine = jnp.sum(gather(u, graph.angle_from) * gather(u, graph.angle_to), axis=-1)
        return jnp.arccos(jnp.clip(cosine, -STRAIGHT, STRAIGHT))


def enveloped(r: Float[Array, " n"], frequencies: Float[Array, " k"], cutoff: float, p: int):
    """Radial functions times the envelope of their own values: u(φ) φ, where u(0) = 1."""
    φ = bessel(r, frequencies, cutoff)
    return φ * polynomial_envelope(φ, cutoff, p)


def waves(angle: Float[Array, " n"], frequencies: Float[Array, " k"]) -> Float[Array, "n 2*k-1"]:
    """(cos ω_k θ …, sin ω_k θ …) / π; the first frequency starts as 0, and has no sine."""
    phase = angle[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase[:, 1:])], axis=1) / jnp.pi
