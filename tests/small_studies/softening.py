"""Data of softening studies in their public layouts, small, and labelled by a potential that is known.

Each function lays the data into a folder and returns the settings of a small run. `model` is the name
"""

import bz2
import gzip
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pairs
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import QUICK, small_potential
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor
from stand_in import Mixture, Morse

from experiments.datasets import ACWF, BINARIES
from experiments.softening.elastic import SPARE
from jaxmlip.crystals import batches, batching
from jaxmlip.data.readers.phonondb import FREQUENCIES_FILE, STRUCTURES_FILE
from jaxmlip.mechanics.elasticity import MESSAGES, elastic_tensors
from jaxmlip.mechanics.equation_of_state import equations_of_state
from jaxmlip.mechanics.neb import interpolated, vacancy_hop
from jaxmlip.mechanics.relaxation import relax
from jaxmlip.phonons import phonon_modes
from jaxmlip.phonons.lattice import mesh_modes
from jaxmlip.studies import study
from jaxmlip.studies.softening import shared_shapes

OWN, SOFT = "own", "soft"  # labels are OWN's; SOFT has three quarters of its forces
PAIRS = "pairs"  # for second derivatives, and for training
STAND_INS = {
    OWN: Morse(OWN),
    SOFT: Morse(SOFT, 0.3),
    "mixture": Mixture(),
    PAIRS: pairs.potential(alike=2**0.5).astype("float32"),
}
LOOSE = 1e3  # eV/Å: any guess is at rest
STIFFER = 1.25  # the forces of DFT's part over those of the model, where a cure is sought
CURVATURE = 0.81  # of the potential's forces against those that are called DFT's
FREQUENCY = 0.8  # of the potential's frequencies, likewise
MESH = (2, 2, 2)
CRYSTALS = {
    "mp-1": bulk("MgO", "rocksalt", 4.4),
    "mp-2": bulk("MgO", "rocksalt", 4.6),
    "mp-3": bulk("AlP", "zincblende", 5.0),
}
PROTOTYPES = {
    ("unaries", "Cu-X/FCC"): bulk("Cu", a=3.4),
    ("unaries", "Fe-X/BCC"): bulk("Fe", a=2.8),
    ("oxides", "Mg-XO"): CRYSTALS["mp-1"],
}


def load_models(names, dtype="float32"):
    """Instead of the function of that name: stand-ins by their names, and models from their folders."""
    if set(names) <= set(STAND_INS):
        return {name: STAND_INS[name] for name in names}
    return study.load_models(names, dtype)


def saved(root: Path, model: str, dtype: str = "float32"):
    """A potential, and its name as --model takes it."""
    if model in STAND_INS:
        return STAND_INS[model], model
    potential = small_potential(model, dtype)
    potential.save(root / "models" / model)
    return potential, str(root / "models" / model)


def labelled(potential, crystals: list[Atoms], factor: float = 1.0) -> list[Atoms]:
    """The crystals with energies, stresses and `factor` times the forces of the potential.

    In one call: one program with the experiment.
    """
    for atoms, p in zip(crystals, potential.predict(crystals), strict=True):
        numbers = {"energy": p["energy"], "forces": factor * p["forces"], "stress": p["stress"]}
        atoms.calc = SinglePointCalculator(atoms, **numbers)
    return crystals


def lay(path: Path, frames: list[Atoms]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ase.io.write(path, frames, format="extxyz")


def rattled(atoms: Atoms, seed: int, size: float = 0.08, **info) -> Atoms:
    atoms = atoms.copy()
    atoms.rattle(size, seed=seed)
    atoms.info = info
    return atoms


def at_rest(potential) -> Atoms:
    """The cube of copper that has no force and no stress."""
    start = {OWN: 3.6, "mace-density": 3.1}.get(potential.name, 4.4)
    found = relax(potential, bulk("Cu", a=start, cubic=True), fix_symmetry=True, fmax=0.05)
    assert found.converged
    return found.atoms


def told(atoms: Atoms, **info) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True, info=info)


