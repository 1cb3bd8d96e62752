"""The public data sets: where they are published, how their files are read, and kinds of crystals."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ase.io
import numpy as np
from ase import Atoms

from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.readers.common import open_bytes
from jaxmlip.derivatives.slopes import Slope, force_slope
from jaxmlip.potential import Potential
from jaxmlip.studies.study import StudyError, data_root
from jaxmlip.units import GPA_PER_EV_PER_A3

if TYPE_CHECKING:
    from jaxmlip.phonons.phono3py_files import Phono3pyRun
    from jaxmlip.phonons.phonopy_files import PhonopyRun

PUBLISHED = {  # folders in the data folder, and the origin of their files
    "mlearn": "github.com/materialsvirtuallab/mlearn, data/, as extxyz",
    "maml_MoNbTaW": "github.com/materialsvirtuallab/maml, mvl_models/pes/MoNbTaW/training, as extxyz",
    "pypolymlp_vasp": "github.com/sekocha/pypolymlp, tests/test_mlp_dev_api/data-vasp-*, as extxyz",
    "phonondb_PBE_103": "github.com/MPA2suite/k_SRME, data/",
    "phonopy_examples_PBE": "github.com/phonopy/phonopy, example/",
    "phono3py_examples": "github.com/phonopy/phono3py, example/",
    "phonopy_displaced_extxyz": "github.com/phonopy/phonopy, example/, vasprun.xml as extxyz",
    "matcalc_benchmark": "github.com/materialsvirtuallab/matcalc, benchmark_data/",
    "acwf_eos_PBE": "github.com/aiidateam/acwf-verification-scripts",
    "emmet_testfiles": "github.com/materialsproject/emmet, test_files/",
    "approx_neb": "A. Rutt et al., ACS Appl. Mater. Interfaces 14, 44367 (2022), as JSON of emmet or atomate",
    "matcalc_elemental_refs_PBE_r2SCAN": "github.com/materialsvirtuallab/matcalc, "
    "src/matcalc/elemental_refs/",
    "matbench_diatomics": "github.com/janosh/matbench-discovery, site/src/lib/diatomics-dft.json.gz, both "
    "functionals at the same distances as paired_PBE.extxyz.gz and paired_r2SCAN.extxyz.gz",
    "wbm_high_energy": "figshare, doi:10.6084/m9.figshare.27307776 (wbm-high-energy-states.json.gz)",
}
BINARIES = "matcalc_benchmark/mp-binary-pbe-elasticity-2025.1.json.gz"
ACWF = "acwf_eos_PBE"
CLASSES = {  # of compounds: the first class that has one of their elements
    "oxides": "O",
    "halides": "F Cl Br I",
    "chalcogenides": "S Se Te",
    "pnictides": "N P As Sb Bi",
    "hydrides": "H",
    "B, C, Si, Ge": "B C Si Ge",
}
METALS = "intermetallics"
# acwf's DFT has all electrons and no spin. The DFT that models were fitted to has spin (V is magnetic in
# oxides), f electrons of lanthanides in the core, and a Hubbard U in oxides, also of Mo and W.
MAGNETIC = tuple("V Cr Mn Fe Co Ni Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Pa U Np Pu Am Cm".split())  # noqa: SIM905
WITH_U = ("Mo", "W")


class MissingDataError(FileNotFoundError):
    """A data set is missing. The message names it, and says where it is published and where to put it."""


def data_file(given: Path | None, name: str) -> Path:
    """The file or folder `name` below `given` or JAXMLIP_DATA. Raises MissingDataError."""
    root = data_root(given)
    if root is None or not (root / name).exists():
        first = name.split("/")[0]
        raise MissingDataError(
            f"{name} is not in {root or 'a folder that JAXMLIP_DATA names'}. It is published at "
            f"{PUBLISHED.get(first, 'a place that this project does not know')}; put it there as {name}, or "
            "name the folder that has it by --data."
        )
    return root / name


def where_there(given: Path | None, names: Iterable[str]) -> tuple[dict[str, Path], list[str]]:
    """The files or folders among `names` that exist, and for each other one the message of `data_file`."""
    found, absent = {}, []
    for name in names:
        try:
            found[name] = data_file(given, name)
        except MissingDataError as error:
            absent.append(str(error))
    return found, absent


def lowest(frames: Sequence[LabelledCrystal]) -> LabelledCrystal:
    """The frame with the lowest energy per atom: of strained bulk crystals, the one without a strain."""
    return min(frames, key=lambda f: f.labels.energy / len(f.atoms))


def read(path: Path) -> list[LabelledCrystal]:
    """The frames of an extxyz file with energy, forces and stress; other entries stay in atoms.info."""
    # Decompressed as a whole: ASE seeks in the file, and each time gzip would start from its beginning.
    with open_bytes(path) as file:
        text = io.StringIO(file.read().decode())
    found = []
    for k, atoms in enumerate(ase.io.read(text, ":", format="extxyz")):
        stress = atoms.get_stress(voigt=False) if "stress" in atoms.calc.results else None
        labels = Labels(atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False), stress)
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True, info=atoms.info)
        found.append(LabelledCrystal(bare, labels, name=f"{path.name} {k}").checked())
    return found


def by_kind(frames: Sequence[LabelledCrystal]) -> dict[str, list[LabelledCrystal]]:
    """Frames of mlearn or maml by what was done to the crystal, as the entry "group" or "tags" says.

    Kinds are "AIMD-NVT", "Vacancy", "Surface", "Elastic" (maml: "Strain…"), and others; absent ones give [].
    """
    found: dict[str, list[LabelledCrystal]] = defaultdict(list)
    for frame in frames:
        tag = str(frame.atoms.info.get("group", frame.atoms.info.get("tags", "")))
        found["Elastic" if tag.startswith("Strain") else tag].append(frame)
    return found


def against_dft(potential: Potential, frames: Sequence[LabelledCrystal]) -> Slope:
    """The slope of the potential's forces against those of `frames`, with their MAE (eV/Å per component)."""
    model = [p["forces"].astype(float) for p in potential.predict([f.atoms for f in frames])]
    dft = [f.labels.forces for f in frames]
    return force_slope(model, dft)


