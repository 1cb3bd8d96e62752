"""Tables on standard output."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.table import Table

from jaxmlip.system.console import console


def table_of(title: str, columns: Sequence[str], left: Collection[str] = ()) -> Table:
    """An empty table; columns are right-aligned for numbers, except those in `left`."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table


def print_table(table: Table) -> None:
    # In a file or a pipe a table is as wide as its contents.
    console(width=200).print(table)