def forces(root: Path, model: str = OWN) -> dict:
    """Half of the potential's forces; one WBM frame has none."""
    potential, name = saved(root, model)
    salt, copper = bulk("NaCl", "rocksalt", 5.7), bulk("Cu", cubic=True)
    info = {"group": "AIMD-NVT", "temperature_K": 300, "description": "Snapshot 1 at 300 K"}
    crystals = [rattled(copper, k, **info) for k in range(3)] + [rattled(salt, k) for k in range(3)]
    labelled(potential, crystals, 0.5)
    lay(root / "data/mlearn/Cu.extxyz", crystals[:3])
    states = {
        f"wbm-1-{n}": {
            f"frame-{k}": {
                "structure": Structure.from_ase_atoms(told(a)).as_dict(),
                "vasp_f": a.get_forces().tolist(),
                "vasp_e": -1.0,
                "vasp_s": np.zeros((3, 3)).tolist(),
            }
            for k, a in enumerate(crystals[3:])
        }
        for n in (1, 2)
    }
    del states["wbm-1-2"]["frame-1"]["vasp_f"]
    (root / "data/wbm_high_energy").mkdir()
    (root / "data/wbm_high_energy/wbm-high-energy-states.json").write_text(json.dumps(states))
    return {"model": (name,), "data": root / "data", "frames": 3}


def slab(layers: int, a: float = 4.0, along: int = 2) -> Atoms:
    """Copper with two faces (100) and 6 Å between them."""
    atoms = bulk("Cu", a=a, cubic=True).repeat([layers if k == along else 1 for k in range(3)])
    cell = atoms.cell.array
    cell[along, along] += 6.0
    atoms.set_cell(cell)
    return atoms


def with_soft(model: str, name: str) -> tuple[str, ...]:
    return (name, SOFT) if model == OWN else (name,)


def surfaces(root: Path, model: str = OWN) -> dict:
    potential, name = saved(root, model)
    cube = at_rest(potential)
    a = cube.cell.lengths()[0]
    frames = [
        told(bulk("Cu", a=a, cubic=True), group="Elastic", description="Ground state crystal"),
        told(slab(1, a), group="Surface", description="Cu_surface_mp/Cu_mp-30_(1_0_0)"),
        rattled(slab(2, a), 1, 0.05, group="Surface", description="Cu_surface_mp/Cu_mp-30_(2_1_0)"),
        told(bulk("Cu", a=a, cubic=True), group="Surface", description="no vacuum"),
    ]
    lay(root / "data/mlearn/Cu.extxyz.gz", labelled(potential, frames))
    return {"model": with_soft(model, name), "data": root / "data", "fmax": LOOSE, "steps": 40}


def defects(root: Path, model: str = OWN) -> dict:
    """A cube, or a cube that lacks an atom."""
    potential, name = saved(root, model)
    cube, hot = at_rest(potential), 0.12
    vacancy = cube[1:]
    frames = [
        told(cube, group="Elastic", description="Ground state crystal"),
        *(rattled(vacancy, k, hot, group="Vacancy") for k in range(10)),
        rattled(vacancy, 3, 2.0, group="Vacancy"),
        *(rattled(cube, k, hot, group="AIMD-NVT") for k in range(30)),
        rattled(cube, 3, 0.01, group="AIMD-NVT"),
    ]
    lay(root / "data/mlearn/Cu.extxyz.gz", labelled(potential, [told(f, **f.info) for f in frames]))
    return {"model": with_soft(model, name), "data": root / "data", "fmax": LOOSE, "steps": 40}


def solid_solutions(root: Path, model: str = "mixture") -> dict:
    """MoW in the layout of maml, in cells of four atoms."""
    potential, name = saved(root, model)
    known = model == "mixture"
    rng, size = np.random.default_rng(0), {"Mo": 15.9, "W": 16.2}
    strains = (0.02, 0.0, -0.01) if known else (0.0,)
    bulks = [
        bulk(element, "bcc", a=(2 * volume) ** (1 / 3) * (1 + e), cubic=True)
        for element, volume in size.items()
        for e in strains
    ]
    frames = []
    for k in range(16):
        tungsten = 1 + k % 3
        volume = (1 - tungsten / 4) * size["Mo"] + tungsten / 4 * size["W"]
        atoms = bulk("Mo", "bcc", a=(2 * volume) ** (1 / 3), cubic=True).repeat((2, 1, 1))
        atoms.numbers[rng.permutation(4)[:tungsten]] = 74
        if k % 2:
            atoms.rattle(0.03, seed=k)
        atoms.info["tags"] = ("relax", "unrelax")[k % 2]
        frames.append(atoms)
    labelled(potential, bulks + frames)
    n, folder = len(strains), root / "data/maml_MoNbTaW"
    lay(folder / "Mo_Elastic.extxyz", bulks[:n])
    lay(folder / "W_Elastic.extxyz", bulks[n:])
    lay(folder / "MoW_SS.extxyz.gz", frames)
    few = {"relax": 5, "fmax": 0.01} if known else {"relax": 0, "orderings": 0}
    return {"model": (name,), "data": root / "data", **few}


