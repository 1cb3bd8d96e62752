"""How much too low are the phonon frequencies of a potential, against DFT of 103 binaries?

    python -m experiments.softening.phonons --model chgnet-0.3.0 --data FOLDER --out FOLDER

Deng et al. (npj Comput. Mater. 11, 9, 2025, Fig. 4) take the ratio of the highest frequency, model / DFT,
without the non-analytical correction on either side, from displacements about the model's own relaxed cell.
That is "relaxed, displaced" here, and what is compared with their numbers; their materials are others, and
their DFT is PBEsol. The same at DFT's cell leaves the lattice error of the model out, and the Hessian beside
it leaves out what an energy that is rough on the scale of the displacement adds. On phonopy's examples the
very displacements of DFT are compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.softening.reference_runs import PHONOPY, RUNS
from jaxmlip.studies.study import Study, Table, bootstrap, data_file, knows, load_models, run
from jaxmlip.system.arguments import Models

if TYPE_CHECKING:
    from ase import Atoms
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxmlip.crystals.batching import Capacity
    from jaxmlip.phonons.modes import Modes
    from jaxmlip.potential import Potential
    from jaxmlip.studies.phonondb import Material

Rows = Sequence[Mapping[str, Any]]
FOLDER = "phonondb_PBE_103"
CELLS = ("DFT's cell", "relaxed")
MEASURES = {"hessian": "Hessian", "displaced": "displaced"}
LIKE_PUBLISHED = ("relaxed", "displaced")


@dataclass(frozen=True)
class Settings:
    """How much too low are the phonon frequencies of a potential, against DFT of 103 binaries?"""

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with phonondb_PBE_103/; default: JAXMLIP_DATA
    out: Path = Path("softening_phonons")
    materials: int | None = None  # the first so many of the data set; default: all
    displacement: float = 0.01  # Å; phonopy's default, which the published numbers come from
    supercell: int = 128  # atoms at most, where atoms are displaced
    steps: int = 500  # of a relaxation at most
    tolerance: float = 2e-3  # THz, of frequencies that are interpolated between dynamical matrices
    examples: bool = True  # phonopy's examples too, of phonopy_examples_PBE/; needs the extra "phonopy"


def main(settings: Settings) -> None:
    from jaxmlip.studies.phonondb import read_phonondb

    materials = read_phonondb(data_file(settings.data, FOLDER))[: settings.materials]
    examples = read_examples(settings)
    potentials = load_models(settings.model, "float64")
    study = Study("softening_phonons", Settings.__doc__, settings, potentials)
    found: dict[str, list[dict[str, Any]]] = {}
    compared: dict[str, list[dict[str, Any]]] = {}
    unknown: dict[str, int] = {}
    for name, potential in potentials.items():
        known = [m for m in materials if knows(potential, m.atoms.numbers)]
        unknown[name] = len(materials) - len(known)
        found[name] = phonons(study, settings, name, potential, known)
        compared[name] = on_examples(study, name, potential, examples)
    tables = [ratio_table(found), group_table(found, "structure"), group_table(found, "anions")]
    if examples:
        tables.append(example_table(compared))
    drawn = {model: rows for model, rows in found.items() if rows}
    figures = {}
    if drawn:
        figures = {
            "softening_phonons.png": (
                "Ratios of the highest frequency, model / DFT; as published: displacements, relaxed cell",
                histogram(drawn),
            ),
            "softening_phonons_by_frequency.png": (
                "The same ratio against DFT's highest frequency, from the Hessian in DFT's cell",
                scatter(drawn),
            ),
        }
    study.write(tables, figures, findings(found, unknown))


def phonons(
    study: Study, settings: Settings, name: str, potential: Potential, materials: Sequence[Material]
) -> list[dict[str, Any]]:
    """One row a material and cell: spectra of the model against DFT's."""
    from jaxmlip.crystals import batching
    from jaxmlip.studies.softening import shared_rooms

    at_rest = relaxed(study, name, potential, materials, settings.steps)
    crystals: dict[str, tuple[Material, str, Atoms]] = {}
    for m in materials:
        crystals[f"{name} | {m.id} | {CELLS[0]}"] = (m, CELLS[0], m.atoms)
        if at_rest[m.id] is not None:
            crystals[f"{name} | {m.id} | {CELLS[1]}"] = (m, CELLS[1], at_rest[m.id])
    # Rooms depend on all crystals, so that a study that goes on compiles what it had compiled before.
    primitive = shared_rooms([batching.need([potential.graph(a)]) for _, _, a in crystals.values()])
    repeated = shared_rooms(
        [batching.need([potential.graph(a.repeat(repeats(m, settings)))]) for m, _, a in crystals.values()]
    )
    rooms = dict(zip(crystals, zip(primitive, repeated, strict=True), strict=True))

    def measure(key: str) -> dict[str, Any]:
        material, cell, atoms = crystals[key]
        spectra = spectra_of(potential, material, atoms, settings, rooms[key])
        return {
            "model": name,
            "id": material.id,
            "formula": material.formula,
            "structure": material.structure,
            "anions": material.anions,
            "cell": cell,
            "volume_ratio": atoms.cell.volume / material.atoms.cell.volume,
            "dft": vars(material.dft),
            **spectra,
        }

    rows = study.each(f"phonons of {name}", list(crystals), measure)
    return [row for row in rows.values() if "failed" not in row]


