"""Files of ASE: extended XYZ, trajectories and databases. Energies in eV, lengths in Å, stresses in eV/Å³.

Stresses are positive in tension and, as six numbers, in the order xx yy zz yz xz xy.
"""

from __future__ import annotations

import io
import re
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.data.readers.common import Frame, Keys, crystal, open_bytes, same, symmetric
from jaxmlip.data.readers.families import labels_of

MATERIAL = ("material", "material_id", "mp_id")
SIX = re.compile(r"""\b(?P<name>stress|virial)=["'{\[](?P<numbers>[^"'}\]]*)["'}\]]""")
MAX_ROW = 1 << 30  # bytes that one row of a database may have


def read_extxyz(path: Path, keys: Keys) -> Iterator[Frame]:
    with open_bytes(path) as binary, io.TextIOWrapper(binary, encoding="utf-8") as text:
        for number, frame in enumerate(_frames(text)):
            yield partial(_of_text, frame, keys, f"{path} frame {number}")


def _of_text(frame: str, keys: Keys, name: str) -> LabelledCrystal:
    from ase.io.extxyz import read_xyz

    try:
        atoms = next(read_xyz(io.StringIO(frame), index=0, properties_parser=_comment))
    except KeyError as error:
        raise ValueError(f"{name} has {error}, needed a chemical symbol") from None
    return _of_atoms(atoms, keys, name)


def _comment(line: str) -> dict[str, Any]:
    """The names and values in the comment of a frame. Stresses of six numbers are made nine, as ASE needs."""
    from ase.io.extxyz import key_val_str_to_dict

    return key_val_str_to_dict(SIX.sub(_nine, line))


def _nine(match: re.Match) -> str:
    numbers = match["numbers"].replace(",", " ").split()
    if len(numbers) != 6:
        return match[0]
    full = symmetric([float(x) for x in numbers]).ravel()
    return f'{match["name"]}="{" ".join(repr(float(x)) for x in full)}"'


def _frames(text) -> Iterator[str]:
    """The lines of each frame in turn: a number of atoms, a comment, the atoms, vectors (VEC)."""
    line = text.readline()
    while line:
        if not line.strip():  # an empty line may end a file
            line = text.readline()
            continue
        if not line.strip().isdecimal():
            raise ValueError(f"found {line.strip()[:60]!r}, needed the number of atoms of a frame")
        atoms = int(line)
        lines = [line]
        for _ in range(atoms + 1):
            lines.append(text.readline())
            if not lines[-1]:
                raise EOFError(f"the frame of {atoms} atoms ends after {len(lines) - 3} of them")
        while (line := text.readline()).startswith("VEC"):
            lines.append(line)
        if not lines[-1].endswith("\n"):
            columns = [len(found.split()) for found in lines[-2:]]
            if atoms > 1 and columns[0] != columns[1]:
                raise EOFError("the last line of the last frame is not whole")
        yield "".join(lines)


def read_trajectory(path: Path, keys: Keys) -> Iterator[Frame]:
    from ase.io.trajectory import TrajectoryReader

    with open(path, "rb") as file:
        if not file.read(8) == b"- of Ulm":
            raise ValueError(
                "it is not in ASE's current trajectory format; older formats hold pickles, which can run code"
            )
        file.seek(0)
        with TrajectoryReader(file) as frames:
            for number, atoms in enumerate(frames):
                yield partial(_of_atoms, atoms, keys, f"{path} frame {number}")


def read_sqlite(path: Path, keys: Keys) -> Iterator[Frame]:
    from ase.db import connect

    _check_sqlite(path)
    for row in connect(path, type="db", use_lock_file=False).select():
        values = {name: row[name] for name in row if name != "data"}
        more = {"key_value_pairs": row.key_value_pairs, "data": row.data}
        yield partial(_of_row, {**values, **more}, keys, f"{path} row {row.id}")


def _check_sqlite(path: Path) -> None:
    """Raises EOFError if the file is cut off, ValueError if ASE would write a new database into it."""
    with open(path, "rb") as file:
        head = file.read(100)
    size, pages = int.from_bytes(head[16:18]), int.from_bytes(head[28:32])
    needed = pages * (65536 if size == 1 else size)
    if len(head) < 100 or path.stat().st_size < needed:
        raise EOFError(f"it has {path.stat().st_size} bytes and its first page says {needed}: it is cut off")
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        if not database.execute("select 1 from sqlite_master where name = 'systems'").fetchall():
            raise ValueError("it has no table `systems`, which databases of ASE have")


def read_lmdb(path: Path, keys: Keys) -> Iterator[Frame]:
    """Rows as the packages ase-db-backends and fairchem write them: JSON under zlib, keys 1, 2, ..."""
    import lmdb

    try:
        database = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, create=False)
    except lmdb.Error as error:
        raise ValueError(f"LMDB cannot open it ({error})") from None
    with database, database.begin() as transaction:
        # Reading beyond the end of a mapped file would kill the process.
        file = path / "data.mdb" if path.is_dir() else path
        needed = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
        if file.stat().st_size < needed:
            raise EOFError(
                f"it has {file.stat().st_size} bytes and its first page says {needed}: it is cut off"
            )
        names = sorted(int(k) for k in transaction.cursor().iternext(keys=True, values=False) if k.isdigit())
        for number in names:
            value = transaction.get(str(number).encode())
            yield partial(_of_value, value, keys, f"{path} row {number}")


def _of_value(value: bytes, keys: Keys, name: str) -> LabelledCrystal:
    from ase.io.jsonio import decode

    if value.startswith(b"\x80"):
        raise ValueError(
            f"{name} is a pickle, which can run code; needed JSON, as the package ase-db-backends writes it"
        )
    inflate = zlib.decompressobj()
    text = inflate.decompress(value, MAX_ROW)
    if not inflate.eof:
        raise ValueError(f"{name} is cut off, or larger than {MAX_ROW} bytes")
    return _of_row(decode(text.decode()), keys, name)


def _of_row(row: Mapping[str, Any], keys: Keys, name: str) -> LabelledCrystal:
    cell = row["cell"]
    atoms = Atoms(
        np.asarray(row["numbers"], dtype=int),
        np.asarray(row["positions"], dtype=np.float64),
        cell=np.asarray(getattr(cell, "array", cell), dtype=np.float64).reshape(3, 3),
        pbc=np.asarray(row["pbc"], dtype=bool),
    )
    more = row.get("data") or {}
    given = {**(more if isinstance(more, dict) else {}), **(row.get("key_value_pairs") or {})}
    return _of_record(atoms, given, row, keys, name)


def _of_atoms(atoms: Atoms, keys: Keys, name: str) -> LabelledCrystal:
    given = {**atoms.info, **atoms.arrays}
    return _of_record(atoms, given, atoms.calc.results if atoms.calc else {}, keys, name)


def _of_record(
    atoms: Atoms, given: Mapping[str, Any], calculated: Mapping[str, Any], keys: Keys, name: str
) -> LabelledCrystal:
    """The crystal from its author's values and a calculator's, which count if both have the same name."""
    for field in ("energy", "forces", "stress", "magmoms"):
        one, other = given.get(field), calculated.get(field)
        if one is not None and other is not None and not same(one, other):
            keys.noted[
                f"found two different values of {field}, and read the calculator's, not that in info, arrays "
                f"or data. Rename the latter, for example to REF_{field}, to read it"
            ] += 1
    known = {**given, **calculated}
    return crystal(
        atoms,
        name,
        str(keys.first("material", known, *MATERIAL)[1] or ""),
        keys.functional_of(known),
        **labels_of(atoms, known, keys),
    )
