"""Data of the studies of transfer and of training, small, whose functionals are known.

Each function lays the data into a folder and returns the settings of a small run.
"""

import gzip
import io
import json
import warnings
from dataclasses import replace
from pathlib import Path

import ase.io
import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import QUICK, small_potential

from experiments.transfer.energy_pairs import DIMERS, ELEMENTS
from jaxmlip.crystals.graph import Cutoffs
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.writing import write_dataset
from small_studies.softening import OWN, PAIRS, STAND_INS, labelled, lay, rattled

TINY = {name: {"bond_cutoff": 5.0, "angle_cutoff": 4.0} for name in ("m3gnet", "chgnet")}  # quick networks
SMALL = ("bond_cutoff=4.0", "angle_cutoff=3.0")
SHIFT = {11: -3.0, 12: -1.0, 17: 2.0, 8: -9.0}  # eV, of the target's elements
PBE, R2SCAN = "teacher-pbe", "teacher-r2scan"
ENTRIES = {
    "Mg": (("mp-1", "mp-1"), (-1.5, -5.0), -1.5),
    "Al": (("mp-2", "mp-2"), (-3.7, -9.0), -3.4),
    "Ti": (("mp-3", "mp-3"), (-7.8, -20.0), -5.0),
    "O": (("mp-4", "mp-5"), (-4.9, -6.0), -2.6),
}
LOOSE = {"max_force": 1e3, "max_energy": 1e3, "max_pressure": 1e6, "relax_steps": 0}  # for random networks
FEW = {
    "structures": 40,
    "part": 4,
    "seed": 7,
    "strained": 1,
    "rattled": 2,
    "md": 1,
    "element": ("Mg", "O", "Al"),
}


def write_elements(folder: Path, **entries) -> None:
    folder.mkdir(parents=True)
    for k, functional in enumerate(("PBE", "r2SCAN")):
        whole = {
            symbol: {"matpes_id": ids[k], "energy_per_atom": total[k], "energy_atomic": total[k] - cohesive}
            for symbol, (ids, total, cohesive) in entries.items()
        }
        path = folder / f"MatPES-{functional}-Element-Refs.json.gz"
        path.write_bytes(gzip.compress(json.dumps(whole).encode()))


def write_dimers(folder: Path, moved: float = 0.0) -> None:
    folder.mkdir(parents=True)
    for functional, shift in (("PBE", 0.0), ("r2SCAN", 1.0)):
        frames = []
        for symbol, own in (("H", 1.0), ("O", -20.0)):
            for d in (0.8, 1.0, 1.5, 2.0):
                at = [[0, 0, 0], [d + (moved if shift else 0), 0, 0]]
                atoms = Atoms([symbol] * 2, at, cell=[9, 9, 9], pbc=True)
                force = np.array([[-1.0, 0, 0], [1.0, 0, 0]]) * (30 if d == 0.8 else 1 / d)
                energy = own * (1 + shift) + 1 / d
                atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=force)
                frames.append(atoms)
        text = io.StringIO()
        ase.io.write(text, frames, format="extxyz")
        (folder / f"paired_{functional}.extxyz.gz").write_bytes(gzip.compress(text.getvalue().encode()))


