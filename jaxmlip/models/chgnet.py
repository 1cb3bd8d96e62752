"""CHGNet: Deng et al., Nature Machine Intelligence 5, 1031 (2023), section "Methods".

The letters are the paper's: v for atoms, e for bonds, a for angles, φ for the gated MLPs and L for linear
layers. A gated MLP of concatenated features, φ(v_i ‖ v_j ‖ e_ij), starts with a product W [v_i, v_j, e_ij]
over edges. It is computed as W₁v_i + W₂v_j + W₃e_ij: products over atoms and bonds, gathered to edges
afterwards. The core and the gate of φ share their input, so one product serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxmlip.crystals.fetch import gather, scatter_add
from jaxmlip.crystals.graph import BondEnds, CrystalGraph, Cutoffs, bond_vectors
from jaxmlip.crystals.reach import Reach
from jaxmlip.models import safe
from jaxmlip.models.activations import silu, silu_gate
from jaxmlip.models.basis import Expansion, bessel, fourier, polynomial_envelope
from jaxmlip.models.layers import MLP, CentredNorm, Linear, matrix, multiples_of
from jaxmlip.models.network import Network
from jaxmlip.system.arrays import Array


@dataclass(frozen=True)
class CHGNetConfig:
    """Options in which the published versions differ; the defaults are those of 0.3.0."""

    features: int = 64  # width of atom, bond and angle features
    radial: int = 31  # number of radial basis functions
    angular: int = 31  # number of angular basis functions, odd
    blocks: int = 4  # atom convolutions; bonds and angles are updated between them
    bond_cutoff: float = 6.0  # Å, of the atom graph
    angle_cutoff: float = 3.0  # Å, of the bond graph
    envelope: int = 8  # exponent p of the cutoff polynomial
    norm: bool = True  # layer norms in the gated MLPs and before the readout
    output_bias: bool = False  # bias of the linear layer that follows each sum of messages
    readout: tuple[int, ...] = (64, 64, 64)  # hidden widths of the readout
    elements: int = 94  # embedded atomic numbers, from hydrogen on

    def __post_init__(self):
        if self.angular % 2 == 0:
            raise ValueError(f"found angular={self.angular}, needed an odd number: a constant, and pairs.")


class Bonds(NamedTuple):
    """Features e of the short bonds, which angles update, and of the long ones, which stay as they are."""

    short: Expansion | Float[Array, "short f"]
    long: Expansion


class Gate(nn.Module):
    """The rest of a gated MLP, φ(x) = σ(L_gate(x)) ∘ g(L_core(x)), after its first linear layer.

    x holds core and gate side by side. With `hidden`, a SiLU and one more linear layer follow for each.
    """

    norm: bool
    hidden: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n two_f"]) -> Float[Array, "n f"]:
        core, gate = jnp.split(silu(x) if self.hidden else x, 2, axis=-1)
        if self.hidden:
            core = Linear(core.shape[-1], centred=int(self.norm), name="core")(core)
            gate = Linear(gate.shape[-1], centred=int(self.norm), name="gate")(gate)
        if self.norm:
            core = CentredNorm(name="core_norm")(core)
            gate = CentredNorm(name="gate_norm")(gate)
        return silu_gate(core, gate)


class AtomConv(nn.Module):
    """v_i ← v_i + L_v[ Σ_j ẽ_ij φ_v(v_i ‖ v_j ‖ e_ij) ]"""

    config: CHGNetConfig

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, weight):
        c, f = self.config, self.config.features
        i, j, far = graph.first, graph.second, graph.images
        centre, neighbour = jnp.split(Linear(4 * f, bias=False, name="atoms")(v), 2, axis=-1)
        of_bond = Linear(2 * f, name="bond")
        of_bond = jnp.concatenate([of_bond(e.short), of_bond(e.long)])
        gate = Gate(c.norm, hidden=True, name="phi")
        at_i = gather(centre, i) + gather(neighbour, j, far) + of_bond
        at_j = gather(centre, j, far) + gather(neighbour, i) + of_bond
        message = gate(jnp.concatenate([at_i, at_j])) * jnp.concatenate([weight, weight])
        ends, images = jnp.concatenate([i, j]), jnp.concatenate([jnp.zeros_like(far), far])
        total = scatter_add(message, ends, len(v), images)
        return v + Linear(f, bias=c.output_bias, name="out")(total)


class BondConv(nn.Module):
    """e_ij ← e_ij + L_e[ Σ_k ẽ_ij ẽ_ik φ_e(e_ij ‖ e_ik ‖ a_jik ‖ v_i) ] for an atom i bonded to j and k

    Only short bonds make angles. The others still take part in L_e if it has a bias: the published
    code leaves that bias out for a crystal that has no angle at all, unless it shares a batch with one
    that has; here a crystal's energy depends on itself alone, and is smooth where its first angle appears.
    """

    config: CHGNetConfig

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, a, ends: BondEnds, weight):
        c, f = self.config, self.config.features
        weight_ij, weight_ik = weight  # at the ends, and at the second end of each angle
        x = AngleInput(c, hidden=True, name="inputs")(graph, v, e.short, a, ends)
        message = Gate(c.norm, hidden=True, name="phi")(x) * weight_ik
        total = weight_ij * scatter_add(message, graph.angle_from, len(weight_ij))
        total = scatter_add(total, ends.bond, graph.short, ends.image)
        out = Linear(f, bias=c.output_bias, name="out")
        if c.output_bias:
            e = e._replace(long=e.long.replace(constant=e.long.constant + out(jnp.zeros((1, f)))[0]))
        return e._replace(short=multiplied_out(e.short) + out(total))


class AngleUpdate(nn.Module):
    """a_jik ← a_jik + φ_a(e_ij ‖ e_ik ‖ a_jik ‖ v_i)"""

    config: CHGNetConfig

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, a, ends: BondEnds):
        x = AngleInput(self.config, hidden=False, name="inputs")(graph, v, e.short, a, ends)
        return multiplied_out(a) + Gate(self.config.norm, hidden=False, name="phi")(x)


class AngleInput(nn.Module):
    """The first linear layer of φ_e and φ_a, W [e_ij, e_ik, a_jik, v_i] + b.

    The terms of a bond and of the atom i are added at the ends of bonds: there are fewer ends than angles.
    """

    config: CHGNetConfig
    hidden: bool

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, a, ends: BondEnds) -> Float[Array, "angles two_f"]:
        f = self.config.features
        # The sum has zero mean if each of its terms has.
        groups = 2 if self.config.norm and not self.hidden else 0
        bonds = Linear(4 * f, bias=False, centred=2 * groups, name="bonds")(e)
        of_ij, of_ik = jnp.split(gather(bonds, ends.bond, ends.image), 2, axis=-1)
        of_atom = Linear(2 * f, bias=False, centred=groups, name="atom")(v)
        of_angle = Linear(2 * f, centred=groups, name="angle")(a)
        of_ij = of_ij + gather(of_atom, ends.atom)
        return gather(of_ij, graph.angle_from) + gather(of_ik, graph.angle_to) + of_angle


class CHGNet(Network):
    """Maps a graph to the energy (eV, without reference energies) and magnetic moment (μB) of each atom."""

    config: CHGNetConfig

    @property
    def cutoffs(self) -> Cutoffs:
        return Cutoffs(self.config.bond_cutoff, self.config.angle_cutoff)

    @property
    def reach(self) -> Reach:
        # What bonds learn through angles, the atoms at their ends have learnt before.
        return Reach(self.config.blocks)

    @nn.compact
    def __call__(self, graph: CrystalGraph) -> dict[str, Float[Array, " atoms"]]:
        c, f, short = self.config, self.config.features, graph.short
        vectors = bond_vectors(graph)
        r = safe.norm(vectors)
        ends = graph.short_ends()

        # Smooth radial bases ẽ of the atom graph and of the bond graph, and angular basis.
        radial = partial(smooth_bessel, cutoff=c.bond_cutoff, p=c.envelope)
        radial_short = partial(smooth_bessel, cutoff=c.angle_cutoff, p=c.envelope)
        ω = self.param("bond_frequencies", multiples_of(jnp.pi), (c.radial,))
        ω_short = self.param("short_bond_frequencies", multiples_of(jnp.pi), (c.radial,))
        ω_angle = self.param("angle_frequencies", multiples_of(1.0), (c.angular // 2,))
        angle = self._angle(graph, safe.unit(vectors[:short], r[:short]), ends)

        # Embeddings v⁰, e⁰, a⁰ and the weights of the messages.
        table = self.param("elements", nn.initializers.normal(1.0), (c.elements, f))
        v = table[jnp.maximum(graph.species - 1, 0)]  # species are the same in every cell
        embedding = matrix(self, "bond_embedding", (c.radial, f))
        e = Bonds(Expansion(radial, r[:short], ω, embedding), Expansion(radial, r[short:], ω, embedding))
        a = Expansion(fourier, angle, ω_angle, matrix(self, "angle_embedding", (c.angular, f)))
        bond_weight = Expansion(radial, r, ω, matrix(self, "bond_weight", (c.radial, f))).array()
        kernel = matrix(self, "short_bond_weight", (c.radial, f))
        short_weight = Expansion(radial_short, r[:short], ω_short, kernel).array()
        short_weight = gather(short_weight, ends.bond, ends.image)
        angle_weight = short_weight, gather(short_weight, graph.angle_to)

        last = c.blocks - 1
        for t in range(last):
            v = AtomConv(c, name=f"atom_conv_{t}")(graph, v, e, bond_weight)
            e = BondConv(c, name=f"bond_conv_{t}")(graph, v, e, a, ends, angle_weight)
            if t < last - 1:  # nothing reads the angles after the last bond convolution
                a = AngleUpdate(c, name=f"angle_update_{t}")(graph, v, e, a, ends)

        magmom = jnp.abs(Linear(1, name="magmom")(v))[:, 0]
        v = AtomConv(c, name=f"atom_conv_{last}")(graph, v, e, bond_weight)
        if c.norm:
            v = CentredNorm(name="readout_norm")(v - v.mean(axis=-1, keepdims=True))
        energy = MLP((*c.readout, 1), name="readout")(v)[:, 0]
        return {
            "site_energies": jnp.where(graph.is_atom, energy, 0.0),
            "magmoms": jnp.where(graph.is_atom, magmom, 0.0),
        }

    def _angle(self, graph: CrystalGraph, direction, ends: BondEnds) -> Float[Array, " angles"]:
        u = gather(direction, ends.bond, ends.image) * ends.sign[:, None]
        u_ij, u_ik = gather(u, graph.angle_from), gather(u, graph.angle_to)
        # The published network keeps the cosine this far from ±1, because arccos has no derivative there.
        return jnp.arccos(jnp.sum(u_ij * u_ik, axis=-1) * (1 - 1e-6))


def smooth_bessel(r, frequencies, cutoff: float, p: int):
    """The radial basis with its envelope."""
    return bessel(r, frequencies, cutoff) * polynomial_envelope(r, cutoff, p)[:, None]


def multiplied_out(features: Expansion | Array) -> Array:
    """Features as an array, as a sum needs them."""
    return features.array() if isinstance(features, Expansion) else features
