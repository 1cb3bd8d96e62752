"""One HTML file that shows phonons: bands, density of states, and the cell in the motion of a mode.

page.html beside this file is the template: it holds our styles and our script. The JavaScript of plotly,
which draws, is written into the page, so that the page loads nothing.
"""

from __future__ import annotations

import base64
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import ArrayLike

from jaxmlip.phonons.bloch import position_phases
from jaxmlip.phonons.density import Density
from jaxmlip.phonons.imaginary import AT_REST
from jaxmlip.phonons.modes import Bands, Modes, label, period, ticks
from jaxmlip.system.borders import printable
from jaxmlip.system.plots import COLOURS
from jaxmlip.units import EV_PER_THZ, PER_CM_PER_THZ

TEMPLATE = Path(__file__).with_name("page.html")
AMPLITUDE = 0.3  # Å, of the atom that moves most
CELLS, ATOMS = 6, 240  # at most: cells along each lattice vector, and atoms, that a page moves
STEPS = 127  # of one byte with a sign, for the largest displacement: 0.002 Å each


def page(
    bands: Bands,
    density: Density | None = None,
    *,
    model: str = "",
    functional: str = "",
    source: str = "",
    mode: tuple[int, int] | None = None,
) -> str:
    """HTML with bands that tell what they are, a density of states, and the cell in the motion of a mode.

    `model`, `functional` and `source`, the name of a file, are written at its head. `mode` is the one that is
    shown first: the numbers of its wave vector and of its branch. Default: the lowest if it is imaginary,
    otherwise the highest. Raises ImportError if plotly is missing.
    """
    script = plotly_script()
    formula = bands.modes.primitive.get_chemical_formula("metal")
    title = ", ".join(filter(None, (f"Phonons of {formula}", model, functional)))
    how = (source, bands.modes.method, density.method if density is not None else "")
    shown = as_record(bands, density) | {"first": list(_first(bands) if mode is None else mode)}
    parts = {
        "title": escape(printable(title)),
        "subtitle": escape("; ".join(printable(each) for each in how if each)),
        "data": in_script(shown),
        "plotly": script,
    }
    # One pass: what is put in is never searched for other marks.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], TEMPLATE.read_text(encoding="utf-8"))


def plotly_script() -> str:
    """The JavaScript of plotly. Raises ImportError, with what to install, if plotly is missing."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(
            f"plotly is needed to write a page and cannot be imported ({error}). Install it with "
            "pip install 'jaxmlip[html]'."
        ) from None
    return get_plotlyjs()


def in_script(record: Any) -> str:
    """JSON for a script element, which no text in it can end."""
    text = json.dumps(record, separators=(",", ":"), allow_nan=False)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def as_record(bands: Bands, density: Density | None = None) -> dict[str, Any]:
    """What the script of the page draws, rounded to what a screen shows.

    `modes` has for each wave vector the displacements of its modes in cell 0 as base64 of int8 (3n, n, 3, 2):
    branches, atoms, directions, real and imaginary part, the largest of each mode 127. Those in cell R
    have the phase e^{2πi q·R} to them.
    """
    modes = bands.modes
    atoms, (places, names) = modes.primitive, ticks(bands)
    kinds = list(dict.fromkeys(atoms.numbers.tolist()))
    return {
        "per_cm": PER_CM_PER_THZ,
        "meV": 1e3 * EV_PER_THZ,
        "imaginary_below": AT_REST,
        "amplitude": AMPLITUDE,
        "bands": {
            "distance": _rounded(bands.distance, 4),
            "q_points": _rounded(modes.q_points, 6),
            "frequencies": _rounded(modes.frequencies, 3),
            "segments": [[label(s.first), label(s.last), s.rows.start, s.rows.stop] for s in bands.segments],
            "ticks": [_rounded(places, 4), names],
            "repeats": [repeats(q, atoms.pbc, len(atoms)) for q in modes.q_points],
        },
        "modes": _displacements(modes),
        "elements": [
            {
                "symbol": chemical_symbols[z],
                "radius": round(float(covalent_radii[z]), 2),
                "colour": COLOURS[(k + 1) % len(COLOURS)],
            }
            for k, z in enumerate(kinds)
        ],
        "cell": {
            "vectors": _rounded(atoms.cell.array, 4),
            "positions": _rounded(atoms.positions, 4),
            "elements": [kinds.index(z) for z in atoms.numbers],
        },
        "density": None if density is None else _density(density, atoms.numbers, kinds),
    }


def repeats(q: np.ndarray, pbc: np.ndarray, atoms: int) -> list[int]:
    """How many cells of `atoms` atoms along each lattice vector show the wave q.

    At least two; as many as it repeats after, or as one wavelength is long, up to CELLS and ATOMS.
    """
    found = [max(2, _long_enough(x)) if repeated else 1 for x, repeated in zip(q, pbc, strict=True)]
    while max(found) > 1 and atoms * np.prod(found) > ATOMS:
        found[int(np.argmax(found))] -= 1
    return found


def _long_enough(q: float) -> int:
    cells = period(q, CELLS + 1)
    return cells if cells <= CELLS else min(CELLS, int(np.ceil(1 / abs(q - round(q)))))


def _first(bands: Bands) -> tuple[int, ...]:
    f = bands.modes.frequencies
    number = f.argmin() if f.min() < AT_REST else f.argmax()
    return tuple(map(int, np.unravel_index(number, f.shape)))


def _rounded(x: ArrayLike, digits: int) -> list:
    return (np.round(x, digits) + 0.0).tolist()  # no -0.0


def _density(density: Density, numbers: np.ndarray, kinds: list[int]) -> dict[str, Any]:
    return {
        "thz": _rounded(density.thz, 3),
        "total": _rounded(density.total, 4),
        "elements": [_rounded(density.projected[numbers == z].sum(axis=0), 4) for z in kinds],
    }


def _displacements(modes: Modes) -> list[str]:
    root = np.sqrt(modes.primitive.get_masses())[:, None]
    found = []
    phases = position_phases(modes.primitive, modes.q_points)
    for turn, vectors in zip(phases, modes.eigenvectors, strict=True):
        size = len(vectors)
        u = (turn[:, None] * vectors).T.reshape(size, -1, 3) / root
        u /= np.linalg.norm(u, axis=2).max(axis=1)[:, None, None]
        # The motion starts where it is largest, so that a mode that stands still is seen.
        flat = u.reshape(size, -1)
        most = flat[np.arange(size), np.abs(flat).argmax(axis=1)]
        u *= (most.conj() / np.abs(most))[:, None, None]
        steps = np.rint(STEPS * np.stack([u.real, u.imag], axis=-1)).astype(np.int8)
        found.append(base64.b64encode(steps.tobytes()).decode())
    return found
