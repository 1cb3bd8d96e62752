"""How far below DFT's are forces off equilibrium, and how much of that is regression?

    python -m experiments.softening.forces --model chgnet-0.3.0 --data FOLDER --out FOLDER

One slope for each material and group of frames (`groups`): Σxy / Σxx of model forces y against DFT forces x,
through the origin, over all components of all frames, as arXiv:2405.07105 has it
(`jaxmlip.derivatives.slopes`). Beside it stands an effect that makes it differ from 1 without any softening:
a model whose only error is regression to the mean has slope r², which explains at most (1 - r²) / (1 - slope)
of the missing slope.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.datasets import MissingDataError, where_there
from experiments.softening import groups
from experiments.softening.groups import AT_REST, GROUPS, WBM, Grouped
from jaxmlip.derivatives.slopes import force_slope
from jaxmlip.studies.softening_scale import LOOSE, Frame, evenly, forces_by_material, record, table
from jaxmlip.studies.study import Study, bootstrap, load_models, run
from jaxmlip.system.arguments import Models
from jaxmlip.system.plots import legend, panels, strip, styles
from jaxmlip.system.tables import Estimate, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OFF = "all off equilibrium"
APART = (*AT_REST, WBM)  # from OFF: WBM has so many materials that it would dominate
VIEW = (-0.1, 1.6)  # of slopes
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
    study = Study("softening_forces", settings, potentials)
    for label in potentials:
        measure(study, label, taken, found.broken)
    of_run = [key_of(label, *key) for label in potentials for key in (*taken, *found.broken)]
    models, order = list(potentials), list(GROUPS)
    rows = sorted(
        study.done(of_run).values(),
        key=lambda r: (models.index(r["model"]), order.index(r["group"]), r["material"]),
    )
    if not rows:
        study.write([], {}, [*findings, "No slope was measured."])
        return
    summary = summarise(rows)
    tables = [summary_table(summary), published_table(rows), material_table(rows)]
    figures = {"softening_forces.png": (caption(rows), draw(rows))}
    study.write(tables, figures, [*in_words(summary), *findings])


def read_all(settings: Settings) -> tuple[Grouped, list[str]]:
    """All frames that are there, and remarks on missing data. Raises MissingDataError where none is there."""
    given = {"wbm_high_energy": settings.wbm} if settings.wbm is not None else {}
    there, absent = where_there(settings.data, [name for name in groups.READERS if name not in given])
    found = Grouped()
    for name, path in (there | given).items():
        limits = (settings.max_pressure, settings.max_energy) if name == "pypolymlp_vasp" else ()
        found.join(groups.READERS[name](path, *limits))
    if not found.frames and not found.broken:
        raise MissingDataError("\n".join(["none of these data sets holds frames.", *absent]))
    left_out = [f"Left out: {'; '.join(found.left_out)}."] if found.left_out else []
    return found, [*left_out, *(f"Not measured: {error}" for error in absent)]


def key_of(label: str, group: str, material: str) -> str:
    return f"{label}: {group}: {material}"


def measure(
    study: Study,
    label: str,
    taken: Mapping[tuple[str, str], Sequence[Frame]],
    broken: Mapping[tuple[str, str], str],
) -> None:
    """Computes and keeps the missing rows."""
    for key, reason in broken.items():
        for left in study.left([key_of(label, *key)]):
            study.fail(left, reason)
    materials = {f"{material} ({group})": (group, material) for group, material in sorted(taken)}
    known = study.known(
        label, materials, lambda key: {z for frame in taken[key] for z in frame.atoms.numbers}
    )
    keys = {key_of(label, *key): key for key in known.values()}
    left = {name: taken[keys[name]] for name in study.left(keys)}
    for name, model in forces_by_material(study.potentials[label], left):
        dft = [frame.forces for frame in left[name]]
        try:
            slope = force_slope(model, dft)
        except ValueError as error:
            study.fail(name, error)
            continue
        group, material = keys[name]
        size = float(np.sqrt(np.mean(np.concatenate(dft, axis=None) ** 2)))
        of = {"model": label, "group": group, "material": material, "rms_force": size}
        study.keep(name, of | record(slope))


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
    columns = ("model", "group", "materials", "frames", "slope", "share below 1", "inverse slope")
    columns += ("Deming", "r² (slope of pure shrinkage)")
    columns += ("explained by shrinkage at most", "MAE / eV/Å", "cMAE / eV/Å", "1 - cMAE / MAE")
    shown = {s.group for s in summary}
    note = (
        "slope: Σxy / Σxx, x DFT, y model. inverse: Σyy / Σxy, 1 for a model that errs by giving means. "
        "Deming: as if both sides had equal errors. cMAE: of model / slope. Intervals: 95 %, draws of "
        f"materials. {' '.join(f'{name}: {about}.' for name, about in GROUPS.items() if name in shown)}"
    )
    if OFF in shown:
        note += f" {OFF}: all but {', '.join(APART)}."
    lines = [[getattr(s, f.name) for f in fields(s) if f.name != "inverse_below"] for s in summary]
    return Table(
        "Slope of model forces against DFT forces, medians over materials", columns, lines, note=note
    )


def published_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """The WBM states beside published results on them."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        of = np.array([row["slope"] for row in rows if row["model"] == model and row["group"] == WBM])
        if len(of):
            below, mean = PUBLISHED.get(model, (None, None))
            share = bootstrap(of, lambda x: float(np.mean(x < 1)))
            line = {"model": model, "materials": len(of), "share below 1": share, "published": below}
            lines.append(line | {"mean slope": bootstrap(of), "published mean": mean})
    return Table.of(
        "WBM high-energy states beside published values",
        lines,
        note="Published: share below 1, arXiv:2405.07105, Fig. 5b, 1000 compounds; mean slopes, MatPES, 979 "
        "compounds, where CHGNet trained on MPtrj by matgl, other weights than those of 0.3.0, has 0.83.",
    )


