"""Output of `jaxmlip conductivity`: κ of a crystal, where it comes from, a figure, and files for phono3py.

What takes long is kept in the folder `PARTS` of the output: the relaxed crystal, columns of third order as
they come, both kinds of constants, wave vectors as they come. Names of its files are hashes of all that they
depend on, so that the same command goes on after a kill, and another one takes what it can.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import Element

from jaxmlip.crystals.atoms import check_repeats
from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.crystals.symmetry import reduced_mesh, space_group
from jaxmlip.mechanics.elasticity import warn_of_residuals
from jaxmlip.phonons.cells import Cells, check_masses
from jaxmlip.phonons.imaginary import check_stable
from jaxmlip.phonons.meshes import check_mesh
from jaxmlip.phonons.phono3py_files import write_for_phono3py
from jaxmlip.phonons.spectrum import cumulative, spectrum
from jaxmlip.phonons.supercell import repeats_beyond
from jaxmlip.phonons.third import STEPS, Checks, Method, SecondOrder, ThirdOrder, second_order, third_order
from jaxmlip.phonons.transport import Conductivity, Transport, conductivity
from jaxmlip.phonons.transport_report import as_record, describe, draw, modes_of, table
from jaxmlip.phonons.triplets import plan
from jaxmlip.studies.study import fingerprint, save
from jaxmlip.system.console import note, say
from jaxmlip.system.files import writing
from jaxmlip.system.tables import show
from jaxmlip.units import GPA_PER_EV_PER_A3

if TYPE_CHECKING:
    from ase import Atoms

    from jaxmlip.potential import Potential

Numbers = tuple[int, int, int]
TEMPERATURES = tuple(float(t) for t in range(100, 1001, 100))  # K
WIDE = 20.0  # Å, between the images of an atom in the supercell of second order
LENGTH = 60.0  # Å: phono3py's length of the default mesh
SHOWN = 300.0  # K; the temperature nearest to it is shown in detail
PARTS = "conductivity-parts"
LONG = 1800.0  # s; longer work is warned of
# Seconds of a core for a product of constants and phases, and what a tetrahedron costs in them: the order of
# magnitude.
EACH, TETRAHEDRA = 5e-10, 280
PACKAGES = ("jax", "numpy", "phonopy", "phono3py", "spglib")


@dataclass(frozen=True)
class Options:
    """What is asked for; None stands for a default that depends on the crystal and the potential."""

    relax: bool = False
    supercell: Numbers | None = None
    fc2_supercell: Numbers | None = None
    mesh: Numbers | None = None
    temperatures: tuple[float, ...] = TEMPERATURES
    method: Method = "exact"
    step: float | None = None
    transport: Transport = "wigner"
    isotopes: bool = True
    boundary: float | None = None  # µm
    symprec: float = SYMPREC
    memory_limit: float | None = None  # bytes

    def __post_init__(self) -> None:
        if not self.temperatures:
            raise ValueError("found no temperature, needed at least one, such as --temperatures 300.")
        if self.step is not None and self.method == "exact":
            raise ValueError(
                f"found a step of {self.step:g} Å for exact derivatives, which have none; needed --method "
                "displaced or differences."
            )


@dataclass(frozen=True, eq=False)
class Work:
    """What is computed for one crystal."""

    potential: Potential
    crystal: Atoms  # at rest
    options: Options
    parts: Path

    @cached_property
    def cells(self) -> Cells:
        """Those of third order."""
        apart = 2 * self.potential.cutoffs.bond  # so that images of a bond are told apart
        return self._cells(self.options.supercell, apart)

    @cached_property
    def wide(self) -> Cells:
        """Those of second order."""
        return self._cells(self.options.fc2_supercell, WIDE)

    def _cells(self, given: Numbers | None, apart: float) -> Cells:
        symprec = self.options.symprec
        return Cells.of(self.crystal, given or repeats_beyond(self.crystal, apart, symprec), symprec=symprec)

    @cached_property
    def mesh(self) -> Numbers:
        return check_mesh(self.cells, self.options.mesh or LENGTH, self.options.symprec)

    @cached_property
    def key(self) -> str:
        """A hash of all that constants depend on but their supercells."""
        atoms = self.crystal
        held = (atoms.cell.array, atoms.positions, atoms.numbers, atoms.get_masses())
        return hashed(fingerprint(self.potential), self.potential.dtype, self.options.symprec, *held)

    @cached_property
    def second(self) -> SecondOrder:
        """Second-order constants, from the parts if they are there."""

        def made() -> dict[str, Any]:
            limits = {"symprec": self.options.symprec, "memory_limit": self.options.memory_limit}
            rows = self.wide.supercell_matrix.T
            return {"fc2": second_order(self.potential, self.crystal, rows, **limits).fc2}

        name = f"second-{hashed(self.key, self.wide.supercell_matrix)}.npz"
        return SecondOrder(self.wide, kept(self.parts / name, made)["fc2"])

    @cached_property
    def third(self) -> ThirdOrder:
        """Third-order constants, from the parts if they are there."""
        o = self.options
        name = (
            f"third-{hashed(self.key, self.cells.supercell_matrix, o.method, o.step or STEPS.get(o.method))}"
        )

        def made() -> dict[str, Any]:
            rows = self.cells.supercell_matrix.T
            found = third_order(
                self.potential,
                self.crystal,
                rows,
                method=o.method,
                step=o.step,
                symprec=o.symprec,
                memory_limit=o.memory_limit,
                path=self.parts / name if o.method == "exact" else None,
            )
            return {"fc3": found.fc3, "method": found.method, "checks": json.dumps(asdict(found.checks))}

        held = kept(self.parts / f"{name}.npz", made)
        checks = Checks(**json.loads(str(held["checks"])))
        return ThirdOrder(self.cells, held["fc3"], str(held["method"]), checks)

    def conductivity(self) -> Conductivity:
        o = self.options
        asked = {
            "mesh": self.mesh,
            "temperatures": o.temperatures,
            "transport": o.transport,
            "isotopes": o.isotopes,
            "boundary": o.boundary,
        }
        folder = self.parts / f"wave-vectors-{hashed(self.third.fc3, self.second.fc2, json.dumps(asked))}"
        return conductivity(self.third, self.second, path=folder, **asked)


def hashed(*parts: Any) -> str:
    """A short hash of arrays and of what has a text."""
    digest = hashlib.sha256()
    for part in parts:
        whole = isinstance(part, np.ndarray)
        digest.update(np.ascontiguousarray(part).tobytes() if whole else str(part).encode() + b"\0")
    return digest.hexdigest()[:12]


def kept(file: Path, make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The arrays in a file (.npz), made and written if it is not there."""
    if not file.exists():
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        with writing(file) as draft:
            np.savez(draft, **found)
        return found
    with np.load(file) as held:
        return dict(held)


