"""Phonon frequencies: phonopy's meshes and bands, band structures of pymatgen, tables of measured points.

Wave vectors are in reciprocal lattice units of the cell that stands in the same file, or that a table names.
The masses are those of the file, since frequencies depend on isotopes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, covalent_radii
from ase.units import Bohr
from jaxtyping import Bool, Float, Int

from jaxmlip.crystals.atoms import check_crystal
from jaxmlip.crystals.structures import read_crystal
from jaxmlip.data.labels import Frequencies, LabelledCrystal
from jaxmlip.data.readers.common import (
    Frame,
    Keys,
    atomic_number,
    crystal,
    open_bytes,
    site_property,
    structure_atoms,
)
from jaxmlip.data.readers.json_files import documents
from jaxmlip.system.borders import brief, one_line
from jaxmlip.units import EV_PER_THZ, PER_CM_PER_THZ

UNITS = {"thz": 1.0, "cm-1": 1 / PER_CM_PER_THZ, "mev": 1e-3 / EV_PER_THZ}  # columns of tables, THz
LENGTHS = {"angstrom": 1.0, "au": Bohr}  # Å, as phonopy names them
BANDS = ("phonon_bandstructure", "ph_bs")  # where documents hold a band structure
SKIPPED = ("eigenvector", "group_velocity", "dynamical_matrix")  # most of a file, and no label
HEAVY = {"D": 2.01410177812, "T": 3.0160492779}  # u
NOBLE = (2, 10, 18, 36, 54, 86)
FAR = 1.5  # times the sum of covalent radii, of the closest atoms: solids other than noble gases have less
DENSE = 1.0  # Å³ an atom; no crystal has less
SAME_Q = 1e-5  # reciprocal lattice units; files have seven digits
SAME_THZ = 1e-3
SAME_CELL = 1e-3  # relative
SPLIT = (
    "left out the wave vectors at which frequencies depend on the direction of approach (LO-TO splitting), "
    "since no potential here has the non-analytical term"
)
DEEPEST = 20  # levels of a YAML file
MOST = 10_000_000  # values of a file
LARGEST = 1 << 26  # bytes of a table, and of what is searched for charges


def read_phonopy_modes(path: Path, keys: Keys) -> Iterator[Frame]:
    """mesh.yaml, band.yaml or another file of phonopy that holds wave vectors, frequencies and the cell.

    phonopy writes lengths in the unit of its calculator. Only band.yaml says which, as `length_unit`. Whether
    the non-analytical term was there it does not say: bands are read without Γ beside a file BORN, or a
    phonopy.yaml with charges. In a cubic crystal nothing else tells, since Γ is the same in each direction.
    """
    yield partial(_of_phonopy, path, keys)


def read_pymatgen_modes(path: Path, keys: Keys) -> Iterator[Frame]:
    """A PhononBandStructure or PhononBandStructureSymmLine of pymatgen as JSON, or documents that hold one.

    Documents have it under one of BANDS. `bands` are in THz, and `structure` has to be among them.
    """
    for number, (key, found) in enumerate(documents(path, ("bands", *BANDS))):
        material = str(keys.first("material", found, "material_id", "mp_id")[1] or key)
        name = " ".join(filter(None, (str(path), material or f"document {number}")))
        yield partial(_of_band_structure, found, keys, name, material)


def read_points(path: Path, keys: Keys) -> Iterator[Frame]:
    """A table of frequencies, such as measured ones: a comment that names the crystal, a header, and points.

        # crystal: NaCl.cif
        q1 q2 q3 branch thz error
        0.5 0 0 1 3.21 0.05

    The path of the crystal is relative to the table. Columns are separated by commas, if the header has one,
    or by blanks. `branch` counts from 1 in the order of frequencies, or is "-" if a point may belong to any;
    "cm-1" or "meV" may stand for "thz", and `error`, in the same unit, may be absent, empty or "-".
    """
    yield partial(_of_table, path)


def _of_phonopy(path: Path, keys: Keys) -> LabelledCrystal:
    found = read_yaml(path)
    points, rows = (found.get(name) for name in ("points", "phonon"))
    if "lattice" not in found or not isinstance(points, list):
        raise ValueError(
            "it has frequencies and no cell (lattice, points), as qpoints.yaml and files of old releases; "
            "needed mesh.yaml or band.yaml of phonopy 1.10 or later, or a table of the frequencies "
            "(.phonons.csv), which names the file of the crystal"
        )
    unit = str(found.get("length_unit", "angstrom"))
    if unit not in LENGTHS:
        raise ValueError(f"found length_unit {brief(unit)}, needed {' or '.join(LENGTHS)}")
    cell = LENGTHS[unit] * numbers_of(found["lattice"], "lattice", (3, 3))
    atoms, masses = crystal_of(points, cell)
    _check_reciprocal(atoms, numbers_of(found.get("reciprocal_lattice"), "reciprocal_lattice", (3, 3)), unit)
    _check_lengths(atoms)
    if not isinstance(rows, list) or not rows:
        raise ValueError("it has no list of wave vectors (phonon)")
    size = (3 * len(atoms),)
    q, thz, weights = [], [], []
    for number, row in enumerate(rows):
        row = row if isinstance(row, dict) else {}
        bands = [band for band in row.get("band") or () if isinstance(band, dict)]
        of = f"of wave vector {number + 1}"
        q.append(numbers_of(row.get("q-position"), f"q-position {of}", (3,)))
        thz.append(numbers_of([band.get("frequency") for band in bands], f"frequencies {of}", size))
        weights.append(numbers_of(row.get("weight", 1), f"weight {of}", ()))
    told = np.array(weights) if any("weight" in row for row in rows) else None
    # On a mesh Γ has no direction, and no such term.
    polar = "mesh" not in found and _has_charges(path.parent)
    return _labelled(atoms, str(path), keys, np.array(q), np.array(thz), masses, told, polar)


def _has_charges(folder: Path) -> bool:
    """True if a folder holds Born effective charges, which phonopy takes without being asked."""
    for name in ("phonopy.yaml", "phonopy_params.yaml", "phonopy_params.yaml.xz"):
        if (folder / name).is_file():
            with open_bytes(folder / name) as file:
                if b"born_effective_charge:" in file.read(LARGEST):
                    return True
    return (folder / "BORN").is_file()


def crystal_of(points: list, cell: Float[np.ndarray, "3 3"]) -> tuple[Atoms, Float[np.ndarray, " N"]]:
    """The crystal of phonopy's `points`, and its masses."""
    numbers, masses, scaled = [], [], []
    for number, point in enumerate(points):
        of = f"of atom {number + 1}"
        point = point if isinstance(point, dict) else {}
        if "mixture" in point or numbers_of(point.get("weight", 1), f"weight {of}", ()) != 1:
            raise ValueError(f"found a mixture of elements in the place {of}, needed one atom on every site")
        symbol = str(point.get("symbol"))
        numbers.append(atomic_number(symbol))
        scaled.append(numbers_of(point.get("coordinates"), f"coordinates {of}", (3,)))
        masses.append(numbers_of(point.get("mass", _mass(symbol)), f"mass {of}", ()))
    atoms = Atoms(numbers, scaled_positions=np.reshape(scaled, (-1, 3)), cell=cell, pbc=True)
    check_crystal(atoms)
    return atoms, np.array(masses)


