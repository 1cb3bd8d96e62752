"""Is the third order of a potential too small as well, and is that its softening?

    python -m experiments.softening.anharmonicity --model chgnet-0.3.0 --data FOLDER --out FOLDER

Third-order force constants of phono3py's examples are compared with a potential's, element by element, in
DFT's cell. The potential's come from the displacements that DFT had, by the same procedure ("displaced"), and
from third derivatives of the energy at the lattice sites ("exact"). Constants of the second order, from the
same supercells, stand beside them: a potential whose energy is a constant times DFT's has one slope in both.
What functionals differ by is the scale of what can be expected.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.datasets import THIRD_ORDER
from experiments.softening.elements import draw_elements, numbers
from jaxmlip.studies.study import Study, bootstrap, check_known, load_models, run
from jaxmlip.system.arguments import Models
from jaxmlip.system.plots import panels, styles
from jaxmlip.system.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxmlip.crystals.batching import BatchShape
    from jaxmlip.phonons.phono3py_files import Phono3pyRun
    from jaxmlip.phonons.third import SecondOrder, ThirdOrder
    from jaxmlip.potential import Potential

Rows = Sequence[Mapping[str, Any]]
MEASURES = {"exact": "third derivatives", "displaced": "DFT's displacements"}
POINTS = 600  # of a kind and a run in the figure at most


@dataclass(frozen=True)
class Settings:
    """Is the third order of a potential too small as well, and is that its softening?"""

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with phono3py_examples/; default: JAXMLIP_DATA
    out: Path = Path("anharmonicity")
    runs: tuple[str, ...] = tuple(r.name for r in THIRD_ORDER)  # which runs to compare with, by name


def main(settings: Settings) -> None:
    references = {r.name: r for r in THIRD_ORDER}
    check_known("run", settings.runs, references)
    runs = {name: references[name].read_third(settings.data) for name in settings.runs}
    potentials = load_models(settings.model, "float64")
    study = Study("anharmonicity", settings, potentials)
    shapes: dict[tuple[str, str], BatchShape] = {}
    for label, potential in potentials.items():
        known = study.known(label, runs, lambda it: it.cells.supercell.numbers)
        shapes |= {(label, name): shape for name, shape in shapes_of(potential, known).items()}
    rows = study.ask(
        "third order",
        {name: (references[name], it) for name, it in runs.items()},
        lambda it: it[1].cells.supercell.numbers,
        lambda potential, it: measure(potential, it[1], it[0].functional, shapes[potential.name, it[0].name]),
        "{} | {}",
    )
    found = {model: [{"run": name, **row} for name, row in of.items()] for model, of in rows.items()}
    tables = [summary_table(found), slope_table(found), kind_table(found)]
    if any(found.values()):
        tables.append(functional_table(runs))
    study.write(tables, figures(found), findings(found))


def shapes_of(potential: Potential, runs: Mapping[str, Phono3pyRun]) -> dict[str, BatchShape]:
    """The shapes of the supercells, few of them, so that few programs are compiled."""
    from jaxmlip.crystals import batching
    from jaxmlip.studies.softening import shared_shapes

    needs = [batching.exact_shape([potential.graph(it.cells.supercell)]) for it in runs.values()]
    return dict(zip(runs, shared_shapes(needs), strict=True))


def measure(potential: Potential, dft: Phono3pyRun, functional: str, shape: BatchShape) -> dict[str, Any]:
    """The row of one run: slopes of the second and third order, and Grüneisen parameters."""
    from jaxmlip.derivatives.slopes import force_slope, hessian_slope, third_order_slope
    from jaxmlip.phonons.third import SmallSupercellWarning, third_order

    cells = dft.cells
    rest, *model = (
        np.asarray(p["forces"], float) for p in potential.predict([cells.supercell, *dft.displaced])
    )
    own = dft.with_forces([forces - rest for forces in model], f"forces of {potential.name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSupercellWarning)  # the table says so
        exact = third_order(
            potential,
            cells.unit,
            cells.supercell_matrix.T,
            primitive=cells.primitive_matrix,
            shape=shape,
        )
    second = hessian_slope(own.second.fc2, dft.second.fc2, cells.p2s)
    step = third_order_slope(own.third.fc3, exact.fc3)
    row: dict[str, Any] = {
        "formula": cells.primitive.get_chemical_formula("metal", empirical=True),
        "functional": functional,
        "atoms": len(cells.supercell),
        "supercells": len(model),
        "short": max(0.0, exact.checks.needed - exact.checks.repeat),  # Å
        "largest": dft.third.checks.largest,  # eV/Å³
        "forces": numbers(force_slope(own.forces, dft.forces)),
        "second": numbers(second),
        "step": {"slope": step.slope, "error": step.relative_error},
        "dft": {"grueneisen": grueneisen_of_rms(dft.third, dft.second)},
    }
    for name, third in (("exact", exact), ("displaced", own.third)):
        row[name] = compared(third, dft) | {"grueneisen": grueneisen_of_rms(third, own.second)}
    return row | {"points": points(exact, dft.third)}


def compared(model: ThirdOrder, dft: Phono3pyRun) -> dict[str, Any]:
    from jaxmlip.phonons.anharmonicity import anharmonicity

    found = anharmonicity(model, dft.third)
    kinds = {name: numbers(slope) for name, slope in found.kinds.items()}
    return {"all": numbers(found.all), "without_self": numbers(found.without_self), "kinds": kinds}


def grueneisen_of_rms(third: ThirdOrder, second: SecondOrder) -> float:
    """-∂ln ω_rms/∂ln V over all modes, -½ tr ∂D/∂ln V / tr D: no single frequency decides it."""
    eps, cells = np.eye(3) / 3, second.cells
    slope = third.strained(eps, second.internal_motion(eps))

    def trace(phi: np.ndarray) -> float:
        own = phi[np.arange(len(cells.p2s)), cells.p2s]
        return float((np.trace(own, axis1=1, axis2=2) / cells.primitive.get_masses()).sum())

    return -trace(slope.fc2) / (2 * trace(second.fc2))


def points(model: ThirdOrder, dft: ThirdOrder) -> dict[str, Any]:
    """The largest elements by kind, DFT's and the model's (eV/Å³)."""
    from jaxmlip.phonons.anharmonicity import triples

    some = {}
    for name, chosen in triples(dft.cells).items():
        x, y = dft.fc3[chosen].ravel(), model.fc3[chosen].ravel()
        largest = np.argsort(-np.maximum(abs(x), abs(y)))[:POINTS]
        some[name] = [x[largest].round(4), y[largest].round(4)]
    return some


def summary_table(found: Mapping[str, Rows]) -> Table:
    """Medians over crystals, each with the mean of its runs."""
    wanted = {
        "third order, exact: slope": lambda row: row["exact"]["all"]["slope"],
        "r²": lambda row: row["exact"]["all"]["r2"],
        "third order, displaced: slope": lambda row: row["displaced"]["all"]["slope"],
        "second order, displaced: slope": lambda row: row["second"]["slope"],
        "third over second: ratio": lambda row: row["displaced"]["all"]["slope"] / row["second"]["slope"],
    }
    lines = []
    for model, rows in found.items():
        crystals = sorted({row["formula"] for row in rows})
        line: dict[str, Any] = {"model": model, "runs": len(rows), "crystals": len(crystals)}
        for name, value in wanted.items():
            means = [np.mean([value(r) for r in rows if r["formula"] == c]) for c in crystals]
            line[name] = bootstrap(means, np.median)
        lines += [line] if rows else []
    return Table.of(
        "All crystals, the model's third order against DFT's: medians",
        lines,
        note="Slopes and r² are of all elements. Of each crystal the mean over its runs; 95 % intervals by "
        "bootstrap over crystals.",
    )


def slope_table(found: Mapping[str, Rows]) -> Table:
    lines = []
    for model, rows in found.items():
        for row in rows:
            for measure, said in MEASURES.items():
                of = row[measure]
                line = {"model": model, "run": row["run"], "model's from": said}
                line |= {"slope": of["all"]["slope"], "inverse": of["all"]["inverse"], "r²": of["all"]["r2"]}
                line |= {"shrinkage": of["all"]["shrinkage"] if of["all"]["slope"] < 1 else None}
                line |= {"error / norm of DFT's": of["all"]["error"], "MAE / meV/Å³": 1e3 * of["all"]["mae"]}
                line |= {"slope without self terms": of["without_self"]["slope"]}
                line |= {"second order: slope": row["second"]["slope"], "its r²": row["second"]["r2"]}
                line |= {"Grüneisen ratio, model / DFT": of["grueneisen"] / row["dft"]["grueneisen"]}
                lines.append(line)
    note = (
        "Slope: Σxy/Σxx over all elements, x DFT; inverse Σyy/Σxy; shrinkage (1 - r²)/(1 - slope), what a "
        "conditional mean of this r² would show. Second order: from the same supercells, by displacements. "
        "Grüneisen: -∂ln ω_rms/∂ln V of all modes, the model's by its own second order. Where DFT is LDA or "
        "PBEsol, slopes of models of PBE hold the difference of the functionals."
    )
    return Table.of("Third-order force constants, model against DFT", lines, note=note)


def kind_table(found: Mapping[str, Rows]) -> Table:
    lines = []
    for model, rows in found.items():
        for row in rows:
            line: dict[str, Any] = {"model": model, "run": row["run"], "atoms": row["atoms"]}
            line |= {
                "supercells of DFT, number": row["supercells"],
                "largest element / eV/Å³": row["largest"],
            }
            for name, kind in row["exact"]["kinds"].items():
                line |= {f"{name}: slope": kind["slope"], f"{name}: r²": kind["r2"]}
            line["displaced against exact, error / norm"] = row["step"]["error"]
            line["supercell too small for the model by / Å"] = row["short"]
            lines.append(line)
    note = (
        "Kinds: Φ(i, i, i); three atoms that are neighbours of one another or the same; farther ones. The "
        "largest element is DFT's. Too small: an atom is bonded to two images of another."
    )
    return Table.of("Slope of third-order constants by kind (exact)", lines, note=note)


def functional_table(runs: Mapping[str, Phono3pyRun]) -> Table:
    """Constants of runs of one crystal in one supercell with different functionals, against the first's."""
    from jaxmlip.derivatives.slopes import hessian_slope
    from jaxmlip.phonons.anharmonicity import anharmonicity

    first: dict[tuple, str] = {}
    lines = []
    for name, it in runs.items():
        numbers_of = it.cells.supercell.numbers
        base = first.setdefault((numbers_of.tobytes(), it.cells.supercell_matrix.tobytes()), name)
        if base != name:
            found = anharmonicity(it.third, runs[base].third)
            second = hessian_slope(it.second.fc2, runs[base].second.fc2, it.cells.p2s)
            lines.append(
                {"run": name, "against": base, "slope": found.all.slope, "r²": found.all.r_squared}
                | {"error / norm": found.all.relative_error, "second order: slope": second.slope}
                | {"its r²": second.r_squared}
            )
    return Table.of(
        "What functionals differ by: third-order constants of DFT against DFT", lines,
        note="Each in its own cell.",
    )  # fmt: skip


