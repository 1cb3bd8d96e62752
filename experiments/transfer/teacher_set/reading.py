"""Reading of the sets that `experiments.transfer.teacher_set.make` wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jaxmlip.crystals.graph import Cutoffs
from jaxmlip.data.dataset import MANIFEST, Dataset, DatasetError, ShardSplit
from jaxmlip.data.labels import Labels
from jaxmlip.training.config import DataConfig

SET = "set.json"
SPLITS = ("train", "validation", "test")


def teacher_set(folder: Path, teacher: str) -> Dataset:
    """The dataset of one teacher. Raises DatasetError if there is none, or it lacks a split."""
    if not (folder / teacher / MANIFEST).is_file():
        found = sorted(p.parent.name for p in folder.glob(f"*/{MANIFEST}"))
        raise DatasetError(
            f"{folder} has no labels of {teacher}, only {', '.join(found) or 'no dataset'}. Make them with "
            "`python -m experiments.transfer.teacher_set.make`, or name other teachers of the set."
        )
    dataset = Dataset(folder / teacher)
    if lacking := [name for name in SPLITS if name not in dataset.splits]:
        raise DatasetError(f"{dataset.folder} has no crystal for {', '.join(lacking)}. Make a larger set.")
    return dataset


def with_cutoffs(folder: Path, dataset: Dataset, cutoffs: Cutoffs) -> DataConfig:
    """The dataset as it is, or written anew to `folder` if its graphs have other cutoffs."""
    if dataset.cutoffs == cutoffs:
        return DataConfig(train=(str(dataset.folder),))
    return written(folder, dataset.splits, cutoffs)


def written(
    folder: Path,
    splits: Mapping[str, ShardSplit],
    cutoffs: Cutoffs,
    labels: Mapping[str, Sequence[Labels]] | None = None,
    functional: str = "",
    only: Iterable[int] | None = None,
) -> DataConfig:
    """Splits as datasets in `folder`, with other `labels` (by split, in order) if given.

    `only`: the crystals to take from each split, if given.
    """
    from jaxmlip.data.writing import write_dataset

    for name, split in splits.items():
        if not (folder / name).exists():
            index = range(len(split)) if only is None else only
            crystals = (
                replace(
                    its,
                    labels=labels[name][k] if labels else its.labels,
                    functional=functional or its.functional,
                )
                for k in index
                for its in [split.crystal(k)]
            )
            write_dataset(folder / name, crystals, cutoffs, fractions=(1, 0, 0))
    return DataConfig(**{name: (str(folder / name),) for name in SPLITS})
