"""The border to jraph: crystals as jraph.GraphsTuple and back.

`CrystalGraph.to_jraph` and `from_jraph` say what the fields mean. CrystalGraph imports this module, so that
its graphs have no type here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from jaxmlip.system.arrays import Array


def to_tuple(graph: Any, elements: Sequence[int] | None, padded: bool) -> jraph.GraphsTuple:
    """`CrystalGraph.to_jraph` of a graph."""
    if padded:
        return _padded_tuple(graph, elements)
    graph = jax.tree.map(np.asarray, graph)
    senders, receivers, shifts = _directed(graph, np)
    atoms = int(graph.is_atom.sum())
    crystals = int(graph.crystal[:atoms].max(initial=-1)) + 1
    kept = receivers < atoms
    return jraph.GraphsTuple(
        nodes={
            "positions": graph.positions[:atoms],
            "species": _places(graph, elements)[:atoms],
            "numbers": graph.numbers[:atoms],
        },
        edges={"shifts": shifts[kept]},
        senders=senders[kept],
        receivers=receivers[kept],
        globals={"cell": graph.cell[:crystals], "pbc": graph.periodic[:crystals]},
        n_node=np.bincount(graph.crystal[:atoms], minlength=crystals).astype(np.int32),
        n_edge=np.bincount(graph.crystal[receivers[kept]], minlength=crystals).astype(np.int32),
    )


def from_tuple(graph: jraph.GraphsTuple, elements: Sequence[int] | None) -> dict[str, Any]:
    """The atoms, cells and bonds of a GraphsTuple, by the fields of CrystalGraph; see its `from_jraph`.

    "bonds" are first, second and shifts, each pair of atoms once.
    """
    nodes, shared = graph.nodes, graph.globals or {}
    species = np.asarray(nodes["species"], np.int32)
    if elements is not None:
        species = np.asarray(elements, np.int32)[species]
    if "numbers" in nodes:
        species = np.where(np.asarray(nodes["numbers"]) > 0, species, 0).astype(np.int32)
    atoms = int((species > 0).sum())
    if not (species[:atoms] > 0).all():
        raise ValueError(
            f"node {species.argmin()} has species 0, which is padding, before others that have not; "
            "needed atomic numbers from 1 on. Give the `elements` that the species count."
        )
    crystal = np.repeat(np.arange(len(graph.n_node), dtype=np.int32), graph.n_node)[:atoms]
    crystals = int(crystal.max(initial=-1)) + 1
    cell, periodic = shared.get("cell"), shared.get("pbc")
    repeats = np.full((crystals, 3), cell is not None) if periodic is None else periodic[:crystals]
    kept = np.flatnonzero(np.asarray(graph.receivers) < atoms)
    i, j = np.asarray(graph.receivers)[kept], np.asarray(graph.senders)[kept]
    shifts = np.asarray(graph.edges["shifts"])[kept]
    for name, index in (("receiver", i), ("sender", j)):
        if (wrong := index[(index < 0) | (index >= atoms)]).size:
            raise ValueError(
                f"an edge has the {name} {wrong[0]}, needed the number of an atom, 0 to {atoms - 1}."
            )
    one = _first_of_each_pair(i, j, shifts)
    return {
        "positions": np.asarray(nodes["positions"])[:atoms],
        "species": species[:atoms],
        "cell": np.zeros((crystals, 3, 3)) if cell is None else np.asarray(cell)[:crystals],
        "periodic": np.asarray(repeats, bool),
        "crystal": crystal,
        "bonds": (i[one], j[one], shifts[one]),
    }


def _directed(graph: Any, xp) -> tuple[Array, Array, Array]:
    """Senders, receivers and shifts of both directions of each bond, sorted by receivers."""
    receivers = xp.concatenate([graph.first, graph.second])
    senders = xp.concatenate([graph.second, graph.first])
    shifts = xp.asarray(graph.shifts, dtype=graph.positions.dtype)
    shifts = xp.concatenate([shifts, 0 - shifts])
    order = xp.argsort(receivers, stable=True)
    return senders[order], receivers[order], shifts[order]


def _places(graph: Any, elements: Sequence[int] | None, xp=np) -> Array:
    """The place of each atom's Z in `elements`, 0 for padding; without `elements` the species."""
    if elements is None:
        return xp.asarray(graph.species)
    if xp is np and (unknown := np.setdiff1d(graph.numbers[graph.is_atom], elements)).size:
        raise ValueError(f"found the atomic numbers {unknown.tolist()}, needed some of {list(elements)}.")
    # 0, the first, if none is the same: for padding.
    same = xp.asarray(graph.numbers)[:, None] == np.asarray(elements, np.int32)[None]
    return xp.argmax(same, axis=1).astype(np.int32)


