"""MACE: Batatia, Kovács, Simm, Ortner & Csányi, NeurIPS 2022 (arXiv:2206.07697), with its equation numbers.

Features h and A of an atom are spherical tensors: a list by l of arrays (atoms, 2l + 1, channels) in the real
harmonics of e3nn, all with parity (-1)^l. Weights are stored as in e3nn's layers, with entries of order one,
and divided by √(fan-in) when they are used; those of radial networks with biases are as they act.

Not in the paper are the distances of `soft`, and non-linear interactions, which are those of MACE-MH-1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii
from jaxtyping import Float

from jaxmlip.crystals.fetch import gather, scatter_add
from jaxmlip.crystals.graph import ELEMENTS, CrystalGraph, Cutoffs, atomic_number, bond_vectors
from jaxmlip.crystals.reach import Reach
from jaxmlip.models import safe, symmetric
from jaxmlip.models.activations import silu
from jaxmlip.models.basis import along, polynomial_envelope
from jaxmlip.models.layers import normalise
from jaxmlip.models.network import Network
from jaxmlip.system.arrays import Array

NONLINEAR = "nonlinear-residual"
BLOCKS = ("agnostic", "residual", "density", "density-residual", NONLINEAR)
BOHR, E2 = 0.529, 14.3996  # Å, and eV Å: e²/4πε₀; the digits that the published potentials were fitted with
ZBL_DECAYS = (3.2, 0.9423, 0.4028, 0.2016)  # Ziegler, Biersack, Littmark 1985, in units of 1/a


@dataclass(frozen=True)
class MACEConfig:
    """Options in which published models differ; the defaults are those of mace-mp-0b3-medium."""

    elements: tuple[int, ...]  # species, in the order of the weights: atomic numbers, for each functional
    channels: int = 128
    hidden_l: int = 1  # highest l of the features between layers ("max_L")
    harmonics_l: int = 3  # highest l of the spherical harmonics and of A ("max_ell")
    correlation: tuple[int, ...] = (3, 3)  # highest degree ν of the products, for each layer
    blocks: tuple[str, ...] = ("density", "density-residual")  # the interaction of each layer
    cutoff: float = 6.0  # Å
    radial: int = 10  # number of Bessel functions
    envelope: int = 5  # exponent p of the cutoff polynomial
    radial_widths: tuple[int, ...] = (64, 64, 64)  # hidden widths of the radial network
    average_neighbours: float = 1.0  # divides the sum of messages in blocks without density
    readout: int = 16  # hidden width of the last readout
    agnesi: bool = True  # distances are transformed before the Bessel functions are applied
    soft: bool = False  # the same by another function, which keeps long distances
    repulsion: bool = True  # the ZBL pair repulsion is added
    cutoff_on_basis: bool = True  # False: the cutoff polynomial multiplies the output of the radial network
    activation_scale: float = 1.6791767923989418  # c with ⟨(c SiLU(x))²⟩ = 1 for normal x, as in e3nn
    edge_channels: tuple[int, ...] = ()  # of what neighbours send in each layer; empty: `channels`
    agnostic_product: bool = False  # the products have the same weights for all elements
    density_width: int = 64  # hidden width of the network for densities in non-linear blocks
    gate_scale: float = 1.8467055342154763  # the same as activation_scale for the sigmoid
    # Numbers of couplings to (L, ν) = (0, 1), (0, 2), …, (1, 1), …; empty: as many as a basis has. Published
    # files have more, which are linearly dependent.
    paths: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.blocks or len(self.blocks) != len(self.correlation) or set(self.blocks) - set(BLOCKS):
            raise ValueError(
                f"found blocks={self.blocks!r} and correlation={self.correlation!r}, needed for each layer "
                f"one of {', '.join(BLOCKS)}, and one degree."
            )
        if self.hidden_l > self.harmonics_l:
            raise ValueError(
                f"found hidden_l={self.hidden_l} and harmonics_l={self.harmonics_l}, needed features between "
                "layers that go no higher than the harmonics that they are made of."
            )
        if self.agnesi and self.soft:
            raise ValueError("found agnesi=True and soft=True, needed at most one transform of distances.")
        if self.edge_channels and len(self.edge_channels) != len(self.blocks):
            raise ValueError(
                f"found edge_channels={self.edge_channels!r} for {len(self.blocks)} blocks, needed a number "
                "for each, or none."
            )
        if NONLINEAR in self.blocks and self.cutoff_on_basis:
            raise ValueError(
                f"found cutoff_on_basis=True with a {NONLINEAR} block, needed False: its radial network has "
                "biases, so energies would jump where a neighbour comes within the cutoff."
            )

    @property
    def fan_in(self) -> int:
        """The number of elements. Functionals do not count, so one more changes no weight of the others."""
        return len({atomic_number(z) for z in self.elements})

    def out_l(self, layer: int) -> int:
        """Highest l of the features after a layer; the last layer gives only scalars."""
        return 0 if layer == len(self.blocks) - 1 else self.hidden_l

    def sent(self, layer: int) -> int:
        """The number of channels of what neighbours send in a layer."""
        return self.edge_channels[layer] if self.edge_channels else self.channels

    def couplings(self) -> list[tuple[int, int]]:
        """The (L, ν) of all symmetric couplings that a layer uses."""
        layers = list(enumerate(self.correlation))
        return [
            (L, degree)
            for L in range(self.out_l(0) + 1)
            for degree in range(1, max(nu for t, nu in layers if self.out_l(t) >= L) + 1)
        ]


class Products(NamedTuple):
    """The two products that take most of the time: `messages` and `symmetric.contract`, or replacements."""

    messages: Callable[..., Array]
    contract: Callable[..., Array]


class TensorLinear(nn.Module):
    """Linear layer that mixes channels: a matrix for each l, the same for all m, divided by √(fan-in)."""

    features: int
    scalars: int = 0  # features of l = 0; 0: as many as of the others

    @nn.compact
    def __call__(self, x: list[Float[Array, "n _ _"]]) -> list[Float[Array, "n _ _"]]:
        """x[l] has m = 2l + 1 components; its numbers of channels may differ."""
        return [self._matrix(l, y) for l, y in enumerate(x)]

    def _matrix(self, l: int, y):
        shape = (y.shape[-1], self.scalars or self.features if l == 0 else self.features)
        return y @ self.param(f"l{l}", nn.initializers.normal(1.0), shape) / shape[0] ** 0.5


class ElementLinear(nn.Module):
    """A TensorLinear with matrices of each element."""

    features: int
    species: int
    fan_in: int

    @nn.compact
    def __call__(self, x: list[Float[Array, "n _ _"]], element) -> list[Float[Array, "n _ _"]]:
        return [self._matrix(l, y, element) for l, y in enumerate(x)]

    def _matrix(self, l: int, y, element):
        shape = (self.species, y.shape[-1], self.features)
        kernel = self.param(f"l{l}", nn.initializers.normal(1.0), shape)
        return jnp.einsum("nmf,nfg->nmg", y, kernel[element]) / (self.fan_in * shape[1]) ** 0.5


class RadialWeights(nn.Module):
    """R_kcl₁l₂l₃(r) of eq. (8), and the edge density of density blocks: functions of the distance alone."""

    config: MACEConfig
    features: int
    density: bool

    @nn.compact
    def __call__(self, r, radius, constants):
        c = self.config
        widths = (c.radial, *c.radial_widths, self.features)
        normal = nn.initializers.normal(1.0)
        layers = [
            self.param(f"layer_{k}", normal, shape) for k, shape in enumerate(itertools.pairwise(widths))
        ]
        density = self.param("density", normal, (c.radial, 1)) if self.density else None
        return along(partial(radial_weights, c), 0, r, radius, constants, layers, density)


def radial_weights(config: MACEConfig, r, radius, constants, layers, density):
    """The output of the radial network for each bond; the edge density is its last column."""
    c = config
    basis, envelope = radial_basis(c, r, radius, constants)
    if c.cutoff_on_basis:
        basis = basis * envelope
    y = basis
    for k, w in enumerate(layers):
        y = y @ (w / w.shape[0] ** 0.5)
        if k < len(layers) - 1:
            y = c.activation_scale * silu(y)
    if density is not None:
        each = jnp.tanh((basis @ (density / c.radial**0.5)) ** 2)
        y = jnp.concatenate([y, each], axis=1)
    return y if c.cutoff_on_basis else y * envelope


def radial_basis(config: MACEConfig, r, radius, constants):
    """The Bessel functions of eq. (8), of transformed distances if there are such, and the cutoff's factor.

    `radius` is the mean covalent radius of both atoms.
    """
    x = r
    if config.agnesi:
        x = agnesi(r, radius, *constants["agnesi"])
    elif config.soft:
        x = soft(r, 2 * radius, constants["soft"])
    waves = jnp.sin(constants["bessel_frequencies"][None] * x[:, None])
    basis = safe.divide(constants["bessel_prefactor"] * waves, x[:, None])
    return basis, polynomial_envelope(r, config.cutoff, config.envelope)[:, None]


def soft(r, length, steepness):
    """Near ¾ of `length`, the sum of covalent radii, for shorter distances, and near r above 4/3 of it."""
    low, high = 0.75 * length, 4 / 3 * length
    weight = (1 + jnp.tanh(steepness * (r - (low + high) / 2) / (high - low))) / 2
    return low + (r - low) * weight


def agnesi(r, radius, a, q, p):
    """(1 + a x^q / (1 + x^(q-p)))⁻¹, x = r / r₀: Witt et al., J. Chem. Phys. 159, 164101 (2023)."""
    x = jnp.where(r > 0, r, 1.0) / radius
    return jnp.where(r > 0, 1 / (1 + a * x**q / (1 + x ** (q - p))), 0.0)


class PairWeights(nn.Module):
    """What RadialWeights is, of the elements of both atoms too: for first atoms, then for second ones.

    Its networks have biases and layer norms.
    """

    config: MACEConfig
    features: int

    @nn.compact
    def __call__(self, graph: CrystalGraph, r, radius, element, constants):
        c, small = self.config, nn.initializers.normal(1e-3)
        first, second = element[graph.first], element[graph.second]
        ends = (jnp.concatenate([second, first]), jnp.concatenate([first, second]))
        shape = (len(c.elements), c.channels)
        embedded = [self.param(name, small, shape) / c.fan_in**0.5 for name in ("source", "target")]
        starts, networks = [], []
        for name, widths in (
            ("weights", (*c.radial_widths, self.features)),
            ("density", (c.density_width, 1)),
        ):
            start, *layers = self._network(name, (c.radial + 2 * c.channels, *widths))
            parts = jnp.split(start["kernel"], [c.radial, c.radial + c.channels])
            # A product for each element instead of each bond.
            of_ends = [(x @ part)[end] for x, part, end in zip(embedded, parts[1:], ends, strict=True)]
            starts.append(sum(of_ends) + start["bias"][None])
            networks.append((parts[0], layers))
        both = [x if x is None else jnp.concatenate([x, x]) for x in (r, radius)]
        return along(partial(pair_weights, c), 0, *both, constants, networks, starts)

    def _network(self, name: str, widths: tuple[int, ...]) -> list[dict[str, Array]]:
        """The parameters of each layer; before all but the first there are a layer norm and a SiLU."""
        made, matrix = [], nn.initializers.lecun_normal()
        for k, shape in enumerate(itertools.pairwise(widths)):
            kinds = {"kernel": (matrix, shape), "bias": (nn.initializers.zeros, shape[1:])}
            if k:
                kinds |= {
                    "scale": (nn.initializers.ones, shape[:1]),
                    "shift": (nn.initializers.zeros, shape[:1]),
                }
            made.append({kind: self.param(f"{name}_{k}_{kind}", *its) for kind, its in kinds.items()})
        return made


def pair_weights(config: MACEConfig, r, radius, constants, networks, starts):
    """The outputs of both networks for each end of each bond; the edge density is the last column."""
    basis, envelope = radial_basis(config, r, radius, constants)
    found = []
    for (matrix, layers), start in zip(networks, starts, strict=True):
        y = basis @ matrix + start
        for its in layers:
            centred = y - y.mean(axis=1, keepdims=True)
            y = normalise(centred, 1e-5)[0] * its["scale"][None] + its["shift"][None]
            y = silu(y) @ its["kernel"] + its["bias"][None]
        found.append(y)
    weights, density = found
    return jnp.concatenate([weights, jnp.tanh(density**2)], axis=1) * envelope


class Interaction(nn.Module):
    """The atomic basis A of eq. (9), the sum over neighbours of eq. (8), and the features that skip it."""

    config: MACEConfig
    layer: int
    messages: Callable[..., Array]

    @nn.compact
    def __call__(self, graph: CrystalGraph, h, r, radius, harmonics, element, constants):
        c, f = self.config, self.config.channels
        density = self.config.blocks[self.layer].startswith("density")
        residual = self.config.blocks[self.layer].endswith("residual")
        skip = ElementLinear(f, len(c.elements), c.fan_in, name="skip")
        skipped = skip(h[: c.out_l(self.layer) + 1], element) if residual else None

        h = jnp.concatenate(TensorLinear(c.sent(self.layer), name="up")(h), axis=1)
        paths = message_paths(h.shape[1], c.harmonics_l)
        features = h.shape[2] * len(paths)
        weights = RadialWeights(c, features, density, name="radial")(r, radius, constants)
        weights = jnp.concatenate([weights, weights])
        A = TensorLinear(f, name="mix")(summed_messages(self.messages, graph, h, weights, harmonics))
        if density:
            edges = summed_densities(graph, weights[:, -1])
            A = [x / (edges[:, None, None] + 1) for x in A]
        else:
            A = [x / c.average_neighbours for x in A]
        if not residual:
            A = skip(A, element)
        return A, skipped


class NonLinearInteraction(nn.Module):
    """An Interaction whose A has the atom's own features added, and passes gates and a linear layer."""

    config: MACEConfig
    layer: int
    messages: Callable[..., Array]

    @nn.compact
    def __call__(self, graph: CrystalGraph, h, r, radius, harmonics, element, constants):
        c, f = self.config, self.config.channels
        skipped = TensorLinear(f, name="skip")(h[: c.out_l(self.layer) + 1])
        up = TensorLinear(c.sent(self.layer), name="up")(h)
        gates = f * (c.harmonics_l + 1)  # scalars, and one gate for each tensor
        own = TensorLinear(f, gates, name="own")(up)

        h = jnp.concatenate(up, axis=1)
        features = h.shape[2] * len(message_paths(h.shape[1], c.harmonics_l))
        weights = PairWeights(c, features, name="radial")(graph, r, radius, element, constants)
        A = TensorLinear(f, gates, name="mix")(summed_messages(self.messages, graph, h, weights, harmonics))
        slope = self.param("slope", nn.initializers.zeros, ())
        offset = self.param("offset", nn.initializers.constant(20.0), ())
        edges = slope * summed_densities(graph, weights[:, -1]) + offset
        A = [x / edges[:, None, None] for x in A]
        A = [x + own[l] if l < len(own) else x for l, x in enumerate(A)]
        return TensorLinear(f, name="out")(self._gated(A)), skipped

    def _gated(self, A: list[Float[Array, "n _ _"]]) -> list[Float[Array, "n _ _"]]:
        c = self.config
        scalars, *gates = jnp.split(A[0], c.harmonics_l + 1, axis=-1)
        gated = [x * (c.gate_scale * nn.sigmoid(gate)) for x, gate in zip(A[1:], gates, strict=True)]
        return [c.activation_scale * silu(scalars), *gated]


