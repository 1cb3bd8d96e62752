"""The crystals of a screening, each once, checked against the potential, and divided into chunks.

The chunks follow from the crystals alone: whatever is killed, and however the work is shared, a crystal is
computed beside the same others, so that its row is the same to the last digit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from ase import Atoms

from jaxmlip.crystals import batches
from jaxmlip.crystals.batching import WORK, BatchShape, sizes_of
from jaxmlip.derivatives.together import BYTES, paying
from jaxmlip.potential import Potential
from jaxmlip.studies.screen.inputs import Given
from jaxmlip.system.progress import track

ROUNDED = 1e-6  # Å and u; crystals that differ by less are the same one
SMALL, RATIO = 1_000, 4  # bonds and angles of a crystal of the first class; from one class to the next
# Bonds and angles of a chunk, and crystals in it: enough to fill a batch for most of the time, and not more
# than what may be lost by a kill.
CHUNK = {"cpu": (20_000, 64)}
CHUNK_OF_OTHERS = (400_000, 1_024)
LARGEST = 2  # times BYTES: the memory of the largest shape in which crystals lie side by side


@dataclass
class Entry:
    """A crystal of a screening under all its names, or the reason why it cannot be computed."""

    key: str
    names: list[str]
    atoms: Atoms | None
    sizes: tuple[int, ...] = ()  # see `sizes_of`
    failed: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def messages(self) -> int:
        """Its work: the number of its bonds, in both directions, and angles."""
        return int(np.dot(self.sizes, WORK))

    def as_line(self) -> str:
        """The entry as JSON in one line; numbers are read back as they are."""
        made: dict[str, Any] = {
            "key": self.key,
            "names": self.names,
            "failed": self.failed,
            "notes": self.notes,
        }
        if self.atoms is not None:
            made |= {"sizes": list(self.sizes), "atoms": described(self.atoms)}
        return json.dumps(made, ensure_ascii=False)

    @classmethod
    def of_line(cls, line: str | bytes) -> Entry:
        its = json.loads(line)
        atoms = atoms_of(its["atoms"]) if "atoms" in its else None
        return cls(its["key"], its["names"], atoms, tuple(its.get("sizes", ())), its["failed"], its["notes"])


def described(atoms: Atoms) -> dict[str, Any]:
    """A crystal in types of JSON."""
    made = {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.tolist(),
        "pbc": atoms.pbc.tolist(),
    }
    for name in ("masses", "initial_magmoms"):
        if atoms.has(name):
            made[name] = atoms.arrays[name].tolist()
    return made


def atoms_of(described: dict[str, Any]) -> Atoms:
    """The crystal that `described` describes."""
    names = {"masses": "masses", "initial_magmoms": "magmoms"}
    more = {own: described[name] for name, own in names.items() if name in described}
    main = {name: described[name] for name in ("numbers", "positions", "cell", "pbc")}
    return Atoms(**main, **more)


def key_of(atoms: Atoms) -> str:
    """A hash of elements, positions, cell, masses and magnetic moments, rounded to ROUNDED."""
    digest = hashlib.sha256(np.asarray(atoms.numbers, np.int64).tobytes() + atoms.pbc.tobytes())
    moments = atoms.get_initial_magnetic_moments()
    for x in (atoms.positions, atoms.cell.array, atoms.get_masses(), moments):
        digest.update(np.rint(np.asarray(x, float) / ROUNDED).astype(np.int64).tobytes())
    return digest.hexdigest()[:16]


def gathered(potential: Potential, given: Iterable[Given]) -> list[Entry]:
    """An entry for each different crystal; those that the potential cannot take have a reason."""
    found: dict[str, Entry] = {}
    for name, atoms, failed, notes in track(given, "crystals"):
        entry = None
        if atoms is not None and not failed:
            constraints, atoms = atoms.constraints, _bare(atoms)
            try:
                sizes = sizes_of([potential.graph(atoms)])[0]
                key = key_of(atoms)
            except (ValueError, TypeError) as error:
                failed = str(error)
            else:
                said = [*notes, *_unused(constraints)]
                entry = Entry(key, [], _without_occupancy(atoms), tuple(sizes.tolist()), notes=said)
        if entry is None:
            key = "failed-" + hashlib.sha256(f"{name}\n{failed}".encode()).hexdigest()[:16]
            entry = Entry(key, [], None, failed=" ".join(failed.split()), notes=list(notes))
        found.setdefault(entry.key, entry).names.append(name)
    return list(found.values())


def _unused(constraints: Sequence[Any]) -> list[str]:
    """A note on constraints of a file, which a screening has no use for."""
    kinds = ", ".join(sorted({type(constraint).__name__ for constraint in constraints}))
    return [f"constraints of the file ({kinds}) are not used: every atom moves"] if kinds else []


def _bare(atoms: Atoms) -> Atoms:
    """The crystal without results and constraints; occupancies stay until they are checked."""
    bare = atoms.copy()
    bare.set_constraint()
    return bare


def _without_occupancy(atoms: Atoms) -> Atoms:
    return atoms_of(described(atoms))


@dataclass(frozen=True)
class Chunk:
    """Crystals that are computed together, and the shapes of their batches."""

    id: str
    entries: tuple[Entry, ...]
    moving: BatchShape  # for relaxation
    curved: tuple[BatchShape, ...]  # for second derivatives
    bytes_each: float  # of a linear map, for each bond and angle

    @property
    def part(self) -> int:
        """Its number as a part of the work, see `Claims`."""
        return int(self.id[:7], 16)

    @property
    def keys(self) -> list[str]:
        return [entry.key for entry in self.entries]


def chunks_of(potential: Potential, entries: Sequence[Entry]) -> list[Chunk]:
    """The chunks of all crystals that can be computed, in an order that mixes sizes.

    Crystals of similar size lie in one chunk, and share the shapes of all of their class: so few programs are
    compiled.
    """
    good = [entry for entry in entries if not entry.failed]
    good.sort(key=lambda entry: (entry.messages, entry.key))
    classes: dict[int, list[Entry]] = {}
    for entry in good:
        size, number = SMALL, 0
        while entry.messages > size:
            size, number = RATIO * size, number + 1
        classes.setdefault(number, []).append(entry)
    room, most = CHUNK.get(jax.default_backend(), CHUNK_OF_OTHERS)
    curved, bytes_each = _curved_shapes(potential, good)
    found = []
    for members in classes.values():
        moving = batches.moving_shape(np.array([entry.sizes for entry in members], int))
        for part in _parts(members, room, most):
            digest = hashlib.sha256(" ".join(entry.key for entry in part).encode()).hexdigest()[:16]
            found.append(Chunk(digest, tuple(part), moving, curved, bytes_each))
    # In the order of their hashes rates are those of all sizes, and the time left can be told.
    return sorted(found, key=lambda chunk: chunk.id)


def _curved_shapes(potential: Potential, entries: Sequence[Entry]) -> tuple[tuple[BatchShape, ...], float]:
    """Shapes for second derivatives of crystals side by side, and the bytes of a bond or angle.

    The largest crystals have none.
    """
    if not entries:
        return (), 0.0
    sizes = np.array([entry.sizes for entry in entries], int)

    def shapes(messages: float) -> list[BatchShape]:
        return batches.shapes_for(sizes, messages, batches.SPARE)

    (first, *others), each = paying(potential, potential.graph(entries[0].atoms), shapes, SMALL)
    return (first, *(shape for shape in others if shape.messages * each < LARGEST * BYTES)), each


def _parts(entries: Sequence[Entry], room: int, most: int) -> Iterable[list[Entry]]:
    part: list[Entry] = []
    filled = 0
    for entry in entries:
        if part and (filled + entry.messages > room or len(part) == most):
            yield part
            part, filled = [], 0
        part.append(entry)
        filled += entry.messages
    if part:
        yield part
