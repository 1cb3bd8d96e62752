"""mattersim 1.2.5 as a worker process of benchmarks.speed.

The model is the path of a checkpoint. If there is none, one with random weights of the size of
mattersim-v1.0.0-1M is made there, so that the other side can convert and time the same model.
"""

import time
from pathlib import Path

import torch
from ase import Atoms
from mattersim.datasets.utils.converter import create_batch_graph_dict
from mattersim.forcefield.m3gnet.m3gnet import M3Gnet
from mattersim.forcefield.potential import Potential
from worker import serve


def graph(potential, request):
    """The input of the network, by the package's fastest way for a single crystal."""
    options, dtype = potential.model.model_args, potential.model.sbf.factor.dtype
    atoms = Atoms(request["numbers"], positions=request["positions"], cell=request["cell"], pbc=True)
    atoms.wrap()
    return create_batch_graph_dict(
        torch.tensor(atoms.positions, dtype=dtype),
        torch.tensor(atoms.cell.array, dtype=dtype)[None],
        torch.tensor(atoms.numbers),
        torch.tensor([len(atoms)]),
        twobody_cutoff=options["cutoff"],
        threebody_cutoff=options["threebody_cutoff"],
    )


def predict(potential, request) -> list[float]:
    """Seconds for energy, forces and stress, graph building included, several times."""
    times = []
    for _ in range(request["repeats"]):
        start = time.perf_counter()
        potential(graph(potential, request))
        times.append(time.perf_counter() - start)
    return times


def hessian(potential, request) -> list[float]:
    """Seconds for the forces with their graph, then for single rows of the Hessian by autograd."""
    built = graph(potential, request)
    positions = built["atom_pos"].requires_grad_()
    start = time.perf_counter()
    energy = potential.model(built).sum()
    (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
    times = [time.perf_counter() - start]
    for k in range(request["repeats"]):
        start = time.perf_counter()
        torch.autograd.grad(gradient.reshape(-1)[k], positions, retain_graph=True)
        times.append(time.perf_counter() - start)
    return times


def load(path: str, dtype: str):
    if not Path(path).is_file():
        torch.manual_seed(0)
        model = M3Gnet(device="cpu", num_blocks=3)
        model.normalizer.shift.fill_(-5.0)
        Potential(model, device="cpu").save(path)
    found = torch.load(path, map_location="cpu", weights_only=True)
    model = M3Gnet(**{**found["model_args"], "device": "cpu"})
    model.load_state_dict(found["model"], strict=False)
    return Potential(model.to(getattr(torch, dtype)).eval(), device="cpu")


if __name__ == "__main__":
    serve(load, {"predict": predict, "hessian": hessian}, ("torch", "mattersim"))
