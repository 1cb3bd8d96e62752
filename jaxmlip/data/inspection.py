"""Contents of a set of labelled crystals, and the crystals that look wrong: `inspect`."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii

from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.system.files import check_file
from jaxmlip.units import GPA_PER_EV_PER_A3

ROBUST_SIGMA = 6.0  # of the energies per atom about a fit by composition
STRONG_FORCE = 25.0  # eV/Å
NET_FORCE = 1e-2  # eV/Å per atom; zero if translations leave the energy unchanged
STRONG_STRESS = 500.0  # GPa, of the largest component; the centre of the Earth has 360
CLOSE = 0.5  # of the sum of two covalent radii
CONFLICT = 1e-3  # eV/atom between two calculations of one crystal
PER_ATOM = 0.2  # largest ratio of scatters for which energies count as energies per atom
SAME, NEAR = 1e-6, 1e-2  # Å
REACH = 4.0  # Å; larger distances are ignored
QUANTITIES = {
    "atoms": "",
    "energy per atom": "eV",
    "largest force": "eV/Å",
    "RMS force": "eV/Å",
    "pressure": "GPa",
    "largest moment": "μB",
    "volume per atom": "Å³",
    "shortest distance": "Å",
}


class Spread(NamedTuple):
    """How many crystals have this quantity, and its spread."""

    count: int
    min: float
    median: float
    p99: float
    max: float


KINDS = {
    "energy": "eV/atom beside the fit by composition",
    "force": "eV/Å, the largest",
    "net force": "eV/Å per atom",
    "stress": "GPa, the largest component",
    "distance": "of the sum of two covalent radii",
    "conflict": "eV/atom beside an equal crystal",
}


class Outlier(NamedTuple):
    """A crystal that looks wrong: one of KINDS, and the number that shows it."""

    kind: str
    crystal: str
    value: float


@dataclass
class Inspection:
    """Counts, spreads of the QUANTITIES that have labels, and crystals that look wrong."""

    crystals: int = 0
    materials: int = 0
    elements: dict[str, int] = field(default_factory=dict)  # number of crystals with each
    properties: dict[str, int] = field(default_factory=dict)  # number of crystals with a label of each
    functionals: dict[str, int] = field(default_factory=dict)  # number of crystals; "": not stated
    spreads: dict[str, Spread] = field(default_factory=dict)
    outliers: list[Outlier] = field(default_factory=list)  # the worst of each kind first
    exact_duplicates: list[tuple[str, int]] = field(default_factory=list)  # name, number of the earlier one
    near_duplicates: list[tuple[str, int]] = field(default_factory=list)
    units: list[str] = field(default_factory=list)  # labels that look as if they were in another unit
    values: dict[str, np.ndarray] = field(default_factory=dict, repr=False)  # NaN: not known

    def as_dict(self) -> dict:
        """All entries but `values`, for JSON."""
        found = asdict(self) | {"spreads": {k: s._asdict() for k, s in self.spreads.items()}}
        found["outliers"] = [outlier._asdict() for outlier in self.outliers]
        del found["values"]
        return found


def inspect(crystals: Iterable[LabelledCrystal]) -> Inspection:
    """Statistics of a stream of crystals. Crystals are not kept: about 200 bytes of each are.

    Outliers are: energies per atom more than 6 robust standard deviations (1.4826 times the median absolute
    deviation) from a least-squares fit by composition; forces beyond 25 eV/Å; atoms closer than half the sum
    of their covalent radii; net forces beyond 0.01 eV/Å per atom; stresses with a component beyond 500 GPa;
    and equal crystals of different energy. If stresses look like kbar, or energies like energies per atom,
    `units` says so. Exact duplicates have the same atoms, in any order, in the same cell to 1e-6 Å; near
    duplicates agree to about 0.01 Å. Shifted copies are not found, nor near duplicates that round to
    different numbers.
    """
    found, values = Inspection(), {name: array("d") for name in QUANTITIES}
    materials, elements, properties, functionals = set(), Counter(), Counter(), Counter()
    names, fractions, exact, near = [], [], {}, {}
    for number, crystal in enumerate(crystals):
        atoms, labels = crystal.atoms, crystal.labels
        names.append(crystal.name or f"crystal {number}")
        materials.add(crystal.material)
        species, counts = np.unique(atoms.numbers, return_counts=True)
        elements.update(species.tolist())
        properties.update(labels.known)
        functionals[crystal.functional] += 1
        fractions.append((species.astype(np.uint8), (counts / len(atoms)).astype(np.float32)))
        for name, value in _quantities(crystal).items():
            values[name].append(value)
        if labels.stress is not None:
            stress = float(np.abs(labels.stress).max() * GPA_PER_EV_PER_A3)
            if stress > STRONG_STRESS:
                found.outliers.append(Outlier("stress", names[-1], stress))
        ratio = _closest(atoms)
        values["shortest distance"].append(ratio[0])
        if ratio[1] < CLOSE:
            found.outliers.append(Outlier("distance", names[-1], ratio[1]))
        if labels.forces is not None:
            strongest = values["largest force"][-1]
            if strongest > STRONG_FORCE:
                found.outliers.append(Outlier("force", names[-1], strongest))
            net = float(np.linalg.norm(labels.forces.sum(axis=0)) / len(atoms))
            if net > NET_FORCE:
                found.outliers.append(Outlier("net force", names[-1], net))
        first = exact.setdefault(fingerprint(atoms, SAME), number)
        alike = near.setdefault(fingerprint(atoms, NEAR), number)
        if first != number:
            found.exact_duplicates.append((names[-1], first))
            apart = values["energy per atom"][-1] - values["energy per atom"][first]
            if abs(apart) > CONFLICT:
                found.outliers.append(Outlier("conflict", names[-1], apart))
        elif alike != number:
            found.near_duplicates.append((names[-1], alike))
    found.crystals, found.materials = len(names), len(materials)
    found.elements = {chemical_symbols[z]: n for z, n in sorted(elements.items())}
    found.properties, found.functionals = dict(properties), dict(functionals)
    found.values = {name: np.array(value) for name, value in values.items()}
    found.spreads = {n: s for n, v in found.values.items() if (s := _spread(v)) is not None}
    found.outliers += _energy_outliers(names, found.values["energy per atom"], fractions)
    found.units = _units_told(found, fractions)
    order = list(KINDS)
    found.outliers.sort(
        key=lambda o: (order.index(o.kind), o.value if o.kind == "distance" else -abs(o.value))
    )
    return found


def fingerprint(atoms: Atoms, resolution: float) -> int:
    """A hash that two crystals share if cell, positions and elements agree to `resolution` (Å).

    Positions that differ by lattice vectors along which the crystal repeats are equal.
    """
    cell = np.round(atoms.cell.array / resolution).astype(np.int64)
    whole = atoms.cell.complete()
    steps = np.maximum(1, np.round(whole.lengths() / resolution)).astype(np.int64)
    places = np.round(whole.scaled_positions(atoms.positions) * steps).astype(np.int64)
    places[:, atoms.pbc] %= steps[atoms.pbc]
    rows = np.column_stack([atoms.numbers, places])
    rows = rows[np.lexsort(rows.T[::-1])]
    digest = hashlib.blake2b(cell.tobytes() + rows.astype(np.int64).tobytes(), digest_size=8)
    return int.from_bytes(digest.digest())


def check_figure(path: Path) -> None:
    """Raises ValueError if `path` does not name an image, and PlaceError if no file can be written."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower()[1:] not in known:
        raise ValueError(f"found the figure {path}, needed a name that ends in .png, .pdf or .svg.")
    check_file(path)


