"""Folders that matgl saves: state.pt (tensors) and model.json (options). What its networks have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers

from jaxmlip.system.borders import CheckpointError, brief, cut, guard, listed
from weights_convert import torch_zip

FILES = ("state.pt", "model.json")
REFERENCES = "element_refs.property_offset"
SET_ASIDE = {"data_mean": "zero", r"element_refs\.onehot": "the identity matrix"}
LARGEST_JSON = 10_000_000  # bytes; the published files have some thousands


def read(folder: Path) -> dict[str, Any]:
    """The files of a folder that matgl saved, by name. No code in them is run.

    Raises CheckpointError if one is missing or cannot be read.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"it has no {' and no '.join(missing)}; needed a folder with state.pt and model.json of matgl.",
            folder,
        )
    options = folder / "model.json"
    again = "Needed the file as matgl wrote it: fetch it again."
    if options.stat().st_size > LARGEST_JSON:
        raise CheckpointError(f"it has {options.stat().st_size:,} bytes. {again}", options)
    text = options.read_bytes()
    with guard(options, CheckpointError, again):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"it is not JSON ({cut(str(error), 100)}). {again}") from None
    return {"state.pt": torch_zip.read(folder / "state.pt"), "model.json": found}


def recognises(checkpoint: Any) -> bool:
    """True if `checkpoint` is a folder that matgl saved, by the names of its files."""
    return isinstance(checkpoint, Mapping) and set(checkpoint) == set(FILES)


def classes(checkpoint: Any) -> list[Any]:
    """The classes that model.json names: of the whole, and of the network in it; None if it names none."""
    model = checkpoint["model.json"]
    around = model.get("kwargs") if isinstance(model, Mapping) else None
    inner = around.get("model") if isinstance(around, Mapping) else None
    return [its.get("@class") if isinstance(its, Mapping) else None for its in (model, inner)]


def parts(checkpoint: Any, name: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The arguments of matgl's Potential, and its entry of the network, which is a `name`."""
    kinds = classes(checkpoint)
    if kinds != ["Potential", name]:
        raise CheckpointError(_of_another_class(*kinds))
    around = checkpoint["model.json"]["kwargs"]
    return around, around["model"]


def arguments(inner: Mapping[str, Any], version: int, since: str) -> Mapping[str, Any]:
    """The options in an entry of a network whose class has this `version` in the matgl that `since` tells."""
    found, args = inner.get("@model_version"), inner.get("init_args")
    if found != version or not isinstance(args, Mapping):
        name = inner.get("@class")
        raise CheckpointError(
            f"model.json has {'an' if name == 'M3GNet' else 'a'} {name} with @model_version {brief(found)} "
            f"and the options {brief(args)}; needed @model_version {version} and init_args, as {since} "
            "saves it."
        )
    return args


def state(checkpoint: Any) -> Mapping[str, np.ndarray]:
    """The tensors of state.pt by name. Raises CheckpointError if it holds anything else."""
    found = checkpoint["state.pt"]
    if isinstance(found, Mapping) and found:
        kinds = {(type(name), isinstance(tensor, np.ndarray)) for name, tensor in found.items()}
        if kinds == {(str, True)}:
            return found
    raise CheckpointError("state.pt holds something else than named tensors; fetch it again.")


def elements(symbols: Any) -> tuple[int, ...]:
    """The atomic numbers of the option element_types, in its order."""
    if not isinstance(symbols, list) or not symbols or not all(isinstance(s, str) for s in symbols):
        raise CheckpointError(f"model.json has element_types={brief(symbols)}, needed different elements.")
    if len(set(symbols)) != len(symbols):
        raise CheckpointError(f"model.json has element_types={brief(symbols)}, needed different elements.")
    unknown = [s for s in symbols if not atomic_numbers.get(s)]
    if unknown:
        raise CheckpointError(f"model.json names the elements {listed(unknown, ', ')}, which do not exist.")
    return tuple(atomic_numbers[s] for s in symbols)


def by_number(
    tensors: Mapping[str, np.ndarray], numbers: tuple[int, ...], embedding: str, width: int
) -> dict[str, np.ndarray]:
    """The tensors with rows for atomic numbers in place of the elements, which have these `numbers`."""
    found = dict(tensors)
    for name, first, shape in ((embedding, 1, (len(numbers), width)), (REFERENCES, 0, (len(numbers),))):
        rows = found.get(name)
        if rows is None:
            continue  # reported with everything else that is missing
        if rows.shape != shape:
            raise CheckpointError(
                f"{name}: found shape {brief(rows.shape)}, needed {shape}, {len(numbers)} rows as "
                "element_types."
            )
        rows_of_numbers = np.zeros((max(numbers) + 1 - first, *rows.shape[1:]), rows.dtype)
        rows_of_numbers[np.array(numbers) - first] = rows
        found[name] = rows_of_numbers
    return found


def unsupported(
    around: Mapping[str, Any],
    args: Mapping[str, Any],
    needed: Mapping[str, Any],
    counts: Mapping[str, int],
    lengths: tuple[str, ...],
    others: set[str],
) -> list[str]:
    """Options that are not supported, with what is.

    `needed` are options with the only supported value, `counts` whole numbers with the largest, `lengths`
    lengths in Å; `others` are the names of further options that are known.
    """
    wrong = [
        f"{key}={brief(found)} (needed {value!r})"
        for key, value in needed.items()
        # Of these, only is_intensive means something else if it is left out.
        if type(found := args.get(key, value if key != "is_intensive" else None)) is not type(value)
        or found != value
    ]
    known = {*needed, *counts, *lengths, *others, "element_types"}
    wrong += [f"{key}={brief(args[key])} (unknown)" for key in args if key not in known]
    if around.get("calc_repuls"):
        wrong.append(f"calc_repuls={brief(around['calc_repuls'])} (needed False)")
    wrong += [
        f"{key}={brief(args.get(key))} (needed a whole number from 1 to {most})"
        for key, most in counts.items()
        if type(args.get(key)) is not int or not 1 <= args[key] <= most
    ]
    wrong += [
        f"{key}={brief(args.get(key))} (needed a length in Å)"
        for key in lengths
        if type(args.get(key)) not in (int, float) or not 0 < args[key] < math.inf
    ]
    return wrong


def shift(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The tensor of a constant shift of energies, if it is other than zero."""
    if "data_mean" in tensors and np.any(tensors["data_mean"]):
        return [f"data_mean={shown(tensors['data_mean'])} (needed 0: energies add up over atoms)"]
    return []


def shown(tensor: np.ndarray) -> str:
    return f"{tensor.item()}" if tensor.size == 1 else brief(tensor)


def _of_another_class(outer: Any, inner: Any) -> str:
    """A description of a folder of another class of matgl, with a remedy."""
    names = [kind for kind in (outer, inner) if isinstance(kind, str) and kind != "Potential"]
    if names in (["M3GNet"], ["CHGNet"]) and outer != "Potential":
        article = "an" if names == ["M3GNet"] else "a"
        return (
            f"model.json has {article} {names[0]} alone, without energies of the elements; needed the "
            "Potential around it: Potential(model, …).save(FOLDER)."
        )
    if names:
        return (
            f"model.json has a {cut(names[0], 40)} of matgl, which is not read here. Of matgl, Potentials "
            "around an M3GNet or a CHGNet are read."
        )
    return (
        f"model.json has @class {brief(outer)} around {brief(inner)}; needed a Potential around an M3GNet "
        "or a CHGNet, as matgl saves it."
    )
