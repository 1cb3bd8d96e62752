"""Exchange with phono3py, and with the codes that read its files or ShengBTE's.

phono3py (https://phonopy.github.io/phono3py) is an extra of this package: pip install 'jaxmlip[phono3py]'.
Only its YAML files and its own objects need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmlip.phonons.cells import Cells, import_phono3py
from jaxmlip.phonons.phonopy_files import SAME_PLACE, as_ase, import_phonopy, read_cells, told
from jaxmlip.phonons.third import SecondOrder, ThirdOrder, checked, from_forces
from jaxmlip.system.files import writing_folder
from jaxmlip.system.versions import own_version

if TYPE_CHECKING:
    from ase import Atoms
    from phono3py import Phono3py

CELLS_ALONE = "phonopy.yaml"  # what is written without phono3py
YAML_FILES = (
    *("phono3py_params.yaml", "phono3py_params.yaml.xz", "phono3py_disp.yaml", "phono3py.yaml"),
    CELLS_ALONE,
)
FORCES = tuple("FORCES_FC3" + end for end in ("", ".xz", ".gz", ".bz2", ".lzma"))
NOTHING = 1e-10  # eV/Å³; blocks of smaller elements are left out of FORCE_CONSTANTS_3RD


def to_phono3py(third: ThirdOrder, second: SecondOrder | None = None, **options: Any) -> Phono3py:
    """A Phono3py object with these constants, for all that phono3py does; `options` are its own.

    By default second order is that which comes with third order, if any. Raises ImportError if phono3py is
    not installed, and ValueError if the two are of different crystals.
    """
    second = third.second if second is None else second
    if second is not None:
        check_same_crystal(third, second)
        options["phonon_supercell_matrix"] = second.cells.supercell_matrix
    ph3 = third.cells.to_phono3py(**options)
    ph3.fc3 = third.fc3
    if second is not None:
        ph3.fc2 = np.ascontiguousarray(second.fc2)
    return ph3


def check_same_crystal(third: ThirdOrder, second: SecondOrder) -> None:
    """Raises ValueError unless both constants are of the same primitive cell, atoms in the same order."""
    a, b = third.cells.primitive, second.cells.primitive
    if len(a) != len(b) or (a.numbers != b.numbers).any():
        raise ValueError(
            f"found fc2 of {b.get_chemical_formula()} ({len(b)} atoms: {_symbols(b)}) and fc3 of "
            f"{a.get_chemical_formula()} ({len(a)} atoms: {_symbols(a)}), needed those of one crystal, "
            "in the same order of atoms."
        )
    off = max(np.abs(a.cell.array - b.cell.array).max(), np.abs(a.positions - b.positions).max())
    if off > SAME_PLACE:
        raise ValueError(
            f"found fc2 and fc3 of {a.get_chemical_formula()} whose primitive cells differ by {off:.3g} Å "
            "in a lattice vector or a position, needed those of one cell, relaxed once."
        )


def write_third_order(
    third: ThirdOrder,
    folder: str | Path,
    second: SecondOrder | None = None,
    *,
    cutoff: float | None = None,
) -> list[str]:
    """Writes constants into `folder` for other codes, and returns the names of the files.

    fc3.hdf5, and fc2.hdf5 if `second` is given or comes with third order, as phono3py, kaldo and phoebe read
    them; FORCE_CONSTANTS_3RD for ShengBTE, FourPhonon and almaBTE, of atoms within `cutoff` (Å) of the first
    (default: all); phono3py_params.yaml and phono3py_disp.yaml with the cells, from which `phono3py`
    continues, or, if it is not installed, the cells of fc3.hdf5 as phonopy.yaml.

    Raises ValueError as `to_phono3py` does.
    """
    with writing_folder(folder) as draft:
        first, *others = _for_phono3py(third, draft, second)
        (draft / "FORCE_CONSTANTS_3RD").write_text(_for_shengbte(third, cutoff), encoding="utf-8")
    return [first, "FORCE_CONSTANTS_3RD", *others]


def write_for_phono3py(third: ThirdOrder, folder: str | Path, second: SecondOrder | None = None) -> list[str]:
    """Writes the files of `write_third_order` but ShengBTE's, which is large, and returns their names."""
    with writing_folder(folder) as draft:
        return _for_phono3py(third, draft, second)


