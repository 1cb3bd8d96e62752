"""Do total energies of two functionals agree once each has lost its own reference energies of the elements?

    python -m experiments.transfer.energy_references --data FOLDER [--set TEACHER_SET] --out FOLDER

computes Pearson's ρ between the energies per atom of the same structures in two functionals: as they are, and
minus the reference energies of each by least squares, E_elem = (AᵀA)⁻¹ Aᵀ E with the fractions of the
elements in A (arXiv:2504.05565, eq. 2; `jaxmlip.training.references`). The published values are 0.0917 and
0.9250, for relaxed crystals in GGA/GGA+U and r2SCAN.

Pairs of DFT energies are the elements of MatPES at rest (matcalc) and the curves of homonuclear dimers
(Matbench Discovery), in PBE and r2SCAN. The pairs of the paper are read by

    --pair MPtrj_2022.9_full.json MP-r2SCAN.json --energy-key corrected_total_energy

Further pairs are labels of two public models, one fitted to each functional, as `teacher_set.make` writes
them. They stand in for DFT, and are not DFT. Their reference energies are fitted to the training split.

If there is one crystal for each unknown, least squares leave no remainder, and ρ does not exist. For the
elements at rest DFT's energies of isolated atoms are subtracted instead. For dimers, the fit is the mean
energy of each curve, and ρ is that within curves. Formation energies need no fit: in teacher sets, the
energies of the elements' ground states are subtracted, each in its own functional.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from experiments.datasets import MissingDataError, where_there
from experiments.transfer.energy_pairs import (
    BOUND,
    DIMERS,
    ELEMENTS,
    FEWEST,
    Pairs,
    Part,
    read_dimers,
    read_elements,
    read_pair,
    read_set,
)
from jaxmlip.studies.study import Study, StudyError, bootstrap, run
from jaxmlip.system.plots import COLOURS, diagonal, element_ticks, panels, styles
from jaxmlip.system.tables import Estimate, Table
from jaxmlip.training.references import References, refit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED = ("arXiv:2504.05565, relaxed crystals", 0.0917, 0.9250)
NUMBERS = 119  # length of arrays by atomic number


@dataclass(frozen=True)
class Settings:
    """Do total energies of two functionals agree once each has lost its own energies of the elements?

    Correlation of the same structures' energies, before and after, and the shift of each element.
    """

    set: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Folders that experiments.transfer.teacher_set.make wrote with two teachers or more: the first one
    against each other."""
    data: Path | None = None
    """Folder with matcalc_elemental_refs_PBE_r2SCAN/ and matbench_diatomics/; default: JAXMLIP_DATA."""
    out: Path = Path("energy_references")
    pair: tuple[str, str] | None = None
    """Two files or data sets of the same materials, such as MPtrj and MP-r2SCAN, or MatPES's two: of each
    material that both have, the crystal of lowest energy in each."""
    energy_key: str | None = None
    """Energy to take of the first file of the pair: the paper's is MPtrj's corrected_total_energy."""


def main(settings: Settings) -> None:
    sources, absent = read(settings)
    study = Study("energy_references", settings)
    by_key = {f"{pairs.name}: {part.name}": (pairs, part) for pairs in sources for part in pairs.parts}
    rows = study.each("correlations", list(by_key), lambda key: compare(*by_key[key]))
    tables = [correlation_table(by_key, rows), shift_table(by_key, rows)]
    study.write(tables, figures(by_key, rows), [*findings(by_key, rows), *absent])


def read(settings: Settings) -> tuple[list[Pairs], list[str]]:
    """All pairs that are there, and remarks on data that are missing.

    Raises MissingDataError if there are neither data nor sets.
    """
    readers = {ELEMENTS: read_elements, DIMERS: read_dimers}
    there, absent = where_there(settings.data, readers)
    found = [readers[name](folder) for name, folder in there.items()]
    if settings.pair:
        found.append(read_pair(*settings.pair, settings.energy_key))
    for folder in settings.set:
        found += read_set(folder)
    names = [pairs.name for pairs in found]
    if len(set(names)) < len(names):
        raise StudyError(
            f"found the sources {', '.join(names)}, needed different names. Rename a file or folder."
        )
    if not found:
        raise MissingDataError(absent[0])
    return found, [f"Left out: {error}" for error in absent]


