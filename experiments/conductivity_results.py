"""Tables, sentences and figures of `experiments.conductivity`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmlip.studies.srme import Published
from jaxmlip.studies.study import bootstrap
from jaxmlip.system.plots import diagonal, legend, panels, styles
from jaxmlip.system.tables import Estimate, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
PublishedRuns = Mapping[str, Mapping[str, Published]]
METHODS = ("displaced", "exact")
NEAR_KAPPA, NEAR_SRME = 0.02, 0.02  # relative, and absolute: as close as that is the same as published
LEAST = 5  # materials for an exponent


def of_method(rows: Rows, method: str) -> Rows:
    return [row for row in rows if row["method"] == method]


def series(found: Mapping[str, Rows]) -> Iterator[tuple[str, str, Rows]]:
    """Model, method and rows, where there are some."""
    for model, rows in found.items():
        for method in METHODS:
            if some := of_method(rows, method):
                yield model, method, some


def tables(found: Mapping[str, Rows], published: PublishedRuns) -> list[Table]:
    """A summary, agreement with the published runs, and a table of materials for each model."""
    return [
        summary_table(found, published),
        agreement_table(found, published),
        *(material_table(model, rows, published.get(model, {})) for model, rows in found.items() if rows),
    ]


def summary_table(found: Mapping[str, Rows], published: PublishedRuns) -> Table:
    lines = []
    for model, method, rows in series(found):
        kept = [row for row in rows if row["kappa"] is not None]
        line: dict[str, Any] = {"model": model, "constants": method, "materials": len(rows)}
        line |= {"refused": len(rows) - len(kept), "κ_SRME": bootstrap([row["srme"] for row in rows])}
        its = published.get(model, {})
        same = [its[row["id"]].srme for row in rows if row["id"] in its]
        line["published κ_SRME of these materials"] = float(np.mean(same)) if same else None
        line["median κ, model / DFT"] = bootstrap([r["kappa"] / r["kappa_dft"] for r in kept], np.median)
        line["median ω_mean, model / DFT"] = bootstrap([row["mean_ratio"] for row in kept], np.median)
        rest = [r["kappa"] / r["kappa_dft"] / r["mean_ratio"] ** 3 for r in kept]
        line["median κ / ω_mean³, model / DFT"] = bootstrap(rest, np.median)
        lines.append(line)
    note = (
        "κ_SRME: the mean over materials; 2 where κ is refused. Medians are of the others; the last is 1 if "
        "softness explains κ. 95 % intervals by bootstrap over materials. "
        "Published: Matbench Discovery, DFT without the non-analytical correction, displacements of 0.03 Å."
    )
    return Table.of("Conductivities at 300 K against DFT, mode by mode", lines, note=note)


def softness_table(published: PublishedRuns, dft: Mapping[str, float]) -> Table:
    """All published runs: κ and what softness explains of it; `dft` has κ (W/m/K) by the material's id."""
    lines = []
    for model, its in published.items():
        kept = [(p.kappa / dft[key], p.mean_ratio) for key, p in its.items() if p.kappa and p.mean_ratio]
        kappa, ratio = np.array(kept).reshape(-1, 2).T
        line: dict[str, Any] = {
            "published run": model,
            "materials": len(its),
            "refused": len(its) - len(kept),
        }
        line["κ_SRME"] = float(np.mean([p.srme for p in its.values()]))
        line["median κ, model / DFT"] = bootstrap(kappa, np.median)
        line["median ω_mean, model / DFT"] = bootstrap(ratio, np.median)
        line["median κ / ω_mean³, model / DFT"] = bootstrap(kappa / ratio**3, np.median)
        line["ρ of κ and ω_mean, model / DFT"] = rank_correlation(kappa, ratio)
        lines.append(line)
    lines.sort(key=lambda line: line["κ_SRME"])
    note = "ω_mean is the mean of 17 quantiles of all frequencies. ρ: rank correlation over materials."
    return Table.of("Softness and conductivity in the published runs", lines, digits=2, note=note)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's; None for few materials."""
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic) if len(x) >= LEAST else None