def _for_phono3py(third: ThirdOrder, folder: Path, second: SecondOrder | None) -> list[str]:
    """Writes constants and, if phono3py is installed, cells; returns the names of the files."""
    second = third.second if second is None else second
    if second is not None:
        check_same_crystal(third, second)
    _write_hdf5(folder / "fc3.hdf5", {"fc3": third.fc3, "p2s_map": third.cells.p2s})
    written = ["fc3.hdf5"]
    if second is not None:
        unit = np.array([b"eV/angstrom^2"])
        held = {"force_constants": second.fc2, "p2s_map": second.cells.p2s, "physical_unit": unit}
        _write_hdf5(folder / "fc2.hdf5", held)
        written.append("fc2.hdf5")
    try:
        ph3 = to_phono3py(third, second)
    except ImportError:
        third.cells.to_phonopy().save(folder / CELLS_ALONE, settings={"displacements": False})
        return [*written, CELLS_ALONE]
    parts = ("force_sets", "displacements", "force_constants")
    for name in ("phono3py_params.yaml", "phono3py_disp.yaml"):
        ph3.save(folder / name, settings=dict.fromkeys(parts, False))
        written.append(name)
    return written


def read_third_order(path: str | Path) -> ThirdOrder:
    """Third-order constants of phono3py: a folder with fc3.hdf5, or such a file, and the cells beside it.

    Cells come from phono3py_params.yaml (or .xz), phono3py_disp.yaml, phono3py.yaml or phonopy.yaml.
    Constants between all atoms are reduced to the compact layout.

    Raises FileNotFoundError naming the missing file, and ValueError if the constants are of other cells or
    not in eV and Å.
    """
    import_phonopy()
    path = Path(path)
    file = path / "fc3.hdf5" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file; needed fc3.hdf5 as phono3py writes it.")
    beside = next((file.parent / name for name in YAML_FILES if (file.parent / name).is_file()), None)
    if beside is None:
        raise FileNotFoundError(
            f"{file.parent} has none of {', '.join(YAML_FILES)}; needed the cells "
            f"that {file.name} belongs to."
        )
    cells = Cells.from_phonopy(read_cells(beside))
    phi = _compact(_dataset(file, "fc3"), cells, file, beside)
    return ThirdOrder(cells, phi, f"read from {file}", checked(phi, cells))


