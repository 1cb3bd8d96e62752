"""Studies of potentials: rows that survive a kill, intervals, tables, and the record.

A study compares some potentials on many materials. It makes a `Study`; chooses the materials that a potential
knows (`known`); computes a row for each material by `each`, or stores rows that are computed together by
`keep`; and ends with `write`, which puts a record (record.json), tables (.md) and figures (.png) into the
folder `out`. `experiments.report` joins records. `save` writes the record of a command that keeps no rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jaxmlip.system.arguments import DEFAULT_MODEL
from jaxmlip.system.console import note, say
from jaxmlip.system.files import check_folder, write_whole, writing, writing_folder
from jaxmlip.system.progress import track
from jaxmlip.system.tables import Estimate, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxmlip.potential import Potential

T = TypeVar("T")
RECORD, ROWS, BEGUN = "record.json", "rows.jsonl", "begun.json"
FREE = ("out", "model")  # settings that change no row; the key of a row names its model


class StudyError(ValueError):
    """An experiment cannot use a folder, or cannot continue the run in it."""


def data_root(given: Path | None) -> Path | None:
    """The folder of the data sets: `given`, or the value of JAXMLIP_DATA; None without either."""
    return given or (Path(os.environ["JAXMLIP_DATA"]) if "JAXMLIP_DATA" in os.environ else None)


def load_models(names: Sequence[str], dtype: str = "float32") -> dict[str, Potential]:
    """The potentials by their names in tables; default: CHGNet 0.3.0. Raises as `load_each` does."""
    from jaxmlip.zoo.load import load_each

    return {potential.name: potential for potential in load_each(names or (DEFAULT_MODEL,), dtype)}


def check_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError if a name in `given` is not in `known`."""
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"found the {what} {unknown[0]!r}, needed some of {', '.join(known)}.")


def bootstrap(
    values: Any, statistic: Callable[[np.ndarray], float] = np.mean, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """A statistic of `values` with its 95 % percentile interval, by a bootstrap of whole rows (materials,
    frames).

    Fewer than two rows give no interval.
    """
    values = np.asarray(values, float)
    if len(values) == 0:
        return Estimate(math.nan, math.nan, math.nan)
    if len(values) == 1:
        return Estimate(float(statistic(values)), math.nan, math.nan)
    rng = np.random.default_rng(seed)
    draws = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(resamples)]
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return Estimate(float(statistic(values)), float(low), float(high))