def rms_force(frames: Sequence[LabelledCrystal]) -> float:
    """The rms of force components, √⟨F²⟩, in eV/Å."""
    return float(np.sqrt(np.mean(np.concatenate([f.labels.forces.ravel() for f in frames]) ** 2)))


class Reference(NamedTuple):
    """A run of phonopy or phono3py, and the settings of its DFT."""

    name: str
    path: str  # below the folder of all data
    functional: str
    supercell: tuple[int, int, int] | None = None  # if no file has it

    def read(self, data: Path | None) -> PhonopyRun:
        """Reads the run. Raises MissingDataError, or as `read_phonopy` does."""
        from jaxmlip.phonons.phonopy_files import read_phonopy

        return read_phonopy(data_file(data, self.path), self.supercell)

    def read_third(self, data: Path | None) -> Phono3pyRun:
        """Reads a run of phono3py. Raises MissingDataError, or as `read_phono3py` does."""
        from jaxmlip.phonons.phono3py_files import read_phono3py

        return read_phono3py(data_file(data, self.path))


PHONOPY, PHONO3PY = "phonopy_examples_PBE", "phono3py_examples"
RUNS = (
    Reference("NaCl", f"{PHONOPY}/NaCl", "PBE"),
    Reference("NaCl (random)", f"{PHONOPY}/NaCl-rd", "PBE"),
    Reference("NaCl (DFPT)", f"{PHONOPY}/NaCl-VASPdfpt", "PBE", (2, 2, 2)),
    Reference("MgO", f"{PHONOPY}/MgO", "PBE"),
    Reference("Si", f"{PHONOPY}/Si", "PBE"),
    Reference("Si (V0)", f"{PHONOPY}/Si-gruneisen/orig", "PBE", (2, 2, 2)),
    Reference("Si (larger)", f"{PHONOPY}/Si-gruneisen/plus", "PBE", (2, 2, 2)),
    Reference("Si (smaller)", f"{PHONOPY}/Si-gruneisen/minus", "PBE", (2, 2, 2)),
    Reference("MgB2", f"{PHONOPY}/MgB2", "PBE"),
    Reference("SiO2 (stishovite)", f"{PHONOPY}/SiO2-HP", "PBE"),
    Reference("CaTiO3 (cubic)", f"{PHONOPY}/CaTiO3", "PBE"),
    Reference("Si (0.03 Å)", f"{PHONO3PY}/Si-PBE", "PBE"),
    Reference("Si (PBEsol)", f"{PHONO3PY}/Si-PBEsol", "PBEsol"),
    Reference("NaCl (PBEsol)", f"{PHONO3PY}/NaCl-rd/phono3py_params_NaCl.yaml.xz", "PBEsol"),
    Reference("AlN (PBEsol)", f"{PHONO3PY}/AlN-rd/phonopy_params_mp-661.yaml.xz", "PBEsol"),
)
THIRD_ORDER = (  # displacements of pairs of atoms, or, of NaCl, of all atoms
    Reference("Si (PBE)", f"{PHONO3PY}/Si-PBE", "PBE"),
    Reference("Si (PBEsol)", f"{PHONO3PY}/Si-PBEsol", "PBEsol"),
    Reference("Si (LDA)", f"{PHONO3PY}/Si-LDA", "LDA"),
    Reference("ZnTe (PBEsol)", f"{PHONO3PY}/zb-ZnTe-PBEsol/phono3py_params_ZnTe.yaml.xz", "PBEsol"),
    Reference("NaCl (PBEsol)", f"{PHONO3PY}/NaCl-rd/phono3py_params_NaCl.yaml.xz", "PBEsol"),
    Reference("AlN (LDA)", f"{PHONO3PY}/AlN-LDA", "LDA"),
)


