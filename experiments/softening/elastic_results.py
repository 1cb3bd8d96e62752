"""Tables and figures of `experiments.softening.elastic`: medians and slopes of ratios."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.datasets import CLASSES, MAGNETIC, METALS, WITH_U
from jaxmlip.studies.study import bootstrap
from jaxmlip.system.plots import COLOURS, panels
from jaxmlip.system.tables import Estimate, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def fit_to_compare(rows: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of crystals that are stable and have moduli."""
    return [r for r in rows.values() if why_not(r) is None]


def why_not(row: Mapping[str, Any]) -> str | None:
    """The reason why a row is not compared; None if it is."""
    if "failed" in row:
        return row["failed"].split(":")[0]
    if "lowest_eigenvalue" in row and row["K_model"] is None:
        return "a strain lowers the energy"
    return None


def pairs(rows: Sequence[Mapping[str, Any]], quantity: str, model: str) -> np.ndarray:
    """DFT and model, (materials, 2), of the materials for which the model has the quantity."""
    return np.array([(r[quantity], r[model]) for r in rows if r[model] is not None]).reshape(-1, 2)


def slope(xy: np.ndarray) -> float:
    """The slope of the line through the origin: Σxy / Σx²."""
    x, y = xy.T
    return float(x @ y / (x @ x))


def median_ratio(xy: np.ndarray) -> float:
    return float(np.median(xy[:, 1] / xy[:, 0]))


def share_below(xy: np.ndarray) -> float:
    return float(np.mean(xy[:, 1] < xy[:, 0]))


def mean_error(xy: np.ndarray) -> float:
    return float(np.mean(np.abs(xy[:, 1] - xy[:, 0])))


def statistics(xy: np.ndarray, resamples: int = 1000) -> list[Estimate]:
    """Median ratio, slope, share below 1, MAE; each with its interval over materials."""
    return [bootstrap(xy, f, resamples) for f in (median_ratio, slope, share_below, mean_error)]


STATISTICS = ("median ratio", "slope", "share below 1", "MAE / GPa")