def figure(found: Inspection, path: Path) -> None:
    """Histograms of the energy per atom, forces, pressure, atoms per crystal, and of the elements."""
    from matplotlib.figure import Figure

    from jaxmlip.system.plots import COLOURS

    shown = ("energy per atom", "largest force", "pressure", "atoms")
    shown = [name for name in shown if name in found.spreads]
    drawing = Figure(figsize=(3.2 * max(2, len(shown)), 5.6), layout="constrained")
    grid = drawing.add_gridspec(2, max(2, len(shown)))
    for k, name in enumerate(shown):
        axes = drawing.add_subplot(grid[0, k])
        values = found.values[name]
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, [0.1, 99.9])
        axes.hist(np.clip(values, low, high), bins=40, color=COLOURS[k])
        unit = QUANTITIES[name]
        axes.set(xlabel=f"{name} ({unit})" if unit else "atoms per crystal", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
    drawing.axes[0].set_ylabel("crystals")
    axes = drawing.add_subplot(grid[1, :])
    axes.bar(list(found.elements), list(found.elements.values()), color=COLOURS[4])
    axes.set(ylabel="crystals with it", xlim=(-0.8, max(len(found.elements), 8) - 0.2))
    axes.tick_params(axis="x", labelrotation=90 if len(found.elements) > 30 else 0)
    axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=150)


