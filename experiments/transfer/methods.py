"""Which way of carrying a potential over to another functional errs least on few labels of the target?

    python -m experiments.transfer.methods --set FOLDER --out FOLDER

carries a potential, the source, over to the labels of another functional in a teacher set
(`teacher_set.make`). The source is a public potential, by default the teacher that made the set's labels in
the first functional. With `--start None` it is a small network, which is first trained on those labels. Of
the target fewer crystals are used, in the four ways of Huang et al., npj Comput. Mater. 11, 313 (2025), and
in three more:

    scratch     target references, fixed, and a random network
    trainable   the source with its reference energies, trained with the rest
    frozen      the source with its reference energies, fixed
    refit       the source with reference energies refitted to the target, fixed
    readout     refit, of which the readout alone is trained
    fidelities  the source made one of two functionals on one trunk, trained on both at once: the crystals
                of the target and as many others with the source's labels, in batches twice as large
    difference  a random network learns target labels minus the source's predictions; the sum is the model

"Refitted" means that the source's reference energies move by the least-squares shift that brings its
predictions closest to the target labels: eq. (3) of the paper, with the source's predictions in place of its
labels. The rest is the paper's protocol: Huber loss with δ = 0.1 of energy, forces, stress and magnetic
moments weighted 3 : 1 : 0.1 : 1, and Adam from 1e-3 to 1e-5 along a cosine. But batches have 16 crystals,
since there are fewer crystals. Of up to five validations the one with the smallest loss is taken.

Errors are mean absolute errors over the test crystals, whose materials no model was trained on: energies per
crystal (meV/atom), components of forces (meV/Å) and of stresses (GPa), magnetic moments per atom (μB). The
formation energy is the energy per atom of a material's undeformed crystal ("…/ideal" of the set) above the
elements, each in the undeformed crystal with the lowest energy for this model, or for the teacher. The
decomposition energy is pymatgen's PhaseDiagram.get_phase_separation_energy among all undeformed crystals of
the set in its chemical system, from all splits. Both are computed for the compounds among the test materials,
at the geometry of the set: nothing is relaxed. All labels are those of public models, which stand in for DFT.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.training.networks import WIDTHS, small
from experiments.transfer.material_errors import errors, mean, predictions
from experiments.transfer.results import SOURCE, Results, figures, findings, tables
from experiments.transfer.settings import (
    DIFFERENCE,
    FIDELITIES,
    FROZEN,
    METHODS,
    READOUT,
    SCRATCH,
    TRAINABLE,
    Settings,
)
from experiments.transfer.stability import decomposition_energies, formation_energies
from experiments.transfer.teacher_set.reading import SPLITS, teacher_set, with_cutoffs, written
from jaxmlip.data.batch import Example
from jaxmlip.data.dataset import Dataset, DatasetError, MemorySplit, ShardSplit
from jaxmlip.data.encoding import Title
from jaxmlip.data.labels import Labels
from jaxmlip.potential import ARCHITECTURES, Potential, architecture_of
from jaxmlip.studies.study import Study, check_known, run
from jaxmlip.training.config import DataConfig, ModelConfig, TrainConfig, hyperparameters, reader_options
from jaxmlip.training.functionals import select
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig
from jaxmlip.training.records import METRICS, read_metrics
from jaxmlip.training.run import RESULTS, run_training
from jaxmlip.training.splits import read

VALIDATIONS = 4  # of a run at most, besides the one before its first step
IDEAL = "/ideal"


def main(settings: Settings) -> None:
    from jaxmlip.zoo.load import load

    check_known("method", settings.methods, METHODS)
    for name in ("crystals", "epochs", "source_epochs", "seeds", "batch_size"):
        if (number := getattr(settings, name)) is not None and number < 1:
            raise ValueError(f"found {name}={number}, needed 1 or more.")
    source, target = (
        teacher_set(settings.set, name) for name in (settings.source_functional, settings.target)
    )
    check_alike(settings, source, target)
    start = None if settings.start is None else load(settings.start)
    study = Study("transfer", settings, {start.name: start} if start else {})
    if start is None:
        start = small_source(settings, study.folder, source)
    trial = Trial(settings, study.folder, start, source, target)
    if study.left([SOURCE]):
        study.keep(SOURCE, trial.of_source())

    def measure(key: str) -> dict[str, Any]:
        method, seed = key.split("/")
        return trial.measured(method, int(seed))

    keys = [f"{method}/{seed}" for seed in range(settings.seeds) for method in settings.methods]
    study.each("carrying over", keys, measure)
    results = Results(settings, study.done())
    study.write(tables(results), figures(results), findings(results))


def check_alike(settings: Settings, source: Dataset, target: Dataset) -> None:
    """Raises DatasetError unless the two teachers label the same crystals, and enough of them."""
    if source.folder == target.folder:
        raise DatasetError(f"found {settings.target} as source and as target, needed two teachers.")
    for name in SPLITS:
        if not np.array_equal(source.splits[name].sizes, target.splits[name].sizes):
            raise DatasetError(
                f"{source.folder} and {target.folder} have different crystals for {name}, needed the same in "
                "the same order. Make the set again."
            )
    there = len(target.splits["train"])
    if settings.crystals is not None and settings.crystals > there:
        raise DatasetError(
            f"{target.folder} has {there} crystals for training, but --crystals asks for "
            f"{settings.crystals}. Give a smaller number, or make a larger set."
        )


def small_source(settings: Settings, folder: Path, source: Dataset) -> Potential:
    """A small network, trained on the source's labels; made once."""
    from jaxmlip.zoo.load import load

    given = small(settings.architecture, WIDTHS[settings.architecture]) | reader_options(
        settings.hyperparameters
    )
    network, _ = ARCHITECTURES[settings.architecture]
    cutoffs = network(hyperparameters(settings.architecture, given, elements=(1,))).cutoffs
    model = ModelConfig(architecture=settings.architecture, hyperparameters=given, name=SOURCE)
    data = with_cutoffs(folder / "data/source", source, cutoffs)
    if not (folder / SOURCE / RESULTS).is_file():
        run_training(training(settings, model, data, source, settings.source_epochs), folder / SOURCE)
    return load(str(folder / SOURCE / "model"))


