"""How far below DFT's are forces off equilibrium, and how much of that is regression?

    python -m experiments.softening.forces --model chgnet-0.3.0 --data FOLDER --out FOLDER

One slope for each material and group of frames (`groups`): Σxy / Σxx of model forces y against
DFT forces x, through the origin, over all components of all frames, as arXiv:2405.07105 has it
(`jaxmlip.derivatives.slopes`). Beside it stands what could make it differ from 1 without any softening: a
model that errs by giving means has a slope of r², so (1 - r²) / (1 - slope) of what is missing is explained
at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.softening import groups
from experiments.softening.groups import AT_REST, GROUPS, WBM, Grouped
from jaxmlip.derivatives.slopes import force_slope
from jaxmlip.potential import Potential
from jaxmlip.studies.softening_scale import LOOSE, Frame, evenly, forces_by_material
from jaxmlip.studies.study import (
    Estimate,
    MissingDataError,
    Study,
    Table,
    bootstrap,
    data_file,
    knows,
    load_models,
    run,
)
from jaxmlip.system.arguments import Models

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OFF = "all off equilibrium"
APART = (*AT_REST, WBM)  # from OFF: of WBM there are so many that it would stand for all
VIEW = (-0.1, 1.6)  # of slopes
SPREAD = 5  # materials from which a violin says more than its points
MARKERS = "osD^vP"
# Of the WBM states: share of slopes below 1 (arXiv:2405.07105, Fig. 5b); mean slope (MatPES, 979 materials).
PUBLISHED = {
    "m3gnet-mp-2021.2.8": (0.930, 0.77),
    "chgnet-0.3.0": (0.981, None),
    "mace-mp-0a-medium": (0.965, None),
    "m3gnet-matpes-pbe-2025.1": (None, 0.97),
}


@dataclass(frozen=True)
class Settings:
    """How far below DFT's are forces off equilibrium, and how much of that is regression?"""

    model: Models = ()  # default: chgnet-0.3.0
    # Folder with mlearn/, maml_MoNbTaW/, pypolymlp_vasp/, phonopy_displaced_extxyz/, wbm_high_energy/, or
    # some of these; default: what JAXMLIP_DATA names.
    data: Path | None = None
    wbm: Path | None = None  # WBM high-energy states as published, where they are not in wbm_high_energy/
    frames: int = 20  # of each material and group at most, evenly spread over the file
    max_pressure: float = 30.0  # GPa, of frames of pypolymlp
    max_energy: float = 1.0  # eV/atom, of frames of pypolymlp, above the lowest of the same composition
    out: Path = Path("softening_forces")  # a run that was cut short goes on there


def main(settings: Settings) -> None:
    potentials = load_models(settings.model)
    found, findings = read_all(settings)
    taken = {key: evenly(frames, settings.frames) for key, frames in found.frames.items()}
    study = Study("softening_forces", Settings.__doc__, settings, potentials)
    for label, potential in potentials.items():
        strange = measure(study, potential, taken, found.broken)
        if strange:
            findings.append(
                f"{label} was not fitted to all elements of {len(strange)} of {len(taken)} rows, which are "
                f"left out: {_some(strange)}."
            )
    of_run = {key_of(label, *key) for label in potentials for key in (*taken, *found.broken)}
    rows = [row for key, row in study.rows.items() if key in of_run and "failed" not in row]
    order = list(GROUPS)
    models = list(potentials)
    rows.sort(key=lambda r: (models.index(r["model"]), order.index(r["group"]), r["material"]))
    if not rows:
        study.write([], {}, [*findings, "No slope was measured."])
        return
    summary = summarise(rows)
    tables = [summary_table(summary)]
    if any(row["group"] == WBM for row in rows):
        tables.append(published_table(rows))
    if any(row["group"] != WBM for row in rows):
        tables.append(material_table(rows))
    figures = {"softening_forces.png": (caption(rows), draw(rows))}
    study.write(tables, figures, [*in_words(summary), *findings])


