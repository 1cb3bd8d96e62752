"""A run from a configuration to a trained model: data, potential, training and results."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from ase.data import chemical_symbols
from jax.sharding import Mesh

from jaxmlip.crystals.graph import ELEMENTS, atomic_number
from jaxmlip.data.dataset import Split, spectral_labels
from jaxmlip.data.labels import LabelledCrystal, counted, functional_name
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.potential import Potential, random_potential
from jaxmlip.system import parallel
from jaxmlip.system.allocator import give_memory_back
from jaxmlip.system.console import PlainConsole, Telling, console, tells
from jaxmlip.system.files import write_whole, writing_folder
from jaxmlip.system.locks import locked
from jaxmlip.system.tables import Table
from jaxmlip.system.versions import own_version
from jaxmlip.training.checkpoints import Checkpoints
from jaxmlip.training.config import ConfigError, TrainConfig, hyperparameters, read_config
from jaxmlip.training.errors import Error, as_record, by_functional, errors
from jaxmlip.training.evaluate import compare, references_of
from jaxmlip.training.figures import learning_curves, parity
from jaxmlip.training.functionals import join, select
from jaxmlip.training.loop import fit, taken
from jaxmlip.training.losses import UNITS
from jaxmlip.training.optimizer import learning_rate, trained
from jaxmlip.training.overlap import warn_of_overlap
from jaxmlip.training.records import (
    CONFIG,
    METRICS,
    RESULTS,
    Records,
    check_folder,
    open_folder,
    read_metrics,
)
from jaxmlip.training.references import References, of_isolated, refit
from jaxmlip.training.splits import (
    ALONE,
    STATE,
    at_most,
    elements_of,
    isolated_atoms,
    read,
    read_splits,
    with_graphs,
)
from jaxmlip.training.step import flat_params, init_state, potential_of
from jaxmlip.zoo.load import load

MODEL = "model"
COMPARED = 2000  # crystals at most in figures and in the last table
REFERENCED = 50_000  # crystals at most in the fit of reference energies


@dataclass(frozen=True, eq=False)
class Result:
    """The results of a run."""

    folder: Path
    potential: Potential
    before: dict[str, Error]  # of the crystals of `compared_on`
    after: dict[str, Error]
    by_functional: dict[str, dict[str, dict[str, Error]]]  # "before" and "after", if there are several
    compared_on: str
    reason: str  # why training stopped


def run_training(config: TrainConfig, folder: str | Path) -> Result:
    """Trains as `config` says, or goes on with the run that `folder` holds.

    A run that has taken all of its steps goes on if `config` differs only in having more epochs or steps:
    with the state of the optimizer, and with the learning rates of the longer schedule. The folder gets
    config.yaml, versions.json, metrics.jsonl, tensorboard/, start/ (the potential before the first step),
    checkpoints/, and at the end model/ (for `jaxmlip.load`), results.json, learning_curve.png and parity.png;
    results.json of a shorter run becomes results-STEPS.json.

    Raises ConfigError, RunFolderError and DatasetError before anything heavy starts, and InUseError if
    another process trains in `folder`; `fit` lists errors that may come later.
    """

    config, folder = config.checked(), Path(folder)
    if jax.process_index() > 0:  # the first process holds the lock
        return train_in(folder, config)
    check_folder(folder, config)  # before a lock is put into it; `open_folder` checks again, under the lock
    with locked(folder):
        try:
            return train_in(folder, config)
        finally:  # programs of many runs in one process would take gigabytes
            give_memory_back()


def train_in(folder: Path, config: TrainConfig) -> Result:
    """`run_training` of a checked configuration, in a locked folder."""

    first = jax.process_index() == 0
    mesh = parallel.make_mesh(config.devices)
    terminal = console(stderr=True, quiet=not (first and tells(Telling.USUAL)))
    if first:
        open_folder(folder, config)
    potential, splits, loader = prepare(config, folder, mesh, terminal)
    plan = loader.plan
    steps = plan.steps if config.steps is None else config.steps
    if first and (done := taken(folder)) is not None and done < steps:
        with suppress(FileNotFoundError):  # results mark a run as finished, which it is no longer
            (folder / RESULTS).rename(folder / f"results-{done}.json")
        rate = float(learning_rate(config.optimizer, steps)(done // config.optimizer.accumulate))
        terminal.print(
            f"{done} of {steps} steps are done. The optimizer continues from its state, with the learning "
            f"rate {rate:.3g} of the schedule of {steps} steps.",
            soft_wrap=True,
        )
    waste = ", ".join(f"{kind} {part:.0%}" for kind, part in plan.waste.items())
    counts = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    terminal.print(
        f"{potential.name}: {potential.parameter_count:,} parameters; crystals: {counts}; {steps} steps of "
        f"{plan.batch_size} on {mesh.devices.size} device(s); padding: {waste}",
        soft_wrap=True,
    )
    if (spectra := plan.spectra_shape) is not None:
        columns = spectra.rows * spectra.branches
        terminal.print(
            f"spectra: {spectra.cells.crystals} crystal(s) on each device in a step, at {spectra.rows} wave "
            f"vectors, which takes {columns} complex columns of second derivatives and their gradient",
            soft_wrap=True,
        )
    with Records(folder, config, steps) as records:
        fitted = fit(potential, loader, splits.get("validation"), config, mesh, folder, records)
    best = config.final == "best" and fitted.best is not None
    made = _named(
        fitted.potential if best else fitted.last, config, folder, fitted.best if best else fitted.step
    )
    if not first:
        return Result(folder, made, {}, {}, {}, "", fitted.reason)
    made.save(folder / MODEL)
    return _conclude(folder, potential, made, splits, fitted.reason)


def prepare(
    config: TrainConfig, folder: Path, mesh: Mesh, terminal: PlainConsole
) -> tuple[Potential, dict[str, Split], Loader]:
    """The potential before the first step of the run in `folder`, its data and its batches; writes nothing.

    Raises ConfigError or DatasetError if these do not fit together.
    """
    start = folder / "start"
    if (start / "manifest.json").is_file():  # the run goes on
        potential = Potential.from_folder(start, config.dtype)
        splits = read_splits(config.data, potential)
    else:
        potential, splits = _begin(config, folder, terminal)
    loader = _loader(config, potential, splits["train"], mesh)
    _check_labels(config, potential, loader, splits.get("validation"))
    warn_of_overlap(splits, loader.replay)
    config.check_steps(loader.plan.steps if config.steps is None else config.steps)
    return potential, splits, loader


def _loader(config: TrainConfig, potential: Potential, train: Split, mesh: Mesh) -> Loader:
    """The batches of the whole run."""

    replay = None
    if config.replay.data:
        data = replace(config.data, train=config.replay.data, **ALONE)
        replay = read_splits(data, potential)["train"]
        if replay.functionals.keys() - train.functionals.keys():
            raise ConfigError(
                f"replay.data: found crystals of {counted(replay.functionals)}, needed the functional of the "
                f"training data, {counted(train.functionals)}. {STATE}"
            )
    sets = [train] if replay is None else [train, replay]
    spectra = np.concatenate([spectral_labels(split, config.loss.properties) for split in sets])
    per_epoch = -(-len(train) // min(config.batch_size, len(train)))
    plan = Plan(
        sizes=train.sizes,
        batch_size=config.batch_size,
        shards=mesh.devices.size,
        seed=config.seed,
        epochs=config.epochs if config.steps is None else -(-config.steps // per_epoch),
        replay_sizes=None if replay is None else replay.sizes,
        replay_batch=config.replay.crystals,
        waves=config.waves,
        spectra=spectra,
    )
    return Loader(
        train,
        plan,
        potential.params["reference_energies"],
        np.dtype(config.dtype),
        shards=parallel.local_shards(mesh),
        mixed=config.mixed_probes,
        replay=replay,
        skip_corrupt=config.data.skip_corrupt,
    )


def _begin(config: TrainConfig, folder: Path, terminal: PlainConsole) -> tuple[Potential, dict[str, Split]]:
    """The potential before the first step, and the data."""
    model = config.model
    if model.start is not None:
        potential = _with_functionals(load(model.start, config.dtype, model.head), model.functionals)
        trained(config.optimizer, flat_params(potential))  # reports a mistake in a pattern at once
        splits = read_splits(config.data, potential)
    else:
        crystals = read(config.data, tuple(map(functional_name, model.functionals)))
        elements = sorted({z for split in crystals.values() for z in elements_of(split)})
        its = hyperparameters(model.architecture, model.hyperparameters, tuple(elements))
        potential = random_potential(its, config.seed, config.dtype, model.name or folder.absolute().name)
        potential = _with_functionals(replace(potential, elements=tuple(elements)), model.functionals)
        splits = with_graphs(crystals, potential, config.data.skip_bad)
    how = config.reference_energies or ("keep" if model.start is not None else "refit")
    if how != "keep":
        if how == "isolated":
            found = isolated_references(potential, isolated_atoms(config.data), splits)
        else:
            found = fit_references(potential, splits["train"], random=model.start is None)
        terminal.print(str(found))
        if found.kept and model.start is not None:
            kept = {atomic_number(z) for z in found.kept}
            terminal.print(f"kept those of {len(kept)} elements that are not in the data")
        params = {**potential.params, "reference_energies": found.energies}
        potential = replace(potential, params=params)
        _warn_unfitted(found, splits)
    return potential, splits


def _with_functionals(potential: Potential, functionals: Sequence[str]) -> Potential:
    if potential.functionals == tuple(map(functional_name, functionals)):
        return potential
    if potential.functionals:
        raise ConfigError(
            f"model.start: {potential.name} has the functionals {', '.join(potential.functionals)}, needed "
            "model.functionals with the same, or one of them that `jaxmlip export --functional` wrote."
        )
    return join(potential, functionals)


def _warn_unfitted(found: References, splits: Mapping[str, Split]) -> None:
    for name, split in splits.items():
        missing = set(split.elements) - set(found.fitted)
        species = [set(split[k].graph.species.tolist()) for k in range(len(split))] if missing else []
        those = [missing & each for each in species if missing & each]
        if those:
            elements = ", ".join(sorted({chemical_symbols[atomic_number(z)] for each in those for z in each}))
            warnings.warn(
                f"{len(those)} of {len(split)} crystals of the {name} data have {elements}, for which no "
                "reference energy could be fitted: no training crystal of that functional has the element "
                "and an energy. Energies of these crystals mean little. Leave them out, or divide the data "
                "differently (data.split_seed).",
                stacklevel=2,
            )


def isolated_references(
    potential: Potential, atoms: Sequence[LabelledCrystal], splits: Mapping[str, Split]
) -> References:
    """The energies of isolated `atoms` as reference energies, for all elements of `splits`.

    Raises ValueError, naming the elements, if some have no isolated atom.
    """

    def species(atom: LabelledCrystal) -> int:
        names = potential.functionals
        return int(atom.atoms.numbers[0]) + (ELEMENTS * names.index(atom.functional) if names else 0)

    known = [atom for atom in atoms if not potential.functionals or atom.functional in potential.functionals]
    needed = {int(z) for s in splits.values() for k in range(len(s)) for z in np.unique(s[k].graph.species)}
    before = np.asarray(potential.params["reference_energies"], np.float64)
    return of_isolated([(species(atom), float(atom.labels.energy)) for atom in known], sorted(needed), before)


def fit_references(potential: Potential, split: Split, random: bool = False) -> References:
    """Reference energies that bring `potential` closest to the energies of `split`.

    The network's own energy is left out if its parameters are `random`. At most 50,000 crystals are used.
    Raises ValueError if no crystal has an energy.
    """
    part = at_most(split, REFERENCED)
    before = np.asarray(potential.params["reference_energies"], np.float64)
    if random:
        labelled = [e for e in (part[k] for k in range(len(part))) if e.labels.energy is not None]
        species = [e.graph.species for e in labelled]
        return refit(species, np.array([e.labels.energy for e in labelled]), np.zeros_like(before))
    return references_of(compare(potential, part), before)


def _check_labels(
    config: TrainConfig, potential: Potential, loader: Loader, validation: Split | None
) -> None:
    """Raises ConfigError if no property of the loss is both labelled and predicted; warns if some are not."""
    asked, train = config.loss.properties, loader.split
    if "magmoms" in asked and train.counts.get("magmoms") and not _gives_magmoms(potential, train):
        told = f"loss.magmoms: found {config.loss.magmoms}, but {potential.name} predicts no magnetic moments"
        if asked == ("magmoms",):
            raise ConfigError(f"{told}; needed a weight for something that it predicts, such as loss.energy.")
        warnings.warn(f"{told}: the loss leaves them out.", stacklevel=2)
    sets = [train] if loader.replay is None else [train, loader.replay]
    missing = [p for p in asked if not any(split.counts.get(p) for split in sets)]
    if len(missing) == len(asked):
        raise ConfigError(
            f"loss: found weights for {', '.join(asked)}, but no crystal of the training data has such a "
            "label; `jaxmlip data inspect` shows the labels."
        )
    watched = config.monitor.rpartition("_")[0]
    if validation is not None and watched and not validation.counts.get(watched):
        raise ConfigError(
            f"monitor: found {config.monitor}, but no crystal of the validation data has {watched}; choose "
            f"from what they have: {', '.join(p for p, n in validation.counts.items() if n) or 'no label'}."
        )
    if missing:
        warnings.warn(
            f"no crystal of the training data has {', '.join(missing)}: the loss leaves them out.",
            stacklevel=2,
        )


def _gives_magmoms(potential: Potential, split: Split) -> bool:
    with potential.precision():
        _, sites = jax.eval_shape(potential.energy_fn.with_sites, potential.arrays, split[0].graph)
    return "magmoms" in sites


def _named(potential: Potential, config: TrainConfig, folder: Path, step: int | None) -> Potential:
    name = config.model.name or folder.absolute().name
    record = {
        "from": potential.name,
        "run": folder.absolute().name,
        "step": step,
        "data": [Path(p).name for p in config.data.train],
        "reference_energies": config.reference_energies,
        "jaxmlip": own_version(),
    }
    return replace(potential, name=name, manifest={**potential.manifest, "trained": record})


def _conclude(
    folder: Path, before: Potential, after: Potential, splits: Mapping[str, Split], reason: str
) -> Result:
    name = next(n for n in ("test", "validation", "train") if n in splits)
    part = at_most(splits[name], COMPARED)
    on = f"{len(part)} of {len(splits[name])} crystals of the {name} data"
    compared = {"before": compare(before, part), "after": compare(after, part)}
    first, last = (errors(c) for c in compared.values())
    apart = {when: by_functional(c, after.functionals) for when, c in compared.items()}
    several = {name: {when: apart[when][name] for when in apart} for name in after.functionals}
    with writing_folder(folder) as draft:
        learning_curves(read_metrics(folder / METRICS), draft / "learning_curve.png")
        parity(compared, draft / "parity.png")
    record = {"stopped": reason, "compared_on": on, "units": UNITS} | as_record(
        {"before": first, "after": last} | ({"by_functional": several} if several else {})
    )
    # The last file of a run: it marks the run as finished.
    write_whole(folder / RESULTS, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return Result(folder, after, first, last, several, on, reason)


def summary(result: Result) -> Table:
    """Errors before and after training, for a terminal."""
    lines = []
    rows = {"": {"before": result.before, "after": result.after}} | result.by_functional
    for of, found in rows.items():
        for name, old in found["before"].items():
            new = found["after"][name]
            label = f"{name}, {of}" if of else name
            lines.append((label, f"{old.mae:.4g}", f"{new.mae:.4g}", old.slope, new.slope, UNITS[name]))
    columns = ("property", "MAE before", "after", "slope before", "after", "unit")
    return Table(f"{result.potential.name}: {result.compared_on}", columns, lines)


def export(
    source: str | Path, which: str = "best", average: bool = True, functional: str | None = None
) -> Potential:
    """The potential of a checkpoint: the "best" or "last" in the folder of a run, or a checkpoint's folder.

    `average`: take the moving average of the parameters, if the run kept one. `functional`: take one of a run
    with model.functionals; default: all, to train further. Raises FileNotFoundError if there is no
    checkpoint, CheckpointError if it is damaged, and ValueError if there is no such functional.
    """
    source = Path(source)
    step = int(source.name) if source.name.isdigit() and source.parent.name == "checkpoints" else None
    folder = source if step is None else source.parents[1]
    if not (folder / CONFIG).is_file() or not (folder / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"found no checkpoint in {source}, needed the folder of a run (with {CONFIG} and checkpoints/) "
            "or a checkpoint in one (RUN/checkpoints/00000100)."
        )
    config = read_config(folder / CONFIG)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep)
    try:
        found = checkpoints.latest() if step is None else checkpoints.read(step)
        if found is None:
            raise FileNotFoundError(f"{folder} has no checkpoint yet.")
        if step is None and which == "best" and found.record["best"] is not None:
            found = checkpoints.read(found.record["best"])
    finally:
        checkpoints.close()
    potential = Potential.from_folder(folder / "start", config.dtype)
    steps = found.record["identity"]["steps"]
    state = found.restore(init_state(potential, config.optimizer, steps, parallel.make_mesh(1)))
    made = _named(potential_of(potential, state, average), config, folder, found.step)
    return made if functional is None else select(made, functional)
