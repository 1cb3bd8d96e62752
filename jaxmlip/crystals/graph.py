"""Crystals as graphs: atoms, bonds between them, and angles between short bonds.

One convention serves every model: a bond is stored once and used from both ends. Everything that
belongs to a bond lives in the cell of its first atom, so the second atom is fetched from `shifts` cells
away, and nothing has to search for the reverse of an edge.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from vesin import NeighborList

from jaxmlip.crystals import jraph_border
from jaxmlip.crystals.atoms import FLAT, as_atoms, boxed, check_crystal, check_elements, extent
from jaxmlip.crystals.fetch import gather
from jaxmlip.system.arrays import Array

if TYPE_CHECKING:
    import jraph
    from ase import Atoms
    from pymatgen.core import Structure

CLOSEST = 0.5  # Å; below this no potential of this library has seen data
ELEMENTS = 118  # Z goes no further: species beyond are the elements again, of the next functional


class Cutoffs(NamedTuple):
    """Cutoffs of a model: `bond` for pairs, `angle` for the two bonds of an angle (Å; 0: no angles)."""

    bond: float
    angle: float = 0.0
    listed: bool = True  # False: the model sums over angles without a list of them
    pairs: float = 0.0  # of pairs of atoms far beyond bonds, which dispersion needs (Å; 0: none)


@flax.struct.dataclass
class CrystalGraph:
    """One crystal, or several laid side by side as one disconnected graph.

    Bond b joins atom i = first[b] to the image of atom j = second[b] that lies `shifts[b]` cells away,
    along r_ij = positions[j] + shifts[b] @ cell - positions[i]. Each pair of atoms within the bond cutoff
    is stored once. The `short` leading bonds are those within the angle cutoff, and their padding.

    A directed short bond is numbered d: d < short is bond d seen from its first atom, d >= short is bond
    d - short seen from its second. An angle is an ordered pair of two different directed short bonds
    (angle_from, angle_to) that start at the same atom; a model that needs no list of them gets none.

    A slab, a wire or a molecule repeats along some lattice vectors only, or along none: `periodic` says
    which. Bonds never shift along the others; their rows of `cell` hold the height of the given box, if any.

    A model that adds dispersion has `pairs` too: all pairs of atoms within a larger cutoff, bonded or not.

    Padding atoms have species 0 and belong to the last crystal; padding bonds are loops of zero length on
    a padding atom; padding angles lie between padding bonds; padding crystals have no atoms.
    """

    positions: Float[Array, "atoms 3"]  # Å
    species: Int[Array, " atoms"]  # Z; Z + 118 k for the functional k of a potential that has several
    cell: Float[Array, "crystals 3 3"]  # Å, rows are lattice vectors, as in ASE
    periodic: Bool[Array, "crystals 3"]  # whether the crystal repeats along each lattice vector
    crystal: Int[Array, " atoms"]  # the crystal that each atom belongs to
    first: Int[Array, " bonds"]
    second: Int[Array, " bonds"]
    shifts: Float[Array, "bonds 3"]  # whole lattice vectors
    angle_from: Int[Array, " angles"]
    angle_to: Int[Array, " angles"]
    short: int = flax.struct.field(pytree_node=False)
    pairs: Pairs | None = None

    @property
    def is_atom(self) -> Array:
        """True for atoms, False for padding."""
        return self.species > 0

    @property
    def numbers(self) -> Array:
        """The atomic number Z of each atom, 0 for padding."""
        return atomic_number(self.species)

    def short_ends(self) -> BondEnds:
        """The directed short bonds, in the order of their numbers."""
        first, second = self.first[: self.short], self.second[: self.short]
        images = self.images[: self.short]
        bond, one = jnp.arange(self.short), jnp.ones_like(images[:, 0])
        return BondEnds(
            jnp.concatenate([bond, bond]),
            jnp.concatenate([one, -one]),
            jnp.concatenate([first, second]),
            # Seen from its second atom, a bond is kept at the atom `shifts` cells back.
            jnp.concatenate([jnp.zeros_like(images), images * jnp.array([[-1, -1, -1, 1]], images.dtype)]),
        )

    @property
    def images(self) -> Float[Array, "bonds 4"]:
        """Where the second atom of each bond lies, as `fetch.gather` needs it: `shifts`, and the crystal."""
        shifts = jnp.asarray(self.shifts)
        crystal = jnp.asarray(self.crystal)[self.first]
        return jnp.concatenate([shifts, crystal[:, None].astype(shifts.dtype)], axis=1)

    @property
    def by_pairs(self) -> CrystalGraph:
        """The same atoms with `pairs` in place of bonds, and without angles.

        Raises ValueError if the graph was made without them.
        """
        if self.pairs is None:
            raise ValueError(
                "found a graph without pairs, needed one that was made with Cutoffs(…, pairs=…)."
            )
        none = self.angle_from[:0]
        return self.replace(**vars(self.pairs), angle_from=none, angle_to=none, short=0, pairs=None)

    def to_jraph(self, elements: Sequence[int] | None = None, padded: bool = False) -> jraph.GraphsTuple:
        """The crystals as a jraph.GraphsTuple, one graph each, with two directed edges for each bond.

        nodes: "positions", (nodes, 3) in Å; "numbers", (nodes,), Z, 0 for padding; "species", (nodes,), the
        place of Z in `elements`, or without `elements` the species of this graph, which are Z.
        edges: "shifts", (edges, 3), whole lattice vectors. globals: "cell", (graphs, 3, 3) in Å, rows are
        lattice vectors; "pbc", (graphs, 3), whether the crystal repeats along each of them.

        Edge e runs from the neighbour j = senders[e] to its centre i = receivers[e], along
        positions[j] + shifts[e] @ cell - positions[i]: shifts tell where the sender lies, as in nequix and
        mace-jax. (In mlip they tell where the receiver lies: negate them.) Edges are sorted by receivers.
        Floats have the precision of `positions`. `pairs` are left out.

        By default the result is in NumPy and padding is left out: add it with jraph.pad_with_graphs. With
        `padded` the result has shapes that follow from those of this graph alone, for compiled programs:
        (atoms + 1) nodes, two edges for each bond, and (crystals + 1) graphs. All padding is in the first
        graph after the crystals, and the masks of jraph find it. Its edges are not loops of zero length as
        jraph's are (norms have no derivative there), but √3 Å long, between images of a padding node.

        Raises ValueError if an element is not among `elements`.
        """
        return jraph_border.to_tuple(self, elements, padded)

    @classmethod
    def from_jraph(
        cls,
        graph: jraph.GraphsTuple,
        cutoffs: Cutoffs | None = None,
        elements: Sequence[int] | None = None,
    ) -> CrystalGraph:
        """The crystals of a GraphsTuple with the fields of `to_jraph`, side by side, in NumPy.

        `elements` are the atomic numbers that "species" index; without, species are atomic numbers. Nodes
        whose species or "numbers" are 0 are padding and left out; a padded graph that has neither goes
        through jraph.unpad_with_graphs first. Without "cell" nothing repeats; without "pbc" everything does.

        Of the two edges of a bond the first is kept. The bonds within the angle cutoff and the angles, which
        a GraphsTuple does not hold, follow from `cutoffs` (None: no angles). So the graph of a crystal comes
        back as `from_atoms` made it. Bonds within the cutoff that have no edge are not added.

        Raises ValueError if an edge has no reverse or an end that is no atom, or shifts are not whole
        lattice vectors.
        """
        return _assembled(**jraph_border.from_tuple(graph, elements), cutoffs=cutoffs or Cutoffs(np.inf))


@flax.struct.dataclass
class Pairs:
    """Pairs of atoms, each stored once, as bonds are."""

    first: Int[Array, " pairs"]
    second: Int[Array, " pairs"]
    shifts: Float[Array, "pairs 3"]


class BondEnds(NamedTuple):
    """Bonds as one of their ends sees them."""

    bond: Int[Array, " n"]  # which of the short bonds
    sign: Float[Array, " n"]  # +1 if the bond's own direction leads away from the atom, else -1
    atom: Int[Array, " n"]  # the atom it is seen from
    image: Float[Array, "n 4"]  # the cell, relative to that atom's, in which the bond is kept; the crystal


def bond_vectors(graph: CrystalGraph) -> Float[Array, "bonds 3"]:
    """r_ij (Å) from the first atom of each bond to the image of the second."""
    cell = graph.cell[graph.crystal[graph.first]]
    shift = jnp.einsum("bk,bkx->bx", graph.shifts, cell)
    second = gather(graph.positions, graph.second, graph.images)
    return second + shift - gather(graph.positions, graph.first)


def atomic_number(species):
    """Z of species, whatever the functional; an array, or one number."""
    return species - abs(species - 1) // ELEMENTS * ELEMENTS  # the absolute value keeps 0, of padding


def sum_over_crystals(per_atom: Float[Array, "atoms *f"], graph: CrystalGraph) -> Float[Array, "crystals *f"]:
    """The sum of a per-atom quantity over the atoms of each crystal."""
    return jax.ops.segment_sum(per_atom, graph.crystal, len(graph.cell))


def directions(cell: Float[Array, "*n 3 3"], periodic: Bool[Array, "*n 3"]) -> Float[Array, "*n 3 3"]:
    """The projector onto the directions along which a crystal repeats: 1 for a crystal, 0 for a molecule."""
    xp = cell.__array_namespace__()  # NumPy outside of programs, JAX in them
    a, b, c = xp.moveaxis(xp.where(periodic[..., None], cell, 0.0), -2, 0)
    # Rows that do not repeat are zero now, so that one of the two or three terms is left.
    normal, line = xp.cross(a, b) + xp.cross(b, c) + xp.cross(c, a), a + b + c

    def onto(v):
        square = xp.sum(v * v, axis=-1)[..., None, None]
        return v[..., :, None] * v[..., None, :] / xp.where(square > 0, square, 1.0)

    repeats = periodic.sum(axis=-1)[..., None, None]
    one = xp.broadcast_to(xp.eye(3, dtype=cell.dtype), cell.shape)
    plane = xp.where(repeats == 2, one - onto(normal), xp.where(repeats == 1, onto(line), 0.0))
    return xp.where(repeats == 3, one, plane)


def has_stress(graph: CrystalGraph) -> bool:
    """True if the single crystal of a graph has a stress: it repeats somewhere and its box has a volume."""
    return bool(graph.periodic[0].any() and extent(graph.cell[0]) > FLAT)


def from_atoms(crystal: Atoms | Structure, cutoffs: Cutoffs | float) -> CrystalGraph:
    """The graph of `crystal`, in NumPy, without padding.

    `cutoffs` is a distance in Å, a `Cutoffs`, or a Potential, whose elements are then checked too.
    Cells may be of any shape and size: an atom can be bonded to several images of another and of itself.
    Where atoms.pbc is False along a lattice vector there are no images along it: slabs, wires, molecules.

    Raises ValueError if `crystal` is invalid (no atoms, lattice vectors that span nothing, NaN positions,
    partly occupied sites), or the potential has several functionals; warns if atoms are closer than 0.5 Å.
    """
    if several := getattr(cutoffs, "functionals", ()):
        raise ValueError(
            f"{cutoffs.name} has the functionals {', '.join(several)}, needed a potential of one: "
            f"jaxmlip.training.functionals.select(potential, {several[0]!r}), or of a run "
            f"`jaxmlip export RUN OUT --functional {several[0]}`."
        )
    elements = getattr(cutoffs, "elements", None)
    cutoffs = getattr(cutoffs, "cutoffs", cutoffs)
    cutoffs = cutoffs if isinstance(cutoffs, Cutoffs) else Cutoffs(float(cutoffs))
    atoms = as_atoms(crystal)
    check_crystal(atoms)
    if elements is not None:
        check_elements(atoms, elements)
    i, j, shifts, length = _within(cutoffs.bond, atoms)
    if len(length) and length.min() < CLOSEST:
        b = length.argmin()
        warnings.warn(
            f"atoms {i[b]} ({atoms.symbols[i[b]]}) and {j[b]} ({atoms.symbols[j[b]]}) of "
            f"{atoms.get_chemical_formula()} are {length[b]:.3f} Å apart; no potential was fitted to "
            f"distances below {CLOSEST} Å, so energies and forces mean little here.",
            stacklevel=2,
        )
    graph = _assembled(
        positions=atoms.positions,
        species=atoms.numbers.astype(np.int32),
        cell=atoms.cell.array[None],
        periodic=atoms.pbc[None],
        crystal=np.zeros(len(atoms), np.int32),
        bonds=(i, j, shifts.astype(float)),
        cutoffs=cutoffs,
        length=length,
    )
    if not cutoffs.pairs:
        return graph
    i, j, shifts, _ = _within(cutoffs.pairs, atoms)
    return graph.replace(pairs=Pairs(i.astype(np.int32), j.astype(np.int32), shifts.astype(float)))


def _within(cutoff: float, atoms: Atoms) -> tuple[np.ndarray, ...]:
    """First and second atoms, shifts and lengths (Å) of the pairs within `cutoff` (Å).

    Each pair is there once, those of images of one atom included.
    """
    return NeighborList(cutoff=cutoff, full_list=False, sorted=True).compute(
        points=atoms.positions,
        box=boxed(atoms.cell.array, atoms.pbc),
        periodic=atoms.pbc,
        quantities="ijSd",
    )


def _assembled(positions, species, cell, periodic, crystal, bonds, cutoffs, length=None) -> CrystalGraph:
    """The graph of `bonds` (first, second, shifts): those within the angle cutoff come first, with angles."""
    i, j, shifts = bonds
    if length is None:
        r = positions[j] + np.einsum("bk,bkx->bx", shifts, cell[crystal[i]]) - positions[i]
        length = np.linalg.norm(r, axis=1)
    is_short = length < cutoffs.angle
    order = np.argsort(~is_short, kind="stable")
    i, j, shifts = i[order].astype(np.int32), j[order].astype(np.int32), shifts[order]
    short = int(is_short.sum())
    ends = np.concatenate([i[:short], j[:short]]) if cutoffs.listed else np.zeros(0, np.int32)
    angle_from, angle_to = angle_pairs(ends, len(positions))
    return CrystalGraph(
        positions=positions,
        species=species,
        cell=cell,
        periodic=periodic,
        crystal=crystal,
        first=i,
        second=j,
        shifts=shifts,
        angle_from=angle_from,
        angle_to=angle_to,
        short=short,
    )


def angle_pairs(starts: np.ndarray, atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs of different directed bonds that start at the same atom; `starts` are their atoms."""
    by_start = np.argsort(starts, kind="stable")
    count = np.bincount(starts, minlength=atoms)
    offset = np.concatenate([[0], np.cumsum(count)[:-1]])
    partners = count[starts[by_start]]  # of each directed bond, itself included
    from_slot = np.repeat(np.arange(len(starts)), partners)
    # The partners of a bond fill consecutive slots of the atom at which it starts.
    rank = np.arange(len(from_slot)) - np.repeat(np.cumsum(partners) - partners, partners)
    to_slot = offset[starts[by_start]].repeat(partners) + rank
    different = from_slot != to_slot
    angle_from, angle_to = by_start[from_slot[different]], by_start[to_slot[different]]
    return angle_from.astype(np.int32), angle_to.astype(np.int32)
