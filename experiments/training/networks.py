"""Small networks of each architecture, which train from random parameters in minutes on two cores."""

from __future__ import annotations

from typing import Any

WIDTHS = {"chgnet": 32, "m3gnet": 32, "mace": 16}  # of networks that learn one metal


def small(architecture: str, width: int) -> dict[str, Any]:
    """Arguments of training.config.hyperparameters for a network with `width` features or channels.

    Shallower and with fewer basis functions than published networks. Raises ValueError for an unknown
    architecture.
    """
    known = {
        "chgnet": {
            "features": width,
            "radial": 9,
            "angular": 9,
            "blocks": 3,
            "bond_cutoff": 5.0,
            "angle_cutoff": 3.0,
            "readout": [width, width],
        },
        "m3gnet": {"features": width, "hidden": width, "blocks": 2},
        "mace": {
            "channels": width,
            "harmonics_l": 2,
            "correlation": [3, 2],
            "blocks": ["agnostic", "residual"],
            "average_neighbours": 60.0,
            "cutoff": 5.0,
            "radial": 8,
            "radial_widths": [32, 32],
            "agnesi": False,
            "repulsion": False,
            "cutoff_on_basis": False,
        },
    }
    if architecture not in known:
        raise ValueError(f"found the architecture {architecture!r}, needed one of {', '.join(known)}.")
    return known[architecture]
