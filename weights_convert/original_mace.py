"""Results of the original, mace-torch, in float64. Only the functions import it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

PACKAGES = ("torch", "mace")

# Small models that all differ, and together have every block and option that is converted.
COMMON: dict[str, Any] = {
    "atomic_numbers": [3, 8, 27],
    "r_max": 4.5,
    "num_bessel": 5,
    "num_polynomial_cutoff": 5,
    "radial_MLP": [12, 12, 12],
    "MLP_irreps": "6x0e",
    "max_ell": 3,
    "hidden_irreps": "4x0e",
    "correlation": 3,
    "num_interactions": 2,
    "avg_num_neighbors": 8.3,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "agnostic-residual": {
        "blocks": ("RealAgnostic", "RealAgnosticResidual"),
        "hidden_irreps": "4x0e + 4x1o",
        "dtype": "float32",
    },
    "density": {
        "blocks": ("RealAgnosticDensity", "RealAgnosticDensityResidual"),
        "hidden_irreps": "4x0e + 4x1o",
        "correlation": [3, 2],
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
    },
    "three-layers": {
        "blocks": ("RealAgnosticResidual", "RealAgnosticResidual"),
        "hidden_irreps": "4x0e + 4x1o + 4x2e",
        "max_ell": 2,
        "correlation": 2,
        "num_interactions": 3,
        "r_max": 4.0,
    },
    "one-layer": {
        "blocks": ("RealAgnostic", "RealAgnostic"),
        "hidden_irreps": "8x0e + 8x1o",
        "max_ell": 2,
        "num_interactions": 1,
        "pair_repulsion": True,
        "scaled": False,
    },
    "cutoff-on-weights": {
        "blocks": ("RealAgnosticDensity", "RealAgnosticDensity"),
        "max_ell": 2,
        "apply_cutoff": False,
        "radial_MLP": [16, 8],
        "distance_transform": "Agnesi",
        "num_polynomial_cutoff": 6,
    },
    "degrees-two-three": {
        "blocks": ("RealAgnosticResidual", "RealAgnosticDensityResidual"),
        "hidden_irreps": "5x0e + 5x1o",
        "atomic_numbers": [27, 3, 17, 8],
        "correlation": [2, 3],
        "pair_repulsion": True,
    },
    "two-heads": {
        "blocks": ("RealAgnosticResidual", "RealAgnosticResidual"),
        "hidden_irreps": "4x0e + 4x1o",
        "max_ell": 2,
        "correlation": 2,
        "heads": ["pbe", "r2scan"],
    },
    # As MACE-MH-1 is put together.
    "nonlinear": {
        "blocks": ("RealAgnosticResidualNonLinear", "RealAgnosticResidualNonLinear"),
        "hidden_irreps": "4x0e + 4x1o",
        "edge_irreps": "3x0e + 3x1o",
        "use_edge_irreps_first": True,
        "use_agnostic_product": True,
        "apply_cutoff": False,
        "max_ell": 2,
        "radial_MLP": [8, 8],
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
        "heads": ["omat", "omol"],
    },
    "soft": {
        "blocks": ("RealAgnosticDensity", "RealAgnosticResidualNonLinear"),
        "hidden_irreps": "4x0e + 4x1o",
        "edge_irreps": "5x0e + 5x1o",
        "apply_cutoff": False,
        "max_ell": 2,
        "correlation": 2,
        "radial_MLP": [7],
        "distance_transform": "Soft",
        "earlier_gate": True,
    },
}


def missing() -> list[str]:
    """The packages that the functions below need and that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def versions() -> dict[str, str]:
    """The versions of the packages that affect the numbers."""
    return {name: metadata.version(name) for name in ("torch", "mace-torch", "e3nn", "numpy", "ase")}