def _padded_tuple(graph: Any, elements: Sequence[int] | None) -> jraph.GraphsTuple:
    """`to_tuple` for compiled programs: shapes follow from shapes."""
    graph = jax.tree.map(jnp.asarray, graph)
    crystals, is_atom = len(graph.cell), graph.is_atom
    senders, receivers, shifts = _directed(graph, jnp)
    n_atoms = jnp.zeros(crystals + 1, jnp.int32).at[graph.crystal].add(is_atom.astype(jnp.int32))
    # The number of the graph that holds padding: crystals without atoms come last.
    padding = (n_atoms > 0).sum(dtype=jnp.int32)
    real = is_atom[receivers]
    home = jnp.where(real, graph.crystal[receivers], padding)
    one = jnp.eye(3, dtype=graph.positions.dtype)[None]
    cell = jnp.where((n_atoms > 0)[:, None, None], jnp.concatenate([graph.cell, one]), one)
    # A singular slope then multiplies a constant, not the positions of padding atoms.
    positions = jnp.where(is_atom[:, None], graph.positions, 0)
    return jraph.GraphsTuple(
        nodes={
            "positions": jnp.concatenate([positions, jnp.zeros_like(one[0, :1])]),
            "species": jnp.append(_places(graph, elements, jnp), 0),
            "numbers": jnp.append(graph.numbers, 0),
        },
        edges={"shifts": jnp.where(real[:, None], shifts, 1)},
        senders=senders,
        receivers=receivers,
        globals={"cell": cell, "pbc": jnp.concatenate([graph.periodic, jnp.ones((1, 3), bool)])},
        n_node=n_atoms.at[padding].add(len(is_atom) + 1 - n_atoms.sum(dtype=jnp.int32)),
        n_edge=jnp.zeros(crystals + 1, jnp.int32).at[home].add(1),
    )


def _first_of_each_pair(i: np.ndarray, j: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Numbers of the edges whose reverse comes later. Raises ValueError if one has no reverse."""
    whole = np.rint(shifts).astype(int)
    if (broken := np.flatnonzero(np.abs(shifts - whole).max(axis=1, initial=0) > 1e-3)).size:
        raise ValueError(
            f"edge {broken[0]} has the shift {shifts[broken[0]].tolist()}, needed whole "
            "lattice vectors (not Å)."
        )
    there = np.column_stack([i, j, whole])
    back = np.column_stack([j, i, -whole])
    # An edge and its reverse are both identified by the greater of the two, in lexicographic order.
    differ = there != back
    at = np.arange(len(i)), differ.argmax(axis=1)
    forward = there[at] > back[at]
    known_by = np.where(forward[:, None], there, back)
    _, first, pair, count = np.unique(
        known_by, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    balance = np.bincount(pair.ravel(), np.where(forward, 1, -1), len(count))
    if (odd := np.flatnonzero((count != 2) | (balance != 0))).size:
        e = first[odd[0]]
        raise ValueError(
            f"edge {e} from atom {j[e]} to atom {i[e]} with the shift {whole[e].tolist()} occurs "
            f"{count[odd[0]]} times in either direction, needed once in each: there, and back with the "
            "opposite shift."
        )
    return np.sort(first)
