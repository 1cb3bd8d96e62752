"""How much too low are the phonon frequencies of a potential, against DFT of 103 binaries?

    python -m experiments.softening.phonons --model chgnet-0.3.0 --data FOLDER --out FOLDER

Deng et al. (npj Comput. Mater. 11, 9, 2025, Fig. 4) take the ratio of the highest frequency, model / DFT,
without the non-analytical correction on either side, from displacements about the model's own relaxed cell.
This is "relaxed, displaced" here, and is compared with their numbers; but their materials differ, and their
DFT is PBEsol. The same at DFT's cell excludes the model's error of the lattice. The Hessian excludes the
effect of an energy that is rough on the scale of the displacement. On phonopy's examples forces are compared
at DFT's displacements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from experiments.datasets import PHONOPY, RUNS, data_file
from jaxmlip.mechanics.relaxation import relax_many
from jaxmlip.studies.phonondb import read_phonondb
from jaxmlip.studies.softening import (
    PUBLISHED,
    draw,
    jobs_of,
    ratios,
    spectra_of,
    summary_table,
    supercell_of,
)
from jaxmlip.studies.study import Study, load_models, run
from jaxmlip.system.arguments import Models, above_zero, at_least
from jaxmlip.system.plots import COLOURS, panels
from jaxmlip.system.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxmlip.potential import Potential
    from jaxmlip.studies.phonondb import Material

Rows = Sequence[Mapping[str, Any]]
FOLDER = "phonondb_PBE_103"
CELLS = ("DFT's cell", "relaxed")
NAMES = {"hessian": "Hessian", "displaced": "displaced"}
LIKE_PUBLISHED = ("relaxed", "displaced")


@dataclass(frozen=True)
class Settings:
    """How much too low are the phonon frequencies of a potential, against DFT of 103 binaries?"""

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with phonondb_PBE_103/; default: JAXMLIP_DATA
    out: Path = Path("softening_phonons")
    materials: int | None = None  # the first so many of the data set; default: all
    displacement: float = 0.01  # Å; phonopy's default, used for the published numbers
    supercell: int = 128  # atoms at most of the supercells for displacements
    steps: int = 500  # of a relaxation at most
    tolerance: float = 2e-3  # THz, for interpolation between dynamical matrices
    examples: bool = True  # also phonopy_examples_PBE/, which needs the extra "phonopy"


def main(settings: Settings) -> None:
    above_zero(displacement=settings.displacement, tolerance=settings.tolerance)
    at_least(1, materials=settings.materials, supercell=settings.supercell)
    materials = read_phonondb(data_file(settings.data, FOLDER))[: settings.materials]
    examples = read_examples(settings)
    study = Study("softening_phonons", settings, load_models(settings.model, "float64"))
    found: dict[str, list[dict[str, Any]]] = {}
    for name in study.potentials:
        known = study.known(name, {f"{m.formula} ({m.id})": m for m in materials}, lambda m: m.atoms.numbers)
        found[name] = phonons(study, settings, name, list(known.values()))
    shown = tables(found) if any(found.values()) else []
    if examples:
        of = study.ask(
            "phonopy's examples", examples, lambda it: it.supercell.numbers, on_example, "{} | example | {}"
        )
        shown.append(example_table(of))
    drawn = {model: rows for model, rows in found.items() if rows}
    figures = {}
    if drawn:
        caption = "Ratios of the highest frequency, model / DFT; as published: displacements, relaxed cell"
        figures["softening_phonons.png"] = (caption, histogram(drawn))
        caption = "The highest and the mean frequency in DFT's cell, model against DFT"
        at_dft = {model: of_cell(rows, CELLS[0]) for model, rows in drawn.items()}
        figures["softening_phonons_by_frequency.png"] = (caption, draw(at_dft, settings.displacement))
    study.write(shown, figures, findings(found))


def phonons(
    study: Study, settings: Settings, name: str, materials: Sequence[Material]
) -> list[dict[str, Any]]:
    """Stores a row for each material and cell: spectra of the model against DFT's."""
    potential = study.potentials[name]
    at_rest = relaxed(study, name, potential, materials, settings.steps)
    crystals: dict[str, tuple[Material, str, Atoms]] = {}
    for m in materials:
        crystals[f"{name} | {m.id} | {CELLS[0]}"] = (m, CELLS[0], m.atoms)
        if m.id in at_rest:
            crystals[f"{name} | {m.id} | {CELLS[1]}"] = (m, CELLS[1], at_rest[m.id])
    # Shapes for all crystals, so that a continued study has the same programs as before.
    atoms = [atoms for *_, atoms in crystals.values()]
    repeats = [supercell_of(m.atoms, settings.supercell) for m, *_ in crystals.values()]
    jobs = dict(zip(crystals, jobs_of(potential, atoms, repeats), strict=True))

    def measure(key: str) -> dict[str, Any]:
        material, cell, atoms = crystals[key]
        if not material.dft.maximum > 0:
            raise ValueError(
                f"{material.id} ({material.formula}): found no DFT mode with a real frequency, needed at "
                "least one."
            )
        accuracy = (settings.displacement, settings.tolerance)
        row, modes, displaced = spectra_of(potential, material, jobs[key], *accuracy)
        same, weights = material.modes.representatives(modes.mesh), material.modes.weights
        for measure, thz in zip(NAMES, (modes.frequencies, displaced), strict=True):
            square = ((thz[same] - material.modes.thz) ** 2).mean(axis=1)
            row[measure]["rms_difference"] = float(np.sqrt(np.average(square, weights=weights)))
        volume = atoms.cell.volume / material.atoms.cell.volume
        return {"model": name, "anions": material.anions, "cell": cell, "volume_ratio": volume, **row}

    return list(study.each(f"phonons of {name}", list(crystals), measure).values())


