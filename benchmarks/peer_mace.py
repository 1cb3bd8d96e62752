"""mace-torch as a worker process of benchmarks.speed.

    python benchmarks/peer_mace.py MODEL.model float32

If MODEL.model does not exist, a random model of the size and options of mace-mp-0b3-medium is made and saved
there whole, as the trainer of mace-torch does, so that the other side can convert and time the same model.
"""

import contextlib
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from worker import serve

with contextlib.redirect_stdout(sys.stderr):  # it prints which accelerators it lacks
    import mace  # noqa: F401  before e3nn, to let it read its constants with newer versions of torch
    from e3nn import o3
    from mace.data import AtomicData, KeySpecification, config_from_atoms
    from mace.modules import blocks
    from mace.modules.models import ScaleShiftMACE
    from mace.tools import AtomicNumberTable, torch_geometric

ELEMENTS = [*range(1, 84), *range(89, 95)]  # those of the Materials Project


def random_model() -> ScaleShiftMACE:
    torch.manual_seed(0)
    return ScaleShiftMACE(
        atomic_numbers=ELEMENTS,
        num_elements=len(ELEMENTS),
        atomic_energies=np.zeros(len(ELEMENTS)),
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
        r_max=6.0,
        num_bessel=10,
        num_polynomial_cutoff=5,
        max_ell=3,
        hidden_irreps=o3.Irreps("128x0e + 128x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        correlation=3,
        num_interactions=2,
        interaction_cls_first=blocks.RealAgnosticDensityInteractionBlock,
        interaction_cls=blocks.RealAgnosticDensityResidualInteractionBlock,
        avg_num_neighbors=50.0,
        gate=torch.nn.functional.silu,
        pair_repulsion=True,
        distance_transform="Agnesi",
    )


def batch(model, request) -> dict:
    """The graph of the request's crystal, in torch's default precision."""
    atoms = Atoms(request["numbers"], request["positions"], cell=request["cell"], pbc=True)
    data = AtomicData.from_config(
        config_from_atoms(atoms, key_specification=KeySpecification()),
        z_table=AtomicNumberTable(ELEMENTS),
        cutoff=float(model.r_max),
    )
    return torch_geometric.Batch.from_data_list([data]).to_dict()


def predict(model, request) -> list[float]:
    """Seconds for energy, forces and stress, graph building included, several times."""
    times = []
    for _ in range(request["repeats"]):
        start = time.perf_counter()
        model(batch(model, request), compute_stress=True)
        times.append(time.perf_counter() - start)
    return times


def hessian(model, request) -> list[float]:
    """Seconds for the forces with their graph, then for single rows of the Hessian by autograd."""
    data = batch(model, request)
    start = time.perf_counter()
    forces = model(data, training=True)["forces"].reshape(-1)  # training keeps the graph of the forces
    times = [time.perf_counter() - start]
    for k in range(request["repeats"]):
        start = time.perf_counter()
        torch.autograd.grad(forces[k], data["positions"], retain_graph=True)
        times.append(time.perf_counter() - start)
    return times


def load(name: str, kind: str):
    warnings.simplefilter("ignore")
    file, dtype = Path(name), getattr(torch, kind)
    if not file.is_file():
        torch.save(random_model(), file)
    model = torch.load(file, map_location="cpu", weights_only=False).to(dtype).eval()
    for parameter in model.parameters():
        parameter.requires_grad = False  # as MACECalculator does
    torch.set_default_dtype(dtype)
    return model


if __name__ == "__main__":
    serve(load, {"predict": predict, "hessian": hessian}, ("torch", "mace-torch"))
