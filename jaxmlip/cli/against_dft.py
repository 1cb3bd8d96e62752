"""Potentials against DFT: `jaxmlip softening`, `compare`, `softening-scale`."""

from __future__ import annotations

from pathlib import Path

from jaxmlip.cli.arguments import DEFAULT_MODEL, Models, Positional, in_bytes


def softening(
    model: Models = (),
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

    run(model or (DEFAULT_MODEL,), data, out, in_bytes(memory_limit))


def compare(
    folders: Positional[list[Path]],
    model: Models = (),
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
    model: Models = (),
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
