"""κ_SRME: how far conductivities are from DFT's, mode by mode, on the binaries of `phonondb`.

    SRME = 2 Σ_qs |κ_qs(model) - κ_qs(DFT)| / Σ_qs (κ_qs(model) + κ_qs(DFT))

κ_qs is what a mode has of the conductivity at 300 K, summed over the star of its wave vector, mean of xx, yy
and zz; modes are told apart by the order of their frequencies. SRME is 0 where all modes agree, and 2 where
one side has no conductivity, or the model has none that can be computed.

B. Póta, P. Ahlawat, G. Csányi and M. Simoncelli, arXiv:2408.00755.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms

from jaxmlip.crystals.symmetry import Mesh, reduced_mesh, space_group
from jaxmlip.data.readers.phonondb import MeshModes, read_rows
from jaxmlip.studies.phonondb import Material, material_of

if TYPE_CHECKING:
    from jaxmlip.phonons.transport import Conductivity

WORST = 2.0  # of a material without a conductivity
TEMPERATURE = 300.0  # K
SAME_SUM = 1e-6  # relative; between a conductivity and the sum of its modes
ANALYSIS_FILE = "matbench_discovery_kappa-103-analysis.jsonl"
LEVELS = 17  # quantiles of the frequencies of a material in that file
PUBLISHED_AS = {  # names in that file of models of this library
    "chgnet-0.3.0": "chgnet-0.3.0",
    "m3gnet-mp-2021.2.8": "m3gnet",
    "mace-mp-0a-medium": "mace-mp-0",
    "mace-mpa-0-medium": "mace-mpa-0",
}


@dataclass(frozen=True, eq=False)
class ModeConductivity(MeshModes):
    """What each mode of a mesh has of the conductivity."""

    shares: np.ndarray  # (q, branches), W/m/K; they add up to the conductivity times the sum of the weights

    @classmethod
    def of(cls, found: Conductivity) -> ModeConductivity:
        """The modes of a calculation, in order of frequency, at its first temperature."""
        order = np.argsort(found.thz, axis=1, kind="stable")
        shares = np.trace(found.modes[0], axis1=-2, axis2=-1) / 3
        ordered = (np.take_along_axis(x, order, axis=1) for x in (found.thz, shares))
        return cls(np.asarray(found.q_points), np.asarray(found.weights), *ordered)

    @property
    def kappa(self) -> float:
        """The conductivity, W/m/K."""
        return float(self.shares.sum() / self.weights.sum())

    def on(self, mesh: Mesh) -> np.ndarray:
        """The shares (irreducible, branches) in the order of the irreducible points of `mesh`.

        Raises ValueError as `representatives` does, or if two wave vectors are equivalent.
        """
        places = self.representatives(mesh)
        if len(np.unique(places)) < len(places):
            raise ValueError("found equivalent wave vectors twice, needed each once.")
        return self.shares[np.argsort(places)]


def srme(model: ModeConductivity, dft: ModeConductivity, mesh: Mesh) -> float:
    """The symmetric relative mean error of a model's modes, from 0 to 2.

    `mesh` is the mesh of both, reduced by the symmetry of the crystal: each wave vector is compared with that
    of the other side to which it is equivalent. Raises ValueError if these are not the same.
    """
    x, y = model.on(mesh), dft.on(mesh)
    if x.shape != y.shape:
        raise ValueError(f"found modes of shape {x.shape}, needed those of DFT, {y.shape}.")
    return float(2 * np.abs(x - y).sum() / (x.sum() + y.sum()))


@dataclass(frozen=True, eq=False)
class Reference:
    """A crystal whose conductivity DFT has, and how it was computed."""

    material: Material
    unit: Atoms  # the cell that the supercells repeat
    primitive: np.ndarray  # (3, 3), its columns are the primitive vectors in those of `unit`
    second: np.ndarray  # (3, 3) whole numbers, rows: the supercell of second-order constants
    third: np.ndarray  # of third-order ones
    dft: ModeConductivity

    @property
    def cubic(self) -> bool:
        return self.material.structure != "wurtzite"

    @property
    def mesh(self) -> Mesh:
        """The mesh of wave vectors, reduced by symmetry."""
        return reduced_mesh(self.material.mesh, space_group(self.material.atoms))


def read_references(folder: str | Path) -> list[Reference]:
    """The materials of k_SRME's files, with DFT's conductivity of each mode.

    Raises as `read_phonondb` does, and ValueError if the conductivities of modes are missing, not those of
    300 K, or do not add up to that of the crystal.
    """
    return [_reference(crystal, row) for crystal, row in read_rows(folder)]


def _reference(crystal: Atoms, row: dict[str, Any]) -> Reference:
    material, info = material_of(crystal, row), crystal.info
    name = f"{material.formula} ({material.id})"
    needed = ("mode_kappa_TOT_ave", "kappa_TOT_ave", "temperatures")
    absent = [key for key in needed if key not in row]
    absent += [key for key in ("fc2_supercell", "fc3_supercell") if key not in info]
    if absent:
        raise ValueError(f"{name} has no {', no '.join(absent)}. Take both files from the same commit.")
    thz = np.array(row["frequencies"])
    shares = np.array(row["mode_kappa_TOT_ave"])
    if row["temperatures"] != [TEMPERATURE] or shares.shape != (1, *thz.shape):
        raise ValueError(
            f"{name} has conductivities of modes of shape {shares.shape} at {row['temperatures']} K, needed "
            f"{(1, *thz.shape)} at {TEMPERATURE:g} K."
        )
    order = np.argsort(thz, axis=1, kind="stable")
    modes = material.modes
    shares = np.take_along_axis(shares[0], order, axis=1)
    dft = ModeConductivity(modes.q_points, modes.weights, modes.thz, shares)
    (total,) = row["kappa_TOT_ave"]
    if not abs(dft.kappa / total - 1) < SAME_SUM:
        raise ValueError(
            f"the modes of {name} add up to {dft.kappa:.6g} W/m/K, its conductivity is {total:.6g}."
        )
    unit = Atoms(crystal.numbers, crystal.positions, cell=crystal.cell, pbc=True)
    matrices = (np.array(info.get("primitive_matrix", np.eye(3))), *_supercells(info))
    return Reference(material, unit, *matrices, dft)


def _supercells(info: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    # phonopy's matrices have the vectors as columns.
    second, third = (np.array(info[f"fc{n}_supercell"], int).T for n in (2, 3))
    return second, third


def drawn(
    references: Sequence[Reference], seed: int, cubic: int | None, wurtzite: int | None
) -> list[Reference]:
    """So many cubic and wurtzite crystals (None: all), drawn at random, in the order of the data set.

    A larger number adds to what a smaller one draws. Raises ValueError if there are not as many.
    """
    rng, kept = np.random.default_rng(seed), set()
    for name, most, is_cubic in (("cubic", cubic, True), ("wurtzite", wurtzite, False)):
        its = [r.material.id for r in references if r.cubic is is_cubic]
        order = rng.permutation(len(its))
        if most is not None and most > len(its):
            raise ValueError(f"found --{name} {most}, needed at most {len(its)}, which the data set has.")
        kept |= {its[k] for k in order[:most]}
    return [r for r in references if r.material.id in kept]


class Published(NamedTuple):
    """What Matbench Discovery has of a model on a material, without the non-analytical correction."""

    kappa: float | None  # W/m/K; None where it was refused
    srme: float
    mean_ratio: float | None  # of the mean of LEVELS quantiles of all frequencies, model / DFT


def read_published(folder: str | Path) -> dict[str, dict[str, Published]]:
    """Published results by model and by the id of the material.

    Models that this library has are under its names, others under those of Matbench Discovery. They are in a
    file of Matbench Discovery's; without it there are none. Raises ValueError if it has another layout.
    """
    path = Path(folder) / ANALYSIS_FILE
    if not path.is_file():
        return {}
    first, *models = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    ids, names = first["_base"]["material_ids"], {key: name for name, key in PUBLISHED_AS.items()}
    found = {}
    for model in models:
        columns = zip(ids, model["kappa_ml"], model["srme"], _mean_ratios(model), strict=True)
        found[names.get(model["key"], model["key"])] = {mp_id: Published(*rest) for mp_id, *rest in columns}
    return found


def _mean_ratios(model: dict[str, Any]) -> list[float | None]:
    """The ratios of materials with frequencies; the file has quantiles of these alone, one after another."""
    known = [distance is not None for distance in model["freq_w1"]]
    dft, its = (np.maximum(model["freq_pairs"][side], 0.0) for side in ("dft", "ml"))
    if not len(dft) == len(its) == LEVELS * sum(known):
        raise ValueError(
            f"{ANALYSIS_FILE} has {len(its)} frequencies of {model['key']}, needed {LEVELS} for each of "
            f"{sum(known)} materials. Take the file of the commit that the data are of."
        )
    ratios = iter((its.reshape(-1, LEVELS).mean(axis=1) / dft.reshape(-1, LEVELS).mean(axis=1)).tolist())
    return [next(ratios) if there else None for there in known]
