"""How many structures a second does a step of training take, against the trainer of the torch package?

    python -m benchmarks.training --peer-python PYTHON

A step of CHGNet 0.3.0 on a batch of 40: energies, forces, stresses and magnetic moments, Huber loss, Adam;
both sides in float32 from the same weights, crystals and labels. Both have their graphs before; ours packs
them into a batch in every step, in the same thread. The share of its time that a run waits for batches made
beforehand is printed too. The first rows have rattled cells of 8 atoms, of NaCl with 6 neighbours within 3 Å
and of three compounds, one with 18; the last has crystals of 8 to 96 atoms, 32 on average as in the Materials
Project. The peer runs in a process of its own, with one thread and with all cores, and the better of both
counts. The sides take turns; ratios are within a turn. Both do the same, as their errors before the first
step show.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import numpy as np
import tyro
from ase import Atoms
from ase.build import bulk

import jaxmlip
from benchmarks.speed import Peer, compare, plain
from jaxmlip.data.dataset import MemorySplit
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.potential import Potential
from jaxmlip.system.console import console
from jaxmlip.system.parallel import make_mesh
from jaxmlip.system.tables import Table, show
from jaxmlip.training.losses import LossConfig, means
from jaxmlip.training.optimizer import OptimizerConfig
from jaxmlip.training.step import init_state, make_eval_step, make_train_step
from jaxmlip.units import GPA_PER_EV_PER_A3

BATCH, RATE = 40, 1e-4
WATCHED = 10  # steps in which waiting for batches is watched
ERRORS = {"energy": "eV/atom", "forces": "eV/Å", "stress": "GPa", "magmoms": "μB"}


@dataclass(frozen=True)
class Settings:
    """What to compare, and how often."""

    rows: tuple[Literal["salt", "small", "mixed"], ...] = ("salt", "small", "mixed")
    peer_python: Annotated[str, tyro.conf.arg(help="interpreter that has the peer installed")] = (
        sys.executable
    )
    rounds: int = 5
    steps: int = 3  # in each turn


def salt() -> list[Atoms]:
    """Rock salt of NaCl, 8 atoms each."""
    return [bulk("NaCl", "rocksalt", 5.64, cubic=True) for _ in range(BATCH)]


def small() -> list[Atoms]:
    """Rock salt and zincblende, 8 atoms each."""
    kinds = [("NaCl", "rocksalt", 5.64), ("MgO", "rocksalt", 4.21), ("ZnS", "zincblende", 5.41)]
    return [bulk(*kinds[k % len(kinds)], cubic=True) for k in range(BATCH)]


def mixed() -> list[Atoms]:
    """Rock salt and zincblende, 8 to 96 atoms and 32 on average."""
    kinds = [("NaCl", "rocksalt", 5.64), ("ZnS", "zincblende", 5.41), ("FeO", "rocksalt", 4.33)]
    repeats = [(1, 1, 1), (2, 1, 1), (2, 2, 1), (3, 2, 1), (2, 2, 2), (3, 2, 2)]
    counts = [10, 8, 10, 4, 6, 2]
    return [
        bulk(*kinds[k % len(kinds)], cubic=True) * cells
        for k, cells in enumerate(np.repeat(repeats, counts, axis=0).tolist())
    ]


def labelled(potential: Potential, crystals: list[Atoms]) -> list[LabelledCrystal]:
    """Crystals labelled with the potential's predictions and noise."""
    rng = np.random.default_rng(0)
    return [
        LabelledCrystal(
            atoms,
            Labels(
                energy=float(p["energy"] + 0.02 * len(atoms) * rng.normal()),
                forces=p["forces"] + 0.1 * rng.normal(size=(len(atoms), 3)),
                stress=p["stress"] + 0.003 * np.eye(3) * rng.normal(),
                magmoms=p["magmoms"] + 0.1 * rng.normal(size=len(atoms)),
            ),
        )
        for atoms, p in zip(crystals, potential.predict(crystals), strict=True)
    ]


