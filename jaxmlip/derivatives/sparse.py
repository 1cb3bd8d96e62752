"""Sparse Hessians: columns of atoms that no atom sees together are computed as one sum.

If the energy of no atom depends on both atoms i and j, their block of the Hessian is zero; see
`jaxmlip.crystals.reach`. Columns that share no row in which both may be other than zero can be added before
they are computed, and told apart afterwards (Curtis, Powell and Reid, J. Inst. Math. Appl. 13, 117 (1974)).
That colours the atoms: any two of one colour are more than two blocks apart. A colour takes three sums, one
for each direction, so that their number depends on how many atoms a row holds and not on all atoms.

Colours are found by the greedy algorithm (Gebremedhin, Manne and Pothen, SIAM Review 47, 629 (2005)), first
with neighbours one after the other (reverse Cuthill-McKee), then with the colours found so far in other
orders, which never takes more of them (Culberson, 1992). Along a chain their number is close to the least
possible one, that of the atoms in a row. The symmetry of the Hessian could save half of them at most, by
substitutions in which errors add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import bsr_array, csr_array, vstack
from scipy.sparse.csgraph import reverse_cuthill_mckee

from jaxmlip.crystals.graph import CrystalGraph
from jaxmlip.crystals.reach import coupled, neighbours
from jaxmlip.derivatives.hessian import checked_columns
from jaxmlip.derivatives.memory_plan import MemoryPlan
from jaxmlip.derivatives.response import Differentiable, Response

ROUNDS = 12  # of the greedy algorithm
PROOFS = 4  # sums of random columns by which the zeros are proved
ATOMS_AT_ONCE = 1_000  # whose rows are told apart at once


@dataclass(frozen=True, eq=False)
class Colouring:
    """The columns of a sparse Hessian, and which of them are computed as one sum."""

    pairs: csr_array  # (atoms, atoms): True for pairs of atoms whose block may be other than zero
    colours: np.ndarray  # (atoms,): one for each atom of which a coordinate is wanted, -1 for others
    coordinates: np.ndarray  # numbers 3a + x of those that are wanted

    @property
    def atoms(self) -> int:
        """The number of atoms of the crystal."""
        return len(self.colours)

    @property
    def number(self) -> int:
        """The number of colours."""
        return int(self.colours.max(initial=-1)) + 1

    @cached_property
    def groups(self) -> np.ndarray:
        """The number of the sum that each coordinate belongs to (atoms, 3); -1 if it is not wanted."""
        wanted = np.zeros(3 * self.atoms, bool)
        wanted[self.coordinates] = True
        sums = 3 * self.colours[:, None] + np.arange(3)
        return np.where(wanted.reshape(-1, 3), sums, -1)

    @cached_property
    def sums(self) -> np.ndarray:
        """The numbers of all sums, ascending."""
        found = np.unique(self.groups)
        return found[found >= 0]

    @property
    def entries(self) -> int:
        """An upper bound on the number of elements that the Hessian stores."""
        return 9 * self.pairs.nnz

    def size(self, dtype: str) -> int:
        """Bytes of the sums and of the Hessian made of them, at their largest."""
        number, index = np.dtype(dtype).itemsize, 4 if self.entries < 2**31 else 8
        return 3 * self.atoms * len(self.sums) * number + self.entries * 2 * (number + index)

    def told_apart(self, sums: np.ndarray) -> Iterator[csr_array]:
        """The rows of the Hessian, some atoms at a time, from all its `sums` (sums, 3N).

        Only wanted coordinates have rows and columns.
        """
        # Columns that are not wanted are taken from anywhere, and left out in the end.
        place = np.zeros(3 * self.number, int)
        place[self.sums] = np.arange(len(self.sums))
        x = np.arange(3)
        for first in range(0, self.atoms, ATOMS_AT_ONCE):
            pairs = self.pairs[first : first + ATOMS_AT_ONCE]
            atoms = pairs.shape[0]
            row = np.repeat(np.arange(atoms), np.diff(pairs.indptr))
            found = place[3 * self.colours[pairs.indices, None] + x]
            part = np.asarray(sums[:, 3 * first : 3 * (first + atoms)])
            blocks = part[found[:, None, :], (3 * row[:, None] + x)[:, :, None]]
            whole = bsr_array((blocks, pairs.indices, pairs.indptr), shape=(3 * atoms, 3 * self.atoms))
            rows = whole.tocsr()
            if len(self.coordinates) < 3 * self.atoms:
                ours = self.coordinates[self.coordinates // 3 // ATOMS_AT_ONCE == first // ATOMS_AT_ONCE]
                rows = rows[ours - 3 * first][:, self.coordinates]
            yield rows


def colouring(potential: Differentiable, crystal: Any, coordinates: Sequence[int] | None = None) -> Colouring:
    """The colours of the atoms of `crystal` for its Hessian in `potential`.

    Raises ValueError if it is not known how far the energy of an atom sees, or `coordinates` are not there.
    """
    reach = potential.model.reach
    if reach is None:
        raise ValueError(
            f"how far the atoms of {potential.name} see each other is not known, and a sparse Hessian needs "
            "it. Give Potential.from_energy hops=, the number of times that atoms learn of their neighbours, "
            "or use jaxmlip.hessian."
        )
    graph: CrystalGraph = potential.graph(crystal)
    atoms = len(graph.species)
    chosen = np.arange(3 * atoms)
    if coordinates is not None:
        chosen = np.unique(checked_columns(crystal, coordinates))
    pairs = coupled(graph, reach)
    moving = np.zeros(atoms, bool)
    moving[chosen // 3] = True
    if not moving.all():  # rows and columns of the others are left out
        kept = pairs.tocoo()
        both = moving[kept.row] & moving[kept.col]
        pairs = csr_array((kept.data[both], (kept.row[both], kept.col[both])), shape=pairs.shape)
        pairs.sort_indices()
    order = reverse_cuthill_mckee(neighbours(graph, reach), symmetric_mode=True)
    return Colouring(pairs, _colours(pairs, order[moving[order]]), chosen)


def _colours(pairs: csr_array, order: np.ndarray) -> np.ndarray:
    """Colours of the atoms in `order`, such that no row of `pairs` has one twice; -1 for others."""
    least = int(np.diff(pairs.indptr).max(initial=0))
    if least == len(order):  # some atom sees all
        colours = np.full(pairs.shape[0], -1)
        colours[order] = np.arange(len(order))
        return colours
    rng = np.random.default_rng(0)
    for k in range(ROUNDS):
        colours = _greedy(pairs, order, least)
        number = colours.max(initial=-1) + 1
        if number in (least, len(order)):
            break
        large_first = np.argsort(-np.bincount(colours[order]), kind="stable")
        next_order = (np.arange(number)[::-1], rng.permutation(number), large_first)[k % 3]
        order = order[np.argsort(np.argsort(next_order)[colours[order]], kind="stable")]
    return colours


def _greedy(pairs: csr_array, order: np.ndarray, likely: int) -> np.ndarray:
    """Colours of the atoms: for one after the other in `order`, the first that none of its rows has yet."""
    colours = np.full(pairs.shape[0], -1)
    used = np.zeros((len(colours), likely + 1), bool)  # which colours each row has
    for atom in order:
        rows = pairs.indices[pairs.indptr[atom] : pairs.indptr[atom + 1]]  # those of its column
        taken = used[rows].any(axis=0)
        colour = int(taken.argmin())
        if taken[colour]:  # all are
            colour = len(taken)
            used = np.concatenate([used, np.zeros_like(used[:, : 1 + colour // 4])], axis=1)
        used[rows, colour] = True
        colours[atom] = colour
    return colours


def sparse_hessian(
    potential: Differentiable,
    crystal: Any,
    block_size: int | None = None,
    memory_limit: float | None = None,
    coordinates: Sequence[int] | None = None,
) -> csr_array:
    """The Hessian as of `jaxmlip.hessian`, (3N, 3N) in eV/Å², as a scipy.sparse.csr_array.

    It stores the blocks of pairs of atoms that the network can couple; all others are zero. Where the cell is
    longer than the network sees, far fewer columns than 3N are computed, so that the time grows with N and
    not with N². Elsewhere it is `jaxmlip.hessian` in another form: `colouring` says how many are computed.
    With `coordinates`, some numbers 3a + x, it is the block of these, in ascending order. See
    `jaxmlip.hessian_columns` for the other arguments.

    Raises MemoryLimitError as `hessian_columns` does, and ValueError if it is not known how far the energy of
    an atom sees, or if the crystal shows that it sees further.
    """
    found = colouring(potential, crystal, coordinates)
    response = _response(potential, crystal, block_size, memory_limit, found)
    sums = np.empty((len(found.sums), 3 * found.atoms), potential.dtype)
    for start, rows in response.columns(found.sums, found.groups):
        sums[start : start + len(rows)] = rows
    parts = list(found.told_apart(sums))
    whole = vstack(parts, format="csr") if len(parts) > 1 else parts[0]
    prove(found, response, lambda: iter([whole]))
    return whole


def plan_sparse_hessian(
    potential: Differentiable,
    crystal: Any,
    block_size: int | None = None,
    memory_limit: float | None = None,
    coordinates: Sequence[int] | None = None,
) -> MemoryPlan:
    """The memory that `sparse_hessian` will use for this crystal with these arguments, its result included.

    It compiles the programs, which that call then reuses. Raises as `sparse_hessian` does.
    """
    found = colouring(potential, crystal, coordinates)
    return _response(potential, crystal, block_size, memory_limit, found).plan(len(found.sums))


def _response(potential, crystal, block_size, memory_limit, found: Colouring) -> Response:
    return Response(
        potential,
        crystal,
        block_size=block_size,
        memory_limit=memory_limit,
        beside=found.size(potential.dtype),
    )


def prove(found: Colouring, response: Response, rows: Callable[[], Iterator[csr_array]]) -> None:
    """Raises ValueError unless the Hessian with these `rows`, part by part, is that of the `response`.

    Each coordinate moves in one of a few sums of random columns. If one atom sees another that it should not,
    columns of two atoms are mixed up, and these sums differ from those of the Hessian.
    """
    drawn = np.random.default_rng(0).integers(PROOFS, size=3 * found.atoms)
    groups = np.where(found.groups.ravel() >= 0, drawn, -1).reshape(-1, 3)
    wanted = np.concatenate(
        [part for _, part in response.columns(np.arange(PROOFS), groups, total=len(found.sums))]
    )[:, found.coordinates].T
    if not np.isfinite(wanted).all():  # the numbers say it themselves
        return
    moved = (drawn[found.coordinates, None] == np.arange(PROOFS)).astype(wanted.dtype)
    error = scale = 0.0
    first = 0
    for part in rows():
        there = part @ moved
        difference = np.abs(there - wanted[first : first + len(there)])
        error, scale = max(error, difference.max(initial=0)), max(scale, np.abs(part.data).max(initial=0))
        first += len(there)
    if not error <= np.finfo(wanted.dtype).eps ** 0.6 * max(scale, 1):
        hops = response.potential.model.reach.hops
        raise ValueError(
            f"{response.potential.name} sees further than {hops} hop{'s' * (hops > 1)} along bonds: sums of "
            f"columns differ by {error:.3g} eV/Å² from those of its sparse Hessian, whose largest element "
            f"is {scale:.3g}. Make the potential with the hops that it makes, or use jaxmlip.hessian."
        )
