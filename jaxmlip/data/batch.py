"""Several labelled crystals as arrays of one shape, with a weight for every label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxmlip.crystals import batching
from jaxmlip.crystals.graph import CrystalGraph, directions, has_stress
from jaxmlip.crystals.primitive import PrimitiveCells, primitive_cells
from jaxmlip.data.labels import Labels
from jaxmlip.system.arrays import Array


class Example(NamedTuple):
    """One crystal as its graph (NumPy, without padding), with its labels."""

    graph: CrystalGraph
    labels: Labels
    functional: str = ""  # as LabelledCrystal has it

    @property
    def stress(self) -> np.ndarray | None:
        """The label (3, 3), eV/Å³, along the directions that repeat; None if there is none."""
        if self.labels.stress is None or not has_stress(self.graph):
            return None
        along = directions(self.graph.cell[0], self.graph.periodic[0])
        return along @ self.labels.stress @ along


@flax.struct.dataclass
class PerLabel:
    """The weight of each label of a batch; 0 for padding and for unknown labels."""

    energy: Float[Array, " crystals"]
    forces: Float[Array, " atoms"]
    stress: Float[Array, " crystals"]
    magmoms: Float[Array, " atoms"]
    hessian: Float[Array, " atoms"]
    third: Float[Array, " atoms"]


class SpectraShape(NamedTuple):
    """The room that a batch has for crystals with frequencies."""

    cells: batching.BatchShape
    branches: int  # 3N of the largest cell
    waves: int  # wave vectors of each crystal, drawn for frequencies
    averages: int = 0  # labels of each crystal

    @classmethod
    def holding(
        cls, cells: batching.BatchShape, atoms: int, labels: Int[np.ndarray, "n 2"], waves: int
    ) -> SpectraShape | None:
        """The room for `labels` as `spectral_labels` has them, of crystals of at most so many atoms.

        None if there are none.
        """
        frequencies, averages = labels.max(axis=0, initial=0).tolist()
        if not frequencies and not averages:
            return None
        return cls(cells, 3 * atoms, waves if frequencies else 0, averages)

    @property
    def rows(self) -> int:
        """Wave vectors of each crystal in all."""
        return self.waves + (SHIFTED**3 if self.averages else 0)


SHIFTED = 2  # points along each axis of the mesh that averages are taken over


@flax.struct.dataclass
class BatchAverages:
    """Averages over modes, as `Averages` has them; weights are 0 where there is none."""

    what: Int[Array, "crystals m"]
    at: Float[Array, "crystals m"]
    values: Float[Array, "crystals m"]
    scale: Float[Array, "crystals m"]
    weights: Float[Array, "crystals m"]
    width: Float[Array, " crystals"]


@flax.struct.dataclass
class Spectra:
    """Crystals with frequencies or averages, each at some wave vectors; unknown frequencies are zero."""

    cells: PrimitiveCells
    q_points: Float[Array, "crystals all 3"]  # reciprocal lattice units: `waves`, and those of averages
    thz: Float[Array, "crystals waves branches"]
    weights: Float[Array, "crystals waves branches"]  # 0 for padding and for unknown frequencies
    assigned: Bool[Array, "crystals waves"]  # False: each frequency is of the branch that is nearest
    averages: BatchAverages | None = None  # over wave vectors beyond those of `thz`


@flax.struct.dataclass
class Batch:
    """A packed graph with the labels of its crystals; unknown labels are zero.

    `hessian` is the product H · probe of the Hessian with the displacements `probe`: the two together are one
    column of the Hessian of each crystal, or one random mixture of its known columns. `third` is what the
    third derivatives of the energy make of two displacements, `ways`.
    """

    graph: CrystalGraph
    energy: Float[Array, " crystals"]  # eV, without the reference energies that `collate` was given
    forces: Float[Array, "atoms 3"]  # eV/Å
    stress: Float[Array, "crystals 3 3"]  # eV/Å³
    magmoms: Float[Array, " atoms"]  # μB
    probe: Float[Array, "atoms 3"]  # Å
    hessian: Float[Array, "atoms 3"]  # eV/Å
    ways: Float[Array, "2 atoms 3"]  # Å
    third: Float[Array, "atoms 3"]  # eV/Å
    atoms: Float[Array, " crystals"]  # number of atoms of each crystal, 0 for padding
    weights: PerLabel
    spectra: Spectra | None = None  # of those crystals that have frequencies, in a graph of their own


def collate(
    examples: Sequence[Example],
    shape: batching.BatchShape,
    reference_energies: Float[np.ndarray, " elements"],
    rngs: np.random.Generator | Sequence[np.random.Generator | None],
    dtype=np.float32,
    mixed: bool = False,
    spectra: SpectraShape | None = None,
) -> Batch:
    """One batch of `shape` with all `examples`.

    `reference_energies` (eV, by atomic number) are subtracted from the energies in float64, so that the
    remainder fits float32. For each crystal with a Hessian, `rngs` (one for all, or one for each) picks one
    of its columns or, with `mixed`, a mixture of all with normal weights (Hutchinson's probe); of constants
    of third order it picks one column. With `spectra` it also draws wave vectors for each crystal with
    frequencies, each as likely as its weight, so that the mean over many batches is that over all wave
    vectors; without, frequencies are left out.

    Raises ValueError if the examples do not fit into `shape` or `spectra`.
    """
    graph = batching.pack([e.graph for e in examples], shape, dtype)
    reference_energies = np.asarray(reference_energies, np.float64)
    A, C = shape.atoms, shape.crystals
    energy, stress, atoms = np.zeros(C, dtype), np.zeros((C, 3, 3), dtype), np.zeros(C, dtype)
    forces, probe, hessian, third = (np.zeros((A, 3), dtype) for _ in range(4))
    ways = np.zeros((2, A, 3), dtype)
    magmoms = np.zeros(A, dtype)
    per_crystal = {"energy": np.zeros(C, dtype), "stress": np.zeros(C, dtype)}
    per_atom = {name: np.zeros(A, dtype) for name in ("forces", "magmoms", "hessian", "third")}
    start = 0
    own_rngs = [rngs] * len(examples) if isinstance(rngs, np.random.Generator) else rngs
    for c, example in enumerate(examples):
        g, labels, _ = example
        own = slice(start, start + len(g.species))
        start = own.stop
        atoms[c] = len(g.species)
        if labels.energy is not None:
            energy[c] = labels.energy - reference_energies[g.species].sum()
        if labels.forces is not None:
            forces[own] = labels.forces
        if example.stress is not None:
            stress[c] = example.stress
        if labels.magmoms is not None:
            magmoms[own] = labels.magmoms
        if labels.hessian is not None:
            probe[own], hessian[own] = _probe(labels, len(g.species), own_rngs[c], mixed)
        if labels.third is not None:
            k = own_rngs[c].integers(len(labels.third))
            ways[:, own] = np.eye(3 * len(g.species))[labels.pairs[k]].reshape(2, -1, 3)
            third[own] = labels.third[k]
        for name in labels.known:
            if name == "stress" and example.stress is None:
                continue
            if name in per_crystal:
                per_crystal[name][c] = labels.weight_of(name)
            elif name in per_atom:
                per_atom[name][own] = labels.weight_of(name)
    weights = PerLabel(**per_crystal, **per_atom)
    waves = None if spectra is None else _spectra(examples, own_rngs, spectra, dtype)
    return Batch(graph, energy, forces, stress, magmoms, probe, hessian, ways, third, atoms, weights, waves)


def _spectra(
    examples: Sequence[Example],
    rngs: Sequence[np.random.Generator | None],
    shape: SpectraShape,
    dtype,
) -> Spectra:
    """The crystals of `examples` that have frequencies or averages, at wave vectors that are drawn.

    Those of averages are a mesh with a random origin, so that the mean over many batches is that over all
    wave vectors, with less noise than of as many that are drawn one by one.
    """
    labelled = {"frequencies", "averages"}
    some = [(e, rng) for e, rng in zip(examples, rngs, strict=True) if labelled.intersection(e.labels.known)]
    masses = [(e.labels.frequencies or e.labels.averages).masses for e, _ in some]
    cells = primitive_cells([e.graph for e, _ in some], masses, shape.cells, shape.branches, dtype)
    rows = (shape.cells.crystals, shape.waves)
    mesh = np.moveaxis(np.indices((SHIFTED,) * 3), 0, -1).reshape(-1, 3) / SHIFTED
    q_points = np.zeros((rows[0], shape.rows, 3), dtype)
    averages = _no_averages(shape, dtype) if shape.averages else None
    thz, weights = (np.zeros((*rows, shape.branches), dtype) for _ in range(2))
    assigned = np.ones(rows, bool)
    for c, (example, rng) in enumerate(some):
        labels = example.labels
        if (its := labels.frequencies) is not None and shape.waves:
            branches = its.thz.shape[1]
            k = rng.choice(len(its.thz), shape.waves, p=its.weights / its.weights.sum())
            q_points[c, : shape.waves], assigned[c] = its.q_points[k], its.assigned[k]
            thz[c, :, :branches] = np.nan_to_num(its.thz[k])
            weights[c, :, :branches] = labels.weight_of("frequencies") * its.confidence[k]
        if (its := labels.averages) is not None and averages is not None:
            q_points[c, shape.waves :] = mesh + rng.random(3) / SHIFTED
            m = len(its.what)
            for name in ("what", "at", "values", "scale"):
                getattr(averages, name)[c, :m] = getattr(its, name)
            averages.weights[c, :m] = labels.weight_of("averages")
            averages.width[c] = its.width or 1.0
    return Spectra(cells, q_points, thz, weights, assigned, averages)


def _no_averages(shape: SpectraShape, dtype) -> BatchAverages:
    """Room for averages of all cells, without any."""
    size = (shape.cells.crystals, shape.averages)
    what, at = np.zeros(size, np.int32), np.ones(size, dtype)
    values, scale, weights = (np.full(size, x, dtype) for x in (0, 1, 0))
    return BatchAverages(what, at, values, scale, weights, np.ones(size[0], dtype))


def _probe(labels: Labels, atoms: int, rng: np.random.Generator, mixed: bool):
    k = len(labels.hessian)
    mixture = rng.normal(size=k) if mixed else np.eye(k)[rng.integers(k)]
    probe = np.zeros(3 * atoms)
    probe[labels.columns] = mixture
    return probe.reshape(atoms, 3), np.einsum("k,kax->ax", mixture, labels.hessian)


def stack(batches: Sequence[Batch]) -> Batch:
    """Batches of one shape with a new leading axis, one entry for each device."""
    return jax.tree.map(lambda *x: np.stack(x), *batches)