def summed_messages(
    messages: Callable[..., Array],
    graph: CrystalGraph,
    h: Float[Array, "atoms components f"],
    weights: Float[Array, "ends _"],
    harmonics: list[Float[Array, "bonds _"]],
) -> list[Float[Array, "atoms _ _"]]:
    """The sum of eq. (8) over neighbours for each l₃, with a channel for each path and each channel of h.

    Each bond carries a message to its first atom and one to its second. The first columns of `weights` are R.
    """
    i, j, far = graph.first, graph.second, graph.images
    here = jnp.zeros_like(far)
    sent = gather(h, jnp.concatenate([j, i]), jnp.concatenate([far, here]))
    ends, images = jnp.concatenate([i, j]), jnp.concatenate([here, far])
    f, l_max = h.shape[2], len(harmonics) - 1
    paths = message_paths(h.shape[1], l_max)
    summed, first = [], 0
    for l in range(l_max + 1):
        count = sum(l3 == l for *_, l3 in paths)
        R = weights[:, first * f : (first + count) * f]
        total = scatter_add(messages(harmonics, R, sent, l), ends, len(h), images)
        summed.append(total.swapaxes(1, 2).reshape(len(h), 2 * l + 1, count * f))
        first += count
    return summed


def summed_densities(graph: CrystalGraph, density: Float[Array, " ends"]) -> Float[Array, " atoms"]:
    """The sum over the bonds of each atom."""
    ends = jnp.concatenate([graph.first, graph.second])
    images = jnp.concatenate([jnp.zeros_like(graph.images), graph.images])
    return scatter_add(density, ends, len(graph.numbers), images)


