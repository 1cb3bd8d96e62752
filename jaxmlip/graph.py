"""Crystals as graphs: atoms, bonds between them, and angles between short bonds.

One convention serves every model: a bond is stored once, and seen from both of its ends. Everything that
belongs to a bond lives in the cell of its first atom, so the second atom is fetched from `shifts` cells
away, and nothing has to search for the reverse of an edge.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from vesin import NeighborList

from jaxmlip.fetch import gather

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

CLOSEST = 0.5  # Å; below this no potential of this library has seen data
ELEMENTS = 118  # Z goes no further: species beyond are the elements again, of the next functional


class Cutoffs(NamedTuple):
    """How far a model looks: `bond` for pairs, `angle` for the two bonds of an angle (Å; 0: no angles)."""

    bond: float
    angle: float = 0.0
    listed: bool = True  # False: the model sums over angles without a list of them


@flax.struct.dataclass
class CrystalGraph:
    """One crystal, or several laid side by side as one disconnected graph.

    Bond b joins atom i = first[b] to the image of atom j = second[b] that lies `shifts[b]` cells away,
    along r_ij = positions[j] + shifts[b] @ cell - positions[i]. Each pair of atoms within the bond cutoff
    is stored once. The `short` leading bonds are those within the angle cutoff, and their padding.

    A directed short bond is numbered d: d < short is bond d seen from its first atom, d >= short is bond
    d - short seen from its second. An angle is an ordered pair of two different directed short bonds
    (angle_from, angle_to) that start at the same atom; a model that needs no list of them gets none.

    Padding atoms have species 0 and belong to the last crystal; padding bonds are loops of zero length on
    a padding atom; padding angles lie between padding bonds; padding crystals have no atoms.
    """

    positions: Float[Array, "atoms 3"]  # Å
    species: Int[Array, " atoms"]  # Z; Z + 118 k for the functional k of a potential that has several
    cell: Float[Array, "crystals 3 3"]  # Å, rows are lattice vectors, as in ASE
    crystal: Int[Array, " atoms"]  # the crystal that each atom belongs to
    first: Int[Array, " bonds"]
    second: Int[Array, " bonds"]
    shifts: Float[Array, "bonds 3"]  # whole lattice vectors
    angle_from: Int[Array, " angles"]
    angle_to: Int[Array, " angles"]
    short: int = flax.struct.field(pytree_node=False)

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
        shifts = jnp.asarray(self.shifts[: self.short])
        bond = jnp.arange(self.short)
        return BondEnds(
            jnp.concatenate([bond, bond]),
            jnp.concatenate([jnp.ones_like(shifts[:, 0]), -jnp.ones_like(shifts[:, 0])]),
            jnp.concatenate([first, second]),
            # Seen from its second atom, a bond is kept at the atom `shifts` cells back.
            jnp.concatenate([jnp.zeros_like(shifts), -shifts]),
        )


class BondEnds(NamedTuple):
    """Bonds as one of their ends sees them."""

    bond: Int[Array, " n"]  # which of the short bonds
    sign: Float[Array, " n"]  # +1 where the bond's own direction leads away from the atom, else -1
    atom: Int[Array, " n"]  # the atom it is seen from
    image: Float[Array, "n 3"]  # the cell, relative to that atom's, in which the bond is kept


def bond_vectors(graph: CrystalGraph) -> Float[Array, "bonds 3"]:
    """r_ij (Å) from the first atom of each bond to the image of the second."""
    cell = graph.cell[graph.crystal[graph.first]]
    shift = jnp.einsum("bk,bkx->bx", graph.shifts, cell)
    second = gather(graph.positions, graph.second, graph.shifts)
    return second + shift - gather(graph.positions, graph.first)


def atomic_number(species):
    """Z of species, whatever the functional; an array, or one number."""
    return species - (species > 0) * ((species - 1) // ELEMENTS * ELEMENTS)


def sum_over_crystals(per_atom: Float[Array, " atoms"], graph: CrystalGraph) -> Float[Array, " crystals"]:
    """The sum of a per-atom quantity over the atoms of each crystal."""
    return jax.ops.segment_sum(per_atom, graph.crystal, len(graph.cell))


def as_atoms(crystal: Atoms | Structure) -> Atoms:
    """`crystal` as ase.Atoms, whether it is that already or a pymatgen Structure."""
    from ase import Atoms

    if isinstance(crystal, Atoms):
        return crystal
    if hasattr(crystal, "to_ase_atoms"):
        return crystal.to_ase_atoms(msonable=False)
    raise TypeError(
        f"found {type(crystal).__module__}.{type(crystal).__name__}, needed a crystal as ase.Atoms or "
        "pymatgen.core.Structure. Read a file with ase.io.read or Structure.from_file first."
    )


def check_crystal(atoms: Atoms) -> None:
    """Raises ValueError, naming what is wrong and what to do, unless `atoms` is a crystal."""
    name = atoms.get_chemical_formula() or "the structure"
    if len(atoms) == 0:
        raise ValueError(
            "found an empty structure, needed at least one atom. Check that the file that it "
            "came from was read to its end."
        )
    if not atoms.pbc.all():
        raise ValueError(
            f"{name} has pbc={atoms.pbc.tolist()}, but a crystal repeats in three directions. For a "
            "molecule or a slab, call atoms.center(vacuum=10, axis=...) where there is no cell yet, and "
            "set atoms.pbc = True."
        )
    cell = atoms.cell.array
    if not np.isfinite(cell).all():
        raise ValueError(f"the cell of {name} holds {cell.tolist()}, needed nine finite numbers (Å).")
    volume = abs(np.linalg.det(cell))
    if volume < 1e-3 * len(atoms):
        raise ValueError(
            f"the cell of {name} has a volume of {volume:.3g} Å³, needed three lattice vectors that span "
            "space. Set atoms.cell to the crystal's lattice vectors, as rows."
        )
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(bad):
        raise ValueError(
            f"the position of atom {bad[0]} ({atoms.symbols[bad[0]]}) of {name} is "
            f"{atoms.positions[bad[0]].tolist()}, needed finite numbers (Å). {len(bad)} of "
            f"{len(atoms)} positions are not finite; the run that made them probably diverged."
        )


def check_elements(atoms: Atoms, elements: Collection[int]) -> None:
    """Raises ValueError, naming element and site, unless each atomic number is among `elements`."""
    unknown = np.flatnonzero(~np.isin(atoms.numbers, list(elements)))
    if len(unknown):
        site = unknown[0]
        others = sorted(set(atoms.symbols[unknown]) - {atoms.symbols[site]})
        raise ValueError(
            f"found {atoms.symbols[site]} (Z = {atoms.numbers[site]}) at site {site} of "
            f"{atoms.get_chemical_formula()}"
            + (f", and {', '.join(others)} elsewhere" if others else "")
            + f", needed one of the {len(elements)} elements that this potential was fitted to. "
            "Potential.elements lists their atomic numbers."
        )


def from_atoms(crystal: Atoms | Structure, cutoffs: Cutoffs | float) -> CrystalGraph:
    """The graph of `crystal`, in NumPy, without padding.

    `cutoffs` is a distance in Å, a `Cutoffs`, or a Potential, whose elements are then checked too.
    Cells may be of any shape and size: an atom can be bonded to several images of another and of itself.

    Raises ValueError where `crystal` is no crystal (no atoms, not periodic, no volume, NaN positions), or the
    potential has several functionals; warns where two atoms are closer than 0.5 Å.
    """
    if several := getattr(cutoffs, "functionals", ()):
        raise ValueError(
            f"{cutoffs.name} has the functionals {', '.join(several)}, needed a potential of one: "
            f"jaxmlip.training.fidelities.select(potential, {several[0]!r}), or of a run "
            f"`jaxmlip export RUN OUT --functional {several[0]}`."
        )
    elements = getattr(cutoffs, "elements", None)
    cutoffs = getattr(cutoffs, "cutoffs", cutoffs)
    cutoffs = cutoffs if isinstance(cutoffs, Cutoffs) else Cutoffs(float(cutoffs))
    atoms = as_atoms(crystal)
    check_crystal(atoms)
    if elements is not None:
        check_elements(atoms, elements)
    cell = atoms.cell.array
    # A half list holds each pair of atoms once, a pair of images of one atom included.
    i, j, shifts, length = NeighborList(cutoff=cutoffs.bond, full_list=False, sorted=True).compute(
        points=atoms.positions, box=cell, periodic=True, quantities="ijSd"
    )
    if len(length) and length.min() < CLOSEST:
        b = length.argmin()
        warnings.warn(
            f"atoms {i[b]} ({atoms.symbols[i[b]]}) and {j[b]} ({atoms.symbols[j[b]]}) of "
            f"{atoms.get_chemical_formula()} are {length[b]:.3f} Å apart; no potential was fitted to "
            f"distances below {CLOSEST} Å, so energies and forces mean little here.",
            stacklevel=2,
        )
    is_short = length < cutoffs.angle
    order = np.argsort(~is_short, kind="stable")
    i, j, shifts = i[order].astype(np.int32), j[order].astype(np.int32), shifts[order]
    short = int(is_short.sum())
    ends = np.concatenate([i[:short], j[:short]]) if cutoffs.listed else np.zeros(0, np.int32)
    angle_from, angle_to = angle_pairs(ends, len(atoms))
    return CrystalGraph(
        positions=atoms.positions,
        species=atoms.numbers.astype(np.int32),
        cell=cell[None],
        crystal=np.zeros(len(atoms), np.int32),
        first=i,
        second=j,
        shifts=shifts.astype(float),
        angle_from=angle_from,
        angle_to=angle_to,
        short=short,
    )


def angle_pairs(starts: np.ndarray, atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs of different directed bonds that start at the same atom, given where each starts."""
    by_start = np.argsort(starts, kind="stable")
    count = np.bincount(starts, minlength=atoms)
    offset = np.concatenate([[0], np.cumsum(count)[:-1]])
    partners = count[starts[by_start]]  # of each directed bond, itself included
    from_slot = np.repeat(np.arange(len(starts)), partners)
    # The partners of a bond fill the consecutive slots of the atom that it starts at.
    rank = np.arange(len(from_slot)) - np.repeat(np.cumsum(partners) - partners, partners)
    to_slot = offset[starts[by_start]].repeat(partners) + rank
    different = from_slot != to_slot
    angle_from, angle_to = by_start[from_slot[different]], by_start[to_slot[different]]
    return angle_from.astype(np.int32), angle_to.astype(np.int32)
