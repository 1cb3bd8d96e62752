"""How three waves couple: third derivatives of the energy along waves, and along modes (see `coupling`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from jaxmlip.phonons.third import ThirdOrder
from jaxmlip.units import EV_PER_THZ, KELVIN_PER_EV, THZ_PER_ROOT_EV_PER_A2_U

TOGETHER = 1e8  # bytes that are held at once
CACHE = 2**20  # bytes of products that are used again at once


def parts(third: ThirdOrder, many: int) -> Iterator[slice]:
    """Parts of many wave vectors, each as long as `along` may be asked for at once."""
    N, B = len(third.cells.supercell), 3 * len(third.cells.primitive)
    size = max(1, int(TOGETHER / (16 * (27 * N * B + 4 * B**3))))
    for begin in range(0, many, size):
        yield slice(begin, begin + size)


def along(third: ThirdOrder, q_points: Sequence[np.ndarray], vectors: Sequence[np.ndarray]) -> np.ndarray:
    """V (m, B, B, B) at three arrays of wave vectors (m or 1, 3) with eigenvectors (m or 1, B, B).

    Eigenvectors have the phases of cells, and are in columns.
    """
    root = np.sqrt(np.repeat(third.cells.primitive.get_masses(), 3))[:, None]
    V = _summed(third, q_points)  # (m, x, y, z), and in the end (m, a, b, c)
    m, B, *_ = V.shape
    for e in vectors:  # x, y, z to y, z, a, and so on
        V = V.reshape(m, B, B * B).swapaxes(1, 2) @ (e / root)
    return V.reshape(m, B, B, B)


def _summed(third: ThirdOrder, q_points: Sequence[np.ndarray]) -> np.ndarray:
    """Σ Φ e^{2πi (q·R_i + q′·R_j + q″·R_k)}, (m, 3n, 3n, 3n) in eV/Å³: a mean over the atom in cell 0."""
    phases = [third.cells.images.phases(q) for q in q_points]
    total = 0
    for first in range(3):
        one, two = (phase for k, phase in enumerate(phases) if k != first)
        if len(one) < len(two):  # the fewer waves are summed first
            exchanged = third.fc3.transpose(0, 2, 1, 3, 5, 4)
            seen = _seen_from(third, exchanged, two, one).swapaxes(2, 3)
        else:
            seen = _seen_from(third, third.fc3, one, two)
        total = total + np.moveaxis(seen, 1, 1 + first)
    return total / 3


def _seen_from(third: ThirdOrder, fc3: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """The sum for phases (m or 1, n, N) of the second and the third atom, the first in cell 0."""
    atom, _ = third.cells.places
    n, N = fc3.shape[:2]
    order = np.argsort(atom, kind="stable")
    copies = N // n
    m = max(len(one), len(two))
    one, two = one[:, :, order], two[:, :, order]
    found = np.empty((m, n, 3, n, 3, n, 3), complex)
    for i in range(n):
        for k in range(n):
            its = slice(k * copies, (k + 1) * copies)
            constants = fc3[i][order[:, None], order[its]].swapaxes(0, 1).reshape(copies, -1)
            for some in _blocks(len(two), constants.shape[1]):
                # Constants are real: half of the products of complex numbers would be with zeros.
                phase = two[some, i, its]
                half = np.concatenate([phase.real, phase.imag]) @ constants
                half = half.reshape(2, len(phase), n, copies, 27)
                for j in range(n):
                    phase = one[:, i, j * copies : (j + 1) * copies]
                    if len(two) == 1:
                        sums = phase @ (half[0, 0, j] + 1j * half[1, 0, j])
                        found[:, i, :, j, :, k] = sums.reshape(-1, 3, 3, 3)
                    else:
                        phase = phase[some]
                        of_real, of_imag = np.stack([phase.real, phase.imag], 1) @ half[:, :, j]
                        sums = of_real[:, 0] - of_imag[:, 1] + 1j * (of_real[:, 1] + of_imag[:, 0])
                        found[some, i, :, j, :, k] = sums.reshape(-1, 3, 3, 3)
    return found.reshape(m, 3 * n, 3 * n, 3 * n)


def _blocks(many: int, each: int) -> Iterator[slice]:
    size = max(1, CACHE // (16 * each))
    for begin in range(0, many, size):
        yield slice(begin, begin + size)


def rates(
    strength: np.ndarray,
    decay: np.ndarray,
    join: np.ndarray,
    numbers: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray,
) -> np.ndarray:
    """Σ |V|²/(ν ν′ ν″) {(1 + n′ + n″) decay + (n′ - n″) join} (T, B) over m pairs of wave vectors.

    `strength`, and the deltas `decay` and `join` (1/THz), are (m, B, B, B); `numbers` are Bose's of the
    second and the third wave, (T, m, B); `weights` (m,) count pairs that stand for several.
    """
    decay = np.einsum("mabc,mabc,m->mabc", strength, decay, weights, optimize=True)
    join = np.einsum("mabc,mabc,m->mabc", strength, join, weights, optimize=True)
    second, third = numbers
    return (
        decay.sum(axis=(0, 2, 3))
        + np.einsum("tmb,mabc->ta", second, decay + join, optimize=True)
        + np.einsum("tmc,mabc->ta", third, decay - join, optimize=True)
    )


# What turns sums of `rates` into Γ in THz, per wave vector of the mesh: ω = 2πν, δ(ω) = δ(ν)/2π, ħ = h/2π,
# and V² has (2πk THz)⁶ / eV with k = 15.63; all 2π cancel.
THZ_OF_RATES = np.pi / 16 * EV_PER_THZ * THZ_PER_ROOT_EV_PER_A2_U**6


def bose(thz: np.ndarray, temperatures: Sequence[float]) -> np.ndarray:
    """Bose's occupation numbers (T, …) of frequencies; 0 for those that are not above 0."""
    found = np.zeros((len(temperatures), *np.shape(thz)))
    for n, t in zip(found, temperatures, strict=True):
        if t > 0:
            with np.errstate(over="ignore"):
                x = thz * EV_PER_THZ * KELVIN_PER_EV / t
                np.divide(1, np.expm1(x), out=n, where=thz > 0)
    return found
