"""What do second derivatives lose in float32, the precision of TPUs?

    python -m benchmarks.single_precision [--model chgnet-0.3.0 m3gnet-matpes-pbe-2025.1 FILE.model]

For each model the largest differences from float64, over Si, NaCl and wurtzite ZnO, as they are and as
rattled cells of four atoms: of Hessians, of dynamical matrices, and of frequencies far from q = 0 and near
it. At 0 the three frequencies of uniform shifts should vanish; they are given as the columns have them, and
with the sum rule imposed, as it is in float32. All that was computed on the device that runs this. Others
round differently, and have to compute float32 in full, as `Potential.precision` asks of them.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from ase import Atoms
from ase.build import bulk

import jaxmlip
from jaxmlip.crystals import batching
from jaxmlip.derivatives.response import Response
from jaxmlip.phonons import bloch
from jaxmlip.potential import Potential
from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U

PUBLISHED = ("chgnet-0.3.0", "m3gnet-mp-2021.2.8", "m3gnet-matpes-pbe-2025.1")
RANDOM = "mace_random/mp0a_small.model"  # below JAXMLIP_WEIGHTS
# Four wave vectors, two near 0, 0 itself, and one that is 0 for all but the sum rule, which is for 0 alone.
FAR, NEAR, ZERO, ALMOST = slice(4), slice(4, 6), 6, 7
Q = np.concatenate(
    [
        np.random.default_rng(0).uniform(-0.5, 0.5, (4, 3)),
        [[0.02, 0, 0], [0.01, 0.01, 0], [0, 0, 0], [1e-12, 0, 0]],
    ]
)


@dataclass(frozen=True)
class Settings:
    """What do second derivatives lose in float32?"""

    model: tuple[str, ...] = PUBLISHED  # names, or files; and MACE of JAXMLIP_WEIGHTS, if that is set


def crystals() -> list[Atoms]:
    """Crystals near the minimum of the published models, and rattled ones."""
    salt, silicon = bulk("NaCl", "rocksalt", a=5.69), bulk("Si", "diamond", a=5.46)
    oxide = bulk("ZnO", "wurtzite", a=3.28, c=5.30, u=0.38)
    rattled = [silicon * (2, 1, 1), salt * (2, 1, 1), oxide.copy()]
    for k, atoms in enumerate(rattled):
        atoms.rattle(0.03, seed=k)
    return [silicon, salt, oxide, *rattled]


def frequencies(D: np.ndarray, atoms: Atoms) -> np.ndarray:
    """THz, ascending; imaginary ones are negative."""
    root = np.sqrt(np.repeat(atoms.get_masses(), 3))
    D = D / (root[:, None] * root)
    squares = np.linalg.eigvalsh((D + np.conj(D.swapaxes(-1, -2))) / 2)
    return np.sign(squares) * np.sqrt(np.abs(squares)) * THZ_PER_ROOT_EV_PER_A2_U


def differences(potential: Potential) -> list[float]:
    """The numbers of a line of the table."""
    every = crystals()
    exact = [batching.exact_shape([graph]) for graph in potential.graphs(every)]
    shape, rows = batching.BatchShape.covering(exact), []  # few programs
    for atoms in every:
        D, wanted = (
            bloch.matrices(Response(potential.astype(dtype), atoms, shape=shape), Q)
            for dtype in ("float32", "float64")
        )
        off, scale = np.abs(D - wanted).max(axis=(1, 2)), np.abs(wanted).max()
        thz, exact_thz = frequencies(D, atoms), frequencies(wanted, atoms)
        apart, shifts = np.abs(thz - exact_thz), np.sort(np.abs(thz), axis=1)[:, 2]
        of_matrices = off[ZERO], off[ZERO] / scale, off.max() / scale
        of_frequencies = apart[FAR].max(), apart[NEAR].max(), shifts[ALMOST], shifts[ZERO]
        rows.append((*of_matrices, *of_frequencies))
    return np.max(rows, axis=0).tolist()


COLUMNS = (
    "model",
    "Hessian / eV/Å²",
    "of its largest element",
    "D(q), of its largest element",
    "frequencies / THz",
    "near q = 0 / THz",
    "shifts at q = 0 / THz",
    "with the sum rule / THz",
)


def main(settings: Settings) -> None:
    warnings.simplefilter("ignore")
    models, folder = list(settings.model), os.environ.get("JAXMLIP_WEIGHTS")
    if settings.model == PUBLISHED and folder and (Path(folder) / RANDOM).is_file():
        models.append(str(Path(folder) / RANDOM))
    print(f"float32 against float64, jax {jax.__version__} on {jax.devices()[0].device_kind}\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    for model in models:
        found = differences(jaxmlip.load(model, "float64"))
        print(f"| {' | '.join([Path(model).name, *(f'{x:.0e}' for x in found)])} |", flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