def main(
    potential: Potential, crystal: Atoms, out: Path, start: Callable[[Atoms], Atoms], options: Options
) -> None:
    """Runs the command: says what the work will be, prints κ, and writes JSON, a figure and files into `out`.

    `start` gives the crystal at rest. Raises ValueError for slabs and molecules, and otherwise as
    `third_order` and `conductivity` do, if it can before anything is computed.
    """
    check_repeats(crystal, "thermal conductivities")
    check_masses(crystal, options.symprec)
    _say_what_kappa_leaves_out(potential, crystal)
    parts = out / PARTS
    _ = Work(potential, crystal, options, parts).mesh  # a wrong one raises before anything is computed
    atoms = _relaxed(potential, crystal, start, parts) if options.relax else start(crystal)
    _warn_of_residuals(potential, atoms)
    work = Work(potential, atoms, options, parts)
    _say_work(work)
    _check_stable(work.second, work.mesh, options.symprec)
    third = work.third
    note(f"third order, {third.method}:")
    note("\n".join(f"  {line}" for line in str(third.checks).splitlines()))
    found = work.conductivity()
    shown = float(found.temperatures[np.abs(found.temperatures - SHOWN).argmin()])
    across = {by: cumulative(found, by, temperature=shown) for by in ("frequency", "mean_free_path")}
    density = spectrum(found, temperature=shown)
    show(table(found, potential.name))
    for line in describe(found, shown, across):
        say(line)
    written = write_for_phono3py(third, out, work.second)
    with writing(out / "conductivity.npz") as draft:
        np.savez(draft, **modes_of(found))
    save(
        out,
        "conductivity",
        "lattice thermal conductivity of a crystal in a potential; conductivity.npz has its modes",
        asdict(options) | {"dtype": potential.dtype},
        [potential],
        draw(found, density, across, potential.name),
        PACKAGES,
        None,
        **as_record(found, third, work.second, density, across),
    )
    note(f"and conductivity.npz; for phono3py {', '.join(written)}")


