"""Moduli and equations of state in PBE, as they are published."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmlip.studies.study import StudyError
from jaxmlip.units import GPA_PER_EV_PER_A3

if TYPE_CHECKING:
    from ase import Atoms

BINARIES = "matcalc_benchmark/mp-binary-pbe-elasticity-2025.1.json.gz"
ACWF = "acwf_eos_PBE"
CLASSES = {  # the first that one of the elements belongs to
    "oxides": "O",
    "halides": "F Cl Br I",
    "chalcogenides": "S Se Te",
    "pnictides": "N P As Sb Bi",
    "hydrides": "H",
    "B, C, Si, Ge": "B C Si Ge",
}
METALS = "intermetallics"
# DFT of acwf is without spin, and all of its electrons are there. What models were fitted to is magnetic (V
# in oxides), has f electrons of lanthanides in the core, and U in oxides, of Mo and W too.
MAGNETIC = tuple("V Cr Mn Fe Co Ni Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Pa U Np Pu Am Cm".split())  # noqa: SIM905
WITH_U = ("Mo", "W")


def read_binaries(path: Path) -> dict[str, dict[str, Any]]:
    """By their number in the Materials Project: "atoms", "class", and DFT's "K" and "G" (GPa)."""
    from pymatgen.core import Structure

    found = {}
    try:
        for entry in json.loads(gzip.decompress(path.read_bytes())):
            atoms = Structure.from_dict(entry["structure"]).to_ase_atoms(msonable=False)
            K, G = float(entry["bulk_modulus_vrh"]), float(entry["shear_modulus_vrh"])
            found[str(entry["mp_id"])] = {"atoms": atoms, "class": chemistry(atoms), "K": K, "G": G}
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{path} is not as matcalc publishes it ({type(error).__name__}: {error}); needed gzipped JSON: "
            "a list of mp_id, structure, bulk_modulus_vrh and shear_modulus_vrh. Download it again."
        ) from None
    return found


def chemistry(atoms: Atoms) -> str:
    symbols = set(atoms.get_chemical_symbols())
    return next((name for name, of in CLASSES.items() if symbols & set(of.split())), METALS)


def read_prototypes(folder: Path) -> dict[str, dict[str, Any]]:
    """By name, such as "Si-X/Diamond": "atoms", "family", "prototype", and DFT's "V0", "B0" and "B1".

    V₀ (Å³) is the volume of the atoms; B₀ in GPa. The archive is read in memory; nothing is unpacked.
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
    import ase.io

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
