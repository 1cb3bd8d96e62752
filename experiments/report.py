"""All results on one page: joins the records of experiments in some folders.

    python -m experiments.report FOLDER... --out report

writes report.html, one file with all figures, which needs no network and can be printed; and report.md with
the figures in figures/ beside it. Records need not be trusted: their strings are escaped, and only figures
beside them are shown. Files that are no records are skipped and named.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import tyro

from jaxmlip.studies.study import RECORD, StudyError, run
from jaxmlip.system.borders import shallow
from jaxmlip.system.console import say
from jaxmlip.system.files import writing_folder
from jaxmlip.system.tables import Estimate, Table

ORDER = (
    "softening_forces",
    "softening_phonons",
    "surfaces",
    "defects",
    "solid_solutions",
    "migration",
    "elastic",
    "curvature_hessian",
    "cure",
    "energy_references",
    "make_teacher_set",
    "transfer",
    "scaling_law",
)
TITLE = "Softening, transfer and scaling of universal potentials"
FOLDED = 30  # tables with so many rows are folded
NAMED = 50  # failed rows at most
DEEPEST = 50  # nested levels of a record at most
PNG = b"\x89PNG\r\n\x1a\n"


class RecordError(ValueError):
    """This record.json was not written by an experiment."""


@dataclass(frozen=True)
class Settings:
    """What did the experiments find?"""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that experiments wrote, or folders of such, at any depth."""
    out: Path = Path("report")
    """Folder for report.html, report.md and figures/."""


@dataclass(frozen=True)
class Record:
    """One record.json, checked."""

    folder: Path
    experiment: str
    question: str
    tables: list[Table]
    figures: list[tuple[str, str, bytes | None]]  # name, caption, PNG; None: not there
    findings: list[str]
    minutes: float | None
    failed: dict[str, str]
    details: dict[str, Any]  # settings, weights, circumstances


def main(settings: Settings) -> None:
    records, skipped = collect(settings.folders)
    for line in skipped:
        say(f"skipped: {line}", stderr=True)
    if not records:
        where = ", ".join(map(str, settings.folders)) or "no folder at all"
        raise StudyError(
            f"found no {RECORD} of an experiment below {where}; needed "
            "folders that `python -m experiments.NAME --out FOLDER` wrote to its end."
        )
    with writing_folder(settings.out) as draft:
        for name, text in (
            ("report.html", page(records, skipped)),
            ("report.md", markdown(records, skipped, draft)),
        ):
            # JSON may hold surrogates, which UTF-8 cannot encode.
            (draft / name).write_text(text, encoding="utf-8", errors="replace")
    many = "s" * (len(records) > 1)
    say(f"{len(records)} result{many} in {settings.out / 'report.html'} and {settings.out / 'report.md'}")


def collect(folders: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """The records in the folders, in the order of the study, and a line on each file that was skipped."""
    found: dict[Path, Record] = {}
    skipped = []
    for folder in folders:
        if not folder.is_dir():
            skipped.append(f"{folder} is no folder")
            continue
        for path in sorted(folder.rglob(RECORD)):
            if path.resolve() not in found:
                try:
                    found[path.resolve()] = read_record(path)
                except (RecordError, OSError) as error:
                    skipped.append(f"{path}: {error}")

    def place(record: Record) -> tuple:
        known = record.experiment in ORDER
        return (
            ORDER.index(record.experiment) if known else len(ORDER),
            record.experiment,
            str(record.folder),
        )

    return sorted(found.values(), key=place), skipped


def read_record(path: Path) -> Record:
    """The record in a file. Raises RecordError if `Study.write` cannot have written it."""
    try:
        with shallow():
            raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"it is no JSON ({error})") from None
    level = [raw]
    for _ in range(DEEPEST):
        level = [
            y for x in level if isinstance(x, dict | list) for y in (x.values() if isinstance(x, dict) else x)
        ]
    if level:
        raise RecordError(f"it is nested more than {DEEPEST} deep")
    if not isinstance(raw, dict) or not isinstance(raw.get("experiment"), str):
        raise RecordError("it is JSON, but no record of an experiment")
    rows, minutes = raw.get("rows"), raw.get("minutes")
    return Record(
        path.parent,
        raw["experiment"],
        _typed(raw, "question", str),
        [_table(table) for table in _typed(raw, "tables", list)],
        [_figure(path.parent, figure) for figure in _typed(raw, "figures", list)],
        [str(x) for x in _typed(raw, "findings", list)],
        float(minutes) if _is_number(minutes) and math.isfinite(minutes) else None,
        {
            key: str(row["failed"])
            for key, row in (rows.items() if isinstance(rows, dict) else ())
            if isinstance(row, dict) and "failed" in row
        },
        {key: raw.get(key) for key in ("settings", "weights", "circumstances")},
    )


