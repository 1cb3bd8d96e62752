"""How far atoms of a network see each other, and so which elements of a Hessian are zero.

In each layer of a network an atom learns what the atoms at the other ends of its bonds know: one hop. After n
layers the energy of an atom depends on the atoms within n hops, and on no other. The energy of a crystal is
the sum over its atoms, so ∂²E/∂r_i∂r_j is zero unless the energy of some atom depends on both: unless i and j
are within 2n hops. Hops are counted in the graph of the crystal at hand, which tells more than a distance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array, eye_array

from jaxmlip.crystals.graph import CrystalGraph


class Reach(NamedTuple):
    """How far the energy of an atom sees."""

    hops: int
    # A hop leads along a bond or a pair. If True, also along two short bonds that share an atom: the angle
    # that they make tells the atom at one end of that at the other.
    over_angles: bool = False


def neighbours(graph: CrystalGraph, reach: Reach) -> csr_array:
    """The atoms that one hop leads to from each atom, and the atom itself: (atoms, atoms), True or False.

    `graph` is that of one crystal, without padding. All images of an atom are the same atom.
    """
    atoms = len(graph.species)

    def joined(first: np.ndarray, second: np.ndarray) -> csr_array:
        ones = np.ones(2 * len(first), bool)
        ends = np.concatenate([first, second]), np.concatenate([second, first])
        found = coo_array((ones, ends), shape=(atoms, atoms)).tocsr()
        return (found + eye_array(atoms, dtype=bool, format="csr")).astype(bool)

    by_bonds = joined(graph.first, graph.second)
    if graph.pairs is not None:
        by_bonds = (by_bonds + joined(graph.pairs.first, graph.pairs.second)).astype(bool)
    if not reach.over_angles:
        return by_bonds
    short = joined(graph.first[: graph.short], graph.second[: graph.short])
    return (by_bonds + short @ short).astype(bool)


def coupled(graph: CrystalGraph, reach: Reach) -> csr_array:
    """The pairs of atoms whose second derivatives may be other than zero: (atoms, atoms), True or False.

    `graph` is that of one crystal, without padding.
    """
    hop = neighbours(graph, reach)
    atoms = hop.shape[0]
    found = eye_array(atoms, dtype=bool, format="csr")
    for _ in range(2 * reach.hops):
        found = (hop @ found).astype(bool)
        if found.nnz == atoms**2:
            break
    found.sort_indices()
    return found
