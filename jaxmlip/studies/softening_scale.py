"""The softening scale: the slope of a potential's forces against DFT forces, for each material.

B. Deng et al., npj Comput. Mater. 11, 9 (2025). `derivatives.slopes` defines the numbers. This module reads
frames, predicts forces, and prints, saves and draws the result.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms

from jaxmlip.crystals.atoms import check_crystal, check_elements
from jaxmlip.derivatives.slopes import Slope, force_slope
from jaxmlip.studies.study import save
from jaxmlip.system.console import note, say
from jaxmlip.system.files import check_folder
from jaxmlip.system.plots import COLOURS, grid, legend
from jaxmlip.system.progress import track
from jaxmlip.system.tables import Estimate, Table, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxmlip.potential import Potential

PANELS = 20  # panels of the figure at most
POINTS = 4000  # points of a panel at most
LOOSE = 0.5  # below this r² a slope says little


class Frame(NamedTuple):
    """A crystal with its DFT forces."""

    where: str  # file and number, for messages
    atoms: Atoms
    forces: np.ndarray  # (atoms, 3), eV/Å


@dataclass(frozen=True, eq=False)
class Row:
    """A potential against DFT for one material."""

    material: str
    slope: Slope
    model: np.ndarray  # force components, eV/Å, in the order of `dft`
    dft: np.ndarray


def softening_scale(potential: Potential, materials: Mapping[str, Sequence[Frame]]) -> list[Row]:
    """One row for each material, in the same order. The potential may have dtype "float32".

    Raises ValueError, naming the frame, if it is no crystal or has an element unknown to the potential.
    """
    frames = [frame for group in materials.values() for frame in group]
    for frame in frames:
        try:
            check_crystal(frame.atoms)
            check_elements(frame.atoms, potential.elements)
        except ValueError as error:
            raise ValueError(f"{frame.where}: {error}") from None
    predicted = dict(forces_by_material(potential, materials))
    rows = []
    for material, group in materials.items():
        model, dft = predicted.get(material, []), [frame.forces for frame in group]
        rows.append(Row(material, force_slope(model, dft), *map(_components, (model, dft))))
    return rows


def forces_by_material(
    potential: Potential, materials: Mapping[str, Sequence[Frame]]
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Each material with the potential's forces in its frames (eV/Å), once all its frames are computed.

    Frames of all materials share one program, large ones first, so the order of materials changes. Raises
    ValueError as `from_atoms` does, before anything is computed.
    """
    from jaxmlip.crystals.batches import each_predicted

    owners = [(material, n) for material, group in materials.items() for n in range(len(group))]
    graphs = [potential.graph(materials[material][n].atoms) for material, n in track(owners, "neighbours")]
    found: dict[str, dict[int, np.ndarray]] = {material: {} for material in materials}
    for k, predicted in each_predicted(potential, graphs, what="forces"):
        material, n = owners[k]
        found[material][n] = predicted["forces"].astype(float)
        if len(found[material]) == len(materials[material]):
            ready = found.pop(material)
            yield material, [ready[n] for n in range(len(ready))]


