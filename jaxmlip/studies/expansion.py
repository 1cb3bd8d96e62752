"""Output of `jaxmlip expansion`: thermal expansion, thermodynamics, and a quasi-harmonic fit beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pymatgen.core import Element

from jaxmlip.crystals.atoms import check_repeats
from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.crystals.symmetry import Symmetry, keeping_mesh, mesh_shape, reduced_mesh
from jaxmlip.phonons.expansion import Expansion, expansion_of, symmetric_strains
from jaxmlip.phonons.expansion_report import as_record, describe, draw, fit_record, table
from jaxmlip.phonons.lattice import Lattice
from jaxmlip.phonons.quasi_harmonic import FEWEST, SPAN, quasi_harmonic
from jaxmlip.phonons.report import default_mesh
from jaxmlip.studies.study import save
from jaxmlip.system.console import note, say
from jaxmlip.system.tables import show

if TYPE_CHECKING:
    from ase import Atoms

    from jaxmlip.potential import Potential

TEMPERATURES = tuple(float(t) for t in range(50, 1001, 50))  # K
SPACING = 0.04  # 1/Å, without 2π, between the wave vectors of the default mesh
BEYOND = 1.5  # volumes of a fit go so far beyond the largest strain of first order
PACKAGES = ("jax", "numpy", "spglib")


@dataclass(frozen=True)
class Options:
    """What is asked for; None stands for a default that depends on the crystal."""

    relax: bool = False
    mesh: tuple[int, int, int] | None = None
    temperatures: tuple[float, ...] = TEMPERATURES
    volumes: int | None = None  # of a quasi-harmonic fit; None: no fit
    symprec: float = SYMPREC
    memory_limit: float | None = None  # bytes

    def __post_init__(self) -> None:
        if not self.temperatures:
            raise ValueError("found no temperature, needed at least one, such as --temperatures 300.")
        if self.volumes is not None and self.volumes < FEWEST:
            raise ValueError(f"found --volumes {self.volumes}, needed {FEWEST} or more for the fit.")


def main(
    potential: Potential, crystal: Atoms, out: Path, start: Callable[[Atoms], Atoms], options: Options
) -> None:
    """Runs the command: says what the work will be, prints a table, and writes JSON and a figure into `out`.

    `start` gives the crystal at rest, whose primitive cell is taken. A fit that fails raises its error when
    the rest is written. Otherwise raises as `expansion` does.
    """
    check_repeats(crystal, "thermal expansion coefficients")
    _say_what_is_left_out(crystal)
    symmetry = Symmetry(start(crystal), options.symprec)
    if symmetry.copies > 1:
        note(
            f"{crystal.get_chemical_formula()} is {symmetry.copies} primitive cells: all numbers are for the "
            f"primitive cell, {symmetry.primitive.atoms.get_chemical_formula()}, in the same axes"
        )
    atoms = symmetry.primitive.atoms
    mesh = options.mesh or default_mesh(atoms, SPACING)
    _say_work(symmetry.primitive, mesh, options)
    limits = {"symprec": options.symprec, "memory_limit": options.memory_limit}
    asked = {"mesh": mesh, "temperatures": options.temperatures}
    lattice = Lattice(potential, symmetry.primitive, **limits)
    found = expansion_of(lattice, **asked)
    fit, failed = None, None
    if options.volumes is not None:
        span = _span(found)
        note(f"quasi-harmonic fit: {options.volumes} volumes, {100 * span[0]:+.1f} to {100 * span[1]:+.1f} %")
        try:
            fit = quasi_harmonic(potential, atoms, **asked, volumes=options.volumes, span=span, **limits)
        except (ValueError, RuntimeError) as error:
            failed = error
    show(table(found, fit, potential.name))
    for line in describe(found):
        say(line)
    save(
        out,
        "expansion",
        "thermal expansion of a crystal in a potential, by derivatives at one cell",
        asdict(options) | {"dtype": potential.dtype},
        [potential],
        draw(found, fit, potential.name),
        (*PACKAGES, "phonopy") if fit is not None else PACKAGES,
        None,
        **as_record(found, lattice.response.energy),
        quasi_harmonic=fit_record(fit),
    )
    if failed is not None:
        raise RuntimeError(f"there is no quasi-harmonic fit: {failed}") from failed


def _say_what_is_left_out(crystal: Atoms) -> None:
    if all(Element.from_Z(int(z)).is_metal for z in crystal.numbers):
        say(
            f"{crystal.get_chemical_formula()} has metals alone: what electrons add to expansion and heat "
            "capacity is left out"
        )


def _say_work(symmetry: Symmetry, mesh: tuple[int, int, int], options: Options) -> None:
    """A line on what will be computed."""
    shape = mesh_shape(mesh)
    group = keeping_mesh(shape, symmetry.group_of_masses)
    waves, strains = len(reduced_mesh(shape, group).weights), len(symmetric_strains(group))
    note(
        f"{waves:,} wave vectors that differ by symmetry, of {' x '.join(map(str, shape))}; "
        f"{3 * len(symmetry.atoms)} modes at each; {strains} strain{'s' * (strains > 1)} that the symmetry "
        f"leaves free; {len(options.temperatures)} temperatures"
    )


def _span(found: Expansion) -> tuple[float, float]:
    """Changes of the volume that hold all volumes at the temperatures of `found`, higher orders included."""
    changes = np.trace(found.strain, axis1=1, axis2=2)
    return min(SPAN[0], BEYOND * changes.min() - 0.01), max(SPAN[1] / 2, BEYOND * changes.max() + 0.01)
