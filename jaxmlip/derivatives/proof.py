"""Proof that lattice waves through external energy functions have the phases of their cells.

The models of this library make each fetch from another cell by `jaxmlip.crystals.fetch`. In an energy
function over a jraph.GraphsTuple those fetches are found by tracing, and there may be other paths from cell
to cell: a sum over all atoms that is sent back to each, or triplets listed inside the function. So the
response to a wave is compared with that of a supercell that the wave fits, in which every atom is explicit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np

from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import CrystalGraph
from jaxmlip.crystals.symmetry import Pairs
from jaxmlip.derivatives.gradients import hvp
from jaxmlip.models.function import EnergyFunction

CELLS = 5  # of the supercell: with five, a wave and its opposite differ along each direction
RATTLE = 0.02  # Å; breaks symmetry, which could hide a term
# For each proved potential, the sizes of graphs (atoms, bonds) in which all fetches are known.
_PROVED: WeakKeyDictionary[Any, set[tuple[int, int]]] = WeakKeyDictionary()


def prove_waves(
    potential: Any, graph: CrystalGraph, respond: Callable[[CrystalGraph, np.ndarray, Pairs], np.ndarray]
) -> None:
    """Raises ValueError unless waves through the energy of `potential` have the phases of their cells.

    The proof is made once for each potential, on the first crystal, and only if the model is an external
    energy function; a network says itself whether it has them. `graph` is that of one crystal, without
    padding; `respond(graph, q_points, pairs)` gives the responses to waves, (pairs, 3N).
    """
    if potential.model.fetches_are_known or not graph.periodic.any():
        return
    instead = "Use phonons.force_constants of a supercell."
    if not isinstance(potential.model, EnergyFunction):
        raise ValueError(
            f"no wave can be sent through {potential.name}: its energy is that of the mean over all atoms, "
            "which couples atoms however far apart they are. " + instead
        )
    size, sizes = (len(graph.species), len(graph.first)), _PROVED.get(potential, set())
    if size in sizes:
        return
    refused = f"no wave can be sent through the energy function {potential.model.config.function}: "
    with potential.precision():
        unknown = potential.model.unknown_fetch(potential.params, graph)
    if unknown:
        raise ValueError(
            f"{refused}its senders meet the operation {unknown!r}; needed x[senders] and "
            "x.at[senders].add(y) (or segment_sum), which say from which cell they fetch. " + instead
        )
    if not sizes:
        found, wanted = _both(potential, graph, respond)
        error, scale = np.abs(found - wanted).max(), np.abs(wanted).max()
        if not error <= np.finfo(potential.dtype).eps ** 0.5 * scale:
            raise ValueError(
                f"{refused}in a supercell of {CELLS} cells of this crystal of {size[0]} atoms its response "
                f"differs by {error:.3g} of {scale:.3g} eV/Å². Something in it passes from cell to cell "
                "other than from senders to receivers, such as a mean over all atoms that is given to each. "
                f"{instead}"
            )
        if scale == 0:  # atoms that do not interact prove nothing
            return
    _PROVED[potential] = sizes | {size}


def _both(potential, graph: CrystalGraph, respond) -> tuple[np.ndarray, np.ndarray]:
    """Three columns of D(q), (3, 3N), from waves in one cell, and from displacements in a supercell."""
    atoms, dtype = len(graph.species), np.dtype(potential.dtype)
    noise = RATTLE * np.random.default_rng(0).normal(size=(atoms, 3))
    moved = graph.replace(positions=graph.positions + noise)
    # The same three coordinates in each cell, with the phase of the cell.
    coordinates = np.array([3 * atom + x for x, atom in enumerate((0, atoms // 2, atoms - 1))])
    packed = batching.pack([supercell(moved)], None, dtype)
    waves = np.zeros((3, *packed.positions.shape), complex)
    for wave, k in zip(waves, coordinates, strict=True):
        wave[np.arange(CELLS) * atoms + k // 3, k % 3] = np.exp(2j * np.pi * np.arange(CELLS) / CELLS)
    with potential.precision():
        product = partial(_product, potential.energy_fn, potential.arrays, packed)
        parts = [[np.asarray(product(x.astype(dtype))) for x in xs] for xs in (waves.real, waves.imag)]
    real, imaginary = (np.array(part)[:, :atoms].reshape(3, -1) for part in parts)
    found = respond(
        moved, wave_of_cells(graph.periodic[0])[None] / CELLS, Pairs(np.zeros(3, int), coordinates)
    )
    return found, real + 1j * imaginary


def wave_of_cells(periodic: np.ndarray) -> np.ndarray:
    """Whole numbers w: cell R of the lattice is cell number w·R, modulo CELLS, of the supercell."""
    *others, last = np.flatnonzero(periodic)
    w = np.zeros(3, int)
    w[last] = 1
    w[others] = -np.arange(1, len(others) + 1)
    return w


def supercell(graph: CrystalGraph) -> CrystalGraph:
    """A supercell of a crystal without angles, along the last of the lattice vectors that repeat, z.

    Its own vectors are a - (w·a) z for each vector a before z, and CELLS z.
    """
    atoms, w = len(graph.species), wave_of_cells(graph.periodic[0])
    last = np.flatnonzero(graph.periodic[0])[-1]
    matrix = np.eye(3, dtype=int)
    matrix[:, last] -= w
    matrix[last, last] = CELLS
    cells = np.arange(CELLS)[:, None]
    shifts = np.rint(graph.shifts).astype(int)
    beyond, cell = np.divmod(cells + shifts @ w, CELLS)  # (cells, bonds): of the second atom
    shifts = np.repeat(shifts[None], CELLS, axis=0)
    shifts[..., last] = beyond
    positions = graph.positions + cells[..., None] * graph.cell[0, last]
    return CrystalGraph(
        positions=positions.reshape(-1, 3),
        species=np.tile(graph.species, CELLS),
        cell=(matrix @ graph.cell[0])[None],
        periodic=graph.periodic,
        crystal=np.tile(graph.crystal, CELLS),
        first=(graph.first + atoms * cells).ravel(),
        second=(graph.second + atoms * cell).ravel(),
        shifts=shifts.reshape(-1, 3).astype(float),
        angle_from=graph.angle_from[:0],
        angle_to=graph.angle_to[:0],
        short=0,
    )


@partial(jax.jit, static_argnames="energy")
def _product(energy, params, graph, v):
    return hvp(partial(energy, params), graph, v)
