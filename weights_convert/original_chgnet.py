"""Results of the original, the `chgnet` package on torch, in float64. Only the functions import them."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

GPA = 160.21766208  # GPa in 1 eV/Å³, the value of the package
PACKAGES = ("torch", "chgnet")
# Small models with what the published ones lack; together they have every option but further activations.
VARIANTS: dict[str, dict[str, Any]] = {
    "widths": {
        "atom_fea_dim": 6, "bond_fea_dim": 5, "angle_fea_dim": 4, "n_conv": 3,
        "atom_conv_hidden_dim": [5, 7], "bond_conv_hidden_dim": 4, "angle_layer_hidden_dim": [3, 6],
        "gMLP_norm": "batch", "conv_norm": "layer", "readout_norm": None, "mlp_out_bias": True,
        "non_linearity": "gelu", "final_mlp": "gated", "mlp_hidden_dims": [5, 4],
        "composition_model": None, "is_intensive": False, "learnable_rbf": False,
    },
    "straight": {
        "atom_fea_dim": 4, "bond_fea_dim": 6, "angle_fea_dim": 3, "n_conv": 3,
        "atom_conv_hidden_dim": 0, "bond_conv_hidden_dim": 0, "update_angle": False,
        "gMLP_norm": "layer", "conv_norm": "batch", "readout_norm": "batch",
        "non_linearity": "softplus", "mlp_hidden_dims": 0, "composition_model": "fitted",
    },
    "mean": {
        "atom_fea_dim": 5, "bond_fea_dim": 4, "angle_fea_dim": 3, "n_conv": 2,
        "atom_conv_hidden_dim": [6], "bond_conv_hidden_dim": 4, "update_bond": False,
        "gMLP_norm": None, "readout_norm": "layer", "mlp_first": False, "mlp_hidden_dims": [6],
        "non_linearity": "tanh", "composition_model": "MPF", "is_intensive": False,
    },
}  # fmt: skip
SMALL = {"num_radial": 5, "num_angular": 5}


def missing() -> list[str]:
    """The packages that the functions below need and that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def versions() -> dict[str, str]:
    """The versions of the packages that affect the numbers."""
    return {name: metadata.version(name) for name in (*PACKAGES, "numpy", "ase", "pymatgen")}


def random_model(seed: int, **options: Any) -> Any:
    """A model whose weights and statistics are random numbers of order one, in float32.

    composition_model="fitted" stands for reference energies that the package fits.
    """
    import torch
    from chgnet.model.model import CHGNet

    torch.manual_seed(seed)
    if options.get("composition_model") == "fitted":
        options = options | {"composition_model": _fitted(seed)}
    with contextlib.redirect_stdout(io.StringIO()):  # chgnet prints its number of parameters
        model = CHGNet(**SMALL | options)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():  # of the same memory
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.ndim == 1 and name.endswith(("weight", "frequencies")):
                tensor += 0.2 * torch.randn(tensor.shape)
            elif tensor.is_floating_point() and not name.startswith("composition_model"):
                inputs = tensor.shape[-1] if tensor.ndim > 1 and "embedding.w" not in name else 4
                torch.nn.init.normal_(tensor, std=2 / inputs**0.5)
    return model.eval()


def _fitted(seed: int) -> Any:
    """Reference energies fitted to energies per atom of random crystals of five elements."""
    import torch
    from chgnet.model.composition_model import AtomRef

    rng = np.random.default_rng(seed)
    crystals = [
        SimpleNamespace(atomic_number=torch.tensor(rng.choice([6, 8, 12, 22, 29], 4))) for _ in range(9)
    ]
    made = AtomRef(is_intensive=True)
    made.fit(crystals, rng.uniform(-9, -3, 9).tolist())
    return made


def strengthen(model: Any, atoms: Atoms) -> None:
    """Multiplies the last layer so that the largest force in `atoms` is near 1 eV/Å."""
    import torch

    last = [module for module in model.mlp.modules() if isinstance(module, torch.nn.Linear)][-1]
    with float64():
        double = copy.deepcopy(model).double()
        largest = np.abs(evaluate(double, atoms)["forces"]).max()
    with torch.no_grad():
        last.weight /= float(largest)


def save(model: Any, path: Path) -> None:
    """Writes the model as the package's trainer does, without the state of the training."""
    import torch

    torch.save({"model": model.as_dict()}, path)


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
    import torch

    graph = _graph(model, atoms)
    # Not model.forward, which forms element fractions in float32 for the reference energies.
    found = model._compute(
        _batch(model, graph, stress=True),
        compute_force=True,
        compute_stress=True,
        compute_magmom=True,
        return_site_energies=model.mlp_first,
        return_atom_feas=True,
    )
    reference = torch.zeros(len(atoms))
    if model.composition_model is not None:
        (reference,) = model.composition_model.get_site_energies([graph])
    tensors = {
        "forces": found["f"][0],
        "stress": found["s"][0] / GPA,
        "magmoms": found["m"][0],
        "atom_features": found["atom_fea"][0],
    }
    if model.mlp_first:
        sites = found["site_energies"][0] + reference
        tensors |= {"energy": sites.sum(), "site_energies": sites}
    else:
        tensors["energy"] = found["e"][0] * (len(atoms) if model.is_intensive else 1) + reference.sum()
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
    """The results of `evaluate` for each of `crystals` without isolated atoms, which chgnet refuses."""
    with float64():
        model = read(checkpoint)
        cutoff = model.graph_converter.atom_graph_cutoff
        bonded = {name: atoms for name, atoms in crystals.items() if not _has_isolated(atoms, cutoff)}
        return {name: evaluate(model, atoms) for name, atoms in bonded.items()}


def _has_isolated(atoms: Atoms, cutoff: float) -> bool:
    from ase.neighborlist import neighbor_list

    return len(np.unique(neighbor_list("i", atoms, cutoff))) < len(atoms)


def _graph(model: Any, atoms: Atoms) -> Any:
    from pymatgen.io.ase import AseAtomsAdaptor

    return model.graph_converter(AseAtomsAdaptor.get_structure(atoms))


def _batch(model: Any, graph: Any, stress: bool = False) -> Any:
    from chgnet.model.model import BatchedGraph

    return BatchedGraph.from_graphs(
        [graph], model.bond_basis_expansion, model.angle_basis_expansion, compute_stress=stress
    )
