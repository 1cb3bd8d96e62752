"""How far are the converted models from the recorded originals?

python -m benchmarks.parity [--dtype float64]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from ase import Atoms

import jaxmlip

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
UNITS = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³", "magmoms": "μB", "hessian": "eV/Å²"}


@dataclass(frozen=True)
class Settings:
    dtypes: tuple[Literal["float32", "float64"], ...] = ("float64", "float32")


def main(settings: Settings) -> None:
    print("| model | dtype | " + " | ".join(f"{q} ({u})" for q, u in UNITS.items()) + " |")
    print("|---|---|" + "---|" * len(UNITS))
    for path in sorted(GOLDEN.glob("*.npz")):
        for dtype in settings.dtypes:
            worst = differences(path, dtype)
            print(f"| {path.stem} | {dtype} | " + " | ".join(f"{worst[q]:.0e}" for q in UNITS) + " |")


def differences(path: Path, dtype: str) -> dict[str, float]:
    """The largest difference of each quantity over the recorded crystals."""
    potential = jaxmlip.load(path.stem, dtype)
    values: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as archive:
        for key in archive.files:
            if "/" in key:
                crystal, quantity = key.split("/")
                values.setdefault(crystal, {})[quantity] = archive[key]
    crystals = [
        Atoms(v["numbers"], positions=v["positions"], cell=v["cell"], pbc=True) for v in values.values()
    ]
    worst = dict.fromkeys(UNITS, 0.0)
    for atoms, found, wanted in zip(crystals, potential.predict(crystals), values.values(), strict=True):
        if "hessian" in wanted:
            found["hessian"] = jaxmlip.hessian(potential, atoms)
        for quantity in set(UNITS) & set(wanted):
            scale = len(atoms) if quantity == "energy" else 1
            difference = np.abs(found[quantity] - wanted[quantity]).max() / scale
            worst[quantity] = max(worst[quantity], float(difference))
    return worst


if __name__ == "__main__":
    main(tyro.cli(Settings))
