"""Absolute errors of potentials by material, so that one material cannot dominate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxmlip.crystals import batches
from jaxmlip.data.dataset import Split
from jaxmlip.potential import Potential
from jaxmlip.system.progress import track
from jaxmlip.units import GPA_PER_EV_PER_A3


def predictions(potentials: Sequence[Potential], split: Any) -> list[dict[str, Any]]:
    """The sum of the predictions of several potentials for each crystal; magnetic moments are the first's."""
    found: list[dict[str, Any]] = [{} for _ in range(len(split))]
    parts = batches.side_by_side(np.asarray(split.sizes), batches.MESSAGES)
    for batch, shape in track(parts, "energies and forces"):
        graphs = [split[k].graph for k in batch]
        for potential in potentials:
            for k, its in zip(batch, potential.predict_graphs(graphs, shape), strict=True):
                added = {p: found[k].get(p, 0) + its[p] for p in ("energy", "forces", "stress")}
                found[k] = dict(its) | found[k] | added
    return found


def errors(
    predicted: Sequence[Mapping[str, Any]], split: Split, materials: Sequence[int], number: int
) -> dict[str, list[list[float]]]:
    """Sums of absolute errors (eV/atom, eV/Å, GPa, μB) by property, for each of `number` materials.

    An entry is the sum over the crystals of a material, and the count of its numbers; `materials` are those
    of the crystals.
    """
    found: dict[str, np.ndarray] = {}
    examples = (split[k] for k in range(len(split)))
    for its, x, material in zip(predicted, examples, materials, strict=True):
        labels = x.labels
        units = {"energy": 1 / len(x.graph.species), "forces": 1, "stress": GPA_PER_EV_PER_A3, "magmoms": 1}
        for name, unit in units.items():
            if name in labels.known and name in its:
                error = unit * np.abs(np.asarray(its[name], float) - getattr(labels, name))
                sums = found.setdefault(name, np.zeros((number, 2)))
                sums[material] += error.sum(), error.size
    return {name: sums.tolist() for name, sums in found.items()}


def mean(sums: ArrayLike) -> float:
    """The mean over all numbers; `sums` (…, materials, 2) are sums of absolute errors with their counts."""
    total = np.asarray(sums).reshape(-1, 2).sum(axis=0)
    return float(total[0] / total[1]) if total[1] else math.nan


def median(sums: ArrayLike) -> float:
    """The median of the mean errors of materials, from `sums` (materials, 2); without numbers none counts."""
    sums = np.asarray(sums)
    known = sums[sums[:, 1] > 0]
    return float(np.median(known[:, 0] / known[:, 1])) if len(known) else math.nan
