"""Time against error of phonon bands: D(q) of the primitive cell, and finite displacements of supercells.

    python -m benchmarks.phonons --peer chgnet | matgl | mace [--peer-python PYTHON]
    python -m benchmarks.phonons --scaling [--model m3gnet-mp-2021.2.8]
    python -m benchmarks.phonons --command [--model m3gnet-matpes-pbe-2025.1]

Bands at about 101 wave vectors of NaCl (2 atoms) and of corundum, Al2O3 (10 atoms), each relaxed in the model
with its symmetry kept. Errors are the largest deviation of a frequency on the path from D(q) at each wave
vector by itself, in float64.

Ours: exact, and Fourier sums from growing meshes, in float64, and in float32 with the acoustic sum rule
imposed, programs compiled before. Theirs: phonopy with its default displacement of 0.01 Å; the time is that
of the original package's forces in its own precision for every displaced supercell, and of phonopy's work.
The forces themselves are ours in float64, which are the original's to rounding (`benchmarks.parity`; matgl:
with the right bond numbers).
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import tyro
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal
from matplotlib.figure import Figure

import jaxmlip
from benchmarks.phonon_command import command
from benchmarks.speed import OPPONENTS, Peer, PeerError, peer_of, salt, seconds
from jaxmlip.crystals.symmetry import Pairs
from jaxmlip.derivatives.response import Response
from jaxmlip.mechanics.relaxation import relax
from jaxmlip.phonons.bloch import dynamical_matrix
from jaxmlip.phonons.commensurate import interpolated_frequencies
from jaxmlip.phonons.lattice import mesh_force_constants, phonon_modes
from jaxmlip.phonons.supercell import with_sum_rule
from jaxmlip.system.allocator import give_memory_back
from jaxmlip.system.console import PlainConsole, console, say
from jaxmlip.system.files import cache_folder, writing
from jaxmlip.system.plots import legend
from jaxmlip.system.tables import Table, show

MESHES = (2, 3, 4, 5, 6, 7, 8, 10, 12)
HALF = "float32 mesh"  # how the label of a mesh in that precision begins
FINE = 1e-3  # THz
COLUMNS = 96  # real ones, as many as are computed at once


class Point(NamedTuple):
    label: str
    atoms: int  # whose forces or responses are computed
    seconds: float
    error: float  # THz
    of_displacement: float | None = None  # THz: how far from what the same supercell gives without one


@dataclass(frozen=True)
class Settings:
    peer: Literal["chgnet", "matgl", "mace"] = "chgnet"
    model: str | None = None  # ours; default: by peer
    peer_python: Annotated[str, tyro.conf.arg(help="interpreter that has the peer installed")] = "python"
    crystals: tuple[Literal["NaCl", "Al2O3"], ...] = ("NaCl", "Al2O3")
    points: int = 101
    largest: int = 1100  # atoms of phonopy's supercells
    rounds: int = 3
    out: Path = Path("phonons_benchmark.png")
    scaling: bool = False  # time and memory against the number of atoms instead
    command: bool = False  # the whole command beside phonopy with our calculator instead


def name_of(model: str) -> str:
    return Path(model).name.removesuffix(".model")


def corundum() -> Atoms:
    whole = crystal(
        ["Al", "O"],
        [(0, 0, 0.352), (0.306, 0, 0.25)],
        spacegroup=167,
        cellpar=[4.81, 4.81, 13.12, 90, 90, 120],
        primitive_cell=True,
    )
    return Atoms(whole.numbers, whole.positions, cell=whole.cell, pbc=True)


class Points(list[Point]):
    """Points, each printed as it comes: some take minutes, and a peer may die before the end."""

    def __init__(self, terminal: PlainConsole):
        super().__init__()
        self.terminal = terminal

    def append(self, p: Point) -> None:
        super().append(p)
        line = f"  {p.label:15} {p.atoms:5} atoms {p.seconds:9.3f} s, off by {p.error:.1e} THz"
        if p.of_displacement is not None:
            line += f", by the displacement alone {p.of_displacement:.1e}"
        self.terminal.print(line)


def ours(
    potential, atoms: Atoms, q: np.ndarray, rounds: int, points: Points
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The exact frequencies, and those of the meshes; `points` gets one for them and one for each mesh."""

    def exact(its=potential):
        return phonon_modes(its, atoms, q, method="exact").frequencies

    reference = exact()
    points.append(Point("exact", len(atoms), median(exact, rounds), 0.0))
    single = potential.astype("float32")
    rough = np.abs(exact(single) - reference).max()
    points.append(Point("exact, float32", len(atoms), median(partial(exact, single), rounds), rough))
    meshes = {}
    for n in MESHES:
        for label, its in (("mesh", potential), (HALF, single)):

            def summed(mesh=(n, n, n), its=its):
                constants = mesh_force_constants(its, atoms, mesh)
                if its is single:  # rounding of uniform shifts would be the largest error
                    constants = with_sum_rule(constants)
                return interpolated_frequencies(constants, q)

            found = summed()
            if its is potential:
                meshes[n] = found
            error = np.abs(found - reference).max()
            points.append(Point(f"{label} {n}³", len(atoms), median(summed, rounds), error))
        if points[-2].error < 1e-6:
            break
    return reference, meshes


