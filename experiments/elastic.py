"""Are crystals too soft as a whole, and under volume and shear alike?

    python -m experiments.elastic --model A [--model B] --data FOLDER --out FOLDER

compares bulk and shear moduli with PBE on two sets that arXiv:2405.07105 did not use. The binary crystals of
the Materials Project (matcalc_benchmark: bulk_modulus_vrh, shear_modulus_vrh) are relaxed with the model,
cell and atoms; their elastic tensors are exact second derivatives with atoms that follow the strain, as those
of DFT do, and the moduli are means of Voigt's and Reuss's. Beside them: moduli with clamped ions, exact and
as slopes of the stress over a strain of ±1 %, which tell curvature at the minimum from that around it; and
those at DFT's own crystal, which leave out that the model's crystal is larger or smaller. The unaries and
oxides of acwf_eos_PBE are equations of state of all-electron PBE: the model's is fitted to seven volumes (94
to 106 %) with fixed fractional coordinates, as DFT's is.

Ratios are model / DFT for each material. Rows are kept batch by batch.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.study import (
    Estimate,
    Study,
    StudyError,
    Table,
    bootstrap,
    data_file,
    knows,
    load_models,
    run,
)
from jaxmlip import batching
from jaxmlip.cli.arguments import Models
from jaxmlip.progress import track
from jaxmlip.units import GPA_PER_EV_PER_A3

if TYPE_CHECKING:
    from ase import Atoms
    from matplotlib.figure import Figure

    from jaxmlip.elasticity import Elasticity
    from jaxmlip.potential import Potential

BINARIES = "matcalc_benchmark/mp-binary-pbe-elasticity-2025.1.json.gz"
ACWF = "acwf_eos_PBE"
SYMMETRY = 1e-3  # Å: what relaxation in float32 leaves of it
SPARE = 0.15  # of the room of a batch, for neighbours that come while crystals relax
CLASSES = {  # the first that one of the elements belongs to
    "oxides": "O",
    "halides": "F Cl Br I",
    "chalcogenides": "S Se Te",
    "pnictides": "N P As Sb Bi",
    "hydrides": "H",
    "B, C, Si, Ge": "B C Si Ge",
}
METALS = "intermetallics"
# DFT of acwf is without spin, and all of its electrons are there. What models were fitted to is magnetic (V
# in oxides), has f electrons of lanthanides in the core, and U in oxides, of Mo and W too.
MAGNETIC = tuple("V Cr Mn Fe Co Ni Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Pa U Np Pu Am Cm".split())  # noqa: SIM905
WITH_U = ("Mo", "W")
STEP = 0.01  # strain to either side, of the slopes of the stress


@dataclass(frozen=True)
class Settings:
    """Are crystals too soft as a whole, under compression and under shear alike?

    Bulk and shear moduli of binary crystals, and equations of state, against PBE.
    """

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with matcalc_benchmark/ and acwf_eos_PBE/; default: JAXMLIP_DATA
    out: Path = Path("elastic")
    every: int = 1  # takes every so-many-th material of both sets
    limit: int | None = None  # at most so many of each set
    fmax: float = 0.01  # eV/Å; crystals are relaxed until forces are below this …
    smax: float = 0.1  # … and stresses below this (GPa)
    steps: int = 300  # after so many a crystal counts as one that does not come to rest
    at_dft: bool = True  # also the moduli at DFT's crystal, which take about 40 % of the time
    batch: int = 200  # materials between two savings of rows


def main(settings: Settings) -> None:
    binaries = thinned(read_binaries(data_file(settings.data, BINARIES)), settings)
    prototypes = thinned(read_prototypes(data_file(settings.data, ACWF)), settings)
    potentials = load_models(settings.model)
    study = Study("elastic", Settings.__doc__, settings, potentials)
    for label, potential in potentials.items():
        measure(study, label, potential, binaries, settings.batch, settings)
        measure_prototypes(study, label, potential.astype("float64"), prototypes, settings.batch)
    rows = {label: of_model(study, label, binaries) for label in potentials}
    states = {label: of_model(study, label, prototypes) for label in potentials}
    tables = [moduli_table(rows), estimators_table(rows), states_table(states), lost_table(rows, states)]
    study.write(tables, figures(rows, states))


def thinned(items: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Every so-many-th of `items`, at most `limit`. Raises ValueError where none is left to be asked for."""
    if settings.every < 1 or settings.batch < 1 or (settings.limit is not None and settings.limit < 1):
        raise ValueError("found every, batch or limit below 1, needed whole numbers from 1 on.")
    return dict(list(items.items())[:: settings.every][: settings.limit])


