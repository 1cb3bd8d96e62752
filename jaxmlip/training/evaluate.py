"""Errors and slopes of a potential against labels, for each property, element and material."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from jaxtyping import Float, Int

from jaxmlip.crystals import batches, batching
from jaxmlip.crystals.graph import CrystalGraph
from jaxmlip.data.batch import Example
from jaxmlip.data.dataset import Split
from jaxmlip.data.labels import PROPERTIES, Averages, Frequencies
from jaxmlip.potential import Potential
from jaxmlip.system.console import note, say
from jaxmlip.system.files import check_folder, write_whole, writing_folder
from jaxmlip.system.progress import track
from jaxmlip.system.tables import Estimate, Table, show
from jaxmlip.training.config import ConfigError, DataConfig, check_paths
from jaxmlip.training.errors import (
    Comparison,
    Error,
    Pair,
    as_record,
    by_element,
    by_material,
    errors,
    shifted,
    units_told,
)
from jaxmlip.training.figures import parity
from jaxmlip.training.functionals import select
from jaxmlip.training.losses import UNITS
from jaxmlip.training.references import References, refit
from jaxmlip.training.spectra import averages_of
from jaxmlip.training.splits import read_one
from jaxmlip.units import GPA_PER_EV_PER_A3
from jaxmlip.zoo.load import load

if TYPE_CHECKING:
    from jaxmlip.phonons import Lattice
    from jaxmlip.phonons.modes import Modes

MESH = 8  # wave vectors along each axis, for averages over modes
COLUMNS = 200  # of third order, of each crystal: there may be thousands


def compare(potential: Potential, split: Split) -> Comparison:
    """Predictions for every example of `split`, beside its labels, computed batch by batch.

    Hessian columns and frequencies are computed crystal by crystal. A frequency of a measurement that belongs
    to no branch is compared with the nearest one.
    """
    found: list[dict[str, Pair]] = [{} for _ in range(len(split))]
    of = cache(partial(select, potential)) if potential.functionals else lambda functional: potential
    parts = batches.side_by_side(np.asarray(split.sizes), batches.MESSAGES)
    for batch, shape in track(parts, "energies and forces"):
        examples = [split[k] for k in batch]
        predictions = potential.predict_graphs([e.graph for e in examples], shape)
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
        shape = batching.shape_for([graph])
        columns = hessian_columns(of(functional), atoms, labels.columns, shape=shape)
        found["hessian"] = Pair(graph.species, labels.hessian, columns.reshape(labels.hessian.shape))
    if labels.third is not None:
        some = slice(None, None, -(-len(labels.third) // COLUMNS) or 1)
        if some.step > 1:
            note(
                f"constants of third order: every {some.step}th of {len(labels.third):,} columns is compared"
            )
        model = _third(of(functional), graph, labels.pairs[some])
        found["third"] = Pair(graph.species, labels.third[some], model)
    if labels.frequencies is not None:
        found["frequencies"] = Pair(graph.species, *_frequencies(of(functional), graph, labels.frequencies))
    if labels.averages is not None:
        found["averages"] = Pair(graph.species, *_averages(of(functional), graph, labels.averages))
    return found


def _third(
    potential: Potential, graph: CrystalGraph, pairs: Int[np.ndarray, "k 2"]
) -> Float[np.ndarray, "k N 3"]:
    """The model's constants of third order (eV/Å³) between these pairs of coordinates and all atoms."""
    from jaxmlip.derivatives.response import Response

    atoms = len(graph.species)
    found = np.empty((len(pairs), atoms, 3))
    response = Response(potential, graph, along=np.zeros((atoms, 3)))
    for first in np.unique(pairs[:, 0]):
        its = np.flatnonzero(pairs[:, 0] == first)
        turned = response.turned(np.eye(3 * atoms)[first].reshape(atoms, 3))
        for start, rows in turned.columns(pairs[its, 1].astype(int), total=3 * atoms):
            found[its[start : start + len(rows)]] = rows.reshape(-1, atoms, 3)
    return found


