"""Softening of potentials: slopes against DFT, and how much of them is regression to the mean.

B. Deng et al., npj Comput. Mater. 11, 9 (2025), read the softening of a potential off the slope of its
forces y against DFT forces x. With S_xx = Σx², S_xy = Σxy and S_yy = Σy² over all components that slope is
s = S_xy / S_xx, and r² = S_xy² / (S_xx S_yy). Its meaning depends on the source of the scatter:

- y = b x + e with an error e independent of x: s is b, whatever the scatter.
- y is the mean of x over all that the model cannot distinguish. Then x = y + d with d independent of y,
  so S_xy = S_yy and s = S_yy / S_xx = r² < 1. Nothing is too soft here: no factor on y would bring it closer
  to x, and the slope of x against y, S_xy / S_yy, is 1.
- both: y = b ξ + e and x = ξ + d with a common ξ. Then S_xx = S_ξξ + S_dd, S_xy = b S_ξξ and
  S_yy = b² S_ξξ + S_ee, so b is between s (no d) and S_yy / S_xy = s / r² (no e). The ratio S_ee / S_dd
  decides where: W. E. Deming, Statistical Adjustment of Data (1943).

The three sums cannot distinguish these cases, so all answers are given side by side. DFT forces have hardly
any error of their own; d is what the model cannot resolve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

NEGLIGIBLE = 1e-4  # of the largest ω²: below it is an acoustic mode at Γ, with a ratio of 0/0


@dataclass(frozen=True)
class Slope:
    """Model (y) against DFT (x): slopes of lines through the origin, explained at the top of this module.

    For a positive correlation, slope <= geometric_mean <= inverse, and slope <= deming <= inverse.
    """

    slope: float  # Σxy / Σxx, the softening scale of Deng et al.
    interval: tuple[float, float]  # 95 %, by bootstrap over samples; NaN for a single one
    inverse: float  # Σyy / Σxy, the slope of the line that fits x to y; 1 for a conditional mean
    inverse_interval: tuple[float, float]
    deming: float  # errors in both
    error_ratio: float  # variance of the errors of y over that of x, as Deming's line has it
    correlation: float  # r = Σxy / √(Σxx Σyy), about 0 and not about the means
    mae: float  # mean |y - x|
    corrected_mae: float  # mean |y / slope - x|, as if the slope were 1
    samples: int  # frames for forces, atoms for force constants
    values: int  # numbers compared

    @property
    def r_squared(self) -> float:
        """r², also the slope of a conditional mean with the same scatter."""
        return self.correlation**2

    @property
    def geometric_mean(self) -> float:
        """±√(Σyy / Σxx), the reduced major axis: the geometric mean of `slope` and `inverse`."""
        return float(np.sign(self.slope) * np.sqrt(self.slope * self.inverse))

    @property
    def relative_error(self) -> float:
        """√(Σ(y - x)² / Σx²): the norm of all errors over that of DFT's values."""
        return float(np.sqrt(max(0.0, 1 - 2 * self.slope + self.slope * self.inverse)))

    @property
    def shrinkage_share(self) -> float:
        """(1 - r²) / (1 - slope): the part of 1 - slope that a conditional mean of this r² would show.

        About 0: the slope is not an effect of scatter. 1 or more: shrinkage alone can explain it, and
        `inverse` is 1 or more. It is an upper bound, since other errors also lower r². NaN if the slope is
        not below 1.
        """
        return (1 - self.r_squared) / (1 - self.slope) if self.slope < 1 else float("nan")


def force_slope(
    model: Sequence[np.ndarray],
    dft: Sequence[np.ndarray],
    error_ratio: float = 1.0,
    resamples: int = 2000,
) -> Slope:
    """The softening scale of one material from the forces (eV/Å) of a model and of DFT in the same frames.

    Each frame has an array (atoms, 3) of forces.

    y = a x through the origin by least squares over all components of all frames, as in matcalc's
    SofteningBenchmark, which is how Deng et al. compute it. Intervals are percentiles over `resamples` draws
    of whole frames, since the components of a frame belong together. `error_ratio` is Deming's.

    Raises ValueError, naming the frame, if shapes differ or a force is not a number, and if all DFT forces
    are zero.
    """
    if len(model) != len(dft) or len(dft) == 0:
        raise ValueError(
            f"found forces of {len(model)} frames from the model and of {len(dft)} from DFT, needed the same "
            "frames, and at least one."
        )
    return _slope(list(model), list(dft), "frame", error_ratio, resamples)