def agreement_table(found: Mapping[str, Rows], published: PublishedRuns) -> Table:
    lines = []
    for model, method, rows in series(found):
        its = published.get(model, {})
        pairs = [(row, its[row["id"]]) for row in rows if row["id"] in its]
        if not pairs:
            continue
        both = [(r, p) for r, p in pairs if r["kappa"] is not None and p.kappa is not None]
        alike = sum((r["kappa"] is None) == (p.kappa is None) for r, p in pairs)
        off = np.array([abs(r["kappa"] / p.kappa - 1) for r, p in both])
        line: dict[str, Any] = {"model": model, "constants": method, "materials": len(pairs)}
        line |= {"refused or not as published, number": alike}
        line["κ within 2 %, number"] = int((off < NEAR_KAPPA).sum())
        line["SRME within 0.02, number"] = sum(abs(r["srme"] - p.srme) < NEAR_SRME for r, p in pairs)
        line["κ off by / %, median"] = 100 * float(np.median(off)) if len(off) else None
        line["at most / %"] = 100 * float(off.max()) if len(off) else None
        lines.append(line)
    return Table.of("The same materials in the published runs", lines, digits=2)


def material_table(model: str, rows: Rows, published: Mapping[str, Published]) -> Table:
    by_id: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_id.setdefault(row["id"], {})[row["method"]] = row
    methods = [method for method in METHODS if of_method(rows, method)]
    lines = []
    for key, its in by_id.items():
        any_row, theirs = next(iter(its.values())), published.get(key)
        line = {"material": f"{any_row['formula']}, {any_row['structure']} ({key})"}
        line["κ / W/m/K: DFT"] = any_row["kappa_dft"]
        line |= {f"κ / W/m/K: {m}": its[m]["kappa"] if m in its else None for m in methods}
        line |= {"κ / W/m/K: published": theirs.kappa} if theirs else {}
        line |= {f"SRME: {m}": its[m]["srme"] if m in its else None for m in methods}
        line |= {"SRME: published": theirs.srme} if theirs else {}
        line["ω_mean, model / DFT"] = any_row.get("mean_ratio")
        line["refused"] = "; ".join(dict.fromkeys(row["refused"] for row in its.values() if row["refused"]))
        lines.append(line)
    return Table.of(f"{model}: materials", lines)


def exponent(rows: Rows) -> Estimate | None:
    """The power of the frequency ratio by which κ falls: the slope of logarithms; None for few materials."""
    points = np.array(
        [(r["mean_ratio"], r["kappa"] / r["kappa_dft"]) for r in rows if r["kappa"] is not None]
    )
    if len(points) < LEAST:
        return None
    return bootstrap(np.log(points), lambda xy: float(np.polyfit(*xy.T, 1)[0]))


def findings(found: Mapping[str, Rows], published: PublishedRuns) -> list[str]:
    """Sentences on softness, on exact constants, and on models that nobody published."""
    lines = []
    for model, method, rows in series(found):
        power = exponent(rows)
        if power is not None:
            lines.append(
                f"{model}, {method}: κ(model)/κ(DFT) goes with the power {power.value:.2f} ({power.low:.2f} "
                f"to {power.high:.2f}) of the ratio of mean frequencies. If all constants were too small by "
                "one factor, it would be the third where kT is above ħω."
            )
    for model, rows in found.items():
        exact = {row["id"]: row["kappa"] for row in of_method(rows, "exact")}
        both = [(r["kappa"], exact.get(r["id"])) for r in of_method(rows, "displaced")]
        off = [abs(e / d - 1) for d, e in both if d is not None and e is not None]
        if off:
            lines.append(
                f"{model}: exact constants change κ by {100 * np.median(off):.2g} % in the median, by "
                f"{100 * max(off):.2g} % at most, of {len(off)} materials."
            )
    unknown = [model for model, rows in found.items() if rows and model not in published]
    if unknown:
        lines.append(f"No published run is known of {', '.join(unknown)}.")
    return lines


