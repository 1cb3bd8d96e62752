"""matgl 1.1.3, with dgl, as a worker process of benchmarks.speed.

The model is the path of a folder as matgl publishes it.
"""

import time

import matgl
import torch
from ase import Atoms
from matgl.ext.ase import Atoms2Graph
from worker import serve


def crystal(request) -> Atoms:
    return Atoms(request["numbers"], positions=request["positions"], cell=request["cell"], pbc=True)


def graph(potential, atoms: Atoms):
    built, lattice, state = Atoms2Graph(potential.model.element_types, potential.model.cutoff).get_graph(
        atoms
    )
    return built, torch.as_tensor(lattice, dtype=matgl.float_th), state


def predict(potential, request) -> list[float]:
    """Seconds for energy, forces and stress, graph building included, several times."""
    atoms = crystal(request)
    times = []
    for _ in range(request["repeats"]):
        start = time.perf_counter()
        potential(*graph(potential, atoms))
        times.append(time.perf_counter() - start)
    return times


def hessian(potential, request) -> list[float]:
    """Seconds for the forces with their graph, then for single rows of the Hessian by autograd."""
    built, lattice, state = graph(potential, crystal(request))
    potential.calc_stresses = False
    start = time.perf_counter()
    forces = potential(built, lattice, state)[1].reshape(-1)
    times = [time.perf_counter() - start]
    for k in range(request["repeats"]):
        start = time.perf_counter()
        torch.autograd.grad(forces[k], built.ndata["pos"], retain_graph=True)
        times.append(time.perf_counter() - start)
    potential.calc_stresses = True
    return times


def load(folder: str, dtype: str):
    matgl.set_default_dtype("float", int(dtype.removeprefix("float")))
    return matgl.load_model(folder)


if __name__ == "__main__":
    serve(load, {"predict": predict, "hessian": hessian})
