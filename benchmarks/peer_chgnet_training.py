"""The trainer of the torch package `chgnet` as a worker process for benchmarks.training."""

import time

import torch
from chgnet.data.dataset import collate_graphs
from chgnet.model.model import CHGNet
from chgnet.trainer import Trainer
from pymatgen.core import Structure
from worker import serve


class Training:
    """A trainer, and the batch that it is given again and again."""

    def __init__(self, name: str):
        self.model = CHGNet.load(model_name=name, use_device="cpu", verbose=False)
        self.trainer = Trainer(
            self.model,
            targets="efsm",
            optimizer="Adam",
            criterion="Huber",
            learning_rate=1e-4,
            use_device="cpu",
        )
        for parameter in self.model.composition_model.parameters():
            parameter.requires_grad = False  # as Trainer.train does


def load_batch(training: Training, request) -> list[float]:
    """Makes graphs and targets; answers the trainer's MAE of E (eV/atom), F, S (GPa) and M for them."""
    examples = []
    for c in request["crystals"]:
        crystal = Structure(c["cell"], c["numbers"], c["positions"], coords_are_cartesian=True)
        targets = {
            "e": c["energy"] / len(crystal),
            "f": torch.tensor(c["forces"]),
            "s": torch.tensor(c["stress"]),
            "m": torch.tensor(c["magmoms"]),
        }
        examples.append((training.model.graph_converter(crystal), targets))
    training.batch = collate_graphs(examples)
    found = training.trainer._validate([training.batch])
    return [found[key] for key in "efsm"]


def train(training: Training, request) -> list[float]:
    """Seconds of single iterations of the trainer on the batch."""
    times = []
    for _ in range(request["repeats"]):
        start = time.perf_counter()
        training.trainer._train([training.batch], 0)
        times.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    serve(Training, {"load": load_batch, "train": train})