def read_binaries(path: Path) -> dict[str, dict[str, Any]]:
    """By their number in the Materials Project: "atoms", "class", and DFT's "K" and "G" (GPa)."""
    from pymatgen.core import Structure

    found = {}
    try:
        for entry in json.loads(gzip.decompress(path.read_bytes())):
            atoms = Structure.from_dict(entry["structure"]).to_ase_atoms(msonable=False)
            K, G = float(entry["bulk_modulus_vrh"]), float(entry["shear_modulus_vrh"])
            found[str(entry["mp_id"])] = {"atoms": atoms, "class": chemistry(atoms), "K": K, "G": G}
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{path} is not as matcalc publishes it ({type(error).__name__}: {error}); needed gzipped JSON: "
            "a list of mp_id, structure, bulk_modulus_vrh and shear_modulus_vrh. Download it again."
        ) from None
    return found


def chemistry(atoms: Atoms) -> str:
    symbols = set(atoms.get_chemical_symbols())
    return next((name for name, of in CLASSES.items() if symbols & set(of.split())), METALS)


def read_prototypes(folder: Path) -> dict[str, dict[str, Any]]:
    """By name, such as "Si-X/Diamond": "atoms", "family", "prototype", and DFT's "V0", "B0" and "B1".

    V₀ (Å³) is the volume of the atoms; B₀ in GPa. The archive is read in memory; nothing is unpacked.
    """
    found = {}
    archive = folder / "xsfs_PBE_v1_structures.tar.xz"
    try:
        structures = read_archive(archive)
        for family in ("unaries", "oxides"):
            path = folder / f"results-{family}-verification-PBE-v1-AE-average.json"
            for name, fit in json.loads(path.read_text())["BM_fit_data"].items():
                if fit is None:
                    continue
                element, prototype = name.split("-", 1)
                prototype = prototype.removeprefix("X/")
                atoms = structures[family, f"{element}-{prototype}"]
                V0, B0 = float(fit["min_volume"]), float(fit["bulk_modulus_ev_ang3"]) * GPA_PER_EV_PER_A3
                atoms.set_cell(atoms.cell * (V0 / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
                numbers = {"V0": V0, "B0": B0, "B1": float(fit["bulk_deriv"])}
                kind = {"family": family, "prototype": prototype, "comparable": comparable(element, family)}
                found[name] = {"atoms": atoms, **kind, **numbers}
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, tarfile.TarError) as error:
        raise StudyError(
            f"{folder} is not as acwf-verification-scripts publish it ({type(error).__name__}: {error}); "
            f"needed results-*-verification-PBE-v1-AE-average.json and {archive.name}. Download them again."
        ) from None
    return found


def read_archive(path: Path) -> dict[tuple[str, str], Atoms]:
    """The structures of the archive by family and name, such as ("oxides", "Sc-X2O3")."""
    import ase.io

    found = {}
    with tarfile.open(path, "r:xz") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".xsf"):
                text = archive.extractfile(member).read().decode()
                atoms = ase.io.read(io.StringIO(text), format="xsf")
                found[member.name.split("/")[0], Path(member.name).stem] = atoms
    return found


def comparable(element: str, family: str) -> bool:
    return element not in MAGNETIC and not (family == "oxides" and element in WITH_U)