def hessian_slope(
    model: np.ndarray,
    dft: np.ndarray,
    origins: Sequence[int] | None = None,
    self_terms: bool = True,
    sum_rule: bool = False,
    error_ratio: float = 1.0,
    resamples: int = 2000,
    pairs: np.ndarray | None = None,
) -> Slope:
    """Force constants (eV/Å²) of a model against those of DFT, element by element.

    Both are a Hessian (3N, 3N) or force constants (n, N, 3, 3) between n atoms and all N of a supercell, in
    the same order of atoms. `origins` (n) gives the place of each of the n among the N; default: the first n.
    Self terms are the largest but not independent: they are minus the sum of the others. `self_terms=False`
    leaves them out; `sum_rule=True` computes them from the others on both sides. `pairs` (n, N), bool,
    selects the other terms that count (default: all). Samples of the bootstrap are the n atoms; copies of
    one atom make the interval too narrow.

    Raises ValueError if the shapes differ or are neither of the two, and if nothing is left.
    """
    model, dft = (_pairs_of_atoms(x, name) for x, name in ((model, "model"), (dft, "DFT")))
    if model.shape != dft.shape:
        raise ValueError(
            f"found force constants of shape {model.shape} from the model and {dft.shape} from DFT, needed "
            "the same atoms on both sides. Compute the model's in the supercell of DFT."
        )
    n, N = dft.shape[:2]
    origins = np.arange(n) if origins is None else np.asarray(origins, int)
    if origins.shape != (n,) or origins.min() < 0 or origins.max() >= N:
        raise ValueError(f"found origins={origins.tolist()}, needed {n} numbers from 0 to {N - 1}.")
    rows = np.arange(n)
    others = np.ones((n, N), bool)
    others[rows, origins] = False
    if sum_rule:
        model, dft = model.copy(), dft.copy()
        for phi in (model, dft):
            phi[rows, origins] = -np.where(others[:, :, None, None], phi, 0).sum(axis=1)
    kept = others | self_terms
    if pairs is not None:
        if np.shape(pairs) != (n, N):
            raise ValueError(f"found pairs of shape {np.shape(pairs)}, needed ({n}, {N}), True or False.")
        kept &= np.asarray(pairs, bool)
    return _by_atom(model, dft, kept, error_ratio, resamples)


def _by_atom(
    model: np.ndarray, dft: np.ndarray, kept: np.ndarray, error_ratio: float, resamples: int
) -> Slope:
    """The slope of the `kept` elements; samples of the bootstrap are the atoms of the first axis."""
    its, theirs = ([phi[keep] for phi, keep in zip(x, kept, strict=True)] for x in (model, dft))
    return _slope(its, theirs, "atom", error_ratio, resamples)


def third_order_slope(
    model: np.ndarray,
    dft: np.ndarray,
    triples: np.ndarray | None = None,
    error_ratio: float = 1.0,
    resamples: int = 2000,
) -> Slope:
    """Third-order force constants (eV/Å³) of a model against those of DFT, element by element.

    Both are (n, N, N, 3, 3, 3), between n atoms of the primitive cell and all N of a supercell. `triples`
    (n, N, N), bool, selects those that count (default: all). Samples of the bootstrap are the n atoms, as for
    `hessian_slope`.

    Raises ValueError if the shapes differ or are not that, and if nothing is left.
    """
    model, dft = np.asarray(model, float), np.asarray(dft, float)
    if model.shape != dft.shape or dft.ndim != 6 or dft.shape[3:] != (3, 3, 3):
        raise ValueError(
            f"found third-order constants of shape {model.shape} from the model and {dft.shape} from DFT, "
            "needed (n, N, N, 3, 3, 3) of the same atoms on both sides."
        )
    kept = np.ones(dft.shape[:3], bool) if triples is None else np.asarray(triples)
    if kept.shape != dft.shape[:3] or kept.dtype != bool:
        raise ValueError(
            f"found triples of shape {kept.shape}, needed {dft.shape[:3]}, True or False, as the atoms have."
        )
    return _by_atom(model, dft, kept, error_ratio, resamples)


