"""A small κ_SRME: copper whose DFT is a Morse potential, and a salt that is unstable in it.

The potential that is asked has three quarters of that one's energies.
"""

import json
import warnings
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk

from jaxmlip.crystals.symmetry import reduced_mesh, space_group
from jaxmlip.mechanics.relaxation import relax
from jaxmlip.phonons.third import second_order, third_order
from jaxmlip.phonons.transport import conductivity
from jaxmlip.studies.srme import ANALYSIS_FILE, LEVELS, ModeConductivity
from small_studies.softening import OWN, SOFT, STAND_INS, write_phonondb

SOFTER = 0.75  # the energies of SOFT over those of OWN
MESH = (3, 3, 3)
FACES = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def small(patch) -> None:
    from small_studies.softening import load_models

    patch.setattr("experiments.conductivity.load_models", load_models)
    patch.setattr("jaxmlip.studies.srme.PUBLISHED_AS", {SOFT: "as soft"})


def as_published(atoms: Atoms, mp_id: str, name: str, **info) -> Atoms:
    info |= dict.fromkeys(("fc2_supercell", "fc3_supercell"), 2 * np.eye(3, dtype=int))
    info |= {"mp_id": mp_id, "name": name, "symm.no": 225, "q_mesh": MESH}
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True, info=info)


def modes_of(atoms: Atoms) -> ModeConductivity:
    """What DFT is to have."""
    how = {"primitive": FACES, "method": "displaced"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        second = second_order(STAND_INS[OWN], atoms, (2, 2, 2), **how)
        third = third_order(STAND_INS[OWN], atoms, (2, 2, 2), **how)
    return ModeConductivity.of(conductivity(third, second, mesh=MESH, boundary=1e6))


def made_up(atoms: Atoms) -> ModeConductivity:
    """Some modes of a crystal of two atoms."""
    mesh = reduced_mesh(MESH, space_group(atoms))
    thz = np.tile(np.arange(6.0), (len(mesh.weights), 1))
    return ModeConductivity(mesh.q_points, mesh.weights, thz, thz + 1)


def reversed_stars(m: ModeConductivity) -> ModeConductivity:
    """Another member of each star, in another order, as another program has them."""
    return ModeConductivity(-m.q_points[::-1], m.weights[::-1], m.thz[::-1], m.shares[::-1])


def conductivities(root: Path, model: str = SOFT) -> dict:
    # A cell that is a little too large: the study has to relax it.
    rest = relax(STAND_INS[OWN], bulk("Cu", a=3.6, cubic=True), fix_symmetry=True, fmax=1e-5, smax=1e-3)
    copper, salt = rest.atoms.copy(), bulk("NaCl", "rocksalt", 5.2)
    modes = [reversed_stars(m) for m in (modes_of(copper), made_up(salt))]
    copper.set_cell(1.01 * copper.cell, scale_atoms=True)
    folder = root / "data/phonondb_PBE_103"
    write_phonondb(
        folder,
        [as_published(copper, "mp-0", "Cu", primitive_matrix=FACES), as_published(salt, "mp-1", "NaCl")],
        [m.thz for m in modes],
        MESH,
        [(m.q_points, m.weights) for m in modes],
        mode_kappa_TOT_ave=[[m.shares.tolist()] for m in modes],
        kappa_TOT_ave=[[m.kappa] for m in modes],
        temperatures=[[300.0]] * 2,
    )
    published = {"key": "as soft", "kappa_ml": [SOFTER**1.5 * modes[0].kappa, None], "srme": [0.9, 2.0]}
    quantiles = np.linspace(0, 6, LEVELS)
    published |= {"freq_w1": [0.5, None]}
    published |= {"freq_pairs": {"dft": quantiles.tolist(), "ml": (SOFTER**0.5 * quantiles).tolist()}}
    lines = [{"_base": {"material_ids": ["mp-0", "mp-1"]}}, published]
    (folder / ANALYSIS_FILE).write_text("\n".join(map(json.dumps, lines)))
    return {"model": (model,), "data": root / "data", "methods": ("displaced",)}
