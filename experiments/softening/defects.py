"""Are point defects of elements too cheap, and are forces around them too weak?

    python -m experiments.softening.defects --model chgnet-0.3.0 --data FOLDER --out FOLDER

On the vacancy cells of mlearn, which are snapshots of molecular dynamics: E - N e_bulk of each, of a model
against DFT; forces, beside those in bulk frames of like force; and the formation energy that is left when
what bulk frames have at such forces is taken away. Frames that have melted are left out. Then the formation
energies of the model alone, by the protocol of arXiv:2405.07105: the crystal with its cell, then the defect
in a supercell of it, until forces are below 0.05 eV/Å. No frame has relaxed in DFT: nothing to compare with.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms

from experiments.frames import read, rms_force
from experiments.softening.bulk import Bulk, present, undeformed
from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.derivatives.slopes import force_slope
from jaxmlip.mechanics.relaxation import NotConvergedWarning, relax_many
from jaxmlip.potential import Potential
from jaxmlip.studies.study import Estimate, Study, Table, bootstrap, knows, load_models, run
from jaxmlip.system.arguments import Models
from jaxmlip.system.progress import track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ELEMENTS = ("Li", "Si", "Ge", "Mo", "Cu", "Ni")
# In units of the lattice constant: whether the atom at the origin goes, and where atoms come.
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
CRYSTALLINE = 0.5  # of the amplitude of that reflection, all atoms at their sites; a melt has about 0.1
LIKE = 0.25  # by how much the force in bulk frames may differ from that in vacancy cells
DENSITY = 0.03  # and by how much the volume
FEWEST = 10  # frames that a mean of thermal energies takes
NUDGE = 0.05  # Å; moves neighbours of a defect off their symmetric places
PUBLISHED = (
    "MAE of arXiv:2405.07105, Fig. 2b, on point defects of 32 other metals: M3GNet 1.397, CHGNet 1.296, MACE "
    "0.974 eV."
)


@dataclass(frozen=True)
class Settings:
    """Are point defects of elements too cheap, and are forces around them too weak?"""

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with mlearn/; default: JAXMLIP_DATA
    elements: tuple[str, ...] = ELEMENTS  # those of the default that are not there are named, and left out
    fmax: float = 0.05  # eV/Å, the largest force at which a relaxation ends
    steps: int = 500  # after which a relaxation is given up
    out: Path = Path("defects")


class Material(NamedTuple):
    bulk: Bulk
    repeat: int  # cubes along each edge of the supercell
    vacancies: list[LabelledCrystal]
    others: list[LabelledCrystal]  # bulk frames of like force and volume
    molten: int  # vacancy cells that were left out


def main(settings: Settings) -> None:
    potentials = load_models(settings.model)
    files = {element: [f"mlearn/{element}.extxyz.gz"] for element in ELEMENTS}
    sets, findings = present(settings.data, settings.elements, files)
    study = Study("defects", Settings.__doc__, settings, potentials)
    materials = {}
    for name, (path,) in track(sets.items(), "reading"):
        try:
            materials[name] = material(path)
        except ValueError as error:
            findings.append(f"{name} is left out: {error}")
    findings += said(materials)
    for label, potential in potentials.items():
        known = {name: it for name, it in materials.items() if knows(potential, it.bulk.cube.numbers)}
        if len(known) < len(materials):
            strange = ", ".join(name for name in materials if name not in known)
            findings.append(f"{label} was not fitted to {strange}: left out.")
        study.each(
            f"frames, {label}",
            [f"{label}: {name} frames" for name in known],
            lambda key, potential=potential, known=known: on_frames(potential, known[key.split()[-2]]),
        )
        wanted = {
            f"{label}: {name} {defect}": (it, defect)
            for name, it in known.items()
            for defect in DEFECTS[it.bulk.kind]
        }
        relax_defects(study, potential, settings, {key: wanted[key] for key in study.left(wanted)})
    frames, formed = (
        [
            {"model": label, "element": name, "defect": defect} | study.rows[key]
            for label in potentials
            for name, it in materials.items()
            for defect in which(it)
            if (key := f"{label}: {name} {defect}") in study.rows and "failed" not in study.rows[key]
        ]
        for which in (lambda it: ["frames"], lambda it: DEFECTS[it.bulk.kind])
    )
    figures = {"defects.png": (CAPTION, draw(frames))} if frames else {}
    study.write(tables(frames, formed), figures, findings)


def material(path: Path) -> Material:
    """The vacancy cells of an element, with bulk frames of like force. Raises ValueError as `undeformed`."""
    frames = read(path)
    groups = {
        key: [f for f in frames if f.atoms.info.get("group") == key]
        for key in ("Elastic", "Vacancy", "AIMD-NVT")
    }
    bulk = undeformed(groups["Elastic"])
    solid = [f for f in groups["Vacancy"] if order(f.atoms, bulk.kind) > CRYSTALLINE]
    if not solid:
        raise ValueError(f"{path} has no crystalline frame of a vacancy, needed one.")
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
    """How many cubes there are along each edge of a supercell with a few atoms too few or too many."""
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
    """Energies above bulk (eV), ΣF² of DFT (eV²/Å²) and force slopes, in vacancy cells and in bulk."""
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
    """Keeps the formation energy of each of the defects, which are relaxed side by side."""
    goal = {"fmax": settings.fmax, "steps": settings.steps}
    bulks = list({it.bulk: None for it, _ in defects.values()})
    starts = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
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
    """A supercell of `cube` with a defect at the origin, its neighbours a little off symmetric places."""
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
    """What is to be said of the data."""
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
        x, y = (np.array(r["vacancy"][side]) for side in ("dft", "model"))
        error = y - x
        steep = bootstrap(np.stack([x, y], axis=1), _steepness) if len(x) >= FEWEST else None
        spread = float(error.std(ddof=1)) if len(x) > 1 else None
        mae = float(np.abs(error).mean())
        energies.append(
            [r["model"], r["element"], len(x), x.mean(), y.mean(), mae, bootstrap(error), spread, steep]
        )
        if min(len(x), len(r["bulk"]["dft"])) >= FEWEST:
            both = (formation_energy(r, side) for side in ("dft", "model", "error"))
            formation.append([r["model"], r["element"], len(x), len(r["bulk"]["dft"]), *both])
        forces = []
        for side in ("vacancy", "bulk"):
            found = r[side]["slope"] or {}
            forces += [r[side]["force"], _interval(found), found.get("r2")]
        slopes.append([r["model"], r["element"], *forces])
    return [
        Table(
            "Energy of vacancy cells above the bulk crystal, E - N e_bulk",
            (
                "model", "element", "frames", "DFT / eV", "model / eV",
                "MAE / eV", "mean error / eV", "spread / eV", "slope",
            ),
            energies,
            note="95 % intervals over frames. Spread: standard deviation of the error. Slope: of the model "
            "against DFT about their means.",
        ),
        Table(
            "Formation energy of the vacancy from hot frames",
            ("model", "element", "frames", "in bulk", "DFT / eV", "model / eV", "error / eV"),
            formation,
            digits=2,
            note="⟨E - N e_bulk - c ΣF²⟩ over vacancy cells, c from bulk frames. The error has less noise "
            f"than either side: both see the same frames. Not where there are fewer than {FEWEST} frames.",
        ),
        Table(
            "Slope of forces, model against DFT",
            (
                "model", "element", "rms force / eV/Å", "vacancy cells", "r²",
                "rms force in bulk / eV/Å", "bulk", "r² in bulk",
            ),
            slopes,
        ),
        Table(
            "Formation energies of the model, relaxed; no DFT at hand",
            ("model", "element", "defect", "atoms", "E_f / eV"),
            [[r["model"], r["element"], r["defect"], r["atoms"], r["energy"]] for r in formed],
            note=f"Defects are called by where they started. {PUBLISHED}",
        ),
    ]  # fmt: skip


def formation_energy(r: Mapping[str, Any], side: str) -> Estimate:
    """E_f (eV) of the vacancy in the DFT, the model, or the error of the model, from hot frames.

    In a harmonic crystal E - N e_bulk is c ΣF², whatever the temperature. Bulk frames give c, that of the
    model too with the forces of DFT, so that the three are linear in the energies; what vacancy cells have
    beyond it is the vacancy's.
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


