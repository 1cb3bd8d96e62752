"""Crystals from files and to files, with errors that name the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms


def read_crystals(path: Path) -> list[Atoms]:
    """Every structure in a file that ASE or pymatgen reads. Raises ValueError with the reasons of both."""
    import ase.io

    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file; needed one with a crystal structure, such as a CIF or POSCAR."
        )
    try:
        found = ase.io.read(path, index=":")
    except Exception as by_ase:  # readers of a hundred formats raise what they like
        from pymatgen.core import Structure

        try:
            found = [Structure.from_file(path).to_ase_atoms(msonable=False)]
        except Exception as by_pymatgen:
            raise ValueError(
                f"neither ASE nor pymatgen can read {path}; needed a structure in a format that one of them "
                f"knows (CIF, POSCAR, extxyz, …), with the usual file name.\n  ASE: {_brief(by_ase)}"
                f"\n  pymatgen: {_brief(by_pymatgen)}"
            ) from None
    if not found:
        raise ValueError(f"{path} holds no structure.")
    return found


def read_crystal(path: Path) -> Atoms:
    """The structure in a file of one. Raises ValueError where it has several."""
    (atoms, *rest) = read_crystals(path)
    if rest:
        raise ValueError(f"{path} holds {1 + len(rest)} structures, needed one.")
    return atoms


def read_all(paths: Sequence[Path]) -> list[tuple[Path, int, Atoms]]:
    """Every structure in every file, with its file and its number there."""
    return [(path, k, atoms) for path in paths for k, atoms in enumerate(read_crystals(path))]


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def writable(out: Path, structures: int) -> str:
    """The format of ASE that the name of a file means, once it is known to be one that can be written."""
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
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {out} does not exist; make it first.")
    return kind


def naming(path: Path, index: int, check: Callable[[Atoms], object], atoms: Atoms) -> None:
    """Calls check(atoms); an error then names the file."""
    try:
        check(atoms)
    except ValueError as error:
        where = f"{path}, structure {index}" if index else str(path)
        raise ValueError(f"{where}: {error}") from None
