"""Are mixing energies of solid solutions too small, and are orderings told apart as DFT tells them?

    python -m experiments.softening.solid_solutions --model chgnet-0.3.0 --data FOLDER --out FOLDER

There are two sets. Binary bcc alloys of Mo, Nb, Ta and W in cells of 16 atoms (maml, PBE), as orderings on a
fixed lattice and relaxed: energies of mixing are compared at the geometry of DFT, and for crystals relaxed by
the model. Rock-salt (Ca,Mg)O as in Deng et al. (2025), Fig. 2c, per formula unit of Ca_xMg_(2-x)O2: orderings
are made here and relaxed by the model; DFT and published models give only the value printed there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.datasets import lowest, read, where_there
from jaxmlip.studies.study import Study, bootstrap, load_models, run
from jaxmlip.system.arguments import Models, above_zero, at_least
from jaxmlip.system.plots import grid, legend, panels, parity, styles
from jaxmlip.system.tables import Estimate, Table

if TYPE_CHECKING:
    from ase import Atoms
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxmlip.data.labels import LabelledCrystal
    from jaxmlip.mechanics.relaxation import Relaxation
    from jaxmlip.potential import Potential

ALLOYS = "maml_MoNbTaW"
ELEMENTS = ("Mo", "Nb", "Ta", "W")
WAYS = ("unrelaxed", "relaxed by DFT", "relaxed by the model")
CELLS = (2, 4, 8)  # cations: 1, 2 and 4 formula units of (Ca,Mg)2O2
SMAX, STEPS = 0.1, 300  # of a relaxation: largest stress (GPa) at its end, and steps at most
MEV = 1e3
PUBLISHED = {"DFT": 0.34, "M3GNet": 0.25, "CHGNet": 0.30, "MACE-MP-0": 0.24}  # eV/f.u., Deng et al., Fig. 2c


@dataclass(frozen=True)
class Settings:
    """Are mixing energies of solid solutions too small, and are orderings told apart as DFT tells them?"""

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with maml_MoNbTaW/; default: JAXMLIP_DATA
    out: Path = Path("solid_solutions")  # folder for the record, the table and the figures
    frames: int = 0  # of each alloy and way, drawn at random, to compute at DFT's geometry; 0: all
    relax: int = 60  # frames of each alloy for the model to relax, drawn at random; 0: none
    orderings: int = 52  # of (Ca,Mg)O for each composition at most; 0: none
    fmax: float = 0.05  # eV/Å, the largest force at the end of a relaxation
    seed: int = 0  # of these draws


def main(settings: Settings) -> None:
    above_zero(fmax=settings.fmax)
    at_least(0, frames=settings.frames, relax=settings.relax, orderings=settings.orderings)
    potentials = load_models(settings.model)
    study = Study("solid_solutions", settings, potentials)
    findings: list[str] = []
    alloys = _alloys(settings, findings)
    compositions = ordered_oxides(settings.orderings, settings.seed) if settings.orderings else {}
    ends = cache(lambda model: ends_at_rest(potentials[model], settings.fmax))
    study.ask(
        "mixing",
        alloys,
        lambda sets: [f.atoms.numbers[0] for f in sets[1].values()],
        lambda potential, sets: on_alloy(potential, settings, *sets),
    )
    study.ask(
        "mixing of oxides",
        {f"Ca fraction {x:g}": (x, crystals) for x, crystals in compositions.items()},
        lambda _: (8, 12, 20),
        lambda potential, it: on_oxide(potential, settings, ends(potential.name), *it),
    )
    rows = study.done()
    tables = [alloy_table(potentials, alloys, rows), oxide_table(potentials, compositions, rows)]
    figures = {}
    if shown := [alloy for alloy in alloys if any(f"{name}: {alloy}" in rows for name in potentials)]:
        caption = "Energies of mixing of relaxed orderings; lines: the lowest of each composition."
        figures["solid_solutions_alloys.png"] = (caption, draw_alloys(potentials, shown, rows))
        caption = "Energies of mixing and of ordering within one composition, model against DFT."
        figures["solid_solutions_parity.png"] = (caption, draw_parity(potentials, shown, rows))
    if any(oxide_points(name, compositions, rows) for name in potentials):
        caption = "Formation energy of orderings of (Ca,Mg)O; lines: mean and lowest of each composition."
        figures["solid_solutions_oxide.png"] = (caption, draw_oxide(potentials, compositions, rows))
    study.write(tables, figures, findings)


def _alloys(settings: Settings, findings: list[str]) -> dict[str, tuple]:
    """By the name of the alloy, such as MoW: DFT's frames by way, and the two elements at rest."""
    files = {a + b: f"{ALLOYS}/{a}{b}_SS.extxyz.gz" for a, b in permutations(ELEMENTS, 2)}
    pure = {e: f"{ALLOYS}/{e}_Elastic.extxyz" for e in ELEMENTS}
    there, absent = where_there(settings.data, [*files.values(), *pure.values()])
    found, missing = {}, []
    for a, b in combinations(ELEMENTS, 2):
        names = [name for name in (a + b, b + a) if files[name] in there]
        if not names or not {pure[a], pure[b]} <= set(there):
            missing.append(a + b)
            continue
        frames = read(there[files[names[0]]])
        rest = {e: lowest(read(there[pure[e]])) for e in (a, b)}
        ways = {
            way: _drawn([f for f in frames if f.atoms.info["tags"] == tag], settings.frames, settings.seed)
            for way, tag in zip(WAYS, ("unrelax", "relax"), strict=False)
        }
        found[names[0]] = (ways, rest)
    if not found:
        findings.append(f"The alloys are left out: {absent[0]}")
    elif missing:
        findings.append(f"Alloys without all of their files, left out: {', '.join(missing)}.")
    return found


