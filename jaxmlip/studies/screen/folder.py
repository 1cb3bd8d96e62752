"""A screening in a folder: killed at will, carried on by any number of processes, shared by hosts.

The folder holds begun.json (what rows are computed with), screening.json (what was asked for last),
crystals.jsonl (every crystal once, with its names), parts/ID.jsonl (what is known of the crystals of a chunk,
replaced as a whole whenever a property of all of them is there), claims (locks of chunks), logs of processes,
and the results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmlip.studies.screen.inputs import Given
from jaxmlip.studies.screen.library import Chunk, Entry, chunks_of, gathered
from jaxmlip.studies.screen.properties import ScreenOptions, in_order
from jaxmlip.studies.screen.rows import Record, Row, carry_on, rows_of
from jaxmlip.studies.study import check_begun, fingerprint
from jaxmlip.system.files import check_folder, is_remain, write_whole
from jaxmlip.system.locks import Claims

if TYPE_CHECKING:
    from jaxmlip.potential import Potential

ASKED, CRYSTALS, PARTS = "screening.json", "crystals.jsonl", "parts"
FREE = ("memory_limit",)  # options that change no row but by leaving a crystal out
FORMAT = 2  # of what is kept in a folder; another layout gets another number
WHOLE = (0, 1)  # the only shard


class Results:
    """What is there of the screening in a folder."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder, self.names = Path(folder), in_order(names)
        self.entries = self._read_entries()
        self._parts: dict[Path, tuple[tuple[int, int], dict[str, Record]]] = {}

    def _read_entries(self) -> list[Entry]:
        path = self.folder / CRYSTALS
        if not path.is_file():
            return []
        return [Entry.of_line(line) for line in path.read_bytes().splitlines()]

    def records(self) -> dict[str, Record]:
        """What is known of all crystals, by their keys, as it is on disk now."""
        parts = {}
        for path in sorted((self.folder / PARTS).glob("*.jsonl")):
            if is_remain(path):
                continue
            told = path.stat()
            stamp = (told.st_mtime_ns, told.st_size)
            known = self._parts.get(path)
            parts[path] = known if known and known[0] == stamp else (stamp, _read_part(path))
        self._parts = parts
        found: dict[str, Record] = {}
        for _, records in parts.values():
            for key, record in records.items():
                other = found.get(key)
                # A crystal is in two parts if crystals were added after it was computed.
                if other is None or len(record.columns) > len(other.columns):
                    found[key] = record
        return found

    def finished(self) -> tuple[int, int, int]:
        """How many crystals have everything, how many of them failed in something, and how many there are."""
        records = self.records()
        keys = [entry.key for entry in self.entries if not entry.failed]
        done = [records[key] for key in keys if key in records and not records[key].lacks(self.names)]
        return len(done), sum(bool(record.failed) for record in done), len(keys)

    def rows(self) -> list[Row]:
        """The rows of all crystals as far as they are known, in the order of their names."""
        records = self.records()
        rows = [row for entry in self.entries for row in rows_of(entry, records.get(entry.key), self.names)]
        return sorted(rows, key=lambda row: row.columns["name"])


class Screening(Results):
    """A screening in a folder, which may be begun. Raises StudyError if other settings began it."""

    def __init__(self, potential: Potential, folder: Path, names: Sequence[str], options: ScreenOptions):
        check_folder(folder)
        (Path(folder) / PARTS).mkdir(parents=True, exist_ok=True)
        super().__init__(folder, names)
        self.potential, self.options = potential, options
        fixed = {name: value for name, value in asdict(options).items() if name not in FREE}
        # Without relaxation, properties are those of another crystal.
        fixed |= {"relaxed": "relax" in self.names, "dtype": potential.dtype, "model": potential.name}
        fixed |= {"format": FORMAT}
        weights = {"weights": fingerprint(potential)}
        check_begun(self.folder, "screening", json.loads(json.dumps(fixed)), weights)

    def add(self, given: Iterable[Given]) -> None:
        """Adds crystals. A name that is there already is the name of the new crystal."""
        new = gathered(self.potential, given)
        taken = {name for entry in new for name in entry.names}
        entries = {entry.key: entry for entry in new}
        for old in self.entries:
            names = [name for name in old.names if name not in taken]
            if not names:
                continue
            old.names = names
            entry = entries.setdefault(old.key, old)
            if entry is not old:
                entry.names = [*names, *entry.names]
        for entry in entries.values():
            entry.names.sort()
        # In the order of names, so that the table does not depend on what was added when.
        self.entries = sorted(entries.values(), key=lambda entry: entry.names)
        write_whole(self.folder / CRYSTALS, "".join(f"{entry.as_line()}\n" for entry in self.entries))

    def forget_failures(self) -> None:
        """Makes properties that failed be tried again. No other process should work in the folder."""
        for path in sorted((self.folder / PARTS).glob("*.jsonl")):
            records = _read_part(path)
            for record in records.values():
                for name in record.failed:
                    del record.columns[name]
                record.failed = {}
            write_whole(path, "".join(f"{record.as_line(key)}\n" for key, record in records.items()))

    def work(self, shard: tuple[int, int] = WHOLE, tell: Callable[[], object] = lambda: None) -> None:
        """Computes what is missing and no other process computes; of shard k of n only every n-th chunk.

        `tell` is called after each chunk.
        """
        number, shards = shard
        known = self.records()
        with closing(Claims(self.folder)) as claims:
            for chunk in chunks_of(self.potential, self.entries)[number::shards]:
                if self._is_done(chunk, known):
                    continue
                with claims.claimed(chunk.part) as ours:
                    # Another process may have ended it since.
                    known = self.records()
                    if ours and not self._is_done(chunk, known):
                        self._carry_on(chunk)
                tell()

    def _is_done(self, chunk: Chunk, known: Mapping[str, Record]) -> bool:
        return all(key in known and not known[key].lacks(self.names) for key in chunk.keys)

    def _carry_on(self, chunk: Chunk) -> None:
        known = self.records()
        records = {key: known[key] for key in chunk.keys if key in known}

        def save() -> None:
            text = "".join(f"{records[key].as_line(key)}\n" for key in chunk.keys)
            write_whole(self.folder / PARTS / f"{chunk.id}.jsonl", text)

        carry_on(self.potential, chunk, records, self.names, self.options, save)


def _read_part(path: Path) -> dict[str, Record]:
    return dict(Record.of_line(line) for line in path.read_bytes().splitlines())