def _components(forces: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([f.ravel() for f in forces])


def read_frames(path: Path, forces: str = "forces", skip_bad: bool = False) -> list[Frame]:
    """Every frame of a file with its forces, the per-atom array named `forces` (eV/Å).

    Reads any format of ASE that has forces, such as extxyz, also as `.gz`. Raises ValueError, naming the
    frame, if one has no forces; with `skip_bad` such frames, and the rest of a broken file, are left out with
    a warning. Warns if frames have REF_forces or dft_forces besides bare `forces`: these may be a
    calculator's.
    """
    from jaxmlip.crystals.structures import read_crystals

    found, beside = [], Counter()
    for k, atoms in enumerate(read_crystals(path, skip_bad=skip_bad)):
        where = f"{path}, frame {k} ({atoms.get_chemical_formula()})"
        # Not get_forces(), which a constraint in the file would set to zero on the atoms it holds.
        labels = {**atoms.arrays, **(atoms.calc.results if atoms.calc else {})}
        try:
            found.append(Frame(where, atoms, _forces_of(labels, len(atoms), forces, where)))
        except ValueError as error:
            if not skip_bad:
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
            continue
        if forces == "forces":
            beside.update(name for name in labels if name.lower() in ("ref_forces", "dft_forces"))
    for name, count in beside.items():
        warnings.warn(
            f"{path}: {count} of {len(found)} frames have {name} besides forces. Read were forces, which "
            f"may be a calculator's. Read {name} with --forces {name}.",
            stacklevel=2,
        )
    if not found:
        raise ValueError(f"found no frame with usable forces in {path}, needed at least one.")
    return found


def _forces_of(labels: Mapping[str, Any], atoms: int, forces: str, where: str) -> np.ndarray:
    if forces not in labels:
        vectors = [name for name, x in labels.items() if np.shape(x) == (atoms, 3)]
        others = [repr(name) for name in vectors if name != "positions"]
        raise ValueError(
            f"{where} has no forces: needed an array {forces!r} with three numbers for each atom (eV/Å), "
            f"found {', '.join(others) or 'none of that shape'}. Name the array with --forces, or leave "
            "out frames without labels (--skip-bad)."
        )
    values = np.asarray(labels[forces], float)
    if values.shape != (atoms, 3) or not np.isfinite(values).all():
        raise ValueError(
            f"{where} has {forces!r} of shape {values.shape}"
            + (", some of them no numbers" if not np.isfinite(values).all() else "")
            + f"; needed ({atoms}, 3) finite numbers (eV/Å)."
        )
    return values


def by_material(
    frames: Sequence[Frame], key: str | None = None, most: int | None = None, max_force: float | None = None
) -> dict[str, list[Frame]]:
    """Frames by reduced formula and, if `key` is given, by the entry `key` of their info.

    At most `most` frames of each material are taken, evenly spread over their order. Frames with a DFT force
    (a vector's length) above `max_force` (eV/Å) are left out first. This does not bias slopes, since x is the
    DFT force, but it lowers r².

    Raises ValueError if a frame lacks the key, or if no frame is left.
    """
    groups: dict[str, list[Frame]] = {}
    for frame in frames:
        name = frame.atoms.get_chemical_formula("metal", empirical=True)
        if key is not None:
            if key not in frame.atoms.info:
                known = ", ".join(map(repr, frame.atoms.info)) or "nothing"
                raise ValueError(
                    f"{frame.where} has no {key!r} in its info line, which has {known}. Choose one of these, "
                    "or leave the key out."
                )
            name = f"{name} {frame.atoms.info[key]}"
        if max_force is None or np.linalg.norm(frame.forces, axis=1).max() <= max_force:
            groups.setdefault(name, []).append(frame)
    if not groups:
        raise ValueError(
            f"none of {len(frames)} frames has all forces up to {max_force} eV/Å; allow larger ones."
        )
    return groups if most is None else {name: evenly(group, most) for name, group in groups.items()}


def evenly(frames: Sequence[Frame], most: int) -> list[Frame]:
    """At most `most` of the frames, evenly spread over their order. Raises ValueError below 1."""
    if most < 1:
        raise ValueError(f"found {most} frames of each material, needed at least 1.")
    return [frames[k] for k in np.unique(np.linspace(0, len(frames) - 1, most).round().astype(int))]


def record(slope: Slope) -> dict[str, Any]:
    """A slope, and numbers that follow from it, for JSON."""
    derived = ("r_squared", "geometric_mean", "shrinkage_share")
    return asdict(slope) | {name: getattr(slope, name) for name in derived}


def table(title: str, rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], note: str = "") -> Table:
    """A table of slopes and of numbers that could explain them, one line for each (labels, `record`)."""
    lines = []
    for of, s in rows:
        slope = Estimate.of(s["slope"], s["interval"])
        inverse = Estimate.of(s["inverse"], s["inverse_interval"])
        numbers = {"slope": slope, "r²": s["r_squared"], "inverse slope": inverse, "Deming": s["deming"]}
        numbers["shrinkage share"] = s["shrinkage_share"] if s["slope"] < 1 else None
        lines.append({**of, **numbers, "MAE / eV/Å": s["mae"], "cMAE / eV/Å": s["corrected_mae"]})
    about = (
        "slope: Σxy/Σxx, x DFT, y model, with 95 % interval (bootstrap over frames); inverse: Σyy/Σxy;\n"
        "Deming: equal errors on both sides; shrinkage share: (1 - r²)/(1 - slope), what a conditional mean\n"
        "of this r² would show; cMAE: of model / slope"
    )
    return Table.of(title, lines, note=about + note)


