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
        memory_limit: in GB; supercells whose Hessian does not fit are made smaller, with a warning
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
    "softening": softening,
    "compare": compare,
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