def read_all(settings: Settings) -> tuple[Grouped, list[str]]:
    """All frames that are there, and in words what is not. Raises MissingDataError where none is there."""
    found, absent = Grouped(), []
    for name, reader in groups.READERS.items():
        if name == "wbm_high_energy" and settings.wbm is not None:
            found.join(reader(settings.wbm))
            continue
        try:
            folder = data_file(settings.data, name)
        except MissingDataError as error:
            absent.append(error)
            continue
        limits = (settings.max_pressure, settings.max_energy) if name == "pypolymlp_vasp" else ()
        found.join(reader(folder, *limits))
    if not found.frames and not found.broken:
        raise MissingDataError("\n".join(["none of these data sets holds frames.", *map(str, absent)]))
    left_out = [f"Left out: {'; '.join(found.left_out)}."] if found.left_out else []
    return found, [*left_out, *(f"Not measured: {error}" for error in absent)]


def key_of(label: str, group: str, material: str) -> str:
    return f"{label}: {group}: {material}"


def measure(
    study: Study,
    potential: Potential,
    taken: Mapping[tuple[str, str], Sequence[Frame]],
    broken: Mapping[tuple[str, str], str],
) -> list[str]:
    """Keeps the rows that are not there yet; the materials that the potential does not know are returned."""
    label = potential.name
    for key, reason in broken.items():
        for left in study.left([key_of(label, *key)]):
            study.fail(left, reason)
    strange = [
        key for key, frames in taken.items() if not all(knows(potential, f.atoms.numbers) for f in frames)
    ]
    keys = {key_of(label, *key): key for key in taken if key not in strange}
    left = {name: taken[keys[name]] for name in study.left(keys)}
    for name, model in forces_by_material(potential, left):
        dft = [frame.forces for frame in left[name]]
        try:
            slope = force_slope(model, dft)
        except ValueError as error:
            study.fail(name, error)
            continue
        group, material = keys[name]
        derived = {"r_squared": slope.r_squared, "shrinkage_share": slope.shrinkage_share}
        of = {"model": label, "group": group, "material": material}
        size = {"rms_force": float(np.sqrt(np.mean(np.concatenate(dft, axis=None) ** 2)))}
        study.keep(name, of | asdict(slope) | derived | size)
    return sorted({f"{material} ({group})" for group, material in strange})


@dataclass(frozen=True)
class Summary:
    """A model in one group: medians over materials with 95 % intervals, of draws of materials."""

    model: str
    group: str
    materials: int
    frames: int
    slope: Estimate
    below: Estimate  # share of slopes below 1
    inverse: Estimate
    inverse_below: float
    deming: Estimate
    r_squared: Estimate  # the slope of a model that only shrinks
    shrinkage: Estimate | None  # share of 1 - slope that shrinkage explains at most; None: not soft
    mae: Estimate
    corrected_mae: Estimate
    reduction: Estimate  # share of the MAE that dividing by the slope takes away


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[Summary]:
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = [row for row in rows if row["model"] == model]
        for group in [*GROUPS, OFF]:
            chosen = [
                r for r in of_model if r["group"] == group or (group == OFF and r["group"] not in APART)
            ]
            if chosen:
                found.append(_summary(model, group, chosen))
    return found


def _summary(model: str, group: str, rows: Sequence[Mapping[str, Any]]) -> Summary:
    def values(*names: str) -> np.ndarray:
        return np.array([[np.nan if r[n] is None else r[n] for n in names] for r in rows])

    def median(name: str) -> Estimate:
        return bootstrap(values(name)[:, 0], np.median)

    def below(x: np.ndarray) -> float:
        return float(np.mean(x < 1))

    def explained(x: np.ndarray) -> float:  # columns: slope, r²
        slope, r_squared = np.median(x, axis=0)
        return (1 - r_squared) / (1 - slope) if slope < 1 else np.nan

    def reduction(x: np.ndarray) -> float:  # columns: MAE, corrected MAE
        mae, corrected = np.median(x, axis=0)
        return 1 - corrected / mae if mae else np.nan

    slope = median("slope")
    return Summary(
        model,
        group,
        len(rows),
        sum(row["samples"] for row in rows),
        slope,
        bootstrap(values("slope")[:, 0], below),
        median("inverse"),
        below(values("inverse")[:, 0]),
        median("deming"),
        median("r_squared"),
        bootstrap(values("slope", "r_squared"), explained) if slope.value < 1 else None,
        median("mae"),
        median("corrected_mae"),
        bootstrap(values("mae", "corrected_mae"), reduction),
    )