def _mass(symbol: str) -> float:
    return HEAVY.get(symbol, atomic_masses[atomic_number(symbol)])


def _of_band_structure(found: Mapping[str, Any], keys: Keys, name: str, material: str) -> LabelledCrystal:
    bands = found if "bands" in found else next((found[b] for b in BANDS if found.get(b)), None)
    if not isinstance(bands, dict) or not {"bands", "qpoints"} <= set(bands):
        raise ValueError(
            f"found no band structure with bands and qpoints, needed it at the top or as {' or '.join(BANDS)}"
        )
    structure = bands.get("structure")
    if not isinstance(structure, dict):
        raise ValueError(
            "the band structure has no structure, needed the cell that its qpoints refer to: give it to "
            "pymatgen's PhononBandStructure as structure=, and write the file again"
        )
    atoms = structure_atoms(structure)
    check_crystal(atoms)
    masses = site_property(structure, "phonopy_masses")
    if masses is None:
        masses = [_mass(site["species"][0]["element"]) for site in structure["sites"]]
    if isinstance(bands.get("lattice_rec"), dict):
        _check_reciprocal(atoms, numbers_of(bands["lattice_rec"].get("matrix"), "lattice_rec", (3, 3)))
    q = numbers_of(bands["qpoints"], "qpoints", (None, 3))
    thz = numbers_of(bands["bands"], "bands", (3 * len(atoms), len(q))).T
    masses = numbers_of(masses, "masses", (len(atoms),))
    functional = keys.functional_of(found)
    return _labelled(
        atoms, name, keys, q, thz, masses, polar=bool(bands.get("has_nac")), material=material,
        functional=functional,
    )  # fmt: skip


