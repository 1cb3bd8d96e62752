"""The third-order constants of a supercell from few of their columns, by its space group and by permutation.

A column is Φ(ia, jb, ·): atom i of the primitive cell moves along a, atom j of the supercell along b, and the
forces on all others answer. For a pair of atoms (i, j) there are nine of them. Every operation of the space
group takes the columns of a pair to those of another, and so does the exchange of i and j: pairs fall into
orbits, and the operations that take a pair to itself relate its nine columns. So a few columns of one pair of
each orbit are enough. They are chosen among those whose first displacement (i, a) is one of few, since all
columns with the same first displacement come from one linear map.

Of three atoms i, j and k it is enough if the columns of one pair are known, since the constants do not depend
on the order. So pairs are left out as long as no three atoms are joined by such pairs alone: in rock salt,
say, all pairs of one cation and one anion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jaxmlip.crystals.symmetry import SpaceGroup
from jaxmlip.phonons.cells import Cells
from jaxmlip.phonons.supercell import spanning_columns

GAINED = 1e-2  # a direction counts as new if it is that far (of 1) from those that are known


class Column(NamedTuple):
    """Φ(ia, jb, ·): the first displacement, and the number 3j + b of the column of its linear map."""

    atom: int  # i, of the primitive cell
    axis: int  # a
    number: int  # 3j + b, j in the supercell


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of atoms (i, j) of a supercell, numbered i N + j, and their images under its symmetry.

    Without a group, each pair stands for itself.
    """

    cells: Cells
    space_group: SpaceGroup | None

    @cached_property
    def _operations(self) -> tuple[np.ndarray, np.ndarray]:
        return self.cells.permutations(self.space_group)

    @property
    def exchanged(self) -> tuple[bool, ...]:
        """Whether the two atoms of a pair may be exchanged."""
        return (False,) if self.space_group is None else (False, True)

    @cached_property
    def images(self) -> np.ndarray:
        """The number of the image of each pair, (operations, 1 or 2, n N): as it is, and exchanged."""
        cells, (to, _) = self.cells, self._operations
        N, (atom, _) = len(cells.supercell), cells.places
        found = []
        for moved in to:
            first, second = np.repeat(moved[cells.p2s], N), np.tile(moved, len(cells.p2s))
            pairs = ((first, second), (second, first))[: len(self.exchanged)]
            found.append([atom[x] * N + cells.shifts[cells.home[x], y] for x, y in pairs])
        return np.array(found)

    @cached_property
    def orbits(self) -> np.ndarray:
        """For each pair, the first of those that are its images."""
        return self.images.min(axis=(0, 1))

    def between(self, first: int, pair: int) -> np.ndarray:
        """The operations (k, 2) that take the pair `first` to another: number, and whether i and j change."""
        return np.argwhere(self.images[:, :, first] == pair)

    def tensor(self, operation: int, exchange: int) -> np.ndarray:
        """What an operation does to the directions (a, b) of a pair: (9, 9)."""
        turn = self._operations[1][operation]
        whole = np.kron(turn, turn)
        return whole.reshape(3, 3, 9).swapaxes(0, 1).reshape(9, 9) if exchange else whole

    def _places(self, first: int, operation: int, exchange: int) -> np.ndarray:
        """Where atoms go, (N,), when an operation takes the pair `first` to another."""
        cells = self.cells
        i, j = divmod(first, len(cells.supercell))
        to = self._operations[0][operation]
        return cells.shifts[cells.home[to[j if exchange else cells.p2s[i]]]][to]

    def answer_before(self, first: int, operation: int, exchange: int, answer: np.ndarray) -> np.ndarray:
        """The forces (N, 3) whose image is `answer`, when an operation takes the pair `first` to another."""
        return answer[self._places(first, operation, exchange)] @ self._operations[1][operation]

    def moved(self, first: int, operation: int, exchange: int, block: np.ndarray) -> np.ndarray:
        """The nine columns (9, N, 3) of the image of a pair, from those of the pair `first`."""
        found = np.empty_like(block)
        turned = np.tensordot(self.tensor(operation, exchange), block @ self._operations[1][operation].T, 1)
        found[:, self._places(first, operation, exchange)] = turned
        return found


@dataclass(frozen=True, eq=False)
class Plan:
    """The columns that are computed, and how they give all others."""

    pairs: Pairs
    columns: Mapping[int, list[Column]]  # of each orbit that is computed, by its first pair

    @property
    def wanted(self) -> dict[tuple[int, int], list[int]]:
        """The numbers of the columns for each first displacement (i, a), ascending."""
        found: dict[tuple[int, int], set[int]] = {}
        for columns in self.columns.values():
            for column in columns:
                found.setdefault((column.atom, column.axis), set()).add(column.number)
        return {w: sorted(found[w]) for w in sorted(found)}


def plan(cells: Cells, group: SpaceGroup | None) -> Plan:
    """The columns from which the group and permutation give all; without a group, all 9 n N of them."""
    pairs, N = Pairs(cells, group), len(cells.supercell)
    n = len(cells.primitive)
    every = dict.fromkeys(range(n), (0, 1, 2))
    directions = every if group is None else spanning_columns(group)
    members = {first: np.flatnonzero(pairs.orbits == first) for first in np.unique(pairs.orbits).tolist()}
    columns = {first: _chosen(pairs, first, its, directions) for first, its in members.items()}
    if group is not None:
        for first in _left_out(pairs, {first: len(its) for first, its in columns.items()}, N):
            del columns[first]
    return Plan(pairs, columns)