def message_paths(components: int, harmonics_l: int) -> list[tuple[int, int, int]]:
    """The couplings (l₁ of the neighbour, l₂ of the harmonic, l₃ of the message) that keep natural parity."""
    hidden_l = round(components**0.5) - 1
    return [
        (l1, l2, l3)
        for l3 in range(harmonics_l + 1)
        for l1 in range(hidden_l + 1)
        for l2 in range(abs(l1 - l3), min(l1 + l3, harmonics_l) + 1)
        if (l1 + l2 + l3) % 2 == 0
    ]


def messages(
    harmonics: list[Float[Array, "bonds _"]],
    weights: Float[Array, "ends features"],
    sent: Float[Array, "ends components f"],
    l: int,
) -> Float[Array, "ends paths m f"]:
    """R C_l₁l₂l₃ Y_l₂ h of eq. (8) for each path to l₃ = l, for all first atoms, then for all second ones.

    `weights` are R for each path and channel, `sent` the features h of the neighbour.
    """
    R = weights.reshape(len(weights), -1, 1, sent.shape[2])
    return R * jnp.einsum("epzx,exf->epzf", end_couplings(harmonics, sent.shape[1], l), sent)


def end_couplings(harmonics, components: int, l: int) -> Float[Array, "ends paths m components"]:
    """C_l₁l₂l₃ Y_l₂ of eq. (8) for each path to l₃ = l, as first atoms see it, then as second ones.

    It maps the features of a neighbour, with `components` (l₁, m₁), to the components of its message.
    """
    there = []
    for l1, l2, l3 in message_paths(components, len(harmonics) - 1):
        if l3 == l:
            coupling = (2 * l3 + 1) ** 0.5 * symmetric.clebsch_gordan(l1, l2, l3)
            each = jnp.einsum("xyz,by->bzx", jnp.asarray(coupling, harmonics[0].dtype), harmonics[l2])
            there.append(jnp.pad(each, [(0, 0), (0, 0), (l1**2, components - (l1 + 1) ** 2)]))
    there = jnp.stack(there, axis=1)
    # The other end sees the opposite direction, Y_l₂(-r) = (-1)^l₂ Y_l₂(r), and l₁ + l₂ + l₃ is even.
    signs = np.concatenate([np.full(2 * l1 + 1, (-1.0) ** (l1 + l)) for l1 in range(round(components**0.5))])
    return jnp.concatenate([there, there * jnp.asarray(signs, there.dtype)[None, None, None]])


