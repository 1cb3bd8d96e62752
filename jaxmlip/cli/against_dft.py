"""Comparison of potentials with DFT: `jaxmlip softening`, `compare`, `softening-scale`."""

from __future__ import annotations

from pathlib import Path

import tyro

from jaxmlip.system.arguments import (
    DEFAULT_MODEL,
    DType,
    Models,
    Positional,
    Rare,
    SkipBad,
    above_zero,
    at_least,
    in_bytes,
)

Heads = Rare[tyro.conf.UseAppendAction[tuple[str, ...]]]


def softening(
    model: Models = (),
    head: Heads = (),
    data: Path | None = None,
    dtype: DType = "float64",
    out: Path = Path(),
    memory_limit: Rare[float | None] = None,
) -> None:
    """Is a model's curvature too small? Its phonons beside those of DFT.

    Args:
        model: the potential; can be given several times; default: chgnet-0.3.0
        head: the head to use of a checkpoint with several; give it once for each such checkpoint
        data: the folder phonondb_PBE_103, to run all of its 103 materials instead of the built-in list
        dtype: precision of the computation
        out: folder for softening.json and softening.png
        memory_limit: in GB; the number of columns computed at once is chosen to stay below it
    """
    from jaxmlip.studies.softening import main

    above_zero(memory_limit=memory_limit)
    main(model or (DEFAULT_MODEL,), data, out, in_bytes(memory_limit), dtype=dtype, heads=head)


def compare(
    folders: Positional[list[Path]],
    model: Models = (),
    head: Heads = (),
    mesh: tuple[int, int, int] = (12, 12, 12),
    dtype: DType = "float64",
    out: Path = Path(),
) -> None:
    """Phonons of a potential beside the DFT of phonopy runs.

    Displacements and settings are the same.

    Args:
        folders: phonopy runs: folders with phonopy_disp.yaml (or phonopy_params.yaml, phonopy.yaml) and
            FORCE_SETS, or such yaml files with forces in them
        model: the potential; can be given several times; default: chgnet-0.3.0
        head: the head to use of a checkpoint with several; give it once for each such checkpoint
        mesh: Γ-centred mesh of wave vectors
        dtype: precision of the computation; small displacements give small forces, so float64 is the default
        out: folder for compare.json and compare.png
    """
    from jaxmlip.studies.compare import main

    at_least(1, mesh=mesh)
    main(folders, model or (DEFAULT_MODEL,), mesh, out, dtype, head)


def softening_scale(
    files: Positional[list[Path]],
    model: Models = (),
    head: Heads = (),
    forces: str = "forces",
    group_by: str | None = None,
    frames: int | None = None,
    max_force: float | None = None,
    skip_bad: SkipBad = False,
    dtype: DType = "float32",
    out: Path = Path(),
) -> None:
    """Are a model's forces too weak? Their slopes against those of DFT.

    Args:
        files: crystals with DFT forces, such as extxyz, also as .gz
        model: the potential; can be given several times; default: chgnet-0.3.0
        head: the head to use of a checkpoint with several; give it once for each such checkpoint
        forces: name of the per-atom array with the DFT forces
        group_by: an entry of the frames' info line that tells materials apart, besides the formula
        frames: maximum number of frames of each material, evenly spread; default: all
        max_force: leave out frames with a DFT force above this, in eV/Å
        dtype: precision of the computation
        out: folder for softening_scale.json and softening_scale.png
    """
    from jaxmlip.studies.softening_scale import main

    at_least(1, frames=frames)
    above_zero(max_force=max_force)
    main(model or (DEFAULT_MODEL,), files, out, forces, group_by, frames, max_force, dtype, head, skip_bad)