def moduli_table(models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    rows = []
    for label, of in models.items():
        every = fit_to_compare(of)
        for name in ("all", *CLASSES, METALS):
            these = [r for r in every if name in ("all", r["class"])]
            if these:
                K, G = (statistics(pairs(these, q, f"{q}_model")) for q in "KG")
                rows.append([label, name, len(these), *K, *G])
    columns = ("model", "crystals", "number", *(f"{q}: {s}" for q in "KG" for s in STATISTICS))
    note = (
        "Model against PBE. The slope is that of the line through the origin, which the hardest crystals "
        "decide; the median ratio counts all alike."
    )
    return Table("Bulk (K) and shear (G) modulus of relaxed binary crystals", columns, rows, 2, note)


def estimators_table(models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    rows = []
    for label, of in models.items():
        every = fit_to_compare(of)
        there = [{**r, "K_at": r["at_dft"][0], "G_at": r["at_dft"][1]} for r in every if r["at_dft"]]
        kinds = (
            ("relaxed, atoms follow the strain", every, "K_model", "G_model"),
            ("relaxed, clamped ions", every, "K_clamped", "G_clamped"),
            ("relaxed, clamped ions, stress over ±1 %", every, "K_around", "G_around"),
            ("those stable at DFT's crystal too: relaxed", there, "K_model", "G_model"),
            ("those stable at DFT's crystal too: at DFT's crystal", there, "K_at", "G_at"),
        )
        for words, these, K, G in kinds:
            if these:
                ratios = [bootstrap(pairs(these, q, m), median_ratio, 1000) for q, m in (("K", K), ("G", G))]
                rows.append([label, words, len(these), *ratios, None])
        if every:
            rows[-1][-1] = bootstrap([100 * r["volume_change"] for r in every], np.median, 1000)
    columns = ("model", "moduli", "number", "K: median ratio", "G: median ratio", "median volume change / %")
    note = (
        "DFT's atoms follow the strain. matcalc keeps those of the model clamped and strains it by up to 1 % "
        "(6 % in shear). Where stress over ±1 % gives another modulus than the derivative, the model's "
        "energy is not smooth on that scale. At DFT's crystal nothing is relaxed, "
        "and the moduli are those of stress against strain: a difference between both "
        "comes from the volume, the rest is curvature."
    )
    return Table("The same by other estimators", columns, rows, 3, note)


def states_table(models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    rows = []
    for label, of in models.items():
        every = [r for r in fit_to_compare(of) if r["comparable"]]
        kinds = dict.fromkeys((r["family"], r["prototype"]) for r in every)
        families = dict.fromkeys(family for family, _ in kinds)
        for family, prototype in [*((f, "all") for f in families), *kinds]:
            these = [r for r in every if r["family"] == family and prototype in ("all", r["prototype"])]
            B = pairs(these, "B0", "B0_model")
            volumes = bootstrap(pairs(these, "V0", "V0_model"), median_ratio, 1000)
            at_dft = bootstrap(pairs(these, "B0", "B_at_dft"), median_ratio, 1000)
            rows.append([label, family, prototype, len(these), *statistics(B), at_dft, volumes])
    columns = ("model", "set", "prototype", "number", *(f"B0: {s}" for s in STATISTICS))
    columns += ("B at DFT's V0: median ratio", "V0: median ratio")
    note = (
        "Against all-electron PBE without spin (acwf). Left out, though their rows are kept: "
        f"{' '.join(MAGNETIC)}, which are magnetic or have f electrons that pseudopotentials keep in "
        f"the core; and of the oxides {' '.join(WITH_U)}, to which the Materials Project adds U."
    )
    return Table("Equations of state of unaries and oxides", columns, rows, 2, note)


def lost_table(*sets: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    rows = []
    for models, name in zip(sets, ("binaries", "acwf"), strict=True):
        for label, of in models.items():
            reasons = Counter(why_not(r) for r in of.values())
            compared = reasons.pop(None, 0)
            rows.append([label, name, "compared", compared])
            rows += [[label, name, reason, n] for reason, n in sorted(reasons.items())]
            saddles = sum(not r.get("internal_modes_stable", True) for r in fit_to_compare(of))
            if saddles:
                rows.append([label, name, "compared, atoms on a saddle of the model's energy", saddles])
    return Table("What was compared, and what was not", ("model", "set", "", "number"), rows)


def figures(rows: Mapping[str, Any], states: Mapping[str, Any]) -> dict[str, tuple[str, Figure]]:
    said = {label: fit_to_compare(of) for label, of in rows.items()}
    equations = {label: [r for r in fit_to_compare(of) if r["comparable"]] for label, of in states.items()}
    return {
        "elastic_ratios.png": (
            "Model / PBE of bulk and shear moduli of binary crystals, and of the bulk moduli of acwf's "
            "equations of state: share of the crystals, and medians (dashed); what lies beyond is in the "
            "first and the last bin.",
            draw_ratios(said, equations),
        ),
        "elastic_parity.png": ("Moduli of binary crystals, model against PBE.", draw_parity(said)),
    }


def draw_ratios(said: Mapping[str, Sequence[Any]], equations: Mapping[str, Sequence[Any]]) -> Figure:
    figure, (axes,) = panels(1, 3, each=(3.0, 3.2), spare=(0, 0), sharey=True)
    shown = ((said, "K", "K_model", "bulk modulus K"), (said, "G", "G_model", "shear modulus G"))
    bins = np.geomspace(0.1, 4, 49)
    for ax, (models, q, m, words) in zip(
        axes, (*shown, (equations, "B0", "B0_model", "acwf, $B_0$")), strict=True
    ):
        for k, (label, of) in enumerate(models.items()):
            xy = pairs(of, q, m)
            if not len(xy):
                continue
            colour, ratio = COLOURS[k % len(COLOURS)], np.clip(xy[:, 1] / xy[:, 0], bins[0], bins[-1])
            share = np.full(len(ratio), 100 / len(ratio))
            style = {"color": colour, "ls": ("-", "--", "-.", ":")[k % 4], "lw": 1.4, "label": label}
            ax.hist(ratio, bins, weights=share, histtype="step", **style)
            ax.axvline(median_ratio(xy), color=colour, ls=(0, (4, 2)), lw=0.9)
        ax.axvline(1, color="k", lw=0.9)
        ax.set(xscale="log", xlabel=f"{words}: model / PBE", xlim=(bins[0], bins[-1]))
        ticks = (0.1, 0.2, 0.5, 1, 2, 4)
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
    axes[0].set_ylabel("share of crystals / %")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(frameon=False, fontsize="x-small", loc="upper left")
    return figure


def draw_parity(said: Mapping[str, Sequence[Any]]) -> Figure:
    figure, axes = panels(2, max(1, len(said)), each=(3.0, 3.0), spare=(1.0, 0), sharex="row", sharey="row")
    for column, (label, of) in enumerate(said.items()):
        for ax, quantity, words in zip(axes[:, column], "KG", ("bulk", "shear"), strict=True):
            xy = pairs(of, quantity, f"{quantity}_model")
            if len(xy) > 500:
                ax.hexbin(*xy.T, xscale="log", yscale="log", gridsize=45, bins="log", cmap="Blues", mincnt=1)
            else:
                ax.plot(*xy.T, "o", ms=3, color=COLOURS[0], alpha=0.7)
            ends = np.array([max(0.1, 0.8 * xy.min()), 1.25 * xy.max()]) if len(xy) else np.array([1.0, 10.0])
            ax.plot(ends, ends, "k-", lw=0.8)
            if len(xy):
                ax.plot(ends, slope(xy) * ends, "--", color=COLOURS[1], lw=1, label=f"slope {slope(xy):.2f}")
                ax.legend(frameon=False, fontsize="small")
            ax.set(xscale="log", yscale="log", xlabel=f"PBE {words} modulus / GPa")
        axes[0, column].set_title(label, fontsize="medium")
    for ax, words in zip(axes[:, 0], ("bulk", "shear"), strict=True):
        ax.set_ylabel(f"model's {words} modulus / GPa")
    return figure