class Product(nn.Module):
    """The messages m of eqs. (10) and (11), and the update of eq. (12)."""

    config: MACEConfig
    layer: int
    contract: Callable[..., Array]

    @nn.compact
    def __call__(self, A, skipped, element, constants):
        c = self.config
        A = jnp.concatenate(A, axis=1)
        B = []
        for L in range(c.out_l(self.layer) + 1):
            coefficients = {}
            for degree in range(1, c.correlation[self.layer] + 1):
                coupling = constants["coupling"][f"l{L}_nu{degree}"]
                rows = 1 if c.agnostic_product else len(c.elements)
                shape = (rows, coupling.shape[1], c.channels)
                kernel = self.param(f"l{L}_nu{degree}", nn.initializers.normal(1 / shape[1]), shape)
                kernel = kernel if c.agnostic_product else kernel[element]
                coefficients[degree] = jnp.einsum("tp,npf->ntf", coupling, kernel)
            B.append(self.contract(coefficients, A, c.harmonics_l, L))
        h = TensorLinear(c.channels, name="linear")(B)
        if skipped is not None:
            h = [x + skipped[l] if l < len(skipped) else x for l, x in enumerate(h)]
        return h


class MACE(Network):
    """Maps a graph to the energy (eV, without reference energies) of each atom."""

    config: MACEConfig
    products: Products = Products(messages, symmetric.contract)

    @property
    def cutoffs(self) -> Cutoffs:
        return Cutoffs(self.config.cutoff)

    @property
    def reach(self) -> Reach:
        return Reach(len(self.config.blocks))

    @nn.compact
    def __call__(self, graph: CrystalGraph) -> dict[str, Float[Array, " atoms"]]:
        c, (message, contract) = self.config, self.products
        constants = self._constants()
        element = jnp.asarray(_places(c.elements))[graph.species]  # species are the same in every cell
        vectors = bond_vectors(graph)
        r = safe.norm(vectors)
        harmonics = symmetric.spherical_harmonics(safe.unit(vectors, r), c.harmonics_l)
        radius = None
        if c.agnesi or c.soft:
            radii = constants["covalent_radii"][graph.numbers]
            radius = (radii[graph.first] + radii[graph.second]) / 2

        kernel = self.param("embedding", nn.initializers.normal(1.0), (len(c.elements), c.channels))
        h = [kernel[element][:, None] / c.fan_in**0.5]
        energy = (
            self._repulsion(graph, r, constants) if c.repulsion else jnp.zeros_like(r, shape=len(element))
        )
        for t in range(len(c.blocks)):
            kind = NonLinearInteraction if c.blocks[t] == NONLINEAR else Interaction
            A, skipped = kind(c, t, message, name=f"interaction_{t}")(
                graph, h, r, radius, harmonics, element, constants
            )
            h = Product(c, t, contract, name=f"product_{t}")(A, skipped, element, constants)
            scalars = h[0][:, 0]
            if 0 < t == len(c.blocks) - 1:
                energy = energy + Readout(c, name=f"readout_{t}")(scalars)
            else:  # eq. (13): linear except in the last layer
                kernel = self.param(f"readout_{t}", nn.initializers.normal(1.0), (c.channels, 1))
                energy = energy + scalars @ kernel[:, 0] / c.channels**0.5
        energy = energy * constants["scale"] + constants["shift"]
        return {"site_energies": jnp.where(graph.is_atom, energy, 0.0)}

    def _constants(self):
        """Constants that a published file sets and training does not change."""
        c, kept = self.config, {}

        def keep(name, value):
            kept[name] = self.variable("constants", name, lambda: jnp.asarray(value, float)).value

        keep("bessel_frequencies", np.pi / c.cutoff * np.arange(1, c.radial + 1))  # 1/Å
        keep("bessel_prefactor", (2 / c.cutoff) ** 0.5)
        if c.agnesi:
            keep("agnesi", (1.0805, 0.9183, 4.5791))  # a, q, p
        if c.soft:
            keep("soft", 4.0)
        if c.agnesi or c.soft or c.repulsion:
            keep("covalent_radii", covalent_radii)  # Å, by atomic number
        if c.repulsion:
            keep("zbl_coefficients", (0.1818, 0.5099, 0.2802, 0.02817))
            keep("zbl_length", (0.300, 0.4543))  # exponent of Z, prefactor in Bohr radii
        keep("scale", 1.0)
        keep("shift", 0.0)  # eV
        kept["coupling"] = Couplings(c, name="coupling")()
        return kept

    def _repulsion(self, graph: CrystalGraph, r, constants):
        """The Ziegler-Biersack-Littmark energy of each atom: half the energies of its bonds."""
        exponent, prefactor = constants["zbl_length"]
        radii = constants["covalent_radii"][graph.numbers]
        charges = jnp.maximum(graph.numbers, 1).astype(r.dtype)
        powers = charges**exponent
        i, j = graph.first, graph.second
        length = prefactor * BOHR / (powers[i] + powers[j])
        decays = jnp.exp(-jnp.asarray(ZBL_DECAYS, r.dtype)[None] * (r / length)[:, None])
        screening = decays @ constants["zbl_coefficients"]
        envelope = polynomial_envelope(r, radii[i] + radii[j], self.config.envelope)
        energy = safe.divide(E2 / 2 * charges[i] * charges[j] * screening * envelope, r)
        ends = jnp.concatenate([i, j])
        images = jnp.concatenate([jnp.zeros_like(graph.images), graph.images])
        return scatter_add(jnp.concatenate([energy, energy]), ends, len(radii), images)


