"""Frequencies as functions of the parameters of a potential, so that they can be labels.

D(q) of a primitive cell comes from waves through the linearised gradient (`derivatives.linear_map`), at any q
and without a supercell. All of it is differentiable in the parameters, in forward and in reverse: the
gradient of a loss on frequencies costs a few times D(q) itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Complex, Float, Int

from jaxmlip.crystals.graph import CrystalGraph
from jaxmlip.crystals.primitive import PrimitiveCells
from jaxmlip.data.batch import Spectra
from jaxmlip.data.labels import AVERAGES
from jaxmlip.derivatives import linear_map
from jaxmlip.system.arrays import Array
from jaxmlip.units import EV_PER_THZ, KELVIN_PER_EV, THZ_PER_ROOT_EV_PER_A2_U

# THz; below it a frequency counts by its square, so that acoustic branches near Γ have derivatives.
SOFT = 0.5
# THz; how far from a measured frequency that belongs to no branch its branch is looked for.
NEAR = 0.25
NEARLY_ZERO = 1e-3  # THz²; a root of less than that has no use, and no end to its derivative

Energy = Callable[[Any, CrystalGraph], Float[Array, " crystals"]]


def dynamical_matrices(
    energy: Energy, params: Any, cells: PrimitiveCells, q_points: Float[Array, "crystals waves 3"]
) -> Complex[Array, "crystals waves branches branches"]:
    """D(q) / √(m m'), in eV/(Å² u) with the phases of cells, of each crystal at its own wave vectors.

    Rows and columns beyond the branches of a crystal are zero. q is in reciprocal lattice units. `energy` is
    `potential.energy_fn`, `params` are arrays as `potential.arrays` has them.
    """
    crystals, waves = q_points.shape[:2]
    most = cells.present.shape[1]
    r, eps = linear_map.point(cells.graph)
    coordinate = 3 * cells.first[:, None] + jnp.arange(most, dtype=cells.first.dtype)[None]
    # One column for each wave and coordinate, with a wave in each crystal; a number beyond the last is none.
    index = jnp.where(cells.present, coordinate, r.size)
    index = jnp.broadcast_to(index.T, (waves, most, crystals)).reshape(-1, crystals)
    q = jnp.repeat(q_points.swapaxes(0, 1), most, axis=0)

    _, tangent_map = linear_map.linearise(energy, params, cells.graph)
    found = linear_map.waves(tangent_map, r, eps, q, index)  # atoms 2 columns 3
    atoms = jnp.arange(most // 3, dtype=cells.first.dtype)
    places = jnp.minimum(cells.first[:, None] + atoms[None], len(r) - 1)
    own = found[places].reshape(crystals, most // 3, 2, waves, most, 3)  # crystal atom part wave column x
    own = own.transpose(2, 0, 3, 1, 5, 4).reshape(2, crystals, waves, most, most)
    both = cells.present[:, :, None] & cells.present[:, None, :]
    weight = jnp.where(both, 1 / (cells.root_mass[:, :, None] * cells.root_mass[:, None, :]), 0)
    D = jax.lax.complex(*(own * weight[None, :, None]))
    return (D + D.conj().mT) / 2


def squared_frequencies(
    energy: Energy, params: Any, cells: PrimitiveCells, q_points: Float[Array, "crystals waves 3"]
) -> Float[Array, "crystals waves branches"]:
    """ω², in eV/(Å² u), ascending; zero beyond the branches of a crystal, where `cells.present` is False.

    Its derivatives by the parameters are those of a sum over degenerate branches: a loss must treat branches
    that are degenerate by symmetry alike. See `dynamical_matrices` for the arguments.
    """
    D = dynamical_matrices(energy, params, cells, q_points)
    # What is no branch comes after all others.
    above = 1 + jax.lax.stop_gradient(jnp.abs(D).sum(axis=-1).max(axis=-1))
    absent = jnp.where(cells.present[:, None], 0, above[..., None]).astype(D.dtype)
    one = jnp.eye(D.shape[-1], dtype=D.dtype)[None, None]
    squares = jnp.linalg.eigvalsh(D + absent[..., None] * one)
    return jnp.where(cells.present[:, None], squares, 0)


def spectral_errors(energy: Energy, params: Any, spectra: Spectra) -> dict[str, tuple[Array, Array]]:
    """Model minus label and the weight of each number: "frequencies" in THz, "averages" in their scales.

    Frequencies of both are signed roots that turn into squares below SOFT: f(ω²) = ω² / (ω⁴ + SOFT⁴)^¼, which
    is ω for high frequencies and has a derivative at zero. A label that belongs to no branch is compared with
    the mean of all branches, weighted by exp(-(ω - label)² / 2 NEAR²) like points of a measurement by its
    resolution: that is the nearest branch, and has a derivative where the nearest one changes. Averages are
    over the wave vectors of the batch that are theirs.
    """
    squares = squared_frequencies(energy, params, spectra.cells, spectra.q_points)
    squares = squares * squares.dtype.type(THZ_PER_ROOT_EV_PER_A2_U**2)
    thz = _signed_root(squares)
    waves, present, found = spectra.thz.shape[1], spectra.cells.present, {}
    if waves:
        labels = _signed_root(spectra.thz * jnp.abs(spectra.thz))
        its = thz[:, :waves]
        nearest = _nearest(its, present, labels)
        off = jnp.where(spectra.assigned[..., None], its, nearest) - labels
        found["frequencies"] = (off, spectra.weights)
    if (labels := spectra.averages) is not None:
        own = squares[:, waves:]
        its = own / jnp.sqrt(jnp.abs(own) + NEARLY_ZERO)
        equal = jnp.full(its.shape[:2], 1 / its.shape[1], its.dtype)
        model = averages_of(its, equal, present, labels.what, labels.at, labels.width)
        found["averages"] = ((model - labels.values) / labels.scale, labels.weights)
    return found


def averages_of(
    thz: Float[Array, "crystals waves branches"],
    shares: Float[Array, "crystals waves"],
    present: Bool[Array, "crystals branches"],
    what: Int[Array, "crystals m"],
    at: Float[Array, "crystals m"],
    width: Float[Array, " crystals"],
) -> Float[Array, "crystals m"]:
    """Averages over the modes of each crystal, of the kinds and units of `data.labels.Averages`.

    `shares` of the wave vectors of a crystal add up to 1.

    Modes at STILL or below have no heat capacity and no entropy, as in `phonons.thermodynamics`.
    """
    from jaxmlip.phonons.density import STILL  # here, since all of phonons takes a second to import

    f, at, what = thz[..., None], at[:, None, None, :], what[:, None, None, :]
    # Where a kind is not asked for it has no place, whatever `at` is there: an infinity would turn the
    # derivatives of the others into NaN.
    power = jnp.where(what == AVERAGES.index("moment"), at, 1)
    kelvin = jnp.where(what >= AVERAGES.index("heat capacity"), at, 300)
    size = jnp.maximum(jnp.abs(f), 1e-6)
    moment = jnp.sign(f) * jnp.exp(power * jnp.log(size))
    off = (f - at) / width[:, None, None, None]
    density = jnp.exp(-0.5 * off**2) / (width[:, None, None, None] * (2 * np.pi) ** 0.5)
    x = jnp.maximum(f, STILL) * (EV_PER_THZ * KELVIN_PER_EV) / kelvin
    x = jnp.minimum(x, 60.0)  # where both are zero to all digits
    heat_capacity = (x / 2 / jnp.sinh(x / 2)) ** 2
    entropy = x / jnp.expm1(x) - jnp.log(-jnp.expm1(-x))
    heat_capacity, entropy = (jnp.where(f > STILL, y, 0) for y in (heat_capacity, entropy))
    kinds = (moment, density, heat_capacity, entropy)  # as AVERAGES
    value = jnp.select([what == k for k in range(len(AVERAGES))], kinds)
    weight = present.astype(thz.dtype)
    weight = weight / jnp.maximum(weight.sum(axis=1, keepdims=True), 1)
    return jnp.einsum("cwbm,cw,cb->cm", value, shares, weight)


def _signed_root(squares: Float[Array, "..."]) -> Float[Array, "..."]:
    """THz of squares in THz²."""
    return squares / (squares**2 + SOFT**4) ** 0.25


def _nearest(
    found: Float[Array, "crystals waves branches"],
    present: Bool[Array, "crystals branches"],
    labels: Float[Array, "crystals waves labels"],
) -> Float[Array, "crystals waves labels"]:
    """The branch near each label."""
    off = (found[..., None, :] - labels[..., :, None]) / NEAR
    weight = jax.nn.softmax(jnp.where(present[:, None, None], -0.5 * off**2, -1e9), axis=-1)
    return jnp.sum(jnp.where(present[:, None, None], weight * found[..., None, :], 0), axis=-1)
