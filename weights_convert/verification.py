"""Compares a converted model with its original, if that is installed, or with numbers that it published."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from jaxmlip.potential import Potential, architecture_of
from weights_convert import golden

TOLERANCE = 1e-6  # for all quantities, in float64
UNITS = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³", "magmoms": "μB"}


def check_original(potential: Potential) -> None:
    """Raises ValueError if there is no original to compare with, ImportError if it is not installed."""
    architecture = architecture_of(potential.model)
    if architecture not in golden.PACKAGES:
        raise ValueError(
            f"--verify runs the original of {', '.join(golden.PACKAGES)}, and found {architecture}, whose "
            "package numbers the bonds of its three-body terms differently. Convert without --verify."
        )
    original, _, requirement = golden.PACKAGES[architecture]
    if absent := original.missing():
        raise ImportError(
            f"--verify found no {' and no '.join(absent)} in this environment, needed both beside jaxmlip: "
            f"pip install {requirement}. Without --verify the conversion needs neither."
        )


def differences(source: Path, potential: Potential) -> dict[str, float]:
    """The largest differences from the original in `source` on small crystals that it takes, in UNITS.

    `potential` is the converted one, computing in float64. Raises ValueError if the original takes none.
    """
    original, *_ = golden.PACKAGES[architecture_of(potential.model)]
    head = {"head": potential.manifest["head"]} if "head" in potential.manifest else {}
    crystals = golden.structures_of(potential.elements)
    theirs = original.predictions(source, crystals, **head)
    if not theirs:
        raise ValueError(f"the original refused all of {', '.join(crystals)}, needed one to compare.")
    crystals = {name: crystals[name] for name in theirs}
    pairs = zip(crystals.items(), potential.predict(crystals.values()), strict=True)
    return _worst((len(atoms), ours, theirs[name]) for (name, atoms), ours in pairs)


@cache
def published() -> dict[str, Any]:
    """Structures, and results that the authors of models published for them: published_references.json."""
    return json.loads(files("weights_convert").joinpath("published_references.json").read_text("utf-8"))


def published_head(name: str) -> str | None:
    """The head that results of this public model were published of; None if it has no heads.

    Raises ValueError if none were published.
    """
    known = published()
    if name not in known["models"]:
        raise ValueError(
            f"no results of {name} have been published that are known here, needed one of "
            f"{', '.join(known['models'])}. `jaxmlip convert FILE OUT --verify` compares with an original "
            "that is installed."
        )
    return known["heads"].get(name)


def differences_from_published(potential: Potential) -> dict[str, float]:
    """The largest differences from what the authors of a public model published, in UNITS.

    `potential` computes in float64, with its `published_head`.
    """
    known = published()
    theirs = known["models"][potential.name]
    crystals = [structure_of(known["structures"][name]) for name in theirs]
    return _worst(
        (len(atoms), ours, its)
        for atoms, ours, its in zip(crystals, potential.predict(crystals), theirs.values(), strict=True)
    )


def structure_of(its: dict[str, Any]) -> Atoms:
    return Atoms(its["symbols"], its["positions_A"], cell=its["cell_A"], pbc=its["pbc"])


def _worst(compared: Iterable[tuple[int, Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, float]:
    """The largest differences of each quantity, of (number of atoms, ours, theirs) for each structure."""
    worst: dict[str, float] = {}
    for atoms, ours, theirs in compared:
        for quantity in UNITS.keys() & theirs.keys():
            scale = atoms if quantity == "energy" else 1
            off = np.abs(np.asarray(ours[quantity]) - theirs[quantity]).max() / scale
            # max() would drop a NaN.
            worst[quantity] = max(worst.get(quantity, 0.0), np.inf if np.isnan(off) else float(off))
    return {quantity: worst[quantity] for quantity in UNITS if quantity in worst}
