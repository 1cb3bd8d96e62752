"""Frames with DFT forces, by what was done to the crystal: heated, molten, strained, displaced, reordered.

Each reader takes a folder (or file) of a public data set and gives its frames by group and material, with
remarks on what it left out. Names in the files are checked against the frames and ignored if they disagree:
whether a frame is molten is measured, because mlearn's vacancy frames have interchanged temperatures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms

from experiments.datasets import read
from jaxmlip.data.labels import LabelError, LabelledCrystal
from jaxmlip.studies.softening_scale import Frame
from jaxmlip.units import GPA_PER_EV_PER_A3

COLD, HOT, MELT, VACANCY = "crystal 300 K", "hot crystal", "melt", "vacancy"
STRAINED, UNRELAXED, RELAXED = "strained", "unrelaxed alloy", "relaxed alloy"
OXIDE, METAL, SMALL, WBM = "displaced oxide", "displaced metal", "small displacement", "WBM high-energy"
GROUPS = {  # in the order of tables and figures
    COLD: "molecular dynamics at 300 K (mlearn, maml)",
    HOT: "molecular dynamics above 300 K that is still a crystal (mlearn, maml)",
    MELT: "molecular dynamics that is no crystal any more (mlearn, maml)",
    VACANCY: "molecular dynamics of a crystal with a vacancy (mlearn)",
    STRAINED: "elastic strains that leave forces, and 300 K at 90 % or 110 % of the volume (mlearn, maml)",
    UNRELAXED: "binary alloys on an ideal lattice (maml)",
    OXIDE: "random displacements and volumes (pypolymlp: MgO, SrTiO3)",
    METAL: "random displacements, strains and prototypes (pypolymlp: Ag, Au, AgAu)",
    WBM: "molecular dynamics of CHGNet at 1000 K (WBM, figshare 27307776)",
    RELAXED: "binary alloys at rest in DFT (maml)",
    SMALL: "displacements of phonon calculations with PBE (phonopy, phono3py)",
}
AT_REST = (RELAXED, SMALL)  # the other groups are off equilibrium
ORDERED = 0.7  # of `lattice_order`: crystals here have 0.76 to 1, melts 0.26 to 0.65
QUIET = 0.01  # eV/Å (rms); strained cells below it have forces of zero by symmetry
OXIDES, METALS = ("MgO", "SrTiO3"), ("Ag_standard", "Au_standard", "AgAu_disp")


@dataclass
class Grouped:
    """Frames by (group, material), reasons for unreadable ones likewise, and remarks on what was left out."""

    frames: dict[tuple[str, str], list[Frame]] = field(default_factory=dict)
    broken: dict[tuple[str, str], str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, group: str, material: str, crystal: LabelledCrystal) -> None:
        frame = Frame(crystal.name, crystal.atoms, crystal.labels.forces)
        self.frames.setdefault((group, material), []).append(frame)

    def join(self, other: Grouped) -> None:
        self.frames |= other.frames
        self.broken |= other.broken
        self.left_out += other.left_out


def lattice_order(atoms: Atoms) -> float:
    """The remaining lattice order: max |Σ exp(iG·r)| / N over reciprocal vectors G of the cell.

    1 for a perfect Bravais lattice, the Debye-Waller factor of the strongest reflection for a vibrating one,
    0.2 to 0.6 for a liquid of 50 to 100 atoms. Only G of the first reflections count, those of
    4 < |G| (V/N)^(1/3) < 9; cells of a few atoms always have a large value.
    """
    length = (atoms.get_volume() / len(atoms)) ** (1 / 3)
    reciprocal = 2 * np.pi * np.asarray(atoms.cell.reciprocal())
    reach = [int(9 / length * np.linalg.norm(a) / (2 * np.pi)) for a in atoms.cell.array]
    axes = [np.arange(-n, n + 1) for n in reach]
    size = np.linalg.norm(np.stack(np.meshgrid(*axes, indexing="ij"), -1) @ reciprocal, axis=-1) * length
    # e^{iG·r} is the product of a wave along each axis.
    x, y, z = (
        np.exp(2j * np.pi * np.outer(s, n)) for s, n in zip(atoms.get_scaled_positions().T, axes, strict=True)
    )
    waves = x.T @ (y[:, :, None] * z[:, None, :]).reshape(len(atoms), -1) / len(atoms)
    return float(np.abs(waves.reshape(size.shape)[(size > 4) & (size < 9)]).max(initial=0))


def mlearn(folder: Path) -> Grouped:
    """Molecular dynamics, vacancies and strains of elements. Surfaces are left out: they are relaxed."""
    found = Grouped()
    for name, crystals in _files(folder):
        for crystal in crystals:
            info = crystal.atoms.info
            group = _mlearn_group(crystal, info.get("group"), str(info.get("description", "")), info)
            if group is not None:
                found.add(group, f"mlearn/{name}", crystal)
    return found


def _mlearn_group(crystal: LabelledCrystal, kind: str | None, description: str, info) -> str | None:
    if kind == "Elastic":
        return STRAINED if np.sqrt(np.mean(crystal.labels.forces**2)) > QUIET else None
    if kind not in ("AIMD-NVT", "Vacancy"):
        return None
    if lattice_order(crystal.atoms) < ORDERED:
        return MELT
    if kind == "Vacancy":
        return VACANCY
    if info["temperature_K"] > 300:
        return HOT
    return STRAINED if re.search("expanded|shrunken", description) else COLD


def maml(folder: Path) -> Grouped:
    """Molecular dynamics of Mo, Nb, Ta, W and their alloy, and binary alloys before and after relaxation.

    Strained cells have two atoms and no forces; surfaces are relaxed: both are left out.
    """
    found = Grouped()
    for name, crystals in _files(folder, r"(?P<system>\w+)_(AIMD|SS|Test)"):
        for crystal in crystals:
            group = _maml_group(crystal.atoms, str(crystal.atoms.info.get("notes", "")))
            if group is not None:
                found.add(group, f"maml/{name.replace('Multinary', 'MoNbTaW')}", crystal)
    return found


def _maml_group(atoms: Atoms, notes: str) -> str | None:
    if notes.startswith(("relax", "unrelax")):
        return RELAXED if notes.startswith("relax") else UNRELAXED
    # Md=300-37, Md_90=300-3, Md_90=-3, Md=md-1000-3, Md=md110-300-4
    parts = re.match(r"Md(?:_(?P<a>90|110))?=(?:md(?P<b>90|110)?-)?(?P<temperature>\d+)?", notes)
    if parts is None:
        return None
    if lattice_order(atoms) < ORDERED:
        return MELT
    if parts["a"] or parts["b"]:
        return STRAINED
    return COLD if float(parts["temperature"] or 0) <= 300 else HOT


def pypolymlp(folder: Path, max_pressure: float, max_energy: float) -> Grouped:
    """Frames of |pressure| up to `max_pressure` (GPa) and energies up to `max_energy` (eV/atom).

    Energies are above the lowest of the same composition.
    """
    found = Grouped()
    for group, names in ((OXIDE, OXIDES), (METAL, METALS)):
        for name, crystals in _files(folder, f"(?P<system>{'|'.join(names)})"):
            energies: dict[str, list[float]] = {}
            for c in crystals:
                energies.setdefault(c.material, []).append(c.labels.energy / len(c.atoms))
            kept = [
                c
                for c in crystals
                if abs(np.trace(c.labels.stress)) / 3 * GPA_PER_EV_PER_A3 <= max_pressure
                and c.labels.energy / len(c.atoms) - min(energies[c.material]) <= max_energy
            ]
            if len(kept) < len(crystals):
                found.left_out.append(
                    f"pypolymlp/{name}: {len(crystals) - len(kept)} of {len(crystals)} frames are beyond "
                    f"{max_pressure:g} GPa or {max_energy:g} eV/atom"
                )
            for crystal in kept:
                found.add(group, f"pypolymlp/{name.split('_')[0]}", crystal)
    return found


def phonopy(folder: Path) -> Grouped:
    """Displacements of 0.01 to 0.1 Å with PBE, by the first part of the files' names."""
    found = Grouped()
    for name, crystals in _files(folder, r"(?P<system>\w+?)(-.+)?__PBE"):
        for crystal in crystals:
            found.add(SMALL, f"phonopy/{name}", crystal)
    return found


