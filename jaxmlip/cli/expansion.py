"""The command `jaxmlip expansion`: thermal expansion of one crystal."""

from __future__ import annotations

from functools import partial
from pathlib import Path

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


def expansion(
    file: Positional[Path],
    model: Model = DEFAULT_MODEL,
    dtype: DType = "float64",
    head: Head = None,
    relax: bool = False,
    mesh: tuple[int, int, int] | None = None,
    temperatures: tuple[float, ...] = tuple(range(50, 1001, 50)),
    volumes: int | None = None,
    symprec: Rare[float] = 1e-5,
    memory_limit: Rare[float | None] = None,
    devices: Devices = None,
    out: Path = Path("expansion"),
) -> None:
    """Thermal expansion from exact derivatives by strain: no grid of volumes.

    A larger cell is first reduced to its primitive cell. The axes are the Cartesian ones of the file.

    Args:
        file: a structure in any format that ASE or pymatgen reads
        model: the potential
        dtype: precision of the computation; float32 leaves about three digits
        relax: relax the cell and the atoms first, and keep the space group
        mesh: wave vectors along each reciprocal lattice vector; default: at most 0.04 1/Å apart
        temperatures: in K
        volumes: also fit phonons at so many volumes, the quasi-harmonic approximation, by phonopy
        symprec: tolerance for the symmetry that is used, in Å
        memory_limit: in GB; the number of columns computed at once is chosen to stay below it
        out: folder for expansion.json and expansion.png
    """
    from jaxmlip.phonons.phonopy_files import import_phonopy
    from jaxmlip.studies import expansion as study

    above_zero(symprec=symprec, memory_limit=memory_limit, temperatures=temperatures)
    at_least(1, mesh=mesh, devices=devices)
    options = study.Options(
        relax=relax,
        mesh=mesh,
        temperatures=tuple(map(float, temperatures)),
        volumes=volumes,
        symprec=symprec,
        memory_limit=in_bytes(memory_limit),
    )
    check_folder(out)
    if volumes is not None:
        import_phonopy()
    potential, atoms = of_one(file, model, dtype, head, devices)
    study.main(potential, atoms, out, partial(start, potential=potential, relax=relax), options)
