"""Small potentials of three architectures in folders, and frames of an element that one of them labels."""

from pathlib import Path

import ase.io
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import CHGNET, M3GNET, MACE

from jaxmlip.models.chgnet import CHGNetConfig
from jaxmlip.models.m3gnet import M3GNetConfig
from jaxmlip.models.mace import MACEConfig
from jaxmlip.potential import Potential, random_potential

# Fewer layers than the laws need, for experiments compile several programs for each.
CONFIGS = {
    "chgnet": CHGNetConfig(**CHGNET, blocks=2, readout=(8, 8)),
    "m3gnet": M3GNetConfig(**M3GNET | {"blocks": 1}),
    "mace": MACEConfig(**MACE, harmonics_l=1, radial_widths=(8,)),
}


def save_models(folder: Path) -> list[str]:
    """Folders of the models, as --model takes them."""
    for name, config in CONFIGS.items():
        random_potential(config, seed=7, name=name).save(folder / name)
    return [str(folder / name) for name in CONFIGS]


def write(path: Path, potential: Potential, frames: list[tuple[Atoms, dict]]) -> None:
    """Frames and what is known of them as extended XYZ, with energies and forces of `potential`."""
    path.parent.mkdir(exist_ok=True)
    for (atoms, info), found in zip(frames, potential.predict([f for f, _ in frames]), strict=True):
        atoms.info = info
        atoms.calc = SinglePointCalculator(atoms, energy=found["energy"], forces=found["forces"])
    ase.io.write(path, [atoms for atoms, _ in frames])
