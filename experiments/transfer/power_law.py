"""Power laws of an error against data or computation: fits, crossings of two of them, and envelopes.

y = a xᵇ is fitted by least squares of log₁₀ y on log₁₀ x, with equal weights. For the points of Fig. 6 of
Huang et al., npj Comput. Mater. 11, 313 (2025), this reproduces the numbers printed there, see
`scaling_figures`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from jaxmlip.system.tables import Estimate

LEAST = 4  # points for an interval: with one residual degree of freedom it would be too narrow
FLAT = 1e-3  # slopes that differ by less count as equal


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """y = 10^(c₀ + c₁ log₁₀ x), and draws of its coefficients, which show their uncertainty."""

    coefficients: Float[np.ndarray, "2"]  # log₁₀ a and the slope b
    draws: Float[np.ndarray, "draws 2"]  # none if there are too few points
    r_squared: float  # of log₁₀ y
    points: int

    @property
    def slope(self) -> Estimate:
        return estimate(self.coefficients, self.draws, lambda c: c[..., 1])

    def at(self, x: float) -> Estimate:
        """y at x."""
        return estimate(self.coefficients, self.draws, lambda c: _power(c @ (1.0, math.log10(x))))


def fit(x: Sequence[float], y: Sequence[float], draws: int = 2000, seed: int = 0) -> PowerLaw:
    """The power law through points, with draws by a bootstrap of residuals.

    Each draw adds residuals to the line and is fitted again; residuals are drawn from those of the fit,
    divided by √(1 - leverage). Deviations are scaled by each draw's own residual standard deviation
    (bootstrap-t), so that intervals cover with six points, too. Raises ValueError for numbers without a
    logarithm, and if all x are equal.
    """
    x, y = (np.asarray(each, float) for each in (x, y))
    if not (np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)).all():
        raise ValueError("found numbers that are not positive, needed positive ones for a power law.")
    if len(np.unique(x)) < 2:
        raise ValueError(f"found {len(np.unique(x))} different x, needed at least two for a line.")
    A, z = np.stack([np.ones(len(x)), np.log10(x)], axis=1), np.log10(y)
    inverse = np.linalg.pinv(A)
    coefficients = inverse @ z
    residual = z - A @ coefficients
    spread = float(((z - z.mean()) ** 2).sum())
    r_squared = 1 - float(residual @ residual) / spread if spread else math.nan
    free = len(x) - 2
    none = np.empty((0, 2))
    if len(x) < LEAST:
        return PowerLaw(coefficients, none, r_squared, len(x))
    leverage = np.einsum("kn,nk->n", inverse, A)
    pool = residual / np.sqrt(np.maximum(1 - leverage, 1e-9))
    rng = np.random.default_rng(seed)
    drawn = rng.choice(pool - pool.mean(), (draws, len(x)))
    moved = drawn @ inverse.T
    own = np.sqrt(((drawn - moved @ A.T) ** 2).sum(axis=1) / free)
    scale = np.sqrt(residual @ residual / free)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(own[:, None] > 0, moved * (scale / own)[:, None], 0.0)
    return PowerLaw(coefficients, coefficients - steps, r_squared, len(x))


def misread(
    x: Sequence[float], y: Sequence[float], relative: float, draws: int = 2000, seed: int = 0
) -> PowerLaw:
    """`fit`, but the draws show only the effect of errors in reading x and y off a figure."""
    x, y, rng = np.log10(x), np.log10(y), np.random.default_rng(seed)
    off = math.log10(1 + relative) * rng.normal(size=(draws, 2, len(x)))
    x_read, y_read = x + off[:, 0], y + off[:, 1]
    about = x_read - x_read.mean(axis=1, keepdims=True)
    slope = (about * y_read).sum(axis=1) / (about**2).sum(axis=1)
    drawn = np.stack([y_read.mean(axis=1) - slope * x_read.mean(axis=1), slope], axis=1)
    return replace(fit(10**x, 10**y), draws=drawn)


def estimate(value: np.ndarray, draws: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """`of` of the coefficients (…, 2) with its 95 % interval, if there are draws; an end may be infinite."""
    if not len(draws):
        return Estimate(float(of(value)), math.nan, math.nan)
    # Ends are draws, without interpolation between draws: some may be infinite.
    low, high = np.percentile(of(draws), (2.5, 97.5), method="nearest")
    return Estimate(float(of(value)), float(low), float(high))


def crossing(steep: PowerLaw, flat: PowerLaw) -> Estimate:
    """The x at which `steep`, which is larger at first, comes down to `flat`.

    Infinite if it does not: the two are parallel, or `steep` is not the steeper one.
    """
    pairs = _together(steep, flat)
    return estimate(np.stack([steep.coefficients, flat.coefficients]), pairs, _meeting)


def equivalent(of: PowerLaw, other: PowerLaw, x: float) -> Estimate:
    """The x at which `other` is as small as `of` is at `x`. Infinite if `other` does not fall."""

    def reached(c: np.ndarray) -> np.ndarray:
        y = c[..., 0, :] @ (1.0, math.log10(x))
        falls = c[..., 1, 1] < -FLAT
        return np.where(falls, _power((y - c[..., 1, 0]) / np.where(falls, c[..., 1, 1], -1.0)), np.inf)

    return estimate(np.stack([of.coefficients, other.coefficients]), _together(of, other), reached)


def envelope(cost: Sequence[float], error: Sequence[float]) -> list[int]:
    """The points that no point of the same or lower cost beats, by rising cost."""
    found: list[int] = []
    for k in np.lexsort((error, cost)).tolist():
        if not found or error[k] < error[found[-1]]:
            found.append(k)
    return found


def interpolated(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """The x from which straight lines between points, log y over log x, stay at or below `level`.

    Infinite if they end above it; the first x if they are never above.
    """
    order = np.argsort(x)
    x, y = np.log10(np.asarray(x, float)[order]), np.log10(np.asarray(y, float)[order])
    z = math.log10(level)
    above = np.flatnonzero(y > z)
    if not len(above):
        return float(10 ** x[0])
    k = int(above[-1])
    if k == len(y) - 1:
        return math.inf
    return float(10 ** (x[k] + (x[k + 1] - x[k]) * (y[k] - z) / (y[k] - y[k + 1])))


def _together(first: PowerLaw, second: PowerLaw) -> np.ndarray:
    """Draws of the coefficients of both laws, (draws, 2 laws, 2); the laws are drawn independently."""
    if not (len(first.draws) and len(second.draws)):
        return np.empty((0, 2, 2))
    order = np.random.default_rng(1).permutation(len(second.draws))
    return np.stack([first.draws, second.draws[order]], axis=1)


def _meeting(c: np.ndarray) -> np.ndarray:
    closing = c[..., 1, 1] - c[..., 0, 1]
    meets = closing > FLAT
    return np.where(meets, _power((c[..., 0, 0] - c[..., 1, 0]) / np.where(meets, closing, 1.0)), np.inf)


def _power(exponent: np.ndarray) -> np.ndarray:
    """10 to the exponent; infinite beyond 10³⁰⁰."""
    return np.where(exponent > 300, np.inf, 10 ** np.clip(exponent, -300, 300))
