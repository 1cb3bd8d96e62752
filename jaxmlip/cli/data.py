"""Data sets: `jaxmlip data convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from jaxmlip.cli.arguments import Model, Positional
from jaxmlip.cli.tables import print_table, table_of


def convert(
    files: Positional[list[Path]],
    out: Path,
    model: Model | None = None,
    cutoff: float | None = None,
    angle_cutoff: float = 0.0,
    angle_list: bool = True,
    format_: Annotated[str | None, tyro.conf.arg(name="format")] = None,
    validation: float = 0.05,
    test: float = 0.05,
    seed: int = 0,
    processes: int | None = None,
    skip_bad: bool = False,
) -> None:
    """Writes the labelled crystals of FILES with their graphs as a data set to train on.

    Args:
        files: files or folders of labelled crystals in any known format
        out: the folder to write, new or empty
        model: the model to train, whose cutoffs the graphs get; or give --cutoff
        cutoff: how long bonds are (Å), for a model that does not exist yet
        angle_cutoff: how long the two bonds of an angle are (Å); 0 for models without angles
        angle_list: whether the model reads a list of angles (CHGNet) or sums over them without (M3GNet)
        format_: the format of FILES; default: guessed for each
        validation: the fraction that is kept for validation, by material
        test: the fraction that is kept for tests, by material
        seed: of the division
        processes: that make graphs; default: one for each core
        skip_bad: leave out crystals that cannot be used, and say why, instead of stopping at the first
    """
    from jaxmlip.data.dataset import DatasetError, check, write_dataset
    from jaxmlip.data.readers import read_labelled
    from jaxmlip.graph import Cutoffs
    from jaxmlip.sources import load

    if (model is None) == (cutoff is None):
        raise ValueError(
            f"found --model {model} and --cutoff {cutoff}, needed one of them: the graphs of a data set are "
            "those of one model, such as --model chgnet-0.3.0, or --cutoff 6 --angle-cutoff 3."
        )
    potential = None if model is None else load(model)
    cutoffs = potential.cutoffs if potential else Cutoffs(cutoff, angle_cutoff, angle_list)
    crystals = (crystal for file in files for crystal in read_labelled(file, format_))
    made = write_dataset(
        out,
        crystals,
        cutoffs,
        fractions=(1 - validation - test, validation, test),
        seed=seed,
        processes=processes,
        skip_bad=skip_bad,
        sources=[str(file) for file in files],
    )
    columns = ("split", "crystals", "atoms", *next(iter(made.splits.values())).counts, "MB", "bytes/crystal")
    table = table_of(str(out), columns, left=("split",))
    for name, split in made.splits.items():
        size = sum(shard["bytes"] for shard in split.shards)
        table.add_row(
            name,
            f"{len(split):,}",
            f"{split.sizes[:, 0].sum():,}",
            *(f"{n:,}" for n in split.counts.values()),
            f"{size / 1e6:.1f}",
            f"{size / len(split):,.0f}",
        )
    print_table(table)
    if potential:
        try:
            for split in made.splits.values():
                check(split, potential)
        except DatasetError as error:
            Console(stderr=True).print(f"warning: {error}", style="yellow", highlight=False, markup=False)
