"""Are crystals too soft as a whole, and under volume and shear alike?

    python -m experiments.softening.elastic --model A [--model B] --data FOLDER --out FOLDER

compares bulk and shear moduli with PBE on two sets that arXiv:2405.07105 did not use. The binary crystals of
the Materials Project (matcalc_benchmark: bulk_modulus_vrh, shear_modulus_vrh) are relaxed with the model,
cell and atoms. Their elastic tensors are exact second derivatives in which atoms follow the strain, as in
DFT; the moduli are means of Voigt's and Reuss's. Three comparisons stand beside them: exact moduli with
clamped ions; slopes of the stress over a strain of ±1 %, which show curvature around the minimum instead of
in it; and moduli at DFT's crystal, which exclude the effect of the model's lattice constants. The unaries and
oxides of acwf_eos_PBE are equations of state of all-electron PBE. The model's are fitted to seven volumes (94
to 106 %) with fixed fractional coordinates, as DFT's are.

Ratios are model / DFT for each material. Rows are kept batch by batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.datasets import ACWF, BINARIES, data_file, read_binaries, read_prototypes
from experiments.softening.elastic_results import (
    estimators_table,
    figures,
    lost_table,
    moduli_table,
    states_table,
)
from jaxmlip.crystals import batches, batching
from jaxmlip.studies.study import Study, load_models, run
from jaxmlip.system.arguments import Models
from jaxmlip.system.progress import track
from jaxmlip.units import GPA_PER_EV_PER_A3

if TYPE_CHECKING:
    from ase import Atoms

    from jaxmlip.mechanics.elasticity import Elasticity
    from jaxmlip.potential import Potential

SYMMETRY = 1e-3  # Å; relaxation in float32 keeps symmetry to about this
SPARE = 0.15  # of the shape of a batch, for new neighbours while crystals relax
STEP = 0.01  # strain to either side for slopes of the stress


@dataclass(frozen=True)
class Settings:
    """Are crystals too soft as a whole, under compression and under shear alike?

    Bulk and shear moduli of binary crystals, and equations of state, against PBE.
    """

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with matcalc_benchmark/ and acwf_eos_PBE/; default: JAXMLIP_DATA
    out: Path = Path("elastic")
    every: int = 1  # N takes every N-th material of both sets
    limit: int | None = None  # materials of each set at most
    fmax: float = 0.01  # eV/Å; crystals are relaxed until forces are below this …
    smax: float = 0.1  # … and stresses below this (GPa)
    steps: int = 300  # of a relaxation at most
    at_dft: bool = True  # also the moduli at DFT's crystal, which take about 40 % of the time
    batch: int = 200  # materials that are computed together, then saved


def main(settings: Settings) -> None:
    binaries = thinned(read_binaries(data_file(settings.data, BINARIES)), settings)
    prototypes = thinned(read_prototypes(data_file(settings.data, ACWF)), settings)
    potentials = load_models(settings.model)
    study = Study("elastic", settings, potentials)
    for label, potential in potentials.items():
        measure(study, label, potential, binaries, settings.batch, settings)
        measure_prototypes(study, label, potential.astype("float64"), prototypes, settings.batch)
    rows = {label: of_model(study, label, binaries) for label in potentials}
    states = {label: of_model(study, label, prototypes) for label in potentials}
    if not study.done():
        study.write([], {})
        return
    tables = [moduli_table(rows), estimators_table(rows), states_table(states), lost_table(rows, states)]
    study.write(tables, figures(rows, states))


def thinned(items: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Every `every`-th of `items`, at most `limit`. Raises ValueError for settings below 1."""
    if settings.every < 1 or settings.batch < 1 or (settings.limit is not None and settings.limit < 1):
        raise ValueError("found every, batch or limit below 1, needed at least 1.")
    return dict(list(items.items())[:: settings.every][: settings.limit])


