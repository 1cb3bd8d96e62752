"""Commands for molecules, slabs and adsorbates: `jaxmlip vibrations`, `jaxmlip saddle`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxmlip.cli.given import that_takes
from jaxmlip.crystals.structures import read_crystal, read_crystals, who_moves
from jaxmlip.system.arguments import (
    DEFAULT_MODEL,
    Devices,
    DType,
    Flag,
    Head,
    Model,
    Positional,
    Rare,
    above_zero,
    at_least,
    in_bytes,
)
from jaxmlip.system.console import note
from jaxmlip.system.files import check_folder
from jaxmlip.system.tables import show

if TYPE_CHECKING:
    from ase import Atoms

    from jaxmlip.potential import Potential


def vibrations(
    file: Positional[Path],
    model: Model = DEFAULT_MODEL,
    dtype: DType = "float64",
    head: Head = None,
    atoms: tuple[str, ...] = (),
    relax: bool = False,
    temperature: float = 298.15,
    pressure: float = 101325.0,
    spin: float = 0.0,
    symmetry_number: int | None = None,
    frames: int = 20,
    memory_limit: Rare[float | None] = None,
    devices: Devices = None,
    out: Path = Path("vibrations"),
) -> None:
    """Vibrations and thermochemistry of a molecule, an adsorbate or a cell.

    They are those of an exact Hessian. Atoms that the file holds in place are frozen. Of a free molecule (pbc
    all False) translations and rotations are projected out, of a periodic structure translations, and nothing
    if atoms are frozen. Infrared intensities need dipoles, which the potentials do not have.

    Args:
        file: a structure in any format that ASE or pymatgen reads
        model: the potential
        dtype: precision of the computation
        atoms: those that vibrate: numbers from 0 on, slices such as 12: or 0:6:2, elements; default: all that
            the file leaves free
        relax: relax the atoms first, in a fixed cell; frozen atoms stay
        temperature: of the thermochemistry, in K
        pressure: of a gas, in Pa
        spin: total electronic spin of a molecule: 0 if all electrons are paired, 1 for O₂
        symmetry_number: of the rotations of a molecule; default: counted
        frames: frames of a period of each mode in vibrations.extxyz
        memory_limit: in GB; the number of columns computed at once is chosen to stay below it
        out: folder for vibrations.json, vibrations.png and vibrations.extxyz
    """
    from jaxmlip.mechanics.vibrations import vibrations as computed
    from jaxmlip.mechanics.vibrations_report import tables, thermochemistry, write

    above_zero(temperature=temperature, pressure=pressure, memory_limit=memory_limit)
    at_least(0, spin=spin)
    at_least(1, symmetry_number=symmetry_number, frames=frames, devices=devices)
    check_folder(out)
    crystal = read_crystal(file)
    chosen = chosen_atoms(crystal, atoms)
    potential = that_takes(crystal, file, model, dtype, head, devices)
    if relax:
        crystal = rested(potential, crystal, chosen)
    found = computed(potential, crystal, indices=chosen, memory_limit=in_bytes(memory_limit))
    if told := who_moves(crystal, found.coordinates, chosen):
        note(told)
    thermo = thermochemistry(found, temperature, pressure, spin, symmetry_number)
    show(*tables(found, thermo, potential.name))
    about = {"file": str(file), "model": potential.name, "dtype": dtype, "relaxed_first": relax}
    write(found, thermo, about, out, frames)
    note(f"written to {out}: vibrations.json, vibrations.png, vibrations.extxyz")


def saddle(
    file: Positional[Path],
    model: Model = DEFAULT_MODEL,
    dtype: DType = "float64",
    head: Head = None,
    fmax: float = 1e-3,
    steps: int = 100,
    trust: float = 0.1,
    renew: int = 5,
    minima: Flag = False,
    memory_limit: Rare[float | None] = None,
    devices: Devices = None,
    out: Path = Path("saddle"),
) -> None:
    """The saddle point near the structure in FILE, with exact Hessians.

    Eigenvectors are followed. If FILE holds several structures they are the images of a band: the search
    starts at the one with the highest energy in the model, along the band. The cell is fixed, and so are
    atoms that the file holds. The exit code is 1 if the search does not converge; what was reached is written
    too.

    Args:
        file: a structure near a saddle, or the images of a band in order, as `ase.mep.NEB` writes them
        model: the potential
        dtype: precision of the computation
        fmax: stop when the largest force is below this, in eV/Å, and one mode is imaginary
        steps: maximum number of steps
        trust: how far an atom may move in the first step, in Å; later steps adapt
        renew: steps between exact Hessians; the last one is updated in between
        minima: find the minima on both sides, and the barriers
        memory_limit: in GB; the number of columns computed at once is chosen to stay below it
        out: folder for saddle.json, saddle.png, saddle.extxyz and mode.extxyz
    """
    from jaxmlip.mechanics.saddle import saddle as found_from
    from jaxmlip.mechanics.saddle_report import table, write

    above_zero(fmax=fmax, trust=trust, memory_limit=memory_limit)
    at_least(1, steps=steps, renew=renew, devices=devices)
    check_folder(out)
    images = read_crystals(file)
    potential = that_takes(images[0], file, model, dtype, head, devices)
    start, direction = top_of(potential, images)
    if len(images) > 1:
        note(f"the highest of {len(images)} images is number {start}, from 0 on")
    found = found_from(
        potential,
        images[start],
        direction=direction,
        fmax=fmax,
        steps=steps,
        trust=trust,
        renew=renew,
        minima=minima,
        memory_limit=in_bytes(memory_limit),
    )
    if told := who_moves(images[start], found.vibrations.coordinates):
        note(told)
    show(table(found, potential.name))
    about = {"file": str(file), "image": start, "model": potential.name, "dtype": dtype}
    names = write(found, about, out)
    note(f"written to {out}: {', '.join(names)}")
    if not found.converged:
        raise RuntimeError(
            f"no saddle was reached: {found.reason}. More --steps, a smaller --trust or --renew 1 may help, "
            "or a start nearer to the saddle, such as the images of a band."
        )


def top_of(potential: Potential, images: Sequence[Atoms]) -> tuple[int, np.ndarray | None]:
    """The number of the image with the highest energy, and the direction of the band there, (atoms, 3).

    There is none for a single structure. Raises ValueError if the images are not those of one band, or the
    highest one is an end of it.
    """
    from ase.geometry import find_mic

    from jaxmlip.mechanics.neb import check_alike

    if len(images) == 1:
        return 0, None
    for other in images[1:]:
        check_alike(images[0], other)
    energies = [found["energy"] for found in potential.predict(images)]
    top = int(np.argmax(energies))
    if top in (0, len(images) - 1):
        raise ValueError(
            f"the highest of {len(images)} images is an end of the band, number {top}: there is no barrier "
            "between. Give the images of a band over a saddle, in order, or one structure near it."
        )
    along, _ = find_mic(
        images[top + 1].positions - images[top - 1].positions, images[top].cell, images[top].pbc
    )
    return top, along


def chosen_atoms(atoms: Atoms, words: tuple[str, ...]) -> list[int] | None:
    """The numbers of atoms that words name: numbers, slices or elements; None without words.

    Raises ValueError, naming the word, if it names no atom.
    """
    if not words:
        return None
    found: set[int] = set()
    every = np.arange(len(atoms))
    for word in words:
        if re.fullmatch(r"\d+", word):
            some = every[int(word) : int(word) + 1]
        elif re.fullmatch(r"-?\d*:-?\d*(:-?[1-9]\d*)?", word):
            some = every[slice(*(int(part) if part else None for part in word.split(":")))]
        else:
            some = np.flatnonzero(np.array(atoms.get_chemical_symbols()) == word)
        if not len(some):
            raise ValueError(
                f"found --atoms {word}, which names no atom of {atoms.get_chemical_formula()}; needed "
                f"numbers from 0 to {len(atoms) - 1}, as ASE counts, slices such as 0:3, or elements of it."
            )
        found.update(some.tolist())
    return sorted(found)


def rested(potential: Potential, atoms: Atoms, chosen: list[int] | None) -> Atoms:
    """The structure relaxed in its cell: what the file holds, or all but the `chosen` atoms, stays in place.

    Raises RuntimeError if it does not converge.
    """
    from ase.constraints import FixAtoms

    from jaxmlip.mechanics.relaxation import relax_many

    start = atoms.copy()
    if chosen is not None:
        start.set_constraint(FixAtoms(np.setdiff1d(np.arange(len(atoms)), chosen)))
    (found,) = relax_many(potential, [start], cell=False)
    if not found.converged:
        raise RuntimeError(
            f"{atoms.get_chemical_formula()} did not come to rest ({found.reason}): the largest force is "
            f"{found.max_force:.2g} eV/Å. Relax it alone with more --steps (jaxmlip relax --fixed-cell), or "
            "leave out --relax."
        )
    rest = atoms.copy()
    rest.set_positions(found.atoms.positions, apply_constraint=False)
    return rest