@dataclass(frozen=True, eq=False)
class ModeSlope:
    """Curvatures along the modes of DFT, in the unit of the dynamical matrices, eV/(Å² u)."""

    dft: Float[np.ndarray, "q modes"]  # e† D_dft e = ω², ascending for each wave vector
    model: Float[np.ndarray, "q modes"]  # e† D_model e along the same e
    weights: Float[np.ndarray, " q"]  # of the wave vectors, adding up to 1

    @property
    def ratios(self) -> Float[np.ndarray, "q modes"]:
        """Model / DFT for each mode, the square of a frequency ratio; NaN where DFT is almost zero.

        For degenerate modes only the ratio of sums has a meaning; single ratios depend on their choice.
        """
        counted = np.abs(self.dft) > NEGLIGIBLE * np.abs(self.dft).max()
        return np.where(counted, self.model / np.where(counted, self.dft, 1), np.nan)

    @property
    def mean(self) -> float:
        """The mean ratio, weighted only by the wave vectors' weights."""
        ratios = self.ratios
        weights = np.where(np.isnan(ratios), 0, self.weights[:, None])
        return float(np.nansum(weights * ratios) / weights.sum())

    def ratio_of(self, modes: np.ndarray) -> float:
        """Σ model / Σ DFT over the mask `modes` (q, modes); degenerate modes may be in any order."""
        weights = self.weights[:, None] * modes
        return float((weights * self.model).sum() / (weights * self.dft).sum())

    @property
    def slope(self) -> float:
        """The slope of model against DFT through the origin, dominated by the stiffest modes."""
        weights = self.weights[:, None]
        return float((weights * self.model * self.dft).sum() / (weights * self.dft**2).sum())


def mode_slope(
    model: np.ndarray,
    dft: np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
) -> ModeSlope:
    """Dynamical matrices (q, 3n, 3n) of a model along DFT's eigenvectors: ω² of the same displacements.

    (Frequencies compare the n-th mode with the n-th, whatever the displacements.) Both need the same phase
    convention, masses and order of atoms; a single matrix counts as one wave vector. `weights` (default:
    equal) are those of the wave vectors.

    Raises ValueError if shapes do not fit.
    """
    model, dft = (np.asarray(D)[None] if np.ndim(D) == 2 else np.asarray(D) for D in (model, dft))
    if model.shape != dft.shape or dft.ndim != 3 or dft.shape[1] != dft.shape[2]:
        raise ValueError(
            f"found dynamical matrices of shape {model.shape} from the model and {dft.shape} from DFT, "
            "needed (q, 3n, 3n) of the same wave vectors and atoms."
        )
    squares, e = np.linalg.eigh(dft)
    along = np.einsum("qam,qab,qbm->qm", e.conj(), model, e).real
    return ModeSlope(squares, along, _weights(weights, len(dft)))


class FrequencyRatios(NamedTuple):
    """Frequencies of the model divided by those of DFT."""

    maximum: float
    mean: float  # over wave vectors and branches; an imaginary frequency counts as 0
    rms: float  # √ of the mean ω², that is of the trace of D; an imaginary frequency lowers it


