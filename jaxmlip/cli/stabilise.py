"""The command `jaxmlip stabilise`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from jaxmlip.cli.given import of_one, start
from jaxmlip.system.arguments import DEFAULT_MODEL, DType, Head, Model, Positional, Rare, above_zero, at_least
from jaxmlip.system.files import check_folder


def stabilise(
    file: Positional[Path],
    model: Model = DEFAULT_MODEL,
    dtype: DType = "float64",
    head: Head = None,
    relax: bool = True,
    cells: int = 8,
    branches: int = 2,
    looks: int = 6,
    threshold: float = 0.05,
    mesh: tuple[int, int, int] | None = None,
    symprec: Rare[float] = 1e-5,
    out: Path = Path("stabilise"),
) -> None:
    """From the structure in FILE along its unstable modes to one that is stable.

    The structure is relaxed with its space group kept. Its unstable modes are found at all wave vectors.
    Along the lowest of them atoms are moved in each direction that symmetry offers, to the bottom, and
    relaxed there with their cell. So it goes on with the lowest structure, until it is stable or one of the
    limits is met.

    Args:
        file: a structure in any format that ASE or pymatgen reads
        model: the potential
        dtype: precision of the computation
        relax: relax the cell and the atoms first
        cells: of the structure at most, after which a distortion repeats
        branches: unstable modes of each structure that are followed, the most unstable first
        looks: structures at most whose modes are computed
        threshold: modes are unstable if their frequency is imaginary and larger than this, in THz
        mesh: wave vectors along each reciprocal lattice vector on which the lowest is looked for
        symprec: tolerance for the symmetry that is used, in Å
        out: folder for stabilise.json, stabilise.png, and a CIF for each structure
    """
    from jaxmlip.studies import stabilise as study

    above_zero(threshold=threshold, symprec=symprec)
    at_least(1, cells=cells, branches=branches, looks=looks, mesh=mesh)
    options = study.Options(cells, branches, looks, -threshold, mesh, symprec)
    check_folder(out)
    potential, atoms = of_one(file, model, dtype, head, None)
    study.main(potential, atoms, out, partial(start, potential=potential, relax=relax), options)
