"""Commands that train potentials and measure their errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxmlip.system.arguments import (
    ALONE,
    DEFAULT_MODEL,
    AsJson,
    DType,
    Flag,
    Head,
    Model,
    Positional,
    Rare,
    Several,
    Together,
    at_least,
)
from jaxmlip.system.console import note
from jaxmlip.system.files import check_folder
from jaxmlip.system.tables import show

Changes = Annotated[Several, tyro.conf.arg(name="set")]


@dataclass(frozen=True)
class Reading:
    """Options for reading labelled crystals."""

    option: Rare[Several] = ()
    """KEY=VALUE for the reader, such as forces_key=dft_forces"""
    skip_bad: Flag = False
    """leave out crystals that cannot be used, and the rest of a file after a break, and say so"""
    limit: Rare[int | None] = None
    """maximum number of crystals to read for each of training, validation and test"""

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the reader by name."""
        from jaxmlip.training.config import reader_options

        at_least(1, limit=self.limit)
        return reader_options(_all(self.option)) | ({} if self.limit is None else {"limit": self.limit})


Read = tyro.conf.OmitArgPrefixes[Reading]
READ = Reading()


def train(
    config: Positional[Path | None] = None,
    out: Path | None = None,
    changes: Changes = (),
    dtype: DType | None = None,
    example: Flag = False,
    skip_bad: Flag = False,
    together: Together = ALONE,
) -> None:
    """Trains a potential as the file CONFIG says, or continues its run.

    A finished run continues if epochs or steps were raised and nothing else changed: the optimizer keeps its
    state, and the learning rate follows the schedule of the longer run.

    Args:
        config: a YAML file; --example prints one with every key and its meaning
        out: folder of the run; default: the name of CONFIG without .yaml
        changes: KEY=VALUE replaces a value of CONFIG, such as optimizer.clip=10
        dtype: precision of the computation; default: as CONFIG says
        example: print a configuration with every key, and do nothing else
        skip_bad: leave out crystals that cannot be used, and the rest of a file after a break (data.skip_bad)
        together: options to train together with other processes
    """
    from jaxmlip.training.config import EXAMPLE, read_config, to_yaml

    if example:
        print(to_yaml(EXAMPLE), end="")
        return
    together.check()
    if config is None:
        raise ValueError(
            "found no configuration, needed one: jaxmlip train CONFIG.yaml. `jaxmlip train --example` "
            "prints one."
        )
    given = [] if dtype is None else [f"dtype={dtype}"]
    settings = read_config(config, _all(changes) + given + ["data.skip_bad=true"] * skip_bad)
    if out is None:
        # A config.yaml in the folder of a run belongs to that run.
        out = config.parent if config.name == "config.yaml" else config.with_suffix("")
    together.connect()
    _run(settings, out)


def finetune(
    data: Several = (),
    model: Model = DEFAULT_MODEL,
    head: Head = None,
    preset: Literal["few", "transfer", "phonons"] = "few",
    validation: Several = (),
    test: Several = (),
    read: Read = READ,
    train: Several = (),
    freeze: Rare[Several] = (),
    references: Rare[Literal["keep", "refit", "isolated"] | None] = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    replay: Several = (),
    replay_crystals: Rare[int | None] = None,
    dtype: DType = "float32",
    seed: Rare[int] = 0,
    devices: Rare[int | None] = None,
    wandb: Rare[Flag] = False,
    changes: Changes = (),
    out: Path = Path("finetuned"),
) -> None:
    """Trains a public potential further on your own labelled crystals.

    Preset few: Adam, learning rate 1e-3 falling to 1e-5 in 100 epochs; squared errors of energy, forces and
    stress weighted 0.1 : 100 : 0.1 (arXiv:2405.07105); batches of 4; with 5 crystals or more, a tenth is for
    validation. Preset transfer, to another functional: Huber loss 3 : 1 : 0.1 : 1 with magnetic moments,
    reference energies refitted, 50 epochs, batches of 64, split 8 : 1 : 1 by material (arXiv:2504.05565).
    Preset phonons: Huber loss of frequencies (THz) at four wave vectors drawn for each crystal and step, with
    energies, forces and stresses of what is replayed; 50 epochs, batches of 4, 1e-4 falling to 1e-6.

    Args:
        data: labelled crystals: files, folders or patterns, or one dataset
        model: the potential to start from
        head: the head to use of a checkpoint with several
        preset: for a few crystals of one material, for many of another functional, or for phonons
        validation: crystals that select the best step; default: as the preset says
        test: crystals for the errors before and after training; default: as the preset says
        read: options for reading them
        train: all, readout, scale (one factor), references, or a pattern for their names; default: all
        freeze: parameters that are not trained, named in the same way
        references: energies of the elements: keep the model's, refit them, or take those of isolated atoms in
            the data; fixed from there on, unless --train references. Default: as the preset says
        epochs: passes through the data; default: as the preset says; a larger number continues a finished run
        batch_size: crystals in a batch; default: as the preset says
        learning_rate: the largest learning rate; default: as the preset says
        replay: crystals like those that the potential knows, so that it does not forget
        replay_crystals: number of them in each batch; default: as many as of the others
        dtype: precision of the computation
        seed: seed of the order of the data
        devices: number of devices to train on; default: all
        wandb: log to Weights & Biases, too
        changes: KEY=VALUE for any other key of `jaxmlip train --example`
        out: folder of the run
    """
    from jaxmlip.training.config import finetune_config

    flags: dict[str, Any] = {
        "model.start": model,
        "model.head": head,
        "data.train": _all(data),
        "data.validation": _all(validation),
        "data.test": _all(test),
        "data.options": read.options,
        "data.skip_bad": read.skip_bad,
        "optimizer.train": _all(train) or None,
        "optimizer.freeze": _all(freeze),
        "optimizer.learning_rate": learning_rate,
        "reference_energies": references,
        "epochs": epochs,
        "batch_size": batch_size,
        "replay.data": _all(replay),
        "replay.crystals": replay_crystals,
        "dtype": dtype,
        "seed": seed,
        "devices": devices,
        "wandb": wandb,
    }
    _run(finetune_config(preset, flags, _all(changes)), out)