def frequency_ratios(
    model: np.ndarray,
    dft: np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
) -> FrequencyRatios:
    """Ratios of the highest, mean and root-mean-square frequency, of arrays (q, branches).

    Imaginary frequencies are negative numbers.

    `weights` (default: equal) are those of the wave vectors. Ratios are never below 0.

    Raises ValueError if shapes differ, or DFT has no real mode.
    """
    model, dft = np.atleast_2d(model), np.atleast_2d(dft)
    if model.shape != dft.shape:
        raise ValueError(
            f"found frequencies of shape {model.shape} from the model and {dft.shape} from DFT, needed (q, "
            "branches) of the same wave vectors."
        )
    weights = _weights(weights, len(dft))

    def summary(f) -> np.ndarray:
        mean_square = weights @ (np.sign(f) * f**2).mean(axis=1)
        mean = weights @ np.maximum(f, 0).mean(axis=1)
        return np.array([max(f.max(), 0), mean, np.sqrt(max(mean_square, 0))])

    below = summary(dft)
    if not below.all():
        raise ValueError("found no DFT frequency with ω² > 0 on average, needed a crystal that vibrates.")
    return FrequencyRatios(*(summary(model) / below).tolist())


def _slope(model: list, dft: list, sample: str, error_ratio: float, resamples: int) -> Slope:
    sums = np.empty((len(dft), 3))
    for k, (y, x) in enumerate(zip(model, dft, strict=True)):
        y, x = np.asarray(y, float), np.asarray(x, float)
        if y.shape != x.shape:
            raise ValueError(f"{sample} {k} has the shape {y.shape} from the model and {x.shape} from DFT.")
        if not (np.isfinite(y).all() and np.isfinite(x).all()):
            raise ValueError(f"{sample} {k} holds values that are not finite, needed numbers on both sides.")
        sums[k] = (x * x).sum(), (x * y).sum(), (y * y).sum()
    xx, xy, yy = sums.sum(axis=0)
    if xx == 0:
        raise ValueError(
            f"all DFT values of {len(dft)} {sample}s are zero, needed some that are not: forces vanish by "
            "symmetry here, and give no slope. Displace the atoms."
        )
    y, x = (np.concatenate([np.ravel(part) for part in parts]).astype(float) for parts in (model, dft))
    slope = xy / xx
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = yy - error_ratio * xx
        deming = (difference + np.sqrt(difference**2 + 4 * error_ratio * xy**2)) / (2 * xy)
        # The sums of a draw follow from how often each sample is drawn.
        draws = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), resamples)
        drawn = (draws @ sums).T
        low_high = [
            # If the model is zero everywhere, no draw has an inverse.
            np.full(2, np.nan)
            if len(sums) == 1 or np.isnan(ratio).all()
            else np.nanpercentile(ratio, (2.5, 97.5))
            for ratio in (drawn[1] / drawn[0], drawn[2] / drawn[1])
        ]
        return Slope(
            slope=float(slope),
            interval=tuple(low_high[0].tolist()),
            inverse=float(yy / xy),
            inverse_interval=tuple(low_high[1].tolist()),
            deming=float(deming),
            error_ratio=error_ratio,
            correlation=float(xy / np.sqrt(xx * yy)),
            mae=float(np.abs(y - x).mean()),
            corrected_mae=float(np.abs(y / slope - x).mean()),
            samples=len(sums),
            values=len(x),
        )


def _pairs_of_atoms(phi, name: str) -> np.ndarray:
    """Force constants as (n, N, 3, 3)."""
    phi = np.asarray(phi, float)
    if phi.ndim == 2 and phi.shape[0] == phi.shape[1] and len(phi) % 3 == 0:
        return phi.reshape(len(phi) // 3, 3, -1, 3).swapaxes(1, 2)
    if phi.ndim == 4 and phi.shape[2:] == (3, 3):
        return phi
    raise ValueError(f"found {name} force constants of shape {phi.shape}, needed (3N, 3N) or (n, N, 3, 3).")


def _weights(weights, q: int) -> np.ndarray:
    weights = np.ones(q) if weights is None else np.asarray(weights, float)
    if weights.shape != (q,) or weights.min() < 0 or weights.sum() <= 0:
        raise ValueError(
            f"found weights of shape {weights.shape}, needed {q}, one for each wave vector, >= 0."
        )
    return weights / weights.sum()
