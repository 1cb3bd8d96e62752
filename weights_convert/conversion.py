"""Converts a checkpoint to a potential: recognises the architecture, applies its table, keeps a record."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.traverse_util
import numpy as np

from jaxmlip import potential
from jaxmlip.models import limits
from jaxmlip.system.borders import CheckpointError, brief, cut, guard, listed
from jaxmlip.system.versions import own_version
from weights_convert import (
    chgnet,
    m3gnet,
    mace,
    matgl,
    matgl_chgnet,
    mattersim,
    published,
    relatives,
    rules,
    torch_zip,
)

# Each module has CONVENTION, NAMES (hyperparameters that its files call differently), the functions
# recognises, tensors, config and elements of a checkpoint, and the functions rules and set_aside of a
# configuration. The keys are those of jaxmlip.potential.ARCHITECTURES. If its models can have several heads,
# it has a function `heads` of a checkpoint, and `tensors` takes the name of one.
ARCHITECTURES: dict[str, ModuleType] = {
    "chgnet": chgnet,
    "m3gnet": m3gnet,
    "mace": mace,
    "mattersim": mattersim,
    "matgl-chgnet": matgl_chgnet,
}


def is_checkpoint(folder: Path) -> bool:
    """True if `folder` looks like one that a trainer wrote, whole or not, rather than Potential.save."""
    return not (folder / "manifest.json").exists() and any((folder / name).is_file() for name in matgl.FILES)


def convert_file(source: Path, name: str | None = None, head: str | None = None) -> potential.Potential:
    """The potential that the checkpoint `source` holds, called `name` (default: as published, or the file).

    A folder is a checkpoint if its architecture is published as several files, as those of matgl are. `head`
    selects the head of a model with several.

    Nothing in the file is run. Raises CheckpointError if no architecture recognises it, if it has
    options that are not supported or that no model has, if its tensors and the model disagree or hold no
    weights, if it would cost more than a model does, and if it has several heads and `head` names none
    of them.
    """
    source = Path(source)
    if source.exists() and not source.is_file() and not source.is_dir():
        raise CheckpointError("is a device or a pipe, needed a file or a folder.", source)
    checkpoint = matgl.read(source) if source.is_dir() else torch_zip.read(source)
    digest = published.digest(source, matgl.FILES)
    known = published.name_of(source, digest)
    with guard(source, CheckpointError, "Save the model again with the trainer of its own package."):
        architecture = _recognise(checkpoint)
        kind = ARCHITECTURES[architecture]
        head = _head(kind, checkpoint, head)
        with limits.told(CheckpointError):
            config = kind.config(checkpoint)
        limits.check(config, kind.NAMES, CheckpointError)
        tensors = kind.tensors(checkpoint) if head is None else kind.tensors(checkpoint, head)
        model = potential.ARCHITECTURES[architecture][0](config)
        flat = rules.convert(
            tensors, potential.parameter_shapes(model), kind.rules(config), kind.set_aside(config)
        )
        elements = kind.elements(checkpoint)
    manifest = {
        "source": source.name,
        "source_sha256": digest,
        "convention": kind.CONVENTION,
        "jaxmlip": own_version(),
        "set_aside": kind.set_aside(config),
    }
    if head is not None:
        manifest["head"] = head
    if known:
        manifest |= {
            "licence": published.MODELS[known].licence,
            "functional": published.MODELS[known].heads.get(head, published.MODELS[known].functional),
        }
    params = flax.traverse_util.unflatten_dict(
        {key: _floating(tensor) for key, tensor in flat.items()}, sep="/"
    )
    label = name or known or (source.resolve().name if source.is_dir() else source.name.split(".")[0])
    return potential.Potential(label, model, params, elements, manifest)


def _head(kind: ModuleType, checkpoint: Any, head: str | None) -> str | None:
    """The head to convert; None for an architecture without heads."""
    names = kind.heads(checkpoint) if hasattr(kind, "heads") else ()
    if head is None and len(names) <= 1:
        return names[0] if names else None
    if head in names:
        return head
    if head is None:
        raise CheckpointError(
            f"it has the heads {listed(names, ', ')}; needed one of them: load(…, head={names[0]!r}) in "
            f"Python, --head {names[0]} on the command line."
        )
    raise CheckpointError(
        f"found head={head!r}, but the file has "
        + (f"the heads {listed(names, ', ')}." if names else "no heads; leave it out.")
    )


def _floating(tensor: np.ndarray) -> np.ndarray:
    """The tensor in the precision of its source, or in float32 if that precision is not for computing."""
    return tensor if tensor.dtype in (np.float32, np.float64) else np.asarray(tensor, np.float32)


def _recognise(checkpoint: Any) -> str:
    found = [name for name, kind in ARCHITECTURES.items() if kind.recognises(checkpoint)]
    if found:
        return found[0]
    if remedy := relatives.remedy(checkpoint):
        raise CheckpointError(remedy)
    needed = "; ".join(f"for {name}, {kind.LAYOUT}" for name, kind in ARCHITECTURES.items())
    raise CheckpointError(f"it holds {_describe(checkpoint)}, of no known architecture. Needed, {needed}.")


def _describe(checkpoint: Any) -> str:
    """The top level of a file, in a few words."""
    if not isinstance(checkpoint, Mapping):
        return brief(checkpoint)
    keys = [key if isinstance(key, str) else brief(key) for key in itertools.islice(checkpoint, 3)]
    some = cut(", ".join(keys), 80) + (", …" if len(checkpoint) > 3 else "")
    if checkpoint and all(isinstance(value, np.ndarray) for value in checkpoint.values()):
        return f"a bare state dict of {len(checkpoint)} tensors ({some})"
    return f"a dictionary with the keys {some}" if keys else "an empty dictionary"
