"""Arguments that several commands have."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

DEFAULT_MODEL = "chgnet-0.3.0"
Positional = tyro.conf.Positional
Model = Annotated[
    str, tyro.conf.arg(help="a name that `jaxmlip models` lists, a model folder or a checkpoint")
]
Head = Annotated[str | None, tyro.conf.arg(help="which head, of a checkpoint that has several")]
Models = tyro.conf.UseAppendAction[tuple[Model, ...]]
DType = Literal["float32", "float64"]
Limit = Annotated[int | None, tyro.conf.arg(help="read so many structures of each file; default: all")]
SkipBad = Annotated[
    tyro.conf.FlagCreatePairsOff[bool],
    tyro.conf.arg(help="leave out what cannot be used, and say why, instead of stopping at the first"),
]
AsJson = Annotated[bool, tyro.conf.arg(name="json")]


def in_bytes(memory_limit: float | None) -> float | None:
    """A limit given in GB."""
    return None if memory_limit is None else memory_limit * 1e9