def describe(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line on all materials, and one on those whose slope says little; `records` come from `record`."""
    below, still = (
        sum(r[name] is not None and r[name] < 1 for r in records) for name in ("slope", "inverse")
    )
    lines = [
        f"{below} of {len(records)} slopes below 1, median {np.median([r['slope'] for r in records]):.3f}; "
        f"{still} stay below 1 if all of the scatter counts as shrinkage (inverse)"
    ]
    loose = [r["material"] for r in records if r["r_squared"] < LOOSE]
    if loose:
        lines.append(
            f"r² below {LOOSE}: {', '.join(loose)}. Their slopes say little: near equilibrium, forces mostly "
            "show that the model's minimum is elsewhere."
        )
    return lines


def draw(rows_by_model: Mapping[str, Sequence[Row]]) -> Figure:
    """Draws model forces against DFT forces, a panel for each material (the 20 with the most frames)."""
    first = next(iter(rows_by_model.values()))
    by_size = sorted(range(len(first)), key=lambda k: -first[k].slope.samples)
    shown = sorted(by_size[:PANELS])
    wide = int(np.ceil(np.sqrt(len(shown))))
    figure, panels = grid(len(shown), wide, each=(3.0, 3.0), spare=(0.5, 0.9))
    for n, (axes, k) in enumerate(zip(panels, shown, strict=True)):
        _panel(axes, {model: rows[k] for model, rows in rows_by_model.items()})
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("force, model (eV/Å)", fontsize=9)
        if n + wide >= len(shown):
            axes.set_xlabel("force, DFT (eV/Å)", fontsize=9)
    legend(figure, fontsize=9)
    return figure


def _panel(axes, row_of_model: Mapping[str, Row]) -> None:
    rows = list(row_of_model.values())
    x = np.concatenate([row.dft for row in rows])
    y = np.concatenate([row.model for row in rows])
    colours = [COLOURS[k % len(COLOURS)] for k in range(len(rows))]
    limit = 1.08 * max(np.abs(x).max(), np.abs(y).max())
    # Points are drawn in random order, so that no model hides another.
    chosen = np.random.default_rng(0).permutation(len(x))[:POINTS]
    of_point = np.repeat(colours, [len(row.dft) for row in rows])[chosen]
    size = 5 if len(x) > 1000 else 14
    axes.scatter(x[chosen], y[chosen], s=size, c=of_point, alpha=0.4, lw=0, zorder=2, rasterized=True)
    reach = limit * np.array([-1, 1])
    for k, (model, row, colour) in enumerate(zip(row_of_model, rows, colours, strict=True)):
        # A white line below makes the line stand out from the points.
        axes.plot(reach, row.slope.slope * reach, color="white", lw=2.4, zorder=20)
        axes.plot(reach, row.slope.slope * reach, color=colour, lw=1.4, zorder=21, label=model)
        axes.text(
            *(0.04, 0.96 - 0.085 * k),
            f"slope {row.slope.slope:.3f}, r² {row.slope.r_squared:.3f}",
            transform=axes.transAxes,
            va="top",
            fontsize=8,
            color=colour,
            weight="bold",
            zorder=40,
        )
    axes.plot([-limit, limit], [-limit, limit], color="0.4", lw=0.9, ls="--", zorder=19, label="model = DFT")
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes.set_title(f"{rows[0].material} ({rows[0].slope.samples} frames)", loc="left", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92", lw=0.6, zorder=0)


def main(
    models: Sequence[str],
    files: Sequence[Path],
    out: Path,
    forces: str = "forces",
    key: str | None = None,
    most: int | None = None,
    max_force: float | None = None,
    dtype: str = "float32",
    heads: Sequence[str] = (),
    skip_bad: bool = False,
) -> None:
    """`softening_scale` for `models`: prints tables, writes softening_scale.json and .png to `out`.

    `heads` are those of `load_each`.
    """
    from jaxmlip.zoo.load import load_each

    check_folder(out)
    frames = [frame for path in files for frame in read_frames(path, forces, skip_bad)]
    materials = by_material(frames, key, most, max_force)
    taken = sum(map(len, materials.values()))
    if taken < len(frames):
        note(f"{taken} of {len(frames)} frames")
    potentials = load_each(models, dtype, heads)
    rows_by_model = {potential.name: softening_scale(potential, materials) for potential in potentials}
    records = {
        model: [{"material": row.material, **record(row.slope)} for row in rows]
        for model, rows in rows_by_model.items()
    }
    for model in records:
        lines = [({"material": x["material"], "frames": x["samples"]}, x) for x in records[model]]
        show(table(f"{model}: slopes of its forces against DFT", lines))
        for line in describe(records[model]):
            say(line)
    save(
        out,
        "softening_scale",
        "slopes of model forces against DFT forces through the origin, over all components",
        {
            "files": [str(path) for path in files],
            "forces": forces,
            "group_by": key,
            "frames_at_most": most,
            "max_force_eV_per_A": max_force,
            "dtype": dtype,
        },
        potentials,
        draw(rows_by_model),
        models=records,
    )