class Couplings(nn.Module):
    """The symmetric couplings of eq. (10), for each L and degree, shared by all layers; see `symmetric`."""

    config: MACEConfig

    @nn.compact
    def __call__(self) -> dict[str, Float[Array, "terms paths"]]:
        c, found = self.config, {}
        for k, (L, degree) in enumerate(c.couplings()):
            count = c.paths[k] if c.paths else None
            initial = partial(symmetric.initial_coupling, c.harmonics_l, L, degree, count)
            name = f"l{L}_nu{degree}"
            made = self.variable("constants", name, lambda initial=initial: jnp.asarray(initial(), float))
            found[name] = made.value
        return found


class Readout(nn.Module):
    """The readout of the last layer, eq. (13): a network with one hidden layer."""

    config: MACEConfig

    @nn.compact
    def __call__(self, h: Float[Array, "atoms f"]) -> Float[Array, " atoms"]:
        c, normal = self.config, nn.initializers.normal(1.0)
        hidden = self.param("hidden", normal, (c.channels, c.readout))
        out = self.param("out", normal, (c.readout, 1))
        y = c.activation_scale * silu(h @ (hidden / c.channels**0.5))
        return y @ out[:, 0] / c.readout**0.5


def _places(elements: tuple[int, ...]) -> np.ndarray:
    """The index of each species in `elements`; 0 for padding."""
    places = np.zeros(max(ELEMENTS, *elements) + 1, np.int32)
    places[list(elements)] = np.arange(len(elements))
    return places
