"""Waves through energy functions of others: that they have the phases of their cells is proved, not believed.

The models of this library make each fetch from another cell by `jaxmlip.crystals.fetch`. In an energy
function over a jraph.GraphsTuple those fetches are found by tracing, and there may be other ways from cell to
cell: a sum over all atoms that goes back to each, triplets that are listed within. So the response to a wave
is compared with that of a supercell in which the wave fits, where every atom is there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import jax
import numpy as np

from jaxmlip.crystals import batching
from jaxmlip.crystals.symmetry import Pairs
from jaxmlip.derivatives.gradients import hvp

if TYPE_CHECKING:
    from ase import Atoms

    from jaxmlip.potential import Potential

CELLS = 5  # of the supercell: with five, a wave and its opposite differ along each direction
RATTLE = 0.02  # Å; no symmetry hides a term
# Of potentials that were proved, the sizes of graphs (atoms, bonds) in which all fetches are known.
_PROVED: WeakKeyDictionary[Potential, set[tuple[int, int]]] = WeakKeyDictionary()


def prove_waves(
    potential: Potential, atoms: Atoms, respond: Callable[[Atoms, np.ndarray, Pairs], np.ndarray]
) -> None:
    """Raises ValueError unless waves through the energy of `potential` have the phases of their cells.

    It is proved once for each potential, on the first crystal asked about, and only where the model is an
    energy function of others. `respond(atoms, q_points, pairs)` gives responses to waves, (pairs, 3N).
    """
    if potential.model.fetches_are_known or not atoms.pbc.any():
        return
    graph = potential.graph(atoms)
    size, sizes = (len(graph.species), len(graph.first)), _PROVED.get(potential, set())
    if size in sizes:
        return
    refused = f"no wave can be sent through the energy function {potential.model.config.function}: "
    instead = "Use phonons.force_constants of a supercell."
    with potential.precision():
        unknown = potential.model.unknown_fetch(potential.params, graph)
    if unknown:
        raise ValueError(
            f"{refused}its senders meet the operation {unknown!r}; needed x[senders] and "
            "x.at[senders].add(y) (or segment_sum), which say from which cell they fetch. " + instead
        )
    if not sizes:
        found, wanted = _both(potential, atoms, respond)
        error, scale = np.abs(found - wanted).max(), np.abs(wanted).max()
        if not error <= np.finfo(potential.dtype).eps ** 0.5 * scale:
            raise ValueError(
                f"{refused}in a supercell of {CELLS} cells of {atoms.get_chemical_formula()} it responds "
                f"otherwise, by {error:.3g} of {scale:.3g} eV/Å². Something in it goes from cell to cell by "
                "another way than from senders to receivers, such as a mean over all atoms that each of them "
                f"is told. {instead}"
            )
        if scale == 0:  # atoms beyond each other's reach say nothing
            return
    _PROVED[potential] = sizes | {size}


def _both(potential, atoms: Atoms, respond) -> tuple[np.ndarray, np.ndarray]:
    """Three columns of D(q), (3, 3N), by waves in one cell, and by displacements of a supercell's cells."""
    moved = atoms.copy()
    moved.positions += RATTLE * np.random.default_rng(0).normal(size=moved.positions.shape)
    # The supercell's vectors are a + c z for each vector a of the lattice but the last, z, and 5 z. A wave
    # that is e^{2πi/5} along z fits it where it is e^{-2πi c/5} along a.
    *others, last = np.flatnonzero(moved.pbc)
    matrix, q = np.eye(3, dtype=int), np.zeros(3)
    matrix[last, last], q[last] = CELLS, 1 / CELLS
    for c, other in enumerate(others, start=1):
        matrix[other, last], q[other] = c, -c / CELLS
    supercell = moved * (1, 1, 1)
    for k in range(1, CELLS):
        supercell += _shifted(moved, k * moved.cell.array[last])
    supercell.set_cell(matrix @ moved.cell.array)
    columns = np.array([3 * atom + x for x, atom in enumerate((0, len(moved) // 2, len(moved) - 1))])
    found = respond(moved, q[None], Pairs(np.zeros(3, int), columns))
    packed = batching.pack([potential.graph(supercell)], None, np.dtype(potential.dtype))
    waves = np.zeros((3, *packed.positions.shape), complex)
    for wave, column in zip(waves, columns, strict=True):
        places = np.arange(CELLS) * len(moved) + column // 3
        wave[places, column % 3] = np.exp(2j * np.pi * np.arange(CELLS) / CELLS)
    with potential.precision():
        product = partial(_product, potential.energy_fn, potential.arrays, packed)
        real, imaginary = (
            np.array([product(part.astype(potential.dtype)) for part in parts])
            for parts in (waves.real, waves.imag)
        )
    return found, (real + 1j * imaginary)[:, : len(moved)].reshape(3, -1)


def _shifted(atoms: Atoms, by: np.ndarray) -> Atoms:
    image = atoms.copy()
    image.positions += by
    return image


@partial(jax.jit, static_argnames="energy")
def _product(energy, params, graph, v):
    return hvp(partial(energy, params), graph, v)