def training(
    settings: Settings, model: ModelConfig, data: DataConfig, labels: Dataset, epochs: int
) -> TrainConfig:
    """The paper's protocol; magnetic moments are learnt if they have labels."""
    train = labels.splits["train"]
    known = train.counts["magmoms"] > 0
    steps = -(-(data.crystals or len(train)) // settings.batch_size)  # of an epoch
    return TrainConfig(
        model=model,
        data=data,
        loss=LossConfig("huber", 0.1, energy=3.0, forces=1.0, stress=0.1, magmoms=float(known)),
        optimizer=OptimizerConfig(learning_rate=settings.learning_rate),
        epochs=epochs,
        batch_size=settings.batch_size,
        validate_every=steps * -(-epochs // VALIDATIONS),
        report_every=1,
        tensorboard=False,
    )


def examples(split: ShardSplit) -> Iterator[tuple[Example, Title]]:
    """The crystals of a split on disk, and their titles."""
    return ((split[k], split.title(k)) for k in range(len(split)))


class Trial:
    """The data that methods share: the source, the splits, and the teacher's values for test materials."""

    def __init__(self, settings: Settings, folder: Path, start: Potential, source: Dataset, target: Dataset):
        self.settings, self.folder, self.start, self.target = settings, folder, start, target
        cutoffs = start.cutoffs
        self.data = with_cutoffs(folder / "data/target", target, cutoffs)
        self.source_data = with_cutoffs(folder / "data/source", source, cutoffs)
        self.splits = read(self.data)
        self.left_out = self.leave_out()
        test = list(examples(self.splits["test"]))
        self.test = MemorySplit([x for x, _ in test], cutoffs)
        self.materials = sorted({title.material for _, title in test})
        number = {material: k for k, material in enumerate(self.materials)}
        self.of_test = [number[title.material] for _, title in test]
        ideal = [
            (x, title)
            for split in self.splits.values()
            for x, title in examples(split)
            if title.name.endswith(IDEAL) and x.labels.energy is not None
        ]
        self.ideal = MemorySplit([x for x, _ in ideal], cutoffs)
        self.of_ideal = [number.get(title.material) for _, title in ideal]
        self.stability = self.stability_of([x.labels.energy for x, _ in ideal])

    def leave_out(self) -> int:
        """Removes crystals with elements that not every seed trains on from validation and test.

        No reference energy can be fitted to these elements. Returns how many are removed from the test.
        """
        held = ("validation", "test")
        seeds = range(self.settings.seeds)
        draws = (replace(self.data, crystals=self.settings.crystals, split_seed=seed) for seed in seeds)
        trained = [set(read(its)["train"].elements) for its in draws]
        known, before = set.intersection(*trained), len(self.splits["test"])
        for name in held:
            split = self.splits[name]
            if set(split.elements) <= known:
                continue
            kept = [k for k, (x, _) in enumerate(examples(split)) if set(x.graph.species.tolist()) <= known]
            if not kept:
                raise DatasetError(
                    f"every {name} crystal has an element that some seed does not train on, so nothing can "
                    "be compared. Give more --crystals, or make a larger set."
                )
            its = written(self.folder / "data/known", {name: split}, self.start.cutoffs, only=kept)
            self.data = replace(self.data, **{name: getattr(its, name)})
        self.splits = read(self.data)
        return before - len(self.splits["test"])

    def of_source(self) -> dict[str, Any]:
        """Errors of the source against its own labels, and against the target's."""
        known = set(self.test.elements)
        own = [x for x, _ in examples(read(self.source_data)["test"])]
        own = MemorySplit([x for x in own if set(x.graph.species.tolist()) <= known], self.start.cutoffs)
        found = errors(predictions([self.start], own), own, self.of_test, len(self.materials))
        return {"parameters": self.start.parameter_count, "errors": found, "crystals": self.counts()}

    def counts(self) -> dict[str, int]:
        asked = [
            material is not None and len(set(x.graph.species)) > 1
            for x, material in zip(self.ideal.examples, self.of_ideal, strict=True)
        ]
        return {
            **{name: len(split) for name, split in self.splits.items()},
            "left out": self.left_out,
            "test materials": len(self.materials),
            "compounds": (known := int(np.isfinite(self.stability["formation"]).sum())),
            "without elements": sum(asked) - known,
            "competing": int(np.sum(np.abs(np.subtract(*self.stability.values())) > 1e-6)),
        }

    def measured(self, method: str, seed: int) -> dict[str, Any]:
        """One run, with its errors before and after."""
        folder = self.folder / "runs" / f"{method}-{seed}"
        result = run_training(self.config(method, seed), folder)
        # Predictions of these are added to the network's.
        below = [self.start] if method == DIFFERENCE else []
        before, after = Potential.from_folder(folder / "start"), result.potential
        if method == FIDELITIES:
            before, after = (select(p, self.settings.target) for p in (before, after))
        lines = read_metrics(folder / METRICS)
        steps = [line for line in lines if line["kind"] == "train"]
        rates = [line["crystals_per_s"] for line in steps if line["crystals_per_s"]]
        return {
            "errors": self.compared([*below, after]),
            "before": {n: mean(np.array(found)) for n, found in self.compared([*below, before]).items()},
            "gradients": [[line["step"], line["grad_norm"]] for line in steps if line["epoch"] <= 1],
            "curve": [[x["epoch"], x["energy_mae"]] for x in lines if x["kind"] == "validation"],
            "steps": steps[-1]["step"],
            "crystals per second": float(np.median(rates)) if rates else None,
        }

    def config(self, method: str, seed: int) -> TrainConfig:
        settings = self.settings
        data = self.difference_data() if method == DIFFERENCE else self.data
        data = replace(data, crystals=settings.crystals, split_seed=seed)
        if method in (SCRATCH, DIFFERENCE):
            its = json.loads(json.dumps(asdict(self.start.model.config)))
            model = ModelConfig(architecture=architecture_of(self.start.model), hyperparameters=its)
        else:
            model = ModelConfig(start=settings.start or str(self.folder / SOURCE / "model"))
        config = training(settings, model, data, self.target, settings.epochs)
        if method == FIDELITIES:
            names = (settings.source_functional, settings.target)
            model, data = replace(model, functionals=names), self.data_of_both(seed)
            config = replace(config, model=model, data=data, batch_size=2 * settings.batch_size)
        if method == DIFFERENCE:
            config = replace(config, loss=replace(config.loss, magmoms=0.0))  # they stay the source's
        train = {TRAINABLE: ("all", "references"), READOUT: ("readout",)}.get(method, ("all",))
        return replace(
            config,
            seed=seed,
            reference_energies="keep" if method in (TRAINABLE, FROZEN) else "refit",
            optimizer=replace(config.optimizer, train=train),
        )

    def data_of_both(self, seed: int) -> DataConfig:
        """The target's crystals that other methods have with this seed, and as many of the source's."""
        settings, folder = self.settings, self.folder / "data"
        source = read(self.source_data)["train"]
        order = np.random.default_rng(seed).permutation(len(source))  # as data.crystals draws
        number = settings.crystals or len(source)
        target = {"train": self.splits["train"]}
        common = {"cutoffs": self.start.cutoffs}
        mine = {"functional": settings.target, "only": np.sort(order[:number]).tolist()}
        theirs = {"functional": settings.source_functional, "only": np.sort(order[-number:]).tolist()}
        parts = [
            written(folder / f"fidelities-{seed}/target", target, **common, **mine),
            written(folder / f"fidelities-{seed}/source", {"train": source}, **common, **theirs),
        ]
        held = {name: self.splits[name] for name in ("validation", "test")}
        data = written(folder / "fidelities", held, **common, functional=settings.target)
        return replace(data, train=tuple(path for part in parts for path in part.train))

    def difference_data(self) -> DataConfig:
        """The target's labels minus the source's predictions; magnetic moments are left out."""
        folder = self.folder / "data/difference"
        left = {name: split for name, split in self.splits.items() if not (folder / name).exists()}
        labels = {}
        for name, split in left.items():
            found = predictions([self.start], split)
            labels[name] = [minus(split[k].labels, its) for k, its in enumerate(found)]
        return written(folder, left, self.start.cutoffs, labels)

    def compared(self, potentials: Sequence[Potential]) -> dict[str, list[list[float]]]:
        """Sums of absolute errors and counts of numbers for each test material, as in `errors`."""
        number = len(self.materials)
        found = errors(predictions(potentials, self.test), self.test, self.of_test, number)
        ours = self.stability_of([p["energy"] for p in predictions(potentials, self.ideal)])
        for name, energies in ours.items():
            sums = np.zeros((number, 2))
            for material, e, teacher in zip(self.of_ideal, energies, self.stability[name], strict=True):
                if material is not None and math.isfinite(e - teacher):
                    sums[material] += abs(e - teacher), 1
            found[name] = sums.tolist()
        return found

    def stability_of(self, energies: Sequence[float]) -> dict[str, list[float]]:
        """Formation and decomposition energies (eV/atom) from the energies (eV) of undeformed crystals.

        NaN for elements, for crystals that are not of test materials, and if an element is not in the set.
        """
        crystals = [x.graph.species for x in self.ideal.examples]
        asked = [material is not None for material in self.of_ideal]
        return {
            "decomposition": decomposition_energies(crystals, energies, asked),
            "formation": formation_energies(crystals, energies, asked),
        }


def minus(labels: Labels, predicted: Mapping[str, Any]) -> Labels:
    """Labels of energy, forces and stress minus the predictions."""
    left = {p: getattr(labels, p) - predicted[p] for p in ("energy", "forces", "stress") if p in labels.known}
    return Labels(**left, weight=labels.weight, weights=labels.weights)


if __name__ == "__main__":
    run(main, Settings)
