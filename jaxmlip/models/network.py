"""The common part of the networks of this library: energies of atoms, which add up to those of crystals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlip.crystals.graph import CrystalGraph, sum_over_crystals


class Network(nn.Module):
    """A network from a graph to a dictionary of quantities of each atom, among them site_energies (eV)."""

    # Every fetch from another cell is made by `crystals.fetch`, as lattice waves need.
    # A network with a path of another kind says so by a property.
    fetches_are_known: ClassVar[bool] = True

    @nn.nowrap
    def identity(self, params: Mapping[str, Any]) -> str:
        """A text that identifies this network; parameters do not enter."""
        return repr(self.config)

    @nn.nowrap
    def energies(
        self, params: Mapping[str, Any], graph: CrystalGraph
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The energy of each crystal (eV), and the quantities of each atom, site_energies among them.

        `params` holds "network", "reference_energies" by species, and may hold "constants" and "scale".
        """
        variables = {"params": params["network"], "constants": params.get("constants", {})}
        sites = self.apply(variables, graph)
        reference = params["reference_energies"][graph.species]
        total = params.get("scale", 1.0) * sites["site_energies"] + jnp.where(graph.is_atom, reference, 0.0)
        return sum_over_crystals(total, graph), {**sites, "site_energies": total}
