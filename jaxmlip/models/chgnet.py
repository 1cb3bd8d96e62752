"""CHGNet: Deng et al., Nature Machine Intelligence 5, 1031 (2023), section "Methods".

The letters are the paper's: v for atoms, e for bonds, a for angles, φ for the gated MLPs and L for linear
layers. A gated MLP of concatenated features, φ(v_i ‖ v_j ‖ e_ij), starts with a product W [v_i, v_j, e_ij]
over edges. It is computed as W₁v_i + W₂v_j + W₃e_ij: products over atoms and bonds, gathered to edges
afterwards. The core and the gate of φ share their input, so one product serves both.

The published networks are of one width and have SiLU and layer norms. The code that they come from has more
options, which are here too: other widths, activations and norms, bonds or angles that keep their first
features, a gated MLP as the readout, and an energy of the mean over all atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxmlip.crystals.fetch import gather, scatter_add
from jaxmlip.crystals.graph import BondEnds, CrystalGraph, Cutoffs, bond_vectors, sum_over_crystals
from jaxmlip.crystals.reach import Reach
from jaxmlip.models import safe
from jaxmlip.models.activations import ACTIVATIONS, gated
from jaxmlip.models.basis import Expansion, bessel, fourier, polynomial_envelope
from jaxmlip.models.layers import MLP, Linear, matrix, multiples_of, normed
from jaxmlip.models.network import Network
from jaxmlip.system.arrays import Array


@dataclass(frozen=True)
class GatedMLP:
    """The options of a gated MLP φ."""

    widths: tuple[int, ...]  # of its layers, the last of which gives its output
    norm: str  # of the output, in NORMS
    activation: str = "silu"

    @property
    def first(self) -> int:
        """The width of the first product, with core and gate side by side."""
        return 2 * self.widths[0]

    @property
    def centred(self) -> int:
        """The number of groups of the first product that a layer norm follows."""
        return 2 if self.norm == "layer" and len(self.widths) == 1 else 0


class Norms(NamedTuple):
    """The kinds of norms, in layers.NORMS."""

    gated: str  # in the gated MLPs
    updated: str  # of features after each update
    readout: str  # before the readout


@dataclass(frozen=True)
class CHGNetConfig:
    """Options in which the published versions differ, and others; the defaults are those of 0.3.0."""

    features: int = 64  # width of atom features, and of all others that are not given
    radial: int = 31  # number of radial basis functions
    angular: int = 31  # number of angular basis functions, odd
    blocks: int = 4  # atom convolutions; bonds and angles are updated between them
    bond_cutoff: float = 6.0  # Å, of the atom graph
    angle_cutoff: float = 3.0  # Å, of the bond graph
    envelope: int = 8  # exponent p of the cutoff polynomial
    norm: bool = True  # layer norms in the gated MLPs and before the readout
    # Instead, the norms in the gated MLPs, after each update and before the readout: layer, batch or none.
    norms: tuple[str, str, str] | None = None
    output_bias: bool = False  # bias of the linear layer that follows each sum of messages
    readout: tuple[int, ...] = (64, 64, 64)  # hidden widths of the readout
    elements: int = 94  # embedded atomic numbers, from hydrogen on
    bond_features: int | None = None  # width of bond features
    angle_features: int | None = None  # width of angle features
    atom_hidden: tuple[int, ...] | None = None  # hidden widths of φ_v; None: one, of `features`
    bond_hidden: tuple[int, ...] | None = None  # hidden widths of φ_e; None: one, of `features`
    angle_hidden: tuple[int, ...] = ()  # hidden widths of φ_a
    activation: str = "silu"  # one of activations.ACTIVATIONS
    update_bonds: bool = True  # if not, angles have no effect
    update_angles: bool = True
    gated_readout: bool = False  # the readout is a gated MLP, and a linear layer
    pooled: bool = False  # the readout is of the mean over all atoms: see `CHGNet`

    def __post_init__(self):
        if self.angular % 2 == 0:
            raise ValueError(f"found angular={self.angular}, needed an odd number: a constant, and pairs.")
        if self.gated_readout and not self.readout:
            raise ValueError("found gated_readout without a width in readout, needed one or more.")

    @property
    def of_bonds(self) -> int:
        """The width of bond features."""
        return self.features if self.bond_features is None else self.bond_features

    @property
    def of_angles(self) -> int:
        """The width of angle features."""
        return self.features if self.angle_features is None else self.angle_features

    @property
    def kinds(self) -> Norms:
        """The norms, by where they are."""
        return Norms(*(self.norms or (("layer", "none", "layer") if self.norm else ("none",) * 3)))

    @property
    def phi_v(self) -> GatedMLP:
        """φ of the atom convolutions."""
        return self._phi(self.atom_hidden, self.features)

    @property
    def phi_e(self) -> GatedMLP:
        """φ of the bond convolutions."""
        return self._phi(self.bond_hidden, self.of_bonds)

    @property
    def phi_a(self) -> GatedMLP:
        """φ of the angle updates."""
        return self._phi(self.angle_hidden, self.of_angles)

    @property
    def phi_readout(self) -> GatedMLP:
        """φ of a gated readout."""
        return self._phi(self.readout, self.readout[-1])

    def _phi(self, hidden: tuple[int, ...] | None, out: int) -> GatedMLP:
        hidden = (self.features,) if hidden is None else hidden
        return GatedMLP((*hidden, out), self.kinds.gated, self.activation)


class Bonds(NamedTuple):
    """Features e of the short bonds, which angles update, and of the long ones, which but for norms stay."""

    short: Expansion | Float[Array, "short f"]
    long: Expansion | Float[Array, "long f"]


class Gate(nn.Module):
    """The rest of a gated MLP, φ(x) = σ(L_gate(x)) ∘ g(L_core(x)), after its first linear layer.

    x holds core and gate side by side. For each width that is left, an activation and a linear layer follow.
    """

    phi: GatedMLP

    @nn.compact
    def __call__(self, x: Float[Array, "n two_f"]) -> Float[Array, "n f"]:
        norm, widths, g = self.phi.norm, self.phi.widths[1:], ACTIVATIONS[self.phi.activation]
        core, gate = jnp.split(g(x) if widths else x, 2, axis=-1)
        for k, width in enumerate(widths[:-1], start=1):
            core = g(Linear(width, name=f"core_{k}")(core))
            gate = g(Linear(width, name=f"gate_{k}")(gate))
        if widths:
            core = Linear(widths[-1], centred=int(norm == "layer"), name="core")(core)
            gate = Linear(widths[-1], centred=int(norm == "layer"), name="gate")(gate)
        core = normed(norm, core, "core_norm", centred=True)
        gate = normed(norm, gate, "gate_norm", centred=True)
        return gated(self.phi.activation, core, gate)


class AtomConv(nn.Module):
    """v_i ← v_i + L_v[ Σ_j ẽ_ij φ_v(v_i ‖ v_j ‖ e_ij) ]"""

    config: CHGNetConfig

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, weight):
        c, phi = self.config, self.config.phi_v
        i, j, far = graph.first, graph.second, graph.images
        # The sum has zero mean if each of its terms has.
        of_atoms = Linear(2 * phi.first, bias=False, centred=2 * phi.centred, name="atoms")(v)
        centre, neighbour = jnp.split(of_atoms, 2, axis=-1)
        of_bond = Linear(phi.first, centred=phi.centred, name="bond")
        of_bond = jnp.concatenate([of_bond(e.short), of_bond(e.long)])
        gate = Gate(phi, name="phi")
        at_i = gather(centre, i) + gather(neighbour, j, far) + of_bond
        at_j = gather(centre, j, far) + gather(neighbour, i) + of_bond
        message = gate(jnp.concatenate([at_i, at_j])) * jnp.concatenate([weight, weight])
        ends, images = jnp.concatenate([i, j]), jnp.concatenate([jnp.zeros_like(far), far])
        total = scatter_add(message, ends, len(v), images)
        v = v + Linear(c.features, bias=c.output_bias, name="out")(total)
        return normed(c.kinds.updated, v, "norm")


class BondConv(nn.Module):
    """e_ij ← e_ij + L_e[ Σ_k ẽ_ij ẽ_ik φ_e(e_ij ‖ e_ik ‖ a_jik ‖ v_i) ] for an atom i bonded to j and k

    Only short bonds make angles. The others still take part in L_e if it has a bias, and in a norm: the
    published code leaves both out for a crystal that has no angle at all, unless it shares a batch with one
    that has; here a crystal's energy depends on itself alone, and is smooth where its first angle appears.
    """

    config: CHGNetConfig

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, a, ends: BondEnds, weight):
        c, f, phi = self.config, self.config.of_bonds, self.config.phi_e
        weight_ij, weight_ik = weight  # at the ends, and at the second end of each angle
        x = AngleInput(phi, name="inputs")(graph, v, e.short, a, ends)
        message = Gate(phi, name="phi")(x) * weight_ik
        total = weight_ij * scatter_add(message, graph.angle_from, len(weight_ij))
        total = scatter_add(total, ends.bond, graph.short, ends.image)
        out = Linear(f, bias=c.output_bias, name="out")
        e = e._replace(long=shifted(e.long, out(jnp.zeros((1, f))))) if c.output_bias else e
        e = e._replace(short=multiplied_out(e.short) + out(total))
        if c.kinds.updated == "none":
            return e
        both = jnp.concatenate([e.short, multiplied_out(e.long)])
        return Bonds(*jnp.split(normed(c.kinds.updated, both, "norm"), [graph.short]))


class AngleUpdate(nn.Module):
    """a_jik ← a_jik + φ_a(e_ij ‖ e_ik ‖ a_jik ‖ v_i)"""

    config: CHGNetConfig

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, a, ends: BondEnds):
        phi = self.config.phi_a
        x = AngleInput(phi, name="inputs")(graph, v, e.short, a, ends)
        return normed(self.config.kinds.updated, multiplied_out(a) + Gate(phi, name="phi")(x), "norm")


class AngleInput(nn.Module):
    """The first linear layer of φ_e and φ_a, W [e_ij, e_ik, a_jik, v_i] + b.

    The terms of a bond and of the atom i are added at the ends of bonds: there are fewer ends than angles.
    """

    phi: GatedMLP

    @nn.compact
    def __call__(self, graph: CrystalGraph, v, e, a, ends: BondEnds) -> Float[Array, "angles two_f"]:
        # The sum has zero mean if each of its terms has.
        width, groups = self.phi.first, self.phi.centred
        bonds = Linear(2 * width, bias=False, centred=2 * groups, name="bonds")(e)
        of_ij, of_ik = jnp.split(gather(bonds, ends.bond, ends.image), 2, axis=-1)
        of_atom = Linear(width, bias=False, centred=groups, name="atom")(v)
        of_angle = Linear(width, centred=groups, name="angle")(a)
        of_ij = of_ij + gather(of_atom, ends.atom)
        return gather(of_ij, graph.angle_from) + gather(of_ik, graph.angle_to) + of_angle


class CHGNet(Network):
    """Maps a graph to the energy (eV, without reference energies) and magnetic moment (μB) of each atom.

    With `pooled` the energy of a crystal is that of the mean of its atoms' features, times their number. It
    is no sum over atoms that see their neighbours: each atom is given the same share of it, and acts on all.
    """

    config: CHGNetConfig

    @property
    def cutoffs(self) -> Cutoffs:
        return Cutoffs(self.config.bond_cutoff, self.config.angle_cutoff if self.config.update_bonds else 0.0)

    @property
    def reach(self) -> Reach | None:
        # What bonds learn through angles, the atoms at their ends have learnt before.
        return None if self.config.pooled else Reach(self.config.blocks)

    @property
    def fetches_are_known(self) -> bool:
        """False if there is a mean over all cells, which has no phase."""
        return not self.config.pooled

    @nn.compact
    def __call__(self, graph: CrystalGraph) -> dict[str, Float[Array, " atoms"]]:
        c, f, short = self.config, self.config.features, graph.short
        vectors = bond_vectors(graph)
        r = safe.norm(vectors)

        # Embeddings v⁰, e⁰ and a⁰ in smooth radial bases ẽ and the angular one, and the weights of messages.
        radial = partial(smooth_bessel, cutoff=c.bond_cutoff, p=c.envelope)
        ω = self.param("bond_frequencies", multiples_of(jnp.pi), (c.radial,))
        if c.update_bonds:
            ends = graph.short_ends()
            ω_short = self.param("short_bond_frequencies", multiples_of(jnp.pi), (c.radial,))
            a = self._angle_features(graph, safe.unit(vectors[:short], r[:short]), ends)
        table = self.param("elements", nn.initializers.normal(1.0), (c.elements, f))
        v = table[jnp.maximum(graph.species - 1, 0)]  # species are the same in every cell
        embedding = matrix(self, "bond_embedding", (c.radial, c.of_bonds))
        e = Bonds(Expansion(radial, r[:short], ω, embedding), Expansion(radial, r[short:], ω, embedding))
        bond_weight = Expansion(radial, r, ω, matrix(self, "bond_weight", (c.radial, f))).array()
        if c.update_bonds:
            radial = partial(smooth_bessel, cutoff=c.angle_cutoff, p=c.envelope)
            kernel = matrix(self, "short_bond_weight", (c.radial, c.of_bonds))
            weight = Expansion(radial, r[:short], ω_short, kernel).array()
            weight = gather(weight, ends.bond, ends.image)
            angle_weight = weight, gather(weight, graph.angle_to)

        last = c.blocks - 1
        for t in range(last):
            v = AtomConv(c, name=f"atom_conv_{t}")(graph, v, e, bond_weight)
            if c.update_bonds:
                e = BondConv(c, name=f"bond_conv_{t}")(graph, v, e, a, ends, angle_weight)
            # Nothing reads the angles after the last bond convolution.
            if c.update_bonds and c.update_angles and t < last - 1:
                a = AngleUpdate(c, name=f"angle_update_{t}")(graph, v, e, a, ends)

        magmom = jnp.abs(Linear(1, name="magmom")(v))[:, 0]
        v = AtomConv(c, name=f"atom_conv_{last}")(graph, v, e, bond_weight)
        v = normed(c.kinds.readout, v, "readout_norm")
        if c.pooled:
            v = mean_over_crystals(v, graph)
        energy = self._readout(v)[:, 0]
        energy = energy[graph.crystal] if c.pooled else energy
        return {
            "site_energies": jnp.where(graph.is_atom, energy, 0.0),
            "magmoms": jnp.where(graph.is_atom, magmom, 0.0),
        }

    def _readout(self, v: Float[Array, "n f"]) -> Float[Array, "n 1"]:
        c = self.config
        if not c.gated_readout:
            return MLP((*c.readout, 1), c.activation, name="readout")(v)
        first = Linear(c.phi_readout.first, centred=c.phi_readout.centred, name="readout_first")(v)
        return Linear(1, name="readout_last")(Gate(c.phi_readout, name="readout")(first))

    def _angle_features(self, graph: CrystalGraph, direction, ends: BondEnds) -> Expansion:
        """a⁰, in the angular basis."""
        c = self.config
        ω = self.param("angle_frequencies", multiples_of(1.0), (c.angular // 2,))
        kernel = matrix(self, "angle_embedding", (c.angular, c.of_angles))
        return Expansion(fourier, self._angle(graph, direction, ends), ω, kernel)

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


def shifted(features: Expansion | Array, by: Float[Array, "1 f"]) -> Expansion | Array:
    """Features + `by`, multiplied out only if they were."""
    if isinstance(features, Expansion):
        return features.replace(constant=features.constant + by[0])
    return features + by


def mean_over_crystals(v: Float[Array, "atoms f"], graph: CrystalGraph) -> Float[Array, "crystals f"]:
    """The mean of v over the atoms of each crystal; zero for one without atoms."""
    is_atom = graph.is_atom.astype(v.dtype)
    number = jnp.maximum(sum_over_crystals(is_atom, graph), 1.0)
    return sum_over_crystals(v * is_atom[:, None], graph) / number[:, None]