def measure(
    study: Study,
    label: str,
    potential: Potential,
    entries: Mapping[str, Mapping[str, Any]],
    size: int,
    settings: Settings,
) -> None:
    """Keeps a row for each crystal: moduli in GPa, the change of its volume, what is odd about it."""
    from jaxmlip.elasticity import MESSAGES, elastic_tensors
    from jaxmlip.relaxation import relax_many

    left = open_keys(study, label, potential, entries)
    if not left:
        return
    known = [key for key, entry in entries.items() if knows(potential, entry["atoms"].numbers)]
    graphs = {key: potential.graph(entries[key]["atoms"]) for key in track(known, "neighbours")}
    # Of all crystals, and each batch in one of them: the same programs serve to the end, and after a kill.
    rooms = batching.rooms_for(list(graphs.values()), MESSAGES, SPARE)
    home = {key: next(room for room in rooms if room.holds(batching.need([graphs[key]]))) for key in left}
    parts = [
        (room, part)
        for room in rooms
        for part in batching.chunks([key for key in left if home[key] == room], size)
    ]

    def tensors(crystals: Sequence[Atoms]) -> list[Elasticity | ValueError]:
        found = elastic_tensors(potential, crystals, rooms, SYMMETRY)
        # float32 cannot tell a soft mode from none.
        again = [k for k, x in enumerate(found) if isinstance(x, ValueError)]
        exact = elastic_tensors(potential.astype("float64"), [crystals[k] for k in again], rooms, SYMMETRY)
        for k, x in zip(again, exact, strict=True):
            found[k] = x
        return found

    for room, part in track(parts, f"moduli by {label}"):
        crystals = [entries[key]["atoms"] for key in part]
        aim = {"fmax": settings.fmax, "smax": settings.smax, "steps": settings.steps}
        with quiet():
            relaxed = relax_many(potential, crystals, **aim, room=room)
        at_rest = [k for k, r in enumerate(relaxed) if r.converged]
        rested = [relaxed[k].atoms for k in at_rest]
        own = dict(zip(at_rest, tensors(rested), strict=True))
        around = dict(zip(at_rest, stress_slopes(potential, rested, rooms), strict=True))
        there = tensors(crystals) if settings.at_dft else [None] * len(part)
        for k, key in enumerate(part):
            name, dft = f"{label} {key}", entries[key]
            if k not in own:
                study.fail(name, f"did not come to rest: {relaxed[k].reason}")
            elif isinstance(own[k], ValueError):
                study.fail(name, f"no linear response: {own[k]}")
            else:
                row = moduli(own[k], around[k]) | {"volume_change": relaxed[k].volume_change}
                row |= {"steps": relaxed[k].steps, "at_dft": at_dft_crystal(there[k])}
                study.keep(name, {**{k: dft[k] for k in ("class", "K", "G")}, **row})


def open_keys(study: Study, label: str, potential: Potential, entries: Mapping[str, Any]) -> list[str]:
    """Those of `entries` that have no row yet; elements that the potential does not know make one at once."""
    left = []
    for key, entry in entries.items():
        name = f"{label} {key}"
        if name in study.rows:
            continue
        if knows(potential, entry["atoms"].numbers):
            left.append(key)
        else:
            study.fail(name, f"unknown elements: {entry['atoms'].get_chemical_formula()}")
    return left


def stress_slopes(
    potential: Potential, crystals: Sequence[Atoms], rooms: Sequence[batching.Capacity]
) -> list[np.ndarray]:
    """∂σ/∂ε (6, 6) in GPa between strains of ±STEP, for each crystal; atoms move with the cell alone."""
    from jaxmlip.elasticity import MESSAGES, VOIGT

    graphs = []
    for atoms in crystals:
        for i, j in VOIGT:
            for sign in (1, -1):
                eps = np.zeros((3, 3))
                eps[i, j] = sign * STEP
                moved = atoms.copy()
                moved.set_cell(atoms.cell @ (np.eye(3) + (eps + eps.T) / 2), scale_atoms=True)
                graphs.append(potential.graph(moved))
    stress = np.empty((len(graphs), 3, 3))
    for batch, room in batching.side_by_side(graphs, MESSAGES, rooms):
        found = potential.predict_graphs([graphs[k] for k in batch], room)
        stress[batch] = [p["stress"] for p in found]
    rows = stress[:, *np.transpose(VOIGT)].reshape(-1, 6, 2, 6)
    return list((rows[:, :, 0] - rows[:, :, 1]).swapaxes(1, 2) / (2 * STEP) * GPA_PER_EV_PER_A3)