def _chosen(
    pairs: Pairs, first: int, members: np.ndarray, directions: Mapping[int, tuple[int, ...]]
) -> list[Column]:
    """Columns of the pairs of an orbit that give all nine of its first pair."""
    N, candidates = len(pairs.cells.supercell), {}
    for pair in members.tolist():
        i, j = divmod(pair, N)
        tensors = np.array([pairs.tensor(*g) for g in pairs.between(first, pair)])
        for a in directions.get(i, ()):
            for b in range(3):
                candidates[Column(i, a, 3 * j + b)] = tensors[:, 3 * a + b] / len(tensors) ** 0.5
    known, chosen = np.zeros((9, 0)), []
    while known.shape[1] < 9:
        gains = {column: _new_directions(rows, known) for column, rows in candidates.items()}
        candidates = {column: candidates[column] for column, new in gains.items() if new.shape[1]}
        best = max(candidates, key=lambda column: gains[column].shape[1])
        chosen.append(best)
        known = np.concatenate([known, gains[best]], axis=1)
    return chosen


def _new_directions(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """An orthogonal basis (9, k) of what `rows` (…, 9) add to the columns of `known`."""
    _, size, basis = np.linalg.svd(rows - (rows @ known) @ known.T, full_matrices=False)
    return basis[size > GAINED].T


def _left_out(pairs: Pairs, costs: Mapping[int, int], N: int) -> list[int]:
    """Orbits of pairs that need no columns, the dearest first: no triangle of atoms has only such sides."""
    cells, (atom, _) = pairs.cells, pairs.cells.places
    orbit = pairs.orbits[atom[:, None] * N + cells.shifts[cells.home]]  # (N, N), of any two atoms
    itself = {int(pairs.orbits[i * N + cells.p2s[i]]) for i in range(len(cells.p2s))}
    left = np.zeros((N, N), np.float32)
    found = []
    for first in sorted(costs, key=lambda first: -costs[first]):
        if first in itself:  # of i, i and k all pairs but this are one
            continue
        tried = np.maximum(left, orbit == first)
        own = tried[cells.p2s]
        if not ((own @ tried) * own).any():
            left = tried
            found.append(first)
    return found


def completed(plan: Plan, rows: Mapping[Column, np.ndarray]) -> tuple[np.ndarray, float]:
    """All constants (n, N, N, 3, 3, 3) from columns (N, 3), and how far these are from being symmetric.

    The second is the largest difference between a computed column and what symmetry makes of all columns of
    its pair.
    """
    pairs, cells = plan.pairs, plan.pairs.cells
    n, N = len(cells.primitive), len(cells.supercell)
    phi = np.empty((n * N, 9, N, 3))
    known = np.zeros(n * N, bool)
    off = 0.0
    for first, columns in plan.columns.items():
        X, Y = [], []
        for column in columns:
            pair, ab = column.atom * N + column.number // 3, 3 * column.axis + column.number % 3
            for g in pairs.between(first, pair):
                X.append(pairs.tensor(*g)[ab])
                Y.append(pairs.answer_before(first, *g, rows[column]).ravel())
        x, y = np.array(X), np.array(Y)
        block = np.linalg.lstsq(x, y)[0]
        off = max(off, float(np.abs(x @ block - y).max()))
        block = block.reshape(9, N, 3)
        for pair in np.flatnonzero(pairs.orbits == first):
            phi[pair] = pairs.moved(first, *pairs.between(first, pair)[0], block)
            known[pair] = True
    phi = phi.reshape(n, N, 3, 3, N, 3).transpose(0, 1, 4, 2, 3, 5)
    _fill(phi, known.reshape(n, N), cells)
    return np.ascontiguousarray(phi), off


def _fill(phi: np.ndarray, known: np.ndarray, cells: Cells) -> None:
    """Constants of pairs (i, j) that were left out, from those of (i, k) and of (j, k)."""
    atom, _ = cells.places
    for i, j in np.argwhere(~known):
        from_i = known[i]
        phi[i, j, from_i] = phi[i, from_i, j].swapaxes(-1, -2)  # (k, a, c, b)
        # Φ(i, j, k) = Φ(j, k, i), of which the first is moved into the primitive cell.
        shift = cells.shifts[cells.home[j]]
        k = np.flatnonzero(~from_i)
        phi[i, j, k] = phi[atom[j], shift[k], shift[cells.p2s[i]]].transpose(0, 3, 1, 2)


def permutation_error(phi: np.ndarray, cells: Cells) -> float:
    """The largest difference between Φ(i, j, k) and what another order of the three atoms gives."""
    off = max(float(np.abs(each - each.transpose(1, 0, 2, 4, 3)).max()) for each in phi)
    atom, _ = cells.places
    for i, own in enumerate(cells.p2s):
        for j in range(phi.shape[1]):
            shift = cells.shifts[cells.home[j]]
            other = phi[atom[j], shift[own], shift]  # (k, b, a, c)
            off = max(off, float(np.abs(phi[i, j] - other.swapaxes(1, 2)).max()))
    return off


def space_group_error(phi: np.ndarray, pairs: Pairs) -> float:
    """The largest difference between constants and their images under the space group."""
    n, N = phi.shape[:2]
    off = 0.0
    blocks = phi.transpose(0, 1, 3, 4, 2, 5).reshape(n * N, 9, N, 3)
    for o, images in enumerate(pairs.images[:, 0]):
        for pair, to in enumerate(images):
            off = max(off, float(np.abs(blocks[to] - pairs.moved(pair, o, 0, blocks[pair])).max()))
    return off
