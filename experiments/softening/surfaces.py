"""Are surfaces of elements too cheap?

    python -m experiments.softening.surfaces --model chgnet-0.3.0 --data FOLDER --out FOLDER

compares γ = (E_slab - N e_bulk) / 2A of a model with DFT, for slabs of mlearn and maml, in two ways.
"relaxed", as in arXiv:2405.07105: the bulk is relaxed with its cell, then the slab, until forces are below
0.05 eV/Å. The slab keeps DFT's cell, scaled to the model's lattice constant, as if it were cut from the
model's bulk. "as in DFT": bulk and slab are at DFT's positions, without relaxation, so that both sides have
the same geometry. e_bulk of DFT is that of the undeformed crystal, see `experiments.softening.bulk`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from experiments.datasets import by_kind, read
from experiments.softening.bulk import Bulk, read_present, undeformed
from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.mechanics.relaxation import Relaxation, relax_many
from jaxmlip.potential import Potential
from jaxmlip.studies.study import Study, bootstrap, load_models, run
from jaxmlip.system.arguments import Models
from jaxmlip.system.plots import diagonal, panels, styles
from jaxmlip.system.tables import Estimate, Table
from jaxmlip.units import J_PER_M2_PER_EV_PER_A2

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Germanium is left out: its slabs and its bulk were computed differently, which makes γ 0.2 to 0.6 J/m².
MLEARN = ("Li", "Si", "Cu", "Ni", "Mo")
MAML = ("Mo", "Nb", "W", "Ta")
MATERIALS = (*(f"mlearn/{symbol}" for symbol in MLEARN), *(f"maml/{symbol}" for symbol in MAML))
VACUUM = 5.0  # Å; wider gaps between atoms count as vacuum
WAYS = {"relaxed": "relaxed", "as_dft": "as in DFT"}
PUBLISHED = (
    "MAE of arXiv:2405.07105, Fig. 2a, on 147 other surfaces: M3GNet 0.047, CHGNet 0.042, MACE 0.032 eV/Å²."
)


@dataclass(frozen=True)
class Settings:
    """Are surfaces of elements too cheap, γ = (E_slab - N e_bulk) / 2A against DFT?"""

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with mlearn/ and maml_MoNbTaW/; default: JAXMLIP_DATA
    materials: tuple[str, ...] = MATERIALS  # default: all whose files are there
    fmax: float = 0.05  # eV/Å, the largest force at which a relaxation ends
    steps: int = 500  # of a relaxation at most
    out: Path = Path("surfaces")


def main(settings: Settings) -> None:
    potentials = load_models(settings.model)
    files = {name: files_of(name) for name in MATERIALS}
    found, findings = read_present(settings.data, settings.materials, files, slabs_of)
    study = Study("surfaces", settings, potentials)
    findings += said(found)
    for label, potential in potentials.items():
        known = study.known(label, found, lambda it: it[0].cube.numbers)
        slabs = {
            f"{label}: {name} {facet}": (bulk, slab)
            for name, (bulk, its, _) in known.items()
            for facet, slab in its.items()
        }
        measure(study, potential, settings, {key: slabs[key] for key in study.left(slabs)})
    done = study.done()
    rows = [
        {"model": label, "set": name, "facet": facet} | done[key]
        for label in potentials
        for name, (_, slabs, _) in found.items()
        for facet in slabs
        if (key := f"{label}: {name} {facet}") in done
    ]
    lost = [f"{r['model']}: {r['set']} {r['facet']}" for r in rows if r["relaxed"] is None]
    if lost:
        findings.append(
            f"{len(lost)} slabs or their bulk did not come to rest ({'; '.join(lost[:3])}): they have only "
            "values at DFT's positions. record.json has the reasons."
        )
    study.write(tables(rows), {"surfaces.png": (CAPTION, draw(rows))} if rows else {}, findings)


def files_of(name: str) -> list[str]:
    data_set, symbol = name.split("/")
    if data_set == "mlearn":
        return [f"mlearn/{symbol}.extxyz.gz"]
    return [f"maml_MoNbTaW/{symbol}_{part}.extxyz" for part in ("Surface", "Elastic")]


def slabs_of(files: Sequence[Path]) -> tuple[Bulk, dict[str, LabelledCrystal], int]:
    """The bulk crystal, the slabs by facet, and the number of surface frames that are no slabs."""
    frames = [frame for file in files for frame in read(file)]
    groups, slabs = by_kind(frames), {}
    for frame in groups["Surface"]:
        if normal(frame.atoms) is not None:
            facet = facet_of(frame.atoms.info) or f"no. {len(slabs) + 1}"
            slabs[facet if facet not in slabs else f"{facet} no. {len(slabs) + 1}"] = frame
    return undeformed(groups["Elastic"]), slabs, len(groups["Surface"]) - len(slabs)


def facet_of(info: Mapping[str, Any]) -> str:
    """The Miller indices that a frame of mlearn, "Li_mp-135_(1_0_0)", or of maml, "Sur=100", names; or ""."""
    found = re.search(r"\((\d)_(\d)_(\d)\)(_reconstructed)?", str(info.get("description")))
    found = found or re.search(r"Sur=(\d)(\d)(\d)()$", str(info.get("notes")))
    return f"({''.join(found.groups()[:3])})" + " rec." * bool(found[4]) if found else ""


def normal(atoms: Atoms) -> int | None:
    """The lattice vector out of the surface: the only one with a vacuum along it; None if it is no slab."""
    fractions = np.sort(atoms.cell.scaled_positions(atoms.positions) % 1, axis=0)
    gaps = np.diff(np.concatenate([fractions, fractions[:1] + 1]), axis=0).max(axis=0)
    heights = 1 / np.linalg.norm(atoms.cell.reciprocal(), axis=1)
    open_along = np.flatnonzero(gaps * heights >= VACUUM)
    return int(open_along[0]) if len(open_along) == 1 else None


def energy_of_surface(slab: Atoms, energy: float, bulk: float) -> float:
    """γ in eV/Å², the mean of both faces, from the slab's energy (eV) and the bulk's (eV per atom)."""
    a, b = np.delete(slab.cell.array, normal(slab), axis=0)
    return (energy - len(slab) * bulk) / (2 * float(np.linalg.norm(np.cross(a, b))))


def measure(
    study: Study, potential: Potential, settings: Settings, slabs: Mapping[str, tuple[Bulk, LabelledCrystal]]
) -> None:
    """Stores a row for each slab. Slabs are computed side by side, since compilation takes longest."""
    goal = {"fmax": settings.fmax, "steps": settings.steps}
    bulks = list({bulk: None for bulk, _ in slabs.values()})
    cubes = [bulk.cube for bulk in bulks]
    energies = [p["energy"] for p in potential.predict([*cubes, *(s.atoms for _, s in slabs.values())])]
    per_atom = {bulk: e / len(bulk.cube) for bulk, e in zip(bulks, energies, strict=False)}
    cut = {}
    solids = dict(zip(bulks, relax_many(potential, cubes, fix_symmetry=True, **goal), strict=True))
    for key, (bulk, slab) in slabs.items():
        if solids[bulk].converged:
            cut[key] = slab.atoms.copy()
            cut[key].set_cell(slab.atoms.cell * stretch(solids[bulk]), scale_atoms=True)
    rest = dict(zip(cut, relax_many(potential, list(cut.values()), cell=False, **goal), strict=True))
    for (key, (bulk, slab)), energy in zip(slabs.items(), energies[len(bulks) :], strict=True):
        solid, end = solids[bulk], rest.get(key, solids[bulk])
        bottom = solid.energy / len(bulk.cube)
        row = {
            "dft": energy_of_surface(slab.atoms, slab.labels.energy, bulk.energy),
            "as_dft": energy_of_surface(slab.atoms, energy, per_atom[bulk]),
            "relaxed": energy_of_surface(end.start, end.energy, bottom) if end.converged else None,
            "reason": end.reason,
            "steps": end.steps,
            "atoms": len(slab.atoms),
            "lattice_constant": bulk.a * stretch(solid),
        }
        study.keep(key, row)


def stretch(solid: Relaxation) -> float:
    """The ratio of a cube's lattice constant after relaxation to that before."""
    return (1 + solid.volume_change) ** (1 / 3)


