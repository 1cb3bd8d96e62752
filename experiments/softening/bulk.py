"""The undeformed crystal of an element among DFT frames, the reference of surface and defect energies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from ase import Atoms

from experiments.datasets import data_file
from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.studies.study import data_root
from jaxmlip.system.progress import track

T = TypeVar("T")
KINDS = {229: ("bcc", 2), 225: ("fcc", 4), 227: ("diamond", 8)}  # space group: structure, atoms in its cube
SAME = 1e-3  # largest difference of lengths (relative) and angles (degrees) that count as equal
POINTS = 6  # of E(ε), for a polynomial of degree 4


class Bulk(NamedTuple):
    """A cubic elemental crystal without strain, and its energy in DFT."""

    symbol: str
    kind: str  # bcc, fcc, diamond
    a: float  # Å
    energy: float  # eV per atom
    origin: str  # how the energy was found

    @property
    def cube(self) -> Atoms:
        """The conventional cell."""
        from ase.build import bulk

        return bulk(self.symbol, self.kind, a=self.a, cubic=True)


def undeformed(frames: Sequence[LabelledCrystal]) -> Bulk:
    """The bulk crystal that `frames` with elastic deformations start from.

    If it has a frame ("Ground state crystal" in mlearn, strain 0 in maml), its energy is taken from there.
    Otherwise the energies of uniaxially strained cubes are fitted by a polynomial of degree 4 in ε, and its
    value at ε = 0 is taken; for silicon, which has a frame, the two agree within 0.2 meV per atom. Raises
    ValueError if neither is possible.
    """
    for frame in frames:
        info = frame.atoms.info
        if info.get("description") == "Ground state crystal" or str(info.get("notes")).endswith("--0.0000"):
            return _cubic(frame.atoms, frame.labels.energy / len(frame.atoms), "its frame")
    length = float(np.median([f.atoms.cell.lengths() for f in frames])) if frames else np.nan
    strained = [(strain, f) for f in frames if (strain := _uniaxial(f.atoms, length)) is not None]
    if len({round(strain, 4) for strain, _ in strained}) < POINTS:
        raise ValueError(
            f"found no undeformed crystal and {len(strained)} uniaxial strains among {len(frames)} frames, "
            f"needed an undeformed crystal or {POINTS} strains."
        )
    x = [strain for strain, _ in strained]
    y = [f.labels.energy / len(f.atoms) for _, f in strained]
    energy = float(np.polynomial.Polynomial.fit(x, y, 4)(0.0))
    cube = min(strained, key=lambda pair: abs(pair[0]))[1].atoms.copy()
    cube.set_cell(length * np.eye(3), scale_atoms=True)
    return _cubic(cube, energy, f"fit to {len(x)} frames with uniaxial strain")


def _uniaxial(atoms: Atoms, length: float) -> float | None:
    """The strain of a cube of edge `length` (Å) along one edge; None if it is deformed otherwise."""
    strains = atoms.cell.lengths() / length - 1
    along = np.argmax(np.abs(strains))
    straight = np.allclose(atoms.cell.angles(), 90, atol=SAME)
    return float(strains[along]) if straight and np.sum(np.abs(strains) > SAME) == 1 else None


def _cubic(atoms: Atoms, energy: float, origin: str) -> Bulk:
    from jaxmlip.crystals.symmetry import symmetry_dataset
    from jaxmlip.mechanics.relaxation import SYMPREC

    found = symmetry_dataset(atoms, SYMPREC)
    if found is None or found.number not in KINDS or len(set(atoms.symbols)) > 1:
        what = "none" if found is None else found.international
        raise ValueError(
            f"{atoms.get_chemical_formula()} has the space group {what}, needed an element in the bcc, fcc "
            "or diamond structure."
        )
    kind, n = KINDS[found.number]
    a = (atoms.cell.volume * n / len(atoms)) ** (1 / 3)
    return Bulk(atoms.symbols[0], kind, float(a), energy, origin)


def read_present(
    given: Path | None,
    names: Sequence[str],
    files: Mapping[str, Sequence[str]],
    read: Callable[[list[Path]], T],
) -> tuple[dict[str, T], list[str]]:
    """The result of `read` for the files of each of the sets `names`, and remarks on sets that are left out.

    `files` are those of all known sets, below `given` or JAXMLIP_DATA. Sets for which `read` raises
    ValueError are left out. If `names` are all known sets, missing ones are left out, too. Raises
    MissingDataError if no set is there, or one of a smaller choice is missing, and ValueError for an unknown
    name.
    """
    unknown = [name for name in names if name not in files]
    if unknown or not names:
        raise ValueError(f"found {' '.join(unknown) or 'no name'}, needed names of data: {' '.join(files)}.")
    root = data_root(given)
    there = {
        name: [root / file for file in files[name]]
        for name in names
        if root and all((root / file).exists() for file in files[name])
    }
    absent = [name for name in names if name not in there]
    if absent and (not there or set(names) != set(files)):
        for file in files[absent[0]]:
            data_file(given, file)
    findings = [f"Left out, because not in {root}: {', '.join(absent)}."] if absent else []
    found = {}
    for name, paths in track(there.items(), "reading"):
        try:
            found[name] = read(paths)
        except ValueError as error:
            findings.append(f"{name} is left out: {error}")
    return found, findings
