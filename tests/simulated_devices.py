"""What XLA makes of a step of training on 1 and on 8 simulated devices, as JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python simulated_devices.py
"""

import json
import re

import small_run
from ase.build import bulk

from jaxmlip.data.dataset import MemorySplit
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.system import parallel
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig
from jaxmlip.training.step import init_state, make_train_step
from jaxmlip.training.step_time import padding


def summed(program: str) -> int:
    """The bytes of the float32 numbers that all devices add."""
    total = 0
    for kind in re.findall(r"= (.*?) all-reduce(?:-start)?\(", program):
        for shape in re.findall(r"f32\[([\d,]*)\]", kind):
            count = 4
            for n in filter(None, shape.split(",")):
                count *= int(n)
            total += count
    return total


def main() -> None:
    potential, loss, optimizer = small_run.start(), LossConfig(stress=0.0, magmoms=0.0), OptimizerConfig()
    # On 8 devices, four of which get two; large ones, since each device updates all parameters.
    crystals = [bulk("Si") * (4, 4, 4)] * 12
    split = MemorySplit.from_crystals(
        [LabelledCrystal(a, Labels(energy=0.0)) for a in crystals], potential.cutoffs
    )
    found = {}
    for n in (1, 8):
        mesh = parallel.make_mesh(n)
        loader = Loader(split, Plan(split.sizes, 12, n), potential.params["reference_energies"])
        step = make_train_step(potential, loss, optimizer, 10, mesh)
        arguments = step.arguments(init_state(potential, optimizer, 10, mesh), loader.at(0))
        program = step.jitted.lower(*arguments).compile()
        found[n] = {
            "flops": program.cost_analysis()["flops"],
            "bytes": program.cost_analysis()["bytes accessed"],
            "padding": padding(split.sizes, 12, n),
            "summed": summed(program.as_text()),
            "parameters": sum(x.size for x in arguments[0].params.values()),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