def _run(config: Any, out: Path) -> None:
    from jaxmlip.training.run import run_training, summary

    result = run_training(config, out)
    if not result.before:  # the first process reports
        return
    show(summary(result))
    if several := result.potential.functionals:
        how = f"`jaxmlip export {out} FOLDER --functional {several[0]}` makes a potential of one functional"
    else:
        how = f'jaxmlip.load("{out}/model") loads the potential'
    note(f"written to {out}; {how}")


def evaluate(
    data: Several = (),
    model: Model = DEFAULT_MODEL,
    head: Head = None,
    split: Literal["all", "train", "validation", "test"] = "all",
    format: str | None = None,
    read: Read = READ,
    functional: str | None = None,
    refit_references: Flag = False,
    by: Literal["material", "element", "none"] = "material",
    dtype: DType = "float32",
    json_: AsJson = False,
    out: Path | None = None,
) -> None:
    """Errors of a model, and slopes of its forces, against labels of crystals.

    Args:
        data: labelled crystals: files, folders or patterns, or one dataset
        model: the potential
        head: the head to use of a checkpoint with several
        split: the part of a dataset to use
        format: format of the files; default: recognised by their names and contents
        read: options for reading them
        functional: take only crystals of this functional, with this functional of a model that has several
        refit_references: for data of another functional: shift energies by a fitted amount for each element
        by: print a second table with a row for each
        dtype: precision of the computation
        json_: print everything as JSON instead of tables
        out: folder for evaluation.json and parity.png; default: neither is written
    """
    from jaxmlip.training import evaluate as evaluation
    from jaxmlip.training.config import DataConfig

    its = DataConfig(
        train=tuple(_all(data)),
        format=format,
        options=read.options,
        skip_bad=read.skip_bad,
        functional=functional,
    )
    evaluation.main(model, head, its, split, refit_references, by, dtype, json_, out)


def export(
    run: Positional[Path],
    out: Positional[Path],
    which: Literal["best", "last"] = "best",
    raw: Flag = False,
    functional: str | None = None,
) -> None:
    """Writes a checkpoint of a run as a model folder for `jaxmlip.load`.

    The run may be unfinished.

    Args:
        run: the folder of a run, or a checkpoint in one, such as RUN/checkpoints/00001000
        out: the folder to write model.safetensors and manifest.json to
        which: the best step by validation, or the last
        raw: the parameters themselves instead of their moving average, if the run keeps one (optimizer.ema)
        functional: the functional to write, of a run with model.functionals; default: all, to train further
    """
    from jaxmlip.training.run import export as exported

    check_folder(out)
    potential = exported(run, which, average=not raw, functional=functional)
    potential.save(out)
    step = potential.manifest["trained"]["step"]
    note(f"{potential.name}, step {step}: written to {out}")


def _all(given: tuple[tuple[str, ...], ...]) -> list[str]:
    return [value for each in given for value in each]