def relaxed(
    study: Study, name: str, potential: Potential, materials: Sequence[Material], steps: int
) -> dict[str, Atoms]:
    """The crystals relaxed by the model with fixed space groups, by id."""
    keys = {f"{name} | {m.id} | at rest": m for m in materials}
    left = study.left(keys)
    ended = relax_many(potential, [keys[key].atoms for key in left], fix_symmetry=True, steps=steps)
    for key, r in zip(left, ended, strict=True):
        if r.converged:
            study.keep(key, {"cell": r.atoms.cell.array, "scaled": r.atoms.get_scaled_positions()})
        else:
            study.fail(key, f"did not come to rest: {r.reason}")
    return {
        keys[key].id: Atoms(keys[key].atoms.numbers, cell=x["cell"], scaled_positions=x["scaled"], pbc=True)
        for key, x in study.done(keys).items()
    }


def of_cell(rows: Rows, cell: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["cell"] == cell]


def tables(found: Mapping[str, Rows]) -> list[Table]:
    """Tables of ratios of all materials by cell and measure, and of two of these by structure and anion."""

    def table(title: str, kinds: Sequence[tuple[str, str]], by: str = "", note: str = "") -> Table:
        groups = []
        for model, rows in found.items():
            for part in sorted({row[by] for row in rows}) if by else ("",):
                some = [row for row in rows if not by or row[by] == part]
                labels = {"model": model} | ({by: part} if by else {})
                for cell, measure in kinds:
                    label = labels | {"cell, measure": f"{cell}, {NAMES[measure]}"}
                    groups.append((label, of_cell(some, cell), measure))
        return summary_table(title, groups, note)

    kinds = [(cell, measure) for cell in CELLS for measure in NAMES]
    every = table("Frequencies, model / DFT", kinds, note="Here DFT is PBE (phononDB-PBE).")
    shown = ((CELLS[0], "hessian"), LIKE_PUBLISHED)
    return [every, *(table(f"The same by {by}", shown, by) for by in ("structure", "anions"))]


def read_examples(settings: Settings) -> dict[str, Any]:
    """phonopy's examples with forces, by name."""
    if not settings.examples:
        return {}
    found = {r.name: r.read(settings.data) for r in RUNS if r.path.startswith(PHONOPY)}
    return {name: run for name, run in found.items() if run.displaced}


def on_example(potential: Potential, example: Any) -> dict[str, Any]:
    """Stores the model's results at the displacements of DFT."""
    from jaxmlip.studies.compare import compare

    (row,) = compare(potential, [example])
    return {"potential": potential.name, **row.record()}


def example_table(compared: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    return Table.of(
        "phonopy's examples: the same displacements and cells as DFT (PBE)",
        (
            {
                "model": model,
                "crystal": name,
                "ω_max of DFT / THz": row["dft"]["maximum"],
                "ω_max": row["ratios"]["maximum"],
                "ω_mean": row["ratios"]["mean"],
                "ω_rms": row["ratios"]["rms"],
                "rms difference / THz": row["rms_difference_THz"],
                "force slope": row["force_slope"],
            }
            for model, rows in compared.items()
            for name, row in rows.items()
        ),
        note="Ratios model / DFT.",
    )


def findings(found: Mapping[str, Rows]) -> list[str]:
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
    return lines


def histogram(found: Mapping[str, Rows]) -> Figure:
    """Draws ratios of the highest frequency, a panel for each model."""
    figure, lines = panels(len(found), each=(6.4, 2.6), spare=(0, 0.6), sharex=True)
    edges = np.arange(0, 1.6, 0.05)
    for (axes,), (model, rows) in zip(lines, found.items(), strict=True):
        for cell, measure, style, colour in (
            (*LIKE_PUBLISHED, {"histtype": "stepfilled", "alpha": 0.45}, COLOURS[0]),
            (CELLS[0], "hessian", {"histtype": "step", "lw": 1.5, "ls": "--"}, COLOURS[1]),
        ):
            values = ratios(of_cell(rows, cell), measure)
            median = np.median(values) if len(values) else np.nan
            label = f"{cell}, {NAMES[measure]}: median {median:.2f}"
            axes.hist(np.clip(values, 0, edges[-1]), edges, color=colour, label=label, **style)
            axes.axvline(median, color=colour, lw=1.6, ls=style.get("ls", "-"))
        if model in PUBLISHED:
            median = PUBLISHED[model].median
            axes.axvline(
                median, color="k", ls=":", lw=1.8, label=f"published (other crystals): median {median:.2f}"
            )
        axes.axvline(1, color="0.5", lw=0.9)
        axes.set(ylabel="materials", xlim=(0, edges[-1]))
        axes.set_title(model, loc="left", fontsize=10)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.set_xlabel("highest frequency, model / DFT")
    return figure


if __name__ == "__main__":
    run(main, Settings)
