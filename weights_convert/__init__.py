"""Reads public torch checkpoints without torch and converts them for jaxmlip.

`python -m weights_convert SOURCE OUT` converts a file; `python -m weights_convert.golden OUT` records what
the original computes, in an environment that has torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxmlip.potential import Potential


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` looks like one that a trainer wrote, whole or not, rather than Potential.save."""
    return not (folder / "manifest.json").exists() and any(
        (folder / name).is_file() for name in ("state.pt", "model.json")
    )


def convert_file(source: Path, name: str | None = None, head: str | None = None) -> Potential:
    """The potential that the checkpoint `source` holds, called `name` (default: as published, or the file).

    A folder is a checkpoint where its architecture is published as several files, as M3GNet is. `head` names
    the one to take of a model with several.

    Nothing in the file is run. Raises CheckpointError where no architecture recognises it, where it has
    options that are not supported or that no model has, where its tensors and the model disagree or hold no
    weights, where it would cost more than a model does, and where it has several heads and `head` names none
    of them.
    """
    # Late, because weights_convert.golden runs where there is no JAX.
    from weights_convert.conversion import convert_file as convert

    return convert(source, name, head)
