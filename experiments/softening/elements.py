"""Force constants of a model against those of DFT, element by element, of whatever order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmlip.system.plots import styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jaxmlip.derivatives.slopes import Slope

Rows = Sequence[Mapping[str, Any]]


def numbers(slope: Slope) -> dict[str, Any]:
    """What a row keeps of a slope."""
    return {
        "slope": slope.slope,
        "interval": slope.interval,
        "inverse": slope.inverse,
        "r2": slope.r_squared,
        "shrinkage": slope.shrinkage_share,
        "error": slope.relative_error,
        "mae": slope.mae,
    }


def draw_elements(axes: Axes, rows: Rows, kinds: Sequence[str], name: str, unit: str, linear: float) -> None:
    """Points (DFT, model) of each kind, on scales that are linear below `linear` and logarithmic above."""
    for kind, style in styles(kinds).items():
        x, y = (np.concatenate([row["points"][kind][k] for row in rows]) for k in (0, 1))
        axes.plot(x, y, ls="", ms=3, alpha=0.5, label=kind, rasterized=True, **style)
    axes.set_xscale("symlog", linthresh=linear)
    axes.set_yscale("symlog", linthresh=linear)
    limit = axes.get_xlim()
    axes.plot(limit, limit, color="0.4", lw=0.9)
    axes.set(xlabel=f"{name}, DFT ({unit})", ylabel=f"{name}, model ({unit})")
    axes.legend(frameon=False, fontsize=8, markerscale=2)