def _interval(found: Mapping[str, Any]) -> Estimate | None:
    if not found:
        return None
    return Estimate(*(np.nan if found[k] is None else found[k] for k in ("value", "low", "high")))


CAPTION = (
    "Above: energy of vacancy cells above the bulk crystal, a model against DFT. Below: slopes of forces in "
    "vacancy cells and in bulk frames of like force, with 95 % intervals."
)


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    import matplotlib.pyplot as plt

    from jaxmlip.system.figures import COLOURS

    models, elements = (list(dict.fromkeys(r[key] for r in rows)) for key in ("model", "element"))
    figure, axes = plt.subplots(
        2, len(models), figsize=(1.2 + 3.4 * len(models), 6.4), layout="constrained", squeeze=False,
        sharex="row", sharey="row",
    )  # fmt: skip
    top = 1.05 * max(max(r["vacancy"][side]) for r in rows for side in ("dft", "model"))
    for (above, below), model in zip(axes.T, models, strict=True):
        for r in (r for r in rows if r["model"] == model):
            k = elements.index(r["element"])
            style = {"color": COLOURS[k % len(COLOURS)], "marker": "osD^vP"[k], "ls": ""}
            above.plot(
                r["vacancy"]["dft"], r["vacancy"]["model"], ms=4, mfc="none", label=r["element"], **style
            )
            for side, shift, face in (("vacancy", -0.12, style["color"]), ("bulk", 0.12, "none")):
                if r[side]["slope"]:
                    value, low, high = (r[side]["slope"][key] for key in ("value", "low", "high"))
                    bars = None if low is None else [[value - low], [high - value]]
                    below.errorbar([k + shift], [value], bars, capsize=3, ms=6, mfc=face, **style)
        above.plot([0, top], [0, top], color="0.3", lw=0.8, label="y = x")
        above.set(title=model, xlabel="E - N e_bulk of DFT / eV")
        below.axhline(1, color="0.3", lw=0.8)
        below.set_xticks(range(len(elements)), elements)
        below.set(xlabel="filled: vacancy cells; open: bulk", xlim=(-0.5, len(elements) - 0.5))
    axes[0, 0].set_ylabel("E - N e_bulk of the model / eV")
    axes[1, 0].set_ylabel("slope of forces, model against DFT")
    axes[0, 0].legend(frameon=False, fontsize="small")
    return figure


if __name__ == "__main__":
    run(main, Settings)
