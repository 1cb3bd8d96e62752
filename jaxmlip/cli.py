"""The console script `jaxmlip`: each command is one function, its arguments are its options."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ase import Atoms

DEFAULT_MODEL = "chgnet-0.3.0"
Positional = tyro.conf.Positional
Model = Annotated[
    str, tyro.conf.arg(help="a name that `jaxmlip models` lists, a model folder or a checkpoint")
]
DType = Literal["float32", "float64"]


def models() -> None:
    """Lists the known public models, where they come from, and which are cached."""
    from jaxmlip.sources import MODELS, cached

    table = Table(title="public models", title_justify="left")
    for column in ("name", "architecture", "functional", "source", "licence", "cached"):
        table.add_column(column)
    here = set(cached())
    for name, model in MODELS.items():
        table.add_row(
            name,
            model.architecture,
            model.functional,
            str(model.origin),
            model.licence,
            "yes" if name in here else "no",
        )
    _print(table)


def convert(
    source: Positional[Path], out: Positional[Path], name: str | None = None, head: str | None = None
) -> None:
    """Converts a torch checkpoint to a model folder, without torch and without running anything in it.

    Args:
        source: the checkpoint: a file of CHGNet's or MACE's trainer, or the folder of an M3GNet of matgl
        out: the folder to write model.safetensors and manifest.json to
        name: what to call the model; default: the name of the file
        head: the one to take of a model with several
    """
    from weights_convert.conversion import convert_file

    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; needed a torch checkpoint, a file or a folder.")
    potential = convert_file(source, name, head)
    potential.save(out)
    Console().print(f"{potential.name}: {potential.parameter_count:,} parameters, written to {out}")


def predict(
    files: Positional[list[Path]],
    model: Model = DEFAULT_MODEL,
    dtype: DType = "float32",
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Energy, forces, stress and magnetic moments of every structure in FILES.

    Args:
        files: structures in any format that ASE or pymatgen reads
        model: which potential
        dtype: precision of the computation
        json_: print everything as JSON instead of a table
    """
    from jaxmlip.sources import load
    from jaxmlip.units import GPA_PER_EV_PER_A3

    crystals = [(path, k, atoms) for path in files for k, atoms in enumerate(read_crystals(path))]
    potential = load(model, dtype)
    for path, k, atoms in crystals:
        _naming(path, k, potential.graph, atoms)
    found = potential.predict([atoms for *_, atoms in crystals])
    if json_:
        rows = [
            {
                "file": str(path),
                "index": k,
                "formula": atoms.get_chemical_formula(),
                **{name: np.asarray(x).tolist() for name, x in prediction.items()},
            }
            for (path, k, atoms), prediction in zip(crystals, found, strict=True)
        ]
        print(json.dumps(rows, indent=1))
        return
    table = Table(title=f"{potential.name}, {dtype}", title_justify="left")
    for column in (
        "file",
        "formula",
        "atoms",
        "energy / eV",
        "eV/atom",
        "max |F| / eV/Å",
        "p / GPa",
        "Σ|m| / μB",
    ):
        table.add_column(column, justify="left" if column in ("file", "formula") else "right")
    for (path, k, atoms), prediction in zip(crystals, found, strict=True):
        moments = f"{np.abs(prediction['magmoms']).sum():.2f}" if "magmoms" in prediction else "-"
        table.add_row(
            f"{path}" + (f" [{k}]" if k else ""),
            atoms.get_chemical_formula(),
            str(len(atoms)),
            f"{prediction['energy']:.4f}",
            f"{prediction['energy'] / len(atoms):.4f}",
            f"{np.linalg.norm(prediction['forces'], axis=1).max():.4f}",
            f"{-np.trace(prediction['stress']) / 3 * GPA_PER_EV_PER_A3:.3f}",
            moments,
        )
    _print(table)


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
    from jaxmlip.sources import load
    from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U

    (atoms, *rest) = read_crystals(file)
    if rest:
        raise ValueError(f"{file} holds {1 + len(rest)} structures, needed one.")
    potential = load(model, dtype)
    limit = None if memory_limit is None else memory_limit * 1e9
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
    table = Table(title=f"frequencies at q = 0, {potential.name}", title_justify="left")
    table.add_column("mode", justify="right")
    table.add_column("THz", justify="right")
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
    memory_limit: float | None = None,
    out: Path = Path(),
) -> None:
    """Phonon bands, density of states and thermodynamics of the primitive cell in FILE, without supercells.

    Args:
        file: a structure in any format that ASE or pymatgen reads
        model: which potential; it computes in float64
        relax: relax the cell and the atoms first, the space group kept
        path: special points of the bands, such as GXK,GL; default: ASE's path for the lattice
        points: wave vectors on the path, about
        mesh: wave vectors of the density of states along each reciprocal lattice vector
        width: of a Gaussian for each mode (THz); default: linear tetrahedra
        born: a BORN file of phonopy for this cell: splits longitudinal from transverse optical modes
        animate: write this mode as frames: the number of the wave vector on the path, and of the branch
        memory_limit: in GB; the number of columns computed at once is chosen to stay below it
        out: folder for phonons.json, phonons.png and, with phonopy installed, phonopy_params.yaml
    """
    from jaxmlip.phonons import report
    from jaxmlip.relaxation import at_rest
    from jaxmlip.sources import load

    (atoms, *rest) = read_crystals(file)
    if rest:
        raise ValueError(f"{file} holds {1 + len(rest)} structures, needed one.")
    potential = load(model, "float64")
    _naming(file, 0, potential.graph, atoms)
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
        memory_limit=None if memory_limit is None else memory_limit * 1e9,
    )


