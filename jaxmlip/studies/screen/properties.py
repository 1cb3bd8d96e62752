"""The properties of a screening: what each needs, its columns with units, and how it is computed.

A new property is a function and an entry of PROPERTIES.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms

from jaxmlip.crystals import batches
from jaxmlip.crystals.atoms import check_repeats, in_box
from jaxmlip.crystals.batching import close_shape_for, exact_shape
from jaxmlip.crystals.symmetry import Symmetry
from jaxmlip.derivatives.memory_plan import MemoryLimitError
from jaxmlip.derivatives.response import BLOCK_SIZE, Response
from jaxmlip.mechanics.elasticity import VOIGT, Elasticity, elastic_tensors
from jaxmlip.mechanics.relaxation import RelaxationOptions, relax_many, space_group
from jaxmlip.mechanics.vibrations import IMAGINARY, vibrations
from jaxmlip.phonons.density import thermodynamics
from jaxmlip.phonons.expansion import Expansion, expansion_of
from jaxmlip.phonons.expansion_report import NAMES
from jaxmlip.phonons.instabilities import SPACING as INSTABILITY_SPACING
from jaxmlip.phonons.instabilities import unstable_modes
from jaxmlip.phonons.lattice import Lattice
from jaxmlip.phonons.many import lattices
from jaxmlip.phonons.modes import Modes
from jaxmlip.phonons.report import SPACING, default_mesh
from jaxmlip.studies.expansion import SPACING as EXPANSION_SPACING
from jaxmlip.studies.phonondb import Spectrum
from jaxmlip.studies.screen.inputs import noted
from jaxmlip.studies.screen.library import Chunk
from jaxmlip.system.memory import resident
from jaxmlip.units import GPA_PER_EV_PER_A3, J_PER_MOL_PER_EV

if TYPE_CHECKING:
    from jaxmlip.potential import Potential

TEMPERATURE = 300.0  # K
# Å; symmetry within it saves elastic columns. Relaxation in float32 keeps symmetry to about the second.
SYMMETRY = {"float64": 1e-5, "float32": 1e-3}
NEAR = 8  # a crystal whose estimated memory is this many times below the limit is not looked at more closely


@dataclass(frozen=True)
class ScreenOptions:
    """Settings of a screening that change its rows. Raises ValueError as `RelaxationOptions` does."""

    fmax: float = 1e-3  # eV/Å, of `relax`
    smax: float = 0.01  # GPa
    steps: int = 500
    pressure: float = 0.0  # GPa
    mesh: tuple[int, int, int] | None = None  # of wave vectors; default: 0.02 1/Å apart
    symprec: float = 1e-5  # Å, of phonons
    memory_limit: float | None = None  # bytes; larger crystals are left out

    def __post_init__(self):
        self.relaxation(True)
        if self.mesh is not None and (len(self.mesh) != 3 or min(self.mesh) < 1):
            raise ValueError(f"found mesh={self.mesh}, needed three numbers from 1 on.")

    def relaxation(self, repeats: bool) -> dict[str, Any]:
        """The options of `relax_many`. A crystal that repeats in three directions keeps its space group."""
        its = RelaxationOptions(
            fmax=self.fmax,
            smax=self.smax,
            steps=self.steps,
            fix_symmetry=repeats,
            pressure=self.pressure if repeats else 0.0,
        )
        return vars(its)


class Column(NamedTuple):
    """A column of the table."""

    unit: str
    about: str
    drawn: bool = False  # its distribution is shown in the figure


@dataclass
class Found:
    """What was computed for one crystal."""

    columns: dict[str, Any]
    atoms: Atoms | None = None  # the crystal that later properties belong to; None if it stays the same
    failed: str = ""  # why these columns are not what was asked for
    notes: list[str] = field(default_factory=list)


Outcome = Found | Exception
Compute = Callable[["Potential", Sequence[Atoms], ScreenOptions, Chunk], Iterable[tuple[int, Outcome]]]


@dataclass(frozen=True)
class Property:
    """A property. `compute` yields (number, outcome) for each crystal of a chunk, in any order."""

    about: str
    columns: Mapping[str, Column]
    compute: Compute
    needs: tuple[str, ...] = ()  # properties that have to be computed before, without which it fails


def in_order(names: Iterable[str]) -> list[str]:
    """Names of properties with those that they need, each after what it needs. Raises ValueError."""
    found: dict[str, None] = {}

    def add(name: str) -> None:
        if name not in PROPERTIES:
            raise ValueError(f"found the property {name!r}, needed some of {', '.join(PROPERTIES)}.")
        for other in PROPERTIES[name].needs:
            add(other)
        found.setdefault(name)

    for name in names:
        add(name)
    if not found:
        raise ValueError(f"found no property, needed some of {', '.join(PROPERTIES)}.")
    # PROPERTIES has relaxation first, since others are those of the relaxed crystal.
    return [name for name in PROPERTIES if name in found]


def relaxed(potential, crystals, options: ScreenOptions, chunk: Chunk) -> Iterator[tuple[int, Outcome]]:
    """Relaxation of cell and atoms, within the space group of the crystal."""
    small, large = yield from _that_fit(potential, crystals, options, chunk, _check_gradient)
    for repeats in (True, False):
        numbers = [k for k in sorted(small + large) if crystals[k].pbc.all() == repeats]
        found = relax_many(
            potential, [crystals[k] for k in numbers], shape=chunk.moving, **options.relaxation(repeats)
        )
        for k, r in zip(numbers, found, strict=True):
            n = len(r.atoms)
            columns = {
                "energy_eV_per_atom": r.energy / n,
                "energy_change_eV_per_atom": (r.energy - r.start_energy) / n,
                "volume_A3_per_atom": r.atoms.cell.volume / n if repeats else None,
                "volume_change_percent": 100 * r.volume_change if repeats else None,
                "space_group": space_group(r.atoms) if repeats else None,
                "max_force_eV_per_A": r.max_force,
                "max_stress_GPa": r.max_stress,
                "steps": r.steps,
            }
            failed = "" if r.converged else f"did not come to rest: {r.reason}"
            yield k, Found(columns, r.atoms.copy() if r.converged else None, failed)  # without results


def energies(potential, crystals, options: ScreenOptions, chunk: Chunk) -> Iterator[tuple[int, Outcome]]:
    """Energy, and the forces and the pressure that are left."""
    small, large = yield from _that_fit(potential, crystals, options, chunk, _check_gradient)
    able = sorted(small + large)
    graphs = potential.graphs([crystals[k] for k in able])
    found = batches.predicted(potential, graphs, shapes=(chunk.moving,))
    for k, its in zip(able, found, strict=True):
        n, whole = len(crystals[k]), crystals[k].pbc.all()
        columns = {
            "eV_per_atom": its["energy"] / n,
            "max_force_eV_per_A": np.linalg.norm(its["forces"], axis=1).max(),
            "pressure_GPa": -np.trace(its["stress"]) / 3 * GPA_PER_EV_PER_A3 if whole else None,
        }
        yield k, Found(columns)


def elastic(potential, crystals, options: ScreenOptions, chunk: Chunk) -> Iterator[tuple[int, Outcome]]:
    """Elastic constants by linear response."""
    tolerance = SYMMETRY[potential.dtype]
    small, large = yield from _that_fit(potential, crystals, options, chunk, _check_columns)
    # Small ones lie side by side; then comes each that may be large, in its own shape.
    for some, shapes in [(small, chunk.curved), *(([k], ()) for k in large)]:
        numbers = []
        for k in some:
            try:
                check_repeats(crystals[k], "elastic constants")
            except ValueError as error:
                yield k, error
            else:
                numbers.append(k)
        shapes = shapes or [close_shape_for([potential.graph(crystals[k])]) for k in numbers]
        found = elastic_tensors(potential, [crystals[k] for k in numbers], shapes, tolerance)
        for k, its in zip(numbers, found, strict=True):
            yield k, its if isinstance(its, Exception) else Found(_moduli(its))


def _moduli(found: Elasticity) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    if found.resists_everything:
        hill = found.hill
        columns |= {"bulk_GPa": hill.bulk, "shear_GPa": hill.shear, "young_GPa": hill.young}
        columns |= {"poisson": hill.poisson, "anisotropy": found.anisotropy}
    columns |= {"lowest_GPa": found.eigenvalues[0], "stable": found.stable}
    columns |= {"atoms_stable": found.internal_modes_stable, "density_kg_per_m3": found.density}
    return columns | {f"C{i + 1}{j + 1}_GPa": found.C[i, j] for i, j in UPPER}


def phonons(potential, crystals, options: ScreenOptions, chunk: Chunk) -> Iterator[tuple[int, Outcome]]:
    """Phonons of the primitive cell on a mesh of wave vectors."""

    def work(lattice: Lattice) -> dict[str, Any]:
        return _spectrum(lattice.mesh(_mesh(lattice.atoms, options.mesh)))

    return _of_lattices(potential, crystals, options, chunk, work)


def expansions(potential, crystals, options: ScreenOptions, chunk: Chunk) -> Iterator[tuple[int, Outcome]]:
    """Thermal expansion of the primitive cell by derivatives."""

    def work(lattice: Lattice) -> dict[str, Any]:
        mesh = _mesh(lattice.atoms, options.mesh, EXPANSION_SPACING)
        return _expansion(expansion_of(lattice, mesh, [TEMPERATURE]))

    return _of_lattices(potential, crystals, options, chunk, work)


def unstable(potential, crystals, options: ScreenOptions, chunk: Chunk) -> Iterator[tuple[int, Outcome]]:
    """The most unstable mode of the primitive cell."""

    def work(lattice: Lattice) -> dict[str, Any]:
        mesh = _mesh(lattice.atoms, options.mesh, INSTABILITY_SPACING)
        found = unstable_modes(lattice, mesh)
        columns: dict[str, Any] = {"stable": not found, "modes": len(found)}
        if found:
            first = found[0]
            where = " ".join(f"{x:.6g}" for x in first.q_point + 0.0)
            columns |= {"lowest_THz": first.thz, "q": where, "cells": first.cells}
        return columns | {"mesh": " ".join(map(str, mesh)), "primitive_atoms": len(lattice.atoms)}

    return _of_lattices(potential, crystals, options, chunk, work)


def vibrating(potential, crystals, options: ScreenOptions, chunk: Chunk) -> Iterator[tuple[int, Outcome]]:
    """Vibrations of all atoms of the cell as given, at Γ."""
    small, large = yield from _that_fit(potential, crystals, options, chunk, _check_columns)
    for k in (*small, *large):
        need = exact_shape([potential.graph(crystals[k])])
        shared = next((shape for shape in chunk.curved if k not in large and shape.fits(need)), None)
        limit = options.memory_limit if k in large else None
        with noted() as notes:
            its = vibrations(potential, crystals[k], shape=shared, memory_limit=limit)
        columns: dict[str, Any] = {"modes": len(its.per_cm)}
        if columns["modes"]:  # an atom alone has none
            columns |= {"highest_per_cm": its.per_cm[-1], "lowest_per_cm": its.per_cm[0]}
            columns |= {"imaginary": its.imaginary, "zero_point_meV": 1e3 * its.zero_point_energy}
        yield k, Found(columns, notes=notes)


def _of_lattices(
    potential: Potential,
    crystals: Sequence[Atoms],
    options: ScreenOptions,
    chunk: Chunk,
    work: Callable[[Lattice], dict[str, Any]],
) -> Iterator[tuple[int, Outcome]]:
    """The columns that `work` makes of the lattice of each primitive cell."""
    reduced = [Symmetry(in_box(atoms), options.symprec).primitive for atoms in crystals]
    cells = [its.atoms for its in reduced]
    small, large = yield from _that_fit(potential, cells, options, chunk, _check_columns)
    for numbers, shapes, limit in ((small, chunk.curved, None), (large, (), options.memory_limit)):
        every = lattices(
            potential,
            [reduced[k] for k in numbers],
            lambda _, lattice: work(lattice),
            shapes=shapes,
            symprec=options.symprec,
            memory_limit=limit,
        )
        for number, columns, notes in _with_warnings(every):
            failed = isinstance(columns, Exception)
            yield numbers[number], columns if failed else Found(columns, notes=notes)


def _with_warnings(pairs: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any, list[str]]]:
    """The pairs, each with the warnings that were given while it was made."""
    while True:
        with noted() as notes:
            pair = next(pairs, None)
        if pair is None:
            return
        yield (*pair, notes)


def _mesh(atoms: Atoms, mesh: tuple[int, int, int] | None, spacing: float = SPACING) -> tuple[int, int, int]:
    if mesh is None:
        return default_mesh(atoms, spacing)
    return tuple(np.where(atoms.pbc, mesh, 1).tolist())


def _spectrum(modes: Modes) -> dict[str, Any]:
    n = len(modes.primitive)
    spectrum, heat = Spectrum.of(modes.frequencies, modes.weights), thermodynamics(modes, [0.0, TEMPERATURE])
    return {
        "max_THz": spectrum.maximum,
        "mean_THz": spectrum.mean,
        "lowest_THz": spectrum.lowest,
        "imaginary_percent": 100 * heat.imaginary,
        "zero_point_meV_per_atom": 1e6 * heat.free_energy[0] / J_PER_MOL_PER_EV / n,
        "heat_capacity_J_per_K_mol": heat.heat_capacity[1] / n,
        "entropy_J_per_K_mol": heat.entropy[1] / n,
        "mesh": " ".join(map(str, modes.mesh.shape)),
        "primitive_atoms": n,
    }


def _expansion(found: Expansion) -> dict[str, Any]:
    n, volume = len(found.modes.primitive), found.modes.primitive.get_volume()
    alpha = {f"{name}_ppm_per_K": 1e6 * found.alpha[0][at] for name, at in zip(NAMES, VOIGT, strict=True)}
    return {
        "volumetric_ppm_per_K": 1e6 * found.beta[0],
        **alpha,
        "grueneisen": found.gamma[0],
        "volume_change_percent": 100 * (found.volume[0] / volume - 1),
        "zero_point_percent": 100 * np.trace(found.zero_point_strain),
        "heat_capacity_p_J_per_K_mol": found.heat_capacity_p[0] / n,
        "adiabatic_bulk_GPa": found.adiabatic_bulk_modulus[0],
        "mesh": " ".join(map(str, found.modes.mesh.shape)),
        "primitive_atoms": n,
    }


def _that_fit(
    potential: Potential,
    crystals: Sequence[Atoms],
    options: ScreenOptions,
    chunk: Chunk,
    check: Callable[[Response], object],
) -> Generator[tuple[int, MemoryLimitError], None, tuple[list[int], list[int]]]:
    """The numbers of the crystals that fit into the memory: small ones, and those that may be large.

    Yields an error for each other one. Only those that may be too large are looked at closely, since that
    takes seconds for each.
    """
    small, large = [], []
    for k, atoms in enumerate(crystals):
        if not _may_be_large(potential, atoms, options, chunk):
            small.append(k)
            continue
        try:
            check(Response(potential, atoms, memory_limit=options.memory_limit))
        except MemoryLimitError as error:
            yield k, error
        else:
            large.append(k)
    return small, large


def _may_be_large(potential: Potential, atoms: Atoms, options: ScreenOptions, chunk: Chunk) -> bool:
    if options.memory_limit is None:
        return False
    needed = exact_shape([potential.graph(atoms)]).messages * chunk.bytes_each
    return needed > (options.memory_limit - resident()) / NEAR


def _check_columns(response: Response) -> None:
    """Raises MemoryLimitError if no column of second derivatives can be computed."""
    response.plan(BLOCK_SIZE)


def _check_gradient(response: Response) -> None:
    """Raises MemoryLimitError if the gradient, which needs about half of its linear map, needs too much."""
    held, limit = resident(), response.memory_limit
    if held + response.kept / 2 > limit:
        raise MemoryLimitError(
            f"energy and forces need about {response.kept / 2e9:.3g} GB for {response.atoms} atoms, beside "
            f"{held / 1e9:.3g} GB that the process holds; memory_limit={limit / 1e9:.3g} GB was given."
        )


UPPER = [(i, j) for i in range(6) for j in range(i, 6)]
J = "J/(K mol)"
PROPERTIES: dict[str, Property] = {
    "relax": Property(
        "cell and atoms relaxed, the space group kept; what follows is of the relaxed crystal",
        {
            "energy_eV_per_atom": Column("eV/atom", "energy of the relaxed crystal"),
            "energy_change_eV_per_atom": Column("eV/atom", "change of the energy"),
            "volume_A3_per_atom": Column("Å³/atom", "volume", True),
            "volume_change_percent": Column("%", "change of the volume", True),
            "space_group": Column("", "space group within 0.01 Å"),
            "max_force_eV_per_A": Column("eV/Å", "largest force that is left"),
            "max_stress_GPa": Column("GPa", "largest component of the stress that is left"),
            "steps": Column("", "steps of the relaxation"),
        },
        relaxed,
    ),
    "energy": Property(
        "energy, largest force and pressure",
        {
            "eV_per_atom": Column("eV/atom", "energy", True),
            "max_force_eV_per_A": Column("eV/Å", "largest force on an atom"),
            "pressure_GPa": Column("GPa", "pressure"),
        },
        energies,
    ),
    "elastic": Property(
        "elastic constants and moduli of a polycrystal (Hill), atoms following the strain",
        {
            "bulk_GPa": Column("GPa", "bulk modulus", True),
            "shear_GPa": Column("GPa", "shear modulus", True),
            "young_GPa": Column("GPa", "Young's modulus"),
            "poisson": Column("", "Poisson's ratio"),
            "anisotropy": Column("", "universal anisotropy"),
            "lowest_GPa": Column("GPa", "lowest of Kelvin's moduli", True),
            "stable": Column("", "no strain lowers the energy"),
            "atoms_stable": Column("", "no motion of atoms in the cell lowers the energy"),
            "density_kg_per_m3": Column("kg/m³", "density"),
            **{
                f"C{i + 1}{j + 1}_GPa": Column("GPa", "elastic constant, order xx yy zz yz xz xy")
                for i, j in UPPER
            },
        },
        elastic,
    ),
    "phonons": Property(
        "phonons of the primitive cell on a mesh of wave vectors, and what follows at 300 K",
        {
            "max_THz": Column("THz", "highest frequency", True),
            "mean_THz": Column("THz", "mean frequency, imaginary ones counted as 0"),
            "lowest_THz": Column("THz", "lowest frequency, negative if imaginary", True),
            "imaginary_percent": Column("%", f"share of modes below {IMAGINARY} THz"),
            "zero_point_meV_per_atom": Column("meV/atom", "zero-point energy", True),
            "heat_capacity_J_per_K_mol": Column(J, "heat capacity at 300 K for a mole of atoms", True),
            "entropy_J_per_K_mol": Column(J, "entropy at 300 K for a mole of atoms"),
            "mesh": Column("", "wave vectors along each reciprocal lattice vector"),
            "primitive_atoms": Column("", "atoms of the primitive cell"),
        },
        phonons,
    ),
    "instabilities": Property(
        "modes along which the energy of the crystal falls, at any wave vector",
        {
            "stable": Column("", "no mode is unstable"),
            "modes": Column("", "unstable modes at wave vectors that differ by symmetry"),
            "lowest_THz": Column("THz", "the most unstable mode, negative", True),
            "q": Column("", "its wave vector, reciprocal lattice units of the primitive cell"),
            "cells": Column("", "primitive cells that its wave repeats after; none if they are too many"),
            "mesh": Column("", "wave vectors from which the lowest mode was looked for"),
            "primitive_atoms": Column("", "atoms of the primitive cell"),
        },
        unstable,
    ),
    "vibrations": Property(
        "vibrations of all atoms of the cell, without translations, and rotations of molecules",
        {
            "highest_per_cm": Column("1/cm", "highest wavenumber", True),
            "lowest_per_cm": Column("1/cm", "lowest wavenumber, negative if imaginary", True),
            "imaginary": Column("", f"modes below {IMAGINARY} THz"),
            "zero_point_meV": Column("meV", "zero-point energy of the cell"),
            "modes": Column("", "vibrations"),
        },
        vibrating,
    ),
    "expansion": Property(
        "thermal expansion of the crystal at 300 K by derivatives at one cell, to first order",
        {
            "volumetric_ppm_per_K": Column("1e-6/K", "volumetric thermal expansion", True),
            **{
                f"{name}_ppm_per_K": Column("1e-6/K", f"thermal expansion, component {name}")
                for name in NAMES
            },
            "grueneisen": Column("", "mean Grüneisen parameter", True),
            "volume_change_percent": Column("%", "volume at 300 K beside that without vibrations"),
            "zero_point_percent": Column("%", "of it, by zero-point vibrations"),
            "heat_capacity_p_J_per_K_mol": Column(J, "C_p for a mole of atoms"),
            "adiabatic_bulk_GPa": Column("GPa", "adiabatic bulk modulus"),
            "mesh": Column("", "wave vectors along each reciprocal lattice vector"),
            "primitive_atoms": Column("", "atoms of the primitive cell"),
        },
        expansions,
    ),
}
