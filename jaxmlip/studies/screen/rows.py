"""The rows of a screening: what is known of each crystal, and how a chunk of crystals is carried on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ase import Atoms

from jaxmlip.studies.screen.inputs import Given, named
from jaxmlip.studies.screen.library import Chunk, Entry, atoms_of, chunks_of, described, gathered
from jaxmlip.studies.screen.properties import PROPERTIES, Found, Outcome, ScreenOptions, in_order
from jaxmlip.studies.study import plain

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from jaxmlip.potential import Potential

TOLD = (ValueError, RuntimeError, MemoryError)  # errors whose message says what is wrong


@dataclass
class Record:
    """What is known of one crystal: columns by property, reasons of failures, and where it came to rest."""

    atoms: Atoms
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)  # by property, for those that are done
    failed: dict[str, str] = field(default_factory=dict)  # by property
    notes: list[str] = field(default_factory=list)

    def lacks(self, names: Iterable[str]) -> list[str]:
        """The properties among `names` that have not been tried."""
        return [name for name in names if name not in self.columns]

    def take(self, name: str, outcome: Outcome) -> None:
        """Adds what was found for a property."""
        if isinstance(outcome, Found):
            self.columns[name] = plain(outcome.columns)
            self.notes += [note for note in outcome.notes if note not in self.notes]
            if outcome.failed:
                self.failed[name] = outcome.failed
            if outcome.atoms is not None:
                self.atoms = atoms_of(described(outcome.atoms))  # as it is read back after a kill
        else:
            self.columns[name] = {}
            reason = " ".join(str(outcome).split())
            kind = "" if reason and isinstance(outcome, TOLD) else f"{type(outcome).__name__}: "
            self.failed[name] = kind + reason

    def as_line(self, key: str) -> str:
        """The record as JSON in one line; numbers are read back as they are."""
        its = {"columns": self.columns, "failed": self.failed, "notes": self.notes}
        return json.dumps({"key": key, **its, "atoms": described(self.atoms)}, ensure_ascii=False)

    @classmethod
    def of_line(cls, line: str | bytes) -> tuple[str, Record]:
        its = json.loads(line)
        return its["key"], cls(atoms_of(its["atoms"]), its["columns"], its["failed"], its["notes"])


class Row(NamedTuple):
    """A row of the table, and the crystal that it belongs to: relaxed, if it was relaxed."""

    columns: dict[str, Any]
    atoms: Atoms | None  # None if it could not be used


def rows_of(entry: Entry, record: Record | None, names: Sequence[str]) -> list[Row]:
    """The rows of a crystal, one for each of its names; columns are those of the properties `names`."""
    atoms = entry.atoms if record is None else record.atoms
    own: dict[str, Any] = {"failed": entry.failed or None}
    for name in names:
        its = {} if record is None else record.columns.get(name, {})
        own |= {f"{name}_{column}": its.get(column) for column in PROPERTIES[name].columns}
        own[f"{name}_failed"] = None if record is None else record.failed.get(name)
    notes = [*entry.notes, *([] if record is None else record.notes)]
    formula = None if atoms is None else atoms.get_chemical_formula("metal", empirical=True)
    known = {"key": entry.key, "formula": formula, "atoms": None if atoms is None else len(atoms)}
    first = entry.names[0]
    return [
        Row(
            {"name": name, **known, "same_as": None if name == first else first, **own}
            | {"notes": "; ".join(notes) or None},
            atoms,
        )
        for name in entry.names
    ]


def carry_on(
    potential: Potential,
    chunk: Chunk,
    records: dict[str, Record],
    names: Sequence[str],
    options: ScreenOptions,
    save: Callable[[], object] = lambda: None,
) -> None:
    """Computes the properties `names` that crystals of a chunk lack, one property after the other.

    `records` are those of the chunk by the keys of crystals, which are added where there is none. `save` is
    called after each property.
    """
    for entry in chunk.entries:
        records.setdefault(entry.key, Record(entry.atoms))
    for name in names:
        left = [key for key in chunk.keys if records[key].lacks([name])]
        if not left:
            continue
        ready = []
        for key in left:
            needed = [*(["relax"] if name != "relax" and "relax" in names else []), *PROPERTIES[name].needs]
            missing = [other for other in needed if other in records[key].failed]
            if missing:
                records[key].take(name, ValueError(f"left out, since {missing[0]} failed."))
            else:
                ready.append(key)
        crystals = [records[key].atoms for key in ready]
        for k, outcome in computed(name, potential, crystals, options, chunk):
            records[ready[k]].take(name, outcome)
        save()


def computed(
    name: str, potential: Potential, crystals: Sequence[Atoms], options: ScreenOptions, chunk: Chunk
) -> Iterator[tuple[int, Outcome]]:
    """What was found for each crystal. A fault that ends the batch is looked for one by one."""
    left = dict.fromkeys(range(len(crystals)))
    compute = PROPERTIES[name].compute
    while left:
        numbers = list(left)
        try:
            for k, outcome in compute(potential, [crystals[k] for k in numbers], options, chunk):
                del left[numbers[k]]
                yield numbers[k], outcome
            return
        except Exception as error:  # symmetry, linear algebra and optimisers raise any, each for one crystal
            if len(numbers) == 1:
                yield numbers[0], error
                return
        for k in list(left):
            yield from (
                (k, outcome) for _, outcome in computed(name, potential, [crystals[k]], options, chunk)
            )
            del left[k]


def screen(
    potential: Potential,
    crystals: Mapping[str, Atoms | Structure] | Iterable[Atoms | Structure | Given],
    properties: Sequence[str] = ("relax",),
    **options: Any,
) -> Iterator[Row]:
    """Properties of many crystals, computed side by side: yields a `Row` for each crystal, as they come.

    `properties` are names in PROPERTIES. With "relax" the others are of the relaxed crystal. A row has the
    "name" of the crystal (its key in a mapping, or its number), its "formula", and the columns of each
    property with their units, such as "elastic_bulk_GPa". What fails is a reason in "failed", if the crystal
    cannot be used, or in "elastic_failed" and so on; nothing is raised for it. A crystal that is given twice
    is computed once; its second row has "same_as". `options` are the fields of `ScreenOptions`.

    The potential should have dtype "float64". Raises ValueError, before anything is computed, for unknown
    properties and for options that make no sense.
    """
    names, how = in_order(properties), ScreenOptions(**options)
    return _rows(potential, crystals, names, how)


def _rows(potential: Potential, crystals, names: Sequence[str], options: ScreenOptions) -> Iterator[Row]:
    entries = gathered(potential, named(crystals))
    for entry in entries:
        if entry.failed:
            yield from rows_of(entry, None, names)
    for chunk in chunks_of(potential, entries):
        records: dict[str, Record] = {}
        carry_on(potential, chunk, records, names, options)
        for entry in chunk.entries:
            yield from rows_of(entry, records[entry.key], names)
