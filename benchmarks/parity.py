"""How far are the converted models from the recorded originals?

    python -m benchmarks.parity [--dtypes float64]

The values of CHGNet are those in tests/golden; those of M3GNet, of its form with right bond numbers, are read
from m3gnet.npz and structures.json in the folder JAXMLIP_REFERENCE, if that is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from ase import Atoms
from ase.io.jsonio import read_json

import jaxmlip
from weights_convert.published import MODELS

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
UNITS = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³", "magmoms": "μB", "hessian": "eV/Å²"}


@dataclass(frozen=True)
class Settings:
    dtypes: tuple[Literal["float32", "float64"], ...] = ("float64", "float32")
    hessian_atoms: int = 3  # of the largest crystals whose Hessians are compared; each compiles programs


Recorded = dict[str, np.ndarray]  # quantity -> values


def main(settings: Settings) -> None:
    print("| model | dtype | " + " | ".join(f"{q} ({u})" for q, u in UNITS.items()) + " |")
    print("|---|---|" + "---|" * len(UNITS))
    for name, crystals, values in recorded():
        for dtype in settings.dtypes:
            worst = differences(name, dtype, crystals, values, settings.hessian_atoms)
            cells = (f"{worst[q]:.0e}" if q in worst else "" for q in UNITS)
            print(f"| {name} | {dtype} | " + " | ".join(cells) + " |", flush=True)


def recorded() -> Iterator[tuple[str, list[Atoms], list[Recorded]]]:
    """Each model with the crystals, and the values of its original for them."""
    for path in sorted(GOLDEN.glob("*.npz")):
        values = list(by_crystal(path, "").values())
        crystals = [Atoms(v["numbers"], positions=v["positions"], cell=v["cell"], pbc=True) for v in values]
        yield path.stem, crystals, values
    folder = os.environ.get("JAXMLIP_REFERENCE")
    if folder:
        structures = read_json(Path(folder) / "structures.json")
        for name, source in MODELS.items():
            if source.architecture == "m3gnet":
                values = by_crystal(Path(folder) / "m3gnet.npz", source.origin.folder + "/")
                yield name, [structures[crystal] for crystal in values], list(values.values())


def by_crystal(path: Path, prefix: str) -> dict[str, Recorded]:
    """The values in `path` under PREFIX/crystal/quantity."""
    values: dict[str, Recorded] = {}
    with np.load(path) as archive:
        for key in archive.files:
            crystal, _, quantity = key.removeprefix(prefix).partition("/")
            if key.startswith(prefix) and quantity:
                values.setdefault(crystal, {})[quantity] = archive[key]
    return values


def differences(
    name: str, dtype: str, crystals: list[Atoms], values: list[Recorded], hessian_atoms: int
) -> dict[str, float]:
    """The largest difference of each quantity over the crystals; energies per atom."""
    potential = jaxmlip.load(name, dtype)
    worst: dict[str, float] = {}
    for atoms, found, wanted in zip(crystals, potential.predict(crystals), values, strict=True):
        if "hessian" in wanted and len(atoms) <= hessian_atoms:
            found["hessian"] = jaxmlip.hessian(potential, atoms)
        for quantity in set(UNITS) & set(wanted) & set(found):
            scale = len(atoms) if quantity == "energy" else 1
            difference = np.abs(found[quantity] - wanted[quantity]).max() / scale
            worst[quantity] = max(worst.get(quantity, 0.0), float(difference))
    return worst


if __name__ == "__main__":
    main(tyro.cli(Settings))
