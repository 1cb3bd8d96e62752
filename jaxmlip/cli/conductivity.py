"""The command `jaxmlip conductivity`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from jaxmlip.cli.given import of_one, start
from jaxmlip.system.arguments import (
    DEFAULT_MODEL,
    Devices,
    DType,
    Head,
    Model,
    Positional,
    Rare,
    above_zero,
    at_least,
    in_bytes,
)
from jaxmlip.system.files import check_folder


def conductivity(
    file: Positional[Path],
    model: Model = DEFAULT_MODEL,
    dtype: DType = "float64",
    head: Head = None,
    relax: bool = False,
    supercell: tuple[int, int, int] | None = None,
    fc2_supercell: tuple[int, int, int] | None = None,
    mesh: tuple[int, int, int] | None = None,
    temperatures: tuple[float, ...] = (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000),
    method: Literal["exact", "displaced", "differences"] = "exact",
    step: float | None = None,
    transport: Literal["wigner", "particles"] = "wigner",
    isotopes: bool = True,
    boundary: float | None = None,
    symprec: Rare[float] = 1e-5,
    memory_limit: Rare[float | None] = None,
    devices: Devices = None,
    out: Path = Path("conductivity"),
) -> None:
    """Lattice thermal conductivity from exact third derivatives, by phono3py.

    It says first what it will compute. The same command goes on after any interruption, and another one, of
    another mesh or other temperatures, takes the constants that OUT has.

    Args:
        file: a structure in any format that ASE or pymatgen reads
        model: the potential
        dtype: precision of the computation
        relax: relax the cell and the atoms first, and keep the space group
        supercell: of third order, repeats of the cell in FILE; default: images of a bond are told apart
        fc2_supercell: of second order; default: an atom is at least 20 Å from its images
        mesh: wave vectors along each reciprocal vector of the primitive cell; default: about 1/60 1/Å apart
        temperatures: in K
        method: third order by derivatives, by phono3py's displacements, or by differences of Hessian columns
        step: of displacements or differences, in Å; default: 0.03 and 0.01
        transport: with Wigner's coherences between bands, or of phonons as particles alone
        isotopes: natural isotopes scatter
        boundary: size of the sample or its grains, in µm, after which phonons scatter; default: infinite
        symprec: tolerance for the symmetry that is used, in Å
        memory_limit: in GB; the number of columns computed at once is chosen to stay below it
        out: folder for conductivity.json, conductivity.png, conductivity.npz and files for phono3py
    """
    from jaxmlip.phonons.cells import import_phono3py
    from jaxmlip.studies import conductivity as study

    above_zero(step=step, boundary=boundary, symprec=symprec, memory_limit=memory_limit)
    above_zero(temperatures=temperatures)
    at_least(1, supercell=supercell, fc2_supercell=fc2_supercell, mesh=mesh, devices=devices)
    options = study.Options(
        relax=relax,
        supercell=supercell,
        fc2_supercell=fc2_supercell,
        mesh=mesh,
        temperatures=tuple(map(float, temperatures)),
        method=method,
        step=step,
        transport=transport,
        isotopes=isotopes,
        boundary=boundary,
        symprec=symprec,
        memory_limit=in_bytes(memory_limit),
    )
    check_folder(out)
    import_phono3py()
    potential, atoms = of_one(file, model, dtype, head, devices)
    study.main(potential, atoms, out, partial(start, potential=potential, relax=relax), options)