def _labelled(
    atoms: Atoms,
    name: str,
    keys: Keys,
    q: Float[np.ndarray, "k 3"],
    thz: Float[np.ndarray, "k branches"],
    masses: Float[np.ndarray, " N"],
    weights: Float[np.ndarray, " k"] | None = None,
    polar: bool = False,
    material: str = "",
    functional: str = "",
) -> LabelledCrystal:
    """The crystal with each wave vector once, which bands repeat where their segments meet.

    Wave vectors are left out where the frequencies depend on the direction of approach: where a file has
    several sets of them, and at Γ if the file is `polar`.
    """
    if not len(q):
        raise ValueError("it has no wave vector")
    of, first = _alike(q)
    shape = (len(first), thz.shape[1])
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    ordered = np.sort(thz, axis=1)
    np.minimum.at(low, of, ordered)
    np.maximum.at(high, of, ordered)
    split = (high - low).max(axis=1) > SAME_THZ
    at_gamma = np.abs(q[first] - np.rint(q[first])).max(axis=1) < SAME_Q
    split |= polar & at_gamma
    if split.any():
        keys.noted[SPLIT] += 1
    sums = np.ones(len(first)) if weights is None else np.bincount(of, weights)
    kept = np.flatnonzero(~split)
    kept = kept[np.argsort(first[kept])]  # in the order of the file
    its = Frequencies(q[first[kept]], ordered[first[kept]], masses, sums[kept])
    return _with_frequencies(crystal(atoms, name, material, functional), its)


def _with_frequencies(found: LabelledCrystal, frequencies: Frequencies) -> LabelledCrystal:
    return replace(found, labels=replace(found.labels, frequencies=frequencies))


def _alike(q: Float[np.ndarray, "k 3"]) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " distinct"]]:
    """The number of each wave vector among the distinct ones, and the first of each of these.

    Wave vectors that differ by a reciprocal lattice vector are alike.
    """
    steps = np.zeros(q.shape, int)
    for axis, x in enumerate((q % 1.0).T):
        order = np.argsort(x)
        steps[order, axis] = np.cumsum(np.diff(x[order], prepend=x[order[0]]) > SAME_Q)
        if x[order[0]] + 1 - x[order[-1]] <= SAME_Q:  # one on each side of a whole number
            steps[steps[:, axis] == steps[order[-1], axis], axis] = 0
    _, first, of = np.unique(steps, axis=0, return_index=True, return_inverse=True)
    return of.reshape(-1), first


def _check_reciprocal(atoms: Atoms, rows: Float[np.ndarray, "3 3"], unit: str = "angstrom") -> None:
    """Raises ValueError unless `rows` are reciprocal lattice vectors of the cell, with or without 2π.

    How both are turned in space does not matter.
    """
    rows = rows / LENGTHS[unit]
    needed = np.linalg.inv(atoms.cell.array @ atoms.cell.array.T)
    scale = np.abs(needed).max()
    if not any(np.abs(rows @ rows.T / f**2 - needed).max() < SAME_CELL * scale for f in (1.0, 2 * np.pi)):
        lengths = [
            " ".join(f"{x:.5g}" for x in np.linalg.norm(v, axis=1))
            for v in (rows, atoms.cell.reciprocal().array)
        ]
        raise ValueError(
            f"found reciprocal lattice vectors {lengths[0]} 1/Å long, needed those of the cell beside them, "
            f"{lengths[1]} 1/Å: the wave vectors refer to another cell of this crystal"
        )


def _check_lengths(atoms: Atoms) -> None:
    """Raises ValueError if no two atoms are as close as bonds are, as in a cell that is in bohr."""
    from vesin import NeighborList

    if np.isin(atoms.numbers, NOBLE).all() or atoms.cell.volume < DENSE * len(atoms):
        return
    radii = covalent_radii[atoms.numbers]
    reach = 2 * FAR * radii.max()
    i, j, d = NeighborList(cutoff=reach, full_list=False).compute(
        atoms.positions, atoms.cell.array, periodic=True, quantities="ijd"
    )
    if not (d < FAR * (radii[i] + radii[j])).any():
        raise ValueError(
            f"found no two atoms closer than {FAR:g} times their bond length: the lattice may be in bohr, "
            "as phonopy writes it for calculators such as Quantum ESPRESSO. If so, add the line "
            '"length_unit: au" to the file'
        )


