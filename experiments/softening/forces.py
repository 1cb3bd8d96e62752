"""How far below DFT's are forces off equilibrium, and how much of that is regression?

    python -m experiments.softening.forces --model chgnet-0.3.0 --data FOLDER --out FOLDER

One slope for each material and group of frames (`groups`): Σxy / Σxx of model forces y against DFT forces x,
through the origin, over all components of all frames, as in arXiv:2405.07105 (`jaxmlip.derivatives.slopes`).
A slope differs from 1 for another reason, too: a model whose only error is regression to the mean has slope
r². This effect explains at most the fraction (1 - r²) / (1 - slope) of 1 - slope.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.datasets import MissingDataError, where_there
from experiments.softening import groups
from experiments.softening.groups import AT_REST, GROUPS, WBM, Grouped
from jaxmlip.derivatives.slopes import force_slope
from jaxmlip.studies.softening_scale import Frame, describe, evenly, forces_by_material, record, table
from jaxmlip.studies.study import Study, bootstrap, load_models, run
from jaxmlip.system.arguments import Models
from jaxmlip.system.plots import legend, panels, strip, styles
from jaxmlip.system.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OFF = "all off equilibrium"
APART = (*AT_REST, WBM)  # left out of OFF; WBM has so many materials that it would dominate
VIEW = (-0.1, 1.6)  # slopes in the figure
# Published for the WBM states: share of slopes below 1 (arXiv:2405.07105, Fig. 5b); mean slope (MatPES, 979
# materials).
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
    wbm: Path | None = None  # WBM high-energy states as published, if not in wbm_high_energy/
    frames: int = 20  # of each material and group at most, evenly spread over the file
    max_pressure: float = 30.0  # GPa, of frames of pypolymlp
    max_energy: float = 1.0  # eV/atom, of frames of pypolymlp, above the lowest of the same composition
    out: Path = Path("softening_forces")  # a run that was cut short goes on there


def main(settings: Settings) -> None:
    potentials = load_models(settings.model)
    data, findings = read_all(settings)
    taken = {key: evenly(frames, settings.frames) for key, frames in data.frames.items()}
    study = Study("softening_forces", settings, potentials)
    for label in potentials:
        measure(study, label, taken, data.broken)
    of_run = [key_of(label, *key) for label in potentials for key in (*taken, *data.broken)]
    models, order = list(potentials), list(GROUPS)
    rows = sorted(
        study.done(of_run).values(),
        key=lambda r: (models.index(r["model"]), order.index(r["group"]), r["material"]),
    )
    if not rows:
        study.write([], {}, [*findings, "No slope was measured."])
        return
    found = grouped(rows)
    tables = [summary_table(found), published_table(found), material_table(rows)]
    told = [f"{m}, {group}: {describe(x)[0]}." for (m, group), x in found.items() if group in (OFF, WBM)]
    figures = {"softening_forces.png": (caption(rows), draw(rows))}
    study.write(tables, figures, [*told, *findings])


def read_all(settings: Settings) -> tuple[Grouped, list[str]]:
    """All frames that are there, and remarks on missing data. Raises MissingDataError if there are none."""
    given = {"wbm_high_energy": settings.wbm} if settings.wbm is not None else {}
    there, absent = where_there(settings.data, [name for name in groups.READERS if name not in given])
    found = Grouped()
    for name, path in (there | given).items():
        limits = (settings.max_pressure, settings.max_energy) if name == "pypolymlp_vasp" else ()
        found.join(groups.READERS[name](path, *limits))
    if not found.frames and not found.broken:
        raise MissingDataError(
            "\n".join(["found no frames in these data sets, needed at least one.", *absent])
        )
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


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Rows by model and group; all groups off equilibrium together form another group."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        for group in [*GROUPS, OFF]:
            alike = (group,) if group != OFF else [name for name in GROUPS if name not in APART]
            found[model, group] = [r for r in rows if r["model"] == model and r["group"] in alike]
    return {key: chosen for key, chosen in found.items() if chosen}


def summary_table(groups: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> Table:
    """Medians over materials, with 95 % intervals, for a model in a group."""

    def explained(x: np.ndarray) -> float:  # columns: slope, r²
        slope, r_squared = np.median(x, axis=0)
        return (1 - r_squared) / (1 - slope) if slope < 1 else np.nan

    def reduction(x: np.ndarray) -> float:  # columns: MAE, corrected MAE
        mae, corrected = np.median(x, axis=0)
        return 1 - corrected / mae if mae else np.nan

    lines = []
    for (model, group), rows in groups.items():
        names = ("slope", "inverse", "deming", "r_squared", "mae", "corrected_mae")
        x = {n: np.array([np.nan if r[n] is None else r[n] for r in rows]) for n in names}
        slope, inverse, deming, r_squared, mae, corrected = (bootstrap(x[n], np.median) for n in names)
        soft = np.transpose([x["slope"], x["r_squared"]])
        line = {"model": model, "group": group, "materials": len(rows)}
        line |= {"frames": sum(row["samples"] for row in rows), "slope": slope}
        line |= {"share below 1": bootstrap(x["slope"] < 1), "inverse slope": inverse, "Deming": deming}
        line["r² (slope of pure shrinkage)"] = r_squared
        line["explained by shrinkage at most"] = bootstrap(soft, explained) if slope.value < 1 else None
        line |= {"MAE / eV/Å": mae, "cMAE / eV/Å": corrected}
        line["1 - cMAE / MAE"] = bootstrap(np.transpose([x["mae"], x["corrected_mae"]]), reduction)
        lines.append(line)
    shown = {group for _, group in groups}
    note = (
        "slope: Σxy / Σxx, x DFT, y model. inverse: Σyy / Σxy, 1 for a model that errs by giving means. "
        "Deming: as if both sides had equal errors. cMAE: of model / slope. Intervals: 95 %, draws of "
        f"materials. {' '.join(f'{name}: {about}.' for name, about in GROUPS.items() if name in shown)}"
    )
    if OFF in shown:
        note += f" {OFF}: all but {', '.join(APART)}."
    return Table.of("Slope of model forces against DFT forces, medians over materials", lines, note=note)


def published_table(groups: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> Table:
    """A table of the WBM states beside published results on them."""
    lines = []
    for (model, group), rows in groups.items():
        if group == WBM:
            of, (below, mean) = np.array([row["slope"] for row in rows]), PUBLISHED.get(model, (None, None))
            line = {"model": model, "materials": len(of), "share below 1": bootstrap(of < 1)}
            lines.append(line | {"published": below, "mean slope": bootstrap(of), "published mean": mean})
    return Table.of(
        "WBM high-energy states beside published values",
        lines,
        note="Published: share below 1, arXiv:2405.07105, Fig. 5b, 1000 compounds; mean slopes, MatPES, 979 "
        "compounds, where CHGNet trained on MPtrj by matgl, other weights than those of 0.3.0, has 0.83.",
    )


def material_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of each material, without those of the WBM states, which are many: record.json has them."""
    shown = [row for row in rows if row["group"] != WBM]
    columns = {"model": "model", "group": "group", "material": "material"}
    columns |= {"frames": "samples", "rms force / eV/Å": "rms_force"}
    lines = [({column: row[name] for column, name in columns.items()}, row) for row in shown]
    return table("Each material", lines, f". {WBM}: in record.json." if len(shown) < len(rows) else "")


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
