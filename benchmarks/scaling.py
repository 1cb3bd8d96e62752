"""How long would a step of training take on many devices?

    python -m benchmarks.scaling --out FOLDER

A model on paper (`jaxmlip.training.scaling` has its formula): what XLA counts in the compiled step of
each architecture at the widths of its public models, what the loader wastes on padding when a batch is dealt
to n devices, what a host takes to make batches, and the data sheets of the devices. Nothing of it was
measured on those devices; compare before you believe.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.training import mixed
from jaxmlip.data.dataset import MemorySplit
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.models.chgnet import CHGNetConfig
from jaxmlip.models.m3gnet import M3GNetConfig
from jaxmlip.models.mace import MACEConfig
from jaxmlip.potential import random_potential
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig
from jaxmlip.training.parallel import make_mesh
from jaxmlip.training.scaling import DEVICES, StepTime, Work, padding, step_time
from jaxmlip.training.step import init_state, make_train_step

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


def sizes(crystals: int, split: MemorySplit) -> np.ndarray:
    """Atoms, bonds and angles of crystals as large as those of the Materials Project: lognormal numbers of
    atoms, median 20, at most 444; as many bonds and angles for an atom as in `split`."""
    atoms = np.clip(np.random.default_rng(0).lognormal(3.0, 0.8, crystals), 1, 444).astype(int)
    per_atom = split.sizes.sum(axis=0) / split.sizes[:, 0].sum()
    return np.round(atoms[:, None] * per_atom).astype(int)


def measured(name: str, compiled: int) -> tuple[Work, MemorySplit]:
    """What XLA counts in a step, for a structure of 32 atoms on average."""
    potential = random_potential(MODELS[name], seed=0, name=name)
    crystals = mixed()[:: 40 // compiled]
    labels = [Labels(energy=0.0, forces=np.zeros((len(a), 3)), stress=np.eye(3)) for a in crystals]
    split = MemorySplit.from_crystals(
        [LabelledCrystal(a, its) for a, its in zip(crystals, labels, strict=True)], potential.cutoffs
    )
    loader = Loader(split, Plan(split.sizes, len(split)), potential.params["reference_energies"])
    mesh, optimizer = make_mesh(1), OptimizerConfig()
    step = make_train_step(potential, LossConfig(magmoms=0.0), optimizer, 10, mesh)
    began = time.perf_counter()
    batch = loader.at(0)
    seconds = (time.perf_counter() - began) / len(split)
    program = step.jitted.lower(*step.arguments(init_state(potential, optimizer, 10, mesh), batch)).compile()
    analysis = program.cost_analysis()
    entry = program.as_text().split("ENTRY")[1]
    work = Work(
        flops=analysis["flops"] / len(split),
        bytes=analysis["bytes accessed"] / len(split),
        parameters=potential.parameter_count,
        instructions=sum(entry.count(f" {kind}(") for kind in ("fusion", "dot", "custom-call", "scatter")),
        loading=seconds / THREADS,
    )
    return work, split


def main(settings: Settings) -> None:
    console = Console(width=120)
    works, tables = {}, {}
    for name in MODELS:
        works[name], split = measured(name, settings.compiled)
        w = works[name]
        console.print(
            f"{name}: {w.flops / 1e9:.2f} GFLOP and {w.bytes / 1e9:.2f} GB for a structure of "
            f"{split.sizes[:, 0].mean():.0f} atoms, {w.parameters:,} parameters, {w.instructions} "
            f"instructions, {1e3 * w.loading:.2f} ms of a host's loader",
            highlight=False,
        )
        large = sizes(settings.crystals, split)
        wastes = [(padding(large, settings.batch, n), padding(large, settings.each * n, n)) for n in COUNTS]
        for device in DEVICES:
            tables[name, device.name] = [
                (
                    n,
                    shared,
                    step_time(w, device, n, settings.batch, shared),
                    step_time(w, device, n, settings.each * n, own),
                )
                for n, (shared, own) in zip(COUNTS, wastes, strict=True)
            ]
        jax.clear_caches()
    settings.out.mkdir(parents=True, exist_ok=True)
    report(console, settings, tables)
    figure(settings, tables).savefig(settings.out / "scaling.png", dpi=150)


def report(console: Console, settings: Settings, tables: dict) -> None:
    for model in MODELS:
        table = Table(title=f"{model}: ms of a step of {settings.batch} structures", title_justify="left")
        columns = [f"{d.name}: {what}" for d in DEVICES for what in ("ms", "bound by")]
        for column in ("devices", "padding", *columns, f"structures/s, {settings.each} on each"):
            table.add_column(column, justify="right")
        for k, n in enumerate(COUNTS):
            rows = [tables[model, d.name][k] for d in DEVICES]
            cells = [c for _, _, t, _ in rows for c in (f"{1e3 * t.total:.3g}", bound(t))]
            rates = " / ".join(f"{settings.each * n / t.total:,.3g}" for *_, t in rows)
            table.add_row(str(n), f"{rows[0][1]:.0%}", *cells, rates)
        console.print(table)


def bound(time: StepTime) -> str:
    """What takes longest."""
    return max(time._asdict().items(), key=lambda part: part[1])[0]


def figure(settings: Settings, tables: dict):
    from matplotlib.figure import Figure

    from jaxmlip.figures import COLOURS

    result = Figure(figsize=(9, 3.4), layout="constrained")
    for ax, model in zip(result.subplots(1, 3, sharey=True), MODELS, strict=True):
        for colour, marker, device in zip(COLOURS, "os^", DEVICES, strict=False):
            rows = tables[model, device.name]
            n, ms = np.array([r[0] for r in rows]), np.array([1e3 * r[2].total for r in rows])
            ax.loglog(n, ms, marker=marker, color=colour, label=device.name, base=2)
            ax.loglog(n, ms[0] / n, color=colour, ls=":", lw=1)
        ax.set(title=model, xlabel="devices")
        ax.set_yscale("log", base=10)
    result.axes[0].set_ylabel(f"ms for {settings.batch} structures (model)")
    result.axes[0].legend(frameon=False, fontsize="small", title="dotted: n times faster")
    return result


if __name__ == "__main__":
    main(tyro.cli(Settings))