def silicon_hop() -> list[Atoms]:
    """A hop in a cell of four atoms, with the last image in another order."""
    cell = bulk("Si").repeat((2, 1, 1))
    cell.rattle(0.05, seed=1)
    images = interpolated(*vacancy_hop(cell, 0, 2), 3, "linear")
    images[-1] = images[-1][[1, 0, 2]]
    return images


def magnesium_hop() -> list[Atoms]:
    host = bulk("TiS", "zincblende", 5.0)
    start, end = host.copy(), host.copy()
    start.append("Mg")
    end.append("Mg")
    start.positions[-1] = (0.5, 0.5, 0.5) @ host.cell.array
    end.positions[-1] = (0.75, 0.75, 0.75) @ host.cell.array
    return interpolated(start, end, 2, "linear")


def as_dict(atoms: Atoms) -> dict:
    return json.loads(json.dumps(AseAtomsAdaptor.get_structure(atoms).as_dict(), default=str))


def atomate(images, energies) -> dict:
    """A document of the approx_neb collection."""
    outputs = [
        {"output": {"structure": as_dict(i), "energy": float(e)}}
        for i, e in zip(images, energies, strict=True)
    ]
    inner = [{"index": k, **o} for k, o in enumerate(outputs[1:-1])]
    return {"wf_uuid": "a1", "end_points": [outputs[0], outputs[-1]], "images": {"0+1": inner[::-1]}}


def migration(root: Path, model: str = OWN) -> dict:
    """The files of emmet, and, where that compiles nothing, one hop in both layouts of ApproxNEB."""
    potential, name = saved(root, model)
    images = labelled(potential, silicon_hop())
    for k, image in enumerate(images):
        image.info |= {"image": k, "step": 0, "dft_energy": image.get_potential_energy()}
    folder = root / "data/emmet_testfiles"
    lay(folder / "Si_vacancy_NEB_ionic_steps.extxyz.gz", images)
    ase.io.write(folder / "Si_vacancy_NEB_final_images.extxyz", images)
    if model in STAND_INS:
        images = magnesium_hop()
        energies = [p["energy"] for p in potential.predict(images)]
        folder = root / "data/approx_neb"
        folder.mkdir()
        (folder / "atomate.json").write_text(json.dumps([atomate(images, energies)]))
        emmet = {"mp-1": {"hops": {"0+1": {"images": [as_dict(i) for i in images], "energies": energies}}}}
        (folder / "emmet.json.bz2").write_bytes(bz2.compress(json.dumps(emmet).encode()))
    return {"model": (name,), "data": root / "data", "hosts": (), "fmax": LOOSE}


def own_moduli(potential) -> dict[str, list[float] | None]:
    """K and G (GPa) of CRYSTALS; None where they are unstable."""
    # In the shapes of the experiment, whose programs then serve twice.
    graphs = [potential.graph(atoms) for atoms in CRYSTALS.values()]
    shapes = batches.shapes_for(graphs, MESSAGES, SPARE)
    found = elastic_tensors(potential, list(CRYSTALS.values()), shapes)
    return {
        key: list(x.hill) if not isinstance(x, ValueError) and x.stable else None
        for key, x in zip(CRYSTALS, found, strict=True)
    }


