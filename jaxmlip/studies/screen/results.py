"""Results of a screening: a table as CSV and Parquet, a database of ASE, a summary and a page of figures."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmlip.studies.screen.properties import PROPERTIES, Column
from jaxmlip.studies.screen.rows import Row
from jaxmlip.system.files import write_whole, writing_folder
from jaxmlip.system.plots import COLOURS, grid
from jaxmlip.system.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE, PARQUET, DATABASE = "results.csv", "results.parquet", "results.db"
SUMMARY, FIGURE = "summary.md", "summary.png"
SHOWN = 12  # reasons of failures in the summary
BINS = 40
FLAT = 1e-4  # a narrower distribution is one number with its rounding
WIDE = 34  # characters of a line below a panel
# Words of a reason that belong to one crystal: formulas with their numbers, and numbers.
OWN = re.compile(r"\b(?:[A-Z][a-z]?\d*)+\b(?=\b)|[-+]?\d[\d.,e+-]*")


def write(folder: Path, rows: Sequence[Row], names: Sequence[str], model: str) -> list[str]:
    """Writes the results of the properties `names` into `folder`; returns the names of the files.

    Parquet is written if pyarrow is installed.
    """
    written = [TABLE, DATABASE, SUMMARY, FIGURE]
    with writing_folder(folder, last=SUMMARY) as draft:
        write_whole(draft / TABLE, as_csv(rows))
        if write_parquet(draft / PARQUET, rows, names):
            written.insert(1, PARQUET)
        write_database(draft / DATABASE, rows, model)
        write_whole(draft / SUMMARY, summary(rows, names, model) + "\n")
        draw(rows, names).savefig(draft / FIGURE, dpi=150)
    return written


def as_csv(rows: Sequence[Row]) -> str:
    """The table, a line for each row; numbers are written as they are, what is missing is empty."""
    text = io.StringIO()
    columns = list(rows[0].columns) if rows else ["name"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.columns for row in rows)
    return text.getvalue()


def write_parquet(path: Path, rows: Sequence[Row], names: Sequence[str]) -> bool:
    """Writes the table with the units of its columns as metadata; False without pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return False
    about = columns_of(names)
    arrays, fields = [], []
    for name in rows[0].columns if rows else ():
        array = pa.array([row.columns[name] for row in rows])
        if pa.types.is_null(array.type):
            array = array.cast(pa.float64() if name in about and about[name].unit else pa.string())
        told = {"unit": about[name].unit, "about": about[name].about} if name in about else None
        arrays.append(array)
        fields.append(pa.field(name, array.type, metadata=told))
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), path)
    return True


