"""Hops with DFT energies: the results of ApproxNEB calculations, as JSON.

Two documented layouts are read. A file has one document, a list of them, or an object of them by name:

- `NebPathwayResult` of emmet.core.neb, {"hops": {name: {"images": [structure], "energies": [eV], ...}}}, and
  a single `NebResult` or `NebTaskDoc`, {"images": [structure], "energies": [eV], ...}, ends included;
- a document of atomate's approx_neb collection, {"end_points": [{"output": {"structure", "energy"}}],
  "images": {"0+1": [{"index", "output": {"structure", "energy"}}]}}.

Structures are those of pymatgen's `as_dict`. The rest of a file is ignored, and nothing is executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from jaxmlip.data.readers.common import open_bytes, structure_atoms
from jaxmlip.mechanics.neb import in_order_of

FILES = (".json", ".json.gz", ".json.bz2", ".json.xz")


@dataclass(frozen=True, eq=False)
class Hop:
    """The path of an atom from one place to another."""

    name: str
    images: list[Atoms]  # both ends included, all with their atoms in one order
    energies: np.ndarray  # eV, (images,), of DFT

    @property
    def mobile(self) -> int:
        """The atom that moves farthest."""
        steps = [find_mic(b.positions - a.positions, a.cell)[0] for a, b in pairwise(self.images)]
        return int(np.linalg.norm(np.sum(steps, axis=0), axis=1).argmax())


def read_hops(path: Path) -> tuple[list[Hop], dict[str, str]]:
    """The hops in a file, or in all JSON files of a folder; and, by name, the reasons why others cannot be
    used.

    Raises ValueError, naming the file, if it has none of the known layouts.
    """
    files = sorted(f for f in path.iterdir() if f.name.endswith(FILES)) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"found no file that ends in {', '.join(FILES)} in {path}, needed at least one.")
    hops: list[Hop] = []
    failed: dict[str, str] = {}
    for file in files:
        try:
            with open_bytes(file) as stream:
                document = json.load(stream)
        except (json.JSONDecodeError, UnicodeDecodeError, OSError, EOFError) as error:
            raise ValueError(f"{file} is not JSON ({error}).") from None
        for name, images in _paths(document, file.name.split(".")[0], file):
            try:
                hops.append(_hop(name, images))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                failed[name] = (
                    f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
                )
    return hops, failed


def _paths(document: Any, name: str, file: Path) -> Iterator[tuple[str, list]]:
    """(name, [(structure, energy)]) of each hop."""
    if isinstance(document, list):
        for k, one in enumerate(document):
            yield from _paths(one, f"{name} {_identifier(one) or k}", file)
    elif isinstance(document, Mapping) and isinstance(document.get("hops"), Mapping):
        for key, one in document["hops"].items():
            yield f"{name} {key}", _together(one)
    elif isinstance(document, Mapping) and isinstance(document.get("end_points"), list):
        for key, inner in dict(document.get("images") or {}).items():
            yield f"{name} {key}", _of_atomate(document["end_points"], key, inner)
    elif isinstance(document, Mapping) and "images" in document and "energies" in document:
        yield name, _together(document)
    elif (
        isinstance(document, Mapping) and document and all(isinstance(x, Mapping) for x in document.values())
    ):
        for key, one in document.items():
            yield from _paths(one, f"{name} {key}", file)
    else:
        found = (
            f"an object with {', '.join(list(document)[:6])}" if isinstance(document, Mapping) else document
        )
        raise ValueError(
            f"found {str(found)[:120]} in {file}, needed the layout of emmet's NebPathwayResult or NebResult "
            "(hops, images, energies) or of atomate's approx_neb collection (end_points, images)."
        )


def _identifier(document: Any) -> str:
    names = ("identifier", "battery_id", "wf_uuid", "task_id")
    found = [document[n] for n in names if document.get(n)] if isinstance(document, Mapping) else []
    return str(found[0]) if found else ""


def _together(result: Any) -> list:
    images, energies = ((result or {}).get(name) or [] for name in ("images", "energies"))
    return list(zip(images, energies, strict=False)) if len(images) == len(energies) else []


def _of_atomate(ends: list, key: str, inner: Any) -> list:
    numbers = key.split("+")
    if len(numbers) != 2 or not all(n.isdigit() and int(n) < len(ends) for n in numbers):
        return []
    ordered = sorted(inner or [], key=lambda image: image.get("index", 0))
    outputs = [
        (x or {}).get("output") or {} for x in (ends[int(numbers[0])], *ordered, ends[int(numbers[1])])
    ]
    if not (outputs[0].get("structure") and outputs[-1].get("structure")):
        return []
    return [(x["structure"], x["energy"]) for x in outputs if x.get("structure")]


def _hop(name: str, images: list) -> Hop:
    if len(images) < 3:
        raise ValueError("fewer than three images with structure and energy, both ends included")
    energies = np.array([energy for _, energy in images], float)
    if not np.isfinite(energies).all():
        raise ValueError("an energy that is not a number")
    crystals = [structure_atoms(structure) for structure, _ in images]
    for k in range(1, len(crystals)):  # some files list the atoms of an end in another order
        crystals[k] = in_order_of(crystals[k], crystals[k - 1])
    return Hop(name, crystals, energies)