def _typed(raw: Any, name: str, kind: type) -> Any:
    value = raw.get(name) if isinstance(raw, dict) else None
    if not isinstance(value, kind):
        raise RecordError(f"found {name} of type {type(value).__name__}, needed {kind.__name__}")
    return value


def _table(raw: Any) -> Table:
    columns = tuple(str(x) for x in _typed(raw, "columns", list))
    rows = _typed(raw, "rows", list)
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise RecordError(f"found a table with {len(columns)} columns and rows of other lengths")
    digits = raw.get("digits", 3)
    if isinstance(digits, bool) or not isinstance(digits, int) or not 0 <= digits <= 15:
        raise RecordError(f"found {str(digits)[:40]} digits, needed 0 to 15")
    cells = [[_cell(x) for x in row] for row in rows]
    return Table(_typed(raw, "title", str), columns, cells, digits, str(raw.get("note") or ""))


def _cell(x: Any) -> Any:
    if isinstance(x, dict) and set(x) == set(Estimate._fields):
        parts = [math.nan if x[name] is None else x[name] for name in Estimate._fields]
        if all(_is_number(part) for part in parts):
            return Estimate(*(float(part) for part in parts))
    return x if x is None or isinstance(x, str) or _is_number(x) else json.dumps(x, ensure_ascii=False)


def _is_number(x: Any) -> bool:
    return isinstance(x, float) or (isinstance(x, int) and not isinstance(x, bool) and abs(x) < 2**63)


def _figure(folder: Path, raw: Any) -> tuple[str, str, bytes | None]:
    name = _typed(raw, "file", str)
    path = folder / name
    if Path(name).name != name or path.is_symlink() or not path.is_file():
        return name, str(raw.get("caption") or ""), None
    content = path.read_bytes()
    return name, str(raw.get("caption") or ""), content if content.startswith(PNG) else None


def headings(records: Sequence[Record]) -> list[str]:
    """The name of each experiment, with its folder if there are several runs of it."""
    names = [record.experiment for record in records]
    return [
        f"{r.experiment} ({r.folder})" if names.count(r.experiment) > 1 else r.experiment for r in records
    ]


def page(records: Sequence[Record], skipped: Sequence[str] = ()) -> str:
    """The page as HTML that needs no other files."""
    names = headings(records)
    contents = "".join(
        f'<li><a href="#e{k}">{escape(record.question)}</a> <code>{escape(name)}</code></li>'
        for k, (record, name) in enumerate(zip(records, names, strict=True))
    )
    sections = "".join(
        _section(k, record, name) for k, (record, name) in enumerate(zip(records, names, strict=True))
    )
    missed = "".join(f"<li>{escape(line)}</li>" for line in skipped)
    # The browser refuses all scripts but this one, and all requests, whatever a record holds.
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{STYLE}</style></head>\n<body>"
        f"<h1>{TITLE}</h1><nav><h2>Contents</h2><ol>{contents}</ol></nav>\n<main>{sections}</main>"
        + (f"<section><h2>Skipped</h2><ul>{missed}</ul></section>" if missed else "")
        + f"<script>{SCRIPT}</script></body></html>\n"
    )


def _section(k: int, record: Record, name: str) -> str:
    figures = "".join(_html_figure(*figure) for figure in record.figures)
    tables = "".join(_html_table(table) for table in record.tables)
    findings = "".join(f"<li>{escape(line)}</li>" for line in record.findings)
    failed = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(reason)}</dd>"
        for key, reason in list(record.failed.items())[:NAMED]
    )
    minutes = "-" if record.minutes is None else f"{record.minutes:.1f}"
    details = f"<dt>folder</dt><dd>{escape(str(record.folder))}</dd><dt>minutes</dt><dd>{minutes}</dd>"
    details += "".join(f"<dt>{part}</dt><dd>{_nested(x)}</dd>" for part, x in record.details.items())
    return (
        f'<section id="e{k}"><p class="name"><code>{escape(name)}</code></p>'
        f"<h2>{escape(record.question)}</h2>"
        + (f"<ul>{findings}</ul>" if findings else "")
        + figures
        + tables
        + (
            f"<details><summary>{len(record.failed)} rows failed</summary><dl>{failed}</dl></details>"
            if failed
            else ""
        )
        + f"<details><summary>Settings, versions, device</summary><dl>{details}</dl></details></section>\n"
    )


