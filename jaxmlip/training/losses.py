"""The loss of a batch, as sums and counts, so that it does not depend on how the batch is spread over
devices.

L = Σ_p w_p Σ_i ω_i ℓ(x_i - x_i^DFT) / Σ_i ω_i over the properties p, where ω are the weights of the labels:
each property is averaged over the numbers of the whole batch that have a label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxmlip.data.batch import Batch
from jaxmlip.data.labels import PROPERTIES
from jaxmlip.derivatives.gradients import strain, stress
from jaxmlip.potential import Energy
from jaxmlip.system.arrays import Array
from jaxmlip.training.spectra import spectral_errors
from jaxmlip.units import GPA_PER_EV_PER_A3

UNITS = {
    "energy": "eV/atom",
    "forces": "eV/Å",
    "stress": "GPa",
    "magmoms": "μB",
    "hessian": "eV/Å²",
    "frequencies": "THz",
    "averages": "of their scale",
    "third": "eV/Å³",
}


@dataclass(frozen=True)
class LossConfig:
    """The loss to minimise; the defaults are those of CHGNet 0.3.0.

    The weights multiply means over energies in eV/atom, forces in eV/Å, stresses in GPa, magnetic moments in
    μB, Hessian columns in eV/Å², frequencies in THz, averages over modes in parts of a moment, of the
    largest density of states, and of 1 k_B for each mode, and columns of third order in eV/Å³. A property of
    weight zero is left out and not computed.
    """

    kind: Literal["huber", "mse", "mae"] = "huber"
    delta: float = 0.1  # of the Huber loss, in the unit of each property
    energy: float = 1.0
    forces: float = 1.0
    stress: float = 0.1
    magmoms: float = 0.1
    hessian: float = 0.0
    frequencies: float = 0.0
    averages: float = 0.0
    third: float = 0.0

    def __post_init__(self):
        if self.kind not in ("huber", "mse", "mae"):
            raise ValueError(f"found the loss {self.kind!r}, needed 'huber', 'mse' or 'mae'.")
        if not 0 < self.delta < math.inf:
            raise ValueError(f"found delta={self.delta}, needed a positive number.")
        weights = {p: getattr(self, p) for p in PROPERTIES}
        if not all(0 <= w < math.inf for w in weights.values()) or not any(weights.values()):
            raise ValueError(
                f"found the loss weights {weights}, needed finite numbers, none negative and at least one "
                "positive."
            )

    @property
    def properties(self) -> tuple[str, ...]:
        """The properties in the loss."""
        return tuple(p for p in PROPERTIES if getattr(self, p) > 0)

    def of(self, error: Array) -> Array:
        """ℓ of each error."""
        size = jnp.abs(error)
        if self.kind == "mae":
            return size
        if self.kind == "mse":
            return error**2
        return jnp.where(size < self.delta, 0.5 * error**2, self.delta * (size - 0.5 * self.delta))


def errors(
    energy_fn: Energy,
    params: Any,
    batch: Batch,
    properties: tuple[str, ...],
) -> dict[str, tuple[Array, Array]]:
    """Model minus label, in the units of UNITS, and the weight of each number, by property.

    `params` are arrays as `potential.arrays` has them. Only derivatives that `properties` need are taken. One
    Hessian-vector product gives the Hessian columns of all crystals of the batch, and its derivative columns
    of third order; frequencies and averages are as `spectra.spectral_errors` has them.
    """
    graph, weights = batch.graph, batch.weights
    origin = (jnp.asarray(graph.positions), jnp.zeros_like(graph.cell))

    def total(r, eps):
        e, sites = energy_fn.with_sites(params, strain(graph.replace(positions=r), eps))
        return e.sum(), (e, sites)

    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
    if "hessian" in properties:
        along = (batch.probe, jnp.zeros_like(graph.cell))
        ((dE_dr, dE_deps), (e, sites)), ((H_probe, _), _) = jax.jvp(gradient, origin, along)
    elif {"forces", "stress"} & set(properties):
        (dE_dr, dE_deps), (e, sites) = gradient(*origin)
    else:
        _, (e, sites) = total(*origin)
    found = {}
    if "energy" in properties:
        found["energy"] = ((e - batch.energy) / jnp.maximum(batch.atoms, 1), weights.energy)
    if "forces" in properties:
        found["forces"] = (-dE_dr - batch.forces, weights.forces[:, None])
    if "stress" in properties:
        off = stress(dE_deps, graph) - batch.stress
        found["stress"] = (GPA_PER_EV_PER_A3 * off, weights.stress[:, None, None])
    if "magmoms" in properties and "magmoms" in sites:
        found["magmoms"] = (sites["magmoms"] - batch.magmoms, weights.magmoms)
    if "hessian" in properties:
        found["hessian"] = (H_probe - batch.hessian, weights.hessian[:, None])
    if "third" in properties:
        r, eps = origin

        def slope(r):
            return jax.jvp(lambda r: gradient(r, eps)[0][0], (r,), (batch.ways[0],))[1]

        _, T_ways = jax.jvp(slope, (r,), (batch.ways[1],))
        found["third"] = (T_ways - batch.third, weights.third[:, None])
    spectral = {"frequencies", "averages"}.intersection(properties)
    if spectral and batch.spectra is not None:
        its = spectral_errors(energy_fn, params, batch.spectra)
        found |= {name: its[name] for name in spectral.intersection(its)}
    return {name: (x, jnp.broadcast_to(w, x.shape)) for name, (x, w) in found.items()}


def sums(loss: LossConfig, found: dict[str, tuple[Array, Array]]) -> dict[str, dict[str, Float[Array, ""]]]:
    """Weighted sums over the batch for each property: of the loss, of |error|, of error², and of the
    weights."""
    return {
        name: {
            "loss": jnp.sum(w * loss.of(x)),
            "absolute": jnp.sum(w * jnp.abs(x)),
            "squared": jnp.sum(w * x**2),
            "count": jnp.sum(w),
        }
        for name, (x, w) in found.items()
    }


def means(loss: LossConfig, summed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The loss, and {property}_mae and {property}_rmse in the units of UNITS, of sums over any number of
    batches.

    A property without a label is left out of the loss, and its errors are NaN.
    """
    total, found = 0.0, {}
    for name, s in summed.items():
        count = jnp.where(s["count"] > 0, s["count"], 1.0)
        total = total + getattr(loss, name) * s["loss"] / count
        nothing = jnp.where(s["count"] > 0, 0.0, jnp.nan)
        found[f"{name}_mae"] = s["absolute"] / count + nothing
        found[f"{name}_rmse"] = jnp.sqrt(s["squared"] / count) + nothing
    return {"loss": total} | found
