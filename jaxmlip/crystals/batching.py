"""Padding and packing: crystals of any size become arrays of few shapes, so that few programs compile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxmlip.crystals.graph import CrystalGraph, Pairs

# Messages of an atom, a short and a long bond, an angle and a pair. A pair is a few numbers, where a message
# is a vector of features.
WORK = (0, 2, 2, 1, 0.125)


class BatchShape(NamedTuple):
    """Numbers of atoms, bonds, angles and crystals that a packed graph holds, padding included."""

    atoms: int
    short: int  # bonds within the angle cutoff
    long: int  # the other bonds
    angles: int
    pairs: int = 0  # of atoms far beyond bonds
    crystals: int = 1

    @property
    def messages(self) -> int:
        """Directed bonds and angles: the work of a model is proportional to their number."""
        return int(np.dot(self[:5], WORK))

    @classmethod
    def holding(cls, sizes: Sequence[int] | np.ndarray, crystals: int) -> BatchShape:
        """The shape that crystals with these sizes (see `sizes_of`; without pairs: none) fill exactly.

        One atom and one short bond are left for padding.
        """
        atoms, short, long, angles, *pairs = map(int, sizes)
        return cls(atoms + 1, short + 1, long, angles, *(pairs or [0]), crystals)

    @classmethod
    def covering(cls, shapes: Iterable[BatchShape]) -> BatchShape:
        """The smallest shape that holds whatever one of `shapes` holds."""
        return cls(*map(int, np.max(list(shapes), axis=0)))

    @property
    def free(self) -> np.ndarray:
        """Numbers of atoms, short bonds, long bonds, angles, pairs and crystals that it holds, (6,)."""
        return np.subtract(self, (1, 1, 0, 0, 0, 0))

    def fits(self, need: BatchShape) -> bool:
        return all(have >= n for have, n in zip(self, need, strict=True))


def exact_shape(graphs: Sequence[CrystalGraph]) -> BatchShape:
    """The shape that `graphs` fill exactly: one atom and one short bond are left for padding."""
    return BatchShape.holding(sizes_of(graphs).sum(axis=0), len(graphs))


def shape_of(packed: CrystalGraph) -> BatchShape:
    """The shape that a graph was packed to."""
    short, bonds = packed.short, len(packed.first)
    angles, pairs, crystals = len(packed.angle_from), _pairs_of(packed), len(packed.cell)
    return BatchShape(len(packed.species), short, bonds - short, angles, pairs, crystals)


def sizes_of(graphs: Sequence[CrystalGraph]) -> Int[np.ndarray, "n 5"]:
    """Atoms, short bonds, long bonds, angles and pairs of each graph."""
    sizes = [
        (len(g.species), g.short, len(g.first) - g.short, len(g.angle_from), _pairs_of(g)) for g in graphs
    ]
    return np.array(sizes, int).reshape(-1, 5)


def _pairs_of(graph: CrystalGraph) -> int:
    return 0 if graph.pairs is None else len(graph.pairs.first)


def round_up(n: int) -> int:
    """The next of 0, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, …: four steps to a doubling, waste below 25 %.

    Above 256 there are eight steps, since wasted work there costs more than another program.
    """
    if n <= 0:
        return 0
    step = 1 << max((n - 1).bit_length() - (3 if n <= 256 else 4), 1)
    return max(8, -(-n // step) * step)


# Long bonds of the shapes for small crystals; atoms, short bonds and angles are in proportion, and there is
# one atom more for padding, since many crystals have 8, 16, 32 or 64.
LADDER = (64, 128, 256, 512, 1024)
FEW = 33  # atoms whose Hessians take a shape of LADDER are fewer


def shape_for(graphs: Sequence[CrystalGraph], spare: float = 0.0) -> BatchShape:
    """The shape from a short ladder that holds `graphs`, so that many crystals share few programs.

    Small ones take one of ten shapes: each step doubles atoms, bonds and angles together, with one short
    bond in four or as many as long ones. Rounded one by one, these numbers would be different for nearly
    every crystal. Beyond 1024 long bonds, where padding costs more time than another program, they are
    rounded one by one, as by `close_shape_for`. Energy and Hessian of a padded small crystal take 1.5 to 4
    times as long as in its exact size (0.02 to 0.1 s more; compiling takes 10 s and more). For much work on
    one crystal use `close_shape_for` instead. `python -m benchmarks.library` measures it.

    `spare` is the fraction to leave free for atoms that will move; if it is given, small numbers get a little
    more, since they fluctuate more.
    """
    return padded_shape(exact_shape(graphs), spare)


def close_shape_for(graphs: Sequence[CrystalGraph]) -> BatchShape:
    """A shape slightly larger than `graphs` need, for much work on crystals of one size; see `round_up`."""
    return close(exact_shape(graphs))


def hessian_shape_for(graphs: Sequence[CrystalGraph]) -> BatchShape:
    """The shape for second derivatives of `graphs`: of few atoms that of `shape_for`, of more a close one.

    A Hessian has three columns for each atom, so that from FEW atoms on padding costs more than a program.
    """
    atoms = sum(len(graph.species) for graph in graphs)
    return (shape_for if atoms < FEW else close_shape_for)(graphs)


def close(n: BatchShape) -> BatchShape:
    """The shape with each number rounded up separately."""
    return BatchShape(*map(round_up, n[:5]), n.crystals)


def padded_shape(n: BatchShape, spare: float = 0.0) -> BatchShape:
    """The shape from the ladder of `shape_for` that holds n."""
    wanted = BatchShape(
        *(int(np.ceil(k * (1 + spare) + (2 * k**0.5 if spare else 0))) for k in n[:5]), n.crystals
    )
    for long in LADDER:
        for short in (long // 4, long):
            rung = BatchShape(long // 8 + 1, short, long, 3 * long, round_up(wanted.pairs), n.crystals)
            if rung.fits(wanted):
                return rung
    return close(wanted)


def pack(graphs: Sequence[CrystalGraph], shape: BatchShape | None = None, dtype=np.float64) -> CrystalGraph:
    """`graphs` side by side as one graph, padded to `shape` (default: from the ladder).

    Raises ValueError if they do not fit.
    """
    shape = shape_for(graphs) if shape is None else shape
    wanted = exact_shape(graphs)
    if not shape.fits(wanted):
        raise ValueError(
            f"{len(graphs)} crystals need {_words(wanted)}; this batch holds {_words(shape)}. "
            "shape_for(graphs) gives one that fits."
        )
    # Counts before each crystal. Padding bonds join the first padding atom to itself.
    pad_atom = wanted.atoms - 1
    bonds = shape.short + shape.long
    positions = np.zeros((shape.atoms, 3), dtype)
    species = np.zeros(shape.atoms, np.int32)
    crystal = np.full(shape.atoms, shape.crystals - 1, np.int32)
    cell = np.tile(np.eye(3, dtype=dtype), (shape.crystals, 1, 1))
    periodic = np.ones((shape.crystals, 3), bool)
    first = np.full(bonds, pad_atom, np.int32)
    second = np.full(bonds, pad_atom, np.int32)
    shifts = np.zeros((bonds, 3), dtype)
    pad_bond = wanted.short - 1
    angle_from = np.full(shape.angles, pad_bond, np.int32)
    angle_to = np.full(shape.angles, pad_bond, np.int32)

    a = s = n = 0
    w = shape.short
    for c, g in enumerate(graphs):
        atoms, long, angles = len(g.species), len(g.first) - g.short, len(g.angle_from)
        positions[a : a + atoms] = g.positions
        species[a : a + atoms] = g.species
        crystal[a : a + atoms] = c
        cell[c], periodic[c] = g.cell[0], g.periodic[0]
        for bonds_to, bonds_from in (
            (slice(s, s + g.short), slice(0, g.short)),
            (slice(w, w + long), slice(g.short, None)),
        ):
            first[bonds_to] = g.first[bonds_from] + a
            second[bonds_to] = g.second[bonds_from] + a
            shifts[bonds_to] = g.shifts[bonds_from]
        for to, own in ((angle_from, g.angle_from), (angle_to, g.angle_to)):
            # Reversed bonds are numbered from the number of short bonds on, which is larger here.
            to[n : n + angles] = own + np.where(own >= g.short, shape.short - g.short + s, s)
        a, s, w, n = a + atoms, s + g.short, w + long, n + angles
    graph = CrystalGraph(
        positions,
        species,
        cell,
        periodic,
        crystal,
        first,
        second,
        shifts,
        angle_from,
        angle_to,
        shape.short,
    )
    if not shape.pairs and all(g.pairs is None for g in graphs):
        return graph
    return graph.replace(pairs=_packed_pairs(graphs, shape, pad_atom, dtype))


def _packed_pairs(graphs: Sequence[CrystalGraph], shape: BatchShape, pad_atom: int, dtype) -> Pairs:
    """The pairs of `graphs` side by side, padded by loops of the first padding atom."""
    first = np.full(shape.pairs, pad_atom, np.int32)
    second = np.full(shape.pairs, pad_atom, np.int32)
    shifts = np.zeros((shape.pairs, 3), dtype)
    a = p = 0
    for g in graphs:
        some = slice(p, p + _pairs_of(g))
        if g.pairs is not None:
            first[some], second[some], shifts[some] = g.pairs.first + a, g.pairs.second + a, g.pairs.shifts
        a, p = a + len(g.species), some.stop
    return Pairs(first, second, shifts)


def split_atoms(per_atom: np.ndarray, graphs: Sequence[CrystalGraph]) -> list[np.ndarray]:
    """A per-atom array of the packed graph as one array for each of `graphs`, padding left out."""
    ends = np.cumsum([len(g.species) for g in graphs])
    return np.split(per_atom[: ends[-1]], ends[:-1])


def any_number(shape: BatchShape) -> BatchShape:
    """`shape` for as many crystals as its atoms can make, so that their number alone needs no new program."""
    return shape._replace(crystals=shape.atoms)


def divisible(shape: BatchShape, parts: int) -> BatchShape:
    """The smallest larger shape whose bonds and angles can be divided into so many equal parts."""
    per_bond = ("short", "long", "angles", "pairs")
    return shape._replace(**{name: parts * -(-getattr(shape, name) // parts) for name in per_bond})


def _words(c: BatchShape) -> str:
    return (
        f"{c.atoms - 1} atoms, {c.short - 1} short and {c.long} long bonds, "
        f"{c.angles} angles, {c.pairs} pairs and {c.crystals} crystals"
    )
