"""The symmetry-inequivalent orderings of atoms on the sites of a crystal.

The superlattices are the Hermite normal forms of a volume, and the orderings in each are compared through the
images of the sites under translations and rotations of the crystal: G. L. W. Hart and R. W. Forcade, Phys.
Rev. B 77, 224115 (2008). All numbers are integers, so only the space group of the parent depends on a
tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from jaxmlip.crystals.atoms import as_atoms
from jaxmlip.crystals.symmetry import SpaceGroup, space_group

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

MOST = 2**22  # labellings of one superlattice at most


def orderings(
    parent: Atoms | Structure, replace: str, by: Sequence[str], cells: int
) -> Iterator[tuple[Atoms, tuple[int, ...]]]:
    """The orderings of the elements `by` on all sites of the element `replace`, in cells of `cells` parents.

    Yields each inequivalent ordering, with the number of its sites that have each element. Orderings that
    repeat in a smaller cell are left out: they belong to that cell. Orderings that differ by exchange of two
    elements count as different. Atoms are on the sites of the parent, in the cell of the Hermite normal form.

    Raises ValueError if the parent has no such site, or there are too many labellings to look at.
    """
    parent = as_atoms(parent)
    sites = np.flatnonzero(parent.symbols == replace)
    if cells < 1:
        raise ValueError(f"found cells={cells}, needed at least one.")
    if len(sites) == 0:
        raise ValueError(f"{parent.get_chemical_formula()} has no {replace} to replace.")
    count = len(by) ** (cells * len(sites))
    if count > MOST:
        raise ValueError(
            f"{cells} cells of {parent.get_chemical_formula()} have {count:.1e} labellings, needed at most "
            f"{MOST:.1e}. Take fewer cells or elements."
        )
    group = space_group(parent)
    labels = np.array(list(product(range(len(by)), repeat=cells * len(sites))), np.int8)
    for H in superlattices(group.rotations, cells):
        moved = _permutations(group, sites, H)
        for label in labels[_first_of_each_kind(labels, moved, len(by), cells)]:
            yield (
                _ordered(parent, sites, H, [by[k] for k in label]),
                tuple(np.bincount(label, minlength=len(by))),
            )


def superlattices(rotations: np.ndarray, cells: int) -> list[np.ndarray]:
    """Hermite normal forms (rows are lattice vectors) of superlattices that no rotation maps onto another.

    rotations: (operations, 3, 3), whole numbers, acting on fractional coordinates as columns.
    """
    kept: list[np.ndarray] = []
    for H in _hermite(cells):
        # The rows of H R^T span the rotated lattice: that of K if they are integer combinations of its rows.
        turned = H @ rotations.swapaxes(1, 2)
        if not any(_whole(turned @ np.linalg.inv(K)).any() for K in kept):
            kept.append(H)
    return kept


def _hermite(cells: int) -> Iterator[np.ndarray]:
    for a in (n for n in range(1, cells + 1) if cells % n == 0):
        for c in (n for n in range(1, cells // a + 1) if (cells // a) % n == 0):
            f = cells // a // c
            for b, d, e in product(range(c), range(f), range(f)):
                yield np.array([[a, b, d], [0, c, e], [0, 0, f]])


def _whole(x: np.ndarray) -> np.ndarray:
    return np.abs(x - np.rint(x)).max(axis=(-2, -1)) < 1e-6


def _places(H: np.ndarray) -> np.ndarray:
    """The cells of the parent in one cell of the superlattice, (cells, 3)."""
    return np.array(list(product(*map(range, np.diag(H)))))


def _place(cells: np.ndarray, H: np.ndarray) -> np.ndarray:
    """For each of the cells (..., 3), the index in `_places` of the cell that it is an image of."""
    x = np.array(cells)
    for k in range(3):  # rows of H are zero before the diagonal
        x = x - (x[..., k] // H[k, k])[..., None] * H[k]
    return np.ravel_multi_index(tuple(np.moveaxis(x, -1, 0)), tuple(np.diag(H)))


def _permutations(group: SpaceGroup, sites: np.ndarray, H: np.ndarray) -> np.ndarray:
    """Permutations of a superlattice's sites by symmetry, (permutations, sites), translations first."""
    places = _places(H)
    number = np.full(group.atom.shape[1], -1)
    number[sites] = np.arange(len(sites))
    keeping = _whole(H @ group.rotations.swapaxes(1, 2) @ np.linalg.inv(H))
    found = []
    for operation in group.only(keeping).operations():
        to = _place(places[:, None] @ operation.rotation.T + operation.cell[sites], H)  # (places, sites)
        for by in places:
            shifted = _place(places[to] + by, H)
            found.append((shifted * len(sites) + number[operation.atom[sites]]).ravel())
    still = [np.ravel(_place(places + by, H)[:, None] * len(sites) + np.arange(len(sites))) for by in places]
    return np.array(still + found)


def _first_of_each_kind(labels: np.ndarray, moved: np.ndarray, kinds: int, cells: int) -> np.ndarray:
    """Indices of labellings that are first among their images, and not their own image by a translation."""
    weight = kinds ** np.arange(labels.shape[1], dtype=np.int64)[::-1]
    value = labels @ weight
    first = np.ones(len(labels), bool)
    for k, to in enumerate(moved):
        image = labels @ weight[to]  # the label of site s moves to site to[s]
        first &= image >= value
        if 0 < k < cells:
            first &= image != value
    return np.flatnonzero(first)


def _ordered(parent: Atoms, sites: np.ndarray, H: np.ndarray, symbols: list[str]) -> Atoms:
    from ase import Atoms

    places = _places(H)
    positions = parent.positions[None] + (places @ parent.cell.array)[:, None]
    numbers = np.tile(parent.symbols, (len(places), 1)).astype(object)
    numbers[:, sites] = np.reshape(symbols, (len(places), len(sites)))
    return Atoms(list(numbers.ravel()), positions.reshape(-1, 3), cell=H @ parent.cell.array, pbc=True)