def wbm(path: Path) -> Grouped:
    """WBM high-energy states, {material: {frame: {structure, vasp_f, …}}}: a file, or a folder of such.

    A material is broken if one of its frames cannot be used.
    """
    from jaxmlip.data.readers import read_labelled

    found = Grouped()
    for crystal in read_labelled(path, "wbm", properties=("forces",), checked=False):
        key = (WBM, crystal.material)
        try:
            if crystal.labels.forces is None:
                raise LabelError(f"{crystal.name}: found no forces, needed vasp_f.")
            found.add(*key, crystal.checked())
        except LabelError as error:
            found.broken[key] = str(error)
    found.frames = {key: frames for key, frames in found.frames.items() if key not in found.broken}
    return found


READERS: dict[str, Callable[..., Grouped]] = {  # by folder of the data
    "mlearn": mlearn,
    "maml_MoNbTaW": maml,
    "pypolymlp_vasp": pypolymlp,
    "phonopy_displaced_extxyz": phonopy,
    "wbm_high_energy": wbm,
}


def _files(
    folder: Path, name: str = r"(?P<system>[A-Z][a-z]?)"
) -> Iterator[tuple[str, list[LabelledCrystal]]]:
    """The systems and frames of the extxyz files of a folder whose names match `name`."""
    for path in sorted(folder.iterdir()):
        if parts := re.fullmatch(f"(?:{name})" + r"\.extxyz(\.gz)?", path.name):
            yield parts["system"], read(path)