def said(found: Mapping[str, tuple[Bulk, dict, int]]) -> list[str]:
    """Remarks on the data."""
    fitted = [f"{name} ({bulk.origin})" for name, (bulk, _, _) in found.items() if bulk.origin != "its frame"]
    no_slabs = [f"{count} of {name}" for name, (_, _, count) in found.items() if count]
    said = []
    if fitted:
        said.append(
            f"e_bulk of DFT is not that of a frame of the undeformed crystal for {', '.join(fitted)}."
        )
    if no_slabs:
        said.append(f"Frames of surfaces without a vacuum of {VACUUM} Å: {', '.join(no_slabs)}; left out.")
    return said


def tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    summary, by_set = [], []
    for model in _models(rows):
        for way, words in WAYS.items():
            these = [r for r in rows if r["model"] == model and r[way] is not None]
            error = np.array([r[way] - r["dft"] for r in these])
            mae, mean = bootstrap(np.abs(error)), bootstrap(error)
            joules = (_in_joule(x) for x in (mae, mean))
            summary.append([model, words, len(these), mae, mean, *joules, bootstrap(error < 0)])
            for name in dict.fromkeys(r["set"] for r in these):
                own = np.array([(r["dft"], r[way]) for r in these if r["set"] == name])
                own = own * J_PER_M2_PER_EV_PER_A2
                ratio = bootstrap(own, lambda x: x[:, 1].sum() / x[:, 0].sum())
                by_set.append([model, name, words, len(own), *own.mean(axis=0), ratio])
    per_facet = []
    for r in rows:
        dft, *ways = (None if (x := r[k]) is None else x * J_PER_M2_PER_EV_PER_A2 for k in ("dft", *WAYS))
        error = None if r["relaxed"] is None else (r["relaxed"] - r["dft"]) * J_PER_M2_PER_EV_PER_A2
        per_facet.append([r["model"], r["set"], r["facet"], dft, *ways, error])
    units = [f"{what} / {unit}" for unit in ("eV/Å²", "J/m²") for what in ("MAE", "mean error")]
    columns = ("model", "geometry", "facets", *units, "share too low")
    of_sets = ("model", "set", "geometry", "facets", "DFT / J/m²", "model / J/m²", "ratio of the sums")
    of_facets = ("model", "set", "facet", *(f"{x} / J/m²" for x in ("DFT", *WAYS.values(), "error")))
    note = f"95 % intervals over facets. {PUBLISHED}"
    return [
        Table("Surface energies against DFT", columns, summary, note=note),
        Table("By set", of_sets, by_set),
        Table("Facet by facet", of_facets, per_facet, note="The error is that of the relaxed value."),
    ]


