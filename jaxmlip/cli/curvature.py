"""Derivatives and minima of a potential: `jaxmlip hessian`, `phonons`, `elastic`, `relax`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro
from rich.console import Console

from jaxmlip.cli.arguments import DEFAULT_MODEL, AsJson, DType, Model, Positional, in_bytes
from jaxmlip.cli.tables import print_table, table_of
from jaxmlip.structures import naming, read_all, read_crystal, writable

if TYPE_CHECKING:
    from ase import Atoms

    from jaxmlip.potential import Potential


def hessian(
    file: Positional[Path],
    model: Model = DEFAULT_MODEL,
    dtype: DType = "float64",
    memory_limit: float | None = None,
    block_size: int | None = None,
    out: Path = Path("hessian.npz"),
) -> None:
    """The Hessian of the structure in FILE (eV/Å²) and its vibrations with all cells in step (q = 0).

    Args:
        file: a structure in any format that ASE or pymatgen reads
        model: which potential
        dtype: precision of the computation
        memory_limit: in GB; the number of columns computed at once is chosen to stay below it
        block_size: number of columns computed at once; default: 8 or what the limit allows
        out: X.npz for Hessian, masses, eigenvectors and frequencies; X.npy for the Hessian alone, written as
            it is computed and never as a whole in memory: started again, an interrupted run goes on
    """
    import jaxmlip
    from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U

    potential, atoms = _of_one(file, model, dtype)
    limit = in_bytes(memory_limit)
    plan = jaxmlip.plan_hessian(potential, atoms, block_size, limit)
    console = Console()
    console.print(
        f"{atoms.get_chemical_formula()}: {3 * len(atoms)} columns, {plan.block_size} at once, "
        f"predicted memory {plan.total / 1e9:.3g} GB"
    )
    if out.suffix == ".npy":
        _stream(potential, atoms, out, block_size, limit)
        return
    h = jaxmlip.hessian(potential, atoms, plan.block_size, limit)
    masses = np.repeat(atoms.get_masses(), 3)
    squares, modes = np.linalg.eigh((h + h.T) / 2 / np.sqrt(masses[:, None] * masses))
    # The sign tells stable modes from imaginary ones.
    thz = np.sign(squares) * np.sqrt(np.abs(squares)) * THZ_PER_ROOT_EV_PER_A2_U
    np.savez(
        out, hessian=h, masses=atoms.get_masses(), frequencies=thz, modes=modes.T.reshape(-1, len(atoms), 3)
    )
    table = table_of(f"frequencies at q = 0, {potential.name}", ("mode", "THz"))
    shown = range(len(thz)) if len(thz) <= 24 else [*range(12), *range(len(thz) - 12, len(thz))]
    for k in shown:
        table.add_row(str(k + 1), f"{thz[k]:.3f}")
    console.print(table)
    console.print(f"asymmetry {np.abs(h - h.T).max():.1e} eV/Å²; written to {out}")


def _stream(potential, atoms, out: Path, block_size: int | None, limit: float | None) -> None:
    from jaxmlip.streaming import columns_done, stream_hessian

    done = columns_done(out)
    if done:
        Console().print(f"{done} columns are there already", highlight=False)
    stream_hessian(potential, atoms, out, None, block_size, limit)
    Console().print(
        f'written to {out}; numpy.load("{out}", mmap_mode="r") opens it, row k is column k', highlight=False
    )


def _of_one(file: Path, model: str, dtype: str) -> tuple[Potential, Atoms]:
    """A potential, and the one structure in a file, which it takes."""
    from jaxmlip.sources import load

    atoms = read_crystal(file)
    potential = load(model, dtype)
    naming(file, 0, potential.graph, atoms)
    return potential, atoms


def phonons(
    file: Positional[Path],
    model: Model = DEFAULT_MODEL,
    relax: bool = False,
    path: str | None = None,
    points: int = 101,
    mesh: tuple[int, int, int] | None = None,
    width: float | None = None,
    born: Path | None = None,
    animate: tuple[int, int] | None = None,
    keep_cell: tyro.conf.FlagCreatePairsOff[bool] = False,
    symprec: float = 1e-5,
    memory_limit: float | None = None,
    out: Path = Path(),
) -> None:
    """Phonon bands, density of states and thermodynamics of the crystal in FILE, without supercells.

    They are those of its primitive cell, to which a larger cell is reduced, masses and magnetic moments
    respected.

    Args:
        file: a structure in any format that ASE or pymatgen reads
        model: which potential; it computes in float64
        relax: relax the cell and the atoms first, the space group kept
        path: special points of the bands, such as GXK,GL; default: ASE's path for the lattice
        points: wave vectors on the path, about
        mesh: wave vectors of the density of states along each reciprocal lattice vector
        width: of a Gaussian for each mode (THz); default: linear tetrahedra
        born: a BORN file of phonopy for this crystal: splits longitudinal from transverse optical modes
        animate: write this mode as frames: the number of the wave vector on the path, and of the branch
        keep_cell: compute the cell as it is, not its primitive cell
        symprec: how far atoms may be from the symmetry that is used, in Å
        memory_limit: in GB; the number of columns computed at once is chosen to stay below it
        out: folder for phonons.json, phonons.png and, with phonopy installed, phonopy_params.yaml
    """
    from jaxmlip.phonons import report
    from jaxmlip.relaxation import at_rest

    potential, atoms = _of_one(file, model, "float64")
    if relax:
        atoms = at_rest(potential, atoms)
    report.run(
        potential,
        atoms,
        out,
        path=path,
        points=points,
        mesh=mesh,
        width=width,
        born=born,
        animate=animate,
        keep_cell=keep_cell,
        symprec=symprec,
        memory_limit=in_bytes(memory_limit),
    )


def elastic(
    file: Positional[Path],
    model: Model = DEFAULT_MODEL,
    relax: bool = False,
    json_: AsJson = False,
    out: Path = Path("elastic.json"),
) -> None:
    """The elastic constants of the structure in FILE, in the Cartesian axes of the file, by linear response.

    Args:
        file: a structure in any format that ASE or pymatgen reads
        model: which potential; computed in float64
        relax: relax the cell and the atoms first, the space group kept
        json_: print everything as JSON instead of a table, and write no file
        out: file for everything that was computed
    """
    from jaxmlip.elasticity import elastic_tensor
    from jaxmlip.relaxation import at_rest

    potential, atoms = _of_one(file, model, "float64")
    if relax:
        atoms = at_rest(potential, atoms)
    found = elastic_tensor(potential, atoms)
    record = {
        "file": str(file),
        "formula": atoms.get_chemical_formula(),
        "model": potential.name,
        "relaxed_first": relax,
        "cell_A": atoms.cell.tolist(),
        "scaled_positions": atoms.get_scaled_positions().tolist(),
        **found.as_record(),
    }
    if json_:
        print(json.dumps(record, indent=1))
        return
    out.write_text(json.dumps(record, indent=1) + "\n")
    voigt = ("xx", "yy", "zz", "yz", "xz", "xy")
    table = table_of(f"{record['formula']}: C / GPa, {potential.name}", ("", *voigt))
    for name, row in zip(voigt, found.C, strict=True):
        table.add_row(name, *(f"{round(c, 1) + 0.0:.1f}" for c in row))  # no -0.0
    console = Console(width=None if Console().is_terminal else 110, highlight=False)
    console.print(table)
    for line in found.in_words():
        console.print(line)
    console.print(f"written to {out}")


def relax(
    files: Positional[list[Path]],
    model: Model = DEFAULT_MODEL,
    dtype: DType = "float32",
    fmax: float = 1e-3,
    smax: float = 0.01,
    fixed_cell: tyro.conf.FlagCreatePairsOff[bool] = False,
    fix_symmetry: tyro.conf.FlagCreatePairsOff[bool] = False,
    pressure: float = 0.0,
    steps: int = 500,
    out: Path = Path("relaxed.extxyz"),
) -> None:
    """Relaxes every structure in FILES, several of them side by side, and writes them to one file.

    Where some do not converge they are written as far as they came, marked, and the exit code is 1.

    Args:
        files: structures in any format that ASE or pymatgen reads
        model: which potential
        dtype: precision of the computation; float64 for forces below 1e-4 eV/Å
        fmax: largest force to leave, in eV/Å
        smax: largest component of the stress to leave, in GPa
        fixed_cell: move atoms alone
        fix_symmetry: keep the space group, found within 0.01 Å
        pressure: in GPa
        steps: at most so many for each structure
        out: file for all of them (.extxyz, .traj), or for one alone (.cif, POSCAR and what else ASE writes)
    """
    import ase.io

    from jaxmlip.relaxation import NotConvergedWarning, relax_many
    from jaxmlip.sources import load

    crystals = read_all(files)
    kind = writable(out, len(crystals))
    potential = load(model, dtype)
    for path, k, atoms in crystals:
        naming(path, k, potential.graph, atoms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)  # said below, with the exit code
        found = relax_many(
            potential,
            [atoms for *_, atoms in crystals],
            fmax=fmax,
            smax=smax,
            cell=not fixed_cell,
            fix_symmetry=fix_symmetry,
            pressure=pressure,
            steps=steps,
        )
    names = [f"{path}" + (f" [{k}]" if k else "") for path, k, _ in crystals]
    for name, r in zip(names, found, strict=True):
        r.atoms.info |= {"file": name, "model": potential.name, "converged": r.converged, "steps": r.steps}
    ase.io.write(out, [r.atoms for r in found], format=kind)
    numbers = ("steps", "eV/atom before", "after", "max |F| / eV/Å", "p / GPa", "ΔV / %")
    words = ("file", "formula", "space group")
    table = table_of(f"{potential.name}, {dtype}", (*words[:2], *numbers, words[2]), left=words)
    for name, r in zip(names, found, strict=True):
        groups = list(dict.fromkeys([r.start_space_group, r.space_group]))
        table.add_row(
            name,
            r.atoms.get_chemical_formula(),
            f"{r.steps}" if r.converged else f"{r.steps}, not converged",
            f"{r.start_energy / len(r.atoms):.4f}",
            f"{r.energy / len(r.atoms):.4f}",
            f"{r.max_force:.1e}",
            f"{r.pressure:.3f}",
            f"{100 * r.volume_change:+.2f}",
            " → ".join(groups),
        )
    print_table(table)
    Console().print(f"written to {out}", highlight=False)
    failed = [f"{name}: {r.reason}" for name, r in zip(names, found, strict=True) if not r.converged]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(found)} structures did not converge; {out} has them as far as they came. "
            "More --steps, a larger --fmax and --smax, or --dtype float64 may help.\n  " + "\n  ".join(failed)
        )