def findings(found: Mapping[str, Rows]) -> list[str]:
    lines = []
    for model, rows in found.items():
        if rows:
            third, second = np.array([(r["displaced"]["all"]["slope"], r["second"]["slope"]) for r in rows]).T
            below = [row["exact"]["all"] for row in rows if row["exact"]["all"]["slope"] < 1]
            still = sum(of["inverse"] < 1 for of in below)
            lines.append(
                f"{model}, {len(rows)} runs: slopes of the third order below 1: {len(below)}, of which "
                f"{still} if all of the scatter counts as shrinkage (inverse). Slopes of the two orders "
                f"differ by {np.abs(third - second).mean():.3f} on average; the third order has the lower "
                f"one in {(third < second).sum()}."
            )
    return lines


def figures(found: Mapping[str, Rows]) -> dict[str, tuple[str, Figure]]:
    drawn = {model: rows for model, rows in found.items() if rows}
    if not drawn:
        return {}
    caption = (
        "Third-order constants, model (exact) against DFT (left), and slopes of the third order against "
        "those of the second, both by DFT's displacements (right)"
    )
    return {"anharmonicity.png": (caption, draw(drawn))}


def draw(found: Mapping[str, Rows]) -> Figure:
    """Elements, and slopes of both orders: a line of two panels for each model."""
    figure, lines = panels(len(found), 2, each=(4.5, 4.2), spare=(0, 0))
    for (left, right), (model, rows) in zip(lines, found.items(), strict=True):
        draw_elements(left, rows, list(rows[0]["points"]), "third-order constant", "eV/Å³", linear=1)
        draw_slopes(right, rows)
        left.set_title(model, loc="left", fontsize=10)
    return figure


def draw_slopes(axes: Axes, rows: Rows) -> None:
    for row, style in zip(rows, styles(row["run"] for row in rows).values(), strict=True):
        x, y = row["second"]["slope"], row["displaced"]["all"]["slope"]
        axes.plot(x, y, ls="", ms=7, label=row["run"], **style)
    axes.axline((1, 1), slope=1, color="0.4", lw=0.9)
    axes.axhline(1, color="0.8", lw=0.9, zorder=0)
    axes.axvline(1, color="0.8", lw=0.9, zorder=0)
    axes.set(xlabel="slope of the second order, model / DFT", ylabel="slope of the third order, model / DFT")
    axes.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    run(main, Settings)