def fitted(pairs: Pairs, fit: np.ndarray) -> list[References]:
    """The reference energies of each functional, by least squares over the crystals `fit`."""
    species = [pairs.species[k] for k in np.flatnonzero(fit)]
    return [refit(species, pairs.energies[fit, f], np.zeros(NUMBERS)) for f in (0, 1)]


def remaining(pairs: Pairs, references: Sequence[References]) -> np.ndarray:
    """Energies minus reference energies, (structures, 2), eV/atom."""
    own = np.array([[r.energies[s].sum() for r in references] for s in pairs.species])
    return (pairs.energies - own) / pairs.atoms[:, None]


def fitted_elements(pairs: Pairs, part: Part) -> set[int]:
    """Atomic numbers of the elements that are in enough fitted materials for the fit to be trusted."""
    materials: dict[int, set[str]] = {}
    for k in np.flatnonzero(part.fit):
        for z in set(pairs.species[k].tolist()):
            materials.setdefault(z, set()).add(pairs.groups[k])
    return {z for z, those in materials.items() if len(those) >= part.fewest}


def comparable(pairs: Pairs, part: Part) -> np.ndarray:
    """The mask of the crystals of the part that have no other elements than these."""
    known = fitted_elements(pairs, part)
    return part.of & np.array([set(s.tolist()) <= known for s in pairs.species])


def compare(pairs: Pairs, part: Part) -> dict[str, Any]:
    """ρ before and after, with intervals by draws of whole groups; reference energies are not fitted anew."""
    references = fitted(pairs, part.fit)
    known = fitted_elements(pairs, part)
    of = comparable(pairs, part)
    if not of.any():
        raise ValueError(
            f"found no crystal whose elements are each in at least {part.fewest} of the fitted materials, "
            "needed some. Make a larger set."
        )
    groups = [pairs.groups[k] for k in np.flatnonzero(of)]
    raw = (pairs.energies / pairs.atoms[:, None])[of]
    after = remaining(pairs, references)[of]
    row = {
        "number": int(of.sum()),
        "left_out": int((part.of & ~of).sum()),
        "groups": len(set(groups)),
        "unknowns": len(known),
        "determined": not references[0].ridge,
        "raw": correlation(raw, groups),
        # Rounding is no correlation.
        "after": correlation(after, groups) if part.fit.sum() > len(known) else None,
        "difference": rms(raw[:, 1] - raw[:, 0]),
        "difference_after": rms(after[:, 1] - after[:, 0]),
        "shift": {z: float(references[1].energies[z] - references[0].energies[z]) for z in sorted(known)},
    }
    if pairs.elsewhere is not None:
        there = part.of & np.isfinite(pairs.elsewhere).all(axis=1)
        above = (pairs.energies - pairs.elsewhere)[there] / pairs.atoms[there, None]
        row["elsewhere"] = {
            "number": int(there.sum()),
            "groups": len({pairs.groups[k] for k in np.flatnonzero(there)}),
            "rho": correlation(above, [pairs.groups[k] for k in np.flatnonzero(there)]),
            "difference": rms(above[:, 1] - above[:, 0]) if there.any() else None,
        }
    if pairs.forces is not None and part.forces:
        F = [pairs.forces[k].reshape(-1, 2) for k in np.flatnonzero(of)]
        of_atoms = [g for g, f in zip(groups, F, strict=True) for _ in f]
        both = np.concatenate(F)
        # Forces of dimers across x, and of atoms fixed by symmetry, are zero in both.
        pushed = (both != 0).any(axis=1)
        row["forces"] = correlation(both[pushed], [g for g, p in zip(of_atoms, pushed, strict=True) if p])
        row["force_difference"] = rms(both[pushed, 1] - both[pushed, 0]) if pushed.any() else None
    return row


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def correlation(xy: np.ndarray, groups: Sequence[str]) -> Estimate | None:
    """Pearson's ρ of the columns of `xy` (n, 2), with an interval by draws of groups of rows.

    None if a column is constant.
    """
    if not len(xy) or not np.ptp(xy, axis=0).all():
        return None
    x, y = (xy - xy.mean(axis=0)).T
    terms = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)
    _, which = np.unique(np.asarray(groups, np.str_), return_inverse=True)
    sums = np.zeros((which.max() + 1, terms.shape[1]))
    np.add.at(sums, which, terms)
    return bootstrap(sums, pearson)


