"""Results of matgl's CHGNet and M3GNet on torch, in float64. Only the functions import matgl.

Needs a matgl whose forces of CHGNet and bond numbers of M3GNet are right: 4.0.4 or later.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np
from ase.data import chemical_symbols

if TYPE_CHECKING:
    from ase import Atoms

PACKAGES = ("torch", "matgl")

# Small models by the name of their class: a CHGNet with the options of the published ones of MatPES, but for
# the widths, one with the defaults of matgl, and M3GNets with both kinds of radial functions.
SYMBOLS = [symbol for z, symbol in enumerate(chemical_symbols[:95]) if not 83 < z < 89][1:]
SMALL = {
    **dict.fromkeys(("dim_atom_embedding", "dim_bond_embedding", "dim_angle_embedding"), 6),
    "max_n": 5,
    "max_f": 3,
    "num_blocks": 3,
    "atom_conv_hidden_dims": [6],
    "bond_conv_hidden_dims": [6],
}
SMALL_M3GNET = {
    **dict.fromkeys(("dim_node_embedding", "dim_edge_embedding"), 6),
    "units": 5,
    "nblocks": 2,
    "element_types": SYMBOLS,
    "is_intensive": False,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "matpes": ("CHGNet", {
        **SMALL,
        "element_types": SYMBOLS,
        "bond_update_hidden_dims": [6],
        "final_hidden_dims": [6, 6],
        "normalization": "layer",
        "learn_basis": False,
    }),
    "plain": ("CHGNet", {**SMALL, "final_hidden_dims": [5]}),
    "m3gnet-smooth": ("M3GNet", {**SMALL_M3GNET, "use_smooth": True}),
    "m3gnet-spherical": ("M3GNet", {**SMALL_M3GNET, "use_smooth": False}),
}  # fmt: skip
NO_CLAMP = -1e-3  # how far from ±1 the M3GNet cuts cosines off, negative to leave them alone
# Parts of names of CHGNet before matgl moved to PyTorch Geometric, and since.
NEWER = (
    (r"_update_func\.layers\.", "_update_func.value."),
    (r"_update_func\.gates\.", "_update_func.gate."),
    (r"\.conv_layer\.", ".conv."),
    (r"\.norm_layers\.", ".norms."),
)


class Original(NamedTuple):
    """matgl's network in float64, and what its Potential adds."""

    network: Any
    scale: Any
    references: Any  # eV, of the elements of the network in their order


