"""Results of the original, the `mattersim` package on torch, in float64. Only the functions import them."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

PACKAGES = ("torch", "mattersim")

# Small models with the options of the published ones, but for the width of the features.
VARIANTS: dict[str, dict[str, int]] = {
    "1m": {"num_blocks": 3, "units": 8},
    "5m": {"num_blocks": 4, "units": 6},
}
ADDED_IN_2026 = "sbf.coef"  # to the files that the package writes; the published ones are older
CLAMP = 1.0 - 1e-7  # of cosines of angles
# j_l(x) x^(l+1) is x^l, x^(l-1), …, 1 with sin x and cos x by turns, times signs and these factors.
SPHERICAL_BESSEL = ((), (-1, 1), (-1, 3, 3), (1, 6, 15, 15))


def missing() -> list[str]:
    """The packages that the functions below need and that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def versions() -> dict[str, str]:
    """The versions of the packages that affect the numbers."""
    return {name: metadata.version(name) for name in (*PACKAGES, "numpy", "scipy", "ase")}


def random_model(seed: int, **options: int) -> Any:
    """A model whose weights, scales and shifts of elements are random numbers of order one, in float32."""
    import torch
    from mattersim.forcefield.m3gnet.m3gnet import M3Gnet

    torch.manual_seed(seed)
    model = M3Gnet(device="cpu", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            inputs = parameter.shape[-1] if parameter.ndim > 1 else 2
            torch.nn.init.normal_(parameter, std=2 / inputs**0.5)
        torch.nn.init.normal_(model.atom_embedding.mlp[0].linear.weight)
        model.normalizer.scale.uniform_(0.5, 1.5)
        model.normalizer.shift.uniform_(-5.0, 0.0)
    return model.eval()


def strengthen(model: Any, atoms: Atoms) -> None:
    """Multiplies the scales so that the largest force in `atoms` is near 1 eV/Å."""
    model.normalizer.scale /= float(np.abs(evaluate(model, atoms, "float32")["forces"]).max())


def save(model: Any, path: Path) -> None:
    """Writes a checkpoint as the package's trainer does."""
    from mattersim.forcefield.potential import Potential

    Potential(model, device="cpu").save(str(path))


def without_later_tensors(path: Path) -> None:
    """Makes the checkpoint one of the time of the published files."""
    import torch

    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["model"][ADDED_IN_2026]
    del checkpoint["model_args"]["gradient_checkpointing"]
    torch.save(checkpoint, path)


def read(checkpoint: Path) -> Any:
    """The package's network with the weights of `checkpoint`, in float64."""
    import torch
    from mattersim.forcefield.m3gnet.m3gnet import M3Gnet

    found = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = M3Gnet(**{**found["model_args"], "device": "cpu"})
    # As the package does: older files lack a tensor of constants.
    model.load_state_dict(found["model"], strict=False)
    return model.double().eval()


@contextlib.contextmanager
def exact(model: Any) -> Iterator[None]:
    """A scope in which the constants of `model` are not rounded to float32, nor cosines of angles cut off.

    Radial functions are then zero at the cutoff, and a straight angle has its curvature.
    """
    import torch

    made = constants(model.rbf.max_n, model.sbf.cutoff)
    shipped = {name: model.get_buffer(name).clone() for name in made}
    clamp = torch.clamp

    def without_angles(x, min=None, max=None):
        return x if max == CLAMP else clamp(x, min=min, max=max)

    try:
        for name, value in made.items():
            model.get_buffer(name).copy_(torch.as_tensor(value))
        with mock.patch.object(torch, "acos", _Angle), mock.patch.object(torch, "clamp", without_angles):
            yield
    finally:
        for name, value in shipped.items():
            model.get_buffer(name).copy_(value)


class _Angle:
    """An angle that knows its cosine, which is all that the network asks for."""

    def __init__(self, cosine: Any):
        self.cosine = cosine

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.__name__ == "cos", f"the network asks for the {function.__name__} of an angle"
        return args[0].cosine


def constants(count: int, cutoff: float) -> dict[str, np.ndarray]:
    """The constants of `count` radial functions, in float64, by the name of their tensor in a file.

    Of bonds as Kocer, Mason & Erturk write them, arXiv:1907.02384; of angles the terms of spherical Bessel
    functions with the first four roots of each degree, and factors that normalise them.
    """
    from scipy.special import spherical_jn

    n = np.arange(count)
    e = n**2 * (n + 2) ** 2 / (4 * (n + 1) ** 4 + 1)
    d = [1.0]
    for k in range(1, count):
        d.append(1 - e[k] / d[-1])
    f = (-1.0) ** n * 2**0.5 * np.pi / cutoff**1.5 * (n + 1) * (n + 2) / np.hypot(n + 1, n + 2)
    terms = np.zeros((4, 9, 4))
    for degree, factors in enumerate(SPHERICAL_BESSEL):
        z = (np.arange(1, 5) + degree / 2) * np.pi  # roots of j_l, nearly
        for _ in range(20):
            z = z - spherical_jn(degree, z) / spherical_jn(degree, z, derivative=True)
        for k, factor in enumerate(factors):
            terms[degree, 2 * k] = factor / z ** (k + 1) / np.abs(spherical_jn(degree + 1, z))
            terms[degree, 2 * k + 1] = z
    terms[0, 0] = np.pi * np.arange(1, 5)
    return {
        "rbf.r_max": np.array(float(cutoff)),
        "rbf.en": e[None],
        "rbf.dn": np.array(d),
        "rbf.fnr_weights": f[None],
        "rbf.n_1_pi_cutoff": ((n + 1) * np.pi / cutoff)[None],
        "rbf.n_2_pi_cutoff": ((n + 2) * np.pi / cutoff)[None],
        "sbf.factor": np.array((2 / cutoff**3) ** 0.5),
        "sbf.coef": terms,
    }


def evaluate(
    model: Any, atoms: Atoms, dtype: str = "float64", with_hessian: bool = False
) -> dict[str, np.ndarray]:
    """Energy (eV), forces (eV/Å), stress (eV/Å³), site_energies (eV) and the hessian (eV/Å², (3N, 3N))."""
    import torch

    batch = graph(model, atoms, getattr(torch, dtype))
    positions, cell = batch["atom_pos"].requires_grad_(), batch["cell"]
    strain = torch.zeros_like(cell).requires_grad_()
    deformation = torch.eye(3, dtype=cell.dtype) + strain
    moved = {"atom_pos": positions @ deformation[0], "cell": cell @ deformation}
    sites = []
    hook = model.normalizer.register_forward_hook(lambda *its: sites.append(its[-1]))
    try:
        energy = model(batch | moved)[0]
    finally:
        hook.remove()
    gradient, virial = torch.autograd.grad(energy, (positions, strain), create_graph=True, allow_unused=True)
    if gradient is None:  # an atom without neighbours
        gradient, virial = torch.zeros_like(positions), torch.zeros_like(cell)
    found = {
        "energy": energy,
        "forces": -gradient,
        "stress": (virial[0] + virial[0].mT) / 2 / torch.linalg.det(cell[0]).abs(),
        "site_energies": sites[0],
    }
    if with_hessian:
        rows = [torch.autograd.grad(g, positions, retain_graph=True)[0].reshape(-1) for g in gradient.ravel()]
        found["hessian"] = torch.stack(rows)
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


def graph(model: Any, atoms: Atoms, dtype: Any) -> dict[str, Any]:
    """The input of the network for one crystal, with neighbours from ASE: the package's are in float32."""
    import torch
    from ase.neighborlist import neighbor_list

    options = model.model_args
    i, j, shifts, length = neighbor_list("ijSd", atoms, options["cutoff"])
    short = np.flatnonzero(length <= options["threebody_cutoff"])
    ij, ik = (x.ravel() for x in np.meshgrid(short, short, indexing="ij"))
    triplets = np.stack([ij, ik], axis=1)[(i[ij] == i[ik]) & (ij != ik)]
    whole = torch.long
    return {
        "atom_pos": torch.tensor(atoms.positions, dtype=dtype),
        "cell": torch.tensor(atoms.cell.array, dtype=dtype)[None],
        "pbc_offsets": torch.tensor(shifts, dtype=dtype),
        "atom_attr": torch.tensor(atoms.numbers, dtype=dtype)[:, None],
        "edge_index": torch.tensor(np.stack([i, j]), dtype=whole),
        "three_body_indices": torch.tensor(triplets, dtype=whole),
        "num_three_body": torch.tensor([len(triplets)]),
        "num_bonds": torch.tensor([len(i)]),
        "num_triple_ij": torch.tensor(np.bincount(triplets[:, 0], minlength=len(i)), dtype=whole)[:, None],
        "num_atoms": torch.tensor([len(atoms)]),
        "num_graphs": torch.tensor(1),
        "batch": torch.zeros(len(atoms), dtype=whole),
    }


def predictions(checkpoint: Path, crystals: Mapping[str, Atoms]) -> dict[str, dict[str, np.ndarray]]:
    """The results of `evaluate` for each of `crystals`, with exact constants."""
    model = read(checkpoint)
    with exact(model):
        return {name: evaluate(model, atoms) for name, atoms in crystals.items()}