def _drawn(items: list, count: int, seed: int) -> list:
    if not 0 < count < len(items):
        return items
    return [items[k] for k in sorted(np.random.default_rng(seed).permutation(len(items))[:count])]


def on_alloy(
    potential: Potential,
    settings: Settings,
    ways: dict[str, list[LabelledCrystal]],
    rest: dict[str, LabelledCrystal],
) -> dict[str, Any]:
    """Fractions of the second element, and energies of mixing of DFT and model (eV/atom), for each way."""
    dft = {e: f.labels.energy / len(f.atoms) for e, f in rest.items()}
    frames = [f for its in (rest.values(), *ways.values()) for f in its]
    energies = [p["energy"] for p in potential.predict([f.atoms for f in frames])]
    model = {e: total / len(f.atoms) for (e, f), total in zip(rest.items(), energies, strict=False)}
    row: dict[str, Any] = {"elements": {e: {"dft": dft[e], "model": model[e]} for e in rest}}  # eV/atom
    done = len(rest)
    for way, its in ways.items():
        row[way] = _columns(its, energies[done : done + len(its)], dft, model)
        done += len(its)
    if settings.relax:
        drawn = _drawn(ways["relaxed by DFT"], settings.relax, settings.seed)
        made = _relaxed(potential, [f.atoms for f in (*rest.values(), *drawn)], settings.fmax)
        if failed := [f"{e}: {r.reason}" for e, r in zip(rest, made, strict=False) if not r.converged]:
            raise RuntimeError(f"an element did not come to rest ({'; '.join(failed)}).")
        own = {e: r.energy / len(r.atoms) for e, r in zip(rest, made, strict=False)}
        ended = [(f, r.energy) for f, r in zip(drawn, made[2:], strict=True) if r.converged]
        if ended:
            row["relaxed by the model"] = _columns(*zip(*ended, strict=True), dft, own)
        row["not relaxed"] = len(drawn) - len(ended)
    return row


def _relaxed(potential: Potential, crystals: list[Atoms], fmax: float) -> list[Relaxation]:
    """`crystals` relaxed with their cells; callers check which of them converged."""
    from jaxmlip.mechanics.relaxation import relax_many

    return relax_many(potential, crystals, fmax=fmax, smax=SMAX, steps=STEPS)