def material_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Each material but those of the WBM states: these are too many, and record.json has them."""
    shown = [row for row in rows if row["group"] != WBM]
    columns = {"model": "model", "group": "group", "material": "material"}
    columns |= {"frames": "samples", "rms force / eV/Å": "rms_force"}
    lines = [({column: row[name] for column, name in columns.items()}, row) for row in shown]
    return table("Each material", lines, f". {WBM}: in record.json." if len(shown) < len(rows) else "")


def in_words(summary: Sequence[Summary]) -> list[str]:
    """The results of the controls, a line for each model."""
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
    looks = styles(row["model"] for row in rows)
    shown = [group for group in GROUPS if any(row["group"] == group for row in rows)]
    size = (max(1.15 * len(shown) + 1.2, 5.5), 3.2)
    figure, ((above,), (below,)) = panels(2, each=size, spare=(0, 0), sharex=True, height_ratios=(2, 1))
    width = 0.8 / len(looks)
    for k, (model, style) in enumerate(looks.items()):
        for place, group in enumerate(shown):
            chosen = [row for row in rows if row["model"] == model and row["group"] == group]
            if chosen:
                x = place + (k - (len(looks) - 1) / 2) * width
                strip(above, x, width, [row["slope"] for row in chosen], VIEW, **style)
                r_squared = np.median([row["r_squared"] for row in chosen])
                above.plot(x, r_squared, "x", color="0.2", ms=5, mew=1.2, zorder=5, label="r²")
                mae, corrected = np.median([(r["mae"], r["corrected_mae"]) for r in chosen], axis=0)
                below.plot([x, x], [mae, corrected], color=style["color"], lw=1.2)
                below.plot(x, mae, ls="", ms=5, label=model, **style)
                below.plot(x, corrected, ls="", ms=5, mfc="white", **style)
    above.axhline(1, color="0.3", lw=0.9, ls="--", zorder=1)
    above.set(ylim=VIEW, ylabel="slope, model / DFT")
    below.set(yscale="log", ylabel="force MAE (eV/Å)", xlim=(-0.6, len(shown) - 0.4))
    below.set_xticks(range(len(shown)), [name.replace(" ", "\n", 1) for name in shown], fontsize=8)
    for axes in (above, below):
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="0.92", lw=0.6)
        for place in range(1, len(shown)):
            axes.axvline(place - 0.5, color="0.9", lw=0.6, zorder=0)
    legend(figure, "upper", ncols=4, fontsize=8)
    return figure


if __name__ == "__main__":
    run(main, Settings)