def _frequencies(
    potential: Potential, graph: CrystalGraph, labels: Frequencies
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The known frequencies of `labels`, and those of the model in the same cell, THz."""
    found = _modes(
        potential, graph, labels.masses, lambda lattice: lattice.modes(labels.q_points)
    ).frequencies
    nearest = np.abs(found[:, None, :] - labels.thz[:, :, None]).argmin(axis=2)
    model = np.where(labels.assigned[:, None], found, np.take_along_axis(found, nearest, axis=1))
    known = ~np.isnan(labels.thz)
    return labels.thz[known], model[known]


def _averages(
    potential: Potential, graph: CrystalGraph, labels: Averages
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """The averages of `labels`, and those of the model over a mesh in the same cell, in their scales."""
    mesh = tuple(np.where(graph.periodic[0], MESH, 1).tolist())
    modes = _modes(potential, graph, labels.masses, lambda lattice: lattice.mesh(mesh))
    its = (modes.frequencies, modes.weights, np.ones(modes.frequencies.shape[1], bool))
    model = averages_of(*(x[None] for x in (*its, labels.what, labels.at)), np.array([labels.width or 1.0]))
    return labels.values / labels.scale, np.asarray(model[0], float) / labels.scale


def _modes(
    potential: Potential,
    graph: CrystalGraph,
    masses: Float[np.ndarray, " N"],
    of: Callable[[Lattice], Modes],
) -> Modes:
    """Modes of the model in the cell of the labels, where it need not be at rest."""
    from jaxmlip.mechanics.elasticity import NotAtRestWarning
    from jaxmlip.phonons import Lattice

    cell, pbc = graph.cell[0], graph.periodic[0]
    atoms = Atoms(graph.numbers, graph.positions, masses=masses, cell=cell, pbc=pbc)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotAtRestWarning)
        return of(Lattice(potential, atoms))


def references_of(compared: Comparison, before: Float[np.ndarray, " elements"]) -> References:
    """Reference energies (eV, by atomic number), in place of `before`, that bring energies closest to labels.

    Raises ValueError if no crystal has an energy.
    """
    pairs = compared.get("energy", [])
    residual = np.array([float(p.dft - p.model) * len(p.species) for p in pairs])
    return refit([p.species for p in pairs], residual, before)


def table(title: str, rows: Mapping[str, Mapping[str, Error]]) -> Table:
    """Errors for a terminal, a row for each key and property."""
    lines = []
    for key, found in rows.items():
        for name, e in found.items():
            numbers = (f"{e.mae:.4g}", f"{e.rmse:.4g}", Estimate.of(e.slope, e.interval), e.r_squared)
            lines.append((key, name, e.crystals, *numbers, UNITS[name]))
    return Table(title, ("", "property", "crystals", "MAE", "RMSE", "slope", "r²", "unit"), lines)


def main(
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
    """Prints errors of `model` against labels of `data`; writes evaluation.json and parity.png to `out`."""
    check_paths("--data", data.train)
    if out is not None:
        check_folder(out)
    potential = load(model, dtype, head)
    if potential.functionals:
        if data.functional is None:
            raise ConfigError(
                f"{model} has the functionals {', '.join(potential.functionals)}, needed one: name that of "
                "the data by --functional."
            )
        potential = select(potential, data.functional)
    crystals = read_one(data, split, potential)
    compared = compare(potential, crystals)
    if not compared:
        raise ConfigError(
            f"found no label that {potential.name} predicts in {len(crystals)} crystals of "
            f"{', '.join(data.train)}, needed some to compare with. `jaxmlip data inspect` shows the labels; "
            "for labels with other names give --option forces_key=NAME and the like."
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
        references = references_of(compared, np.zeros(max(potential.elements) + 1))
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
        print(json.dumps(record, indent=1))  # ASCII, so that no control character reaches a terminal
        return
    show(table(f"{potential.name}: {len(crystals)} crystals", {"all": everything}))
    if len(groups.get(by, ())) > 1:
        show(table(f"by {by}", groups[by]))
    if references is not None:
        say(str(references))
    for line in suspicions:
        say(f"units? {line}")
    if out is not None:
        note(f"written to {out / 'evaluation.json'} and {out / 'parity.png'}")