def _columns(frames: Sequence[LabelledCrystal], energies: Sequence[float], dft: dict, model: dict) -> dict:
    """Fractions of the second element, and energies of mixing per atom against the elements, as columns."""
    first, second = dft
    x = np.array([np.mean(f.atoms.symbols == second) for f in frames])
    found = {"x": x}
    for name, total, pure in (("dft", [f.labels.energy for f in frames], dft), ("model", energies, model)):
        per_atom = np.array(total, float) / [len(f.atoms) for f in frames]
        found[name] = per_atom - (1 - x) * pure[first] - x * pure[second]
    return found


def ordered_oxides(most: int, seed: int) -> dict[float, list[Atoms]]:
    """Inequivalent orderings of (Ca,Mg)O on the lattice of MgO, by the fraction of Ca.

    Each fraction has all orderings in the smaller cells, and a draw from the largest, up to `most` in total.
    """
    from ase.build import bulk

    from experiments.softening.orderings import orderings

    rng = np.random.default_rng(seed)
    found: dict[float, list[Atoms]] = {}
    for cells in CELLS:
        by_fraction: dict[float, list[Atoms]] = {}
        for crystal, (_, calcium) in orderings(bulk("MgO", "rocksalt", 4.25), "Mg", ("Mg", "Ca"), cells):
            by_fraction.setdefault(calcium / cells, []).append(crystal)
        for x, crystals in by_fraction.items():
            free = most - len(found.setdefault(x, []))
            found[x] += [crystals[k] for k in rng.permutation(len(crystals))[: max(free, 0)]]
    return dict(sorted(found.items()))


def ends_at_rest(potential: Potential, fmax: float) -> tuple[tuple[float, float], ...]:
    """(lattice constant / Å, energy / eV per MO) of MgO and of CaO at rest in a model."""
    from ase.build import bulk

    made = _relaxed(potential, [bulk("MgO", "rocksalt", 4.25), bulk("CaO", "rocksalt", 4.84)], fmax)
    for r in made:
        if not r.converged:
            raise RuntimeError(f"{r.start.get_chemical_formula()} did not come to rest: {r.reason}")
    return tuple(((4 * r.atoms.get_volume()) ** (1 / 3), r.energy) for r in made)