def _quantities(crystal: LabelledCrystal) -> dict[str, float]:
    atoms, labels = crystal.atoms, crystal.labels
    size, unknown = len(atoms), float("nan")
    forces = None if labels.forces is None else np.linalg.norm(labels.forces, axis=1)
    return {
        "atoms": size,
        "energy per atom": unknown if labels.energy is None else labels.energy / size,
        "largest force": unknown if forces is None else forces.max(),
        "RMS force": unknown if forces is None else np.sqrt(np.mean(forces**2) / 3),  # of a component
        "pressure": unknown if labels.stress is None else -np.trace(labels.stress) / 3 * GPA_PER_EV_PER_A3,
        "largest moment": unknown if labels.magmoms is None else np.abs(labels.magmoms).max(),
        "volume per atom": atoms.get_volume() / size if atoms.cell.rank == 3 else unknown,
    }


def _closest(atoms: Atoms) -> tuple[float, float]:
    """The shortest distance d (Å) and the least d / (sum of covalent radii); NaN if none is below REACH."""
    from vesin import NeighborList

    i, j, d = NeighborList(cutoff=REACH, full_list=False).compute(
        atoms.positions, atoms.cell.complete().array, periodic=atoms.pbc, quantities="ijd"
    )
    if not len(d):
        return float("nan"), float("nan")
    radii = covalent_radii[atoms.numbers]
    return float(d.min()), float((d / (radii[i] + radii[j])).min())


def _spread(values: np.ndarray) -> Spread | None:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    return Spread(len(known), *(float(x) for x in np.percentile(known, [0, 50, 99, 100])))


def _energy_outliers(names: list[str], energies: np.ndarray, fractions) -> list[Outlier]:
    """Crystals whose residual in the fit by composition lies far beyond the others."""
    known = np.flatnonzero(np.isfinite(energies))
    if len(known) < 10:  # too few to tell an outlier
        return []
    residuals = _residuals(energies[known], [fractions[k] for k in known])
    residuals -= np.median(residuals)
    sigma = max(1.4826 * np.median(np.abs(residuals)), 1e-4)  # eV/atom; the scatter of DFT itself
    far = np.flatnonzero(np.abs(residuals) > ROBUST_SIGMA * sigma)
    return [Outlier("energy", names[known[k]], float(residuals[k])) for k in far]


def _residuals(energies: np.ndarray, fractions) -> np.ndarray:
    """Residuals of a least-squares fit of `energies` by the fractions of elements."""
    gram, right = np.zeros((119, 119)), np.zeros(119)
    for energy, (species, parts) in zip(energies, fractions, strict=True):
        gram[np.ix_(species, species)] += np.outer(parts, parts)
        right[species] += parts * energy
    fitted = np.linalg.lstsq(gram, right, rcond=1e-10)[0]
    return energies - np.array([parts @ fitted[species] for species, parts in fractions])


def _units_told(found: Inspection, fractions) -> list[str]:
    """Lines that name labels which look as if they were in another unit."""
    told = []
    strong = sum(outlier.kind == "stress" for outlier in found.outliers)
    stresses = found.properties.get("stress", 0)
    if strong > stresses / 2:
        told.append(
            f"stress: {strong} of {stresses} exceed {STRONG_STRESS:g} GPa if they are in eV/Å³. Are they in "
            "kbar (1 eV/Å³ = 1602 kbar) or in GPa (1 eV/Å³ = 160.2 GPa)?"
        )
    sizes, energies = found.values["atoms"], found.values["energy per atom"]
    known = np.flatnonzero(np.isfinite(energies))
    if len(known) < 10 or len(set(sizes[known])) < 2:
        return told
    # Energies that depend on the composition alone, and not on the size of the crystal, are not totals.
    as_totals = _residuals(energies[known], [fractions[k] for k in known])
    as_given = _residuals((energies * sizes)[known], [fractions[k] for k in known])
    if np.std(as_given) < PER_ATOM * np.std(as_totals):
        told.append(
            "energy: the labels do not grow with the number of atoms, as if they were per atom; needed "
            "energies of whole crystals. --energy-key NAME multiplies by the number of atoms if NAME ends in "
            "per_atom."
        )
    return told