def _say_what_kappa_leaves_out(potential: Potential, crystal: Atoms) -> None:
    """Lines on metals, whose electrons carry heat too, and on vacuum, which is a part of the volume."""
    formula = crystal.get_chemical_formula()
    if all(Element.from_Z(int(z)).is_metal for z in crystal.numbers):
        say(f"{formula} has metals alone: electrons may carry most of its heat, and κ is the lattice's share")
    for axis, gap in enumerate(_gaps(crystal)):
        if gap > potential.cutoffs.bond:
            height = 1 / np.linalg.norm(np.linalg.inv(crystal.cell.array)[:, axis])
            warnings.warn(
                f"{formula} has {gap:.1f} Å of vacuum along lattice vector {axis + 1}, more than bonds "
                f"reach: κ is of the whole height of {height:.1f} Å. For a layer of thickness d, multiply it "
                f"by {height:.1f} Å / d.",
                stacklevel=3,
            )


def _gaps(crystal: Atoms) -> list[float]:
    """The widest gap between planes of atoms along each lattice vector, Å."""
    heights = 1 / np.linalg.norm(np.linalg.inv(crystal.cell.array), axis=0)
    x = np.sort(crystal.get_scaled_positions(), axis=0)
    return (np.diff(x, axis=0, append=x[:1] + 1).max(axis=0) * heights).tolist()


def _relaxed(potential: Potential, crystal: Atoms, start: Callable[[Atoms], Atoms], parts: Path) -> Atoms:
    """The crystal that `start` gives, as it was found first: another machine's has other last digits."""
    its = (crystal.cell.array, crystal.positions, crystal.numbers)
    key = hashed(fingerprint(potential), potential.dtype, *its)

    def made() -> dict[str, np.ndarray]:
        atoms = start(crystal)
        return {"cell": atoms.cell.array, "positions": atoms.positions}

    held = kept(parts / f"crystal-{key}.npz", made)
    atoms = crystal.copy()
    atoms.set_constraint()
    atoms.set_cell(held["cell"])
    atoms.positions = held["positions"]
    return atoms


def _warn_of_residuals(potential: Potential, atoms: Atoms) -> None:
    at = potential.predict(atoms)
    largest = float(np.linalg.norm(at["forces"], axis=1).max())
    warn_of_residuals(atoms, largest, at["stress"] * GPA_PER_EV_PER_A3, "The force constants")


def _say_work(work: Work) -> None:
    """Lines on what will be computed, and how long it may take."""
    o, cells, wide = work.options, work.cells, work.wide
    n, N = len(cells.primitive), len(cells.supercell)
    if o.method == "displaced":
        ph3 = cells.to_phono3py(o.symprec)
        ph3.generate_displacements(distance=o.step or STEPS["displaced"])
        what = f"forces of {len(ph3.displacements):,} displaced supercells"
    else:
        columns = sum(map(len, plan(cells, cells.group(o.symprec)).wanted.values()))
        what = f"{columns:,} of {9 * n * N:,} columns"
    note(f"third order:  {what}; {_size(cells)}")
    note(f"second order: {_size(wide)}")
    mesh = " x ".join(map(str, work.mesh))
    waves = len(reduced_mesh(work.mesh, space_group(cells.primitive, o.symprec)).weights)
    note(
        f"conductivity: {waves:,} wave vectors that differ by symmetry, of {mesh}; {3 * n} modes at each, "
        f"{len(o.temperatures)} temperatures"
    )
    triplets = waves * np.prod(work.mesh) / 2
    seconds = EACH * triplets * (27 * n * N**2 + TETRAHEDRA * (3 * n) ** 3)
    if seconds > LONG:
        note(
            f"The wave vectors will need of the order of {_duration(seconds)}; a --mesh of half the numbers "
            "needs about a fiftieth of it. If it is interrupted, the same command goes on."
        )


def _size(cells: Cells) -> str:
    times = " x ".join(map(str, np.diag(cells.supercell_matrix)))
    return (
        f"supercell {times} of the cell, {len(cells.supercell):,} atoms, repeats after {cells.repeat:.2f} Å"
    )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 60:.0f} minutes"


def _check_stable(second: SecondOrder, mesh: Numbers, symprec: float) -> None:
    """Raises ImaginaryModesError before third order is computed, which would be in vain."""
    atoms = second.cells.primitive
    reduced = reduced_mesh(mesh, space_group(atoms, symprec))
    thz, _ = second.modes(reduced.q_points)
    check_stable(atoms, reduced.q_points, thz, reduced.weights)
