"""Commands for models and their predictions: `jaxmlip models`, `convert`, `predict`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from jaxmlip.crystals.structures import checked, read_all
from jaxmlip.potential import Potential
from jaxmlip.system.arguments import (
    DEFAULT_MODEL,
    AsJson,
    DType,
    Flag,
    Head,
    Limit,
    Model,
    Positional,
    Rare,
    SkipBad,
)
from jaxmlip.system.console import note, say
from jaxmlip.system.files import check_folder
from jaxmlip.system.tables import Table, show


def models(verify: str | None = None) -> None:
    """Lists the known public models, their sources, and which are cached.

    Args:
        verify: instead fetch this one and compare it, in float64, with results that its authors published
    """
    from jaxmlip.zoo.cache import cached
    from weights_convert.published import MODELS

    if verify is not None:
        from jaxmlip.zoo.load import load
        from weights_convert.verification import differences_from_published, published_head

        potential = load(verify, "float64", published_head(verify))
        _tell(differences_from_published(potential), f"{verify} is not what was published")
        return
    here = set(cached())
    rows = [
        (name, m.architecture, m.functional, m.origin, m.licence, "yes" if name in here else "no")
        for name, m in MODELS.items()
    ]
    show(Table("public models", ("name", "architecture", "functional", "source", "licence", "cached"), rows))


def convert(
    source: Positional[Path],
    out: Positional[Path],
    name: str | None = None,
    head: Rare[str | None] = None,
    verify: Flag = False,
) -> None:
    """Converts a torch checkpoint to a model folder, and runs no code in it.

    torch is not needed.

    Args:
        source: the checkpoint: a file of CHGNet's, MACE's or MatterSim's trainer, or the folder of an M3GNet
            or a CHGNet of matgl
        out: the folder to write model.safetensors and manifest.json to
        name: name of the model; default: the name of the file
        head: the head to use of a model with several
        verify: compare with the original, whose package must be installed, in float64 on small crystals
    """
    from weights_convert.conversion import convert_file
    from weights_convert.verification import check_original, differences

    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; needed a torch checkpoint, a file or a folder.")
    check_folder(out)
    potential = convert_file(source, name, head)
    if verify:
        check_original(potential)
    potential.save(out)
    size = f"{len(potential.elements)} elements, {potential.parameter_count:,} parameters"
    note(f"{potential.name}: {size}, written to {out}")
    if not verify:
        return
    _tell(differences(source, Potential.from_folder(out, "float64")), f"{out} is not the original")


def _tell(differences: dict[str, float], wrong: str) -> None:
    """Prints the largest differences. Raises RuntimeError, beginning with `wrong`, if one is too large."""
    from weights_convert.verification import TOLERANCE, UNITS

    for quantity, difference in differences.items():
        say(f"{quantity:8} differs by at most {difference:.1e} {UNITS[quantity]}")
    if max(differences.values()) > TOLERANCE:
        raise RuntimeError(f"{wrong}: needed differences up to {TOLERANCE:g}.")


def predict(
    files: Positional[list[Path]],
    model: Model = DEFAULT_MODEL,
    dtype: DType = "float32",
    head: Head = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    json_: AsJson = False,
) -> None:
    """Energy, forces, stress and magnetic moments of every structure in FILES.

    Slabs, wires and molecules repeat only in the directions that the file gives; their stress is along those
    directions, per volume of the box.

    Args:
        files: structures in any format that ASE or pymatgen reads
        model: the potential
        dtype: precision of the computation
        json_: print everything as JSON instead of a table
    """
    from jaxmlip.units import GPA_PER_EV_PER_A3
    from jaxmlip.zoo.load import load

    crystals = read_all(files, limit, skip_bad)
    potential = load(model, dtype, head=head)
    crystals = checked(crystals, potential.graph, skip_bad)
    found = potential.predict([atoms for *_, atoms in crystals])
    if json_:
        rows = [
            {
                "file": str(path),
                "index": k,
                "formula": atoms.get_chemical_formula(),
                "pbc": atoms.pbc.tolist(),
                **{name: np.asarray(x).tolist() for name, x in prediction.items()},
            }
            for (path, k, atoms), prediction in zip(crystals, found, strict=True)
        ]
        print(json.dumps(rows, indent=1))
        return
    columns = ("file", "formula", "atoms", "energy / eV", "eV/atom", "max |F| / eV/Å", "p / GPa", "Σ|m| / μB")
    rows = []
    for crystal, prediction in zip(crystals, found, strict=True):
        atoms = crystal.atoms
        energies = [prediction["energy"], prediction["energy"] / len(atoms)]
        pressure = (
            f"{-np.trace(prediction['stress']) / 3 * GPA_PER_EV_PER_A3:.3f}" if atoms.pbc.all() else None
        )
        moments = f"{np.abs(prediction['magmoms']).sum():.2f}" if "magmoms" in prediction else None
        force = np.linalg.norm(prediction["forces"], axis=1).max()
        formula = atoms.get_chemical_formula()
        rows.append((crystal.name, formula, len(atoms), *energies, force, pressure, moments))
    show(Table(f"{potential.name}, {dtype}", columns, rows, 4))
    if open_ := sum(not atoms.pbc.all() for *_, atoms in crystals):
        say(
            f"{open_} of {len(crystals)} do not repeat in three directions (pbc) and have no pressure; "
            "--json has the stress along the directions in which they do, per volume of the box."
        )
