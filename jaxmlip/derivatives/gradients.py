"""Forces, stress and Hessian-vector products of any energy function.

An energy function takes a graph and returns the energy (eV) of each crystal. Nothing here depends on a
model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxmlip.crystals.atoms import FLAT
from jaxmlip.crystals.graph import CrystalGraph, directions
from jaxmlip.system.arrays import Array

EnergyFn = Callable[[CrystalGraph], Float[Array, " crystals"]]  # eV per crystal


@dataclass(frozen=True)
class Along:
    """The slope of an energy function along a displacement w, dE(r + s w)/ds, in eV times the unit of w / Å.

    It is an energy function as well, of the arrays (params, w) and a graph, w (atoms, 3). Its derivatives are
    those of the energy, one order higher; all displacements share the compiled programs.
    """

    energy: Callable[[Any, CrystalGraph], Float[Array, " crystals"]]

    def __call__(self, arrays: tuple[Any, Array], graph: CrystalGraph) -> Float[Array, " crystals"]:
        params, w = arrays

        def moved(r):
            return self.energy(params, graph.replace(positions=r))

        return jax.jvp(moved, (jnp.asarray(graph.positions),), (w,))[1]


def strain(graph: CrystalGraph, eps: Float[Array, "crystals 3 3"]) -> CrystalGraph:
    """Every crystal deformed by 1 + ε (ε symmetrised); cell and positions move together."""
    eps = (eps + eps.mT) / 2
    moved = jnp.einsum("ax,axy->ay", graph.positions, eps[graph.crystal])
    return graph.replace(positions=graph.positions + moved, cell=graph.cell + graph.cell @ eps)


def energy_forces_stress(energy: EnergyFn, graph: CrystalGraph):
    """E (eV) of each crystal, F = -∂E/∂r (eV/Å) of each atom, and σ = ∂E/∂ε / V (eV/Å³) of each crystal.

    Stress has ASE's sign: positive in tension. See `stress` for crystals that do not repeat everywhere.
    """
    e, forces, stress, _ = with_derivatives(lambda g: (energy(g), None), graph)
    return e, forces, stress


def with_derivatives(
    energy: Callable[[CrystalGraph], tuple[Float[Array, " crystals"], Any]], graph: CrystalGraph
):
    """Like `energy_forces_stress`, for a function that also returns something else, which comes last."""

    def total(r, eps):
        e, other = energy(strain(graph.replace(positions=r), eps))
        return e.sum(), (e, other)

    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
    (dE_dr, dE_deps), (e, other) = gradient(graph.positions, jnp.zeros_like(graph.cell))
    return e, -dE_dr, stress(dE_deps, graph), other


def stress(dE_deps: Float[Array, "crystals 3 3"], graph: CrystalGraph) -> Float[Array, "crystals 3 3"]:
    """σ = ∂E/∂ε / V (eV/Å³) along the directions in which each crystal repeats; zero along the others.

    V is the volume of the box, so that a slab's stress is that of a film as high as its box. It is zero if
    the box has no volume.
    """
    volume = jnp.abs(jnp.linalg.det(graph.cell))[:, None, None]
    along = directions(graph.cell, graph.periodic)
    per_volume = jnp.where(volume > FLAT, dE_deps / jnp.where(volume > FLAT, volume, 1.0), 0.0)
    return along @ per_volume @ along


def gradient(energy: EnergyFn, graph: CrystalGraph) -> Callable[[Array], Array]:
    """The function r -> ∂E/∂r (eV/Å) for positions of the shape of `graph.positions`."""
    return jax.grad(lambda r: energy(graph.replace(positions=r)).sum())


def hvp(energy: EnergyFn, graph: CrystalGraph, v: Float[Array, "atoms 3"]) -> Float[Array, "atoms 3"]:
    """H v (eV/Å² times the unit of v), forward over reverse; H itself is never formed."""
    return jax.jvp(gradient(energy, graph), (jnp.asarray(graph.positions),), (v,))[1]