def on_oxide(
    potential: Potential,
    settings: Settings,
    ends: tuple[tuple[float, float], ...],
    x: float,
    crystals: list[Atoms],
) -> dict[str, Any]:
    """Formation energies of the orderings of one composition, eV per formula unit of (Ca,Mg)2O2."""
    (a_mg, e_mg), (a_ca, e_ca) = ends
    starts = []
    for crystal in crystals:  # the volume is interpolated between the oxides
        start = crystal.copy()
        volume = ((1 - x) * a_mg**3 + x * a_ca**3) / 4
        start.set_cell(
            crystal.cell * (volume * len(crystal) / 2 / crystal.get_volume()) ** (1 / 3), scale_atoms=True
        )
        starts.append(start)
    made = _relaxed(potential, starts, settings.fmax)
    energies = [2 * (r.energy / (len(r.atoms) // 2) - (1 - x) * e_mg - x * e_ca) for r in made if r.converged]
    if not energies:
        raise RuntimeError(f"no ordering came to rest: {made[0].reason}")
    return {"x": x, "energies": energies, "not relaxed": len(made) - len(energies)}


def statistics(x: np.ndarray, dft: np.ndarray, model: np.ndarray) -> list:
    """Slope of mixing, MAE, mean error, slope and rank correlation of ordering; intervals over frames.

    Takes fractions, and energies of mixing in eV/atom; errors are in meV/atom.
    """
    pairs = np.column_stack([dft, model])
    error = MEV * (pairs[:, 1] - pairs[:, 0])
    by_fraction = np.column_stack([np.rint(1e6 * x), pairs])
    return [
        _known(pairs, slope),
        bootstrap(np.abs(error)),
        bootstrap(error),
        _known(within(x, pairs), slope),
        _known(by_fraction, rank_correlation, resamples=200),
    ]


def _known(values: np.ndarray, statistic: Callable[[np.ndarray], float], **options) -> Estimate | None:
    """`bootstrap`, or None if it is undefined: orderings of equal energy have no slope and no rank."""
    return bootstrap(values, statistic, **options) if np.isfinite(statistic(values)) else None


def within(x: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Energies of ordering: `pairs` (frames, 2) minus their means over all frames of the same fraction x."""
    centred, group = pairs.copy(), np.rint(1e6 * x)
    for g in np.unique(group):
        centred[group == g] -= pairs[group == g].mean(axis=0)
    return centred


def slope(pairs: np.ndarray) -> float:
    """The slope through the origin, Σxy / Σxx, of the model (column 1) against DFT (column 0)."""
    below = np.sum(pairs[:, 0] ** 2)
    return float(np.sum(pairs[:, 0] * pairs[:, 1]) / below) if below > 1e-12 else float("nan")


def rank_correlation(rows: np.ndarray) -> float:
    """Spearman's rank correlation within compositions of three orderings or more, weighted by their number.

    Columns of `rows`: composition, DFT, model.
    """
    from scipy.stats import rankdata

    total, weight = 0.0, 0
    for g in np.unique(rows[:, 0]):
        some = rows[rows[:, 0] == g, 1:]
        ranks = np.column_stack([rankdata(column) for column in some.T])
        if len(some) >= 3 and np.all(ranks.std(axis=0) > 0):
            total += len(some) * np.corrcoef(ranks.T)[0, 1]
            weight += len(some)
    return total / weight if weight else float("nan")


def _of_way(row: dict, way: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.array(row[way][name]) for name in ("x", "dft", "model"))


def alloy_table(potentials, alloys, rows) -> Table:
    lines = []
    for name in potentials:
        known = {alloy: rows[key] for alloy in alloys if (key := f"{name}: {alloy}") in rows}
        for way in WAYS:
            sets = {alloy: _of_way(row, way) for alloy, row in known.items() if way in row}
            for alloy, columns in sets.items():
                lines.append([name, alloy, way, len(columns[0]), *statistics(*columns)])
            if len(sets) > 1:
                x, dft, model = (np.concatenate(c) for c in zip(*sets.values(), strict=True))
                # The same fraction in two alloys counts as two compositions.
                x = x + np.repeat(np.arange(len(sets)) * 10, [len(c[0]) for c in sets.values()])
                lines.append([name, "all", way, len(x), *statistics(x, dft, model)])
    columns = ("model", "alloy", "crystals", "frames", "slope of mixing energies (95 %)", "MAE / meV/atom")
    columns += ("mean error / meV/atom", "slope within compositions", "rank correlation within compositions")
    note = (
        "Energies of mixing are against the elements of the same side: the lowest bulk frame of DFT, and the "
        "model in that frame or relaxed. Slopes through the origin, model against DFT. Energies of what the "
        "model relaxed are compared with those of what DFT relaxed."
    )
    return Table("Alloys, energies of mixing", columns, lines, digits=2, note=note)


def oxide_points(name: str, compositions, rows) -> dict[float, np.ndarray]:
    """Energies of all orderings (eV per formula unit), by the fraction of Ca."""
    keys = {x: f"{name}: Ca fraction {x:g}" for x in compositions}
    return {x: np.array(rows[key]["energies"]) for x, key in keys.items() if key in rows}


def oxide_table(potentials, compositions, rows) -> Table:
    lines = []
    for name in potentials:
        for x, energies in oxide_points(name, compositions, rows).items():
            unfinished = rows[f"{name}: Ca fraction {x:g}"]["not relaxed"]
            numbers = [len(energies), unfinished, bootstrap(energies), energies.min(), energies.max()]
            lines.append([name, f"{x:g}", f"{2 * x:g}", *numbers])
    if lines:
        published = ("0.5 or 0.25", "", None, None)
        lines += [[f"{name}, published", *published, e, None, None] for name, e in PUBLISHED.items()]
    columns = ("model", "Ca of cations", "x", "orderings", "not relaxed")
    columns += ("mean / eV/f.u. (95 %)", "lowest / eV/f.u.", "highest / eV/f.u.")
    note = (
        "Formation energy of Ca_xMg_(2-x)O2 from CaO and MgO. The published values are printed at a marker "
        '"x_Ca = 0.5" of Fig. 2c. The figure does not say whether they are the mean or the lowest of the '
        "orderings, nor whether x_Ca is x or the fraction of the cations: see mean and lowest at both. The "
        "lowest at half of the cations comes closest for CHGNet 0.3.0."
    )
    return Table("(Ca,Mg)O, formation energies", columns, lines, note=note)


def draw_alloys(potentials, alloys: Sequence[str], rows) -> Figure:
    figure, axes = grid(len(alloys), spare=(0.4, 0.5))
    for ax, alloy in zip(axes, alloys, strict=True):
        for name, style in styles(potentials).items():
            if (row := rows.get(f"{name}: {alloy}")) is None:
                continue
            x, dft, model = _of_way(row, "relaxed by DFT")
            _lowest(ax, x, MEV * dft, label="DFT", color="k", marker="*")
            _lowest(ax, x, MEV * model, label=name, **style)
        ax.axhline(0, c="0.8", lw=0.8, zorder=0)
        _, second = _elements(alloy)
        ax.set(title=alloy, xlabel=f"fraction of {second}", xlim=(0, 1))
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("energy of mixing / meV/atom")
    legend(figure, "upper", ncols=len(potentials) + 1)
    return figure


def _elements(alloy: str) -> list[str]:
    """The two elements in the order of ELEMENTS, as `_alloys` has them."""
    return [e for e in ELEMENTS if e in alloy]


def _lowest(ax: Axes, x: np.ndarray, y: np.ndarray, label: str, **style: Any) -> None:
    """Draws all points, and a line through the lowest of each composition, from element to element."""
    ax.plot(x, y, ls="", ms=3, mew=0, alpha=0.35, **style)
    at = np.unique(x)
    line = [y[x == k].min() for k in at]
    ax.plot([0, *at, 1], [0, *line, 0], ms=5, lw=1, label=label, **style)


def draw_parity(potentials, alloys: Sequence[str], rows) -> Figure:
    figure, (axes,) = panels(1, 2, each=(3.4, 3.4))
    for name, style in styles(potentials).items():
        known = [rows[key] for alloy in alloys if (key := f"{name}: {alloy}") in rows]
        sets = [_of_way(row, "relaxed by DFT") for row in known]
        if not sets:
            continue
        pairs = [np.column_stack([dft, model]) for _, dft, model in sets]
        ordering = [within(x, p) for (x, _, _), p in zip(sets, pairs, strict=True)]
        for ax, points in zip(axes, (pairs, ordering), strict=True):
            ax.plot(*MEV * np.concatenate(points).T, ls="", ms=3, mew=0, alpha=0.4, label=name, **style)
    for ax, what in zip(axes, ("energy of mixing", "energy of ordering"), strict=True):
        parity(ax, what, "meV/atom")
    legend(figure, "upper", markerscale=2)
    return figure


def draw_oxide(potentials, compositions, rows) -> Figure:
    figure, ((ax,),) = panels(each=(4.8, 3.3))
    for name, style in styles(potentials).items():
        points = oxide_points(name, compositions, rows)
        if not points:
            continue
        at = [0, *points, 1]
        for x, e in points.items():
            ax.plot(np.full(len(e), x), e, ls="", ms=3, mew=0, alpha=0.35, **style)
        mean, lowest = ([0, *(of(e) for e in points.values()), 0] for of in (np.mean, np.min))
        ax.plot(at, mean, label=f"{name}, mean", **style)
        ax.plot(at, lowest, "--", c=style["color"], label="lowest")
    for (name, e), mark in zip(PUBLISHED.items(), "*x+1", strict=True):
        ax.plot(0.5, e, "k" + mark, ms=11 if name == "DFT" else 8, label=f"{name}, published", ls="none")
    ax.set(xlabel="Ca of cations, x / 2", ylabel="formation energy / eV per (Ca,Mg)$_2$O$_2$", xlim=(0, 1))
    ax.legend(frameon=False, fontsize=7, ncols=2)
    return figure


if __name__ == "__main__":
    run(main, Settings)
