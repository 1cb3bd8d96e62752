"""Figures of a training run: learning curves, and model against DFT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlip.system.plots import COLOURS, grid, legend, panels
from jaxmlip.training.errors import Comparison, errors
from jaxmlip.training.losses import UNITS

MANY = 3000  # points of a panel; more are drawn as a density
PER_PANEL = 200_000  # values of a panel at most


def learning_curves(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Loss and MAEs against the step, from the lines of metrics.jsonl, as an image at `path`."""
    from matplotlib.ticker import LogLocator, MaxNLocator  # here, since few processes draw

    lines = list(lines)
    names = [f"{p}_mae" for p in UNITS]
    shown = ["loss", *(n for n in names if any(line.get(n) is not None for line in lines))]
    wide = 2 if len(shown) in (2, 4) else min(len(shown), 3)
    figure, drawn = grid(len(shown), wide, each=(4.0, 3.0), spare=(0, 0.5))
    for axes, name in zip(drawn, shown, strict=True):
        values = []
        for kind, colour in (("train", COLOURS[0]), ("validation", COLOURS[1])):
            points = [
                (line["step"], line[name])
                for line in lines
                if line["kind"] == kind and line.get(name) is not None
            ]
            if points:
                x, y = np.array(points, float).T
                few = "o-" if len(x) < 60 else "-"
                axes.plot(x, y, few, color=colour, lw=1.2, ms=3, label=kind)
                values += list(y)
        if values and 0 < 5 * min(values) < max(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.yaxis.set_minor_formatter("{x:g}")
        property_ = name.removesuffix("_mae")
        axes.set_ylabel("loss" if name == "loss" else f"MAE of {property_} ({UNITS[property_]})")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(color="0.92", lw=0.6, which="both", zorder=0)
    legend(figure)
    figure.savefig(path, dpi=150)


def parity(rows: Mapping[str, Comparison], path: Path) -> None:
    """Model against DFT: a row of panels for each entry, such as before and after training."""
    properties = [p for p in UNITS if any(p in compared for compared in rows.values())]
    spare = (max(4 - 3.3 * len(properties), 0), 0.2)
    figure, lines = panels(len(rows), len(properties), (3.3, 3.3), spare)
    for n, (title, compared) in enumerate(rows.items()):
        found = errors(compared)
        for k, name in enumerate(properties):
            axes = lines[n, k]
            if name not in compared:
                axes.set_axis_off()
                continue
            x, y = (
                np.concatenate([np.ravel(getattr(pair, side)) for pair in compared[name]]).astype(float)
                for side in ("dft", "model")
            )
            both = [
                np.ravel(getattr(pair, side))
                for other in rows.values()
                for pair in other.get(name, ())
                for side in ("dft", "model")
            ]
            _panel(axes, x, y, _limits(both))
            e = found[name]
            slope = "" if e.slope is None else f"slope {e.slope:.3f}, r² {e.r_squared or 0:.3f}\n"
            axes.text(
                *(0.04, 0.96),
                f"{slope}MAE {e.mae:.3g} {UNITS[name]}",
                transform=axes.transAxes,
                va="top",
                fontsize=8,
                bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1.5},
                zorder=40,
            )
            axes.set_title(f"{title}: {name}" if len(rows) > 1 else name, loc="left", fontsize=9)
            axes.set_xlabel(f"DFT ({UNITS[name]})", fontsize=9)
            axes.set_ylabel(f"model ({UNITS[name]})", fontsize=9)
    figure.savefig(path, dpi=150)


def _limits(parts: Sequence[np.ndarray]) -> tuple[float, float]:
    low, high = min(p.min() for p in parts), max(p.max() for p in parts)
    room = 0.05 * (high - low) or 0.1
    return low - room, high + room


def _panel(axes, x: np.ndarray, y: np.ndarray, limits: tuple[float, float]) -> None:
    chosen = np.random.default_rng(0).permutation(len(x))[:PER_PANEL]
    x, y = x[chosen], y[chosen]
    if len(x) > MANY:
        axes.hexbin(
            x, y, gridsize=60, bins="log", cmap="viridis", mincnt=1, extent=limits * 2, lw=0.1, zorder=2
        )
    else:
        size = 6 if len(x) > 300 else 14
        axes.scatter(x, y, s=size, color=COLOURS[0], alpha=0.5, lw=0, zorder=2)
    axes.plot(limits, limits, color="0.4", lw=0.9, ls="--", zorder=19)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92", lw=0.6, zorder=0)
