"""The crystals of a run: from files and datasets to splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmlip.data.dataset import ByFunctional, Concatenated, MemorySplit, Selection, Split, check, is_dataset
from jaxmlip.data.labels import LabelledCrystal, counted, functional_name
from jaxmlip.data.readers import ReadOptions, read_labelled
from jaxmlip.system.progress import track
from jaxmlip.training.config import ConfigError, DataConfig

if TYPE_CHECKING:
    from jaxmlip.potential import Potential

ALONE = {"validation": (), "test": (), "fractions": (1.0, 0.0, 0.0), "crystals": None}  # train on all
STATE = (
    "If files do not state the functional, name it by data.options: {functional: …}, or for a dataset by "
    "`jaxmlip data convert --functional`."
)


def read_splits(data: DataConfig, potential: Potential) -> dict[str, Split]:
    """The splits "train", and "validation" and "test" if any, with graphs for `potential`.

    Raises ConfigError if a part of the data has no crystal, or has other functionals; DatasetError if they do
    not suit this potential; and as the readers do.
    """
    return with_graphs(read(data, potential.functionals), potential, data.skip_bad)


def read(data: DataConfig, functionals: Sequence[str] = ()) -> dict[str, Split | list[LabelledCrystal]]:
    """By the name of the split: a split of a dataset as it is, or the crystals of files."""
    found: dict[str, Any] = {}
    if is_dataset(data.train):
        splits = _datasets(data.train, data)
        found |= {name: split for name, split in splits.items() if len(split)}
    else:
        crystals = _crystals(data.train, data)
        fractions = np.array(data.fractions)
        for k, given in ((1, data.validation), (2, data.test)):
            if given:
                fractions[0] += fractions[k]
                fractions[k] = 0
        found |= divide(crystals, fractions, data.split_by, data.split_seed)
    for name in ("validation", "test"):
        paths = getattr(data, name)
        if paths:
            found[name] = _of_its_own(paths, name, data)
    if "train" not in found:
        raise ConfigError(f"data.train: found no crystal in {', '.join(data.train)}, needed at least one.")
    if data.crystals is not None:
        found["train"] = _some(found["train"], data.crystals, data.split_seed)
    _check_functionals(found, functionals)
    return found


def _check_functionals(splits: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Raises ConfigError unless the crystals are of one functional, or of those `needed`."""
    counts = sum((functionals_of(split) for split in splits.values()), Counter())
    if needed:
        missing = set(needed) - set(functionals_of(splits["train"]))
        if missing or set(counts) - set(needed):
            told = "; ".join(f"{name}: {counted(functionals_of(s))}" for name, s in splits.items())
            raise ConfigError(
                f"model.functionals: found {', '.join(needed)}, but crystals of {told}; needed training "
                f"crystals of each of these functionals, and none of others. {STATE}"
            )
    elif len(counts) > 1:
        names = sorted(filter(None, counts), reverse=True)
        several = f", or train on both at once with model.functionals: [{', '.join(names)}]" * (
            len(names) > 1
        )
        raise ConfigError(
            f"data: found crystals of several functionals ({counted(counts)}), whose energies cannot be "
            f"mixed. Choose one with data.functional: {names[0]}{several}. {STATE}"
        )


def functionals_of(split: Any) -> Counter:
    """The number of crystals of each functional in one of the splits of `read`."""
    return (
        Counter(crystal.functional for crystal in split)
        if isinstance(split, list)
        else Counter(split.functionals)
    )


def _some(train: Any, crystals: int, seed: int) -> Any:
    """A random part of the training data; with the same seed, a smaller part lies in a larger one."""
    if crystals > len(train):
        raise ConfigError(
            f"data.crystals: found {crystals}, needed at most {len(train)}, the number of training crystals."
        )
    index = np.sort(np.random.default_rng(seed).permutation(len(train))[:crystals])
    return [train[k] for k in index] if isinstance(train, list) else Selection(train, index)


def _of_its_own(paths: Sequence[str], name: str, data: DataConfig):
    if not is_dataset(paths):
        return _crystals(paths, data)
    splits = _datasets(paths, data)
    return splits[name] if len(splits.get(name, ())) else splits["train"]


def _datasets(paths: Sequence[str], data: DataConfig) -> dict[str, Split]:
    """The splits of several datasets together; crystals that are not of `data.functional` are left out."""
    from jaxmlip.data.dataset import Dataset

    parts: dict[str, list[Split]] = {}
    for path in paths:
        for name, split in Dataset(path).splits.items():
            parts.setdefault(name, []).append(split)
    whole = {name: found[0] if len(found) == 1 else Concatenated(found) for name, found in parts.items()}
    if data.functional is None:
        return whole
    wanted = functional_name(data.functional)
    counts = sum((Counter(split.functionals) for split in whole.values()), Counter())
    _check_there(wanted, counts, paths)
    return {n: _of_functional(split, wanted) for n, split in whole.items() if wanted in split.functionals}


def _of_functional(split: Split, functional: str) -> Split:
    if set(split.functionals) == {functional}:
        return split
    each = track(range(len(split)), f"choosing {functional}")
    return Selection(split, [k for k in each if split[k].functional == functional])


def _check_there(functional: str, counts: Mapping[str, int], paths: Sequence[str]) -> None:
    if not counts.get(functional):
        raise ConfigError(
            f"data.functional: found {functional}, but crystals of {counted(counts)} in {', '.join(paths)}; "
            f"needed at least one of this functional. {STATE}"
        )


