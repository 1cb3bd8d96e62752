"""Commands for derivatives and minima: `jaxmlip hessian`, `phonons`, `elastic`, `relax`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from jaxmlip.cli.given import of_one, start, that_takes
from jaxmlip.crystals.atoms import crystal_record
from jaxmlip.crystals.structures import (
    checked,
    moving_coordinates,
    read_all,
    read_crystal,
    who_moves,
    writable,
)
from jaxmlip.mechanics.relaxation import SYMPREC
from jaxmlip.system.arguments import (
    ALONE,
    DEFAULT_MODEL,
    AsJson,
    Devices,
    DType,
    Flag,
    Head,
    Limit,
    Model,
    Positional,
    Rare,
    SkipBad,
    Together,
    above_zero,
    at_least,
    in_bytes,
)
from jaxmlip.system.console import note, say
from jaxmlip.system.files import check_file, check_folder, write_whole, writing
from jaxmlip.system.parallel import reports
from jaxmlip.system.tables import Table, show

Strain = Literal["xx", "yy", "zz", "yz", "xz", "xy"]

if TYPE_CHECKING:
    from ase import Atoms

    from jaxmlip.derivatives.sparse import Colouring
    from jaxmlip.mechanics.relaxation import Relaxation


def hessian(
    file: Positional[Path],
    model: Model = DEFAULT_MODEL,
    dtype: DType = "float64",
    head: Head = None,
    atoms: tuple[int, ...] = (),
    memory_limit: Rare[float | None] = None,
    block_size: Rare[int | None] = None,
    sparse: Flag = False,
    devices: Devices = None,
    together: Together = ALONE,
    out: Path = Path("hessian.npz"),
) -> None:
    """The Hessian of the structure in FILE (eV/Å²), and its vibrations at q = 0.

    All cells move alike. Atoms that the file holds, or directions of them (selective dynamics), are left out,
    as in ASE and VASP: the result is the block of the free ones, or of ATOMS.

    Args:
        file: a structure in any format that ASE or pymatgen reads
        model: the potential
        dtype: precision of the computation
        atoms: numbers of the atoms that vibrate, from 0 on; default: all that the file leaves free
        memory_limit: in GB; the number of columns computed at once is chosen to stay below it
        block_size: number of columns that a device computes at once; default: 8, or fewer if the limit
            requires it
        sparse: for long cells: compute columns of atoms that no atom sees together as one sum, and write the
            Hessian alone, as it is computed, to X.npz for scipy.sparse.load_npz
        together: options for several processes
        out: X.npz for Hessian, masses, eigenvectors and frequencies; X.npy for the Hessian alone, written as
            it is computed and never held in memory; an interrupted run goes on when it is started again
    """
    import jaxmlip
    from jaxmlip.units import in_thz

    above_zero(memory_limit=memory_limit)
    at_least(1, block_size=block_size, devices=devices)
    together.check()
    if out.suffix not in (".npz", ".npy"):
        raise ValueError(f"found --out {out}, needed a name that ends in .npz or, for large ones, in .npy.")
    if sparse and out.suffix != ".npz":
        raise ValueError(f"found --out {out}, needed a name that ends in .npz for a sparse Hessian.")
    check_file(out)
    crystal = read_crystal(file)
    together.connect()
    limit = in_bytes(memory_limit)
    coordinates = _vibrating(crystal, atoms)
    potential = that_takes(crystal, file, model, dtype, head, devices)
    found = _coloured(potential, crystal, coordinates) if sparse else None
    number = len(coordinates) if found is None else len(found.sums)
    plan = jaxmlip.plan_hessian(potential, crystal, block_size, limit)
    each = "" if potential.mesh is None else f" on each of {potential.mesh.size} devices"
    note(
        f"{crystal.get_chemical_formula()}: {number} {'sums of ' * sparse}columns, "
        f"{min(plan.block_size, number)} at once{each}, predicted memory {plan.total / 1e9:.3g} GB"
    )
    if sparse or out.suffix == ".npy":
        _stream(potential, crystal, coordinates, out, block_size, limit, found)
        return
    h = jaxmlip.hessian(potential, crystal, plan.block_size, limit, coordinates)
    masses = np.repeat(crystal.get_masses(), 3)[coordinates]
    squares, vectors = np.linalg.eigh((h + h.T) / 2 / np.sqrt(masses[:, None] * masses))
    thz = in_thz(squares)
    modes = np.zeros((len(thz), 3 * len(crystal)))
    modes[:, coordinates] = vectors.T
    if reports():
        with writing(out) as draft:
            np.savez(
                draft,
                hessian=h,
                coordinates=coordinates,
                masses=crystal.get_masses(),
                frequencies=thz,
                modes=modes.reshape(len(thz), -1, 3),
            )
    shown = range(len(thz)) if len(thz) <= 24 else [*range(12), *range(len(thz) - 12, len(thz))]
    rows = [(k + 1, thz[k]) for k in shown]
    show(Table(f"frequencies at q = 0, {potential.name}", ("mode", "THz"), rows))
    say(f"asymmetry {np.abs(h - h.T).max():.1e} eV/Å²")
    note(f"written to {out}")


def _vibrating(crystal: Atoms, chosen: Sequence[int]) -> np.ndarray:
    """The numbers 3a + x of the coordinates that vibrate; prints a line if some do not."""
    found = moving_coordinates(crystal, chosen or None)
    if told := who_moves(crystal, found, chosen or None):
        note(told)
    return found


def _coloured(potential, crystal, coordinates) -> Colouring:
    """The sums of columns that are computed for a sparse Hessian; prints a line about them."""
    from jaxmlip.derivatives.sparse import colouring

    found = colouring(potential, crystal, coordinates)
    moving = int((found.colours >= 0).sum())
    if found.number == moving:
        told = "nothing is saved: the cell is too short for how far the network sees"
    else:
        told = f"{found.number} colours for {moving} atoms"
    note(f"{len(found.sums)} sums instead of {len(coordinates)} columns ({told})")
    return found


def _stream(
    potential,
    crystal,
    coordinates: np.ndarray,
    out: Path,
    block_size: int | None,
    limit: float | None,
    colours: Colouring | None,
) -> None:
    from jaxmlip.derivatives.streaming import columns_done, stream_hessian, stream_sparse_hessian

    done, sparse = columns_done(out), colours is not None
    if done:
        note(f"{done} {'sums of ' * sparse}columns are there already")
    every = len(coordinates) == 3 * len(crystal)
    if sparse:
        stream_sparse_hessian(potential, crystal, out, colours, block_size, limit)
    else:
        stream_hessian(potential, crystal, out, None if every else coordinates, block_size, limit)
    opens = f'scipy.sparse.load_npz("{out}")' if sparse else f'numpy.load("{out}", mmap_mode="r")'
    what = "row and column k are those" if sparse else "row k is the column"
    which = f"{what} of coordinate k" + ("" if every else f" of {_listed(coordinates)}")
    note(f"written to {out}; {opens} opens it, {which}")


def _listed(coordinates: np.ndarray) -> str:
    shown = ", ".join(map(str, coordinates[:6]))
    return shown + (", …" if len(coordinates) > 6 else "")


def phonons(
    file: Positional[Path],
    model: Model = DEFAULT_MODEL,
    dtype: DType = "float64",
    head: Head = None,
    relax: bool = False,
    path: str | None = None,
    points: int = 101,
    mesh: tuple[int, int, int] | None = None,
    tolerance: Rare[float] = 1e-3,
    width: Rare[float | None] = None,
    born: Path | None = None,
    animate: tuple[int, int] | None = None,
    html: Path | None = None,
    keep_cell: Rare[Flag] = False,
    symprec: Rare[float] = 1e-5,
    memory_limit: Rare[float | None] = None,
    devices: Devices = None,
    together: Together = ALONE,
    out: Path = Path(),
) -> None:
    """Phonon bands, density of states and thermodynamics, without supercells.

    A larger cell is first reduced to its primitive cell. Atoms of different masses or magnetic moments count
    as different there.

    Args:
        file: a structure in any format that ASE or pymatgen reads
        model: the potential
        dtype: precision of the computation; in float32 the lowest frequencies are noise
        relax: relax the cell and the atoms first, and keep the space group
        path: special points of the bands, such as GXK,GL; default: ASE's path for the lattice
        points: approximate number of wave vectors on the path
        mesh: wave vectors of the density of states along each reciprocal lattice vector
        tolerance: largest error of frequencies, in THz; the error found is printed
        width: standard deviation of a Gaussian for each mode (THz); default: linear tetrahedra
        born: a BORN file of phonopy for this crystal: splits longitudinal from transverse optical modes
        animate: write this mode as frames: the number of the wave vector on the path, and of the branch
        html: one file for a browser, with bands to hover over and the mode that is clicked in motion; needs
            plotly, which jaxmlip[html] has
        keep_cell: compute the cell as it is, not its primitive cell
        symprec: tolerance for the symmetry that is used, in Å
        memory_limit: in GB; the number of columns computed at once is chosen to stay below it
        together: options for several processes
        out: folder for phonons.json, phonons.png and, with phonopy installed, phonopy_params.yaml
    """
    from jaxmlip.phonons import report

    above_zero(width=width, tolerance=tolerance, symprec=symprec, memory_limit=memory_limit)
    at_least(1, points=points, mesh=mesh, devices=devices)
    at_least(0, animate=animate)
    together.check()
    check_folder(out)
    if html is not None:
        _check_page(html, out)
    if born is not None and not born.is_file():
        raise FileNotFoundError(f"{born} is not a file; needed a BORN file as phonopy-vasp-born writes it.")
    together.connect()
    potential, atoms = of_one(file, model, dtype, head, devices)
    atoms = start(atoms, potential, relax)
    report.main(
        potential,
        atoms,
        out,
        path=path,
        points=points,
        mesh=mesh,
        tolerance=tolerance,
        width=width,
        born=born,
        animate=animate,
        html=html,
        source=str(file),
        keep_cell=keep_cell,
        symprec=symprec,
        memory_limit=in_bytes(memory_limit),
    )


def _check_page(html: Path, out: Path) -> None:
    """Raises, before anything is computed, if no page can be made or written."""
    from jaxmlip.phonons.page import plotly_script

    if html.suffix != ".html":
        raise ValueError(f"found --html {html}, needed a name that ends in .html.")
    if out.exists() or html.parent.resolve() != out.resolve():  # else its folder is made with the others
        check_file(html)
    plotly_script()


def elastic(
    file: Positional[Path],
    model: Model = DEFAULT_MODEL,
    dtype: DType = "float64",
    head: Head = None,
    relax: bool = False,
    devices: Devices = None,
    together: Together = ALONE,
    json_: AsJson = False,
    out: Path = Path("elastic.json"),
) -> None:
    """Elastic constants of the structure in FILE, by linear response.

    They are in the Cartesian axes of the file.

    Args:
        file: a structure in any format that ASE or pymatgen reads
        model: the potential
        dtype: precision of the computation; float32 leaves about three digits
        relax: relax the cell and the atoms first, and keep the space group
        together: options for several processes
        json_: print everything as JSON instead of a table, and write no file
        out: JSON file for all results
    """
    from jaxmlip.mechanics.elasticity import elastic_tensor
    from jaxmlip.mechanics.elasticity_report import as_record, describe

    at_least(1, devices=devices)
    together.check()
    if not json_:
        check_file(out)
    together.connect()
    potential, atoms = of_one(file, model, dtype, head, devices)
    atoms = start(atoms, potential, relax)
    found = elastic_tensor(potential, atoms)
    if not reports():
        return
    record = {
        "file": str(file),
        "formula": atoms.get_chemical_formula(),
        "model": potential.name,
        "dtype": dtype,
        "relaxed_first": relax,
        **crystal_record(atoms),
        **as_record(found),
    }
    if json_:
        print(json.dumps(record, indent=1))
        return
    write_whole(out, json.dumps(record, indent=1) + "\n")
    voigt = ("xx", "yy", "zz", "yz", "xz", "xy")
    rows = [(name, *(np.round(row, 1) + 0.0)) for name, row in zip(voigt, found.C, strict=True)]  # no -0.0
    show(Table(f"{record['formula']}: C / GPa, {potential.name}", ("", *voigt), rows, 1))
    for line in describe(found):
        say(line)
    note(f"written to {out}")


def relax(
    files: Positional[list[Path]],
    model: Model = DEFAULT_MODEL,
    dtype: DType = "float32",
    head: Head = None,
    fmax: float = 1e-3,
    smax: float = 0.01,
    fixed_cell: Flag = False,
    constant_volume: Flag = False,
    fixed_shape: Flag = False,
    strains: tuple[Strain, ...] = (),
    fix_symmetry: Flag = False,
    symprec: Rare[float] = SYMPREC,
    pressure: float = 0.0,
    steps: int = 500,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    out: Path = Path("relaxed.extxyz"),
) -> None:
    """Relaxes every structure in FILES, several at a time, into one file.

    Structures that do not converge are written too, as last reached and marked; the exit code is then 1.

    Args:
        files: structures in any format that ASE or pymatgen reads
        model: the potential
        dtype: precision of the computation; float64 for forces below 1e-4 eV/Å
        fmax: stop when the largest force is below this, in eV/Å
        smax: and the largest component of the stress below this, in GPa
        fixed_cell: move only the atoms
        constant_volume: let the shape of the cell vary, not its volume
        fixed_shape: let the volume of the cell vary, not its shape
        strains: let the cell vary by these strains only, in the Cartesian axes of the file
        fix_symmetry: keep the space group
        symprec: tolerance for that symmetry (Å)
        pressure: external pressure, in GPa
        steps: maximum number of steps for each structure
        out: file for all structures (.extxyz, .traj), or for one alone (.cif, POSCAR, others of ASE)
    """
    import ase.io

    from jaxmlip.mechanics.relaxation import RelaxationOptions, relax_many
    from jaxmlip.zoo.load import load

    options = RelaxationOptions(  # mistakes are reported at once
        fmax=fmax,
        smax=smax,
        cell=not fixed_cell,
        fix_symmetry=fix_symmetry,
        pressure=pressure,
        steps=steps,
        symprec=symprec,
        constant_volume=constant_volume,
        hydrostatic_strain=fixed_shape,
        mask=[strain in strains for strain in get_args(Strain)] if strains else None,
    )
    crystals = read_all(files, limit, skip_bad)
    kind = writable(out, len(crystals))
    potential = load(model, dtype, head=head)
    crystals = checked(crystals, potential.graph, skip_bad)
    found = relax_many(potential, [atoms for *_, atoms in crystals], **vars(options))
    names = [crystal.name for crystal in crystals]
    for name, r in zip(names, found, strict=True):
        r.atoms.info |= {"file": name, "model": potential.name, "converged": r.converged, "steps": r.steps}
    with writing(out) as draft:
        ase.io.write(draft, [r.atoms for r in found], format=kind)
    show(_relaxed(f"{potential.name}, {dtype}", names, found))
    note(f"written to {out}")
    failed = [f"{name}: {r.reason}" for name, r in zip(names, found, strict=True) if not r.converged]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(found)} structures did not converge; {out} has them as far as they came. "
            "More --steps, a larger --fmax and --smax, or --dtype float64 may help.\n  " + "\n  ".join(failed)
        )


def _relaxed(title: str, names: Sequence[str], found: Sequence[Relaxation]) -> Table:
    """A row for each crystal, before and after relaxation."""
    columns = ("file", "formula", "steps", "eV/atom before", "after", "max |F| / eV/Å", "p / GPa", "ΔV / %")
    columns += ("space group",)
    rows = []
    for name, r in zip(names, found, strict=True):
        groups = " → ".join(dict.fromkeys([r.start_space_group, r.space_group]))
        steps = f"{r.steps}" if r.converged else f"{r.steps}, not converged"
        energies = (f"{e / len(r.atoms):.4f}" for e in (r.start_energy, r.energy))
        volume = None if np.isnan(r.volume_change) else f"{100 * r.volume_change:+.2f}"
        numbers = (steps, *energies, f"{r.max_force:.1e}", float(r.pressure), volume)
        rows.append((name, r.atoms.get_chemical_formula(), *numbers, groups))
    return Table(title, columns, rows)
