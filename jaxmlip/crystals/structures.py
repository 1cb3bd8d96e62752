"""Crystals from files and to files, with errors that name the file."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxmlip.system.borders import shallow
from jaxmlip.system.files import check_file

if TYPE_CHECKING:
    from ase import Atoms


GUESSES = ("cannot be determined", "would be overwritten by")  # in pymatgen's warnings about elements


def read_crystals(path: Path, limit: int | None = None, skip_bad: bool = False) -> list[Atoms]:
    """The structures in a file that ASE or pymatgen reads, at most `limit`.

    Raises ValueError with the reasons of both, or if they had to guess the elements. A truncated file is an
    error too, unless `skip_bad`: then the structures before the cut are returned, with a warning.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file; needed one with a crystal structure, such as a CIF or POSCAR."
        )
    if limit is not None and limit < 1:
        raise ValueError(f"found limit={limit}, needed a number from 1.")
    found: list[Atoms] = []
    with warnings.catch_warnings(record=True) as said, shallow():
        warnings.simplefilter("always")
        try:
            found = _read_by_either(path, limit, skip_bad, found)
        finally:
            guess = next((w for w in said if any(words in str(w.message) for words in GUESSES)), None)
    if guess is None:
        for w in said:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    elif found:
        raise ValueError(
            f"{path} does not name its elements; they would be guesses ({_brief(guess.message)}). Write "
            "their symbols into the line above the numbers of atoms, as VASP 5 has it."
        )
    if not found:
        raise ValueError(f"{path} holds no structure.")
    for atoms in found:
        _check_types(path, atoms)
    return found


def _read_by_either(path: Path, limit: int | None, skip_bad: bool, found: list[Atoms]) -> list[Atoms]:
    import ase.io

    try:
        # An "@" in a file name is not an index.
        frames = ase.io.iread(path, index=":", do_not_split_by_at_sign=True)
        found.extend(itertools.islice(frames, limit))
        return found
    except Exception as by_ase:  # readers of a hundred formats raise any exception
        if found:
            reason = f"{path} cannot be read beyond its first {len(found)} structures ({_brief(by_ase)})"
            if skip_bad:
                warnings.warn(f"{reason}; the rest is left out.", stacklevel=4)
                return found
            raise ValueError(f"{reason}. --skip-bad takes these, --limit {len(found)} too.") from None
        from pymatgen.core import Structure

        from jaxmlip.crystals.atoms import as_atoms

        try:
            structure = Structure.from_file(path)
        except Exception as by_pymatgen:
            raise ValueError(
                f"neither ASE nor pymatgen can read {path}; needed a structure in a format that one of them "
                f"knows (CIF, POSCAR, extxyz, …), with the usual file name.\n  ASE: {_brief(by_ase)}"
                f"\n  pymatgen: {_brief(by_pymatgen)}"
            ) from None
        return [as_atoms(structure)]


def _check_types(path: Path, atoms: Atoms) -> None:
    """Raises ValueError if ASE mistook LAMMPS' type numbers, or masses, for elements."""
    types = atoms.arrays.get("type")
    if types is None:
        return
    with path.open(errors="replace") as file:
        columns = next((line.split() for line in itertools.islice(file, 50) if "ITEM: ATOMS" in line), None)
    guessed = np.array_equal(types, atoms.numbers) if columns is None else "element" not in columns
    if guessed:
        raise ValueError(
            f"{path} has types {', '.join(map(str, np.unique(types)))} and no elements, which ASE would take "
            f"for {', '.join(sorted(set(atoms.symbols)))}. Write an element column (dump_modify element), or "
            "Masses and Atom Type Labels into a data file."
        )


def read_crystal(path: Path) -> Atoms:
    """The only structure in a file. Raises ValueError if it has several."""
    (atoms, *rest) = read_crystals(path)
    if rest:
        raise ValueError(f"{path} holds {1 + len(rest)} structures, needed one.")
    return atoms


class Found(NamedTuple):
    """A structure, its file, and its number in the file."""

    path: Path
    index: int
    atoms: Atoms

    @property
    def name(self) -> str:
        """The file, and the number in it unless it is the first."""
        return f"{self.path}" + (f" [{self.index}]" if self.index else "")


def read_all(paths: Sequence[Path], limit: int | None = None, skip_bad: bool = False) -> list[Found]:
    """The structures in every file, at most `limit` from each.

    Raises as `read_crystals` does, and ValueError without files. With `skip_bad`, files and parts of files
    that cannot be read are left out with a warning; it is an error if nothing is left.
    """
    if not paths:
        raise ValueError(
            "found no file, needed at least one with a crystal structure, such as a CIF or POSCAR."
        )
    every = []
    for path in paths:
        try:
            found = read_crystals(path, limit, skip_bad)
        except (ValueError, OSError) as error:
            if not skip_bad:
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
            continue
        every += [Found(path, k, atoms) for k, atoms in enumerate(found)]
    return _some(every)


