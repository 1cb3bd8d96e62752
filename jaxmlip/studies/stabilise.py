"""From an unstable crystal to stable ones: unstable modes are followed until nothing is unstable.

`stabilise` grows a tree: its root is the crystal at rest, its branches are distortions along unstable modes,
each relaxed. The lowest crystal that has not been looked at comes next. `main` is `jaxmlip stabilise`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxmlip.crystals.atoms import crystal_record
from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.crystals.symmetry import Symmetry
from jaxmlip.phonons.instabilities import CELLS, UNSTABLE, Instability, Well, follow, instabilities
from jaxmlip.studies.study import save
from jaxmlip.system.console import note, say
from jaxmlip.system.files import writing
from jaxmlip.system.plots import COLOURS, panels
from jaxmlip.system.tables import Table, show

if TYPE_CHECKING:
    from ase import Atoms
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxmlip.potential import Potential

State = Literal["not looked at", "stable", "unstable", "rough", "too large"]
SAME_ENERGY = 2e-4  # eV per atom; crystals of one space group this close count as one
SAME_FREQUENCY = 0.1  # THz
LOWER = 1e-5  # eV per atom that a distortion must gain
MARKS = (".", "x", "+")  # of wells in the figure, whose colours repeat
PACKAGES = ("jax", "numpy", "phonopy", "spglib", "ase")
MEANING = {
    "not looked at": "its modes were not computed",
    "stable": "no mode is unstable",
    "unstable": "its unstable modes were followed",
    "rough": "curvature is negative, but no energy along these modes is lower: the potential is rough there, "
    "and the crystal rests in a minimum",
    "too large": "its unstable modes repeat after more cells than were allowed",
}


@dataclass(frozen=True)
class Options:
    """Where a search ends."""

    cells: int = CELLS  # that a distortion may repeat after
    branches: int = 2  # unstable modes of a crystal that are followed, the most unstable first
    looks: int = 6  # crystals whose modes are computed
    threshold: float = UNSTABLE  # THz
    mesh: tuple[int, int, int] | None = None
    symprec: float = SYMPREC  # Å

    def __post_init__(self) -> None:
        for name in ("cells", "branches", "looks"):
            if getattr(self, name) < 1:
                raise ValueError(f"found {name}={getattr(self, name)}, needed 1 or more.")


@dataclass(eq=False)
class Node:
    """A crystal at rest, how it was reached, and what is known of its modes."""

    number: int
    atoms: Atoms  # the primitive cell
    energy: float  # eV per atom
    space_group: str
    parent: int | None = None
    well: Well | None = None  # by which it was reached from its parent
    unstable: list[Instability] = field(default_factory=list)
    wells: list[Well] = field(default_factory=list)  # along them
    state: State = "not looked at"


def stabilise(potential: Potential, crystal: Atoms, options: Options) -> Iterator[tuple[list[Node], Node]]:
    """The tree of crystals below a crystal at rest, and the crystal of it of which more is known now.

    They come when the modes of that crystal were computed, and again when the unstable ones were followed.
    It ends when the lowest crystal is stable, its modes cannot be followed, or `options.looks` are used up.

    Raises as `instabilities` and `follow` do.
    """
    nodes = [_node(0, crystal, potential.predict(crystal)["energy"] / len(crystal), options)]
    for _ in range(options.looks):
        node = lowest_of(nodes)
        if node.state != "not looked at":
            return
        held = _look(potential, node, options)
        yield nodes, node
        if not held:
            continue
        _follow(potential, node, held, options)
        for well in node.wells:
            if well.gain > LOWER and well.relaxed.converged:
                energy = well.relaxed.energy / len(well.crystal)
                child = _node(len(nodes), well.relaxed.atoms.copy(), energy, options, node.number, well)
                if not any(_same(child, other) for other in nodes):
                    nodes.append(child)
        yield nodes, node


def lowest_of(nodes: list[Node]) -> Node:
    """The crystal of the lowest energy."""
    return min(nodes, key=lambda each: each.energy)


def _node(number: int, atoms: Atoms, energy: float, options: Options, *way: Any) -> Node:
    atoms.calc = None
    symmetry = Symmetry(atoms, options.symprec).primitive
    found = symmetry.dataset()
    name = "unknown" if found is None else f"{found.international} ({found.number})"
    return Node(number, symmetry.atoms, float(energy), name, *way)


def _same(a: Node, b: Node) -> bool:
    return a.space_group == b.space_group and abs(a.energy - b.energy) < SAME_ENERGY


def _look(potential: Potential, node: Node, options: Options) -> list[Instability]:
    """Computes the modes of a crystal, and gives the unstable ones that are to be followed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nearly")
        node.unstable = instabilities(
            potential,
            node.atoms,
            mesh=options.mesh,
            cells=options.cells,
            threshold=options.threshold,
            symprec=options.symprec,
        )
    held = [each for each in node.unstable if each.cells is not None and each.cells <= options.cells]
    node.state = "unstable" if held else "too large" if node.unstable else "stable"
    # Of modes that are about as unstable those that repeat sooner come first.
    held.sort(key=lambda each: (round(each.thz / SAME_FREQUENCY), each.cells))
    return held[: options.branches]


