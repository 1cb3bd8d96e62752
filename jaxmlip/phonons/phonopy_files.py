"""Exchange with phonopy: force constants in its formats, and its runs as a reference.

phonopy (https://phonopy.github.io/phonopy) is an extra of this package: pip install 'jaxmlip[phonopy]'.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from jaxmlip.crystals.atoms import as_atoms
from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.phonons.nac import NAC
from jaxmlip.phonons.supercell import ForceConstants, triangular
from jaxmlip.units import COULOMB

if TYPE_CHECKING:
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms
    from pymatgen.core import Structure

# In the order of search: files that hold most come first.
YAML_FILES = (
    *("phonopy_params.yaml", "phonopy_params.yaml.xz", "phonopy_disp.yaml", "phonopy.yaml"),
    "phono3py_disp.yaml",
)
CELL_FILES = ("POSCAR-unitcell", "POSCAR")
CALCULATORS = {None, "vasp", "aims", "castep", "crystal", "lammps", "pwmat"}  # whose units are eV and Å
SAME_PLACE = 1e-3  # Å


@dataclass(frozen=True, eq=False)
class PhonopyRun:
    """A run of phonopy: force constants of a crystal, and the data that they come from."""

    source: Path
    phonon: Phonopy  # cells, displacements and forces as phonopy keeps them
    constants: ForceConstants  # made by phonopy from the forces, with its default symmetrisation
    nac: NAC | None

    @property
    def supercell(self) -> Atoms:
        """The supercell without displacements."""
        return as_ase(self.phonon.supercell)

    @property
    def displaced(self) -> list[Atoms]:
        """The supercells whose forces were computed, with atoms displaced."""
        result = []
        dataset = self.phonon.dataset or {}
        for moved in dataset.get("displacements", []):
            atoms = self.supercell
            atoms.positions += moved
            result.append(atoms)
        for moved in dataset.get("first_atoms", []):
            atoms = self.supercell
            atoms.positions[moved["number"]] += moved["displacement"]
            result.append(atoms)
        return result

    @property
    def forces(self) -> np.ndarray:
        """Forces on the atoms of each of `displaced`, (supercells, atoms, 3) in eV/Å.

        Raises ValueError if there are none, because the force constants were read from a file.
        """
        dataset = self.phonon.dataset
        if not _has_forces(dataset):
            raise ValueError(
                f"{self.source} has force constants and no forces of displaced supercells; needed "
                "FORCE_SETS, or a yaml file of phonopy with forces, to compare forces."
            )
        return np.array(
            dataset["forces"] if "forces" in dataset else [d["forces"] for d in dataset["first_atoms"]]
        )

    def with_forces(self, forces: Sequence[np.ndarray]) -> ForceConstants:
        """Force constants that phonopy makes from other forces on `displaced`, with the same settings."""
        dataset = self.phonon.dataset
        if "first_atoms" in dataset:
            moved = [{**d, "forces": f} for d, f in zip(dataset["first_atoms"], forces, strict=True)]
            dataset = {**dataset, "first_atoms": moved}
        else:
            dataset = {"displacements": dataset["displacements"], "forces": np.array(forces)}
        old = self.phonon
        phonon = _phonon(old.unitcell, old.supercell_matrix, old.primitive_matrix, old.calculator)
        phonon.dataset = dataset
        _produce(phonon)
        return from_phonopy(phonon)


def to_phonopy(constants: ForceConstants, nac: NAC | None = None) -> Phonopy:
    """A phonopy.Phonopy object with these cells and force constants (and charges), for all that phonopy does.

    Its unit cell and primitive cell are `constants.primitive`, atoms in the same order.

    Raises ImportError if phonopy is not installed.
    """
    import_phonopy()
    cell = as_phonopy(constants.primitive)
    # phonopy multiplies columns of lattice vectors, so its matrix is the transpose.
    phonon = _phonon(cell, constants.supercell.T, "P")
    R, i, j = _pairs(phonon, constants)
    phi = constants.phi.reshape(-1, *constants.phi.shape[3:])
    phonon.force_constants = np.ascontiguousarray(phi[constants.number(R), i[:, None], :, j])
    if nac is not None:
        phonon.nac_params = {"born": nac.born, "dielectric": nac.dielectric, "factor": COULOMB}
    return phonon


def write_phonopy(constants: ForceConstants, folder: str | Path, nac: NAC | None = None) -> None:
    """Writes phonopy_params.yaml (cells, charges) and FORCE_CONSTANTS into `folder`.

    There, `phonopy phonopy_params.yaml` reads both (before phonopy 4: `phonopy-load phonopy_params.yaml`).

    Raises ImportError if phonopy is not installed.
    """
    phonon = to_phonopy(constants, nac)
    from phonopy.file_IO import write_FORCE_CONSTANTS

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    phonon.save(folder / "phonopy_params.yaml", settings={"force_constants": False})
    write_FORCE_CONSTANTS(
        phonon.force_constants, folder / "FORCE_CONSTANTS", p2s_map=phonon.primitive.p2s_map
    )


def read_born(file: str | Path, crystal: Atoms | Structure, symprec: float = SYMPREC) -> NAC:
    """The charges and the dielectric tensor in a BORN file of phonopy, for all atoms of `crystal`.

    The file has the charge of one of each set of atoms that are equivalent under the space group, found
    within `symprec` (Å). So it is the same for a primitive cell and for another cell of that crystal, as long
    as the order of atoms and the axes are the same.

    Raises ValueError if it is of another crystal, and ImportError if phonopy is not installed.
    """
    import_phonopy()
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file} is not a file; needed a BORN file as phonopy-vasp-born writes it.")
    cell = as_phonopy(as_atoms(crystal))
    primitive = _phonon(cell, np.eye(3, dtype=int), "P").primitive
    found = told(Path(file), _read_born, Path(file), primitive, symprec)
    return NAC(np.array(found["born"]), np.array(found["dielectric"]))


def from_phonopy(phonon: Phonopy) -> ForceConstants:
    """The force constants (eV/Å²) of a phonopy.Phonopy object, for its primitive cell.

    Raises ValueError if it has none.
    """
    if phonon.force_constants is None:
        raise ValueError(
            "the Phonopy object has no force constants; call its produce_force_constants first, or set them."
        )
    atoms = as_ase(phonon.primitive)
    ratio = phonon.supercell.cell @ np.linalg.inv(atoms.cell.array)
    supercell = triangular(ratio.round())
    shape = (*supercell.diagonal(), len(atoms), 3, len(atoms), 3)
    twist = tuple(int(x) for x in supercell[np.triu_indices(3, 1)])
    constants = ForceConstants(atoms, np.zeros(shape), twist)
    R, i, j = _pairs(phonon, constants)
    compact = phonon.force_constants
    if len(compact) == len(phonon.supercell):
        compact = compact[phonon.primitive.p2s_map]
    phi = constants.phi.reshape(-1, *shape[3:])
    phi[constants.number(R), i[:, None], :, j] = compact
    return constants


def read_phonopy(path: str | Path, supercell: Any = None) -> PhonopyRun:
    """A phonopy run: a folder, or one of its yaml files, with the files beside it.

    Cells come from phonopy_params.yaml, phonopy_disp.yaml, phonopy.yaml or phono3py_disp.yaml, or else from
    POSCAR-unitcell or POSCAR, repeated by `supercell` (three numbers, or phonopy's supercell_matrix). Forces
    come from the yaml file, FORCE_SETS, vasprun.xml* in the order of their names, or, with
    phono3py_disp.yaml, FORCES_FC3, of which the supercells with a single displaced atom are taken. If there
    are none, force constants come from the yaml file, FORCE_CONSTANTS or force_constants.hdf5.
    Born charges and the dielectric tensor come from BORN or the yaml file, if they are there.

    Raises ImportError if phonopy is not installed, FileNotFoundError naming the missing file, and ValueError
    if files cannot be read, do not belong together, or are not in eV and Å.
    """
    import_phonopy()
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    cell_file = path if path.is_file() else _first(folder, (*YAML_FILES, *CELL_FILES))
    if cell_file is None:
        raise FileNotFoundError(
            f"{path} has none of {', '.join((*YAML_FILES, *CELL_FILES))}; needed the folder of a phonopy "
            "run, or a yaml file that phonopy wrote."
        )
    phonon, held = told(cell_file, _read_cells, cell_file, supercell)
    _read_data(phonon, held, folder, cell_file)
    born = folder / "BORN"
    if born.is_file():
        phonon.nac_params = told(born, _read_born, born, phonon.primitive)
    elif held is not None and held.nac_params is not None:
        phonon.nac_params = told(cell_file, _checked_born, held.nac_params, phonon.primitive)
    nac = phonon.nac_params and NAC(
        np.array(phonon.nac_params["born"]), np.array(phonon.nac_params["dielectric"])
    )
    return PhonopyRun(path, phonon, from_phonopy(phonon), nac)


def import_phonopy() -> Any:
    """The module phonopy. Raises ImportError, with what to install, if it cannot be imported."""
    try:
        import phonopy
    except ImportError as error:
        raise ImportError(
            f"phonopy is needed for this and cannot be imported ({error}). Install it with "
            "pip install 'jaxmlip[phonopy]'."
        ) from None
    return phonopy


def _phonon(unitcell, supercell_matrix, primitive_matrix, calculator=None) -> Phonopy:
    from phonopy import Phonopy

    return Phonopy(unitcell, supercell_matrix, primitive_matrix=primitive_matrix, calculator=calculator)


def read_cells(file: Path) -> Phonopy:
    """The cells in a yaml file of phonopy or phono3py. Raises ValueError if it cannot be used."""
    return told(file, _read_cells, file, None)[0]


def _read_cells(file: Path, supercell) -> tuple[Phonopy, Any]:
    """The cells, and the rest of the yaml file (None for a POSCAR)."""
    if not file.name.endswith((".yaml", ".yml", ".yaml.xz")):
        from phonopy.interface.vasp import read_vasp

        return _phonon(read_vasp(file), (1, 1, 1) if supercell is None else supercell, "auto"), None
    from phonopy.interface.phonopy_yaml import PhonopyYaml

    held = PhonopyYaml()
    held.read(file)
    if held.unitcell is None:
        raise ValueError("it holds no unit cell")
    if held.calculator not in CALCULATORS:
        raise ValueError(
            f"its numbers are in the units of {held.calculator}, needed eV and Å, as used by "
            f"{', '.join(sorted(filter(None, CALCULATORS)))}. phonopy-calc-convert converts them"
        )
    matrix = np.eye(3, dtype=int) if held.supercell_matrix is None else held.supercell_matrix
    primitive = "auto" if held.primitive_matrix is None else held.primitive_matrix
    return _phonon(held.unitcell, matrix, primitive, held.calculator), held


def _read_data(phonon: Phonopy, held: Any, folder: Path, cell_file: Path) -> None:
    """Gives `phonon` displacements and forces, or force constants, from the first file that has them."""
    from phonopy.file_IO import parse_FORCE_CONSTANTS, parse_FORCE_SETS, read_force_constants_hdf5

    size = f"{len(phonon.supercell)} atoms, as the supercell of {cell_file.name} has"
    if held is None:
        size += "; the argument `supercell` says how often to repeat its cell"
    dataset = held and held.dataset
    force_sets, text, hdf5 = (
        folder / name for name in ("FORCE_SETS", "FORCE_CONSTANTS", "force_constants.hdf5")
    )
    vasp = sorted(folder.glob("vasprun.xml*"))
    triplets = _first(folder, ("FORCES_FC3", "FORCES_FC3.xz"))
    if not _has_forces(dataset):
        if force_sets.is_file():
            dataset = told(force_sets, parse_FORCE_SETS, filename=force_sets)
            _check_size(force_sets, dataset, phonon, size)
        elif cell_file.name.startswith("phono3py_disp") and triplets is not None:
            dataset = told(triplets, _read_forces_fc3, cell_file, triplets, len(phonon.supercell), size)
        elif dataset and vasp:
            dataset = told(vasp[0], _read_vasp, dataset, vasp, len(phonon.supercell), size)
    if _has_forces(dataset):
        phonon.dataset = dataset
        told(force_sets if force_sets.is_file() else cell_file, _produce, phonon)
    elif held is not None and held.force_constants is not None:
        phonon.force_constants = held.force_constants
    elif text.is_file() or hdf5.is_file():
        file, parse = (text, parse_FORCE_CONSTANTS) if text.is_file() else (hdf5, read_force_constants_hdf5)
        found = told(file, parse, filename=file)
        if found.shape[:2] not in [
            (k, len(phonon.supercell)) for k in (len(phonon.primitive), found.shape[1])
        ]:
            raise ValueError(
                f"{file} has force constants between {found.shape[0]} and {found.shape[1]} atoms, needed "
                f"between {len(phonon.primitive)} of the primitive cell, or all, and {size}."
            )
        phonon.force_constants = found
    else:
        raise FileNotFoundError(
            f"{folder} has neither forces nor force constants; needed FORCE_SETS, FORCE_CONSTANTS or "
            f"force_constants.hdf5, forces in {cell_file.name}, or phonopy_disp.yaml with vasprun.xml of "
            "each displacement. phonopy -f makes FORCE_SETS of the output of many codes."
        )


def _has_forces(dataset) -> bool:
    return bool(dataset) and (
        "forces" in dataset or all("forces" in d for d in dataset.get("first_atoms", [{}]))
    )


def _check_size(file: Path, dataset, phonon: Phonopy, size: str) -> None:
    atoms = len(phonon.supercell)
    if "first_atoms" in dataset:
        found, fits = dataset["natom"], dataset["natom"] == atoms
    else:  # displacements and forces of all atoms, one line each, supercells one after the other
        found = len(dataset["forces"].reshape(-1, 3))
        fits, size = found % atoms == 0, f"a multiple of {size}"
        if fits:
            dataset |= {name: dataset[name].reshape(-1, atoms, 3) for name in ("displacements", "forces")}
    if not fits:
        raise ValueError(
            f"{file} has forces on {found} atoms, needed {size}. It belongs to another supercell."
        )


def _read_vasp(dataset, files: list[Path], atoms: int, size: str):
    from phonopy.interface.vasp import parse_set_of_forces

    moved = dataset.get("first_atoms")
    wanted = len(dataset["displacements"] if moved is None else moved)
    if len(files) != wanted:
        raise ValueError(
            f"there are {len(files)} files vasprun.xml*, needed {wanted}, one for each displacement of "
            "phonopy_disp.yaml"
        )
    found = parse_set_of_forces(atoms, files, verbose=False)
    if not found:
        raise ValueError(f"it does not have forces on {size}")
    if moved is None:
        return {**dataset, "forces": np.array(found["forces"])}
    each = [{**d, "forces": f} for d, f in zip(moved, found["forces"], strict=True)]
    return {**dataset, "first_atoms": each}


def _read_forces_fc3(file: Path, forces: Path, atoms: int, size: str):
    """A data set of phonopy, from phono3py's supercells in which one atom is displaced."""
    import yaml

    pairs = (yaml.safe_load(file.read_text()) or {}).get("displacement_pairs")
    if not pairs:
        raise ValueError(f"{file.name} lists no displacement_pairs, to which it could belong")
    rows = np.loadtxt(forces, ndmin=2)
    last = max(pair["displacement_id"] for pair in pairs)
    if rows.shape[1] != 3 or len(rows) % atoms or len(rows) < last * atoms:
        raise ValueError(
            f"it has an array {rows.shape}, needed three numbers a line, and for each of {last} or more "
            f"supercells lines for {size}"
        )
    each = rows.reshape(-1, atoms, 3)
    moved = [
        {
            "number": pair["atom"] - 1,
            "displacement": np.array(pair["displacement"], float),
            "forces": each[pair["displacement_id"] - 1],
        }
        for pair in pairs
    ]
    return {"natom": atoms, "first_atoms": moved}


def _produce(phonon: Phonopy) -> None:
    """Makes force constants as phonopy's command does: symmetrised, and fitted if all atoms are displaced."""
    if "first_atoms" in phonon.dataset:
        phonon.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
        phonon.symmetrize_force_constants(show_drift=False)
    else:
        phonon.produce_force_constants(
            calculate_full_force_constants=False, fc_calculator="symfc", show_drift=False
        )


def _read_born(file: Path, primitive, symprec: float = SYMPREC):
    from phonopy.file_IO import parse_BORN

    try:
        found = parse_BORN(primitive, symprec, filename=file)
    except RuntimeError as error:
        raise ValueError(
            f"{error}; needed a line with the unit, one with the dielectric tensor, and one with the charge "
            f"of each inequivalent atom of a primitive cell of {len(primitive)} atoms. Is it of another cell?"
        ) from None
    return {"factor": COULOMB, **found}


def _checked_born(found, primitive):
    if np.shape(found["born"]) != (len(primitive), 3, 3):
        raise ValueError(
            f"it has Born charges of shape {np.shape(found['born'])}, needed ({len(primitive)}, 3, 3)"
        )
    return {"factor": COULOMB, **found}


def told(file: Path, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """f(*args, **kwargs) without warnings; any exception becomes a ValueError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)
    except Exception as error:  # readers of text raise any exception
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{file} cannot be used: {kind}{str(error).rstrip('.')}.") from None


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def as_phonopy(atoms: Atoms) -> PhonopyAtoms:
    """The same cell for phonopy, masses included."""
    from phonopy.structure.atoms import PhonopyAtoms

    return PhonopyAtoms(
        numbers=atoms.numbers,
        cell=atoms.cell.array,
        scaled_positions=atoms.get_scaled_positions(wrap=False),
        masses=atoms.get_masses(),
    )


def as_ase(cell: PhonopyAtoms) -> Atoms:
    """A cell of phonopy for ASE, masses included."""
    return Atoms(cell.numbers, cell.positions, cell=cell.cell, masses=cell.masses, pbc=True)


def _pairs(phonon: Phonopy, constants: ForceConstants) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R, i and j of each pair that phonopy numbers by (primitive atom i, supercell atom s)."""
    atoms = constants.primitive
    to_cells = np.linalg.inv(atoms.cell.array)
    apart = (phonon.supercell.positions[:, None] - atoms.positions) @ to_cells  # (supercell atoms, n, 3)
    distance = np.linalg.norm((apart - apart.round()) @ atoms.cell.array, axis=-1)
    j = distance.argmin(axis=1)
    if distance.min(axis=1).max() > SAME_PLACE or (phonon.supercell.numbers != atoms.numbers[j]).any():
        raise ValueError("phonopy's supercell does not repeat with its primitive cell.")
    cell = apart[np.arange(len(j)), j].round().astype(int)
    origin = phonon.primitive.p2s_map
    return cell - cell[origin][:, None], j[origin], j
