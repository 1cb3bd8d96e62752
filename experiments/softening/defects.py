"""Are point defects of elements too cheap, and are forces around them too weak?

    python -m experiments.softening.defects --model chgnet-0.3.0 --data FOLDER --out FOLDER

compares a model with DFT on mlearn's vacancy cells, which are snapshots of molecular dynamics: E - N e_bulk
of each; forces, beside those in bulk frames with similar forces; and the formation energy that remains when
the energy of bulk frames with such forces is subtracted. Molten frames are left out. Then it relaxes defects
with the model alone, by the protocol of arXiv:2405.07105: first the crystal with its cell, then the defect in
a supercell, until forces are below 0.05 eV/Å. There is no DFT to compare these with: DFT relaxed no frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms

from experiments.datasets import by_kind, read, rms_force
from experiments.softening.bulk import Bulk, read_present, undeformed
from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.derivatives.slopes import force_slope
from jaxmlip.mechanics.relaxation import relax_many
from jaxmlip.potential import Potential
from jaxmlip.studies.study import Study, bootstrap, load_models, run
from jaxmlip.system.arguments import Models
from jaxmlip.system.plots import diagonal, panels, styles, with_intervals
from jaxmlip.system.tables import Estimate, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ELEMENTS = ("Li", "Si", "Ge", "Mo", "Cu", "Ni")
# Whether the atom at the origin is removed, and the positions of added atoms in lattice constants.
DEFECTS: dict[str, dict[str, tuple[bool, tuple]]] = {
    "bcc": {
        "vacancy": (True, ()),
        "⟨110⟩ dumbbell": (True, ((0.22, 0.22, 0), (-0.22, -0.22, 0))),
        "⟨111⟩ dumbbell": (True, ((0.2, 0.2, 0.2), (-0.2, -0.2, -0.2))),
    },
    "fcc": {
        "vacancy": (True, ()),
        "⟨100⟩ dumbbell": (True, ((0.3, 0, 0), (-0.3, 0, 0))),
        "octahedral": (False, ((0.5, 0.5, 0.5),)),
    },
    "diamond": {
        "vacancy": (True, ()),
        "⟨110⟩ dumbbell": (True, ((0.16, 0.16, -0.12), (-0.16, -0.16, -0.12))),
        "tetrahedral": (False, ((0.5, 0.5, 0.5),)),
        "hexagonal": (False, ((0.625, 0.625, 0.625),)),
    },
}
IN_CUBE = {"bcc": 2, "fcc": 4, "diamond": 8}  # atoms
PLANES = {"bcc": (0, 1, 1), "fcc": (1, 1, 1), "diamond": (0, 2, 2)}  # strong reflections of the cube
CRYSTALLINE = 0.5  # least amplitude of that reflection, which is 1 at the lattice sites, 0.1 in a melt
LIKE = 0.25  # largest relative difference of forces in bulk frames from those in vacancy cells
DENSITY = 0.03  # the same for volumes
FEWEST = 10  # frames, at least, for a mean of thermal energies
NUDGE = 0.05  # Å, random displacement of a defect's neighbours, which breaks symmetry
PUBLISHED = (
    "MAE of arXiv:2405.07105, Fig. 2b, on point defects of 32 other metals: M3GNet 1.397, CHGNet 1.296, MACE "
    "0.974 eV."
)


@dataclass(frozen=True)
class Settings:
    """Are point defects of elements too cheap, and are forces around them too weak?"""

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with mlearn/; default: JAXMLIP_DATA
    elements: tuple[str, ...] = ELEMENTS  # default: all whose files are there
    fmax: float = 0.05  # eV/Å, the largest force at which a relaxation ends
    steps: int = 500  # of a relaxation at most
    out: Path = Path("defects")


class Material(NamedTuple):
    bulk: Bulk
    repeat: int  # cubes along each edge of the supercell
    vacancies: list[LabelledCrystal]
    others: list[LabelledCrystal]  # bulk frames of similar force and volume
    molten: int  # number of vacancy cells that were left out


def main(settings: Settings) -> None:
    potentials = load_models(settings.model)
    files = {element: [f"mlearn/{element}.extxyz.gz"] for element in ELEMENTS}
    materials, findings = read_present(settings.data, settings.elements, files, material)
    study = Study("defects", settings, potentials)
    findings += said(materials)
    study.ask("frames", materials, lambda it: it.bulk.cube.numbers, on_frames, "{}: {} frames")
    for label, potential in potentials.items():
        known = study.known(label, materials, lambda it: it.bulk.cube.numbers)
        wanted = {
            f"{label}: {name} {defect}": (it, defect)
            for name, it in known.items()
            for defect in DEFECTS[it.bulk.kind]
        }
        relax_defects(study, potential, settings, {key: wanted[key] for key in study.left(wanted)})
    done = study.done()
    frames, formed = (
        [
            {"model": label, "element": name, "defect": defect} | done[key]
            for label in potentials
            for name, it in materials.items()
            for defect in which(it)
            if (key := f"{label}: {name} {defect}") in done
        ]
        for which in (lambda it: ["frames"], lambda it: DEFECTS[it.bulk.kind])
    )
    figures = {"defects.png": (CAPTION, draw(frames))} if frames else {}
    study.write(tables(frames, formed), figures, findings)


def material(paths: Sequence[Path]) -> Material:
    """Vacancy cells of an element, with bulk frames of similar force. Raises ValueError as `undeformed`."""
    groups = by_kind([frame for path in paths for frame in read(path)])
    bulk = undeformed(groups["Elastic"])
    solid = [f for f in groups["Vacancy"] if order(f.atoms, bulk.kind) > CRYSTALLINE]
    if not solid:
        raise ValueError(f"{paths[0]} has no crystalline frame of a vacancy, needed one.")
    repeat = repeats(solid[0].atoms, bulk.kind)

    def volume(frame: LabelledCrystal) -> float:
        return frame.atoms.cell.volume / repeats(frame.atoms, bulk.kind) ** 3

    force, size = rms_force(solid), np.median([volume(f) for f in solid])
    others = [
        f
        for f in groups["AIMD-NVT"]
        if order(f.atoms, bulk.kind) > CRYSTALLINE
        and abs(rms_force([f]) / force - 1) < LIKE
        and abs(volume(f) / size - 1) < DENSITY
    ]
    return Material(bulk, repeat, solid, others, len(groups["Vacancy"]) - len(solid))


def repeats(atoms: Atoms, kind: str) -> int:
    """The number of cubes along each edge of a supercell with a few atoms missing or added."""
    return round((len(atoms) / IN_CUBE[kind]) ** (1 / 3))


def order(atoms: Atoms, kind: str) -> float:
    """The mean amplitude |Σ exp(2πi G·r)| / N of a strong reflection of the cube: 1 in a perfect crystal."""
    planes = {
        p for q in itertools.permutations(PLANES[kind]) for p in itertools.product(*((-x, x) for x in q))
    }
    G = repeats(atoms, kind) * np.array(sorted(planes))
    waves = np.exp(2j * np.pi * atoms.cell.scaled_positions(atoms.positions) @ G.T)
    return float(np.abs(waves.mean(axis=0)).mean())


def on_frames(potential: Potential, it: Material) -> dict[str, Any]:
    """Energies above bulk (eV), ΣF² of DFT (eV²/Å²) and force slopes, for vacancy cells and bulk frames."""
    cube, *found = potential.predict([it.bulk.cube, *(f.atoms for f in (*it.vacancies, *it.others))])
    bulk = cube["energy"] / len(it.bulk.cube)
    n = len(it.vacancies)
    return {
        side: {
            "dft": [f.labels.energy - len(f.atoms) * it.bulk.energy for f in frames],
            "model": [p["energy"] - len(f.atoms) * bulk for f, p in zip(frames, predictions, strict=True)],
            "squares": [float(np.sum(f.labels.forces**2)) for f in frames],
            "force": rms_force(frames) if frames else None,
            "slope": slope(frames, predictions) if frames else None,
        }
        for side, frames, predictions in (
            ("vacancy", it.vacancies, found[:n]),
            ("bulk", it.others, found[n:]),
        )
    }


def slope(frames: Sequence[LabelledCrystal], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = force_slope([p["forces"].astype(float) for p in predictions], [f.labels.forces for f in frames])
    low, high = found.interval
    return {"value": found.slope, "low": low, "high": high, "r2": found.r_squared, "mae": found.mae}


def relax_defects(
    study: Study, potential: Potential, settings: Settings, defects: Mapping[str, tuple[Material, str]]
) -> None:
    """Stores the formation energy of each of the defects, which are relaxed side by side."""
    goal = {"fmax": settings.fmax, "steps": settings.steps}
    bulks = list({it.bulk: None for it, _ in defects.values()})
    starts = {}
    ends = relax_many(potential, [bulk.cube for bulk in bulks], fix_symmetry=True, **goal)
    solids = dict(zip(bulks, ends, strict=True))
    for key, (it, defect) in defects.items():
        solid = solids[it.bulk]
        if solid.converged:
            starts[key] = with_defect(solid.atoms, it.bulk.kind, it.repeat, defect)
        else:
            study.fail(key, f"the bulk crystal did not come to rest: {solid.reason}")
    ends = relax_many(potential, list(starts.values()), cell=False, **goal)
    for key, end in zip(starts, ends, strict=True):
        solid = solids[defects[key][0].bulk]
        if end.converged:
            row = {
                "energy": end.energy - len(end.atoms) * solid.energy / len(solid.atoms),
                "atoms": len(end.atoms),
                "lattice_constant": solid.atoms.cell.lengths()[0],
                "steps": end.steps,
            }
            study.keep(key, row)
        else:
            study.fail(key, end.reason)


def with_defect(cube: Atoms, kind: str, repeat: int, defect: str) -> Atoms:
    """A supercell of `cube` with a defect at the origin, and its neighbours displaced a little."""
    replaced, places = DEFECTS[kind][defect]
    a = cube.cell.lengths()[0]
    atoms = Atoms(cube.numbers, cube.positions, cell=cube.cell, pbc=True).repeat(repeat)
    if replaced:
        del atoms[0]
    centre = np.mean(places, axis=0) * a if places else np.zeros(3)
    atoms += Atoms(atoms.numbers[:1].repeat(len(places)), a * np.array(places).reshape(-1, 3))
    probe = Atoms("X", [centre], cell=atoms.cell, pbc=True)
    near = (atoms + probe).get_distances(len(atoms), range(len(atoms)), mic=True) < 0.75 * a
    atoms.positions[near] += NUDGE * np.random.default_rng(0).normal(size=(near.sum(), 3))
    return atoms


def said(materials: Mapping[str, Material]) -> list[str]:
    """Remarks on the data."""
    molten = [f"{it.molten} of {name}" for name, it in materials.items() if it.molten]
    alone = [name for name, it in materials.items() if not it.others]
    said = []
    if molten:
        said.append(f"Vacancy cells that have melted: {', '.join(molten)}; left out.")
    if alone:
        said.append(f"No bulk frames of like force and volume: {', '.join(alone)}.")
    return said


def tables(frames: Sequence[Mapping[str, Any]], formed: Sequence[Mapping[str, Any]]) -> list[Table]:
    energies, formation, slopes = [], [], []
    for r in frames:
        of = {"model": r["model"], "element": r["element"]}
        x, y = (np.array(r["vacancy"][side]) for side in ("dft", "model"))
        error = y - x
        row = {"frames": len(x), "DFT / eV": x.mean(), "model / eV": y.mean()}
        row |= {"MAE / eV": float(np.abs(error).mean()), "mean error / eV": bootstrap(error)}
        row["spread / eV"] = float(error.std(ddof=1)) if len(x) > 1 else None
        row["slope"] = bootstrap(np.stack([x, y], axis=1), _steepness) if len(x) >= FEWEST else None
        energies.append(of | row)
        if min(len(x), len(r["bulk"]["dft"])) >= FEWEST:
            dft, model, both = (formation_energy(r, side) for side in ("dft", "model", "error"))
            row = {"frames": len(x), "in bulk": len(r["bulk"]["dft"])}
            formation.append(of | row | {"DFT / eV": dft, "model / eV": model, "error / eV": both})
        row = {}
        for side, cells, within in (("vacancy", "vacancy cells", ""), ("bulk", "bulk", " in bulk")):
            found = r[side]["slope"] or {}
            row |= {f"rms force{within} / eV/Å": r[side]["force"], cells: Estimate.read(found)}
            row |= {f"r²{within}": found.get("r2")}
        slopes.append(of | row)
    alone = [[r[name] for name in ("model", "element", "defect", "atoms", "energy")] for r in formed]
    note = (
        "95 % intervals over frames. Spread: standard deviation of the error. Slope: of the model against "
        "DFT about their means."
    )
    of_formation = (
        "⟨E - N e_bulk - c ΣF²⟩ over vacancy cells, c from bulk frames. The error has less noise than either "
        f"side: both see the same frames. Not where there are fewer than {FEWEST} frames."
    )
    where = f"Defects are called by where they started. {PUBLISHED}"
    return [
        Table.of("Energy of vacancy cells above the bulk crystal, E - N e_bulk", energies, note=note),
        Table.of("Formation energy of the vacancy from hot frames", formation, 2, of_formation),
        Table.of("Slope of forces, model against DFT", slopes),
        Table(
            "Formation energies of the model, relaxed; no DFT at hand",
            ("model", "element", "defect", "atoms", "E_f / eV"),
            alone,
            note=where,
        ),
    ]


def formation_energy(r: Mapping[str, Any], side: str) -> Estimate:
    """The formation energy (eV) of the vacancy from hot frames: of DFT, of the model, or the error.

    In a harmonic crystal E - N e_bulk is c ΣF² at any temperature. Bulk frames give c (for the model, too,
    with the forces of DFT, so that all three are linear in the energies). What vacancy cells have beyond that
    is the formation energy.
    """

    def statistic(rows: np.ndarray) -> float:
        vacant, energy, squares = rows.T
        bulk = vacant == 0
        if bulk.all() or not bulk.any():
            return np.nan
        return float((energy - squares * energy[bulk].sum() / squares[bulk].sum())[~bulk].mean())

    rows = []
    for vacant, cells in ((1, r["vacancy"]), (0, r["bulk"])):
        dft, model = np.array(cells["dft"]), np.array(cells["model"])
        energy = {"dft": dft, "model": model, "error": model - dft}[side]
        rows.append(np.stack([np.full(len(dft), vacant), energy, cells["squares"]], axis=1))
    return bootstrap(np.concatenate(rows), statistic)


def _steepness(xy: np.ndarray) -> float:
    (xx, covariance), _ = np.cov(xy, rowvar=False)
    return covariance / xx if xx > 0 else np.nan


CAPTION = (
    "Above: energy of vacancy cells above the bulk crystal, a model against DFT. Below: slopes of forces in "
    "vacancy cells and in bulk frames of like force, with 95 % intervals."
)


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    models, looks = list(dict.fromkeys(r["model"] for r in rows)), styles(r["element"] for r in rows)
    top = max(max(r["vacancy"][side]) for r in rows for side in ("dft", "model"))
    figure, lines = panels(2, len(models), each=(3.4, 3.0), spare=(1.2, 0.4), sharex="row", sharey="row")
    for (above, below), model in zip(lines.T, models, strict=True):
        for r in (r for r in rows if r["model"] == model):
            style = looks[r["element"]] | {"ls": ""}
            cells = r["vacancy"]
            above.plot(cells["dft"], cells["model"], ms=4, mfc="none", label=r["element"], **style)
            for side, shift, face in (("vacancy", -0.12, style["color"]), ("bulk", 0.12, "none")):
                if r[side]["slope"]:
                    at = list(looks).index(r["element"]) + shift
                    with_intervals(below, [at], [Estimate.read(r[side]["slope"])], ms=6, mfc=face, **style)
        diagonal(above, "y = x", top)
        above.set(title=model, xlabel="E - N e_bulk of DFT / eV")
        below.axhline(1, color="0.3", lw=0.8)
        below.set_xticks(range(len(looks)), looks)
        below.set(xlabel="filled: vacancy cells; open: bulk", xlim=(-0.5, len(looks) - 0.5))
    lines[0, 0].set_ylabel("E - N e_bulk of the model / eV")
    lines[1, 0].set_ylabel("slope of forces, model against DFT")
    lines[0, 0].legend(frameon=False, fontsize="small")
    return figure


if __name__ == "__main__":
    run(main, Settings)
