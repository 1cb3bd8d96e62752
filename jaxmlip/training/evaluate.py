"""How far a potential is from labels: errors and slopes for each property, element and material."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.units import Bohr, Hartree, kcal, kJ, mol
from jaxtyping import Float
from rich.table import Table

from jaxmlip.crystals import batches, batching
from jaxmlip.crystals.graph import ELEMENTS, atomic_number
from jaxmlip.data.batch import Example
from jaxmlip.data.labels import PROPERTIES
from jaxmlip.derivatives.slopes import force_slope
from jaxmlip.potential import Potential
from jaxmlip.system.console import console, say
from jaxmlip.system.files import check_folder, write_whole, writing_folder
from jaxmlip.system.progress import track
from jaxmlip.training.fidelities import select
from jaxmlip.training.losses import UNITS
from jaxmlip.training.references import References, refit
from jaxmlip.units import GPA_PER_EV_PER_A3

if TYPE_CHECKING:
    from jaxmlip.training.config import DataConfig

SLOPED = ("forces", "stress", "magmoms", "hessian")  # energies have no origin that a slope could go through
CLEAR = 0.7  # r² from which on a slope tells of a unit
NEAR = 1.6  # the factor by which a slope may be off that of a unit
NEAREST = 0.2  # of the energy, and of the error before: what is left where a unit explains energies
KBAR, GPA = 10 * GPA_PER_EV_PER_A3, GPA_PER_EV_PER_A3
# Labels over what they should be, for labels in other units than those that the package takes them for.
FACTORS = {
    "stress": {
        -KBAR: "that is kbar with VASP's sign, needed eV/Å³, positive in tension",
        KBAR: "that is kbar, needed eV/Å³",
        GPA: "that is GPa, needed eV/Å³",
        -GPA: "that is GPa of compression, needed eV/Å³, positive in tension",
        -0.1: "that is GPa where VASP's kbar, positive in compression, was needed",
        -1 / KBAR: "that is eV/Å³ where VASP's kbar, positive in compression, was needed",
        -1.0: "that is the other sign: needed positive in tension (of a virial, -V σ)",
    },
    "forces": {
        Bohr / Hartree: "that is Hartree/Bohr, needed eV/Å",
        Bohr / (Hartree / 2): "that is Ry/Bohr, needed eV/Å",
        mol / kcal: "that is kcal/mol/Å, needed eV/Å",
        -1.0: "that is the gradient of the energy, needed forces",
    },
}
ENERGY_UNITS = {
    "Hartree, needed eV": Hartree,
    "Ry, needed eV": Hartree / 2,
    "kcal/mol, needed eV": kcal / mol,
    "kJ/mol, needed eV": kJ / mol,
}
DRAWS = 10_000_000  # frames drawn at most for the interval of one slope; it takes their memory


class Split(Protocol):
    """Examples by number, of which the sizes are known beforehand."""

    sizes: np.ndarray  # (n, 4): atoms, short bonds, long bonds, angles

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> Example: ...


@dataclass(frozen=True, eq=False)
class Pair:
    """One property of one crystal, from DFT and from the model, in the unit of UNITS."""

    species: np.ndarray  # of the crystal
    dft: np.ndarray
    model: np.ndarray


Comparison = dict[str, list[Pair]]  # by property; those without a label are left out


@dataclass(frozen=True)
class Error:
    """Model against DFT, over all components."""

    crystals: int
    values: int
    mae: float
    rmse: float
    slope: float | None  # Σxy / Σxx, x DFT, y model; None for energies and where all of DFT is zero
    interval: tuple[float, float] | None  # 95 %, by bootstrap over crystals; None for a single one
    r_squared: float | None  # of the line through the origin


def compare(potential: Potential, split: Split) -> Comparison:
    """Predictions for every example of `split`, beside its labels; batch by batch, not all in memory.

    Columns of a Hessian are computed crystal by crystal.
    """
    found: list[dict[str, Pair]] = [{} for _ in range(len(split))]
    of = cache(partial(select, potential)) if potential.functionals else lambda functional: potential
    parts = batches.side_by_side(np.asarray(split.sizes), batches.MESSAGES)
    for batch, room in track(parts, "energies and forces"):
        examples = [split[k] for k in batch]
        predictions = potential.predict_graphs([e.graph for e in examples], room)
        for k, example, prediction in zip(batch, examples, predictions, strict=True):
            found[k] = _pairs(of, example, prediction)
    return {p: pairs for p in PROPERTIES if (pairs := [f[p] for f in found if p in f])}


def _pairs(
    of: Callable[[str], Potential], example: Example, prediction: Mapping[str, Any]
) -> dict[str, Pair]:
    graph, labels, functional = example
    n = len(graph.species)
    units = {"energy": 1 / n, "forces": 1.0, "stress": GPA_PER_EV_PER_A3, "magmoms": 1.0}
    found = {}
    for name, unit in units.items():
        if name in labels.known and name in prediction:
            label = example.stress if name == "stress" else getattr(labels, name)
            dft, model = (np.asarray(x, float) * unit for x in (label, prediction[name]))
            found[name] = Pair(graph.species, dft, model)
    if labels.hessian is not None:
        from jaxmlip.derivatives.hessian import hessian_columns

        atoms = Atoms(graph.numbers, graph.positions, cell=graph.cell[0], pbc=graph.periodic[0])
        room = batching.capacity([graph])
        columns = hessian_columns(of(functional), atoms, labels.columns, room=room)
        found["hessian"] = Pair(graph.species, labels.hessian, columns.reshape(labels.hessian.shape))
    return found


def fit_references(compared: Comparison, before: Float[np.ndarray, " elements"]) -> References:
    """Reference energies (eV, by atomic number) with which energies come closest to labels, not `before`.

    Raises ValueError where no crystal has an energy.
    """
    pairs = compared.get("energy", [])
    residual = np.array([float(p.dft - p.model) * len(p.species) for p in pairs])
    return refit([p.species for p in pairs], residual, before)


def shifted(compared: Comparison, shift: Float[np.ndarray, " elements"]) -> Comparison:
    """`compared` with energies of the model that have `shift` (eV, by atomic number) added."""
    energy = [replace(p, model=p.model + shift[p.species].mean()) for p in compared.get("energy", [])]
    return {**compared, "energy": energy} if energy else compared


def error(pairs: Sequence[Pair], sloped: bool = True) -> Error:
    """Errors and, where `sloped`, the slope through the origin over all components of `pairs`."""
    difference = np.concatenate([np.ravel(p.model - p.dft) for p in pairs]).astype(float)
    slope = None
    if sloped and any(np.any(p.dft) for p in pairs):
        resamples = max(min(2000, DRAWS // len(pairs)), 20)
        slope = force_slope([p.model for p in pairs], [p.dft for p in pairs], resamples=resamples)
    return Error(
        crystals=len(pairs),
        values=len(difference),
        mae=float(np.abs(difference).mean()),
        rmse=float(np.sqrt((difference**2).mean())),
        slope=None if slope is None else slope.slope,
        interval=None if slope is None or len(pairs) == 1 else slope.interval,
        r_squared=None if slope is None or np.isnan(slope.r_squared) else slope.r_squared,
    )


def errors(compared: Comparison) -> dict[str, Error]:
    """By property."""
    return {name: error(pairs, name in SLOPED) for name, pairs in compared.items()}


def by_material(compared: Comparison) -> dict[str, dict[str, Error]]:
    """By reduced formula, and by property."""
    groups: dict[str, Comparison] = defaultdict(lambda: defaultdict(list))
    for name, pairs in compared.items():
        for pair in pairs:
            formula = Atoms(atomic_number(pair.species)).get_chemical_formula("metal", empirical=True)
            groups[formula][name].append(pair)
    return {formula: errors(groups[formula]) for formula in sorted(groups)}


def by_functional(compared: Comparison, names: Sequence[str]) -> dict[str, dict[str, Error]]:
    """By functional, as the species of a potential with several tell it, and by property."""
    groups: dict[str, Comparison] = {name: defaultdict(list) for name in names}
    for prop, pairs in compared.items():
        for pair in pairs if names else ():
            groups[names[(int(pair.species[0]) - 1) // ELEMENTS]][prop].append(pair)
    return {name: errors(found) for name, found in groups.items()}


def by_element(compared: Comparison) -> dict[str, dict[str, Error]]:
    """By element, of the properties that atoms have: forces and magnetic moments."""
    groups: dict[int, Comparison] = defaultdict(lambda: defaultdict(list))
    for name in ("forces", "magmoms"):
        for pair in compared.get(name, ()):
            for z in np.unique(pair.species):
                own = pair.species == z
                groups[int(atomic_number(z))][name].append(
                    Pair(pair.species[own], pair.dft[own], pair.model[own])
                )
    return {chemical_symbols[z]: errors(groups[z]) for z in sorted(groups)}


def units_told(compared: Comparison) -> list[str]:
    """Lines that name labels which look as if they were in another unit, or of another sign, than is meant.

    A single factor between labels and model stands out where it is that of a unit, since models err by less.
    """
    found = []
    for name, factors in FACTORS.items():
        e = error(pairs) if (pairs := compared.get(name)) else None
        if e is None or not e.slope or e.r_squared is None or e.r_squared < CLEAR:
            continue
        off = {factor: abs(np.log(factor * e.slope)) for factor in factors if factor * e.slope > 0}
        factor = min(off, key=off.get, default=None)
        if factor is not None and off[factor] < np.log(NEAR):
            found.append(f"{name}: labels are {1 / e.slope:.4g} times the model's: {factors[factor]}")
    return found + _energy_unit_told(compared.get("energy", ()))


def _energy_unit_told(pairs: Sequence[Pair]) -> list[str]:
    """Of energies, which have no origin that a slope could go through, by which factor the error vanishes."""
    if not pairs:
        return []
    dft, model = np.array([(float(p.dft), float(p.model)) for p in pairs]).T
    atoms = np.array([len(p.species) for p in pairs])
    before = np.sqrt(np.mean((dft - model) ** 2))
    size = np.sqrt(np.mean(model**2))
    factors = {"energies per atom, needed those of whole crystals": atoms} if atoms.max() > 1 else {}
    for words, factor in (factors | ENERGY_UNITS).items():
        after = np.sqrt(np.mean((dft * factor - model) ** 2))
        if after < NEAREST * min(before, size):
            return [f"energy: labels look like {words}: {before:.3g} eV/atom of error would be {after:.3g}"]
    return []


def table(title: str, rows: Mapping[str, Mapping[str, Error]]) -> Table:
    """Errors for a terminal, a row for each key and property."""
    result = Table(title=title, title_justify="left")
    result.add_column("")
    result.add_column("property")
    for name in ("crystals", "MAE", "RMSE", "slope", "interval", "r²"):
        result.add_column(name, justify="right")
    result.add_column("unit")
    for key, found in rows.items():
        for name, e in found.items():
            result.add_row(
                key,
                name,
                str(e.crystals),
                f"{e.mae:.4g}",
                f"{e.rmse:.4g}",
                "-" if e.slope is None else f"{e.slope:.3f}",
                "-" if e.interval is None else f"{e.interval[0]:.3f} to {e.interval[1]:.3f}",
                "-" if e.r_squared is None else f"{e.r_squared:.3f}",
                UNITS[name],
            )
    return result


def as_record(found: Mapping[str, Any]) -> dict[str, Any]:
    """Nested errors for JSON."""
    return {k: vars(v) if isinstance(v, Error) else as_record(v) for k, v in found.items()}


def run(
    model: str,
    head: str | None,
    data: DataConfig,
    split: str,
    refit_references: bool,
    by: str,
    dtype: str,
    as_json: bool,
    out: Path | None,
) -> None:
    """Prints how far `model` is from the labels of `data`; writes evaluation.json and parity.png to `out`."""
    from jaxmlip.training.config import ConfigError, check_paths
    from jaxmlip.training.figures import parity
    from jaxmlip.training.splits import read_one
    from jaxmlip.zoo.load import load

    check_paths("--data", data.train)
    if out is not None:
        check_folder(out)
    potential = load(model, dtype, head)
    if potential.functionals:
        if data.functional is None:
            raise ConfigError(
                f"{model} has the functionals {', '.join(potential.functionals)}, needed --functional with "
                "that of the data."
            )
        potential = select(potential, data.functional)
    crystals = read_one(data, split, potential)
    compared = compare(potential, crystals)
    if not compared:
        raise ConfigError(
            f"found no label that {potential.name} predicts in {len(crystals)} crystals of "
            f"{', '.join(data.train)}, needed some to compare with. `jaxmlip data inspect` shows what they "
            "have; --option forces_key=NAME and the like name labels that are called otherwise."
        )
    record: dict[str, Any] = {
        "model": potential.name,
        "sha256": potential.manifest.get("sha256"),
        "data": list(data.train),
        "crystals": len(crystals),
        "units": UNITS,
    }
    record["units_told"] = suspicions = units_told(compared)
    references = None
    if refit_references:
        references = fit_references(compared, np.zeros(max(potential.elements) + 1))
        compared = shifted(compared, references.energies)
        record["reference_energies_shifted_by"] = {
            chemical_symbols[z]: references.energies[z] for z in references.fitted
        }
    record["all"] = as_record(everything := errors(compared))
    groups = {"material": by_material(compared), "element": by_element(compared)}
    record |= {f"by_{name}": as_record(rows) for name, rows in groups.items()}
    if out is not None:
        with writing_folder(out) as draft:
            write_whole(draft / "evaluation.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            parity({potential.name: compared}, draft / "parity.png")
    if as_json:
        print(json.dumps(record, indent=1))  # in ASCII: nothing in it steers a terminal
        return
    terminal = console(width=120)
    terminal.print(table(f"{potential.name}: {len(crystals)} crystals", {"all": everything}))
    if len(groups.get(by, ())) > 1:
        terminal.print(table(f"by {by}", groups[by]))
    if references is not None:
        terminal.print(str(references))
    for line in suspicions:
        say(f"units? {line}")
    if out is not None:
        say(f"written to {out / 'evaluation.json'} and {out / 'parity.png'}")