def _follow(potential: Potential, node: Node, held: list[Instability], options: Options) -> None:
    for each in held:
        node.wells += follow(potential, each, cells=options.cells, symprec=options.symprec)
    if not any(well.falls for well in node.wells):
        node.state = "rough"


def main(
    potential: Potential, crystal: Atoms, out: Path, start: Callable[[Atoms], Atoms], options: Options
) -> None:
    """Runs the command: says what is found as it comes, and writes JSON, crystals and a figure into `out`.

    `start` gives the crystal at rest.
    """
    atoms = start(crystal)
    for nodes, node in stabilise(potential, atoms, options):
        if not node.wells:
            _tell_modes(node)
        else:
            _tell_wells(node)
            for child in (each for each in nodes if each.parent == node.number):
                gain = 1000 * (node.energy - child.energy)
                note(f"  → {child.number}: {child.space_group}, {gain:.2f} meV/atom below {node.number}")
        _write(nodes, potential, out, options)  # each time: the next crystal may take hours
    lowest = lowest_of(nodes)
    show(_table(nodes, potential.name))
    say(f"lowest: {lowest.number}, {lowest.space_group}; {MEANING[lowest.state]}")


def _write(nodes: list[Node], potential: Potential, out: Path, options: Options) -> None:
    import ase.io

    lowest = lowest_of(nodes)
    out.mkdir(parents=True, exist_ok=True)
    for node in nodes:
        with writing(out / f"{node.number}.cif") as draft:
            ase.io.write(draft, node.atoms, format="cif")
    save(
        out,
        "stabilise",
        "crystals at rest that unstable modes of a crystal lead to; N.cif has number N",
        asdict(options) | {"dtype": potential.dtype},
        [potential],
        draw(nodes, potential.name),
        PACKAGES,
        crystals=[_record(node) for node in nodes],
        lowest=lowest.number,
        lowest_is=lowest.state,
    )


def _tell_modes(node: Node) -> None:
    note(
        f"{node.number}: {node.space_group}, {len(node.atoms)} atoms, {node.energy:.5f} eV/atom: {node.state}"
    )
    for each in node.unstable[:8]:
        note(f"  {each}")
    if len(node.unstable) > 8:
        note(f"  and {len(node.unstable) - 8} more")


def _tell_wells(node: Node) -> None:
    for well in node.wells:
        if not well.falls:
            note(f"  along {well.space_group} no energy is lower")
            continue
        if well.bottom is None:
            note(
                f"  along {well.space_group}: lowest energy {1000 * well.energies.min():.1f} meV at "
                f"{abs(well.lowest):.3f} Å in {len(well.crystal)} atoms; no minimum of fourth order is near"
            )
            continue
        x, depth = well.bottom
        guess = well.at_rest.bottom
        first = "none" if guess is None else f"{abs(guess[0]):.3f} Å, {1000 * guess[1]:.1f} meV"
        off = "is not checked" if np.isnan(well.misfit) else f"is off by {100 * well.misfit:.2g} %"
        note(
            f"  along {well.space_group}: bottom at {abs(x):.3f} Å, {1000 * depth:.1f} meV in "
            f"{len(well.crystal)} atoms (predicted at rest: {first}); fourth order about it {off}"
        )


def _table(nodes: list[Node], model: str) -> Table:
    rows = [
        (
            str(node.number),
            "" if node.parent is None else str(node.parent),
            node.space_group,
            str(len(node.atoms)),
            f"{1000 * (node.energy - nodes[0].energy):.2f}",
            "" if not node.unstable else f"{node.unstable[0].thz:.2f}",
            node.state,
        )
        for node in nodes
    ]
    columns = ("crystal", "from", "space group", "atoms", "meV/atom", "lowest / THz", "")
    return Table(f"{nodes[0].atoms.get_chemical_formula()}, {model}", columns, rows)


def _record(node: Node) -> dict[str, Any]:
    return {
        "number": node.number,
        "from": node.parent,
        "space_group": node.space_group,
        "energy_eV_per_atom": node.energy,
        "state": node.state,
        **crystal_record(node.atoms),
        "unstable_modes": [
            {
                "q_point": each.q_point,
                "frequency_THz": each.thz,
                "degenerate": each.modes.shape[1],
                "cells": each.cells,
            }
            for each in node.unstable
        ],
        "wells": [_well_record(well) for well in node.wells],
    }


