"""Are thermal conductivities of a potential those of DFT, mode by mode, and does softness explain it?

    python -m experiments.conductivity --model m3gnet-mp-2021.2.8 --data FOLDER --out FOLDER

κ_SRME (`jaxmlip.studies.srme`) on phononDB-PBE's 103 binaries at 300 K by the protocol of B. Póta,
P. Ahlawat, G. Csányi and M. Simoncelli, arXiv:2408.00755: each crystal is relaxed in two stages; constants
come from displacements of 0.03 Å ("displaced") in the published supercells; phono3py solves Wigner's equation
with isotopes. "exact" has the derivatives of the potential instead, and all else alike. A crystal whose
relaxation fails or changes its space group, or that has imaginary modes, has no conductivity: its SRME is 2.

`--cubic N --wurtzite M --seed S` draw crystals before anything is run; `--materials` names them. `--shard K/N
--out shard-K` computes part K of N; `--join shard-1 shard-2` takes the rows of such folders over. A model
cured of its softness is one more `--model`: experiments.softening.cure leaves it in OUT/runs/…/model.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from experiments.conductivity_results import METHODS, figures, findings, softness_table, tables
from experiments.datasets import data_file
from jaxmlip.cli.screen import shard_of
from jaxmlip.crystals.symmetry import symmetry_dataset
from jaxmlip.phonons.cells import import_phono3py
from jaxmlip.studies.conductivity import hashed
from jaxmlip.studies.phonondb import STRUCTURES, Spectrum
from jaxmlip.studies.srme import (
    TEMPERATURE,
    WORST,
    ModeConductivity,
    Reference,
    drawn,
    read_published,
    read_references,
    srme,
)
from jaxmlip.studies.study import Study, check_known, load_models, run
from jaxmlip.system.allocator import give_memory_back
from jaxmlip.system.arguments import DType, Models, above_zero, at_least

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxmlip.phonons.transport import Conductivity
    from jaxmlip.potential import Potential

FOLDER = "phonondb_PBE_103"
PARTS = "wave-vectors"  # in the folder of the study
DEFAULTS = ("chgnet-0.3.0", "m3gnet-mp-2021.2.8", "m3gnet-matpes-pbe-2025.1")
FMAX, STEPS = 1e-4, 300  # eV/Å, and per stage: the published relaxations
NO_SHEAR = (True, True, True, False, False, False)
SYMPREC = 1e-5  # Å
BOUNDARY = 1e6  # µm
# They choose rows, and change none.
CHOICES = ("methods", "materials", "cubic", "wurtzite", "seed", "shard", "join")


@dataclass(frozen=True)
class Settings:
    """Are thermal conductivities of a potential those of DFT, mode by mode, and does softness explain it?"""

    model: Models = ()  # default: chgnet-0.3.0, m3gnet-mp-2021.2.8 and m3gnet-matpes-pbe-2025.1
    data: Path | None = None  # folder with phonondb_PBE_103/; default: JAXMLIP_DATA
    out: Path = Path("conductivity")
    methods: tuple[str, ...] = METHODS  # how constants are obtained: displaced, exact
    step: float = 0.03  # Å, of displacements
    dtype: DType = "float64"  # published runs have float32
    materials: tuple[str, ...] = ()  # formulas, or ids such as mp-22905; default: those drawn, or all
    cubic: int | None = None  # this many rock salts and zinc blendes, drawn at random; default: all
    wurtzite: int | None = None  # this many wurtzites; default: all
    seed: int = 0  # of the draw
    shard: str | None = None  # K/N computes part K of N, from 1 on
    join: tuple[Path, ...] = ()  # folders of other shards, whose rows are taken over


def main(settings: Settings) -> None:
    import_phono3py()
    check_known("method", settings.methods, METHODS)
    above_zero(step=settings.step)
    at_least(0, cubic=settings.cubic, wurtzite=settings.wurtzite)
    part, parts = shard_of(settings.shard)
    folder = data_file(settings.data, FOLDER)
    references, every = read_references(folder), read_published(folder)
    chosen = asked_for(references, settings)
    models = settings.model or DEFAULTS
    # A folder may hold a model trained further under the name of a published one.
    published = {name: run for name, run in every.items() if name in models}
    potentials = load_models(models, settings.dtype)
    study = Study("conductivity", settings, potentials, CHOICES)
    study.join(settings.join)
    materials = {f"{r.material.formula} ({r.material.id})": r for r in chosen}
    found = {}
    for label in study.potentials:
        known = study.known(label, materials, lambda r: r.unit.numbers)
        conduct(study, settings, label, dict(list(known.items())[part::parts]))
        keys = [f"{label} | {name} | {method}" for method in settings.methods for name in known]
        found[label] = list(study.done(keys).values())
    softness = softness_table(every, {r.material.id: r.dft.kappa for r in references})
    shown = [*tables(found, published), softness] if any(found.values()) else []
    study.write(shown, figures(found, published), findings(found, published))


def asked_for(references: Sequence[Reference], settings: Settings) -> list[Reference]:
    """The crystals of `--materials`, or those drawn, in the order of the data set.

    Raises ValueError for a crystal that is not there, and if both are asked for.
    """
    if not settings.materials:
        return drawn(references, settings.seed, settings.cubic, settings.wurtzite)
    if (settings.cubic, settings.wurtzite) != (None, None):
        raise ValueError("found --materials and a number to be drawn, needed one of both.")
    names = [{r.material.id, r.material.formula} for r in references]
    if unknown := set(settings.materials).difference(*names):
        raise ValueError(
            f"found --materials {min(unknown)}, which none of the {len(references)} crystals is; needed "
            f"formulas or ids, such as {references[0].material.formula} or {references[0].material.id}."
        )
    return [r for r, its in zip(references, names, strict=True) if its & set(settings.materials)]


def conduct(study: Study, settings: Settings, label: str, materials: dict[str, Reference]) -> None:
    """Stores rows of all materials: at rest, and of each method."""
    potential = study.potentials[label]

    def measure(key: str) -> dict[str, Any]:
        _, name, what = key.split(" | ")
        reference = materials[name]
        if what == "at rest":
            return relaxed(potential, reference.unit)
        row = {"model": label, "method": what, **described(reference)}
        rest = study.rows[f"{label} | {name} | at rest"]
        return row | conducted(potential, reference, rest, what, settings.step, study.folder / PARTS)

    kinds = ("at rest", *settings.methods)
    study.each(f"κ, {label}", [f"{label} | {name} | {kind}" for name in materials for kind in kinds], measure)


def described(reference: Reference) -> dict[str, Any]:
    m = reference.material
    return {"id": m.id, "formula": m.formula, "structure": m.structure, "kappa_dft": reference.dft.kappa}


def relaxed(potential: Potential, crystal: Atoms) -> dict[str, Any]:
    """The row of a crystal relaxed as published, in two stages, of which it may be short of convergence.

    Both leave out shear. The first keeps the space group; the second does not, and its end is taken unless
    spglib finds another group there. Raises ValueError if the crystal falls apart.
    """
    from ase.constraints import FixSymmetry
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE

    from jaxmlip.mechanics.calculator import Calculator
    from jaxmlip.mechanics.relaxation import quiet

    atoms, ends, converged, steps = crystal.copy(), [], [], []
    atoms.calc = Calculator(potential)
    with quiet():
        atoms.set_constraint(FixSymmetry(atoms))
        moving = FrechetCellFilter(atoms, mask=NO_SHEAR)
        for stage in range(2):
            if stage == 1:
                atoms.set_constraint()
            descent = FIRE(moving, logfile=None)
            converged.append(bool(descent.run(fmax=FMAX, steps=STEPS)))
            steps.append(descent.nsteps)
            ends.append(atoms.copy())
    groups = [group_number(x) for x in ends]
    kept = int(groups[0] == groups[1])
    end = ends[kept]
    return {
        "cell": end.cell.array,
        "scaled": end.get_scaled_positions(wrap=False),
        "stage": kept + 1,
        "space_group": groups[kept],
        "converged": converged,
        "steps": steps,
        "volume_ratio": end.cell.volume / crystal.cell.volume,
    }


def group_number(atoms: Atoms) -> int:
    """The number of the space group that spglib finds; 0 if it finds none."""
    found = symmetry_dataset(atoms, SYMPREC)
    return 0 if found is None else int(found.number)


def conducted(
    potential: Potential, reference: Reference, rest: dict[str, Any], method: str, step: float, parts: Path
) -> dict[str, Any]:
    """What a row has of one method: κ (W/m/K) and SRME, frequencies against DFT's, or why κ was refused.

    Finished wave vectors, of which a wurtzite has minutes, are kept in a folder in `parts`.
    """
    from jaxmlip.phonons.imaginary import ImaginaryModesError, imaginary
    from jaxmlip.phonons.third import SmallSupercellWarning, second_order, third_order
    from jaxmlip.phonons.transport import conductivity

    if "failed" in rest:
        return refused(f"relaxation failed: {rest['failed']}")
    if STRUCTURES.get(rest["space_group"]) != reference.material.structure:
        return refused(f"relaxed to space group {rest['space_group']}")
    atoms = Atoms(reference.unit.numbers, cell=rest["cell"], scaled_positions=rest["scaled"], pbc=True)
    how: dict[str, Any] = {"primitive": reference.primitive, "method": method}
    how |= {"step": step} if method == "displaced" else {}
    begun = time.perf_counter()
    second = second_order(potential, atoms, reference.second, **how)
    give_memory_back()
    thz, _ = second.modes(reference.dft.q_points)
    row = compared(thz, reference) | {"volume_ratio": rest["volume_ratio"]}
    bad = imaginary(reference.dft.q_points, thz)
    if bad.any():
        return row | refused(f"imaginary modes at {weighed(bad, reference):.0%} of wave vectors")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", SmallSupercellWarning
        )  # the published supercells; rows say by how much
        third = third_order(potential, atoms, reference.third, **how)
    give_memory_back()  # that forces of 512 atoms took; the mesh needs other sizes
    constants, begun = time.perf_counter() - begun, time.perf_counter()
    asked = {"mesh": reference.material.mesh, "temperatures": (TEMPERATURE,), "boundary": BOUNDARY}
    try:
        found = conductivity(third, second, path=parts / hashed(third.fc3, second.fc2), **asked)
    except ImaginaryModesError as error:
        return row | refused(str(error))
    checks = {name: getattr(third.checks, name) for name in ("largest", "sum_rule", "permutation", "repeat")}
    seconds = {"constants": constants, "conductivity": time.perf_counter() - begun}
    return row | measured(found, reference) | {"third": checks, "seconds": seconds}


def refused(reason: str) -> dict[str, Any]:
    return {"refused": reason, "kappa": None, "srme": WORST}


def weighed(bad: np.ndarray, reference: Reference) -> float:
    """The share of wave vectors in the whole mesh."""
    return float(np.average(bad, weights=reference.dft.weights))


def measured(found: Conductivity, reference: Reference) -> dict[str, Any]:
    """κ and SRME of a calculation. Raises ValueError if it is not a number above zero."""
    model = ModeConductivity.of(found)
    if not (np.isfinite(model.shares).all() and model.kappa > 0):
        raise ValueError(f"found a conductivity of {model.kappa} W/m/K, needed a number above zero.")
    coherent = float(np.trace(found.coherences[0]) / 3)
    error = srme(model, reference.dft, reference.mesh)
    return {"refused": "", "kappa": model.kappa, "coherences": coherent, "srme": error}


def compared(thz: np.ndarray, reference: Reference) -> dict[str, Any]:
    """The spectrum (THz), and ratios of its mean and highest frequency to DFT's."""
    spectrum, dft = Spectrum.of(thz, reference.dft.weights), reference.material.dft
    ratios = {"mean_ratio": spectrum.mean / dft.mean, "highest_ratio": spectrum.maximum / dft.maximum}
    return {"spectrum": asdict(spectrum), **ratios}


if __name__ == "__main__":
    run(main, Settings)