class Study:
    """The rows of one experiment, written to its folder as they come.

    Its question is the first line of the docstring of the class of `settings`. Rows are JSON objects; the row
    of a material that failed has one entry, "failed", with the reason. `free` are settings that may differ
    when the experiment goes on: they choose rows, and change none. Raises StudyError if the folder holds rows
    of other settings, or of other weights under the same name.
    """

    def __init__(
        self,
        name: str,
        settings: Any,
        potentials: Mapping[str, Potential] | None = None,
        free: Sequence[str] = (),
    ):
        self.free = (*FREE, *free)
        self.name, self.question = name, type(settings).__doc__.strip().splitlines()[0]
        self.folder = Path(settings.out)
        self.settings = json.loads(json.dumps(asdict(settings), default=str))
        if "data" in self.settings:  # the folder itself, whether given or from the environment
            self.settings["data"] = str(data_root(settings.data))
        self.potentials = potentials or {}
        self.weights = {label: fingerprint(p) for label, p in self.potentials.items()}
        self.unknown: dict[tuple[str, str], None] = {}  # (potential, material that it does not know)
        self.spent, self.last = 0.0, time.perf_counter()
        check_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        fixed = {k: v for k, v in self.settings.items() if k not in self.free}
        self._new = not (self.folder / BEGUN).exists()
        check_begun(self.folder, self.name, fixed, self.weights)
        self.rows = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        path = self.folder / ROWS
        found, rest = _lines(path)
        if rest:  # half a line, left by a kill
            with writing(path) as draft:
                draft.write_bytes(path.read_bytes()[: -len(rest)])
        self.spent = sum(x["seconds"] for x in found)
        return {x["key"]: x["row"] for x in found}

    def join(self, folders: Iterable[Path]) -> None:
        """Stores the rows of the same study in other folders, such as those of its shards; own ones stay.

        Raises StudyError, before it stores any, if a folder holds none, or rows of other settings, weights or
        models; a folder of this study that is new is left as it was.
        """
        try:
            several = self._of(folders)
        except StudyError:
            if self._new:
                (self.folder / BEGUN).unlink()
                with contextlib.suppress(OSError):  # it holds other files
                    self.folder.rmdir()
            raise
        for x in (x for found in several for x in found):
            if x["key"] not in self.rows:
                self._store(x["key"], x["row"], x["seconds"])

    def _of(self, folders: Iterable[Path]) -> list[list[dict[str, Any]]]:
        """The rows in each of `folders`; see `join`."""
        fixed, several = {k: v for k, v in self.settings.items() if k not in self.free}, []
        for folder in map(Path, folders):
            if not (folder / BEGUN).is_file():
                raise StudyError(f"{folder} has no {BEGUN}; needed a folder of this study, to join its rows.")
            begun = json.loads((folder / BEGUN).read_text())
            differ = _differences(begun, self.name, fixed, self.weights)
            differ += [f"{model}: only there" for model in begun["weights"] if model not in self.weights]
            if differ:
                raise StudyError(
                    f"{folder} holds rows that do not belong to this study ({'; '.join(differ)}). Join "
                    "folders of the same settings, weights and models."
                )
            several.append(_lines(folder / ROWS)[0])
        return several

    def keep(self, key: str, row: Mapping[str, Any]) -> None:
        """Stores one row, on disk too."""
        seconds, self.last = time.perf_counter() - self.last, time.perf_counter()
        self._store(key, json.loads(json.dumps(plain(row))), round(seconds, 3))

    def _store(self, key: str, row: dict[str, Any], seconds: float) -> None:
        with (self.folder / ROWS).open("a") as file:
            file.write(json.dumps({"key": key, "row": row, "seconds": seconds}) + "\n")
        self.spent += seconds
        self.rows[key] = row

    def fail(self, key: str, reason: object) -> None:
        """Stores the reason why there is no row."""
        self.keep(key, {"failed": str(reason)})

    def left(self, keys: Iterable[str]) -> list[str]:
        """The `keys` that have no row yet."""
        return [key for key in keys if key not in self.rows]

    def done(self, keys: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """The stored rows of `keys` (default: all) that did not fail."""
        keys = self.rows if keys is None else keys
        return {key: row for key in keys if "failed" not in (row := self.rows.get(key, {"failed": ""}))}

    def each(
        self, what: str, keys: Sequence[str], measure: Callable[[str], Mapping[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """The rows of `keys` that did not fail; `measure` makes the missing ones.

        A ValueError or RuntimeError of `measure` becomes a row that failed.
        """
        for key in track(self.left(keys), what):
            try:
                row = measure(key)
            except (ValueError, RuntimeError) as error:
                self.fail(key, error)
            else:
                self.keep(key, row)
        return self.done(keys)

    def known(
        self, label: str, materials: Mapping[str, T], numbers: Callable[[T], Iterable[int]]
    ) -> dict[str, T]:
        """The `materials` whose elements are all known to the potential `label`; `write` names the others.

        `numbers` gives the atomic numbers of a material.
        """
        known = set(self.potentials[label].elements)
        found = {name: x for name, x in materials.items() if {int(z) for z in numbers(x)} <= known}
        self.unknown |= {(label, name): None for name in materials if name not in found}
        return found

    def ask(
        self,
        what: str,
        materials: Mapping[str, T],
        numbers: Callable[[T], Iterable[int]],
        measure: Callable[[Potential, T], Mapping[str, Any]],
        key: str = "{}: {}",
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """The rows, by potential, of the materials that it knows and that did not fail; see `each`.

        `key` makes the key of a row from the names of potential and material.
        """
        found = {}
        for label, potential in self.potentials.items():
            keys = {key.format(label, name): name for name in self.known(label, materials, numbers)}
            rows = self.each(
                f"{what}, {label}", list(keys), lambda k, p=potential, of=keys: measure(p, materials[of[k]])
            )
            found[label] = {keys[k]: row for k, row in rows.items()}
        return found

    def write(
        self,
        tables: Sequence[Table],
        figures: Mapping[str, tuple[str, Figure]],
        findings: Sequence[str] = (),
    ) -> None:
        """Prints the tables that have rows, and findings; writes the record, the tables and the figures.

        `figures` are captions and figures by the names of their files. Materials with unknown elements are
        named, and failed rows are counted. Raises RuntimeError, with the reasons, if nothing is left.
        """
        from jaxmlip.training.records import circumstances

        failed = {key: row["failed"] for key, row in self.rows.items() if "failed" in row}
        tables, findings = [table for table in tables if table.rows], [*findings, *self._left_out()]
        if failed:
            some = "; ".join(f"{key}: {reason}" for key, reason in list(failed.items())[:3])
            findings.append(
                f"{len(failed)} of {len(self.rows)} rows failed ({some}{'; …' * (len(failed) > 3)})."
            )
        text = "\n\n".join([*(t.markdown() for t in tables), *findings])
        say(text)
        record = {
            "experiment": self.name,
            "question": self.question,
            "settings": self.settings,
            "weights": self.weights,
            "circumstances": circumstances(),
            "minutes": self.spent / 60,  # that computing the rows took, in all runs together
            "tables": [{**asdict(t), "rows": [[plain(x) for x in row] for row in t.rows]} for t in tables],
            "figures": [{"file": file, "caption": caption} for file, (caption, _) in figures.items()],
            "findings": findings,
            "rows": self.rows,
        }
        with writing_folder(self.folder, last=RECORD) as draft:
            write_whole(draft / f"{self.name}.md", text + "\n")
            for file, (_, figure) in figures.items():
                figure.savefig(draft / file, dpi=150)
            write_whole(draft / RECORD, json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n")
        note(f"\nwritten to {self.folder}")
        if not self.done() and not tables:
            reasons = [f"{key}: {reason.rstrip('.')}." for key, reason in list(failed.items())[:5]]
            raise RuntimeError(" ".join(["Nothing could be computed.", *findings, *reasons]))

    def _left_out(self) -> list[str]:
        lines = []
        for label in self.potentials:
            names = [name for model, name in self.unknown if model == label]
            if names:
                some = ", ".join(names[:6]) + ", …" * (len(names) > 6)
                lines.append(
                    f"{label} does not know all elements of {len(names)} materials, which are left out: "
                    f"{some}."
                )
        return lines


def save(
    out: Path,
    name: str,
    what: str,
    settings: Mapping[str, Any],
    potentials: Sequence[Potential],
    figure: Figure,
    packages: Sequence[str] = ("jax", "numpy"),
    indent: int | None = 1,
    **results: Any,
) -> None:
    """Writes the record of a command and its figure into `out`, `name`.json and `name`.png, or neither of
    them.

    The weights of the potentials are added to `settings`, the versions of `packages` to `results`.
    """
    weights = {
        "weights_sha256": {p.name: p.manifest.get("sha256") for p in potentials},
        "heads": {p.name: p.manifest["head"] for p in potentials if "head" in p.manifest},
    }
    record = {"what": what, "settings": {**settings, **weights}}
    record |= {"versions": {package: version(package) for package in (*packages, "jaxmlip")}, **results}
    with writing_folder(out) as draft:
        text = json.dumps(plain(record), indent=indent, ensure_ascii=False)
        write_whole(draft / f"{name}.json", text + "\n")
        figure.savefig(draft / f"{name}.png", dpi=150)
    note(f"written to {out / name}.json and {out / name}.png")


def run(main: Callable[[Any], None], settings: type) -> None:
    """Runs an experiment as a command: errors are printed in one line, with exit code 1."""
    import tyro

    try:
        main(tyro.cli(settings))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        say(f"error: {error}", stderr=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def check_begun(
    folder: Path, experiment: str, settings: Mapping[str, Any], weights: Mapping[str, str]
) -> None:
    """Notes in `folder` what its rows are computed with. Raises StudyError if that was something else.

    `settings` are those that change rows; `weights` are hashes by the names of potentials, of which there may
    be others in the folder.
    """
    path, kept = folder / BEGUN, dict(weights)
    if path.exists():
        begun = json.loads(path.read_text())
        if differ := _differences(begun, experiment, settings, weights):
            raise StudyError(
                f"{folder} holds rows of other settings or weights ({'; '.join(differ)}). Give "
                "another --out, or remove that folder."
            )
        kept = begun["weights"] | kept
    begun = {"experiment": experiment, "settings": settings, "weights": kept}
    write_whole(path, json.dumps(begun, indent=1) + "\n")


def _differences(
    begun: Mapping[str, Any], experiment: str, settings: Mapping[str, Any], weights: Mapping[str, str]
) -> list[str]:
    """What a folder was begun with, and is something else here."""
    were = begun["settings"] | {"experiment": begun["experiment"]} | begun["weights"]
    now = {**settings, "experiment": experiment, **weights}
    differ = [f"{k}: {were[k]} there, {now[k]} here" for k in now if k in were and were[k] != now[k]]
    return differ + [f"{k}: only here" for k in settings if k not in begun["settings"]]


def _lines(path: Path) -> tuple[list[dict[str, Any]], bytes]:
    """The lines of a file of rows, and the part of a line at its end, if a kill left one."""
    *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return [json.loads(line) for line in lines], rest


def fingerprint(potential: Potential) -> str:
    """A hash of all parameters of a potential."""
    import jax

    digest = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(potential.params):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(x).tobytes())
    return digest.hexdigest()[:16]


def plain(x: Any) -> Any:
    """`x` in types of JSON: arrays become lists, NaN becomes null, an Estimate becomes an object."""
    if isinstance(x, Estimate):
        return {name: plain(part) for name, part in x._asdict().items()}
    if isinstance(x, Mapping):
        return {str(k): plain(v) for k, v in x.items()}
    if isinstance(x, np.ndarray):
        return plain(x.tolist())
    if isinstance(x, list | tuple):
        return [plain(part) for part in x]
    if isinstance(x, np.generic):
        return plain(x.item())
    return None if isinstance(x, float) and not math.isfinite(x) else x
