"""Tables, for a terminal and for Markdown, and numbers with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxmlip.system.console import console

NUMERIC = "0123456789+-−.<>≤~"  # first characters of a number, or of the dash for no number


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float | None, interval: Sequence[float | None] | None) -> Estimate | None:
        """The number of a row, with null as NaN; None if there is no number."""
        low, high = (math.nan if x is None else x for x in interval or (None, None))
        return None if value is None else cls(value, low, high)

    @classmethod
    def read(cls, found: Mapping[str, Any] | None) -> Estimate | None:
        """The Estimate of value, low and high, as rows keep it; None if there is none."""
        return cls.of(found["value"], (found["low"], found["high"])) if found else None


@dataclass(frozen=True)
class Table:
    """A table. Cells are text, whole numbers, numbers, `Estimate`s, or None for nothing."""

    title: str
    columns: tuple[str, ...]  # with units
    rows: Sequence[Sequence[Any]]
    digits: int = 3  # after the point
    note: str = ""

    @classmethod
    def of(cls, title: str, rows: Iterable[Mapping[str, Any]], digits: int = 3, note: str = "") -> Table:
        """A table of rows that name their columns, some of which they may lack."""
        rows = list(rows)
        columns = tuple(dict.fromkeys(name for row in rows for name in row))
        return cls(title, columns, [[row.get(name) for name in columns] for row in rows], digits, note)

    def __rich__(self) -> Any:
        """The table for a terminal: columns of numbers are flush right."""
        import rich.box
        from rich.table import Table as RichTable

        table = RichTable(
            title=self.title, caption=self.note or None, title_justify="left", caption_justify="left",
            box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
        )  # fmt: skip
        rows = [[self.cell(x) for x in row] for row in self.rows]
        for k, name in enumerate(self.columns):
            numbers = all(row[k][:1] in NUMERIC for row in rows)
            table.add_column(name, justify="right" if numbers else "left")
        for row in rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", f"| {' | '.join(self.columns)} |", "|---" * len(self.columns) + "|"]
        lines += [f"| {' | '.join(self.cell(x) for x in row)} |" for row in self.rows]
        return "\n".join([*lines, *(["", self.note] if self.note else [])])

    def cell(self, x: Any) -> str:
        """One cell as text."""
        if isinstance(x, Estimate):
            known = math.isfinite(x.low)
            return self.cell(x.value) + (f" ({self.cell(x.low)} to {self.cell(x.high)})" if known else "")
        if x is None or (isinstance(x, float | np.floating) and not math.isfinite(x)):
            return "-"
        return f"{x:.{self.digits}f}" if isinstance(x, float | np.floating) else str(x)


def show(*tables: Table) -> None:
    """Prints tables; in a file or a pipe they are as wide as they need to be."""
    for table in tables:
        console(width=200).print(table)