def _in_joule(x: Estimate) -> Estimate:
    return Estimate(*(part * J_PER_M2_PER_EV_PER_A2 for part in x))


def _models(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(r["model"] for r in rows))


CAPTION = "Surface energies of a model against DFT, relaxed (filled) and where DFT left the atoms (open)."


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    models, factor = _models(rows), J_PER_M2_PER_EV_PER_A2
    top = factor * max(max(r["dft"], r["as_dft"], r["relaxed"] or 0) for r in rows)
    figure, (line,) = panels(1, len(models), each=(3.6, 3.5), spare=(1.2, 0.5), sharex=True, sharey=True)
    for axes, model in zip(line, models, strict=True):
        for name, style in styles(r["set"] for r in rows).items():
            these = [r for r in rows if (r["model"], r["set"]) == (model, name)]
            for way, look in (("as_dft", {"mfc": "none"}), ("relaxed", {"label": name})):
                x, y = ([r[k] * factor for r in these if r[way] is not None] for k in ("dft", way))
                axes.plot(x, y, ms=5, ls="", **style, **look)
        diagonal(axes, "y = x", top)
        axes.set(xlabel="γ of DFT / J/m²", title=model)
    line[0].set_ylabel("γ of the model / J/m²")
    second = line[-1].secondary_yaxis("right", functions=(lambda y: y / factor, lambda y: y * factor))
    second.set_ylabel("eV/Å²")
    line[0].legend(frameon=False, fontsize="small")
    return figure


if __name__ == "__main__":
    run(main, Settings)
