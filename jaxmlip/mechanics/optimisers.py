"""Optimisers for one crystal, a step at a time: `relaxation` moves atoms and cell by them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Method(Protocol):
    """An optimiser for one crystal."""

    def step(self, x: np.ndarray, force: np.ndarray) -> np.ndarray:
        """The next coordinates after x, given the force there; both are (n, 3)."""


class LBFGS:
    """Limited-memory BFGS, Liu & Nocedal, Math. Program. 45, 503 (1989), without a line search.

    The inverse Hessian of the two loops starts as γ = sᵀy / yᵀy of the last step (Nocedal & Wright, Numerical
    Optimization, 2nd ed., algorithm 7.4 and eq. 7.20), so only the first step needs a guess. If the curvature
    along a step is not positive, the history is cleared.
    """

    MEMORY = 30
    STIFFNESS = 30.0  # eV/Å², for the first step: few bonds are stiffer

    def __init__(self):
        self.pairs: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=self.MEMORY)
        self.before: tuple[np.ndarray, np.ndarray] | None = None

    def step(self, x: np.ndarray, force: np.ndarray) -> np.ndarray:
        if self.before is not None:
            s, y = x - self.before[0], self.before[1] - force
            if np.vdot(s, y) > 0:
                self.pairs.append((s, y))
            else:
                self.pairs.clear()
        self.before = x.copy(), force
        q, shares = force.copy(), []
        for s, y in reversed(self.pairs):
            shares.append(np.vdot(s, q) / np.vdot(s, y))
            q -= shares[-1] * y
        if self.pairs:
            s, y = self.pairs[-1]
            q *= np.vdot(s, y) / np.vdot(y, y)
        else:
            q /= self.STIFFNESS
        for (s, y), share in zip(self.pairs, reversed(shares), strict=True):
            q += (share - np.vdot(y, q) / np.vdot(s, y)) * s
        return q


class FIRE:
    """FIRE, Bitzek et al., PRL 97, 170201 (2006), as FIRE 2.0, Guénolé et al., Comput. Mater. Sci. 175,
    109584 (2020): half a step back when the path turns uphill, then semi-implicit Euler.

    The factors, the first α and the ratio of the shortest to the first time step are those of FIRE 2.0, N_min
    is that of 2006. All masses are 1, so that time has the unit Å / √eV.
    """

    F_INC, F_DEC, F_ALPHA, ALPHA, N_MIN = 1.1, 0.5, 0.99, 0.25, 5
    DT, DT_MIN, DT_MAX = 0.2, 0.004, 1.0

    def __init__(self):
        self.v: np.ndarray | float = 0.0
        self.dt, self.alpha, self.downhill = self.DT, self.ALPHA, 0

    def step(self, x: np.ndarray, force: np.ndarray) -> np.ndarray:
        back = np.zeros_like(force)
        if np.sum(force * self.v) > 0:
            self.downhill += 1
            if self.downhill > self.N_MIN:
                self.dt = min(self.dt * self.F_INC, self.DT_MAX)
                self.alpha *= self.F_ALPHA
        elif np.any(self.v):
            back = -0.5 * self.dt * self.v
            self.dt = max(self.dt * self.F_DEC, self.DT_MIN)
            self.v, self.alpha, self.downhill = 0.0, self.ALPHA, 0
        v = self.v + self.dt * force
        self.v = (1 - self.alpha) * v + self.alpha * np.linalg.norm(v) / np.linalg.norm(force) * force
        return back + self.dt * self.v


METHODS: dict[str, Callable[[], Method]] = {"LBFGS": LBFGS, "FIRE": FIRE}