def read_second_order(path: str | Path, cells: Cells) -> SecondOrder:
    """The constants of an fc2.hdf5 or force_constants.hdf5 file, for these cells.

    Raises FileNotFoundError or ValueError as `read_third_order` does.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file; needed fc2.hdf5 as phono3py writes it.")
    return SecondOrder(cells, _compact(_dataset(file, "force_constants"), cells, file, file))


@dataclass(frozen=True, eq=False)
class Phono3pyRun:
    """A run of phono3py: constants of a crystal, and the displacements and forces that they come from."""

    source: Path
    dataset: dict[str, Any]  # as phono3py keeps displacements and forces
    third: ThirdOrder  # of `from_forces`

    @property
    def second(self) -> SecondOrder:
        """Second-order constants, from the same forces."""
        return self.third.second

    @property
    def cells(self) -> Cells:
        return self.third.cells

    @cached_property
    def displaced(self) -> list[Atoms]:
        """The supercells whose forces were computed, with atoms displaced."""
        ph3 = self.cells.to_phono3py()
        ph3.dataset = self.dataset
        return list(map(as_ase, ph3.supercells_with_displacements))

    @property
    def forces(self) -> np.ndarray:
        """Forces on the atoms of each of `displaced`, (supercells, N, 3) in eV/Å."""
        return np.array(_each(self.dataset, "forces"), float)

    def with_forces(self, forces: Sequence[np.ndarray], how: str) -> Phono3pyRun:
        """The run with other forces on `displaced`, (supercells, N, 3) in eV/Å; `how` says whose they are.

        Raises ValueError if there are fewer or more.
        """
        dataset = _with_forces(self.dataset, np.asarray(forces, float))
        return Phono3pyRun(self.source, dataset, from_forces(self.cells, dataset, how))


def read_phono3py(path: str | Path) -> Phono3pyRun:
    """A run of phono3py: a folder, or one of its yaml files, with FORCES_FC3 beside it if that has no forces.

    Cells and displacements come from phono3py_params.yaml (or .xz), phono3py_disp.yaml or phono3py.yaml, or
    from the file that is given. Constants are made as `from_forces` says, third and second order from the
    same supercells.

    Raises ImportError if phono3py is not installed, FileNotFoundError naming the missing file, and ValueError
    if files cannot be read, do not belong together, or are not in eV and Å.
    """
    import_phono3py()
    path = Path(path)
    file = path
    if path.is_dir():
        file = next((path / name for name in YAML_FILES[:-1] if (path / name).is_file()), None)
    if file is None or not file.is_file():
        raise FileNotFoundError(
            f"{path} has none of {', '.join(YAML_FILES[:-1])}; needed the folder of a run of phono3py, or a "
            "yaml file that it wrote."
        )
    cells = Cells.from_phonopy(read_cells(file))
    dataset = told(file, _displacements, file, len(cells.supercell))
    if not _each(dataset, "forces"):
        forces = next((file.parent / name for name in FORCES if (file.parent / name).is_file()), None)
        if forces is None:
            raise FileNotFoundError(
                f"{file} has displacements and no forces, and there is no FORCES_FC3 beside it; needed one "
                "of them. phono3py --cf3 makes FORCES_FC3 of the output of many codes."
            )
        found = told(forces, _read_forces, forces, len(cells.supercell))
        dataset = told(forces, _with_forces, dataset, found)
    how = f"forces of {file.parent}, {len(_each(dataset, 'forces'))} supercells"
    return Phono3pyRun(path, dataset, from_forces(cells, dataset, how))


def _displacements(file: Path, atoms: int) -> dict[str, Any]:
    """The displacements, and forces if there are any, of a yaml file."""
    from phono3py.interface.phono3py_yaml import Phono3pyYaml

    held = Phono3pyYaml()
    held.read(file)
    if held.dataset is None:
        raise ValueError("it holds no displacements")
    if not all(pair.get("included", True) for pair in _pairs(held.dataset)):
        raise ValueError(
            "it leaves out pairs of atoms that are farther apart than a cutoff; needed a run without one"
        )
    moved = held.dataset.get("displacements")
    if moved is not None and np.shape(moved)[1:] != (atoms, 3):
        raise ValueError(f"it has displacements of shape {np.shape(moved)}, needed (…, {atoms}, 3)")
    return held.dataset


def _pairs(dataset: dict[str, Any]) -> list[dict[str, Any]]:
    return [pair for first in dataset.get("first_atoms", []) for pair in first["second_atoms"]]


def _each(dataset: dict[str, Any], name: str) -> list[np.ndarray]:
    """What the dataset has of each supercell, in order; nothing if it is not there for all of them."""
    if "first_atoms" not in dataset:
        return list(dataset.get(name, []))
    every = [*dataset["first_atoms"], *_pairs(dataset)]
    return [one[name] for one in every] if all(name in one for one in every) else []


def _read_forces(file: Path, atoms: int) -> np.ndarray:
    """The rows of FORCES_FC3, (supercells, atoms, 3)."""
    from phonopy.file_IO import get_io_module_to_decompress

    with get_io_module_to_decompress(file).open(file, "rt") as text:
        rows = np.loadtxt(text, ndmin=2)
    if rows.shape[1] != 3 or len(rows) % atoms:
        raise ValueError(
            f"it has an array {rows.shape}, needed three numbers a line, and lines for {atoms} atoms of each "
            "supercell"
        )
    return rows.reshape(-1, atoms, 3)


def _with_forces(dataset: dict[str, Any], forces: np.ndarray) -> dict[str, Any]:
    """The dataset with these forces, in the order of its supercells."""
    wanted = len(_each(dataset, "displacement" if "first_atoms" in dataset else "displacements"))
    if len(forces) != wanted:
        raise ValueError(f"found forces of {len(forces)} supercells, needed those of {wanted}.")
    if "first_atoms" not in dataset:
        return {**dataset, "forces": forces}
    firsts, rest = dataset["first_atoms"], iter(forces[len(dataset["first_atoms"]) :])
    moved = [
        {**one, "forces": own, "second_atoms": [{**two, "forces": next(rest)} for two in one["second_atoms"]]}
        for one, own in zip(firsts, forces, strict=False)
    ]
    return {**dataset, "first_atoms": moved}


def _dataset(file: Path, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    import h5py

    try:
        with h5py.File(file, "r") as held:
            if name not in held:
                raise ValueError(f"it holds {', '.join(held)}, needed the data set {name!r}")
            return held[name][()], held["p2s_map"][()] if "p2s_map" in held else None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be used: {error}.") from None


def _compact(
    held: tuple[np.ndarray, np.ndarray | None], cells: Cells, file: Path, beside: Path
) -> np.ndarray:
    """Constants in the compact layout of these cells. Raises ValueError if they are of others."""
    found, p2s = held
    order, n, N = found.ndim // 2, len(cells.primitive), len(cells.supercell)
    rest = (*(N,) * (order - 1), *(3,) * order)
    whose = f"{n} atoms of the primitive cell and {N} of the supercell"
    whose += f", as {beside.name} has them" if beside != file else ""
    if found.shape not in ((n, *rest), (N, *rest)):
        raise ValueError(f"{file} holds constants of shape {found.shape}, needed {(n, *rest)}: {whose}.")
    if found.shape[0] == n and p2s is not None and not np.array_equal(p2s, cells.p2s):
        raise ValueError(
            f"{file} has the primitive atoms {p2s.tolist()} of its supercell, needed {cells.p2s.tolist()}: "
            "it belongs to another cell, or to another choice of the primitive cell."
        )
    return np.ascontiguousarray(found if found.shape[0] == n else found[cells.p2s], float)


def _write_hdf5(path: Path, held: dict[str, np.ndarray]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("version", data=np.bytes_(f"jaxmlip {own_version()}"))
        for name, value in held.items():
            compression = "gzip" if value.ndim > 1 else None
            file.create_dataset(name, data=value, compression=compression)


def _for_shengbte(third: ThirdOrder, cutoff: float | None) -> str:
    """Blocks of three atoms: the vectors of the cells of the second and the third, and 27 constants."""
    cells, phi = third.cells, third.fc3
    images, (atom, _), vectors = cells.images, cells.places, cells.primitive.cell.array
    within = images.distance <= (np.inf if cutoff is None else cutoff)
    lines = [f"{a + 1} {b + 1} {c + 1} %20.10e" for a, b, c in np.ndindex(3, 3, 3)]
    template = "\n%d\n%15.10e %15.10e %15.10e\n%15.10e %15.10e %15.10e\n%d %d %d\n" + "\n".join(lines) + "\n"
    blocks = []
    for i in range(len(phi)):
        near = np.flatnonzero(within[i])
        places = {
            j: [(w, R @ vectors) for w, R in zip(images.weight[i, j], images.cell[i, j], strict=True) if w]
            for j in near.tolist()
        }
        for j, k in ((j, k) for j in places for k in places if np.abs(phi[i, j, k]).max() > NOTHING):
            for first, R in places[j]:
                for other, S in places[k]:
                    values = (first * other * phi[i, j, k]).ravel().tolist()
                    atoms = i + 1, int(atom[j]) + 1, int(atom[k]) + 1
                    blocks.append(template % (len(blocks) + 1, *R, *S, *atoms, *values))
    return f"{len(blocks)}\n" + "".join(blocks)


def _symbols(atoms: Atoms) -> str:
    return " ".join(atoms.get_chemical_symbols())