def numbers_of(values: Any, what: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """`values` as float64. Raises ValueError unless they are finite numbers of that shape; None: any."""
    try:
        found = np.asarray(values, np.float64)
    except (ValueError, TypeError, OverflowError):
        found = None
    if found is None or found.ndim != len(shape):
        sides = "×".join("n" if n is None else str(n) for n in shape)
        its = f"{sides} numbers" if shape else "a number"
        raise ValueError(f"found {what} {brief(values)}, needed {its}")
    needed = tuple(n if n is not None else m for n, m in zip(shape, found.shape, strict=True))
    if found.shape != needed:
        raise ValueError(f"found {what} of shape {found.shape}, needed {needed} for this cell")
    if not np.isfinite(found).all():
        raise ValueError(f"found {what} with numbers that are not finite")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """The YAML of a file as dictionaries, lists and words, without what is SKIPPED.

    Built from events: nothing in the file makes an object of another type, the largest parts are never in
    memory, and it takes a fifth of the time of yaml.safe_load. Raises ValueError for aliases, by which a
    small file could become a very large one.
    """
    import yaml

    try:
        with open_bytes(path) as file:
            found = _built(yaml.parse(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError as error:
        raise ValueError(one_line(str(error))) from None
    if not isinstance(found, dict):
        raise ValueError(f"it is of type {type(found).__name__}, needed names with values")
    return found


def _built(events: Iterable[Any]) -> Any:
    from yaml import AliasEvent, MappingStartEvent, ScalarEvent
    from yaml.events import CollectionEndEvent, CollectionStartEvent

    levels: list[tuple[bool, list]] = [(False, [])]  # whether it is a mapping, and what it holds so far
    count, skipped = 0, 0  # values so far, and levels below one that is left out
    for event in events:
        starts, ends = isinstance(event, CollectionStartEvent), isinstance(event, CollectionEndEvent)
        if isinstance(event, AliasEvent):
            raise ValueError(f"found an alias (*{brief(event.anchor)}), needed a file as phonopy writes it")
        is_mapping, values = levels[-1]
        if skipped or (starts and is_mapping and len(values) % 2 and values[-1] in SKIPPED):
            skipped += starts - ends
            if not skipped and ends:
                values.append(None)
            continue
        count += 1
        if starts:
            levels.append((isinstance(event, MappingStartEvent), []))
        elif ends:
            levels.pop()
            whole = _mapping(values) if is_mapping else values
            levels[-1][1].append(whole)
        elif isinstance(event, ScalarEvent):
            values.append(event.value)
        if count > MOST or len(levels) > DEEPEST:
            raise ValueError(f"it has more than {MOST} values, or more than {DEEPEST} levels of them")
    return levels[0][1][0] if levels[0][1] else None


def _mapping(values: list) -> dict[str, Any]:
    named = zip(values[::2], values[1::2], strict=True)
    return {key: value for key, value in named if isinstance(key, str)}


class _Point(NamedTuple):
    """A line of a table."""

    line: int
    q: tuple[float, float, float]
    branch: int | None  # from 1
    thz: float
    error: float  # NaN if there is none


def _of_table(path: Path) -> LabelledCrystal:
    lines = lines_of(path)
    atoms = read_crystal(path.parent / named_crystal(lines))
    points = list(_read_points(lines, 3 * len(atoms)))
    return _with_frequencies(crystal(atoms, str(path)), _rows(points, atoms))


def lines_of(path: Path) -> list[str]:
    """The lines of a table. Raises ValueError if it is no text, or too large for one."""
    with open_bytes(path) as file:
        raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ValueError(f"it has more than {LARGEST >> 20} MiB, needed a table")
    try:
        return raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text: {error.reason} at byte {error.start}") from None


def named_crystal(lines: list[str]) -> str:
    """The file that the comment "# crystal: FILE" names."""
    found = {}
    for number, line in enumerate(lines, 1):
        word, colon, value = line.lstrip().lstrip("#").partition(":")
        if line.lstrip().startswith("#") and colon and word.strip().lower() == "crystal":
            found[number] = value.strip()
    if len(found) != 1 or not all(found.values()):
        where = f" in lines {', '.join(map(str, found))}" if len(found) > 1 else ""
        raise ValueError(
            f'found {len(found)} comments that name a crystal{where}, needed one, "# crystal: NaCl.cif", '
            "with a path from the folder of the table"
        )
    return next(iter(found.values()))


def _read_points(lines: list[str], branches: int) -> Iterator[_Point]:
    header: list[str] | None = None
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        if header is None:
            comma = "," if "," in text else None
            header = _header([word.strip().lower() for word in text.split(comma)], number)
            continue
        words = [word.strip() for word in text.split(comma)]
        if len(words) == len(header) - 1 and header[-1] == "error":
            words.append("-")
        if len(words) != len(header):
            raise ValueError(f"line {number} has {len(words)} columns, needed {len(header)}: {header}")
        yield _point(number, dict(zip(header, words, strict=True)), branches)


def _header(words: list[str], number: int) -> list[str]:
    """The names of the columns. Raises ValueError if one is missing or not known."""
    if {"qx", "qy", "qz"} & set(words):
        raise ValueError(
            f"line {number} names Cartesian wave vectors (qx, qy, qz), needed q1, q2, q3 in reciprocal "
            "lattice units of the cell of the crystal: q times its lattice vectors, over 2π if q is in 1/Å"
        )
    units = [word for word in words if word in UNITS]
    rest = sorted(word for word in words if word not in UNITS and word != "error")
    if len(units) != 1 or rest != ["branch", "q1", "q2", "q3"] or words.count("error") > 1:
        raise ValueError(
            f"line {number} is the header {brief(' '.join(words))}, needed q1 q2 q3 branch, one of "
            "thz, cm-1 and mev, and error if the table has errors"
        )
    return words


def _point(line: int, words: dict[str, str], branches: int) -> _Point:
    def number(column: str) -> float:
        try:
            value = float(words[column])
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise ValueError(f"line {line} has {column} {brief(words[column])}, needed a number")
        return value

    unit = next(word for word in words if word in UNITS)
    branch, error = None, float("nan")
    if words["branch"] != "-":
        if not (words["branch"].isdecimal() and 1 <= float(words["branch"]) <= branches):
            raise ValueError(
                f"line {line} has branch {brief(words['branch'])}, needed a number from 1 to {branches}, "
                f'which are those of this cell, or "-" for a point that may belong to any'
            )
        branch = int(words["branch"])
    if words.get("error", "-") not in ("-", ""):
        error = number("error") * UNITS[unit]
        if error <= 0:
            raise ValueError(f'line {line} has error {words["error"]}, needed a positive number, or "-"')
    q = (number("q1"), number("q2"), number("q3"))
    return _Point(line, q, branch, number(unit) * UNITS[unit], error)


def _rows(points: list[_Point], atoms: Atoms) -> Frequencies:
    """One row for the points of each wave vector that name a branch, and one for those that name none."""
    branches = 3 * len(atoms)
    rows: dict[tuple[tuple[float, float, float], bool], dict[int, _Point]] = {}
    for point in points:
        row = rows.setdefault((point.q, point.branch is not None), {})
        place = len(row) if point.branch is None else point.branch - 1
        if place in row:
            raise ValueError(
                f"lines {row[place].line} and {point.line} have branch {point.branch} of one wave vector"
            )
        if place == branches:
            raise ValueError(
                f"line {point.line} is point {branches + 1} of one wave vector, needed at most {branches}: "
                f"a cell of {len(atoms)} atoms has as many branches"
            )
        row[place] = point
    if len(rows) * branches > MOST:
        raise ValueError(f"it has {len(rows)} wave vectors, too many for a cell of {len(atoms)} atoms")
    thz, error = (np.full((len(rows), branches), np.nan) for _ in range(2))
    for k, row in enumerate(rows.values()):
        for place, point in row.items():
            thz[k, place], error[k, place] = point.thz, point.error
    q = np.array([q for q, _ in rows]).reshape(-1, 3)
    assigned: Bool[np.ndarray, " k"] = np.array([known for _, known in rows], bool)
    return Frequencies(q, thz, atoms.get_masses(), None, assigned, error)