def elastic(
    file: Positional[Path],
    model: Model = DEFAULT_MODEL,
    relax: bool = False,
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False,
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
    from jaxmlip.sources import load

    (atoms, *rest) = read_crystals(file)
    if rest:
        raise ValueError(f"{file} holds {1 + len(rest)} structures, needed one.")
    potential = load(model, "float64")
    _naming(file, 0, potential.graph, atoms)
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
    table = Table(title=f"{record['formula']}: C / GPa, {potential.name}", title_justify="left")
    for column in ("", "xx", "yy", "zz", "yz", "xz", "xy"):
        table.add_column(column, justify="right")
    for name, row in zip(("xx", "yy", "zz", "yz", "xz", "xy"), found.C, strict=True):
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

    crystals = [(path, k, atoms) for path in files for k, atoms in enumerate(read_crystals(path))]
    kind = _writable(out, len(crystals))
    potential = load(model, dtype)
    for path, k, atoms in crystals:
        _naming(path, k, potential.graph, atoms)
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
    table = Table(title=f"{potential.name}, {dtype}", title_justify="left")
    for column in (
        "file",
        "formula",
        "steps",
        "eV/atom before",
        "after",
        "max |F| / eV/Å",
        "p / GPa",
        "ΔV / %",
        "space group",
    ):
        left = column in ("file", "formula", "space group")
        table.add_column(column, justify="left" if left else "right")
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
    _print(table)
    Console().print(f"written to {out}", highlight=False)
    failed = [f"{name}: {r.reason}" for name, r in zip(names, found, strict=True) if not r.converged]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(found)} structures did not converge; {out} has them as far as they came. "
            "More --steps, a larger --fmax and --smax, or --dtype float64 may help.\n  " + "\n  ".join(failed)
        )


def softening(
    model: tyro.conf.UseAppendAction[tuple[Model, ...]] = (),
    data: Path | None = None,
    out: Path = Path(),
    memory_limit: float | None = None,
) -> None:
    """Phonon frequencies of binary crystals against DFT: is the curvature of the model too soft?

    Args:
        model: which potential; can be given several times; default: chgnet-0.3.0
        data: the folder phonondb_PBE_103, to run all of its 103 materials instead of the built-in list
        out: folder for softening.json and softening.png
        memory_limit: in GB; the number of columns computed at once is chosen to stay below it
    """
    from jaxmlip.softening import run

    run(model or (DEFAULT_MODEL,), data, out, None if memory_limit is None else memory_limit * 1e9)


