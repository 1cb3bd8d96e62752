"""Tables on standard output."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Console
from rich.table import Table


def table_of(title: str, columns: Sequence[str], left: Collection[str] = ()) -> Table:
    """An empty table; columns are flush right, as numbers are, except those in `left`."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table


def print_table(table: Table) -> None:
    console = Console()
    # In a file or a pipe a table is as wide as it needs to be.
    Console(width=None if console.is_terminal else 200).print(table)
