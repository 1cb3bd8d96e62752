"""How do errors fall with the amount of data, from random parameters and from another functional?

    python -m experiments.transfer.scaling_law --set FOLDER --out FOLDER

trains networks on parts of a set that `teacher_set.make` wrote, from random parameters (scratch) and from a
network of the same shape that was trained on the labels of another functional (transfer). It fits power laws
to their errors: where do the two meet, how many crystals of scratch is one crystal of transfer worth, and how
much computation does an error cost? As in Huang et al., npj Comput. Mater. 11, 313 (2025), reference energies
of the elements are fitted to all training data of the target and then fixed, smaller parts lie in larger
ones, and fits use sizes above a bound. Unlike there, labels are those of a potential, which stands in for
DFT, and errors are those of the test set: the validation set chooses the best step of each run. A single
material far from all others can dominate the mean over test crystals, so the error of the median material is
given, too.

A run goes through its data `epochs` times and takes at least `least_steps` steps, so that runs on few
crystals are fully trained, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.training.networks import small
from experiments.transfer.material_errors import errors, mean, median, predictions
from experiments.transfer.scaling_figures import ERRORS, MEDIANS, METHODS, SCRATCH, TRANSFER, Measured, report
from experiments.transfer.teacher_set.reading import teacher_set, with_cutoffs
from jaxmlip.crystals.graph import Cutoffs
from jaxmlip.data.dataset import Dataset, ShardSplit
from jaxmlip.potential import ARCHITECTURES, Potential, architecture_of, random_potential
from jaxmlip.studies.study import Study, StudyError, run
from jaxmlip.training.config import DataConfig, ModelConfig, TrainConfig, hyperparameters
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig
from jaxmlip.training.run import MODEL, fit_references
from jaxmlip.training.splits import read
from jaxmlip.training.sweeps.forecast import forecast
from jaxmlip.training.sweeps.sweep import Run, collect, run_all, unfinished
from jaxmlip.zoo.load import load

SOURCE = "source"
MEV = 1e3
CHOOSING = ("architectures", "width", "widths", "sizes", "seeds", "above", "processes")  # alter no run


@dataclass(frozen=True)
class Settings:
    """How do errors fall with the amount of data, from random parameters and from another functional?"""

    set: Path  # folder that experiments.transfer.teacher_set.make wrote
    source: str = "m3gnet-matpes-pbe-2025.1"  # the teacher whose functional is learnt first
    target: str = "m3gnet-matpes-r2scan-2025.1"  # the teacher whose functional is wanted
    start: str | None = None  # a potential to transfer from; scratch then has its shape
    architectures: tuple[str, ...] = ("m3gnet",)  # m3gnet, chgnet, mace
    width: int = 16  # features or channels of the network that is trained with every seed
    widths: tuple[int, ...] = (8, 32)  # other widths, with one seed, for errors against computation
    sizes: tuple[int, ...] = (500, 1000, 2000, 4000, 15000)  # crystals to train on
    above: int = 500  # crystals; fits use larger sizes only
    seeds: int = 3  # number of seeds for crystals, their order and random parameters
    epochs: int = 8
    least_steps: int = 800  # of a run at least
    validations: int = 6  # of a run
    batch_size: int = 32
    learning_rate: float = 3e-3
    processes: int = 2  # runs at the same time
    out: Path = Path("scaling_law")


@dataclass(frozen=True, eq=False)
class Network:
    """A shape of network, with the seeds and the initial potential of its training."""

    name: str
    architecture: str
    config: Any
    elements: tuple[int, ...]  # atomic numbers
    seeds: int
    start: Potential | None = None  # to transfer from; default: a potential that learns the source first

    @property
    def cutoffs(self) -> Cutoffs:
        return ARCHITECTURES[self.architecture][0](self.config).cutoffs


@dataclass(frozen=True)
class Point:
    """One run."""

    architecture: str
    network: str
    method: str
    size: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.network}-{self.method}-{self.size}-{self.seed}"


def main(settings: Settings) -> None:
    source, target = (teacher_set(settings.set, name) for name in (settings.source, settings.target))
    check_sizes(settings, target)
    start = None if settings.start is None else load(settings.start)
    networks = shapes(settings, start, elements_of(target))
    weights = {start.name: start} if start else {}
    study = Study("scaling_law", settings, weights, CHOOSING)
    folder = study.folder / "runs"

    def finish(runs: list[Run]) -> dict[str, dict[str, Any]]:
        run_all(runs, folder, settings.processes)
        return collect(runs, folder)

    first = {n.name: source_run(settings, n, source, study.folder) for n in networks if n.start is None}
    sources = finish(list(first.values()))
    points: dict[Point, Run] = {}
    tests: dict[str, ShardSplit] = {}
    left: dict[str, str] = {}
    for network in networks:
        data = prepared(target, network.cutoffs, study.folder)
        tests[network.name] = read(data)["test"]
        learnt = sources.get(first[network.name].name) if network.name in first else None
        for point in points_of(settings, network):
            if point.method == SCRATCH:
                begin = random_start(network, point.seed, data, study.folder)
            elif network.start is not None or learnt is not None:
                begin = transfer_start(network, learnt, data, study.folder)
            else:
                left[point.name] = "its source is not finished"
                continue
            points[point] = Run(point.name, configuration(settings, data, begin, point))
    found = finish(list(points.values()))
    largest = {p.network: its for p, its in points.items()}  # its batches are the fullest
    begun: dict[str | None, dict[str, float]] = {}  # errors of initial potentials, which runs share
    for point, its in points.items():
        key = f"FLOP of a step of {point.network}"
        if key not in study.rows:
            (cost,) = forecast([largest[point.network]], folder)
            study.keep(key, {"flops": cost.cost.flops})
        if point.name in found and point.name not in study.rows:
            begin, test = its.config.model.start, tests[point.network]
            if begin not in begun:
                begun[begin] = held_out_errors(load(begin), test)
            row = row_of(found[point.name], its.config, study.rows[key]["flops"], test)
            study.keep(point.name, {"before": begun[begin]} | row)
    left |= unfinished([*first.values(), *points.values()], folder)
    rows = [Measured(**vars(p), **study.rows[p.name]) for p in points if p.name in study.rows]
    main = [n.name for n in networks if n.seeds == settings.seeds]
    study.write(*report(rows, settings.above, main, left))


def check_sizes(settings: Settings, target: Dataset) -> None:
    """Raises StudyError if `settings` ask for more than the data have."""
    there = len(target.splits["train"])
    if wrong := [n for n in settings.sizes if not 1 <= n <= there]:
        raise StudyError(
            f"--sizes: found {', '.join(map(str, wrong))}, needed 1 to {there}, the number of training "
            f"crystals in {target.folder}. Give other sizes, or make a larger set."
        )
    if len({n for n in settings.sizes if n > settings.above}) < 2:
        raise StudyError(
            f"--sizes: found {', '.join(map(str, settings.sizes))}, needed at least two above "
            f"{settings.above}, since fits use only those. Give more sizes, or a smaller --above."
        )


def elements_of(data: Dataset) -> tuple[int, ...]:
    """The atomic numbers in all splits."""
    return tuple(sorted({z for split in data.splits.values() for z in split.elements}))


def shapes(settings: Settings, start: Potential | None, elements: tuple[int, ...]) -> list[Network]:
    """The networks to train: one with the shape of `start`, or narrow ones of each architecture."""
    if start is not None:
        return [
            Network(
                start.name, architecture_of(start.model), start.model.config, elements, settings.seeds, start
            )
        ]
    found = []
    for architecture in settings.architectures:
        for width in dict.fromkeys((settings.width, *settings.widths)):
            config = hyperparameters(architecture, small(architecture, width), elements)
            seeds = settings.seeds if width == settings.width else 1
            found.append(Network(f"{architecture}-{width}", architecture, config, elements, seeds))
    return found


def points_of(settings: Settings, network: Network) -> list[Point]:
    """The runs of one network, those on the fewest crystals first."""
    return [
        Point(network.architecture, network.name, method, size, seed)
        for size in sorted(set(settings.sizes))
        for seed in range(network.seeds)
        for method in METHODS
    ]


def prepared(data: Dataset, cutoffs: Cutoffs, out: Path) -> DataConfig:
    """`data` for a model with these cutoffs."""
    name = f"{data.folder.name}-{cutoffs.bond:g}-{cutoffs.angle:g}{'-listed' * cutoffs.listed}"
    return with_cutoffs(out / "data" / name, data, cutoffs)


def source_run(settings: Settings, network: Network, source: Dataset, out: Path) -> Run:
    """The run on all labels of the source, from which transfer begins."""
    data = prepared(source, network.cutoffs, out)
    point = Point(network.architecture, network.name, SOURCE, len(source.splits["train"]), 0)
    begin = random_start(network, point.seed, data, out, of=SOURCE)
    return Run(point.name, configuration(settings, data, begin, point))


def configuration(settings: Settings, data: DataConfig, start: Path, point: Point) -> TrainConfig:
    """The configuration of one run."""
    batch = min(settings.batch_size, point.size)
    steps = max(settings.epochs * math.ceil(point.size / batch), settings.least_steps)
    magmoms = read(data)["train"].counts["magmoms"] > 0
    return TrainConfig(
        model=ModelConfig(start=str(start), name=point.name),
        data=replace(data, crystals=point.size, split_seed=point.seed),
        # As in the paper, but with a larger learning rate, since networks are smaller.
        loss=LossConfig(energy=3.0, forces=1.0, stress=0.1, magmoms=float(magmoms)),
        optimizer=OptimizerConfig(
            learning_rate=settings.learning_rate,
            final_learning_rate=settings.learning_rate / 100,
            warmup_steps=min(100, steps // 10),
            clip=10.0,
        ),
        reference_energies="keep",
        steps=steps,
        batch_size=batch,
        seed=point.seed,
        validate_every=math.ceil(steps / settings.validations),
        keep=1,
        tensorboard=False,
    )


def random_start(network: Network, seed: int, data: DataConfig, out: Path, of: str = SCRATCH) -> Path:
    """A potential with random parameters, and reference energies of all training data."""

    def made() -> Potential:
        potential = random_potential(network.config, seed, name=network.name)
        return with_references(replace(potential, elements=network.elements), data, random=True)

    return saved(out / "starts" / f"{network.name}-{of}-{seed}", made)


def transfer_start(network: Network, source: Mapping[str, Any] | None, data: DataConfig, out: Path) -> Path:
    """The potential that learnt the source, with reference energies refitted to all training data."""

    def made() -> Potential:
        learnt = network.start or load(Path(source["folder"]) / MODEL)
        return with_references(learnt, data, random=False)

    return saved(out / "starts" / f"{network.name}-{TRANSFER}", made)


def with_references(potential: Potential, data: DataConfig, random: bool) -> Potential:
    energies = fit_references(potential, read(data)["train"], random).energies
    return replace(potential, params={**potential.params, "reference_energies": energies})


def saved(folder: Path, made: Callable[[], Potential]) -> Path:
    """`folder`, with the potential that `made` gives or gave earlier."""
    if not folder.exists():
        made().save(folder)
    return folder


def row_of(record: Mapping[str, Any], config: TrainConfig, flops: float, test: ShardSplit) -> dict[str, Any]:
    """The row of a run: errors of the test set in the units of ERRORS and MEDIANS, and the cost."""
    trained = load(Path(record["folder"]) / MODEL)
    return {
        "after": held_out_errors(trained, test),
        "parameters": trained.parameter_count,
        "best": trained.manifest["trained"]["step"] / config.steps,
        "flops": flops * config.steps,
    }


def held_out_errors(potential: Potential, test: ShardSplit) -> dict[str, float]:
    """Errors over all test crystals, and of the median material."""
    of = [test.title(k).material for k in range(len(test))]
    materials = {material: k for k, material in enumerate(dict.fromkeys(of))}
    sums = errors(predictions([potential], test), test, [materials[m] for m in of], len(materials))
    found = {}
    for name, robust in zip(ERRORS, MEDIANS, strict=True):
        found |= {name: MEV * mean(sums[name]), robust: MEV * median(sums[name])}
    return found


if __name__ == "__main__":
    run(main, Settings)
