"""How long would a step of training take on many devices?

    python -m benchmarks.scaling --out FOLDER

A model on paper (`jaxmlip.training.step_time` has its formula): the operations that XLA counts in the
compiled step of each architecture at the widths of its public models, the loader's padding when a batch is
dealt to n devices, the time of a host to make batches, and the data sheets of the devices. None of it was
measured on those devices; compare before you believe.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro

from benchmarks.training import mixed
from jaxmlip.data.dataset import Split
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.data.writing import write_dataset
from jaxmlip.models.chgnet import CHGNetConfig
from jaxmlip.models.m3gnet import M3GNetConfig
from jaxmlip.models.mace import MACEConfig
from jaxmlip.potential import random_potential
from jaxmlip.system.console import say
from jaxmlip.system.files import writing_folder
from jaxmlip.system.parallel import make_mesh
from jaxmlip.system.tables import Table
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig
from jaxmlip.training.step import init_state, make_train_step
from jaxmlip.training.step_time import DEVICES, StepTime, Work, padding, step_time

MODELS = {
    "CHGNet": CHGNetConfig(),
    "M3GNet": M3GNetConfig(),
    "MACE": MACEConfig(elements=tuple(range(1, 90)), channels=128, harmonics_l=3),
}
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
THREADS = 2  # of the loader


@dataclass(frozen=True)
class Settings:
    """How long would a step of training take on many devices?"""

    batch: int = 1024  # structures over all devices, where more devices share the same work
    each: int = 32  # structures on each device, where more devices do more work
    crystals: int = 20_000  # of which the padding is taken
    compiled: int = 10  # structures in the batch whose program is counted
    out: Path = Path("scaling")


def sizes(crystals: int, split: Split) -> np.ndarray:
    """Atoms, bonds and angles of crystals as large as those of the Materials Project: lognormal numbers of
    atoms, median 20, at most 444; as many bonds and angles for an atom as in `split`."""
    atoms = np.clip(np.random.default_rng(0).lognormal(3.0, 0.8, crystals), 1, 444).astype(int)
    per_atom = split.sizes.sum(axis=0) / split.sizes[:, 0].sum()
    return np.round(atoms[:, None] * per_atom).astype(int)


def measured(name: str, compiled: int, folder: Path) -> tuple[Work, Split]:
    """The work of a step as XLA counts it, for a structure of 32 atoms on average."""
    potential = random_potential(MODELS[name], seed=0, name=name)
    crystals = mixed()[:: 40 // compiled]
    labels = [Labels(energy=0.0, forces=np.zeros((len(a), 3)), stress=np.eye(3)) for a in crystals]
    labelled = [LabelledCrystal(a, its) for a, its in zip(crystals, labels, strict=True)]
    whole = (1.0, 0.0, 0.0)
    split = write_dataset(folder, labelled, potential.cutoffs, fractions=whole, processes=1).splits["train"]
    loader = Loader(split, Plan(split.sizes, len(split), epochs=5), potential.params["reference_energies"])
    mesh, optimizer = make_mesh(1), OptimizerConfig()
    step = make_train_step(potential, LossConfig(magmoms=0.0), optimizer, 10, mesh)
    taken = []
    for k in range(5):
        began = time.thread_time()
        batch = loader.at(k)
        taken.append((time.thread_time() - began) / len(split))
    program = step.jitted.lower(*step.arguments(init_state(potential, optimizer, 10, mesh), batch)).compile()
    analysis = program.cost_analysis()
    entry = program.as_text().split("ENTRY")[1]
    work = Work(
        flops=analysis["flops"] / len(split),
        bytes=analysis["bytes accessed"] / len(split),
        parameters=potential.parameter_count,
        instructions=sum(entry.count(f" {kind}(") for kind in ("fusion", "dot", "custom-call", "scatter")),
        loading=float(np.median(taken)) / THREADS,
    )
    return work, split


def main(settings: Settings) -> None:
    told, curves = [], {}
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            work, split = measured(name, settings.compiled, Path(folder) / name)
        large = sizes(settings.crystals, split)
        shared = [padding(large, settings.batch, n) for n in COUNTS]
        own = [padding(large, settings.each * n, n) for n in COUNTS]
        rows = []
        for n, w, w_own in zip(COUNTS, shared, own, strict=True):
            times = [step_time(work, device, n, settings.batch, w) for device in DEVICES]
            rates = [
                settings.each * n / step_time(work, device, n, settings.each * n, w_own).total
                for device in DEVICES
            ]
            rows.append((n, w, times, w_own, rates))
        curves[name] = rows
        told.append(markdown(name, work, split, rows, settings))
        say(told[-1])
        jax.clear_caches()
    with writing_folder(settings.out) as draft:
        (draft / "scaling.md").write_text("\n".join(told))
        figure(settings, curves).savefig(draft / "scaling.png", dpi=150)


def markdown(name: str, work: Work, split: Split, rows: list, settings: Settings) -> str:
    """One table, with the numbers that went into it."""
    about = (
        f"{name}: {work.flops / 1e9:.2f} GFLOP and {work.bytes / 1e9:.2f} GB for a structure of "
        f"{split.sizes[:, 0].mean():.0f} atoms, {work.parameters:,} parameters, {work.instructions:,} "
        f"instructions, {1e3 * work.loading:.2f} ms of a host's loader."
    )
    head = ["devices", f"padding at {settings.batch}", *(f"{d.name} ms" for d in DEVICES)]
    head += [f"padding at {settings.each} each", *(f"{d.name} structures/s" for d in DEVICES)]
    lines = []
    for n, w, times, w_own, rates in rows:
        cells = [str(n), f"{w:.0%}", *(f"{1e3 * t.total:,.4g}{SIGNS[bound(t)]}" for t in times)]
        cells += [f"{w_own:.0%}", *(f"{float(f'{rate:.2g}'):,.0f}" for rate in rates)]
        lines.append(cells)
    return Table(name, tuple(head), lines, note=about).markdown() + "\n"


SIGNS = {"work": "", "input": " (input)", "summing": " (summing)"}


def bound(time: StepTime) -> str:
    """The part that takes longest."""
    return max(time._asdict().items(), key=lambda part: part[1])[0]


def figure(settings: Settings, curves: dict):
    from jaxmlip.system.plots import COLOURS, panels

    result, (line,) = panels(1, 3, (3.0, 3.4), (0, 0), sharey=True)
    for ax, model in zip(line, MODELS, strict=True):
        rows = curves[model]
        n = np.array(COUNTS)
        for k, (colour, marker, device) in enumerate(zip(COLOURS, "os^", DEVICES, strict=False)):
            ms = np.array([1e3 * times[k].total for _, _, times, _, _ in rows])
            ax.plot(n, ms, marker=marker, ms=4, color=colour, label=device.name)
            ax.plot(n, ms[0] / n, color=colour, ls=":", lw=1)
        ax.set(title=model, xlabel="devices", yscale="log")
        ax.set_xscale("log", base=2)
        ax.set_xticks(n, map(str, n))
    result.axes[0].set_ylabel(f"ms for a step of {settings.batch} structures\n(model, not measured)")
    result.axes[0].legend(frameon=False, fontsize="small", title="dotted: n times faster")
    return result


if __name__ == "__main__":
    main(tyro.cli(Settings))