def moduli(found: Elasticity, slopes: np.ndarray) -> dict[str, Any]:
    """Of a crystal at rest; None where some strain meets no resistance."""
    row: dict[str, Any] = {}
    for name, C in (("model", found.C), ("clamped", found.clamped), ("around", (slopes + slopes.T) / 2)):
        row[f"K_{name}"], row[f"G_{name}"] = stable_moduli(replace(found, C=C)) or (None, None)
    return row | {
        "lowest_eigenvalue": found.eigenvalues[0],
        "internal_modes_stable": found.internal_modes_stable,
    }


def stable_moduli(found: Elasticity) -> list[float] | None:
    """K and G; None where some strain meets no resistance."""
    return list(found.hill) if found.stable and found.resists_everything else None


def at_dft_crystal(found: Elasticity | ValueError | None) -> list[float] | None:
    """K and G where stress remains: of ∂σ/∂ε, whose K is -V dp/dV. None where they do not exist."""
    if isinstance(found, ValueError | None):
        return None
    B = found.stress_strain
    return stable_moduli(replace(found, C=(B + B.T) / 2, stress=np.zeros((3, 3))))


def measure_prototypes(
    study: Study, label: str, potential: Potential, entries: Mapping[str, Mapping[str, Any]], size: int
) -> None:
    """Keeps a row for each prototype: V₀ (Å³), B₀ (GPa) and B₁ of the model, and its B at DFT's V₀."""
    from jaxmlip.equation_of_state import equations_of_state
    from jaxmlip.potential import MESSAGES_PER_BATCH

    left = open_keys(study, label, potential, entries)
    known = [e["atoms"] for e in entries.values() if knows(potential, e["atoms"].numbers)]
    graphs = [potential.graph(atoms) for atoms in known] if left else []
    rooms = batching.rooms_for(graphs, MESSAGES_PER_BATCH)
    for part in track(list(batching.chunks(left, size)), f"equations of state by {label}"):
        with quiet():
            found = equations_of_state(potential, [entries[key]["atoms"] for key in part], rooms=rooms)
        for key, state in zip(part, found, strict=True):
            if isinstance(state, ValueError):
                study.fail(f"{label} {key}", f"no equation of state: {state}")
                continue
            dft = {k: x for k, x in entries[key].items() if k != "atoms"}
            own = {"V0_model": state.volume, "B1_model": state.derivative}
            own |= {"B0_model": state.bulk_modulus * GPA_PER_EV_PER_A3}
            own |= {"B_at_dft": state.bulk_modulus_at(dft["V0"]) * GPA_PER_EV_PER_A3}
            study.keep(f"{label} {key}", dft | own)


@contextmanager
def quiet() -> Iterator[None]:
    """Crystals that do not come to rest become rows; strange distances are what these sets are made of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def of_model(study: Study, label: str, entries: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {key: study.rows[f"{label} {key}"] for key in entries}


def fit_to_compare(rows: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of crystals that are stable and have moduli."""
    return [r for r in rows.values() if why_not(r) is None]


def why_not(row: Mapping[str, Any]) -> str | None:
    """Why a row is not compared; None where it is."""
    if "failed" in row:
        return row["failed"].split(":")[0]
    if "lowest_eigenvalue" in row and row["K_model"] is None:
        return "a strain lowers the energy"
    return None


def pairs(rows: Sequence[Mapping[str, Any]], quantity: str, model: str) -> np.ndarray:
    """DFT and model, (materials, 2), where the model has the quantity."""
    return np.array([(r[quantity], r[model]) for r in rows if r[model] is not None]).reshape(-1, 2)


def slope(xy: np.ndarray) -> float:
    """Of the line through the origin: Σxy / Σx²."""
    x, y = xy.T
    return float(x @ y / (x @ x))


def median_ratio(xy: np.ndarray) -> float:
    return float(np.median(xy[:, 1] / xy[:, 0]))


def share_below(xy: np.ndarray) -> float:
    return float(np.mean(xy[:, 1] < xy[:, 0]))


def mean_error(xy: np.ndarray) -> float:
    return float(np.mean(np.abs(xy[:, 1] - xy[:, 0])))


def statistics(xy: np.ndarray, resamples: int = 1000) -> list[Estimate]:
    """Median ratio, slope, share below 1, MAE; each with its interval over materials."""
    return [bootstrap(xy, f, resamples) for f in (median_ratio, slope, share_below, mean_error)]


STATISTICS = ("median ratio", "slope", "share below 1", "MAE / GPa")