@contextlib.contextmanager
def precision(dtype: str = "float64") -> Iterator[None]:
    """A scope in which networks and graphs are built in float32 or float64, through torch's default."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        # mace warns of missing accelerators, and of functions that torch will remove.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)


def random_model(
    blocks: tuple[str, str],
    dtype: str = "float64",
    scaled: bool = True,
    seed: int = 0,
    earlier_gate: bool = False,
    **options: Any,
) -> Any:
    """A model whose weights, reference energies, scales and shifts are random numbers of order one.

    `blocks` are the interactions of the first layer and of the others; `options` go to the model's class.
    With `earlier_gate` its gates are those of e3nn, as mace-torch had them before 0.3.15.
    """
    with precision(dtype):
        import mace  # noqa: F401  before e3nn, so that it can read its constants with newer versions of torch
        import torch
        from e3nn import o3
        from mace.modules import blocks as interactions
        from mace.modules.models import MACE, ScaleShiftMACE

        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        first, others = (getattr(interactions, f"{name}InteractionBlock") for name in blocks)
        options = {**COMMON, **options}
        several = (len(options["heads"]),) if "heads" in options else ()
        numbers = options["atomic_numbers"]
        its_irreps = {name: o3.Irreps(options[name]) for name in options if name.endswith("_irreps")}
        options |= {
            **its_irreps,
            "num_elements": len(numbers),
            "atomic_energies": -5 * rng.random((*several, len(numbers))),
            "interaction_cls_first": first,
            "interaction_cls": others,
            "gate": torch.nn.functional.silu,
        }
        if scaled:
            options |= {
                "atomic_inter_scale": 0.5 + rng.random(several),
                "atomic_inter_shift": rng.normal(size=several),
            }
        gate = _earlier_gate if earlier_gate else interactions.GatedEquivariantBlock
        with mock.patch.object(interactions, "GatedEquivariantBlock", gate):
            model = (ScaleShiftMACE if scaled else MACE)(**options)
        for name, parameter in model.named_parameters():
            # What sums are divided by is far from zero, as in a model that was trained.
            torch.nn.init.normal_(parameter, mean=6.0 if name.endswith(".alpha") else 0.0)
        return model.eval()


def _earlier_gate(layout: str, **options: Any) -> Any:
    from e3nn.nn import Gate

    return Gate(**options)


def strengthen(model: Any, atoms: Atoms) -> None:
    """Multiplies the readouts so that the largest force in `atoms` is near 1 eV/Å instead of tiny."""
    import torch

    with precision(str(model.r_max.dtype).removeprefix("torch.")):
        largest = np.abs(evaluate(model, atoms)["forces"]).max()
    with torch.no_grad():
        for readout in model.readouts:
            getattr(readout, "linear_2", getattr(readout, "linear", None)).weight /= largest


def save(model: Any, path: Path) -> None:
    """Writes the whole module, as mace-torch does."""
    import torch

    torch.save(model, path)


def read(checkpoint: Path) -> Any:
    """The model in `checkpoint`, in float64, within `precision()`.

    torch.load runs code that the file asks for. So read it with weights_convert.torch_zip first, which
    refuses files that ask for anything unusual.
    """
    import mace  # noqa: F401
    import torch

    return torch.load(checkpoint, map_location="cpu", weights_only=False).double().eval()


def evaluate(
    model: Any, atoms: Atoms, head: str | None = None, with_hessian: bool = False
) -> dict[str, np.ndarray]:
    """Energy (eV), forces (eV/Å), stress (eV/Å³), site_energies (eV) and the hessian (eV/Å², (3N, 3N))."""
    batch = graph(model, atoms, head)
    found = model(batch.to_dict(), compute_stress=True)
    made = {
        "energy": found["energy"][0],
        "forces": found["forces"],
        "stress": found["stress"][0],
        "site_energies": found["node_energy"],
    }
    if with_hessian:
        size = 3 * len(atoms)
        batch = graph(model, atoms, head)
        made["hessian"] = model(batch.to_dict(), compute_hessian=True)["hessian"].reshape(size, size)
    return {name: tensor.detach().numpy() for name, tensor in made.items()}


def graph(model: Any, atoms: Atoms, head: str | None = None) -> Any:
    """The batch of one crystal, within `precision()`."""
    from mace.data import AtomicData, KeySpecification, config_from_atoms
    from mace.tools import AtomicNumberTable, torch_geometric

    heads = list(getattr(model, "heads", ["Default"]))
    its = config_from_atoms(atoms, key_specification=KeySpecification(), head_name=head or heads[0])
    table = AtomicNumberTable([int(z) for z in model.atomic_numbers])
    data = AtomicData.from_config(its, z_table=table, cutoff=float(model.r_max), heads=heads)
    return torch_geometric.Batch.from_data_list([data])


def predictions(
    checkpoint: Path, crystals: Mapping[str, Atoms], head: str | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """The results of `evaluate` for each of `crystals`."""
    with precision():
        model = read(checkpoint)
        return {name: evaluate(model, atoms, head) for name, atoms in crystals.items()}
