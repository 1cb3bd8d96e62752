"""Tables, sentences and figures of `experiments.softening.force_constants`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.softening.elements import draw_elements
from jaxmlip.studies.study import bootstrap
from jaxmlip.system.plots import panels, styles
from jaxmlip.system.tables import Estimate, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
MEASURES = {"hessian": "Hessian", "displaced": "DFT's displacements"}
RANGES = ("self", "first neighbours", "beyond")
SHELL = 1.15  # first neighbours are within so many times the nearest distance
THIRDS = ("lower", "middle", "upper")
AMPLITUDES = np.linspace(0, 0.5, 11)  # Å, of the atom that moves farthest


def root(x: float) -> float:
    """√|x| with the sign of x: for a curvature, negative if the mode is unstable."""
    return float(np.sign(x) * np.sqrt(abs(x)))


SUMMED: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "slope": lambda m: m["all"]["slope"],
    "slope without self terms": lambda m: m["without_self"]["slope"],
    "√mode slope": lambda m: root(m["modes"]["slope"]),
    "ω_max ratio": lambda m: m["ratios"]["maximum"],
    **{f"{third} third of modes": lambda m, third=third: root(m["thirds"][third]) for third in THIRDS},
}


def tables(found: Mapping[str, Rows]) -> list[Table]:
    """All tables but the one of silicon."""
    return [
        summary_table(found),
        slope_table(found),
        by_run("Is the root of the slope the ratio of frequencies?", found, root_cells),
        by_run(
            "Slope of force constants by range (Hessian)", found, range_cells, digits=2,
            note=f"First neighbours: up to {SHELL} times the nearest distance of an atom.",
        ),
        by_run(
            "Which modes are too soft? √(Σ model / Σ DFT) of the curvature along DFT's modes, by frequency",
            found, third_cells,
            note="Negative where the model is unstable along these modes: minus the root of the size.",
        ),
        by_run(
            "Mean curvature along DFT's stiffest mode, model / DFT's harmonic one, by amplitude",
            found, amplitude_cells,
            note="Amplitude: of the atom that moves farthest. Mean curvature: restoring force over it.",
        ),
    ]  # fmt: skip


def summary_table(found: Mapping[str, Rows]) -> Table:
    """Medians over crystals, each with the mean of its runs."""
    lines = []
    for model, rows in found.items():
        for functional in sorted({row["functional"] for row in rows}):
            some = [row for row in rows if row["functional"] == functional]
            crystals = sorted({row["formula"] for row in some})
            line: list[Any] = [model, functional, len(some), len(crystals)]
            for value in SUMMED.values():
                means = [np.mean([value(r["hessian"]) for r in some if r["formula"] == c]) for c in crystals]
                line.append(bootstrap(means, np.median))
            lines.append(line)
    return Table(
        "All crystals, the model's Hessian against DFT: medians",
        ("model", "functional", "runs", "crystals", *SUMMED),
        lines,
        note="Of each crystal the mean over its runs; 95 % intervals by bootstrap over crystals.",
    )


def by_run(
    title: str,
    found: Mapping[str, Rows],
    cells: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    digits: int = 3,
    note: str = "",
) -> Table:
    """A line for each run of each model; `cells` gives the further columns by name."""
    lines = [{"model": m, "run": row["run"], **cells(row)} for m, rows in found.items() for row in rows]
    return Table.of(title, lines, digits, note)


def slope_table(found: Mapping[str, Rows]) -> Table:
    lines = []
    for model, rows in found.items():
        for row, m in ((row, m) for row in rows for m in MEASURES if row[m]):
            others, modes = row[m]["without_self"], row[m]["modes"]
            line = {"model": model, "run": f"{row['run']}, {row['functional']}", "model's from": MEASURES[m]}
            line |= {"slope": row[m]["all"]["slope"], "slope without self terms": others["slope"]}
            line |= {"inverse": others["inverse"], "r²": others["r2"], "shrinkage": others["shrinkage"]}
            lines.append(line | {"mode slope": modes["slope"], "mean mode ratio": modes["mean"]})
    note = (
        "Slope: Σxy/Σxx over all elements, x DFT; inverse, r², shrinkage (1 - r²)/(1 - slope) without self "
        "terms. Mode slope: the model's quadratic form in DFT's eigenvectors against ω², at the wave vectors "
        "that fit the supercell. Where DFT is PBEsol, slopes of models of PBE hold the difference of the two."
    )
    return Table.of("Force constants, model against DFT", lines, note=note)


def root_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A table of roots of slopes beside ratios of frequencies."""
    h, d = row["hessian"], row["displaced"]
    cells = {"√mode slope, Hessian": root(h["modes"]["slope"]), "ω_max ratio": h["ratios"]["maximum"]}
    cells |= {"ω_rms ratio": h["ratios"]["rms"]}
    cells["√mode slope, DFT's displacements"] = root(d["modes"]["slope"]) if d else None
    cells["their ω_max ratio"] = d["ratios"]["maximum"] if d else None
    return cells | {"√force slope": root(row["forces"]["slope"]) if d else None}


def range_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = [(name, label, of) for name in RANGES for label, of in ((name, "slope"), (f"{name}: r²", "r2"))]
    return {label: row["hessian"]["ranges"][name][of] for name, label, of in shown}


def third_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{third}, {label}": root(row[m]["thirds"][third]) if row[m] else None
        for m, label in MEASURES.items()
        for third in THIRDS
    }