def pearson(sums: np.ndarray) -> float:
    """ρ from the sums of 1, x, y, x², y², xy of each group."""
    n, x, y, xx, yy, xy = sums.sum(axis=0)
    spread = (n * xx - x * x) * (n * yy - y * y)
    return float((n * xy - x * y) / np.sqrt(spread)) if spread > 0 else float("nan")


ByKey = Mapping[str, tuple[Pairs, Part]]
Rows = Mapping[str, Mapping[str, Any]]


def correlation_table(by_key: ByKey, rows: Rows) -> Table:
    published = [None] * 11
    published[:1], published[4:6] = PUBLISHED[:1], PUBLISHED[1:]
    lines = [published]
    for key, row in rows.items():
        pairs, part = by_key[key]
        start = [f"{pairs.name}, {part.name}"]
        numbers = [row["number"], row["groups"], row["unknowns"], Estimate.read(row["raw"])]
        force = Estimate.read(row.get("forces")), row.get("force_difference")
        energies = Estimate.read(row["after"]), row["difference"], row["difference_after"]
        lines.append([*start, *numbers, *energies, *force, "yes" if row["determined"] else "no"])
        if "elsewhere" in row:
            its = row["elsewhere"]
            words = f"{start[0]}: {pairs.where} subtracted"
            middle = [its["number"], its["groups"], 0, None, Estimate.read(its["rho"]), None]
            lines.append([words, *middle, its["difference"], None, None, None])
    columns = ("structures", "number", "materials", "unknowns", "ρ raw", "ρ after")
    columns += ("rms difference raw / eV/atom", "after", "ρ of forces", "rms difference / eV/Å", "determined")
    note = (
        "Energies per atom; intervals by draws of materials (elements, of dimers), with reference energies "
        f"as they are. Of teacher sets, elements in fewer than {FEWEST} materials of the training split are "
        "left out where references are subtracted. Determined: compositions tell all reference energies "
        "apart. With as many unknowns as structures nothing remains, and there is no ρ. Labels of public "
        "models stand in for DFT."
    )
    return Table("Pearson's ρ of the same structures in two functionals", columns, lines, 4, note)


def shifts(by_key: ByKey, rows: Rows) -> dict[str, dict[int, float]]:
    """E_ref of the second functional minus that of the first (eV), by element, of each source's last part."""
    return {by_key[key][0].name: {int(z): e for z, e in row["shift"].items()} for key, row in rows.items()}


def shift_table(by_key: ByKey, rows: Rows) -> Table:
    from ase.data import chemical_symbols

    found = shifts(by_key, rows)
    elements = sorted({z for of in found.values() for z in of})
    lines = [[chemical_symbols[z], *(of.get(z) for of in found.values())] for z in elements]
    note = (
        "Reference energy in the second functional minus that in the first, by least squares in each. Of "
        f"dimers: of those with forces up to {BOUND:g} eV/Å, without lanthanides and actinides, whose curves "
        "jump from one electronic state to another."
    )
    return Table("Shift of the elements' reference energies / eV", ("element", *found), lines, 3, note)