def relaxed(
    study: Study, name: str, potential: Potential, materials: Sequence[Material], steps: int
) -> dict[str, Atoms | None]:
    """The crystals where the model's forces and stress vanish, their space groups kept; by id."""
    import warnings

    from ase import Atoms

    from jaxmlip.mechanics.relaxation import NotConvergedWarning, relax_many

    keys = {f"{name} | {m.id} | at rest": m for m in materials}
    left = study.left(keys)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)  # they become rows that failed
        ended = relax_many(potential, [keys[key].atoms for key in left], fix_symmetry=True, steps=steps)
    for key, r in zip(left, ended, strict=True):
        if r.converged:
            study.keep(key, {"cell": r.atoms.cell.array, "scaled": r.atoms.get_scaled_positions()})
        else:
            study.fail(key, f"did not come to rest: {r.reason}")
    found: dict[str, Atoms | None] = {}
    for key, m in keys.items():
        row = study.rows[key]
        rests = "failed" not in row
        found[m.id] = (
            Atoms(m.atoms.numbers, cell=row["cell"], scaled_positions=row["scaled"], pbc=True)
            if rests
            else None
        )
    return found


def repeats(material: Material, settings: Settings) -> tuple[int, int, int]:
    from jaxmlip.phonons.supercell import repeats_within

    return repeats_within(material.atoms.cell.array, settings.supercell // len(material.atoms))


def spectra_of(
    potential: Potential,
    material: Material,
    atoms: Atoms,
    settings: Settings,
    rooms: tuple[Capacity, Capacity],
) -> dict[str, dict[str, Any]]:
    """By measure: highest, mean and lowest frequency, and the rms difference of modes to DFT's (THz)."""
    from jaxmlip.mechanics.elasticity import NotAtRestWarning
    from jaxmlip.phonons.commensurate import interpolated_frequencies
    from jaxmlip.phonons.modes import mesh_modes
    from jaxmlip.phonons.supercell import displaced_force_constants

    if not material.dft.maximum > 0:
        raise ValueError(
            f"{material.id} ({material.formula}): DFT has no real mode, needed some to compare with."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotAtRestWarning)  # of the two cells one is DFT's
        modes = mesh_modes(potential, atoms, material.mesh, tolerance=settings.tolerance, room=rooms[0])
    constants = displaced_force_constants(
        potential, atoms, repeats(material, settings), settings.displacement, symmetry=True, room=rooms[1]
    )
    thz = {
        "hessian": modes.frequencies[representatives(modes, material)],
        "displaced": interpolated_frequencies(constants, material.modes.q_points),
    }
    return {name: summed_up(x, material) for name, x in thz.items()} | {"method": modes.method}


def representatives(modes: Modes, material: Material) -> np.ndarray:
    """Which wave vector of `modes` stands for each of DFT's. Raises ValueError where they are other stars."""
    shape, dft = np.array(material.mesh), material.modes
    index = np.rint(dft.q_points * shape).astype(int) % shape
    found = modes.mesh.representative[np.ravel_multi_index(tuple(index.T), material.mesh)]
    if not np.array_equal(np.bincount(found, dft.weights, len(modes.mesh.weights)), modes.mesh.weights):
        raise ValueError(
            f"the wave vectors of {material.id} ({material.formula}) and their weights are not those of a "
            f"mesh of {material.mesh} that the symmetry of its cell reduces."
        )
    return found


def summed_up(thz: np.ndarray, material: Material) -> dict[str, Any]:
    from jaxmlip.studies.phonondb import Spectrum

    weights = material.modes.weights
    square = ((thz - material.modes.thz) ** 2).mean(axis=1)
    rms = float(np.sqrt(np.average(square, weights=weights)))
    return vars(Spectrum.of(thz, weights)) | {"rms_difference": rms}


def ratios(rows: Rows, measure: str, of: str = "maximum") -> np.ndarray:
    """Model / DFT of each row; 0 where no mode of the model is real."""
    return np.array([max(row[measure][of], 0.0) / row["dft"][of] for row in rows])


def of_cell(rows: Rows, cell: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["cell"] == cell]


def unstable(rows: Rows, measure: str) -> int:
    """How many have an imaginary mode, where DFT has none."""
    from jaxmlip.studies.softening import IMAGINARY

    return sum(row[measure]["lowest"] < IMAGINARY <= row["dft"]["lowest"] for row in rows)


def below_1(values: np.ndarray) -> float:
    return float(np.mean(values < 1))


def ratio_table(found: Mapping[str, Rows]) -> Table:
    """All materials, by model, cell and measure."""
    from jaxmlip.studies.softening import PUBLISHED

    lines = []
    for model, rows in found.items():
        for cell in CELLS:
            some = of_cell(rows, cell)
            for measure, label in MEASURES.items():
                highest = ratios(some, measure)
                lines.append(
                    [
                        model,
                        f"{cell}, {label}",
                        len(some),
                        bootstrap(highest, np.median),
                        bootstrap(highest, below_1),
                        bootstrap(ratios(some, measure, "mean"), np.median),
                        bootstrap([row[measure]["rms_difference"] for row in some], np.median),
                        unstable(some, measure),
                    ]
                )
        if model in PUBLISHED:
            published = PUBLISHED[model]
            lines.append(
                [model, "published", "298; 229", published.median, published.below_1, None, None, None]
            )
    return Table(
        "Frequencies, model / DFT",
        (
            "model",
            "cell, measure",
            "materials",
            "ω_max ratio, median",
            "share below 1",
            "ω_mean ratio, median",
            "rms difference / THz, median",
            "imaginary modes",
        ),
        lines,
        note="Published: displacements about the relaxed cell, as 'relaxed, displaced', of other materials "
        "against PBEsol (PhononDB); the median of 298 from janosh/ffonons, the share of 229 from Deng et al. "
        "2025. Here DFT is PBE (phononDB-PBE). Imaginary: materials with a mode below -0.1 THz, of which DFT "
        "has none. 95 % intervals by bootstrap over materials.",
    )


def group_table(found: Mapping[str, Rows], by: str) -> Table:
    """Ratios of the highest frequency by kind of material."""
    lines = []
    for model, rows in found.items():
        for kind in sorted({row[by] for row in rows}):
            some = [row for row in rows if row[by] == kind]
            line: list[Any] = [model, kind, len(of_cell(some, CELLS[0]))]
            for cell, measure in ((CELLS[0], "hessian"), LIKE_PUBLISHED):
                values = ratios(of_cell(some, cell), measure)
                line += [bootstrap(values, np.median), bootstrap(values, below_1).value]
            lines.append(line)
    columns = [f"{cell}, {MEASURES[m]}" for cell, m in ((CELLS[0], "hessian"), LIKE_PUBLISHED)]
    return Table(
        f"ω_max ratio by {by}",
        ("model", by, "materials", *(x for c in columns for x in (f"{c}: median", "share below 1"))),
        lines,
    )


def read_examples(settings: Settings) -> dict[str, Any]:
    """phonopy's examples with forces, by name."""
    if not settings.examples:
        return {}
    found = {r.name: r.read(settings.data) for r in RUNS if r.path.startswith(PHONOPY)}
    return {name: run for name, run in found.items() if run.displaced}


def on_examples(study: Study, name: str, potential: Potential, examples: Mapping[str, Any]) -> list:
    """One row an example: the model on the very displacements of DFT."""
    from jaxmlip.studies.compare import compare

    keys = {f"{name} | example | {each}": each for each in examples}

    def measure(key: str) -> dict[str, Any]:
        (row,) = compare(potential, [examples[keys[key]]])
        return {"potential": name, "example": keys[key], **row.record()}

    rows = study.each(f"phonopy's examples, {name}", list(keys), measure)
    return [row for row in rows.values() if "failed" not in row]


def example_table(compared: Mapping[str, Rows]) -> Table:
    return Table(
        "phonopy's examples: the same displacements and cells as DFT (PBE)",
        (
            "model",
            "crystal",
            "ω_max of DFT / THz",
            "ω_max",
            "ω_mean",
            "ω_rms",
            "rms difference / THz",
            "force slope",
        ),
        [
            [
                model,
                row["example"],
                row["dft"]["maximum"],
                *(row["ratios"][of] for of in ("maximum", "mean", "rms")),
                row["rms_difference_THz"],
                row["force_slope"],
            ]
            for model, rows in compared.items()
            for row in rows
        ],
        note="Ratios model / DFT.",
    )


def findings(found: Mapping[str, Rows], unknown: Mapping[str, int]) -> list[str]:
    lines = []
    for model, rows in found.items():
        rest = {row["id"]: row for row in of_cell(rows, "relaxed")}
        both = [row for row in of_cell(rows, CELLS[0]) if row["id"] in rest]
        if both:
            moved = np.array(
                [rest[row["id"]]["hessian"]["maximum"] / row["hessian"]["maximum"] for row in both]
            )
            volume = np.array([rest[row["id"]]["volume_ratio"] for row in both])
            lines.append(
                f"{model}: relaxing changes the volume by {100 * np.median(volume - 1):+.1f} % (median) and "
                f"ω_max by {100 * np.median(moved - 1):+.1f} %."
            )
        if unknown[model]:
            lines.append(
                f"{model}: {unknown[model]} materials with elements that it does not know are left out."
            )
    return lines


def histogram(found: Mapping[str, Rows]) -> Figure:
    """Ratios of the highest frequency, a panel for each model."""
    from matplotlib.figure import Figure

    from jaxmlip.studies.softening import PUBLISHED
    from jaxmlip.system.figures import COLOURS

    figure = Figure(figsize=(6.4, 2.6 * len(found) + 0.6), layout="constrained")
    panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    edges = np.arange(0, 1.6, 0.05)
    for axes, (model, rows) in zip(panels, found.items(), strict=True):
        for cell, measure, style, colour in (
            (*LIKE_PUBLISHED, {"histtype": "stepfilled", "alpha": 0.45}, COLOURS[0]),
            (CELLS[0], "hessian", {"histtype": "step", "lw": 1.5, "ls": "--"}, COLOURS[1]),
        ):
            values = ratios(of_cell(rows, cell), measure)
            median = np.median(values) if len(values) else np.nan
            label = f"{cell}, {MEASURES[measure]}: median {median:.2f}"
            axes.hist(np.clip(values, 0, edges[-1]), edges, color=colour, label=label, **style)
            axes.axvline(median, color=colour, lw=1.6, ls=style.get("ls", "-"))
        if model in PUBLISHED:
            median = PUBLISHED[model].median
            axes.axvline(
                median, color="k", ls=":", lw=1.8, label=f"published (other crystals): median {median:.2f}"
            )
        axes.axvline(1, color="0.5", lw=0.9)
        axes.set_ylabel("materials")
        axes.set_title(model, loc="left", fontsize=10)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        axes.set_xlim(0, edges[-1])
    panels[-1].set_xlabel("highest frequency, model / DFT")
    return figure


def scatter(found: Mapping[str, Rows]) -> Figure:
    """The ratio against DFT's highest frequency, a panel for each model, a marker for each structure."""
    from matplotlib.figure import Figure

    from jaxmlip.studies.softening import MARKERS
    from jaxmlip.system.figures import COLOURS

    figure = Figure(figsize=(6.4, 2.9 * len(found) + 0.4), layout="constrained")
    panels = figure.subplots(len(found), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    classes = sorted({row["anions"] for rows in found.values() for row in rows})
    for axes, (model, rows) in zip(panels, found.items(), strict=True):
        some = of_cell(rows, CELLS[0])
        for kind, marker in MARKERS.items():
            for colour, anions in zip(COLOURS, classes, strict=False):
                group = [row for row in some if row["structure"] == kind and row["anions"] == anions]
                axes.plot(
                    [row["dft"]["maximum"] for row in group],
                    ratios(group, "hessian"),
                    marker,
                    color=colour,
                    ms=5,
                    alpha=0.8,
                )
        axes.axhline(1, color="0.5", lw=0.9)
        axes.set_ylabel("ω_max, model / DFT")
        axes.set_title(model, loc="left", fontsize=10)
        axes.set_ylim(bottom=0)
    panels[-1].set_xlabel("highest frequency, DFT (THz)")
    legend(panels[0], MARKERS, dict(zip(classes, COLOURS, strict=False)))
    return figure


def legend(axes: Axes, markers: Mapping[str, str], colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], ls="", marker=m, color="0.4", label=kind) for kind, m in markers.items()]
    handles += [Line2D([], [], ls="", marker="o", color=c, label=name) for name, c in colours.items()]
    axes.legend(handles=handles, frameon=False, fontsize=8, ncols=3, loc="lower right")


if __name__ == "__main__":
    run(main, Settings)