class Ours:
    """A run of training, each batch of which has all crystals."""

    def __init__(self, potential: Potential, crystals: list[LabelledCrystal], settings: Settings):
        split = MemorySplit.from_crystals(crystals, potential.cutoffs)
        steps = max(WATCHED, (settings.rounds + 1) * settings.steps)
        self.plan = Plan(split.sizes, BATCH, epochs=steps)
        self.loader = Loader(split, self.plan, potential.params["reference_energies"])
        self.potential, self.loss, self.mesh = potential, LossConfig(), make_mesh(1)
        config = OptimizerConfig(learning_rate=RATE)
        self.state = init_state(potential, config, steps, self.mesh)
        self.step = make_train_step(potential, self.loss, config, steps, self.mesh)
        self.done = 0

    def errors(self) -> list[float]:
        """Mean absolute errors of the state as it is, in the order and the units of ERRORS."""
        evaluate = make_eval_step(self.potential, self.loss, self.mesh)
        found = means(self.loss, evaluate(self.state.eval_params, self.loader.at(0)))
        return [float(found[f"{name}_mae"]) for name in ERRORS]

    def seconds(self, steps: int) -> float:
        """Seconds for a step; its batch is made after the one before was sent off, by the same thread."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.loader.at(self.done))
            self.done += 1
        jax.block_until_ready((self.state, metrics))
        return (time.perf_counter() - start) / steps

    def waiting(self) -> float:
        """The fraction of the time that a run waits for batches that its loader makes beforehand."""
        for batch in self.loader.iterate():
            self.state, metrics = self.step(self.state, batch)
            jax.block_until_ready((self.state, metrics))
        return self.loader.waiting


def theirs(peer: Peer, crystals: list[LabelledCrystal], steps: int):
    """Their errors in the order and the units of ERRORS, and a function that times a step."""
    request = [
        {
            **plain(crystal.atoms),
            "energy": crystal.labels.energy,
            "forces": crystal.labels.forces.tolist(),
            "stress": (crystal.labels.stress * GPA_PER_EV_PER_A3).tolist(),
            "magmoms": crystal.labels.magmoms.tolist(),
        }
        for crystal in crystals
    ]
    errors = peer.ask("load", os.cpu_count() or 1, crystals=request)

    def seconds() -> float:
        return peer.best(lambda threads: float(np.median(peer.ask("train", threads, repeats=steps))))

    return errors, seconds


def main(settings: Settings) -> None:
    terminal = console()
    rows = []
    makers: dict[str, Callable[[], list[Atoms]]] = {"salt": salt, "small": small, "mixed": mixed}
    for name in settings.rows:
        potential = jaxmlip.load("chgnet-0.3.0")
        bare = makers[name]()
        for k, atoms in enumerate(bare):
            atoms.rattle(0.05, seed=k)
        crystals = labelled(potential, bare)
        peer = Peer(settings.peer_python, "chgnet_training", "0.3.0")
        their_errors, their_seconds = theirs(peer, crystals, settings.steps)
        ours = Ours(potential, crystals, settings)
        for (of, unit), a, b in zip(ERRORS.items(), ours.errors(), their_errors, strict=True):
            terminal.print(f"{name}: MAE of {of} before training {a:.6f} here, {b:.6f} there ({unit})")

        def our_seconds(ours=ours) -> float:
            return ours.seconds(settings.steps)

        took, peers, *ratios = compare(our_seconds, their_seconds, settings.rounds)
        peer.close()
        terminal.print(
            f"{name}: {BATCH / took:.1f} structures/s here, {BATCH / peers:.1f} there, ratio {ratios[0]:.1f}"
        )
        sizes = [len(atoms) for atoms in bare]
        atoms = f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else min(sizes)
        rows.append((name, atoms, BATCH / took, BATCH / peers, *ratios, f"{ours.waiting():.2%}"))
    columns = ("crystals", "atoms", "ours", "chgnet", "ratio", "lowest", "highest", "waiting")
    show(Table(f"structures/s in training, batches of {BATCH}", columns, rows, 1))
    terminal.print(
        f"median of {settings.rounds} rounds of {settings.steps} steps; {os.cpu_count()} cores, jaxmlip "
        f"{jaxmlip.__version__}, torch {peer.versions['torch']}"
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
