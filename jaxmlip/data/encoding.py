"""A crystal with its graph and labels as bytes, in the safetensors format, which cannot hold code.

Angles are not stored: they follow from the bonds, and would nearly double the size.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from jaxmlip.crystals.graph import CrystalGraph, Cutoffs, angle_pairs
from jaxmlip.data.batch import Example
from jaxmlip.data.labels import PROPERTIES, Averages, Frequencies, Labels
from jaxmlip.system.borders import shallow

# The arrays of frequencies by their names in a record.
SPECTRUM = {
    "thz": "thz",
    "thz_error": "error",
    "q_points": "q_points",
    "q_weights": "weights",
    "assigned": "assigned",
    "masses": "masses",
}
AVERAGED = {
    "average": "what",
    "average_at": "at",
    "average_values": "values",
    "average_masses": "masses",
    "average_width": "width",
}


def encode(example: Example, name: str = "", material: str = "") -> bytes:
    """One crystal as bytes; whole numbers take the smallest type that holds them.

    Positions, cell, energy and stress stay in float64; forces, magnetic moments and Hessians become float32,
    whose rounding error is far below the noise of DFT.
    """
    g, labels, functional = example
    tensors = {
        "positions": g.positions,
        "species": g.species.astype(np.uint8),
        "cell": g.cell[0],
        "first": _small(g.first),
        "second": _small(g.second),
        "shifts": _small(g.shifts.astype(np.int64)),
        "short": np.array(g.short, np.int32),
        "weight": np.array(labels.weight),
    }
    kept = {"energy": np.float64, "stress": np.float64}
    for p in labels.known:
        if p not in ("frequencies", "averages"):
            tensors[p] = np.asarray(getattr(labels, p), kept.get(p, np.float32))
    if labels.frequencies is not None:
        tensors |= {key: np.asarray(getattr(labels.frequencies, its)) for key, its in SPECTRUM.items()}
        tensors["assigned"] = tensors["assigned"].astype(np.uint8)
    if labels.averages is not None:
        tensors |= {key: np.asarray(getattr(labels.averages, its)) for key, its in AVERAGED.items()}
    if labels.hessian is not None:
        tensors["columns"] = labels.columns.astype(np.int32)
    if labels.third is not None:
        tensors["pairs"] = labels.pairs.astype(np.int32)
    if not g.periodic.all():  # most are; a record without this entry is periodic
        tensors["periodic"] = g.periodic[0].astype(np.uint8)
    if labels.weights:
        tensors["weights"] = np.array([labels.weights.get(p, 1.0) for p in PROPERTIES])
    tensors = {key: np.asarray(x, order="C") for key, x in tensors.items()}
    # One entry: the order of several would be random, and so would the bytes.
    about = [name, material, functional] if functional else [name, material]
    return safetensors.numpy.save(tensors, {"crystal": json.dumps(about)})


def decode(record: bytes, cutoffs: Cutoffs) -> Example:
    """The crystal that `encode` was given. Raises ValueError if the bytes do not describe one."""
    try:
        t = safetensors.numpy.load(record)
        atoms = len(t["species"])
        first, second, shifts = (t[key].astype(np.int32) for key in ("first", "second", "shifts"))
        short, bonds = int(t["short"]), len(first)
        t.setdefault("periodic", np.ones(3, np.uint8))
        shapes = {
            "periodic": (3,),
            "positions": (atoms, 3),
            "cell": (3, 3),
            "second": (bonds,),
            "shifts": (bonds, 3),
        }
        wrong = [key for key, shape in shapes.items() if t[key].shape != shape]
        wrong += [key for key, x in t.items() if x.dtype.kind not in "iuf"]
        ends = np.concatenate([first, second])
        if wrong or not 0 <= short <= bonds or (bonds and not 0 <= ends.min() <= ends.max() < atoms):
            raise ValueError(f"arrays that do not fit together: {', '.join(wrong) or 'numbers of bonds'}")
        if not (np.isfinite(t["positions"]).all() and np.isfinite(t["cell"]).all()):
            raise ValueError("positions or a cell that are not finite")
        if atoms and not 1 <= t["species"].min() <= t["species"].max() <= 118:
            raise ValueError("atomic numbers that no element has")
        starts = ends[np.r_[:short, bonds : bonds + short]] if cutoffs.listed else ends[:0]
        angle_from, angle_to = angle_pairs(starts, atoms)
        graph = CrystalGraph(
            positions=t["positions"].astype(np.float64),
            species=t["species"].astype(np.int32),
            cell=t["cell"].astype(np.float64)[None],
            periodic=t["periodic"].astype(bool)[None],
            crystal=np.zeros(atoms, np.int32),
            first=first,
            second=second,
            shifts=shifts.astype(float),
            angle_from=angle_from,
            angle_to=angle_to,
            short=short,
        )
        known = {p: t[p] for p in (*PROPERTIES, "columns", "pairs") if p in t}
        if "thz" in t:
            known["frequencies"] = Frequencies(**{its: t[key] for key, its in SPECTRUM.items()})
        if "average" in t:
            known["averages"] = Averages(**{its: t[key] for key, its in AVERAGED.items()})
        # Records of older data sets have no weight of properties that came later.
        weights = dict(zip(PROPERTIES, t["weights"].tolist(), strict=False)) if "weights" in t else {}
        labels = Labels(**known, weight=float(t["weight"]), weights=weights).check(atoms, "labels")
        return Example(graph, labels, title(record).functional)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"other arrays than a crystal has ({error!r})") from None
    except safetensors.SafetensorError as error:
        raise ValueError(f"not safetensors ({error})") from None


class Title(NamedTuple):
    """The name, material and functional of a crystal."""

    name: str
    material: str
    functional: str = ""


def title(record: bytes) -> Title:
    """The title that `encode` was given. Raises ValueError if the bytes have none."""
    try:
        with shallow():
            header = json.loads(record[8 : 8 + int.from_bytes(record[:8], "little")])["__metadata__"]
            return Title(*map(str, json.loads(header["crystal"])))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(repr(error)) from None


def _small(x: np.ndarray) -> np.ndarray:
    """x in the smallest signed integers that hold it."""
    most = int(np.abs(x).max(initial=0))
    return x.astype(next(t for t in (np.int8, np.int16, np.int32) if most <= np.iinfo(t).max))
