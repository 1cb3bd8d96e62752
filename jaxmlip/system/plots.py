"""Figures: panels, parity, points with intervals, one legend for all panels, colours.

Figures are made with matplotlib's object interface, which needs no display and leaves the caller's pyplot
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito (2008)
MARKERS = "osD^vP*Xp"
VIOLIN = 5  # least number of values for a violin; fewer are shown as points alone


def panels(
    lines: int = 1,
    columns: int = 1,
    each: tuple[float, float] = (3.2, 2.8),
    spare: tuple[float, float] = (0.4, 0.5),
    **options: Any,
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (lines, columns), `each` inches wide and high, with `spare` inches around them.

    `options` go to `Figure.subplots`.
    """
    from matplotlib.figure import Figure

    size = (each[0] * columns + spare[0], each[1] * lines + spare[1])
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(lines, columns, squeeze=False, **options)


def grid(count: int, across: int = 3, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, at most `across` in a line. `options` go to `panels`."""
    columns = min(across, count)
    figure, axes = panels(-(-count // columns), columns, **options)
    for empty in axes.flat[count:]:
        empty.set_axis_off()
    return figure, list(axes.flat[:count])


def styles(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Colour and marker for each name, in order."""
    return {
        name: {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
        for k, name in enumerate(dict.fromkeys(names))
    }


def diagonal(axes: Axes, label: str | None = None, top: float | None = None) -> None:
    """Draws the line on which both sides are equal.

    With `top` both axes go from 0 to a little beyond it; otherwise they are scaled to the other data.
    """
    look = {"color": "0.4", "lw": 0.9, "zorder": 1, "label": label}
    axes.axline((0, 0), slope=1, transform=axes.transData, **look)
    if top is not None:
        axes.set(xlim=(0, 1.06 * top), ylim=(0, 1.06 * top), aspect="equal")


def parity(axes: Axes, what: str, unit: str, label: str | None = None, top: float | None = None) -> None:
    """Labels the axes of a quantity as DFT's and the model's, and draws `diagonal`."""
    diagonal(axes, label, top)
    axes.set(xlabel=f"{what}, DFT ({unit})", ylabel=f"{what}, model ({unit})")
    axes.grid(color="0.92", lw=0.6)
    axes.set_axisbelow(True)


def strip(
    axes: Axes, x: float, width: float, values: Sequence[float], view: tuple[float, float], **style: Any
) -> None:
    """Values around `x` with their median, and a violin if there are several.

    Values outside `view` are marked at its border.
    """
    values = np.asarray(values, float)
    inside, colour = np.clip(values, *view), style["color"]
    if np.ptp(inside) > 0 and len(values) >= VIOLIN:
        (body,) = axes.violinplot([inside], [x], widths=0.9 * width, showextrema=False)["bodies"]
        body.set(facecolor=colour, edgecolor="none", alpha=0.25)
    # Points are spread sideways in the order of their values, so that close ones do not hide each other.
    ranks = np.argsort(np.argsort(values))
    sideways = x + 0.5 * width * ((ranks * 0.618) % 1 - 0.5) * (len(values) > 1)
    kept = inside == values
    size = 3.5 if len(values) < 50 else 1.5
    axes.plot(sideways[kept], inside[kept], ls="", ms=size, alpha=0.8, mew=0, **style)
    for limit, arrow, inwards in zip(view, "v^", (0.04, -0.04), strict=True):
        at = ~kept & (inside == limit)
        axes.plot(sideways[at], inside[at] + inwards, arrow, color=colour, ms=6)
    axes.hlines(np.median(inside), x - 0.42 * width, x + 0.42 * width, color=colour, lw=2)


def with_intervals(axes: Axes, x: Sequence[float], estimates: Sequence[Any], **style: Any) -> None:
    """Points with 95 % intervals: `estimates` have value, low and high; low and high may be NaN."""
    value, low, high = np.array(estimates, float).reshape(-1, 3).T
    bars = np.nan_to_num([value - low, high - value])
    axes.errorbar(x, value, bars, **({"capsize": 3} | style))


def element_ticks(axes: Axes, at: Sequence[float], numbers: Sequence[int]) -> None:
    """Names elements, given by atomic numbers, below the places `at`; every second one is a line lower."""
    from ase.data import chemical_symbols

    axes.set_xticks(at, ["\n" * (k % 2) + chemical_symbols[z] for k, z in enumerate(numbers)], fontsize=6)


def legend(figure: Figure, where: str = "lower", **options: Any) -> None:
    """Draws one legend for all panels, below them or, with "upper", above; each name once."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for drawn, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, drawn)
    look = {"loc": f"outside {where} center", "ncols": min(3, len(handles) or 1), "frameon": False}
    figure.legend(handles.values(), handles.keys(), **(look | options))