def summary_table(summary: Sequence[Summary]) -> Table:
    return Table(
        "Slope of model forces against DFT forces, medians over materials",
        (
            "model",
            "group",
            "materials",
            "frames",
            "slope",
            "share below 1",
            "inverse slope",
            "Deming",
            "r² (slope of pure shrinkage)",
            "explained by shrinkage at most",
            "MAE / eV/Å",
            "cMAE / eV/Å",
            "1 - cMAE / MAE",
        ),
        [
            (
                s.model,
                s.group,
                s.materials,
                s.frames,
                s.slope,
                s.below,
                s.inverse,
                s.deming,
                s.r_squared,
                s.shrinkage,
                s.mae,
                s.corrected_mae,
                s.reduction,
            )
            for s in summary
        ],
        note="slope: Σxy / Σxx, x DFT, y model. inverse: Σyy / Σxy, 1 for a model that errs by giving means. "
        "Deming: as if both sides had equal errors. cMAE: of model / slope. Intervals: 95 %, draws of "
        "materials. "
        + " ".join(
            f"{name}: {about}." for name, about in GROUPS.items() if name in {s.group for s in summary}
        )
        + (f" {OFF}: all but {', '.join(APART)}." if OFF in {s.group for s in summary} else ""),
    )


def published_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The WBM states beside what others found on them."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        of = np.array([row["slope"] for row in rows if row["model"] == model and row["group"] == WBM])
        if len(of):
            below, mean = PUBLISHED.get(model, (None, None))
            share = bootstrap(of, lambda x: float(np.mean(x < 1)))
            lines.append((model, len(of), share, below, bootstrap(of), mean))
    return Table(
        "WBM high-energy states beside published values",
        ("model", "materials", "share below 1", "published", "mean slope", "published mean"),
        lines,
        note="Published: share below 1, arXiv:2405.07105, Fig. 5b, 1000 compounds; mean slopes, MatPES, 979 "
        "compounds, where CHGNet trained on MPtrj by matgl, other weights than those of 0.3.0, has 0.83.",
    )