def compare(
    folders: Positional[list[Path]],
    model: tyro.conf.UseAppendAction[tuple[Model, ...]] = (),
    mesh: tuple[int, int, int] = (12, 12, 12),
    out: Path = Path(),
) -> None:
    """Phonons of a potential against the DFT of phonopy runs: same displacements, same settings.

    Args:
        folders: phonopy runs: folders with phonopy_disp.yaml (or phonopy_params.yaml, phonopy.yaml) and
            FORCE_SETS, or such yaml files with forces in them
        model: which potential; can be given several times; default: chgnet-0.3.0
        mesh: of wave vectors, Γ-centred
        out: folder for compare.json and compare.png
    """
    from jaxmlip.phonons.compare import run

    run(folders, model or (DEFAULT_MODEL,), mesh, out)


def softening_scale(
    files: Positional[list[Path]],
    model: tyro.conf.UseAppendAction[tuple[Model, ...]] = (),
    forces: str = "forces",
    group_by: str | None = None,
    frames: int | None = None,
    max_force: float | None = None,
    out: Path = Path(),
) -> None:
    """Slopes of a model's forces against the DFT forces in FILES, material by material: are they too weak?

    Args:
        files: crystals with DFT forces, such as extxyz, also as .gz
        model: which potential; can be given several times; default: chgnet-0.3.0
        forces: name of the per-atom array with the DFT forces
        group_by: an entry of the frames' info line that tells materials apart, besides the formula
        frames: at most so many of each material, evenly spread; default: all
        max_force: leave out frames with a DFT force above this, in eV/Å
        out: folder for softening_scale.json and softening_scale.png
    """
    from jaxmlip.softening_scale import run

    run(model or (DEFAULT_MODEL,), files, out, forces, group_by, frames, max_force)


def read_crystals(path: Path) -> list[Atoms]:
    """Every structure in a file that ASE or pymatgen reads. Raises ValueError with the reasons of both."""
    import ase.io

    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file; needed one with a crystal structure, such as a CIF or POSCAR."
        )
    try:
        found = ase.io.read(path, index=":")
    except Exception as by_ase:  # readers of a hundred formats raise what they like
        from pymatgen.core import Structure

        try:
            found = [Structure.from_file(path).to_ase_atoms(msonable=False)]
        except Exception as by_pymatgen:
            raise ValueError(
                f"neither ASE nor pymatgen can read {path}; needed a structure in a format that one of them "
                f"knows (CIF, POSCAR, extxyz, …), with the usual file name.\n  ASE: {_brief(by_ase)}"
                f"\n  pymatgen: {_brief(by_pymatgen)}"
            ) from None
    if not found:
        raise ValueError(f"{path} holds no structure.")
    return found


def _writable(out: Path, structures: int) -> str:
    """The format of ASE that the name of a file means, once it is known to be one that can be written."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        kind = filetype(str(out), read=False, guess=False)
    except UnknownFileTypeError:
        kind = None
    if kind not in ioformats or not ioformats[kind].can_write:
        raise ValueError(
            f"ASE writes no format that is named as {out} is; take .extxyz, .traj, .cif or POSCAR."
        )
    if structures > 1 and kind not in ("extxyz", "traj"):
        raise ValueError(
            f"{structures} structures are to go to {out}, needed a file that keeps several with their "
            "energies and forces: .extxyz or .traj."
        )
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {out} does not exist; make it first.")
    return kind


def _naming(path: Path, index: int, check, atoms) -> None:
    """Calls check(atoms); an error then names the file."""
    try:
        check(atoms)
    except ValueError as error:
        where = f"{path}, structure {index}" if index else str(path)
        raise ValueError(f"{where}: {error}") from None


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _print(table: Table) -> None:
    console = Console()
    # In a file or a pipe a table is as wide as it needs to be.
    Console(width=None if console.is_terminal else 200).print(table)


def _say(text: str, style: str) -> None:
    Console(stderr=True).print(text, style=style, highlight=False, markup=False, soft_wrap=True)


COMMANDS = {
    "models": models,
    "convert": convert,
    "predict": predict,
    "hessian": hessian,
    "phonons": phonons,
    "relax": relax,
    "elastic": elastic,
    "softening": softening,
    "compare": compare,
    "softening-scale": softening_scale,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; what goes wrong is said in a few lines on standard error, with exit code 1."""
    warnings.showwarning = lambda message, *_: _say(f"warning: {message}", "yellow")
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="jaxmlip",
            description="The curvature of universal interatomic potentials.",
            args=arguments,
        )
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        _say(f"error: {error}", "red")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
