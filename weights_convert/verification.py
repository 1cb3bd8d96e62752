"""Compares a converted model with its original, if the package of the original is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
    """The largest differences from the original in `source` on small crystals, in UNITS.

    `potential` is the converted one, computing in float64.
    """
    original, *_ = golden.PACKAGES[architecture_of(potential.model)]
    head = {"head": potential.manifest["head"]} if "head" in potential.manifest else {}
    crystals = golden.structures_of(potential.elements)
    theirs = original.predictions(source, crystals, **head)
    worst: dict[str, float] = {}
    for (name, atoms), ours in zip(crystals.items(), potential.predict(crystals.values()), strict=True):
        for quantity in UNITS.keys() & theirs[name].keys():
            scale = len(atoms) if quantity == "energy" else 1
            off = np.abs(np.asarray(ours[quantity]) - theirs[name][quantity]).max() / scale
            # max() would drop a NaN.
            worst[quantity] = max(worst.get(quantity, 0.0), np.inf if np.isnan(off) else float(off))
    return {quantity: worst[quantity] for quantity in UNITS if quantity in worst}