def _well_record(well: Well) -> dict[str, Any]:
    at = well.bottom or (None, None)
    guess = well.at_rest.bottom or (None, None)
    return {
        "q_point": well.instability.q_point,
        "space_group": well.space_group,
        "atoms": len(well.crystal),
        "derivatives_at_rest_eV_per_A_n": well.at_rest.derivatives,
        "predicted_amplitude_A": guess[0],
        "predicted_energy_eV": guess[1],
        "bottom_amplitude_A": at[0],
        "bottom_energy_eV": at[1],
        "misfit_about_bottom": well.misfit,
        "amplitudes_A": well.amplitudes,
        "energies_eV": well.energies,
        "relaxed_gain_eV_per_atom": well.gain,
        "relaxed_space_group": None if well.relaxed is None else well.relaxed.space_group,
    }


def draw(nodes: list[Node], model: str) -> Figure:
    """Energies along the modes of the first crystal, and the crystals by energy."""
    figure, ((left, right),) = panels(1, 2, (4.4, 3.6))
    _draw_wells(left, nodes[0].wells)
    _draw_tree(right, nodes)
    right.set(xlabel="distortions", ylabel="energy (meV/atom)", title=f"{model}; green: stable")
    return figure


def _draw_tree(axes: Axes, nodes: list[Node]) -> None:
    """Crystals by energy, one column for each number of distortions, names on the right."""
    energy = {node.number: 1000 * (node.energy - nodes[0].energy) for node in nodes}
    depth = {0: 0}
    for node in nodes:
        if node.parent is not None:
            depth[node.number] = depth[node.parent] + 1
    gap = 0.05 * (max(energy.values()) - min(energy.values()))
    for x in range(max(depth.values()) + 1):
        column = sorted((node for node in nodes if depth[node.number] == x), key=lambda n: energy[n.number])
        names_at = apart([energy[node.number] for node in column], gap)
        for node, label_at in zip(column, names_at, strict=True):
            y, stable = energy[node.number], node.state == "stable"
            if node.parent is not None:
                axes.plot([x - 0.62, x - 0.35], [energy[node.parent], y], color="0.8", lw=0.8, zorder=0)
            axes.hlines(y, x - 0.35, x - 0.1, color=COLOURS[2] if stable else COLOURS[1], lw=2)
            axes.plot([x - 0.1, x - 0.05], [y, label_at], color="0.8", lw=0.8, zorder=0)
            name = f"{node.number}: {node.space_group}"
            axes.text(x - 0.04, label_at, name, va="center", fontsize=7 if max(depth.values()) < 2 else 6)
    axes.set_xticks(range(max(depth.values()) + 1))
    axes.set_xlim(-0.45, max(depth.values()) + 0.6)
    axes.margins(y=0.12)


def apart(places: list[float], gap: float) -> np.ndarray:
    """Places in ascending order, moved as far as it takes for neighbours to be `gap` apart."""
    groups: list[list[float]] = []  # the sum of the places and their number
    for place in places:
        groups.append([place, 1])
        # A group that comes too close to the one below joins it; both centre on the mean of their places.
        while len(groups) > 1:
            (low, n), (high, m) = groups[-2:]
            if high / m - low / n >= gap * (n + m) / 2:
                break
            groups[-2:] = [[low + high, n + m]]
    return np.concatenate([total / n + gap * (np.arange(n) - (n - 1) / 2) for total, n in groups])


def _draw_wells(axes: Axes, wells: list[Well]) -> None:
    for k, well in enumerate(wells):
        colour, size = COLOURS[k % len(COLOURS)], len(well.crystal) / 1000
        x = well.amplitudes
        shown = np.abs(x) <= 1.6 * abs(well.lowest)
        q = " ".join(f"{each:.3g}" for each in well.instability.q_point + 0.0)
        mark = MARKS[k // len(COLOURS) % len(MARKS)]
        label = f"({q}) {well.space_group}"
        axes.plot(x[shown], well.energies[shown] / size, mark, color=colour, ms=5, label=label)
        fine = np.linspace(x[shown].min(), x[shown].max(), 200)
        axes.plot(fine, np.where((e := well.at_rest(fine)) < 0, e, np.nan) / size, ":", color=colour, lw=1)
        if well.bottom is not None:
            near = fine[np.abs(fine - well.bottom[0]) < 0.5 * abs(well.bottom[0])]
            axes.plot(near, well.at_bottom(near) / size, "-", color=colour, lw=1)
    axes.set(xlabel="largest displacement of an atom (Å)", ylabel="energy (meV/atom)")
    if wells:
        axes.legend(fontsize=6, loc="upper left", ncols=2 if len(wells) > 5 else 1)
        deepest = min(1000 * well.energies.min() / len(well.crystal) for well in wells)
        if deepest < 0:
            axes.set_ylim(1.15 * deepest, -0.9 * deepest)
        axes.set_title(
            "marks: computed; dotted and full lines:\nfourth order at rest, and at the bottom", fontsize=8
        )
    else:
        axes.set_title("no unstable mode", fontsize=8)
