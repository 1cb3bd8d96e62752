"""What of a thermal conductivity lies where: at which frequencies, and up to which mean free paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from jaxmlip.crystals.symmetry import Mesh, reduced_mesh, space_group
from jaxmlip.phonons.density import tetrahedra

if TYPE_CHECKING:
    from jaxmlip.phonons.transport import Conductivity

By = Literal["frequency", "mean_free_path"]
POINTS = 401
SHORTEST = 1e-4  # of the longest mean free path: where its axis begins at the latest


@dataclass(frozen=True, eq=False)
class Cumulative:
    """The conductivity of all modes up to a frequency or a mean free path, at one temperature (K)."""

    by: By
    x: np.ndarray  # (points,): THz, or nm
    kappa: np.ndarray  # (points, 3, 3), W/m/K
    temperature: float

    def half(self) -> float:
        """The first x up to which half of the conductivity lies, in the mean of xx, yy and zz."""
        mean = np.trace(self.kappa, axis1=1, axis2=2)
        return float(self.x[np.argmax(mean >= mean[-1] / 2)])


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The conductivity per frequency at one temperature (K); its integral is the conductivity."""

    thz: np.ndarray  # (points,)
    kappa: np.ndarray  # (points, 3, 3), W/m/K/THz
    temperature: float
    method: str


def cumulative(
    found: Conductivity, by: By = "frequency", x: np.ndarray | None = None, *, temperature: float = 300.0
) -> Cumulative:
    """The conductivity of the modes whose frequency (THz), or mean free path (nm), is at most `x`.

    It is a sum over the modes of the mesh and so goes up in steps. Default for `x`: 401 values up to the
    highest, evenly spaced, mean free paths in their logarithms. Modes without any scattering have no finite
    mean free path and are left out there. Raises ValueError for a `temperature` (K) that was not computed.
    """
    t = _number(found, temperature)
    if by not in get_args(By):
        raise ValueError(f"found by={by!r}, needed {' or '.join(map(repr, get_args(By)))}.")
    values = (found.thz if by == "frequency" else found.mean_free_paths[t]).ravel()
    x = _axis(by, values) if x is None else np.asarray(x, float)
    order = np.argsort(values)
    running = np.cumsum(found.modes[t].reshape(-1, 3, 3)[order], axis=0) / found.weights.sum()
    upto = np.searchsorted(values[order], x, side="right")
    kappa = np.where(upto[:, None, None] > 0, running[upto - 1], 0.0)
    return Cumulative(by, x, kappa, temperature)


def spectrum(
    found: Conductivity,
    thz: np.ndarray | None = None,
    width: float | None = None,
    *,
    temperature: float = 300.0,
) -> Spectrum:
    """The conductivity per frequency (W/m/K/THz), as `density_of_states` has the density of modes.

    Without a `width` it uses linear tetrahedra; with one, each mode is a Gaussian of that standard deviation
    in THz. Default for `thz`: 401 values from 0. Raises ValueError for a `temperature` (K) that was not
    computed, or a width not above 0.
    """
    t = _number(found, temperature)
    if width is not None and not 0 < width < np.inf:
        raise ValueError(f"found width={width}, needed a number above 0 (THz).")
    f = found.thz
    if thz is None:
        thz = np.linspace(0, 1.02 * f.max() + 3 * (width or 0), POINTS)
    thz = np.asarray(thz, float)
    each = found.modes[t] / found.weights[:, None, None, None]  # of one wave vector, (Q, B, 3, 3)
    whole = " x ".join(map(str, found.mesh))
    if width is not None:
        weight = np.exp(-0.5 * ((thz[:, None, None] - f) / width) ** 2) / (width * (2 * np.pi) ** 0.5)
        kappa = np.einsum("pqb,q,qbxy->pxy", weight, found.weights / found.weights.sum(), each)
        return Spectrum(thz, kappa, temperature, f"Gaussians of {width:g} THz on {whole}")
    mesh, order = _mesh(found)
    share = each.reshape(*f.shape, 9).swapaxes(1, 2)[order]
    _, kappa = tetrahedra(thz, f[order], share, mesh)
    return Spectrum(thz, kappa.T.reshape(-1, 3, 3), temperature, f"linear tetrahedra on {whole}")


def _number(found: Conductivity, temperature: float) -> int:
    t = int(np.abs(found.temperatures - temperature).argmin())
    if abs(found.temperatures[t] - temperature) > 1e-6:
        known = ", ".join(f"{x:g}" for x in found.temperatures)
        raise ValueError(
            f"found temperature={temperature:g}, needed one of those that were computed: {known} K."
        )
    return t


def _axis(by: By, values: np.ndarray) -> np.ndarray:
    used = values[np.isfinite(values) & (values > 0)]
    highest = used.max(initial=0.0)
    if by == "frequency" or not highest:
        return np.linspace(0, highest, POINTS)
    x = np.geomspace(max(used.min(), SHORTEST * highest), highest, POINTS)
    x[-1] = highest  # which rounding could leave out
    return x


def _mesh(found: Conductivity) -> tuple[Mesh, np.ndarray]:
    """The mesh that the wave vectors are the irreducible ones of, and their numbers (Q,) in its order."""
    mesh = reduced_mesh(found.mesh, space_group(found.cells.primitive))
    place = np.rint(found.q_points * found.mesh).astype(int) % found.mesh
    stands = mesh.representative[np.ravel_multi_index(tuple(place.T), found.mesh)]
    order = np.argsort(stands)
    if not np.array_equal(stands[order], np.arange(len(mesh.weights))) or not np.array_equal(
        found.weights[order], mesh.weights
    ):
        raise ValueError(
            f"found {len(stands)} wave vectors that are not the {len(mesh.weights)} irreducible ones of a "
            f"{' x '.join(map(str, found.mesh))} mesh of this crystal, needed these for tetrahedra. Give a "
            "width= (THz), for Gaussians."
        )
    return mesh, order
