"""Results of the original, the `chgnet` package on torch, in float64. Only the functions import them."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

GPA = 160.21766208  # GPa in 1 eV/Å³, the value of the package
PACKAGES = ("torch", "chgnet")


def missing() -> list[str]:
    """The packages that the functions below need and that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def versions() -> dict[str, str]:
    """The versions of the packages that affect the numbers."""
    return {name: metadata.version(name) for name in (*PACKAGES, "numpy", "ase", "pymatgen")}


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """A scope in which chgnet builds graphs and networks in float64; it has no argument for that."""
    import chgnet.graph.converter
    import chgnet.graph.crystalgraph
    import chgnet.model.model
    import torch

    modules = (chgnet.graph.converter, chgnet.graph.crystalgraph, chgnet.model.model)
    before = torch.get_default_dtype(), [module.TORCH_DTYPE for module in modules]
    torch.set_default_dtype(torch.float64)
    for module in modules:
        module.TORCH_DTYPE = torch.float64
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        for module, dtype in zip(modules, before[1], strict=True):
            module.TORCH_DTYPE = dtype


def read(checkpoint: Path) -> Any:
    """The package's network with the weights of `checkpoint`, within `float64()`.

    torch.load runs code that the file asks for. So read it with weights_convert.torch_zip first, which
    refuses files that ask for anything unusual.
    """
    import torch
    from chgnet.model.model import CHGNet

    saved = torch.load(checkpoint, map_location="cpu", weights_only=False)["model"]
    # The files of 0.2.0 have these biases without mentioning them.
    bias = "atom_conv_layers.0.mlp_out.layers.1.bias" in saved["state_dict"]
    with contextlib.redirect_stdout(io.StringIO()):  # chgnet prints its number of parameters
        model = CHGNet(**{**saved["model_args"], "mlp_out_bias": bias})
    model.load_state_dict(saved["state_dict"])
    return model.double().eval()


def evaluate(model: Any, atoms: Atoms) -> dict[str, np.ndarray]:
    """Energy (eV), forces (eV/Å), stress (eV/Å³), site_energies (eV), magmoms (μB) and
    atom_features before the last convolution."""
    graph = _graph(model, atoms)
    # Not model.forward, which forms element fractions in float32 for the reference energies.
    found = model._compute(
        _batch(model, graph, stress=True),
        compute_force=True,
        compute_stress=True,
        compute_magmom=True,
        return_site_energies=True,
        return_atom_feas=True,
    )
    (reference,) = model.composition_model.get_site_energies([graph])
    sites = found["site_energies"][0] + reference
    tensors = {
        "energy": sites.sum(),
        "forces": found["f"][0],
        "stress": found["s"][0] / GPA,
        "site_energies": sites,
        "magmoms": found["m"][0],
        "atom_features": found["atom_fea"][0],
    }
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def hessian(model: Any, atoms: Atoms) -> np.ndarray:
    """∂²E/∂r∂r (eV/Å²) as a (3N, 3N) matrix, each row a derivative of the forces, computed by torch."""
    import torch

    batch = _batch(model, _graph(model, atoms))
    forces = model._compute(batch, compute_force=True)["f"][0].flatten()
    rows = [
        -torch.autograd.grad(force, batch.atom_positions[0], retain_graph=True)[0].flatten()
        for force in forces
    ]
    return torch.stack(rows).detach().numpy()


def predictions(checkpoint: Path, crystals: Mapping[str, Atoms]) -> dict[str, dict[str, np.ndarray]]:
    """The results of `evaluate` for each of `crystals`."""
    with float64():
        model = read(checkpoint)
        return {name: evaluate(model, atoms) for name, atoms in crystals.items()}


def _graph(model: Any, atoms: Atoms) -> Any:
    from pymatgen.io.ase import AseAtomsAdaptor

    return model.graph_converter(AseAtomsAdaptor.get_structure(atoms))


def _batch(model: Any, graph: Any, stress: bool = False) -> Any:
    from chgnet.model.model import BatchedGraph

    return BatchedGraph.from_graphs(
        [graph], model.bond_basis_expansion, model.angle_basis_expansion, compute_stress=stress
    )
