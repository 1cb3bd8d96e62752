"""Check for crystals that are both trained on and held out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms

from jaxmlip.data.dataset import CorruptRecordError, Split
from jaxmlip.data.inspection import SAME, fingerprint

HELD_OUT, TRAINED = 2_000, 20_000  # crystals that are read at most, drawn at random


def warn_of_overlap(splits: Mapping[str, Split], replay: Split | None) -> None:
    """Warns if crystals of the validation or test data are in the training or replay data, too."""
    sources = [splits["train"]] if replay is None else [splits["train"], replay]
    for name in ("validation", "test"):
        if name not in splits:
            continue
        looked, found = shared(splits[name], sources)
        if found:
            warnings.warn(
                f"{found} of {looked} crystals of the {name} data are trained on, too: errors on them say "
                f"nothing about other crystals. Leave them out of data.train or data.{name}.",
                stacklevel=2,
            )


def shared(held_out: Split, sources: Sequence[Split]) -> tuple[int, int]:
    """The number of crystals of `held_out` that were examined, and how many of them are in `sources`, too.

    Crystals are the same if they have one functional and one `inspection.fingerprint`. Of large sets a random
    part is examined.
    """
    rng = np.random.default_rng(0)
    looked = rng.permutation(len(held_out))[:HELD_OUT]
    wanted = {tuple(row) for row in np.asarray(held_out.sizes)[looked].tolist()}
    known = set()
    for source in sources:
        # Copies have the same number of bonds, so most crystals need not be read.
        alike = [k for k, row in enumerate(np.asarray(source.sizes).tolist()) if tuple(row) in wanted]
        known |= {_of(source, int(k)) for k in rng.permutation(alike)[:TRAINED]}
    known.discard(None)
    return len(looked), sum(_of(held_out, int(k)) in known for k in looked)


def _of(split: Split, k: int) -> int | None:
    try:
        graph = split[k].graph
    except CorruptRecordError:  # training reports it or leaves it out
        return None
    return fingerprint(Atoms(graph.species, graph.positions, cell=graph.cell[0], pbc=graph.periodic[0]), SAME)