def write_set(folder: Path, teachers=("a", "b")) -> None:
    """What experiments.transfer.teacher_set.make leaves: rocksalts, elements with energies of their own."""
    for k, name in enumerate(teachers):
        crystals = []
        for n, (metal, X) in enumerate(
            (m, x) for m in ("Mg", "Ti", "Ca", "Ba") for x in ("O", "S", "Se", "Te")
        ):
            for frame, a in (("ideal", 4.5), ("strained-1", 4.6)):
                atoms = bulk(metal + X, "rocksalt", a)
                energy = -8.0 - 0.3 * np.sin(n) + (a - 4.5) + k * float(atoms.numbers.sum()) / 10
                labels = Labels(energy, np.full((2, 3), 0.1 * (a - 4.5)), np.eye(3))
                material = f"rocksalt-{metal}{X}"
                crystals.append(LabelledCrystal(atoms, labels, material, f"{material}/{frame}"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*of 32 crystal")
            write_dataset(
                folder / name, crystals, Cutoffs(3.0), fractions=(0.8, 0.1, 0.1), processes=1, seed=7
            )
    (folder / "set.json").write_text(json.dumps({"teachers": {name: {} for name in teachers}}))


def energy_references(root: Path) -> dict:
    write_elements(root / "data" / ELEMENTS, **ENTRIES)
    write_dimers(root / "data" / DIMERS)
    write_set(root / "set")
    return {"set": (root / "set",), "data": root / "data"}


def named_crystals() -> list[tuple[str, str, Atoms]]:
    """Materials, names and crystals: elements and salts, each undeformed and rattled."""
    found = {"fcc-O": bulk("O", "fcc", 3.6), "fcc-Cl": bulk("Cl", "fcc", 4.4)}
    found |= {"bcc-Na": bulk("Na", "bcc", 4.2), "hcp-Mg": bulk("Mg", "hcp", 3.2)}
    for pair in ("NaCl", "MgO", "NaO", "MgCl"):
        for kind, a in (("rocksalt", 5.0), ("zincblende", 5.3), ("cesiumchloride", 3.1)):
            found[f"{kind}-{pair}"] = bulk(pair, kind, a)
    named = []
    for material, ideal in found.items():
        named.append((material, f"{material}/ideal", ideal))
        for k in range(2):
            moved = ideal.copy()
            moved.rattle(0.1, seed=len(named))
            named.append((material, f"{material}/rattled-{k}", moved))
    return named


def write_functionals(folder: Path) -> None:
    """A set of two teachers: a random network, and another of other parameters and other references."""
    first = small_potential(QUICK)
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda x: x * (1 + 0.1 * rng.normal(size=x.shape)), first.params["network"])
    second = replace(first, params=first.params | {"network": moved})
    named = named_crystals()
    shifts = [sum(SHIFT[z] for z in atoms.numbers) for _, _, atoms in named]
    for name, teacher, shifted in (("pbe", first, 0), ("r2scan", second, 1), ("shifted", first, 1)):
        found = teacher.predict([atoms for _, _, atoms in named])
        made = [
            LabelledCrystal(
                atoms,
                Labels(p["energy"] + shifted * shift, p["forces"], p["stress"]),
                material,
                title,
            )
            for (material, title, atoms), p, shift in zip(named, found, shifts, strict=True)
        ]
        write_dataset(folder / name, made, teacher.cutoffs, fractions=(0.6, 0.2, 0.2), seed=1)


def methods(root: Path) -> dict:
    write_functionals(root / "set")
    few = {
        "methods": ("scratch", "refit", "difference"),
        "source_epochs": 2,
        "crystals": 20,
        "epochs": 2,
        "seeds": 1,
        "batch_size": 10,
    }
    teachers = {"source_functional": "pbe", "target": "r2scan", "start": None}
    return {"set": root / "set", "hyperparameters": SMALL, **teachers, **few}


def write_salts(folder: Path) -> None:
    """Rock salts whose ions are bound to their sites by springs, stiffer ones in the second functional."""
    pairs = [a + b for a in ("Li", "Na", "K", "Mg", "Ca", "Rb") for b in ("F", "Cl", "O", "S", "Br")]
    for name, stiffness, of_atom in ((PBE, 1.0, -0.2), (R2SCAN, 1.2, -1.5)):
        rng = np.random.default_rng(0)
        made = []
        for k in range(60):
            atoms = bulk(pairs[k % len(pairs)], "rocksalt", 4.8)
            moved = 0.02 * rng.normal(size=atoms.positions.shape)
            atoms.positions += moved
            labels = Labels(
                energy=float(of_atom * atoms.numbers.sum() + stiffness * (moved**2).sum() / 2),
                forces=-stiffness * moved,
                stress=np.zeros((3, 3)),
            )
            made.append(LabelledCrystal(atoms, labels, material=f"rocksalt-{pairs[k % len(pairs)]}"))
        write_dataset(folder / name, made, Cutoffs(5.0, 4.0), fractions=(0.6, 0.2, 0.2), processes=1)


def scaling_law(root: Path) -> dict:
    write_salts(root / "set")
    # least_steps: as many as an epoch of the source has, so that one program is enough.
    few = {"width": 4, "widths": (), "sizes": (8, 16), "above": 4, "seeds": 1, "epochs": 1, "least_steps": 9}
    return {"set": root / "set", "source": PBE, "target": R2SCAN, "validations": 2, "batch_size": 4, **few}


def teacher_set(root: Path) -> dict:
    """Two models that disagree, of two architectures."""
    names = ("m3gnet-smooth", "chgnet-0.3")
    for name in names:
        small_potential(name, "float32").save(root / "models" / name)
    return {"teacher": tuple(str(root / "models" / name) for name in names), **FEW, **LOOSE}


def from_scratch(root: Path) -> dict:
    """Molybdenum whose forces are those of pairs."""
    cell = bulk("Mo", "bcc", 3.1, cubic=True)
    frames = labelled(STAND_INS[OWN], [rattled(cell, k, 0.1) for k in range(20)])
    lay(root / "data/maml_MoNbTaW/Mo_AIMD.extxyz.gz", frames)
    return {"data": root / "data", "models": ("m3gnet",), "epochs": 2, "batch_size": 4}


def hessian_columns(root: Path) -> dict:
    """Rock salts whose force constants, and copper whose forces, are those of pairs."""
    pytest.importorskip("phonopy", reason="phonopy, the extra of that name, is not installed")
    from phonopy_run import write_run

    for k, name in enumerate(("NaCl", "CaTiO3")):
        salt = bulk("NaCl", "rocksalt", 5.0 + 0.1 * k)
        write_run(root / "data/phonopy_examples_PBE" / name, STAND_INS[OWN], salt, (2, 1, 1))
    for name, count in (("Cu", 24), ("Ni", 3)):
        frames = [rattled(bulk(name, a=3.6, cubic=True), k) for k in range(count)]
        lay(root / f"data/mlearn/{name}.extxyz.gz", labelled(STAND_INS[OWN], frames))
    few = {"steps": 2, "batch_size": 1, "replay": 1}
    return {"model": PAIRS, "data": root / "data", **few}