def _html_figure(name: str, caption: str, content: bytes | None) -> str:
    if content is None:
        picture = f"<p>{escape(name)} is not there.</p>"
    else:
        data = base64.b64encode(content).decode()
        picture = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _html_table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in table.columns
    )
    body = "".join("<tr>" + "".join(_html_cell(table, x) for x in row) + "</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    inner = (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}'
    )
    if len(table.rows) >= FOLDED:
        title = f"{escape(table.title)} ({len(table.rows)} rows)"
        return f"<details><summary>{title}</summary>{inner}</details>"
    return f"<h3>{escape(table.title)}</h3>{inner}"


def _html_cell(table: Table, x: Any) -> str:
    number = x.value if isinstance(x, Estimate) else x
    text = escape(table.cell(x))
    if not _is_number(number):
        return f"<td>{text}</td>"
    by = f' data-v="{number!r}"' if math.isfinite(number) else ""
    return f'<td class="number"{by}>{text}</td>'


def _nested(x: Any) -> str:
    """Settings and the like, as nested lists."""
    if isinstance(x, Mapping):
        return (
            "<dl>"
            + "".join(f"<dt>{escape(str(k))}</dt><dd>{_nested(v)}</dd>" for k, v in x.items())
            + "</dl>"
        )
    if isinstance(x, list):
        return escape(" ".join(map(str, x)))
    return escape("-" if x is None else str(x))


def markdown(records: Sequence[Record], skipped: Sequence[str], draft: Path) -> str:
    """The summary; figures are written to `draft`/figures."""
    parts = [f"# {TITLE}"]
    for k, (record, name) in enumerate(zip(records, headings(records), strict=True)):
        parts += [f"## {_plain(record.question)}", f"{_plain(name)}"]
        if record.findings:
            parts.append("\n".join(f"- {_plain(line)}" for line in record.findings))
        for n, (file, caption, content) in enumerate(record.figures):
            if content is None:
                parts.append(f"{_plain(file)} is not there. {_plain(caption)}")
                continue
            target = (
                f"figures/{k + 1:02d}-{n + 1}-{re.sub(r'[^A-Za-z0-9_.-]', '_', Path(file).stem)[:60]}.png"
            )
            (draft / "figures").mkdir(exist_ok=True)
            (draft / target).write_bytes(content)
            parts.append(f"![{_plain(caption)}]({target})")
        for table in record.tables:
            cells = [[_plain(x) if isinstance(x, str) else x for x in row] for row in table.rows]
            columns = tuple(_plain(name) for name in table.columns)
            clean = replace(table, title=_plain(table.title), columns=columns, note=_plain(table.note))
            parts.append(replace(clean, rows=cells).markdown())
    if skipped:
        parts += ["## Skipped", "\n".join(f"- {_plain(line)}" for line in skipped)]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text in one line, with the special characters of Markdown and HTML escaped."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split())).replace("&", "&amp;")


SCRIPT = """
document.addEventListener('click', event => {
  const button = event.target.closest('th button');
  if (!button) return;
  const head = button.parentElement, body = head.closest('table').tBodies[0];
  const up = head.getAttribute('aria-sort') !== 'ascending';
  for (const other of head.parentElement.cells) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  const key = row => {
    const cell = row.cells[head.cellIndex];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  };
  const rank = x => typeof x === 'number' ? 0 : x === '-' ? 2 : 1;
  const compare = (a, b) => typeof a === 'number' ? a - b : a.localeCompare(b, undefined, {numeric: true});
  const rows = [...body.rows].map(row => [key(row), row]);
  rows.sort(([a], [b]) => rank(a) - rank(b) || (up ? 1 : -1) * compare(a, b));
  body.append(...rows.map(([, row]) => row));
});
addEventListener('beforeprint', () => document.querySelectorAll('details').forEach(d => d.open = true));
"""

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 2rem auto;
  max-width: 68rem; padding: 0 1.25rem; }
h1, h2, h3 { line-height: 1.25; font-weight: 600; }
h3 { margin: 2rem 0 .5rem; }
a { color: #0057a3; }
code { font-size: .9em; color: #555; overflow-wrap: anywhere; }
section { border-top: 1px solid #ccc; margin-top: 3rem; padding-top: 1rem; }
.name { margin: 0; } .name + h2 { margin-top: .2rem; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #444; font-size: .9rem; max-width: 48rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #e3e3e3; }
.number { text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0057a3; }
th[aria-sort=ascending] button::after { content: ' \\2191'; }
th[aria-sort=descending] button::after { content: ' \\2193'; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .3rem 0;
  font-size: .85rem; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; } dd dl { margin: 0; font-size: 1em; }
@media print {
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0; }
  a { color: inherit; text-decoration: none; }
  .wide { overflow: visible; } table { font-size: 7pt; }
  thead { display: table-header-group; } tr, figure { break-inside: avoid; } h2, h3 { break-after: avoid; }
}
"""


if __name__ == "__main__":
    run(main, Settings)