def missing() -> list[str]:
    """The packages that the functions below need and that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def versions() -> dict[str, str]:
    """The versions of the packages that affect the numbers."""
    return {name: metadata.version(name) for name in (*PACKAGES, "numpy", "ase")}


def random_model(seed: int, kind: str, **options: Any) -> Any:
    """A Potential whose weights, norms and energies of elements are random numbers, in float32."""
    import matgl.models
    import torch
    from matgl.apps.pes import Potential

    torch.manual_seed(seed)
    network = getattr(matgl.models, kind)(**options)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "frequencies" in name:
                parameter += 0.1 * torch.randn_like(parameter)
            elif "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                inputs = parameter.shape[-1] if parameter.ndim > 1 else 2
                torch.nn.init.normal_(parameter, std=1.5 / inputs**0.5)
            if "atom_embedding" in name or "node_embedding" in name:
                torch.nn.init.normal_(parameter)
    references = torch.empty(len(network.element_types)).uniform_(-5, 0)
    return Potential(network, data_std=torch.tensor(1.0), element_refs=references)


def strengthen(potential: Any, atoms: Atoms) -> None:
    """Scales the energy so that the largest force in `atoms` is near 1 eV/Å."""
    original = Original(potential.model, potential.data_std, potential.element_refs.property_offset)
    potential.data_std /= float(np.abs(evaluate(original, atoms, dtype="float32")["forces"]).max())


def read(folder: Path) -> Original:
    """matgl's network with the weights and options in `folder`, from whichever version of matgl.

    Roots of Bessel functions are those of its file. matgl rounds them to float32, which moves forces by 2e-7
    of the largest.
    """
    import matgl.models
    import torch
    from matgl.layers import _basis
    from matgl.utils import maths

    inner = json.loads((folder / "model.json").read_text("utf-8"))["kwargs"]["model"]
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    roots = torch.tensor(np.load(Path(maths.__file__).with_name("sb_roots.npy")), dtype=torch.float64)
    with mock.patch.object(_basis, "SPHERICAL_BESSEL_ROOTS", roots):
        network = getattr(matgl.models, inner["@class"])(**inner["init_args"])
    own = {}
    for name, tensor in state.items():
        for older, newer in NEWER if inner["@class"] == "CHGNet" else ():
            name = re.sub(older, newer, name)
        if name.startswith("model."):
            own[name.removeprefix("model.")] = tensor
    network.load_state_dict(own)
    return Original(
        network.double().eval(), state["data_std"].double(), state["element_refs.property_offset"].double()
    )


@contextlib.contextmanager
def exact(network: Any, dtype: Any) -> Iterator[None]:
    """A scope in which `network` computes in `dtype` alone, and an M3GNet does not cut off cosines.

    A straight angle then has its curvature. That of a CHGNet has none.
    """
    import matgl

    module = sys.modules[type(network).__module__]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(matgl, "float_th", dtype))
        if type(network).__name__ == "M3GNet":
            angles = partial(module.compute_theta_and_phi, eps=NO_CLAMP)
            stack.enter_context(mock.patch.object(module, "compute_theta_and_phi", angles))
        yield


def without_own_images(atoms: Atoms, cutoff: float) -> Atoms:
    """The crystal in a cell so large that no atom is within `cutoff` (Å) of its own image.

    In smaller cells a CHGNet gives bonds between images other features, and the crystal another energy.
    """
    from ase.neighborlist import neighbor_list

    n = 1
    while np.equal(*neighbor_list("ij", atoms * (n, n, n), cutoff)).any():
        n += 1
    return atoms * (n, n, n)


def evaluate(
    original: Original, atoms: Atoms, dtype: str = "float64", with_hessian: bool = False
) -> dict[str, np.ndarray]:
    """Energy (eV), forces (eV/Å), stress (eV/Å³), site_energies (eV), magmoms and hessian (eV/Å², (3N, 3N)).

    Those of a CHGNet are computed in a cell `without_own_images`, and given for `atoms`.
    """
    import torch

    network, precision = original.network, getattr(torch, dtype)
    large = without_own_images(atoms, getattr(network, "three_body_cutoff", 0.0))
    graph, positions, strain = _graph(network, large, precision)
    sites = []
    hook = network.final_layer.register_forward_hook(lambda *its: sites.append(its[-1]))
    try:
        with exact(network, precision):
            network(graph)
    finally:
        hook.remove()
    energies = original.scale * sites[0][:, 0] + original.references[graph.node_type]
    gradient, virial = torch.autograd.grad(
        energies.sum(), (positions, strain), create_graph=True, allow_unused=True
    )
    if gradient is None:  # an atom without neighbours
        gradient, virial = torch.zeros_like(positions), torch.zeros_like(strain)
    n = len(atoms)
    found = {
        "energy": energies[:n].sum(),
        "forces": -gradient[:n],
        "stress": (virial + virial.mT) / 2 / large.get_volume(),
        "site_energies": energies[:n],
    }
    if hasattr(graph, "magmom"):
        found["magmoms"] = graph.magmom[:n, 0]
    if with_hessian:
        rows = [torch.autograd.grad(g, positions, retain_graph=True)[0] for g in gradient[:n].ravel()]
        # A displacement of an atom is that of all of its images.
        found["hessian"] = torch.stack(rows).reshape(3 * n, -1, 3 * n).sum(1)
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


def _graph(network: Any, atoms: Atoms, dtype: Any) -> tuple[SimpleNamespace, Any, Any]:
    """The input of the network for one crystal, and the positions and the strain that it depends on."""
    import torch
    from ase.neighborlist import neighbor_list

    i, j, shifts = neighbor_list("ijS", atoms, network.cutoff)
    number = {symbol: k for k, symbol in enumerate(network.element_types)}
    positions = torch.tensor(atoms.positions, dtype=dtype).requires_grad_()
    strain = torch.zeros((3, 3), dtype=dtype).requires_grad_()
    deformation = torch.eye(3, dtype=dtype) + strain
    offset = torch.tensor(shifts, dtype=dtype)
    graph = SimpleNamespace(
        pos=positions @ deformation,
        edge_index=torch.tensor(np.stack([i, j]), dtype=torch.long),
        pbc_offset=offset,
        pbc_offshift=offset @ (torch.tensor(atoms.cell.array, dtype=dtype) @ deformation),
        node_type=torch.tensor([number[symbol] for symbol in atoms.symbols], dtype=torch.long),
    )
    return graph, positions, strain


def predictions(checkpoint: Path, crystals: Mapping[str, Atoms]) -> dict[str, dict[str, np.ndarray]]:
    """The results of `evaluate` for each of `crystals`."""
    original = read(checkpoint)
    return {name: evaluate(original, atoms) for name, atoms in crystals.items()}