def amplitude_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    mean = {f"{AMPLITUDES[k]:.1f} Å": row["stiffest"]["mean"][k] for k in (0, 2, 4, 6, 10)}
    return {"ω_max of DFT / THz": row["stiffest"]["THz"], **mean}


def silicon_table(found: Mapping[str, Rows], elsewhere: Mapping[str, Rows]) -> Table:
    lines: list[list[Any]] = []
    for model, rows in found.items():
        for row in rows:
            if row["run"] == "Si (V0)":
                lines.append([model, "Hessian", None, None, row["hessian"]["all"]["slope"], None, None, None])
                lines.append([model, "0.01 Å, one atom", None, None, *slope_cells(row["forces"])])
        lines += [
            [model, row["name"], row["frames"], row["rms_dft"], *slope_cells(row)] for row in elsewhere[model]
        ]
    return Table(
        "Silicon from rest to molecular dynamics: slopes against DFT",
        ("model", "frames", "number", "rms force of DFT / eV/Å", "slope", "inverse", "r²", "shrinkage"),
        lines,
        note="Of force constants in the first line of a model, of forces in the others. Temperatures: "
        "molecular dynamics of the crystal (mlearn).",
    )


def slope_cells(row: Mapping[str, Any]) -> list[Any]:
    return [Estimate.of(row["slope"], row["interval"]), row["inverse"], row["r2"], row["shrinkage"]]


def findings(found: Mapping[str, Rows], elsewhere: Mapping[str, Rows]) -> list[str]:
    lines = []
    for model, rows in found.items():
        for functional in sorted({row["functional"] for row in rows}):
            some = [row for row in rows if row["functional"] == functional]
            roots = np.array([root(row["hessian"]["modes"]["slope"]) for row in some])
            highest = np.array([row["hessian"]["ratios"]["maximum"] for row in some])
            farther = np.median([row["stiffest"]["mean"] for row in some], axis=0)
            k = int(np.argmin(abs(AMPLITUDES - 0.2)))
            lines.append(
                f"{model}, {functional}, {len(some)} runs: √(mode slope) is off the ω_max ratio by "
                f"{np.abs(roots - highest).mean():.3f} on average. Mean curvature along the stiffest mode, "
                f"model / DFT's harmonic one: {farther[0]:.3f} at rest, {farther[k]:.3f} at "
                f"{AMPLITUDES[k]:.1f} Å."
            )
        if elsewhere[model]:
            slopes = ", ".join(f"{row['name']} {row['slope']:.3f}" for row in elsewhere[model])
            lines.append(f"{model}, slopes of forces in silicon: {slopes}.")
    return lines


def figures(found: Mapping[str, Rows]) -> dict[str, tuple[str, Figure]]:
    """Figures of the models that have rows."""
    drawn = {model: rows for model, rows in found.items() if rows}
    if not drawn:
        return {}
    return {
        "curvature_hessian.png": (
            "Force constants, model against DFT (left), and the model's frequency along each mode of DFT "
            "over DFT's, against DFT's (right)",
            draw(drawn),
        ),
        "curvature_amplitude.png": (
            "Curvature of the model along the stiffest mode of DFT, over DFT's harmonic one",
            draw_amplitudes(drawn),
        ),
    }


def draw(found: Mapping[str, Rows]) -> Figure:
    """Force constants and modes, a line of two panels for each model."""
    figure, lines = panels(len(found), 2, each=(4.5, 4.2), spare=(0, 0))
    for (left, right), (model, rows) in zip(lines, found.items(), strict=True):
        draw_elements(left, rows, RANGES, "force constant", "eV/Å²", linear=0.1)
        draw_modes(right, rows)
        left.set_title(model, loc="left", fontsize=10)
    return figure


def draw_modes(axes: Axes, rows: Rows) -> None:
    for row, style in zip(rows, styles(row["run"] for row in rows).values(), strict=True):
        thz, ratio = row["points"]["modes"]
        axes.plot(thz, ratio, ls="", ms=3, alpha=0.5, label=row["run"], rasterized=True, **style)
    axes.axhline(1, color="0.4", lw=0.9)
    axes.set_ylim(-0.5, 1.8)
    axes.set(xlabel="frequency of the mode, DFT (THz)", ylabel="√(curvature along it, model / DFT)")
    axes.legend(frameon=False, fontsize=7, ncols=2, markerscale=2)


def draw_amplitudes(found: Mapping[str, Rows]) -> Figure:
    figure, lines = panels(len(found), 2, each=(4.5, 4.2), spare=(0, 0), sharex=True)
    for (left, right), (model, rows) in zip(lines, found.items(), strict=True):
        for axes, which in ((left, "mean"), (right, "there")):
            for row, style in zip(rows, styles(row["run"] for row in rows).values(), strict=True):
                label = f"{row['run']}, {row['stiffest']['THz']:.0f} THz"
                axes.plot(AMPLITUDES, row["stiffest"][which], ms=4, label=label, **style)
            axes.axhline(1, color="0.4", lw=0.9, ls="--", label="DFT, harmonic")
            axes.set_ylim(-1, 3)
        left.set_title(model, loc="left", fontsize=10)
        left.set_ylabel("mean curvature from rest to there, model / DFT")
        right.set_ylabel("curvature there, model / DFT harmonic")
        left.legend(frameon=False, fontsize=7, ncols=2)
    for axes in lines[-1]:
        axes.set_xlabel("amplitude of the atom that moves farthest (Å)")
    return figure
