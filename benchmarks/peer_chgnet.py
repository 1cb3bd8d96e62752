"""The torch package `chgnet` as a worker process of benchmarks.speed."""

import time

import torch
from chgnet.model.model import BatchedGraph, CHGNet
from pymatgen.core import Structure
from worker import serve


def structure(request) -> Structure:
    return Structure(request["cell"], request["numbers"], request["positions"], coords_are_cartesian=True)


def predict(model, request) -> list[float]:
    """Seconds for energy, forces, stress and magmoms, graph building included, several times."""
    crystal = structure(request)
    times = []
    for _ in range(request["repeats"]):
        start = time.perf_counter()
        model.predict_structure(crystal, task="efsm")
        times.append(time.perf_counter() - start)
    return times


def hessian(model, request) -> list[float]:
    """Seconds for the forces with their graph, then for single rows of the Hessian by autograd."""
    graph = model.graph_converter(structure(request))
    start = time.perf_counter()
    batch = BatchedGraph.from_graphs(
        [graph],
        bond_basis_expansion=model.bond_basis_expansion,
        angle_basis_expansion=model.angle_basis_expansion,
    )
    forces = model._compute(batch, compute_force=True)["f"][0].reshape(-1)
    times = [time.perf_counter() - start]
    for k in range(request["repeats"]):
        start = time.perf_counter()
        torch.autograd.grad(forces[k], batch.atom_positions[0], retain_graph=True)
        times.append(time.perf_counter() - start)
    return times


def use_float64(model) -> CHGNet:
    import chgnet.graph.converter
    import chgnet.graph.crystalgraph
    import chgnet.model.model

    for module in (chgnet.graph.converter, chgnet.graph.crystalgraph, chgnet.model.model):
        module.TORCH_DTYPE = torch.float64
    torch.set_default_dtype(torch.float64)
    model.double().composition_model.float()  # which is asked in float32, whatever the rest has
    return model


def load(name: str, dtype: str) -> CHGNet:
    model = CHGNet.load(model_name=name, use_device="cpu", verbose=False)
    return use_float64(model) if dtype == "float64" else model


if __name__ == "__main__":
    serve(load, {"predict": predict, "hessian": hessian})