def _crystals(paths: Sequence[str], data: DataConfig, **options) -> list[LabelledCrystal]:
    """The crystals of files, of `data.functional` alone if given; `options` replace those of `data`."""
    known = [its.name for its in fields(ReadOptions) if its.name != "isolated"]  # reference_energies says it
    if unknown := [name for name in data.options if name not in known]:
        raise ConfigError(
            f"data.options: found {', '.join(unknown)}, needed options of readers: {', '.join(known)}."
        )
    crystals = read_labelled(paths, data.format, **{"skip_bad": data.skip_bad} | data.options | options)
    found = list(track(crystals, "reading"))
    if not found:
        what = "isolated atom" if options.get("isolated") == "only" else "crystal"
        raise ConfigError(f"found no {what} in {', '.join(paths)}, needed at least one.")
    if data.functional is not None:
        wanted = functional_name(data.functional)
        _check_there(wanted, Counter(c.functional for c in found), paths)
        found = [c for c in found if c.functional == wanted]
    return found


def isolated_atoms(data: DataConfig) -> list[LabelledCrystal]:
    """The isolated atoms with energies among the files to train on, or of datasets made from such files.

    Raises ConfigError if files have none.
    """
    from jaxmlip.data.dataset import Dataset

    if is_dataset(data.train):
        found = [atom for path in data.train for atom in Dataset(path).isolated_atoms()]
        if data.functional is not None:
            found = [atom for atom in found if atom.functional == functional_name(data.functional)]
    else:
        found = _crystals(data.train, data, isolated="only", limit=None)
    return [atom for atom in found if atom.labels.energy is not None]


def divide(
    crystals: Sequence[LabelledCrystal], fractions: Sequence[float], by: str, seed: int
) -> dict[str, list[LabelledCrystal]]:
    """`crystals` in random parts "train", "validation" and "test"; empty parts are left out.

    Each part has its share of `fractions` of the crystals, rounded, or a little more if those of one material
    stay together (by="material"). Raises ConfigError if nothing would be left to train on.
    """
    names = [c.material if by == "material" else str(k) for k, c in enumerate(crystals)]
    groups: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        groups.setdefault(name, []).append(k)
    order = [list(groups.values())[k] for k in np.random.default_rng(seed).permutation(len(groups))]
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for name, fraction in zip(("validation", "test"), fractions[1:], strict=True):
        while order and len(parts[name]) < int(fraction * len(crystals) + 0.5):
            parts[name] += order.pop()
    parts["train"] = [k for group in order for k in group]
    if not parts["train"]:
        raise ConfigError(
            f"found {len(crystals)} crystals of {len(groups)} material(s), too few to be divided by "
            f"data.split_by: {by}. Take data.split_by: crystal, name data.validation, or train on all with "
            "data.fractions: [1, 0, 0]."
        )
    return {name: [crystals[k] for k in sorted(index)] for name, index in parts.items() if index}


def with_graphs(splits: Mapping[str, Any], potential: Potential, skip_bad: bool = False) -> dict[str, Split]:
    """The splits of `read`, with graphs of the crystals; `skip_bad` as in MemorySplit.from_crystals.

    Raises DatasetError if they do not suit `potential`.
    """
    found = {}
    for name, split in splits.items():
        if isinstance(split, list):
            split = MemorySplit.from_crystals(split, potential.cutoffs, skip_bad)
        found[name] = ByFunctional(split, potential.functionals) if potential.functionals else split
        check(found[name], potential)
    return found


def read_one(data: DataConfig, split: str, potential: Potential) -> Split:
    """All crystals of files, or of one split of a dataset ("all": of all splits), with graphs for
    `potential`.

    Raises ConfigError if there are none, DatasetError if they do not suit this potential.
    """
    limit = data.options.get("limit")
    if is_dataset(data.train):
        options = [key for key in ("format", "skip_bad") if getattr(data, key)]
        if options := [*options, *sorted(data.options.keys() - {"limit"})]:
            raise ConfigError(
                f"found {', '.join(options)} with the dataset {data.train[0]}, whose labels are already "
                "read; leave them out, or give them to `jaxmlip data convert`."
            )
        splits = _datasets(data.train, data)
        found = [s for name, s in splits.items() if split in ("all", name) and len(s)]
        if not found:
            raise ConfigError(f"{data.train[0]} has no split {split!r}, needed one of {', '.join(splits)}.")
    else:
        if split != "all":
            raise ConfigError(f"found the split {split!r} of files, which have no splits; needed a dataset.")
        found = [_crystals(data.train, data)]
    parts = {str(k): part for k, part in enumerate(found)}
    _check_functionals(parts, ())
    whole = Concatenated([*with_graphs(parts, potential, data.skip_bad).values()])
    return Selection(whole, np.arange(len(whole))[:limit])


def elements_of(split: Any) -> set[int]:
    """The atomic numbers in one of the splits of `read`."""
    if isinstance(split, list):
        return {int(z) for crystal in split for z in crystal.atoms.numbers}
    return set(split.elements)


def at_most(split: Split, crystals: int) -> Split:
    """A random part of `split`, the same every time."""
    index = np.random.default_rng(0).permutation(len(split))[:crystals]
    return Selection(split, np.sort(index))
