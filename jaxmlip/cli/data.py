"""Commands for files of labelled crystals: `jaxmlip data inspect` and `jaxmlip data convert`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from jaxmlip.data.readers.common import Naming
from jaxmlip.system.arguments import AsJson, Head, Model, Positional, above_zero, at_least
from jaxmlip.system.console import say
from jaxmlip.system.files import writing
from jaxmlip.system.tables import Table, show

if TYPE_CHECKING:
    from jaxmlip.data.dataset import Dataset
    from jaxmlip.data.labels import LabelledCrystal

SHOWN = 4  # outliers of each kind in the table; JSON has all of them


@dataclass(frozen=True, kw_only=True)
class Source(Naming):
    """Paths of labelled crystals, and options for reading them."""

    paths: Positional[list[str]]
    """files, folders or patterns (extended XYZ, ASE databases and trajectories, MPtrj, MatPES, MP-r2SCAN,
    WBM, mlearn, chgnet's parse_vasp_dir, vasprun.xml with the moments of OUTCAR, OUTCAR, phonopy)"""
    format: str | None = None
    """the format of all files; default: guessed for each"""
    skip_bad: bool = False
    """leave out crystals that cannot be used, and the rest of a file after a break, and say why; by default
    the first one stops the command"""

    def read(self, **more) -> Iterable[LabelledCrystal]:
        """Reads the crystals with `read_labelled`."""
        from jaxmlip.data.readers import read_labelled

        if not self.paths:
            raise ValueError("found no path, needed files of labelled crystals, folders or patterns.")
        options = vars(self) | more
        return read_labelled(options.pop("paths"), **options)


Read = tyro.conf.OmitArgPrefixes[Source]


def inspect(
    source: Read,
    every: int = 1,
    limit: int | None = None,
    figure: Path | None = None,
    json_: AsJson = False,
) -> None:
    """Summarises labelled crystals, or a dataset of them, and lists suspicious ones.

    Args:
        source: files, or folders that `jaxmlip data convert` wrote
        every: read one crystal in EVERY of each file
        limit: maximum number of crystals to read in all
        figure: draw histograms into this file (.png, .pdf, .svg)
        json_: print everything as JSON instead of tables
    """
    from jaxmlip.data import inspection
    from jaxmlip.data.dataset import Dataset, is_dataset
    from jaxmlip.data.labels import counted
    from jaxmlip.system.progress import track

    at_least(1, every=every, limit=limit)
    if figure is not None:
        inspection.check_figure(figure)
    if is_dataset(source.paths):
        if source != Source(paths=source.paths):
            raise ValueError(
                f"found options for reading files with the dataset {source.paths[0]}, whose labels are "
                "named already; leave them out."
            )
        sets = (Dataset(path).crystals(every) for path in source.paths)
        crystals = islice(chain.from_iterable(sets), limit)
    else:
        crystals = source.read(every=every, limit=limit)
    found = inspection.inspect(track(crystals, "inspecting"))
    if figure is not None:
        with writing(figure) as draft:
            inspection.figure(found, draft)
    if json_:
        print(json.dumps(found.as_dict(), indent=2))
        return
    elements = ", ".join(f"{name} {count}" for name, count in found.elements.items())
    say(f"{found.crystals} crystals of {found.materials} materials; with {elements}")
    known = ", ".join(f"{name} {count}" for name, count in found.properties.items())
    say(f"labels: {known or 'none'}")
    say(f"functional: {counted(found.functionals)}")
    ranges = [
        (name, inspection.QUANTITIES[name], spread.count, *(f"{x:.4g}" for x in spread[1:]))
        for name, spread in found.spreads.items()
    ]
    outliers = []
    for kind, unit in inspection.KINDS.items():
        these = [outlier for outlier in found.outliers if outlier.kind == kind]
        for k, outlier in enumerate(these[:SHOWN]):
            first = (kind, len(these)) if k == 0 else ("", "")
            outliers.append((*first, outlier.crystal, f"{outlier.value:.4g}", unit))
    show(Table("ranges", ("", "unit", "crystals", "min", "median", "99 %", "max"), ranges))
    if outliers:
        show(Table("outliers", ("kind", "count", "worst", "value", "in"), outliers))
    for line in found.units:
        say(f"units? {line}")
    for kind, pairs in (("exact", found.exact_duplicates), ("near", found.near_duplicates)):
        line = f"{len(pairs)} {kind} duplicates" + (f", such as {pairs[0][0]}" if pairs else "")
        say(line)


def convert(
    source: Read,
    out: Path,
    model: Model | None = None,
    head: Head = None,
    cutoff: float | None = None,
    angle_cutoff: float = 0.0,
    angle_list: bool = True,
    validation: float = 0.05,
    test: float = 0.05,
    seed: int = 0,
    processes: int | None = None,
    limit: int | None = None,
) -> None:
    """Writes the labelled crystals of PATHS with their graphs as a dataset for training.

    Args:
        source: labelled crystals
        out: the folder to write, new or empty
        model: the model to train, which sets the cutoffs of the graphs; or give --cutoff
        head: the head to use of a checkpoint with several
        cutoff: longest bond (Å), for a model that does not exist yet
        angle_cutoff: longest bond of an angle (Å); 0 for models without angles
        angle_list: for models that read a list of angles (CHGNet); M3GNet sums over angles without a list
        validation: fraction kept for validation, by material
        test: fraction kept for tests, by material
        seed: seed of the random division
        processes: number of processes that make graphs; default: one for each core
        limit: maximum number of crystals to read in all
    """
    from jaxmlip.crystals.graph import Cutoffs
    from jaxmlip.data.dataset import DatasetError
    from jaxmlip.data.writing import check_new, write_dataset
    from jaxmlip.zoo.load import load

    if (model is None) == (cutoff is None):
        raise ValueError(
            f"found --model {model} and --cutoff {cutoff}, needed one of them: the graphs of a data set are "
            "those of one model, such as --model chgnet-0.3.0, or --cutoff 6 --angle-cutoff 3."
        )
    if head is not None and model is None:
        raise ValueError(f"found --head {head} without --model; name the model that has it, or leave it out.")
    at_least(0, angle_cutoff=angle_cutoff, validation=validation, test=test, seed=seed)
    at_least(1, processes=processes, limit=limit)
    above_zero(cutoff=cutoff)
    if validation + test > 1:
        raise ValueError(
            f"found --validation {validation} and --test {test}, needed fractions of at most 1 together."
        )
    check_new(out)
    potential = None if model is None else load(model, head=head)
    cutoffs = potential.cutoffs if potential else Cutoffs(cutoff, angle_cutoff, angle_list)
    made = write_dataset(
        out,
        # The writer validates them, decides what to leave out, and places energies of isolated atoms.
        source.read(checked=False, limit=limit, isolated="too"),
        cutoffs,
        fractions=(1 - validation - test, validation, test),
        seed=seed,
        processes=processes,
        skip_bad=source.skip_bad,
        sources=source.paths,
    )
    show(_splits(made, str(out)))
    if potential:
        try:
            made.check(potential)
        except DatasetError as error:
            say(f"warning: {error}", stderr=True, style="yellow")


def _splits(made: Dataset, title: str) -> Table:
    """Numbers of crystals, atoms and bytes in each split of a dataset."""
    columns = ("split", "crystals", "atoms", *next(iter(made.splits.values())).counts, "MB", "bytes/crystal")
    rows = []
    for name, split in made.splits.items():
        size = sum(shard["bytes"] for shard in split.shards)
        counts = (f"{n:,}" for n in (len(split), split.sizes[:, 0].sum(), *split.counts.values()))
        rows.append((name, *counts, f"{size / 1e6:.1f}", f"{size / len(split):,.0f}"))
    return Table(title, columns, rows)