def figures(found: Mapping[str, Rows], published: PublishedRuns) -> dict[str, tuple[str, Figure]]:
    """Figures by the names of their files, with captions."""
    shown = {f"{model}, {method}": (model, rows) for model, method, rows in series(found)}
    if not shown:
        return {}
    look = styles(shown)
    drawn = {
        "conductivity_by_frequency.png": (
            "Conductivity over DFT's, and SRME, against the ratio of mean frequencies. Line: its cube, as if "
            "one factor were on all constants. Refused materials have no κ, and SRME 2.",
            by_frequency({name: rows for name, (_, rows) in shown.items()}, look),
        )
    }
    pairs = {
        name: [(row, published[model][row["id"]]) for row in rows if row["id"] in published[model]]
        for name, (model, rows) in shown.items()
        if model in published
    }
    if any(pairs.values()):
        caption = "Conductivity and SRME of each material against the published run of the same model."
        drawn["conductivity_published.png"] = (caption, against_published(pairs, look))
    return drawn


def by_frequency(shown: Mapping[str, Rows], look: Mapping[str, Mapping[str, str]]) -> Figure:
    figure, ((left, right),) = panels(1, 2, each=(4.0, 3.6), spare=(0.3, 0.6))
    for name, rows in shown.items():
        known = [row for row in rows if "mean_ratio" in row]
        kept = [row for row in known if row["kappa"] is not None]
        style = {"ls": "", "ms": 5, "alpha": 0.8, "mew": 0, **look[name]}
        left.plot([r["mean_ratio"] for r in kept], [r["kappa"] / r["kappa_dft"] for r in kept], **style)
        right.plot([r["mean_ratio"] for r in known], [r["srme"] for r in known], label=name, **style)
    x = np.linspace(max(0.05, left.get_xlim()[0]), left.get_xlim()[1], 100)
    left.plot(x, x**3, color="0.4", lw=0.9, ls="--", label="cube of the ratio")
    left.axhline(1, color="0.8", lw=0.8, zorder=0)
    left.set(yscale="log", ylabel="κ at 300 K, model / DFT")
    right.set(ylim=(-0.05, 2.1), ylabel="SRME")
    for axes in (left, right):
        axes.axvline(1, color="0.8", lw=0.8, zorder=0)
        axes.set_xlabel("mean frequency, model / DFT")
    legend(figure)
    return figure


def against_published(
    pairs: Mapping[str, Sequence[tuple[Mapping[str, Any], Published]]], look: Mapping[str, Mapping[str, str]]
) -> Figure:
    figure, ((left, right),) = panels(1, 2, each=(3.8, 3.8), spare=(0.3, 0.6))
    for name, some in pairs.items():
        style = {"ls": "", "ms": 5, "alpha": 0.8, "mew": 0, "label": name, **look[name]}
        both = [(p.kappa, r["kappa"]) for r, p in some if r["kappa"] is not None and p.kappa is not None]
        points(left, both, style)
        points(right, [(p.srme, r["srme"]) for r, p in some], style)
    left.set(xscale="log", yscale="log")
    same = np.array(
        [min(left.get_xlim()[0], left.get_ylim()[0]), max(left.get_xlim()[1], left.get_ylim()[1])]
    )
    left.plot(same, same, color="0.4", lw=0.9, zorder=1)
    left.set(xlabel="κ at 300 K, published (W/m/K)", ylabel="κ at 300 K, here (W/m/K)")
    diagonal(right, top=2.0)
    right.set(xlabel="SRME, published", ylabel="SRME, here")
    legend(figure)
    return figure


def points(axes: Axes, xy: Sequence[tuple[float, float]], style: Mapping[str, Any]) -> None:
    axes.plot(*(np.array(xy, float).reshape(-1, 2).T), **style)
