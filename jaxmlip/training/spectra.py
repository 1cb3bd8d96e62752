"""Frequencies as functions of the parameters of a potential, so that they can be labels.

D(q) of a primitive cell comes from waves through the linearised gradient (`derivatives.linear_map`), at any q
and without a supercell. All of it is differentiable in the parameters, in forward and in reverse: the
gradient of a loss on frequencies costs a few times D(q) itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jaxtyping import Bool, Complex, Float, Int

from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import CrystalGraph
from jaxmlip.derivatives import linear_map
from jaxmlip.potential import Potential
from jaxmlip.system.arrays import Array

Energy = Callable[[Any, CrystalGraph], Float[Array, " crystals"]]


@flax.struct.dataclass
class PrimitiveCells:
    """Primitive cells side by side in one graph. Make them with `primitive_cells`."""

    graph: CrystalGraph
    first: Int[Array, " crystals"]  # the number of the first atom of each
    present: Bool[Array, "crystals branches"]  # False beyond the 3N branches of a smaller cell
    root_mass: Float[Array, "crystals branches"]  # √u of the atom of each coordinate; 1 where there is none


def primitive_cells(
    potential: Potential, crystals: Sequence[Atoms], shape: batching.BatchShape | None = None
) -> PrimitiveCells:
    """`crystals` with their masses, in the precision of the potential.

    Raises ValueError if they do not fit into `shape`, or as `Potential.graph` does.
    """
    graphs = potential.graphs(crystals)
    dtype = np.dtype(potential.dtype)
    graph = batching.pack(graphs, shape, dtype)
    sizes = np.zeros(len(graph.cell), int)
    sizes[: len(graphs)] = [3 * len(g.species) for g in graphs]
    present = np.arange(sizes.max()) < sizes[:, None]
    root_mass = np.ones(present.shape, dtype)
    for row, atoms in zip(root_mass, crystals, strict=False):
        row[: 3 * len(atoms)] = np.repeat(np.sqrt(atoms.get_masses()), 3)
    first = np.cumsum(sizes // 3) - sizes // 3
    return PrimitiveCells(graph, first, present, root_mass)


def dynamical_matrices(
    energy: Energy, params: Any, cells: PrimitiveCells, q_points: Float[Array, "crystals waves 3"]
) -> Complex[Array, "crystals waves branches branches"]:
    """D(q) / √(m m'), in eV/(Å² u) with the phases of cells, of each crystal at its own wave vectors.

    Rows and columns beyond the branches of a crystal are zero. q is in reciprocal lattice units. `energy` is
    `potential.energy_fn`, `params` are arrays as `potential.arrays` has them.
    """
    crystals, waves = q_points.shape[:2]
    most = cells.present.shape[1]
    r, eps = linear_map.point(cells.graph)
    coordinate = 3 * cells.first[:, None] + jnp.arange(most)[None]
    # One column for each wave and coordinate, with a wave in each crystal; a number beyond the last is none.
    index = jnp.where(cells.present, coordinate, r.size)
    index = jnp.broadcast_to(index.T, (waves, most, crystals)).reshape(-1, crystals)
    q = jnp.repeat(q_points.swapaxes(0, 1), most, axis=0)

    _, tangent_map = linear_map.linearise(energy, params, cells.graph)
    found = linear_map.waves(tangent_map, r, eps, q, index)  # atoms 2 columns 3
    places = jnp.minimum(cells.first[:, None] + jnp.arange(most // 3)[None], len(r) - 1)
    own = found[places].reshape(crystals, most // 3, 2, waves, most, 3)  # crystal atom part wave column x
    own = own.transpose(2, 0, 3, 1, 5, 4).reshape(2, crystals, waves, most, most)
    both = cells.present[:, :, None] & cells.present[:, None, :]
    weight = jnp.where(both, 1 / (cells.root_mass[:, :, None] * cells.root_mass[:, None, :]), 0)
    D = jax.lax.complex(*(own * weight[None, :, None]))
    return (D + D.conj().mT) / 2


def squared_frequencies(
    energy: Energy, params: Any, cells: PrimitiveCells, q_points: Float[Array, "crystals waves 3"]
) -> Float[Array, "crystals waves branches"]:
    """ω², in eV/(Å² u), ascending; zero beyond the branches of a crystal, where `cells.present` is False.

    Its derivatives by the parameters are those of a sum over degenerate branches: a loss must treat branches
    that are degenerate by symmetry alike. See `dynamical_matrices` for the arguments.
    """
    D = dynamical_matrices(energy, params, cells, q_points)
    # What is no branch comes after all others.
    above = 1 + jax.lax.stop_gradient(jnp.abs(D).sum(axis=-1).max(axis=-1))
    absent = jnp.where(cells.present[:, None], 0, above[..., None]).astype(D.dtype)
    one = jnp.eye(D.shape[-1], dtype=D.dtype)[None, None]
    squares = jnp.linalg.eigvalsh(D + absent[..., None] * one)
    return jnp.where(cells.present[:, None], squares, 0)
