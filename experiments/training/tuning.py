"""Fine-tuning for experiments: frames in memory, one device, and a folder in which a killed run goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxmlip.crystals import batching
from jaxmlip.data.dataset import MemorySplit, spectral_labels
from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.potential import Potential
from jaxmlip.system.parallel import make_mesh
from jaxmlip.training.config import TrainConfig
from jaxmlip.training.loop import Event, fit


def tune(
    potential: Potential,
    frames: Sequence[LabelledCrystal],
    config: TrainConfig,
    folder: Path,
    *,
    epochs: int,
    batch_size: int = 1,
    seed: int = 0,
    validation: Sequence[LabelledCrystal] = (),
    replay: Sequence[LabelledCrystal] = (),
    replay_batch: int = 0,
    shape: batching.BatchShape | None = None,
    report: Callable[[Event], None] = lambda event: None,
) -> Potential:
    """`potential` trained on `frames` for `epochs`, at its best step if there is a validation set.

    `replay_batch` frames of `replay` join each batch. With the same `shape`, runs share one program.
    """
    split, other, watched = (
        MemorySplit.from_crystals(part, potential.cutoffs) if part else None
        for part in (frames, replay, validation)
    )
    parts = [part for part in (split, other) if part is not None]
    plan = Plan(
        split.sizes,
        batch_size,
        seed=seed,
        epochs=epochs,
        replay_sizes=other.sizes if other else None,
        replay_batch=replay_batch if other else 0,
        shape=shape,
        waves=config.waves,
        spectra=np.concatenate([spectral_labels(part, config.loss.properties) for part in parts]),
    )
    references, dtype = potential.params["reference_energies"], np.dtype(potential.dtype)
    loader = Loader(split, plan, references, dtype, replay=other)
    return fit(potential, loader, watched, config, make_mesh(1), folder, report).potential


def shape_for(
    potential: Potential, frames: Sequence[LabelledCrystal], batch_size: int
) -> batching.BatchShape:
    """A shape that fits any `batch_size` of these frames."""
    largest = MemorySplit.from_crystals(frames, potential.cutoffs).sizes.max(axis=0)
    return batching.BatchShape.holding(largest * batch_size, batch_size)