def theirs(
    potential, peer: Peer, atoms: Atoms, q, reference, meshes, settings: Settings, points: Points
) -> None:
    """`points` gets one for each supercell, up to the first that the peer cannot do."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        cell=atoms.cell.array,
        scaled_positions=atoms.get_scaled_positions(),
    )
    for n in range(2, 9):
        if n**3 * len(atoms) > settings.largest:
            break
        start = time.perf_counter()
        phonon = Phonopy(cell, supercell_matrix=np.diag([n, n, n]), primitive_matrix=np.eye(3))
        phonon.generate_displacements()
        own = time.perf_counter() - start
        displaced = [
            Atoms(s.symbols, cell=s.cell, scaled_positions=s.scaled_positions, pbc=True)
            for s in phonon.supercells_with_displacements
        ]
        try:
            took = peer.best(
                lambda threads, displaced=displaced: sum(
                    float(np.median(peer.times("predict", each, settings.rounds, threads)))
                    for each in displaced
                )
            )
        except PeerError as error:
            points.terminal.print(f"  supercell {n}³: {error}")
            break
        # One at a time: two large ones in one batch take the memory of both.
        forces = [potential.predict(each)["forces"] for each in displaced]
        give_memory_back()  # which the peer needs for the next size
        start = time.perf_counter()
        phonon.forces = forces
        phonon.produce_force_constants()
        phonon.run_qpoints(q)
        own += time.perf_counter() - start
        found = np.sort(phonon.qpoints.frequencies, axis=1)
        error = np.abs(found - reference).max()
        alone = np.abs(found - meshes[n]).max() if n in meshes else None
        points.append(Point(f"supercell {n}³", n**3 * len(atoms), took + own, error, alone))


def median(f, rounds: int) -> float:
    return seconds(f, rounds)


def verdict(mine: list[Point], other: list[Point], terminal: PlainConsole) -> None:
    """The fastest of ours at each accuracy of theirs, and below 1e-3 THz."""
    for point in other:
        # A mesh and a supercell of one size are off by the same, up to what a displacement adds.
        fit = [p for p in mine if p.error <= 1.01 * point.error]
        best = min(fit, key=lambda p: p.seconds)
        terminal.print(
            f"  within {point.error:.1e} THz ({point.label}, {point.atoms} atoms): {best.label} takes "
            f"{best.seconds:.2f} s, {point.seconds / best.seconds:.1f} times as fast"
        )
    if not other:
        return
    best = min((p for p in mine if p.error < FINE), key=lambda p: p.seconds)
    fine = [p for p in other if p.error < FINE]
    if fine:
        ratio = min(p.seconds for p in fine) / best.seconds
        terminal.print(f"  below {FINE:g} THz: {best.label} is {ratio:.1f} times as fast")
    else:
        last = other[-1]
        terminal.print(
            f"  below {FINE:g} THz: {best.label} takes {best.seconds:.2f} s; displacements do not get there: "
            f"{last.error:.1e} THz with {last.atoms} atoms in {last.seconds:.1f} s, "
            f"{last.seconds / best.seconds:.1f} times as long"
        )


def draw(panels: dict[str, tuple[list[Point], list[Point]]], model: str, peer: str, path: Path) -> None:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (name, (mine, other)) in zip(
        np.atleast_1d(figure.subplots(1, len(panels), sharey=True)), panels.items(), strict=True
    ):
        for points, colour, marker, label in (
            (other, "#D55E00", "s", f"phonopy with {peer}"),
            ([p for p in mine if p.label.startswith("mesh")], "#0072B2", "o", "jaxmlip, Fourier sums"),
            ([p for p in mine if p.label.startswith(HALF)], "#56B4E9", "v", "the same in float32"),
        ):
            shown = [p for p in points if p.error > 0]
            axes.loglog(
                [p.seconds for p in shown], [p.error for p in shown], marker=marker, color=colour, label=label
            )
            for p in shown:
                axes.annotate(
                    p.label.split()[-1],
                    (p.seconds, p.error),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=7,
                )
        exact = mine[0]
        axes.axvline(
            exact.seconds, color="#009E73", lw=1, ls="--", label="jaxmlip, exact at each wave vector"
        )
        axes.axhline(FINE, color="0.7", lw=0.8)
        axes.set(xlabel="time for the bands (s)", title=f"{name}, {model}")
        axes.title.set_fontsize(10)
    figure.axes[0].set_ylabel("largest error on the path (THz)")
    legend(figure, ncols=4, fontsize=9)
    with writing(path) as draft:
        figure.savefig(draft, dpi=150)


def scaling(model: str) -> None:
    """Time for each wave vector and memory, from one block of columns, against the number of atoms."""
    potential = jaxmlip.load(model, "float64")
    rows = []
    for cells in (None, (1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2), (3, 3, 3)):
        atoms = bulk("NaCl", "rocksalt", 5.64) if cells is None else salt(*cells)
        response = Response(potential, atoms)
        plan = response.plan_waves(COLUMNS)
        pairs = max(1, plan.block_size // 2)
        block = Pairs(np.zeros(pairs, int), np.arange(pairs) % (3 * len(atoms)))
        took = median(partial(response.waves, np.full((1, 3), 0.1), block), 3)
        megabytes = [f"{x / 1e6:.0f}" for x in (response.kept, 2 * pairs * plan.per_column)]
        times = (f"{1e3 * took / (2 * pairs):.2f}", f"{took / pairs * 3 * len(atoms):.3g}")
        rows.append((len(atoms), *times, megabytes[0], 2 * pairs, megabytes[1]))
    columns = (
        "atoms",
        "ms per real column",
        "s per wave vector",
        "kept / MB",
        "columns at once",
        "block / MB",
    )
    show(Table(f"D(q), {model}, float64", (*columns, "block / MB"), rows))
    atoms, rng = bulk("NaCl", "rocksalt", 5.64), np.random.default_rng(0)
    counts = (8, 80, 800)
    times = [median(partial(dynamical_matrix, potential, atoms, rng.random((n, 3))), 3) for n in counts]
    told = ", ".join(f"{n} wave vectors {t:.2f} s" for n, t in zip(counts, times, strict=True))
    say(f"2 atoms, time for {told}")


def compared(
    settings: Settings, model: str, peer: Peer, terminal: PlainConsole
) -> dict[str, tuple[Points, Points]]:
    """Our points and the peer's for each crystal."""
    potential = jaxmlip.load(model, "float64")
    panels = {}
    for name in settings.crystals:
        atoms = corundum() if name == "Al2O3" else bulk("NaCl", "rocksalt", 5.64)
        atoms = relax(potential, atoms, fix_symmetry=True).atoms
        q = atoms.cell.bandpath(npoints=settings.points).kpts
        mine, other = panels[name] = Points(terminal), Points(terminal)
        terminal.print(f"{name}, {len(q)} wave vectors, {name_of(model)}")
        reference, meshes = ours(potential, atoms, q, settings.rounds, mine)
        theirs(potential, peer, atoms, q, reference, meshes, settings, other)
        terminal.print(f"frequencies from {reference.min():.2f} to {reference.max():.2f} THz")
        verdict(mine, other, terminal)
    return panels


def main(settings: Settings) -> None:
    if settings.command:
        return command(settings.model or "m3gnet-matpes-pbe-2025.1", settings.rounds, console())
    opponent = OPPONENTS[settings.peer]
    model = settings.model or opponent.model
    if model.endswith(".model"):
        model = str(cache_folder() / model)
    if settings.scaling:
        return scaling(model)
    terminal = PlainConsole(width=140)
    with closing(peer_of(settings, model, "float32")) as peer:  # which makes the model, where it is random
        panels = compared(settings, model, peer, terminal)
    draw(panels, name_of(model), settings.peer, settings.out)
    terminal.print(f"{os.cpu_count()} cores, jaxmlip {jaxmlip.__version__}; figure: {settings.out}")
    return None


if __name__ == "__main__":
    main(tyro.cli(Settings))
