"""A network that compiles in a second, in the place of M3GNet, for claims that no network makes truer.

It has what networks of this library have: features of elements, messages along bonds, a readout, magnetic
moments, and graphs with angles, which it does not use. Run as a script it is `jaxmlip` with this network, or
the process of one run of a sweep:

python tests/quick_network.py COMMAND …, or quick_network.py ID.yaml …
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import shared_shapes  # noqa: F401, also in processes that import no more than this

from jaxmlip.crystals.fetch import gather, scatter_add
from jaxmlip.crystals.graph import Cutoffs, bond_vectors
from jaxmlip.crystals.reach import Reach
from jaxmlip.models.layers import Linear
from jaxmlip.models.network import Network
from jaxmlip.potential import ARCHITECTURES, Potential, random_potential

PLAYED = "m3gnet"  # configurations know no other names than those of architectures
WORKER = (sys.executable, str(Path(__file__).absolute()))  # of a sweep


@dataclass(frozen=True)
class QuickConfig:
    features: int = 4
    bond_cutoff: float = 3.5  # Å
    angle_cutoff: float = 2.6  # Å
    elements: int = 94


class Quick(Network):
    """E_i = W (u + u² / 5) + b, u = v_i + Σ_j v_j ∘ B f(r_ij), where f are powers of 1 - (r / cutoff)².

    The square makes it an energy of three atoms, not of pairs.
    """

    config: QuickConfig

    @property
    def cutoffs(self) -> Cutoffs:
        return Cutoffs(self.config.bond_cutoff, self.config.angle_cutoff)

    @property
    def reach(self) -> Reach:
        return Reach(1)

    @nn.compact
    def __call__(self, graph):
        c = self.config
        square = jnp.sum(bond_vectors(graph) ** 2, axis=1)
        near = jnp.maximum(1 - square / c.bond_cutoff**2, 0.0)[:, None]
        of_bond = Linear(c.features, bias=False, name="bond")(jnp.concatenate([near**3, near**5], axis=1))
        table = self.param("elements", nn.initializers.normal(1.0), (c.elements, c.features))
        v = table[jnp.maximum(graph.species - 1, 0)]
        i, j, far, n = graph.first, graph.second, graph.images, len(v)
        # Features of elements are the same in every cell, so they are fetched from any.
        v = v + scatter_add(of_bond * gather(v, j), i, n) + scatter_add(of_bond * gather(v, i), j, n, far)
        v = v + 0.2 * v**2
        energy, magmom = Linear(1, name="readout")(v)[:, 0], jnp.abs(Linear(1, name="magmom")(v))[:, 0]
        return {
            "site_energies": jnp.where(graph.is_atom, energy, 0.0),
            "magmoms": jnp.where(graph.is_atom, magmom, 0.0),
        }


ARCHITECTURES["quick"] = (Quick, QuickConfig)  # so that its potentials can be saved and loaded


def play(patch) -> None:
    """Lets it be M3GNet for as long as `patch`, a pytest.MonkeyPatch, holds."""
    patch.setitem(ARCHITECTURES, PLAYED, (Quick, QuickConfig))


@contextmanager
def played() -> Iterator[None]:
    real = ARCHITECTURES[PLAYED]
    ARCHITECTURES[PLAYED] = (Quick, QuickConfig)
    try:
        yield
    finally:
        ARCHITECTURES[PLAYED] = real


def potential(config: QuickConfig = QuickConfig(), **options) -> Potential:
    """One with random parameters; `options` as for `random_potential`."""
    return random_potential(config, **options)


if __name__ == "__main__":
    from jaxmlip.cli import main
    from jaxmlip.training.sweeps import backends

    backends.WORKER = WORKER
    with played():
        (backends.main if sys.argv[1].endswith(".yaml") else main)(sys.argv[1:])