def measure(
    study: Study,
    label: str,
    potential: Potential,
    entries: Mapping[str, Mapping[str, Any]],
    size: int,
    settings: Settings,
) -> None:
    """Stores a row for each crystal: moduli in GPa, the change of its volume, and warnings."""
    from jaxmlip.mechanics.elasticity import MESSAGES, elastic_tensors
    from jaxmlip.mechanics.relaxation import relax_many

    known, left = open_entries(study, label, entries)
    if not left:
        return
    graphs = {key: potential.graph(entry["atoms"]) for key, entry in track(known.items(), "neighbours")}
    # Shapes for all crystals: each batch takes one of these, so that programs are the same after a kill, too.
    shapes = batches.shapes_for(list(graphs.values()), MESSAGES, SPARE)
    home = {
        key: next(shape for shape in shapes if shape.fits(batching.exact_shape([graphs[key]])))
        for key in left
    }
    parts = [
        (shape, part)
        for shape in shapes
        for part in batches.chunks([key for key in left if home[key] == shape], size)
    ]

    def tensors(crystals: Sequence[Atoms]) -> list[Elasticity | ValueError]:
        found = elastic_tensors(potential, crystals, shapes, SYMMETRY)
        # float32 cannot tell a soft mode from a zero mode.
        again = [k for k, x in enumerate(found) if isinstance(x, ValueError)]
        exact = elastic_tensors(potential.astype("float64"), [crystals[k] for k in again], shapes, SYMMETRY)
        for k, x in zip(again, exact, strict=True):
            found[k] = x
        return found

    for shape, part in track(parts, f"moduli by {label}"):
        crystals = [entries[key]["atoms"] for key in part]
        aim = {"fmax": settings.fmax, "smax": settings.smax, "steps": settings.steps}
        relaxed = relax_many(potential, crystals, **aim, shape=shape)
        at_rest = [k for k, r in enumerate(relaxed) if r.converged]
        rested = [relaxed[k].atoms for k in at_rest]
        own = dict(zip(at_rest, tensors(rested), strict=True))
        around = dict(zip(at_rest, stress_slopes(potential, rested, shapes), strict=True))
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


def open_entries(
    study: Study, label: str, entries: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """The `entries` whose elements the potential knows, and the keys of those that have no row yet."""
    known = study.known(label, entries, lambda entry: entry["atoms"].numbers)
    return known, [key for key in known if f"{label} {key}" not in study.rows]


def stress_slopes(
    potential: Potential, crystals: Sequence[Atoms], shapes: Sequence[batching.BatchShape]
) -> list[np.ndarray]:
    """∂σ/∂ε (6, 6) in GPa between strains of ±STEP, for each crystal; atoms move with the cell alone."""
    from jaxmlip.mechanics.elasticity import MESSAGES, VOIGT

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
    for k, prediction in batches.each_predicted(potential, graphs, messages=MESSAGES, shapes=shapes):
        stress[k] = prediction["stress"]
    rows = stress[:, *np.transpose(VOIGT)].reshape(-1, 6, 2, 6)
    return list((rows[:, :, 0] - rows[:, :, 1]).swapaxes(1, 2) / (2 * STEP) * GPA_PER_EV_PER_A3)


def moduli(found: Elasticity, slopes: np.ndarray) -> dict[str, Any]:
    """Moduli of a crystal at rest; None if it is unstable against some strain."""
    row: dict[str, Any] = {}
    for name, C in (("model", found.C), ("clamped", found.clamped), ("around", (slopes + slopes.T) / 2)):
        row[f"K_{name}"], row[f"G_{name}"] = stable_moduli(replace(found, C=C)) or (None, None)
    return row | {
        "lowest_eigenvalue": found.eigenvalues[0],
        "internal_modes_stable": found.internal_modes_stable,
    }


def stable_moduli(found: Elasticity) -> list[float] | None:
    """K and G; None if the crystal is unstable against some strain."""
    return list(found.hill) if found.stable and found.resists_everything else None


def at_dft_crystal(found: Elasticity | ValueError | None) -> list[float] | None:
    """K and G of a crystal under stress, from ∂σ/∂ε, whose K is -V dp/dV; None if they do not exist."""
    if isinstance(found, ValueError | None):
        return None
    B = found.stress_strain
    return stable_moduli(replace(found, C=(B + B.T) / 2, stress=np.zeros((3, 3))))


def measure_prototypes(
    study: Study, label: str, potential: Potential, entries: Mapping[str, Mapping[str, Any]], size: int
) -> None:
    """Stores a row for each prototype: V₀ (Å³), B₀ (GPa) and B₁ of the model, and its B at DFT's V₀."""
    from jaxmlip.mechanics.equation_of_state import equations_of_state

    known, left = open_entries(study, label, entries)
    graphs = [potential.graph(entry["atoms"]) for entry in known.values()] if left else []
    shapes = batches.shapes_for(graphs, batches.MESSAGES)
    for part in track(list(batches.chunks(left, size)), f"equations of state by {label}"):
        with quiet():
            found = equations_of_state(potential, [entries[key]["atoms"] for key in part], shapes=shapes)
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
    """Silences warnings: unconverged crystals are recorded in rows, and short distances are usual here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def of_model(study: Study, label: str, entries: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    unknown = {"failed": "unknown elements"}
    return {key: study.rows.get(f"{label} {key}", unknown) for key in entries}


if __name__ == "__main__":
    run(main, Settings)
