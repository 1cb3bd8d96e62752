"""D3(BJ): London dispersion between pairs of atoms, added to a network that has none.

S. Grimme, J. Antony, S. Ehrlich and H. Krieg, J. Chem. Phys. 132, 154104 (2010), with the damping of
S. Grimme, S. Ehrlich and L. Goerigk, J. Comput. Chem. 32, 1456 (2011):

    E = −½ Σ_ij [s6 C6_ij / (r⁶ + f⁶) + s8 C8_ij / (r⁸ + f⁸)],  C8 = 3 C6 √(Q_i Q_j),  f = a1 √(C8/C6) + a2

C6_ij is the mean of tabulated coefficients of reference molecules, weighted by how near the coordination
numbers of both atoms are to theirs. The energy is a function of positions as a network's is, so everything
derived from a potential holds it. There is no three-body term.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from ase.units import Bohr, Hartree
from jaxtyping import Float

from jaxmlip.crystals.fetch import gather, scatter_add
from jaxmlip.crystals.graph import CrystalGraph, Cutoffs, bond_vectors, sum_over_crystals
from jaxmlip.crystals.reach import Reach
from jaxmlip.models.network import Network
from jaxmlip.system.arrays import Array

STEEPNESS = 16.0  # k1 of the paper, of the count of neighbours
NEARNESS = 4.0  # k3 of the paper, of the weights of references
# The highest atomic number. The references of 2010 go on to Pu, but those from Fr on have been replaced,
# which changed energies by up to 70 % (L. Wittmann et al., Phys. Chem. Chem. Phys. 26, 21379 (2024)).
HIGHEST = 86
REFERENCES = 5  # of an element, at most
# Where sums end, as in Grimme's own program (s-dftd3), in Å.
PAIRS, NEIGHBOURS = 60 * Bohr, 40 * Bohr
# The shapes of D3's tables, by atomic number from 0 on, in atomic units.
TABLES = {
    "c6": (HIGHEST + 1, HIGHEST + 1, REFERENCES, REFERENCES),  # of two references
    "coordination": (HIGHEST + 1, REFERENCES),  # of each reference; -1: there is none
    "radius": (HIGHEST + 1,),  # covalent, times 4/3
    "moment": (HIGHEST + 1,),  # √Q, of ⟨r⁴⟩/⟨r²⟩
}


@dataclass(frozen=True)
class Damping:
    """Parameters of D3(BJ) that were fitted to a functional."""

    functional: str
    a1: float
    a2: float  # Bohr
    s8: float
    s6: float = 1.0


@dataclass(frozen=True)
class Dispersed:
    """A network and dispersion: a model as the network is, which has the parameters "dispersion" too."""

    network: Network
    damping: Damping

    @property
    def fetches_are_known(self) -> bool:
        """Whether every fetch from another cell is made by `crystals.fetch`, as lattice waves need."""
        return self.network.fetches_are_known

    @property
    def config(self) -> Any:
        """The hyperparameters of the network."""
        return self.network.config

    @property
    def cutoffs(self) -> Cutoffs:
        return self.network.cutoffs._replace(pairs=PAIRS)

    @property
    def reach(self) -> Reach | None:
        """An atom sees the neighbours of its neighbours, which its coordination counts."""
        of_network = self.network.reach
        return None if of_network is None else of_network._replace(hops=max(2, of_network.hops))

    def identity(self, params: Mapping[str, Any]) -> str:
        """A text that identifies this model; parameters do not enter."""
        return f"{self.network.identity(params)} {self.damping!r}"

    def energies(
        self, params: Mapping[str, Any], graph: CrystalGraph
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The energies of `Network.energies` and dispersion, which "scale" leaves alone."""
        energy, sites = self.network.energies(params, graph)
        added = site_energies(self.damping, params["dispersion"], graph)
        together = {**sites, "site_energies": sites["site_energies"] + added}
        return energy + sum_over_crystals(added, graph), together


def site_energies(
    damping: Damping, tables: Mapping[str, Array], graph: CrystalGraph
) -> Float[Array, " atoms"]:
    """The dispersion energy of each atom (eV), half of that of its pairs; `tables` are as in TABLES."""
    pairs = graph.by_pairs
    i, j, image, z = pairs.first, pairs.second, pairs.images, graph.numbers
    vectors = bond_vectors(pairs) / Bohr
    # Padding has no length: any other keeps its derivatives finite, and its coefficients are zero.
    square = jnp.sum(vectors**2, axis=1)
    square = jnp.where(square > 0, square, 1.0)

    weights = _weights(tables, z, _coordination(tables["radius"], pairs, jnp.sqrt(square)))
    between = tables["c6"][z[i], z[j]]
    of_first, of_second = gather(weights, i), gather(weights, j, image)
    c6 = jnp.sum(jnp.sum(between * of_first[:, :, None], axis=1) * of_second, axis=1)
    moments = tables["moment"][z]
    ratio = 3 * moments[i] * moments[j]  # C8 / C6
    f = damping.a1 * jnp.sqrt(ratio) + damping.a2
    of_pair = damping.s6 / (square**3 + f**6) + damping.s8 * ratio / (square**4 + f**8)
    half = -0.5 * Hartree * c6 * of_pair
    return scatter_add(half, i, len(z)) + scatter_add(half, j, len(z), image)


def _coordination(
    radius: Float[Array, " elements"], pairs: CrystalGraph, r: Float[Array, " pairs"]
) -> Float[Array, " atoms"]:
    """The number of neighbours of each atom, which counts bonded ones as 1 and far ones as almost nothing."""
    i, j, z = pairs.first, pairs.second, pairs.numbers
    bonded = radius[z[i]] + radius[z[j]]
    near = (bonded > 0) & (r < NEIGHBOURS / Bohr)
    count = jnp.where(near, jax.nn.sigmoid(STEEPNESS * (bonded / r - 1)), 0.0)
    return scatter_add(count, i, len(z)) + scatter_add(count, j, len(z), pairs.images)


def _weights(
    tables: Mapping[str, Array], z: Array, coordination: Float[Array, " atoms"]
) -> Float[Array, "atoms references"]:
    """The weights of the references of each atom; they add up to 1, also far from all of them."""
    known = tables["coordination"][z]
    # −(n − known)² without n², which is the same for all references: beside it their differences lose digits.
    apart = NEARNESS * known * (2 * coordination[:, None] - known)
    # Padding, as an element of Z = 0, has no reference at all, and no coefficients.
    there = (known >= 0) | (z == 0)[:, None]
    return jax.nn.softmax(jnp.where(there, apart, -jnp.inf), axis=1)