def findings(by_key: ByKey, rows: Rows) -> list[str]:
    found = []
    for key, row in rows.items():
        shift = np.array(list(row["shift"].values()))
        words = f"{key}: reference energies shift by {shift.min():.1f} to {shift.max():.1f} eV"
        if row["after"] is None:
            words += (
                f"; {row['number']} structures and {row['unknowns']} unknowns leave nothing to be compared "
                "after least squares"
            )
        if row["left_out"]:
            words += f"; {row['left_out']} structures were left out, with elements in fewer than "
            words += f"{by_key[key][1].fewest} of the materials that were fitted"
        found.append(f"{words}.")
    return found


def figures(by_key: ByKey, rows: Rows) -> dict[str, tuple[str, Figure]]:
    return {
        "energy_references.png": (
            "Energies of the same structures in two functionals (eV/atom), as they are and after the "
            "reference energies of each were subtracted; from the elements at rest, energies of isolated "
            "atoms.",
            draw_pairs(by_key, rows),
        ),
        "energy_shifts.png": (
            "Reference energy of each element in the second functional minus that in the first.",
            draw_shifts(shifts(by_key, rows)),
        ),
    }


def draw_pairs(by_key: ByKey, rows: Rows) -> Figure:
    # One row of panels for each source, with its first part, or for dimers the last.
    chosen: dict[str, str] = {}
    for key, (pairs, _) in by_key.items():
        if key in rows and (pairs.name not in chosen or pairs.name == "dimers"):
            chosen[pairs.name] = key
    n = max(1, len(chosen))
    figure, axes = panels(n, 2, each=(3.75, 3.3), spare=(0, 0))
    for line, key in zip(axes, chosen.values(), strict=False):
        pairs, part = by_key[key]
        references = fitted(pairs, part.fit)
        of, row = comparable(pairs, part), rows[key]
        if row["after"] is not None:
            after, rho, words = remaining(pairs, references)[of], row["after"], "references"
        else:
            after = ((pairs.energies - pairs.elsewhere) / pairs.atoms[:, None])[of]
            rho, words = row["elsewhere"]["rho"], pairs.where
        raw = (pairs.energies / pairs.atoms[:, None])[of]
        marks = ((raw, row["raw"], "total energy", "o"), (after, rho, f"energy above {words}", "s"))
        for k, (ax, (xy, its, quantity, marker)) in enumerate(zip(line, marks, strict=True)):
            style = {"ms": 3, "alpha": 0.5, "mew": 0, "color": COLOURS[k]}
            ax.plot(*xy.T, marker, ls="", rasterized=True, **style)
            diagonal(ax)
            value = "-" if its is None else f"{Estimate.read(its).value:.4f}"
            ax.set_title(f"{pairs.name.split(':')[0]}, {part.name}\nρ = {value}", fontsize="small")
            first, second = pairs.functionals
            ax.set_xlabel(f"{first}: {quantity} / eV/atom", fontsize="x-small")
            ax.set_ylabel(f"{second} / eV/atom", fontsize="x-small")
            ax.tick_params(labelsize="x-small")
    return figure


def draw_shifts(found: Mapping[str, Mapping[int, float]]) -> Figure:
    figure, ((ax,),) = panels(each=(9.0, 3.6), spare=(0, 0))
    for name, style in styles(found).items():
        shift = found[name]
        ax.plot(list(shift), list(shift.values()), ls="", ms=4, mfc="none", label=name, **style)
    elements = sorted({z for of in found.values() for z in of})
    element_ticks(ax, elements, elements)
    ax.set(ylabel="shift of the reference energy / eV", xlabel="element")
    ax.axhline(0, color="k", lw=0.7)
    ax.legend(frameon=False, fontsize="small")
    return figure


if __name__ == "__main__":
    run(main, Settings)
