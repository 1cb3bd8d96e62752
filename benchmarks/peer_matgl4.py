"""matgl 4.1.2, with PyTorch Geometric, as a worker process of benchmarks.speed.

The model is the path of a folder as matgl saves it. If there is none, one with random weights is made there:
a CHGNet with the options of those of MatPES if the name ends with chgnet, or else an M3GNet with smooth
radial functions, both with matgl's widths.
"""

import time
from pathlib import Path

import matgl
import torch
from ase import Atoms
from matgl.apps.pes import Potential
from matgl.config import DEFAULT_ELEMENTS
from matgl.ext.ase import Atoms2Graph
from matgl.models import CHGNet, M3GNet
from worker import serve


def graph(potential, request):
    atoms = Atoms(request["numbers"], positions=request["positions"], cell=request["cell"], pbc=True)
    return Atoms2Graph(potential.model.element_types, potential.model.cutoff).get_graph(atoms)


def predict(potential, request) -> list[float]:
    """Seconds for energy, forces and stress, graph building included, several times."""
    times = []
    for _ in range(request["repeats"]):
        start = time.perf_counter()
        potential(*graph(potential, request))
        times.append(time.perf_counter() - start)
    return times


def hessian(potential, request) -> list[float]:
    """Seconds for the forces with their graph, then for single rows of the Hessian by autograd."""
    built, seen = graph(potential, request), []
    hook = potential.model.register_forward_pre_hook(
        lambda model, given, named: seen.append(named["g"].pos), with_kwargs=True
    )
    # What is trained keeps the graph of its forces; the network stays as it is.
    potential.calc_stresses, potential.training = False, True
    start = time.perf_counter()
    forces = potential(*built)[1].reshape(-1)
    times = [time.perf_counter() - start]
    hook.remove()
    for k in range(request["repeats"]):
        start = time.perf_counter()
        torch.autograd.grad(forces[k], seen[0], retain_graph=True)
        times.append(time.perf_counter() - start)
    potential.calc_stresses, potential.training = True, False
    return times


def random_model(kind: str):
    torch.manual_seed(0)
    if kind == "chgnet":
        options = {"bond_update_hidden_dims": (64,), "normalization": "layer", "learn_basis": False}
        network = CHGNet(element_types=DEFAULT_ELEMENTS, **options)
    else:
        network = M3GNet(element_types=DEFAULT_ELEMENTS, is_intensive=False, use_smooth=True)
    return Potential(network, element_refs=torch.zeros(len(DEFAULT_ELEMENTS)))


def load(folder: str, dtype: str):
    if not Path(folder).is_dir():
        random_model(folder.rpartition("-")[2]).save(folder)
    matgl.set_default_dtype("float", int(dtype.removeprefix("float")))
    return matgl.load_model(folder).to(getattr(torch, dtype)).eval()


if __name__ == "__main__":
    serve(load, {"predict": predict, "hessian": hessian}, ("torch", "matgl"))
