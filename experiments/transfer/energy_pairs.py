"""Energies of the same structures in two functionals, from published files and from teacher sets."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.transfer.teacher_set.prototypes import ground_state
from jaxmlip.studies.study import StudyError
from jaxmlip.system.progress import track

if TYPE_CHECKING:
    from jaxmlip.data.dataset import Dataset
    from jaxmlip.data.labels import LabelledCrystal

ELEMENTS, DIMERS = "matcalc_elemental_refs_PBE_r2SCAN", "matbench_diatomics"
BOUND = 10.0  # eV/Å; models are not fitted to dimers with stronger repulsion
# Their curves jump by up to 30 eV between electronic states, in one functional or the other.
F_SHELL = (*range(57, 72), *range(89, 104))
# In a teacher set: if only one material has an element, fitting its energy makes this material agree.
FEWEST = 3


@dataclass(frozen=True)
class Part:
    """The crystals to compare, and those to fit the reference energies to."""

    name: str
    of: np.ndarray  # which
    fit: np.ndarray
    forces: bool = True  # whether to compare forces: they say nothing for crystals at rest in one functional
    fewest: int = 1  # fitted materials that an element must be in for its reference energy to count


@dataclass(frozen=True, eq=False)
class Pairs:
    """The energies of the same structures in two functionals."""

    name: str
    functionals: tuple[str, str]
    species: list[np.ndarray]  # atomic numbers
    energies: np.ndarray  # (structures, 2), eV
    groups: list[str]  # structures of one group are drawn together by the bootstrap
    parts: list[Part]
    forces: list[np.ndarray] | None = None  # (atoms, 3, 2), eV/Å
    # (structures, 2), eV: energies of the same atoms elsewhere in the same functional, NaN where unknown
    elsewhere: np.ndarray | None = None
    where: str = ""  # what those are

    @property
    def atoms(self) -> np.ndarray:
        return np.array([len(s) for s in self.species])


def read_elements(folder: Path) -> Pairs:
    """MatPES's crystals of the elements, if the material is the same in both functionals."""
    from ase.data import atomic_numbers

    entries = []
    for functional in ("PBE", "r2SCAN"):
        path = folder / f"MatPES-{functional}-Element-Refs.json.gz"
        try:
            whole = json.loads(gzip.decompress(path.read_bytes()))
            entries.append(
                {
                    symbol: (e["matpes_id"], float(e["energy_per_atom"]), float(e["energy_atomic"]))
                    for symbol, e in whole.items()
                    if symbol in atomic_numbers
                }
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StudyError(
                f"{path} is not as matcalc publishes it ({type(error).__name__}: {error}); needed gzipped "
                "JSON with matpes_id, energy_per_atom and energy_atomic of each element. Download it again."
            ) from None
    same = [s for s in entries[0] if s in entries[1] and entries[0][s][0] == entries[1][s][0]]
    _check_some(same, f"element that is the same material in both files of {folder}")
    columns = np.array([[e[s][1:] for e in entries] for s in same])
    every = np.ones(len(same), bool)
    return Pairs(
        "elements at rest",
        ("PBE", "r2SCAN"),
        [np.array([atomic_numbers[s]]) for s in same],
        columns[:, :, 0],
        same,
        [Part("all", every, every)],
        elsewhere=columns[:, :, 1],
        where="isolated atoms",
    )


def read_dimers(folder: Path) -> Pairs:
    """Matbench Discovery's curves of homonuclear dimers, energies and forces."""
    from experiments.datasets import read as read_frames

    try:
        first, second = (read_frames(folder / f"paired_{f}.extxyz.gz") for f in ("PBE", "r2SCAN"))
        _check_same([f.atoms for f in first], [f.atoms for f in second], folder)
    except (OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise StudyError(
            f"{folder} does not hold the pairs of Matbench Discovery ({type(error).__name__}: {error}); "
            "needed paired_PBE.extxyz.gz and paired_r2SCAN.extxyz.gz, the same dimers with energy and "
            "forces. Make them again."
        ) from None
    energies = np.array([[a.labels.energy, b.labels.energy] for a, b in zip(first, second, strict=True)])
    forces = [np.stack([a.labels.forces, b.labels.forces], -1) for a, b in zip(first, second, strict=True)]
    every = np.ones(len(first), bool)
    calm = np.array([np.linalg.norm(f, axis=1).max() <= BOUND for f in forces])
    other = np.array([f.atoms.numbers[0] not in F_SHELL for f in first])
    return Pairs(
        "dimers",
        ("PBE", "r2SCAN"),
        [f.atoms.numbers for f in first],
        energies,
        [f.material for f in first],
        [
            Part("all", every, every),
            Part(f"forces up to {BOUND:g} eV/Å", calm, calm),
            Part(f"forces up to {BOUND:g} eV/Å, no f elements", calm & other, calm & other),
        ],
        forces,
    )


def read_pair(first: str, second: str, energy_key: str | None = None) -> Pairs:
    """The materials of two files or data sets, each at its lowest energy in either.

    Crystals are read one by one, since files may be larger than memory. Materials are left out if they have
    no energy, or another composition in the other file.
    """
    both = [_lowest(first, energy_key), _lowest(second)]
    same = [m for m in both[0] if m in both[1] and both[0][m][0] == both[1][m][0]]
    _check_some(same, f"material of one composition in both {first} and {second}")
    every = np.ones(len(same), bool)
    return Pairs(
        "materials at rest",
        (Path(first).name, Path(second).name),
        [np.array(both[0][m][0]) for m in same],
        np.array([[found[m][1] * len(found[m][0]) for found in both] for m in same]),
        same,
        [Part("all", every, every)],
    )


def _lowest(path: str, energy_key: str | None = None) -> dict[str, tuple[tuple[int, ...], float]]:
    """The sorted atoms of one formula unit, and the lowest energy (eV/atom), by material."""
    from jaxmlip.data.dataset import Dataset, is_dataset
    from jaxmlip.data.readers import read_labelled

    crystals = Dataset(path).crystals() if is_dataset([path]) else read_labelled(path, properties=("energy",))
    found: dict[str, tuple[tuple[int, ...], float]] = {}
    for crystal in track(crystals, f"reading {Path(path).name}"):
        if crystal.labels.energy is None:
            continue
        elements, counts = np.unique(crystal.atoms.numbers, return_counts=True)
        unit = tuple(np.repeat(elements, counts // np.gcd.reduce(counts)).tolist())
        energy = crystal.labels.energy / len(crystal.atoms)
        if crystal.material not in found or energy < found[crystal.material][1]:
            found[crystal.material] = unit, energy
    return found


def read_set(folder: Path) -> list[Pairs]:
    """A teacher set: its first teacher against each of the others."""
    from experiments.transfer.teacher_set.reading import SET
    from jaxmlip.data.dataset import Dataset

    path = folder / SET
    try:
        teachers = [str(name) for name in json.loads(path.read_text())["teachers"]]
    except FileNotFoundError:
        raise StudyError(
            f"{folder} has no {SET}; needed a folder that experiments.transfer.teacher_set.make has "
            "completed."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path} cannot be read ({error!r}); make the set again.") from None
    if len(teachers) < 2 or any(Path(name).name != name for name in teachers):
        raise StudyError(f"{folder} has the teachers {', '.join(teachers) or 'none'}, needed at least two.")
    first, *others = ([*_labels(Dataset(folder / name))] for name in teachers)
    found = []
    for name, other in zip(teachers[1:], others, strict=True):
        _check_same([c.atoms for _, c in first], [c.atoms for _, c in other], folder)
        train = np.array([split == "train" for split, _ in first])
        ideal = np.array([c.name.endswith("/ideal") for _, c in first])
        crystals = [c for _, c in first]
        parts = [
            Part("ideal crystals", ideal, train, False, FEWEST),
            Part("ideal crystals held out", ideal & ~train, train, False, FEWEST),
            Part("all", np.ones(len(first), bool), train, fewest=FEWEST),
        ]
        both = [(a.labels, b.labels) for a, (_, b) in zip(crystals, other, strict=True)]
        energies = np.array([[a.energy, b.energy] for a, b in both])
        found.append(
            Pairs(
                f"{folder.name}: {teachers[0]}, {name}",
                (teachers[0], name),
                [c.atoms.numbers for c in crystals],
                energies,
                [c.material for c in crystals],
                [part for part in parts if part.of.any()],
                [np.stack([a.forces, b.forces], -1) for a, b in both],
                of_elements(crystals, energies),
                "the elements' ground states",
            )
        )
    return found


def of_elements(crystals: Sequence[LabelledCrystal], energies: np.ndarray) -> np.ndarray:
    """Energies (crystals, 2) in eV of the same atoms in their elements' ground states; NaN for elements."""
    from ase.data import chemical_symbols

    at_rest = {c.name: e / len(c.atoms) for c, e in zip(crystals, energies, strict=True)}
    found = np.full((len(crystals), 2), np.nan)
    for k, crystal in enumerate(crystals):
        numbers = crystal.atoms.numbers
        if len(set(numbers)) > 1:
            own = [f"{ground_state(chemical_symbols[z]).material}/ideal" for z in numbers]
            found[k] = np.sum([at_rest.get(name, (np.nan, np.nan)) for name in own], axis=0)
    return found


def _labels(dataset: Dataset):
    """Pairs of split and crystal, for all crystals."""
    crystals = dataset.crystals()
    for split, part in dataset.splits.items():
        for _ in range(len(part)):
            yield split, next(crystals)


def _check_some(items: Sequence, what: str) -> None:
    if not items:
        raise StudyError(f"found no {what}, needed at least one.")


def _check_same(first: Sequence, second: Sequence, folder: Path) -> None:
    """Raises StudyError unless both have the same crystals."""
    _check_some(first, f"crystal in {folder}")
    if len(first) != len(second):
        raise StudyError(
            f"{folder} has {len(first)} crystals in one functional and {len(second)} in the other, needed "
            "the same crystals. Make the set again."
        )
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        same = np.array_equal(a.numbers, b.numbers) and np.allclose(a.positions, b.positions, atol=1e-5)
        if not (same and np.allclose(a.cell, b.cell, atol=1e-5)):
            raise StudyError(
                f"{folder}: crystal {k} differs between the two functionals, needed the same crystals. Make "
                "the set again."
            )
