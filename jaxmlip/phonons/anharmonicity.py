"""How far third-order force constants of a model are from those of DFT, element by element.

As for the second order, the slope of the model's elements on DFT's says how much too small they are, and the
scatter about it how much of that could be regression to the mean: see `jaxmlip.derivatives.slopes`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxmlip.derivatives.slopes import Slope, third_order_slope
from jaxmlip.phonons.cells import Cells
from jaxmlip.phonons.third import ThirdOrder

KINDS = ("one atom", "neighbours", "farther")
SHELL = 1.15  # neighbours are within so many times the nearest distance
SAME_SITE = 0.2  # Å; how far an atom of one cell may be from its place in the other


@dataclass(frozen=True)
class Anharmonicity:
    """Third-order constants of a model (y) against those of DFT (x), eV/Å³."""

    all: Slope
    # Without Φ(i, i, i), which are the largest, and minus the sum of others.
    without_self: Slope
    # Φ(i, i, i); of atoms that are all neighbours of one another, or the same; and of others. Kinds of which
    # the cell has none, or that are zero in DFT, are not there.
    kinds: dict[str, Slope]

    def __str__(self) -> str:
        lines = [f"{'':16}{'slope':>8}{'inverse':>9}{'r²':>7}{'shrinkage':>11}{'error / norm':>14}"]
        for name, s in {"all": self.all, "without self": self.without_self, **self.kinds}.items():
            share = f"{round(s.shrinkage_share, 2) + 0.0:.2f}" if s.slope < 1 else "-"  # no -0.00
            lines.append(
                f"{name:16}{s.slope:8.3f}{s.inverse:9.3f}{s.r_squared:7.3f}{share:>11}{s.relative_error:14.3f}"
            )
        return "\n".join(lines)


def anharmonicity(model: ThirdOrder, dft: ThirdOrder) -> Anharmonicity:
    """The third order of a model against DFT's, in one supercell.

    The lattice constants may differ, the atoms and their order may not. `print` shows slopes, what of them
    could be shrinkage, and errors.

    Raises ValueError if the atoms are not the same, or DFT's constants are all zero.
    """
    _check_same_atoms(model.cells, dft.cells)
    every = triples(dft.cells)

    def slope(chosen: np.ndarray | None = None) -> Slope:
        return third_order_slope(model.fc3, dft.fc3, chosen)

    return Anharmonicity(
        all=slope(),
        without_self=slope(~every["one atom"]),
        kinds={name: slope(some) for name, some in every.items() if np.any(dft.fc3[some])},
    )


def triples(cells: Cells) -> dict[str, np.ndarray]:
    """Masks (n, N, N) of three atoms by kind: one atom, neighbours of one another, or farther apart."""
    N, (atom, _), distance = len(cells.supercell), cells.places, cells.images.distance
    between = distance[atom[:, None], cells.shifts[cells.home]]  # (N, N), of any two atoms
    reach = np.maximum(np.maximum(distance[:, :, None], distance[:, None]), between)
    own = np.arange(N) == cells.p2s[:, None]
    nearest = np.where(own, np.inf, distance).min(axis=1)
    one = own[:, :, None] & own[:, None]
    near = ~one & (reach < SHELL * nearest[:, None, None])
    return dict(zip(KINDS, (one, near, ~one & ~near), strict=True))


def _check_same_atoms(a: Cells, b: Cells) -> None:
    """Raises ValueError unless both supercells have the same atoms, in the same order and places."""
    if len(a.primitive) != len(b.primitive) or not np.array_equal(a.supercell.numbers, b.supercell.numbers):
        raise ValueError(
            f"found constants of {_described(a)} from the model and of {_described(b)} from DFT, needed the "
            "same atoms in the same order: compute the model's in the cell and the supercell of DFT."
        )
    places = [c.supercell.positions @ np.linalg.inv(c.supercell.cell.array) for c in (a, b)]
    off = np.linalg.norm((places[1] - places[0]) @ b.supercell.cell.array, axis=1).max()
    if off > SAME_SITE or not np.array_equal(a.p2s, b.p2s):
        raise ValueError(
            f"found supercells of {_described(a)} whose atoms are up to {off:.3g} Å from one another's "
            "places, needed those of one crystal: compute the model's in the cell and the supercell of DFT."
        )


def _described(cells: Cells) -> str:
    return f"{cells.primitive.get_chemical_formula()} in {cells.supercell.get_chemical_formula()}"