def read_binaries(path: Path) -> dict[str, dict[str, Any]]:
    """Crystals by their number in the Materials Project: "atoms", "class", and DFT's "K" and "G" (GPa)."""
    from pymatgen.core import Structure

    found = {}
    try:
        for entry in json.loads(gzip.decompress(path.read_bytes())):
            atoms = Structure.from_dict(entry["structure"]).to_ase_atoms(msonable=False)
            K, G = float(entry["bulk_modulus_vrh"]), float(entry["shear_modulus_vrh"])
            found[str(entry["mp_id"])] = {"atoms": atoms, "class": chemistry(atoms), "K": K, "G": G}
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{path} is not as matcalc publishes it ({type(error).__name__}: {error}); needed gzipped JSON, "
            "a list of objects with mp_id, structure, bulk_modulus_vrh and shear_modulus_vrh. Download it "
            "again."
        ) from None
    return found


def drawn(frames: Sequence[LabelledCrystal], rng: np.random.Generator, most: int) -> list[LabelledCrystal]:
    """At most so many of the frames, in random order."""
    return [frames[k] for k in rng.permutation(len(frames))[:most]]


def chemistry(atoms: Atoms) -> str:
    symbols = set(atoms.get_chemical_symbols())
    return next((name for name, of in CLASSES.items() if symbols & set(of.split())), METALS)


def read_prototypes(folder: Path) -> dict[str, dict[str, Any]]:
    """Prototypes, such as "Si-X/Diamond": "atoms", "family", "prototype", and DFT's "V0", "B0" and "B1".

    V₀ (Å³) is the volume of all atoms; B₀ is in GPa. The archive is read in memory, and not unpacked.
    """
    found = {}
    archive = folder / "xsfs_PBE_v1_structures.tar.xz"
    try:
        structures = read_archive(archive)
        for family in ("unaries", "oxides"):
            path = folder / f"results-{family}-verification-PBE-v1-AE-average.json"
            for name, fit in json.loads(path.read_text())["BM_fit_data"].items():
                if fit is None:
                    continue
                element, prototype = name.split("-", 1)
                prototype = prototype.removeprefix("X/")
                atoms = structures[family, f"{element}-{prototype}"]
                V0, B0 = float(fit["min_volume"]), float(fit["bulk_modulus_ev_ang3"]) * GPA_PER_EV_PER_A3
                atoms.set_cell(atoms.cell * (V0 / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
                numbers = {"V0": V0, "B0": B0, "B1": float(fit["bulk_deriv"])}
                kind = {"family": family, "prototype": prototype, "comparable": comparable(element, family)}
                found[name] = {"atoms": atoms, **kind, **numbers}
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, tarfile.TarError) as error:
        raise StudyError(
            f"{folder} is not as acwf-verification-scripts publish it ({type(error).__name__}: {error}); "
            f"needed results-*-verification-PBE-v1-AE-average.json and {archive.name}. Download them again."
        ) from None
    return found


def read_archive(path: Path) -> dict[tuple[str, str], Atoms]:
    """The structures of the archive by family and name, such as ("oxides", "Sc-X2O3")."""
    found = {}
    with tarfile.open(path, "r:xz") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".xsf"):
                text = archive.extractfile(member).read().decode()
                atoms = ase.io.read(io.StringIO(text), format="xsf")
                found[member.name.split("/")[0], Path(member.name).stem] = atoms
    return found


def comparable(element: str, family: str) -> bool:
    return element not in MAGNETIC and not (family == "oxides" and element in WITH_U)