def material_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Each material; of the WBM states there are too many, and record.json has them."""
    return Table(
        "Each material",
        (
            "model",
            "group",
            "material",
            "frames",
            "rms force / eV/Å",
            "slope",
            "r²",
            "inverse slope",
            "Deming",
            "shrinkage share",
            "MAE / eV/Å",
            "cMAE / eV/Å",
        ),
        [
            (
                r["model"],
                r["group"],
                r["material"],
                r["samples"],
                r["rms_force"],
                _estimate(r["slope"], r["interval"]),
                r["r_squared"],
                _estimate(r["inverse"], r["inverse_interval"]),
                r["deming"],
                r["shrinkage_share"],
                r["mae"],
                r["corrected_mae"],
            )
            for r in rows
            if r["group"] != WBM
        ],
        note="Intervals: 95 %, draws of frames. shrinkage share: (1 - r²) / (1 - slope), where the slope is "
        "below 1." + (f" {WBM}: in record.json." if any(r["group"] == WBM for r in rows) else ""),
    )


def in_words(summary: Sequence[Summary]) -> list[str]:
    """What the controls say, a line for each model."""
    lines = []
    for model in dict.fromkeys(s.model for s in summary):
        of = [s for s in summary if s.model == model and s.group != OFF]
        told = [s for s in of if s.r_squared.value >= LOOSE]
        soft = [s for s in told if s.shrinkage is not None]
        words = [
            f"{s.group}: {s.below.value:.0%} of {s.materials} slopes are below 1, median "
            f"{s.slope.value:.3f}; {s.inverse_below:.0%} stay below 1 when all scatter is taken for "
            "shrinkage (inverse slope)"
            for s in summary
            if s.model == model and s.group in (OFF, WBM)
        ]
        if soft:
            parts = [f"{s.group} {s.slope.value:.2f}: {min(s.shrinkage.value, 1):.0%}" for s in soft]
            words.append(
                "median slopes, and how much of what is missing to 1 shrinkage explains at most: "
                + ", ".join(parts)
            )
        stiff = [f"{s.group} {s.slope.value:.2f}" for s in told if s.shrinkage is None]
        if stiff:
            words.append(f"not soft: {', '.join(stiff)}")
        loose = [s.group for s in of if s.r_squared.value < LOOSE]
        if loose:
            words.append(f"r² below {LOOSE}, so that slopes say little: {', '.join(loose)}")
        lines.append(f"{model}: {'. '.join(w[0].upper() + w[1:] for w in words)}.")
    return lines


def caption(rows: Sequence[Mapping[str, Any]]) -> str:
    outside = sum(not VIEW[0] <= row["slope"] <= VIEW[1] for row in rows)
    return (
        "Above: slopes of model forces against DFT forces, one point a material; bar: median; cross: median "
        "r², the slope of a model that only shrinks. Below 1 is too soft. Below: mean absolute error, median "
        "over materials, as it is (filled) and with the slope divided out (open)."
        + (f" {outside} slopes lie outside and are marked at the border." if outside else "")
    )


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from jaxmlip.system.figures import COLOURS

    models = list(dict.fromkeys(row["model"] for row in rows))
    shown = [group for group in GROUPS if any(row["group"] == group for row in rows)]
    figure = Figure(figsize=(max(1.15 * len(shown) + 1.2, 5.5), 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    width = 0.8 / len(models)
    for k, model in enumerate(models):
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        for place, group in enumerate(shown):
            chosen = [row for row in rows if row["model"] == model and row["group"] == group]
            if chosen:
                x = place + (k - (len(models) - 1) / 2) * width
                _slopes(above, x, width, chosen, colour, marker)
                errors = np.median([(r["mae"], r["corrected_mae"]) for r in chosen], axis=0)
                below.plot([x, x], errors, color=colour, lw=1.2)
                below.plot(x, errors[0], marker, color=colour, ms=5)
                below.plot(x, errors[1], marker, color=colour, mfc="white", ms=5)
    above.axhline(1, color="0.3", lw=0.9, ls="--", zorder=1)
    above.set(ylim=VIEW, ylabel="slope, model / DFT")
    below.set(yscale="log", ylabel="force MAE (eV/Å)", xlim=(-0.6, len(shown) - 0.4))
    below.set_xticks(range(len(shown)), [name.replace(" ", "\n", 1) for name in shown], fontsize=8)
    for axes in (above, below):
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="0.92", lw=0.6)
        for place in range(1, len(shown)):
            axes.axvline(place - 0.5, color="0.9", lw=0.6, zorder=0)
    handles = [
        Line2D([], [], color=COLOURS[k % len(COLOURS)], marker=MARKERS[k % len(MARKERS)], ls="", label=model)
        for k, model in enumerate(models)
    ]
    handles.append(Line2D([], [], color="0.2", marker="x", ls="", label="r²"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def _slopes(
    axes: Axes, x: float, width: float, rows: Sequence[Mapping[str, Any]], colour: str, marker: str
) -> None:
    """The slopes of one model in one group, around `x`."""
    slopes = np.array([row["slope"] for row in rows])
    inside = np.clip(slopes, *VIEW)
    if np.ptp(inside) > 0 and len(rows) >= SPREAD:
        (body,) = axes.violinplot([inside], [x], widths=0.9 * width, showextrema=False)["bodies"]
        body.set(facecolor=colour, edgecolor="none", alpha=0.25)
    # Spread sideways in the order of their size, so that near ones do not hide each other.
    ranks = np.argsort(np.argsort(slopes))
    sideways = x + 0.5 * width * ((ranks * 0.618) % 1 - 0.5) * (len(rows) > 1)
    kept = inside == slopes
    size = 3.5 if len(rows) < 50 else 1.5
    axes.plot(sideways[kept], inside[kept], marker, color=colour, ms=size, alpha=0.8, mew=0)
    for limit, arrow, inwards in zip(VIEW, "v^", (0.04, -0.04), strict=True):
        at = ~kept & (inside == limit)
        axes.plot(sideways[at], inside[at] + inwards, arrow, color=colour, ms=6)
    axes.hlines(np.median(inside), x - 0.42 * width, x + 0.42 * width, color=colour, lw=2)
    axes.plot(x, np.median([row["r_squared"] for row in rows]), "x", color="0.2", ms=5, mew=1.2, zorder=5)


def _estimate(value: float, interval: Sequence[float | None]) -> Estimate:
    return Estimate(value, *(np.nan if x is None else x for x in interval))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")


if __name__ == "__main__":
    run(main, Settings)
