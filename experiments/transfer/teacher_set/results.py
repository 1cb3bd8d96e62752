"""Tables, a sentence and a figure on the crystals that `teacher_set.make` made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.transfer.teacher_set.parts import Made
from jaxmlip.system.plots import COLOURS, element_ticks
from jaxmlip.system.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def kinds_table(made: Made) -> Table:
    rows = []
    for name in made.labels:
        above, forces = made.above_ideal(name), made.forces(name)
        for kind in dict.fromkeys(f.kind for f in made.frames):
            these = [k for k, f in enumerate(made.frames) if f.kind == kind]
            F = np.concatenate([forces[k] for k in these])
            atoms = float(np.mean([len(made.frames[k].atoms) for k in these]))
            e = 1e3 * np.percentile(above[these], (50, 95))
            row = [name, kind, len(these), atoms, *map(float, (*e, *np.percentile(F, (50, 95)), F.max()))]
            rows.append(row)
    columns = ("teacher", "crystals", "number", "atoms, mean", "energy above ideal: median / meV/atom")
    columns += ("95 %", "force on an atom: median / eV/Å", "95 %", "largest")
    return Table("What was done to the crystals", columns, rows, 2)


def families_table(made: Made) -> Table:
    rows = []
    for family in dict.fromkeys(f.family for f in made.frames):
        these = [f for f in made.frames if f.family == family]
        kinds = Counter(f.material.rsplit("-", 1)[0] for f in these if f.kind == "ideal")
        elements = {z for f in these for z in f.atoms.numbers}
        words = ", ".join(f"{name} {n}" for name, n in kinds.most_common())
        rows.append([family, len({f.material for f in these}), len(these), len(elements), words])
    every = {z for f in made.frames for z in f.atoms.numbers}
    rows.append(["all", len({f.material for f in made.frames}), len(made.frames), len(every), ""])
    columns = ("family", "materials", "crystals", "elements", "materials of each prototype")
    return Table("Families of compounds", columns, rows)


def dropped_table(statement: Mapping[str, Any]) -> Table:
    rows = [[*reason.split(": ", 1), n] for reason, n in statement["dropped"].items()]
    return Table("What was dropped, and why", ("crystals", "reason", "number"), rows or [["-", "-", 0]])


def speed_table(statement: Mapping[str, Any]) -> Table:
    rows = [[name, *x.values()] for name, x in statement["throughput"].items()]
    note = "Times include compilation, which takes as long for few structures as for many."
    return Table("Throughput", ("", "time / s", "number", "1/s"), rows, 1, note)


def findings(statement: Mapping[str, Any]) -> list[str]:
    splits = ", ".join(f"{n} in {name}" for name, n in statement["splits"].items())
    names = " and ".join(statement["teachers"])
    return [
        f"{statement['structures']} crystals of {statement['materials']} materials ({splits}), labelled by "
        f"{names}. Labels of a model stand in for DFT and are none."
    ]


def figures(made: Made) -> dict[str, tuple[str, Figure]]:
    first = next(iter(made.labels))
    return {
        "teacher_set.png": (
            f"Energies above that of the ideal crystal, forces on atoms, and how many crystals have each "
            f"element; by {first}.",
            draw(made, first),
        )
    }


def draw(made: Made, teacher: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = list(figure.subplot_mosaic("01;22").values())
    above, forces = made.above_ideal(teacher), made.forces(teacher)
    kinds = [kind for kind in dict.fromkeys(f.kind for f in made.frames) if kind != "ideal"]
    ends = np.percentile(above, (0.5, 99.5)) if kinds else (-1.0, 1.0)
    bins = (1e3 * np.linspace(min(ends[0], -0.01), max(ends[1], 0.01), 60), np.geomspace(1e-3, 30, 60))
    for k, kind in enumerate(kinds):
        these = [n for n, f in enumerate(made.frames) if f.kind == kind]
        style = {"histtype": "step", "color": COLOURS[k], "ls": ("-", "--", "-.")[k % 3], "lw": 1.4}
        axes[0].hist(1e3 * above[these], bins[0], label=kind, **style)
        axes[1].hist(np.concatenate([forces[n] for n in these]), bins[1], label=kind, **style)
    axes[0].set(xlabel="energy above the ideal crystal / meV/atom", ylabel="crystals")
    axes[1].set(xlabel="force on an atom / eV/Å", ylabel="atoms", xscale="log")
    for ax in axes[:2]:
        if kinds:
            ax.legend(frameon=False, fontsize="small")
    counts = Counter(int(z) for f in made.frames for z in np.unique(f.atoms.numbers))
    numbers = sorted(counts)
    axes[2].bar(range(len(numbers)), [counts[z] for z in numbers], color=COLOURS[0], width=0.8)
    element_ticks(axes[2], range(len(numbers)), numbers)
    axes[2].set(ylabel="crystals with this element", xlim=(-1, len(numbers)))
    return figure