def moduli_table(models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    rows = []
    for label, of in models.items():
        every = fit_to_compare(of)
        for name in ("all", *CLASSES, METALS):
            these = [r for r in every if name in ("all", r["class"])]
            if these:
                K, G = (statistics(pairs(these, q, f"{q}_model")) for q in "KG")
                rows.append([label, name, len(these), *K, *G])
    columns = ("model", "crystals", "number", *(f"{q}: {s}" for q in "KG" for s in STATISTICS))
    note = (
        "Model against PBE. The slope is that of the line through the origin, which the hardest crystals "
        "decide; the median ratio counts all alike."
    )
    return Table("Bulk (K) and shear (G) modulus of relaxed binary crystals", columns, rows, 2, note)


def estimators_table(models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    rows = []
    for label, of in models.items():
        every = fit_to_compare(of)
        there = [{**r, "K_at": r["at_dft"][0], "G_at": r["at_dft"][1]} for r in every if r["at_dft"]]
        kinds = (
            ("relaxed, atoms follow the strain", every, "K_model", "G_model"),
            ("relaxed, clamped ions", every, "K_clamped", "G_clamped"),
            ("relaxed, clamped ions, stress over ±1 %", every, "K_around", "G_around"),
            ("those stable at DFT's crystal too: relaxed", there, "K_model", "G_model"),
            ("those stable at DFT's crystal too: at DFT's crystal", there, "K_at", "G_at"),
        )
        for words, these, K, G in kinds:
            if these:
                ratios = [bootstrap(pairs(these, q, m), median_ratio, 1000) for q, m in (("K", K), ("G", G))]
                rows.append([label, words, len(these), *ratios, None])
        if every:
            rows[-1][-1] = bootstrap([100 * r["volume_change"] for r in every], np.median, 1000)
    columns = ("model", "moduli", "number", "K: median ratio", "G: median ratio", "median volume change / %")
    note = (
        "DFT's atoms follow the strain. matcalc keeps those of the model clamped and strains it by up to 1 % "
        "(6 % in shear). Where stress over ±1 % gives another modulus than the derivative, the model's "
        "energy is not smooth on that scale. At DFT's crystal nothing is relaxed, "
        "and the moduli are those of stress against strain: a difference between both "
        "comes from the volume, the rest is curvature."
    )
    return Table("The same by other estimators", columns, rows, 3, note)


def states_table(models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    rows = []
    for label, of in models.items():
        every = [r for r in fit_to_compare(of) if r["comparable"]]
        kinds = dict.fromkeys((r["family"], r["prototype"]) for r in every)
        families = dict.fromkeys(family for family, _ in kinds)
        for family, prototype in [*((f, "all") for f in families), *kinds]:
            these = [r for r in every if r["family"] == family and prototype in ("all", r["prototype"])]
            B = pairs(these, "B0", "B0_model")
            volumes = bootstrap(pairs(these, "V0", "V0_model"), median_ratio, 1000)
            at_dft = bootstrap(pairs(these, "B0", "B_at_dft"), median_ratio, 1000)
            rows.append([label, family, prototype, len(these), *statistics(B), at_dft, volumes])
    columns = ("model", "set", "prototype", "number", *(f"B0: {s}" for s in STATISTICS))
    columns += ("B at DFT's V0: median ratio", "V0: median ratio")
    note = (
        "Against all-electron PBE without spin (acwf). Left out, though their rows are kept: "
        f"{' '.join(MAGNETIC)}, which are magnetic or have f electrons that pseudopotentials keep in "
        f"the core; and of the oxides {' '.join(WITH_U)}, to which the Materials Project adds U."
    )
    return Table("Equations of state of unaries and oxides", columns, rows, 2, note)


def lost_table(*sets: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    rows = []
    for models, name in zip(sets, ("binaries", "acwf"), strict=True):
        for label, of in models.items():
            reasons = Counter(why_not(r) for r in of.values())
            compared = reasons.pop(None, 0)
            rows.append([label, name, "compared", compared])
            rows += [[label, name, reason, n] for reason, n in sorted(reasons.items())]
            saddles = sum(not r.get("internal_modes_stable", True) for r in fit_to_compare(of))
            if saddles:
                rows.append([label, name, "compared, atoms on a saddle of the model's energy", saddles])
    return Table("What was compared, and what was not", ("model", "set", "", "number"), rows)


def figures(rows: Mapping[str, Any], states: Mapping[str, Any]) -> dict[str, tuple[str, Figure]]:
    said = {label: fit_to_compare(of) for label, of in rows.items()}
    equations = {label: [r for r in fit_to_compare(of) if r["comparable"]] for label, of in states.items()}
    return {
        "elastic_ratios.png": (
            "Model / PBE of bulk and shear moduli of binary crystals, and of the bulk moduli of acwf's "
            "equations of state: share of the crystals, and medians (dashed); what lies beyond is in the "
            "first and the last bin.",
            draw_ratios(said, equations),
        ),
        "elastic_parity.png": ("Moduli of binary crystals, model against PBE.", draw_parity(said)),
    }


def draw_ratios(said: Mapping[str, Sequence[Any]], equations: Mapping[str, Sequence[Any]]) -> Figure:
    import matplotlib.pyplot as plt

    from jaxmlip.figures import COLOURS

    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained", sharey=True)
    panels = ((said, "K", "K_model", "bulk modulus K"), (said, "G", "G_model", "shear modulus G"))
    bins = np.geomspace(0.1, 4, 49)
    for ax, (models, q, m, words) in zip(
        axes, (*panels, (equations, "B0", "B0_model", "acwf, $B_0$")), strict=True
    ):
        for k, (label, of) in enumerate(models.items()):
            xy = pairs(of, q, m)
            if not len(xy):
                continue
            colour, ratio = COLOURS[k % len(COLOURS)], np.clip(xy[:, 1] / xy[:, 0], bins[0], bins[-1])
            share = np.full(len(ratio), 100 / len(ratio))
            style = ("-", "--", "-.", ":")[k % 4]
            ax.hist(ratio, bins, weights=share, histtype="step", color=colour, ls=style, lw=1.4, label=label)
            ax.axvline(median_ratio(xy), color=colour, ls=(0, (4, 2)), lw=0.9)
        ax.axvline(1, color="k", lw=0.9)
        ax.set(xscale="log", xlabel=f"{words}: model / PBE", xlim=(bins[0], bins[-1]))
        ticks = (0.1, 0.2, 0.5, 1, 2, 4)
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
    axes[0].set_ylabel("share of crystals / %")
    axes[0].legend(frameon=False, fontsize="x-small", loc="upper left")
    plt.close(figure)
    return figure


def draw_parity(said: Mapping[str, Sequence[Any]]) -> Figure:
    import matplotlib.pyplot as plt

    from jaxmlip.figures import COLOURS

    shape = (2, max(1, len(said)))
    figure, axes = plt.subplots(
        *shape, figsize=(1 + 3 * shape[1], 6), layout="constrained", squeeze=False, sharex="row", sharey="row"
    )
    for column, (label, of) in enumerate(said.items()):
        for ax, quantity, words in zip(axes[:, column], "KG", ("bulk", "shear"), strict=True):
            xy = pairs(of, quantity, f"{quantity}_model")
            if len(xy) > 500:
                ax.hexbin(*xy.T, xscale="log", yscale="log", gridsize=45, bins="log", cmap="Blues", mincnt=1)
            else:
                ax.plot(*xy.T, "o", ms=3, color=COLOURS[0], alpha=0.7)
            ends = np.array([max(0.1, 0.8 * xy.min(initial=np.inf)), 1.25 * xy.max(initial=0.1)])
            ends = ends if len(xy) else np.array([1.0, 10.0])
            ax.plot(ends, ends, "k-", lw=0.8)
            if len(xy):
                ax.plot(ends, slope(xy) * ends, "--", color=COLOURS[1], lw=1, label=f"slope {slope(xy):.2f}")
                ax.legend(frameon=False, fontsize="small")
            ax.set(xscale="log", yscale="log", xlabel=f"PBE {words} modulus / GPa")
        axes[0, column].set_title(label, fontsize="medium")
    for ax, words in zip(axes[:, 0], ("bulk", "shear"), strict=True):
        ax.set_ylabel(f"model's {words} modulus / GPa")
    plt.close(figure)
    return figure


if __name__ == "__main__":
    run(main, Settings)