def write_database(path: Path, rows: Sequence[Row], model: str) -> None:
    """Writes a database of ASE: crystals as they were left, with the columns as key-value pairs."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.db import connect

    with connect(path, type="db", use_lock_file=False) as database:
        for row in rows:
            if row.atoms is None:
                continue
            atoms = row.atoms.copy()
            energy = row.columns.get("relax_energy_eV_per_atom") or row.columns.get("energy_eV_per_atom")
            if energy is not None:
                atoms.calc = SinglePointCalculator(atoms, energy=energy * len(atoms))
            pairs = {k: v for k, v in row.columns.items() if v is not None and k not in ("formula", "atoms")}
            # ASE takes no text that looks like a number.
            told = {k: v for k, v in pairs.items() if not isinstance(v, str) or not _is_number(v)}
            database.write(atoms, **told, model=model, data={"name": row.columns["name"]})


def _is_number(text: str) -> bool:
    if text.lower() in ("true", "false"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def columns_of(names: Sequence[str]) -> dict[str, Column]:
    """The columns of the properties `names`, as the table calls them."""
    return {f"{name}_{k}": column for name in names for k, column in PROPERTIES[name].columns.items()}


def summary(rows: Sequence[Row], names: Sequence[str], model: str) -> str:
    """Counts, failures by reason, and distributions, in Markdown."""
    return "\n\n".join(table.markdown() for table in tables(rows, names, model))


def tables(rows: Sequence[Row], names: Sequence[str], model: str) -> list[Table]:
    """The tables of the summary."""
    own = [row.columns for row in rows if row.columns["same_as"] is None]
    usable = [its for its in own if not its["failed"]]
    counts: list[tuple[str, Any]] = [("structures", len(rows))]
    counts += [("the same as another", len(rows) - len(own)), ("not usable", len(own) - len(usable))]
    for name in names:
        tried = [its for its in usable if its[f"{name}_failed"] or _has(its, name)]
        failed = sum(bool(its[f"{name}_failed"]) for its in usable)
        counts += [(f"{name}: computed", len(tried) - failed), (f"{name}: failed", failed)]
        if left := len(usable) - len(tried):
            counts.append((f"{name}: not yet", left))
    found = [Table(f"Screening with {model}", ("", "number"), counts)]
    if lines := reasons(own, names):
        found.append(Table("Failures", ("what", "reason", "number", "such as"), lines))
    lines = []
    for name, column in columns_of(names).items():
        values = numbers(own, name)
        if len(values) and not re.search(r"_C\d\d_", name):
            spread = np.percentile(values, (0, 5, 50, 95, 100)).tolist()
            lines.append(
                (name, f"{column.about} ({column.unit})" if column.unit else column.about, len(values))
            )
            lines[-1] += tuple(f"{x:.4g}" for x in spread)
    columns = ("column", "", "number", "lowest", "5 %", "median", "95 %", "highest")
    return [*found, Table("Distributions", columns, lines)] if lines else found


def _has(columns: Mapping[str, Any], name: str) -> bool:
    return any(columns[f"{name}_{k}"] is not None for k in PROPERTIES[name].columns)


def numbers(own: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """The numbers in a column, those of what failed left out."""
    failed = f"{name.partition('_')[0]}_failed"
    found = [its[name] for its in own if not its.get(failed)]
    return np.array([x for x in found if isinstance(x, float | int) and not isinstance(x, bool)], float)


def reasons(own: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[str, str, int, str]]:
    """What failed, why, how often, and the first crystal; reasons that differ in numbers alone are one."""
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for its in own:
        for what in ("", *names):
            reason = its[f"{what}_failed" if what else "failed"]
            if reason:
                kind = (what or "reading", OWN.sub("…", reason.replace(str(its["name"]), "…"))[:120])
                counts[kind] += 1
                first.setdefault(kind, (its["name"], reason))
    lines = [
        (what, _cut(first[what, kind][1]), n, first[what, kind][0])
        for (what, kind), n in counts.most_common(SHOWN)
    ]
    if more := sum(counts.values()) - sum(line[2] for line in lines):
        lines.append(("others", f"{len(counts) - SHOWN} other reasons", more, ""))
    return lines


def _cut(reason: str) -> str:
    line = " ".join(reason.replace("|", "/").split())
    return line if len(line) <= 160 else line[:160] + " …"


def draw(rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """Histograms of the columns that are drawn, on one page; values beyond the 1 % at either end are counted
    at the border."""
    own = [row.columns for row in rows if row.columns["same_as"] is None]
    shown = {name: column for name, column in columns_of(names).items() if column.drawn}
    shown = {name: (column, values) for name, column in shown.items() if len(values := numbers(own, name))}
    figure, axes = grid(max(1, len(shown)), across=3)
    if not shown:
        axes[0].text(0.5, 0.5, "no numbers yet", ha="center", va="center")
        axes[0].set_axis_off()
    for place, (name, (column, values)) in zip(axes, shown.items(), strict=False):
        low, high = np.percentile(values, (1, 99))
        if high - low < FLAT:
            low, high = low - 0.5, high + 0.5
        inside = np.clip(values, low, high)
        place.hist(
            inside,
            bins=np.linspace(low, high, min(BINS, max(5, len(values) // 5)) + 1),
            color=COLOURS[0],
            alpha=0.85,
        )
        place.axvline(np.median(values), color=COLOURS[1], lw=1.2)
        label = textwrap.fill(f"{column.about} ({column.unit})", WIDE)
        place.set(xlabel=label, ylabel="crystals")
        median = f"{round(float(np.median(values)), 4) + 0.0:.4g} {column.unit}"  # no -0
        place.set_title(f"{name.partition('_')[0]}: {len(values):,}, median {median}", fontsize=9)
        place.yaxis.get_major_locator().set_params(integer=True)
    return figure
