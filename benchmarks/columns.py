"""How long would a Hessian take on many devices?

    python -m benchmarks.columns [--model chgnet-0.3.0] [--repeats 2 3]

A model on paper. Columns are spread over n devices; each makes the whole linear map, and then its columns, b
at once:

    T(n) = T_map + ⌈C / (n b)⌉ (T_block + T_call) + G(n)

    C: columns, three for each atom; b: those that a device computes at once
    T_map: time to linearise the gradient, the same on any number of devices
    T_block: time of a block of b columns
    T_call = K · launch for the K instructions of a program (measured within T_block on this machine)
    G(n) = (n - 1) / n · 3N C · bytes of a number / bandwidth + ⌈C / (n b)⌉ · log2(n) · latency: gathering

Measured here: T_map and T_block of this machine as one device, in float64. Counted: bytes that XLA's programs
read and write, by which both are bounded on accelerators (T = bytes / memory bandwidth; products take less).
Assumed: bandwidths of data sheets and latencies, `jaxmlip.training.step_time.DEVICES`; that no device waits
for another; for a TPU, which has float32 alone, half of the bytes. Devices simulated on one CPU share its
cores, so that they tell nothing about T(n).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from ase import Atoms
from ase.build import bulk

import jaxmlip
from jaxmlip.derivatives import linear_map
from jaxmlip.derivatives.response import Response
from jaxmlip.potential import Potential
from jaxmlip.system.console import say
from jaxmlip.system.tables import Table
from jaxmlip.training.step_time import DEVICES, Device

COUNTS = (1, 2, 4, 8, 64)
ROUNDS = 3
HERE = Device("this machine", math.inf, math.inf, 8, math.inf, 25e9, 0.0, 10e-6, 0.0)


@dataclass(frozen=True)
class Settings:
    """How long would a Hessian take on many devices?"""

    model: str = "chgnet-0.3.0"
    repeats: tuple[int, ...] = (2, 3)  # of the cubic cell of Si, eight atoms, along each vector


class Program(NamedTuple):
    """A compiled program: seconds on this machine, bytes that it reads and writes, and its instructions."""

    seconds: float
    bytes: float
    instructions: int

    @classmethod
    def of(cls, seconds: float, lowered: Any) -> Program:
        """The program `lowered`, which takes so many seconds here."""
        compiled = lowered.compile()
        entry = compiled.as_text().split("ENTRY")[1]
        count = sum(entry.count(f" {kind}(") for kind in ("fusion", "dot", "custom-call", "scatter"))
        return cls(seconds, compiled.cost_analysis()["bytes accessed"], count)

    def on(self, device: Device) -> float:
        """Seconds on `device`."""
        if device is HERE:
            return self.seconds
        single = 2 if device.name.startswith("TPU") else 1
        return self.bytes / single / device.memory + self.instructions * device.launch


class Work(NamedTuple):
    """What a Hessian of N atoms takes."""

    atoms: int
    block: int
    making: Program  # of the linear map
    columns: Program  # a block of them
    kept: int  # bytes of the linear map

    @property
    def total(self) -> int:
        """The number of columns."""
        return 3 * self.atoms


def seconds(work: Work, device: Device, devices: int) -> float:
    """T(n), as it stands at the top of this module."""
    blocks = -(-work.total // (devices * work.block))
    within = devices <= device.per_host
    bandwidth = device.link if within else device.network
    latency = device.link_latency if within else device.network_latency
    number = 4 if device.name.startswith("TPU") else 8
    moved = (devices - 1) / devices * number * work.total**2
    gathering = moved / bandwidth + blocks * math.log2(devices) * latency
    return work.making.on(device) + blocks * work.columns.on(device) + gathering


def measured(potential: Potential, atoms: Atoms) -> Work:
    """The work of a crystal's Hessian."""
    numbers = np.arange(3 * len(atoms))
    making, columns = [], []
    for k in range(ROUNDS + 1):  # the first compiles
        response = Response(potential, atoms)
        block = response.block_of(len(numbers))
        taken = []
        for some in (numbers[:block], numbers[block : 2 * block]):
            start = time.perf_counter()
            list(response.columns(some, total=len(numbers)))
            taken.append(time.perf_counter() - start)
        if k:
            making.append(taken[0] - taken[1])
            columns.append(taken[1])
    graph = response.graph
    with potential.precision():
        arguments = potential.energy_fn, potential.arrays, graph
        tangent_map = linear_map.linearise(*arguments)[1]
        point = linear_map.point(graph)
        places = np.arange(point[0].size).reshape(-1, 3)
        lowered = (
            linear_map.linearise.lower(*arguments),
            linear_map.columns.lower(tangent_map, *point, places, numbers[:block]),
        )
        programs = [
            Program.of(float(np.median(its)), program)
            for its, program in zip((making, columns), lowered, strict=True)
        ]
    return Work(len(atoms), block, *programs, response.kept)


def table(work: Work, devices: Sequence[Device], name: str) -> Table:
    """T(n), and in brackets the share of n times the speed of one device."""
    rows = []
    for n in COUNTS:
        cells = []
        for device in devices:
            found = seconds(work, device, n)
            cells.append(f"{found:,.3g} ({seconds(work, device, 1) / found / n:.0%})")
        rows.append((n, *cells))
    making, columns = work.making, work.columns
    about = (
        f"{work.total} columns, {work.block} at once. Here the map takes {making.seconds:.2f} s and a block "
        f"{columns.seconds:.2f} s; their programs read and write {making.bytes / 1e9:.2f} and "
        f"{columns.bytes / 1e9:.2f} GB in {making.instructions} and {columns.instructions} instructions. "
        f"Each device holds {work.kept / 1e9:.2f} GB, and {8 * work.total**2 / 1e6:.3g} MB are gathered."
    )
    heads = (f"{device.name} / s" for device in devices)
    return Table(f"Si, {work.atoms} atoms, {name}", ("devices", *heads), rows, note=about)


def main(settings: Settings) -> None:
    potential = jaxmlip.load(settings.model, "float64")
    for n in settings.repeats:
        work = measured(potential, bulk("Si", "diamond", a=5.43, cubic=True) * (n, n, n))
        say(table(work, (HERE, *DEVICES), potential.name).markdown() + "\n")
        jax.clear_caches()


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
