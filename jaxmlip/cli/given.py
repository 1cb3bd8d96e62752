"""What a command was given: one structure, the potential for it, and the start from there."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmlip.crystals.structures import naming, read_crystal

if TYPE_CHECKING:
    from ase import Atoms

    from jaxmlip.potential import Potential


def of_one(
    file: Path, model: str, dtype: str, head: str | None, devices: int | None
) -> tuple[Potential, Atoms]:
    """A potential, and the one structure in a file, checked against it."""
    atoms = read_crystal(file)
    return that_takes(atoms, file, model, dtype, head, devices), atoms


def that_takes(
    atoms: Atoms, file: Path, model: str, dtype: str, head: str | None, devices: int | None
) -> Potential:
    """The potential on its devices; raises ValueError, naming the file, if it cannot take the structure."""
    from jaxmlip.zoo.load import load

    potential = load(model, dtype, head=head).on_devices(devices)
    naming(file, 0, potential.graph, atoms)
    return potential


def start(atoms: Atoms, potential: Potential, relax: bool) -> Atoms:
    """The crystal to differentiate: relaxed if `relax`, else as given."""
    from jaxmlip.mechanics.relaxation import at_rest

    if relax:
        return at_rest(potential, atoms)
    if atoms.constraints:
        kinds = ", ".join(sorted({type(constraint).__name__ for constraint in atoms.constraints}))
        warnings.warn(f"constraints of the file ({kinds}) are not used: every atom moves.", stacklevel=2)
    return atoms