def checked(every: Sequence[Found], check: Callable[[Atoms], object], skip_bad: bool = False) -> list[Found]:
    """The structures that pass check(atoms).

    Its ValueError is raised with the name of the file; with `skip_bad` it is a warning, and the structure is
    left out.
    """
    good = []
    for found in every:
        try:
            naming(found.path, found.index, check, found.atoms)
        except ValueError as error:
            if not skip_bad:
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
        else:
            good.append(found)
    return _some(good)


def _some(every: list[Found]) -> list[Found]:
    if not every:
        raise ValueError("found no structure that can be used in any of the files.")
    return every


def _brief(error: object) -> str:
    said = next((line for line in str(error).splitlines() if line.strip()), "without a reason")
    return f"{type(error).__name__}: {said}"[:200]


def free_coordinates(atoms: Atoms) -> tuple[np.ndarray, list[str]]:
    """Cartesian coordinates that the constraints of `atoms` leave free, bool (N, 3), and other constraints.

    Constraints that hold coordinates are FixAtoms and FixCartesian, and FixScaled, FixedLine and FixedPlane
    if they amount to the same, as in a rectangular cell. The others are returned as their class names.
    """
    from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane, FixScaled

    push = np.random.default_rng(0).uniform(1, 2, (len(atoms), 3))
    free, others = np.ones(push.shape, bool), []
    for constraint in atoms.constraints:
        left = push.copy()
        if isinstance(constraint, FixAtoms | FixCartesian | FixScaled | FixedLine | FixedPlane):
            constraint.adjust_forces(atoms, left)
            held = np.abs(left) < 1e-9
            if np.allclose(left[~held], push[~held], atol=1e-9, rtol=0):
                free &= ~held
                continue
        others.append(type(constraint).__name__)
    return free, others


def moving_coordinates(atoms: Atoms, chosen: Sequence[int] | None = None) -> np.ndarray:
    """The numbers 3a + x of the Cartesian coordinates that move: of the `chosen` atoms, held or not.

    By default they are those that the constraints leave free; constraints that hold no coordinates are
    ignored with a warning. Raises ValueError if an atom is not there, or none moves.
    """
    n, name = len(atoms), atoms.get_chemical_formula()
    free, others = free_coordinates(atoms)
    if others:
        warnings.warn(f"constraints of the kinds {', '.join(others)} are not used.", stacklevel=2)
    if chosen is not None:
        wrong = [k for k in chosen if not 0 <= k < n]
        if wrong or not len(chosen):
            found = f"atom {wrong[0]}" if wrong else "no atom"
            raise ValueError(
                f"found {found} among the chosen ones of {name}, needed numbers from 0 to {n - 1}, as ASE "
                "counts."
            )
        free = np.zeros((n, 3), bool)
        free[list(chosen)] = True
    if not free.any():
        raise ValueError(
            f"all {n} atoms of {name} are held in place by constraints, needed one that moves. Choose some "
            "(--atoms), or release the constraints."
        )
    return np.flatnonzero(free)


def who_moves(atoms: Atoms, coordinates: np.ndarray, chosen: Sequence[int] | None = None) -> str:
    """A sentence on what `moving_coordinates` found; "" if every atom moves."""
    n, moving = len(atoms), len(np.unique(coordinates // 3))
    if len(coordinates) == 3 * n:
        return ""
    why = "held in place by the file" if chosen is None else "not chosen"
    return f"{moving} of {n} atoms move ({len(coordinates)} of {3 * n} coordinates), the others are {why}"


def writable(out: Path, structures: int) -> str:
    """ASE's format for a file name, once it is known to be one that can be written."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        kind = filetype(str(out), read=False, guess=False)
    except UnknownFileTypeError:
        kind = None
    if kind not in ioformats or not ioformats[kind].can_write:
        raise ValueError(
            f"ASE writes no format that is named as {out} is; take .extxyz, .traj, .cif or POSCAR."
        )
    if structures > 1 and kind not in ("extxyz", "traj"):
        raise ValueError(
            f"{structures} structures are to go to {out}, needed a file that keeps several with their "
            "energies and forces: .extxyz or .traj."
        )
    check_file(out)
    return kind


def naming(path: Path, index: int, check: Callable[[Atoms], object], atoms: Atoms) -> None:
    """Calls check(atoms) and adds the name of the file to an error."""
    try:
        check(atoms)
    except ValueError as error:
        where = f"{path}, structure {index}" if index else str(path)
        raise ValueError(f"{where}: {error}") from None
