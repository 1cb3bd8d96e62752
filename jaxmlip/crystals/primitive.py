"""Primitive cells side by side, for the dynamical matrices of several crystals in one graph."""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import CrystalGraph
from jaxmlip.system.arrays import Array


@flax.struct.dataclass
class PrimitiveCells:
    """Primitive cells side by side in one graph. Make them with `primitive_cells`."""

    graph: CrystalGraph
    first: Int[Array, " crystals"]  # the number of the first atom of each
    present: Bool[Array, "crystals branches"]  # False beyond the 3N branches of a smaller cell
    root_mass: Float[Array, "crystals branches"]  # √u of the atom of each coordinate; 1 where there is none


def primitive_cells(
    graphs: Sequence[CrystalGraph],
    masses: Sequence[Float[np.ndarray, " _"]],
    shape: batching.BatchShape | None = None,
    branches: int | None = None,
    dtype=np.float64,
) -> PrimitiveCells:
    """Cells with the `masses` (u) of their atoms, padded to `shape` and to so many `branches`.

    By default both are as small as these cells allow. Raises ValueError if the cells do not fit.
    """
    shape = batching.exact_shape(graphs) if shape is None else shape
    sizes = np.zeros(shape.crystals, np.int32)
    sizes[: len(graphs)] = [3 * len(g.species) for g in graphs]
    most = int(sizes.max()) if branches is None else branches
    if sizes.max() > most:
        raise ValueError(f"found a cell of {sizes.max() // 3} atoms, needed at most {most} branches.")
    present = np.arange(most) < sizes[:, None]
    root_mass = np.ones(present.shape, dtype)
    for row, own in zip(root_mass, masses, strict=False):
        row[: 3 * len(own)] = np.repeat(np.sqrt(own), 3)
    first = np.cumsum(sizes // 3, dtype=np.int32) - sizes // 3
    return PrimitiveCells(batching.pack(graphs, shape, dtype), first, present, root_mass)
