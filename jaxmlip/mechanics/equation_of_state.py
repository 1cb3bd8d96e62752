"""Equations of state: the energy of a crystal against its volume, and its bulk modulus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxmlip.crystals import batches, batching
from jaxmlip.crystals.atoms import repeating
from jaxmlip.system.progress import track

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

    from jaxmlip.potential import Potential

ROUNDS = 6  # searches for the minimum before giving up
FARTHEST = 1.2  # largest factor in volume of one search


class EquationOfState(NamedTuple):
    """E(V) of F. Birch, Phys. Rev. 71, 809 (1947), to third order in the strain."""

    volume: float  # V₀, Å³
    energy: float  # eV, at V₀
    bulk_modulus: float  # B₀, eV/Å³
    derivative: float  # B₁ = dB/dp at V₀

    def bulk_modulus_at(self, volume: float) -> float:
        """V d²E/dV² in eV/Å³."""
        y = (self.volume / volume) ** (2 / 3)
        scale = 9 * self.volume * self.bulk_modulus / 16
        first = scale * (4 * (y - 1) + 3 * (self.derivative - 4) * (y - 1) ** 2)
        second = scale * (4 + 6 * (self.derivative - 4) * (y - 1))
        return (4 * y**2 * second + 10 * y * first) / (9 * volume)


def birch_murnaghan(volumes: Float[np.ndarray, " n"], energies: Float[np.ndarray, " n"]) -> EquationOfState:
    """The equation of state nearest to `energies` (eV) at `volumes` (Å³), by linear least squares.

    E is a cubic polynomial in V^(-2/3), so that no initial guess is needed. Raises ValueError for fewer than
    four volumes, numbers that are not finite, and if the polynomial has no minimum.
    """
    V, E = np.asarray(volumes, float), np.asarray(energies, float)
    if len(V) < 4 or len(V) != len(E) or not np.isfinite([V, E]).all() or V.min() <= 0:
        raise ValueError(f"found energies {E} at volumes {V}, needed four or more, finite.")
    middle = V.mean()
    x = (V / middle) ** (-2 / 3)
    # Scaled to about 1, where the powers differ.
    cubic = np.polynomial.Polynomial.fit(x, E - E.mean(), 3).convert()
    x0 = _minimum(cubic)
    if x0 is None or np.ptp(E) <= 64 * np.finfo(float).eps * np.abs(E).max():
        raise ValueError(f"E(V) has no minimum near {V.min():.4g} to {V.max():.4g} Å³.")
    V0 = middle * x0**-1.5
    second, third = x0**2 * cubic.deriv(2)(x0), x0**3 * cubic.deriv(3)(x0)
    numbers = (V0, cubic(x0) + E.mean(), 4 / 9 * second / V0, 4 + 2 / 3 * third / second)
    return EquationOfState(*map(float, numbers))


def _minimum(cubic: np.polynomial.Polynomial) -> float | None:
    """Where a polynomial of third degree or less has its minimum above zero."""
    c = cubic.deriv().coef
    constant, linear, square = np.pad(c, (0, 3 - len(c)))
    below = linear**2 - 4 * square * constant
    if not below > 0 or max(linear, square) <= 0:
        return None
    # Of two forms of one root the one that subtracts nothing: at B₁ = 4 the cubic term is zero but for its
    # last digits, and a general solver of polynomials divides by it.
    root = np.sqrt(below)
    x = -2 * constant / (linear + root) if linear > 0 else (root - linear) / (2 * square)
    return float(x) if x > 0 else None


def equations_of_state(
    potential: Potential,
    crystals: Iterable[Atoms | Structure],
    *,
    span: float = 0.06,
    points: int = 7,
    shapes: Sequence[batching.BatchShape] = (),
) -> list[EquationOfState | ValueError]:
    """The equation of state of each crystal, in the same order; its fractional coordinates are kept.

    It is fitted to `points` energies between 1 - `span` and 1 + `span` times the volume of the crystal. If
    the minimum lies beyond them, it is fitted again around it. If none is found, the result is a ValueError.
    All crystals are computed in batches, in the `shapes` if given (see `batches.side_by_side`). Use a
    potential of dtype "float64": differences of energies are small.

    Raises ValueError as `elastic_tensors` does.
    """
    every = repeating(crystals, "equations of state")
    centres = [atoms.get_volume() for atoms in every]
    found: list[EquationOfState | ValueError] = [ValueError()] * len(every)
    searching = list(range(len(every)))
    for _ in range(ROUNDS):
        volumes = [centres[k] * np.linspace(1 - span, 1 + span, points) for k in searching]
        scaled = [
            _scaled(every[k], V) for k, several in zip(searching, volumes, strict=True) for V in several
        ]
        graphs = [potential.graph(atoms) for atoms in track(scaled, "neighbours")]
        predictions = batches.predicted(potential, graphs, shapes=shapes, what="energies")
        energies = np.reshape([p["energy"] for p in predictions], (len(searching), points))
        left = []
        for k, V, E in zip(searching, volumes, energies, strict=True):
            try:
                found[k] = birch_murnaghan(V, E)
            except ValueError as error:
                found[k] = error
                towards = _downhill(V, E)
            else:
                towards = found[k].volume
            if towards is not None and not V[0] < towards < V[-1]:
                centres[k] = float(np.clip(towards, centres[k] / FARTHEST, centres[k] * FARTHEST))
                left.append(k)
        searching = left
        if not searching:
            break
    for k in searching:
        found[k] = ValueError(f"no minimum of E(V) was found down or up to {centres[k]:.4g} Å³.")
    return found


def _downhill(V, E) -> float | None:
    """A volume beyond the end of V at which E is lower; None if E does not tell."""
    if not np.isfinite(E).all() or np.ptp(E) == 0:
        return None
    return V[0] / FARTHEST if E[0] < E[-1] else V[-1] * FARTHEST


def _scaled(atoms: Atoms, volume: float) -> Atoms:
    moved = atoms.copy()
    moved.set_cell(atoms.cell * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    return moved