def elastic(root: Path, model: str = "mace-density") -> dict:
    """Both sets in the layout of the public files."""
    # One architecture: that tensors side by side are those of each alone is proved in test_elasticity.
    potential, name = saved(root, model)
    data, own = root / "data", own_moduli(potential)
    entries = [
        {
            "mp_id": key,
            "formula": atoms.get_chemical_formula(),
            "structure": AseAtomsAdaptor.get_structure(atoms).as_dict(),
            "bulk_modulus_vrh": (own[key] or (10.0, 5.0))[0],
            "shear_modulus_vrh": (own[key] or (10.0, 5.0))[1],
        }
        for key, atoms in CRYSTALS.items()
    ]
    (data / BINARIES).parent.mkdir(parents=True)
    (data / BINARIES).write_bytes(gzip.compress(json.dumps(entries).encode()))
    graphs = [potential.graph(atoms) for atoms in PROTOTYPES.values()]
    shapes = batches.shapes_for(graphs, batches.MESSAGES)
    states = equations_of_state(potential.astype("float64"), list(PROTOTYPES.values()), shapes=shapes)
    (data / ACWF).mkdir()
    with tarfile.open(data / ACWF / "xsfs_PBE_v1_structures.tar.xz", "w:xz") as archive:
        for (family, name_), atoms in PROTOTYPES.items():
            text = io.StringIO()
            ase.io.write(text, atoms, format="xsf")
            inside = f"{family}/xsfs-{family}-verification-PBE-v1/{name_.replace('X/', '')}.xsf"
            member = tarfile.TarInfo(inside)
            member.size = len(text.getvalue())
            archive.addfile(member, io.BytesIO(text.getvalue().encode()))
    for family in ("unaries", "oxides"):
        fits = {
            name_: {
                "min_volume": getattr(state, "volume", 20.0),
                "bulk_modulus_ev_ang3": getattr(state, "bulk_modulus", 1.0),
                "bulk_deriv": getattr(state, "derivative", 4.0),
            }
            for (of, name_), state in zip(PROTOTYPES, states, strict=True)
            if of == family
        }
        path = data / ACWF / f"results-{family}-verification-PBE-v1-AE-average.json"
        path.write_text(json.dumps({"BM_fit_data": fits}))
    # Crystals count as relaxed where they are.
    return {"model": (name,), "data": data, "fmax": 1e9, "smax": 1e9, "batch": 3}


def force_constants(root: Path, model: str = QUICK) -> dict:
    """A run of phonopy, whose DFT is always the first of the networks."""
    pytest.importorskip("phonopy", reason="phonopy, the extra of that name, is not installed")
    from phonopy_run import write_run

    salt, first = bulk("NaCl", "rocksalt", 5.0), small_potential(QUICK)
    write_run(root / "data/phonopy_examples_PBE/NaCl", first, salt, (2, 2, 1), scale=1 / CURVATURE)
    _, name = saved(root, model, "float64")
    return {"model": (name,), "data": root / "data", "runs": ("NaCl",), "silicon": False}


def anharmonicity(root: Path, model: str = QUICK) -> dict:
    """A run of phono3py, whose DFT is always the first of the networks."""
    pytest.importorskip("phono3py", reason="phono3py, the extra of that name, is not installed")
    from phono3py.file_IO import write_FORCES_FC3

    from jaxmlip.phonons.cells import Cells
    from jaxmlip.phonons.phonopy_files import as_ase

    first, folder = small_potential(QUICK), root / "data/phono3py_examples/Si-PBE"
    folder.mkdir(parents=True)
    ph3 = Cells.of(bulk("Si", a=5.6), (2, 1, 1)).to_phono3py()
    ph3.generate_displacements(distance=0.03)
    ph3.save(folder / "phono3py_disp.yaml")
    rest, *moved = first.predict([as_ase(s) for s in (ph3.supercell, *ph3.supercells_with_displacements)])
    forces = [(p["forces"] - rest["forces"]) / CURVATURE for p in moved]
    write_FORCES_FC3(ph3.dataset, forces, filename=folder / "FORCES_FC3")
    _, name = saved(root, model, "float64")
    return {"model": (name,), "data": root / "data", "runs": ("Si (PBE)",)}


def write_phonondb(folder: Path, crystals, thz, mesh=(2, 1, 1), stars=None, **more: list) -> None:
    """The two files of the reference; `stars`: wave vectors and weights, by default made up.

    `more` are further columns.
    """
    stars = stars or [([[0, 0, 0], [0.5, 0, 0]], [1, 1])] * len(crystals)
    folder.mkdir(parents=True, exist_ok=True)
    ase.io.write(folder / STRUCTURES_FILE, crystals)
    keys = [str(k) for k in range(len(crystals))]
    columns = {
        "mp_id": [c.info["mp_id"] for c in crystals],
        "frequencies": [x.tolist() for x in thz],
        "weights": [np.asarray(weights).tolist() for _, weights in stars],
        "qpoints": [np.asarray(q).tolist() for q, _ in stars],
        "q_mesh": [list(mesh)] * len(crystals),
        **more,
    }
    with gzip.open(folder / FREQUENCIES_FILE, "wt") as file:
        json.dump({name: dict(zip(keys, column, strict=True)) for name, column in columns.items()}, file)


def phonons(root: Path, model: str = QUICK) -> dict:
    """Rocksalt and zincblende, with frequencies of the potential over FREQUENCY."""
    potential, name = saved(root, model, "float64")
    crystals = [bulk("NaCl", "rocksalt", 5.0), bulk("ZnS", "zincblende", 5.6)]
    thz, stars = [], []
    # The shapes that the experiment takes, so that both share programs.
    shapes = shared_shapes([batching.exact_shape([potential.graph(atoms)]) for atoms in crystals])
    for k, (atoms, number) in enumerate(zip(crystals, (225, 216), strict=True)):
        atoms.info = {"mp_id": f"mp-{k}", "name": str(atoms.symbols), "symm.no": number}
        modes = mesh_modes(potential, atoms, MESH, method="exact", shape=shapes[k])
        # Another member of each star, in another order, as another program has them.
        stars.append((-modes.q_points[::-1], modes.mesh.weights[::-1]))
        thz.append(modes.frequencies[::-1] / FREQUENCY)
    write_phonondb(root / "data/phonondb_PBE_103", crystals, thz, MESH, stars)
    eight_cells = 16  # atoms, which the mesh fits
    return {
        "model": (name,), "data": root / "data", "supercell": eight_cells, "steps": 2, "examples": False,
    }  # fmt: skip


def learn_phonons(root: Path) -> dict:
    """Rock salts without a common element, with the frequencies of pairs that are larger, and metals."""
    teacher = pairs.potential(1.02, 2**0.5)
    salts = [bulk("MgO", "rocksalt", 4.4), bulk("NaCl", "rocksalt", 4.5)]
    thz, q = [], np.array([[0.1, 0.2, 0.4], [0.5, 0.0, 0.5]])
    for k, atoms in enumerate(salts):
        atoms.info = {"mp_id": f"mp-{k}", "name": str(atoms.symbols), "symm.no": 225}
        thz.append(phonon_modes(teacher, atoms, q).frequencies)
    stars = [(q, [1, 3])] * len(salts)
    write_phonondb(root / "data/phonondb_PBE_103", salts, thz, (4, 1, 1), stars)
    for name, count in (("Cu", 24), ("Ni", 3)):
        frames = [rattled(bulk(name, a=3.6, cubic=True), k) for k in range(count)]
        lay(root / f"data/mlearn/{name}.extxyz.gz", labelled(teacher, frames))
    kinds = ("one factor", "one factor, then frequencies", "frequencies", "frequencies, no replay")
    few = {"kinds": kinds, "splits": 1, "held_out": 1, "steps": 30, "learning_rate": 3e-3}
    return {"model": ("pairs",), "data": root / "data", **few}


def cure(root: Path, model: str = QUICK) -> dict:
    """mlearn/Si as it is published, small, and the model that is too soft for it."""
    soft = replace(small_potential(model, "float32"), name=model)
    soft = replace(soft, params={**soft.params, "scale": np.float32(1.0)})
    soft.save(root / "model")
    dft = replace(soft, params={**soft.params, "scale": np.float32(STIFFER)})
    cube = bulk("Si", "diamond", 5.43, cubic=True)
    strained = [told(cube, group="Elastic") for _ in range(3)]
    for k, atoms in enumerate(strained):
        atoms.set_cell(atoms.cell.array @ np.diag([1 + 0.02 * k, 1, 1]), scale_atoms=True)
    opened = told(cube, group="Surface")
    opened.center(vacuum=4, axis=2)
    families = (
        (4, 0.1, {"group": "AIMD-NVT", "temperature_K": 300}),
        (2, 0.4, {"group": "AIMD-NVT", "temperature_K": 3000}),
        (2, 0.2, {"group": "Vacancy", "temperature_K": 300}),
    )
    moved = [rattled(cube, k, size, **info) for count, size, info in families for k in range(count)]
    lay(root / "data/mlearn/Si.extxyz.gz", labelled(dft, [*moved, *strained, opened]))
    few = {"methods": ("least squares",), "sizes": (1,), "seeds": 1, "epochs": 1}
    return {"model": (str(root / "model"),), "data": root / "data", **few}
