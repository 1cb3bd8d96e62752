"""What every experiment shares: where its data are, rows that outlive a kill, intervals, tables, the record.

An experiment asks a question of some potentials and many materials. It makes a `Study`, asks for one row a
material by `each` (or hands rows in by `keep`, where many are computed at once), and ends with `write`: a
record (record.json), tables (.md), figures (.png), in the folder `out`. `experiments.report` joins records.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxmlip.system.console import say
from jaxmlip.system.files import check_folder, write_whole, writing, writing_folder
from jaxmlip.system.progress import track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxmlip.potential import Potential

RECORD, ROWS, BEGUN = "record.json", "rows.jsonl", "begun.json"
FREE = ("out", "model")  # settings that change no row: the key of a row names its model
PUBLISHED = {  # folders of the data, and where their files come from
    "mlearn": "github.com/materialsvirtuallab/mlearn, data/, as extxyz",
    "maml_MoNbTaW": "github.com/materialsvirtuallab/maml, mvl_models/pes/MoNbTaW/training, as extxyz",
    "pypolymlp_vasp": "github.com/sekocha/pypolymlp, tests/test_mlp_dev_api/data-vasp-*, as extxyz",
    "phonondb_PBE_103": "github.com/MPA2suite/k_SRME, data/",
    "phonopy_examples_PBE": "github.com/phonopy/phonopy, example/",
    "phono3py_examples": "github.com/phonopy/phono3py, example/",
    "phonopy_displaced_extxyz": "github.com/phonopy/phonopy, example/, vasprun.xml as extxyz",
    "matcalc_benchmark": "github.com/materialsvirtuallab/matcalc, benchmark_data/",
    "acwf_eos_PBE": "github.com/aiidateam/acwf-verification-scripts",
    "emmet_testfiles": "github.com/materialsproject/emmet, test_files/",
    "approx_neb": "A. Rutt et al., ACS Appl. Mater. Interfaces 14, 44367 (2022), as JSON of emmet or atomate",
    "matcalc_elemental_refs_PBE_r2SCAN": "github.com/materialsvirtuallab/matcalc, "
    "src/matcalc/elemental_refs/",
    "matbench_diatomics": "github.com/janosh/matbench-discovery, site/src/lib/diatomics-dft.json.gz, both "
    "functionals at the same distances as paired_PBE.extxyz.gz and paired_r2SCAN.extxyz.gz",
    "wbm_high_energy": "figshare, doi:10.6084/m9.figshare.27307776 (wbm-high-energy-states.json.gz)",
}


class MissingDataError(FileNotFoundError):
    """A data set is not there: what is missing, where it is published, where to put it."""


class StudyError(ValueError):
    """A folder that an experiment cannot go on with."""


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Table:
    """A table. Cells are text, whole numbers, numbers, `Estimate`s, or None where there is nothing."""

    title: str
    columns: tuple[str, ...]  # with units
    rows: Sequence[Sequence[Any]]
    digits: int = 3  # after the point
    note: str = ""

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


def data_file(given: Path | None, name: str) -> Path:
    """The file or folder `name` below `given` or JAXMLIP_DATA. Raises MissingDataError."""
    root = data_root(given)
    if root is None or not (root / name).exists():
        first = name.split("/")[0]
        raise MissingDataError(
            f"{name} is not in {root or 'a folder that JAXMLIP_DATA names'}. It is published at "
            f"{PUBLISHED.get(first, 'a place that this project does not know')}; put it there as {name}, or "
            "give the folder above it by --data."
        )
    return root / name


def data_root(given: Path | None) -> Path | None:
    """The folder of the data sets: `given`, or what JAXMLIP_DATA names; None where there is neither."""
    return given or (Path(os.environ["JAXMLIP_DATA"]) if "JAXMLIP_DATA" in os.environ else None)


def load_models(names: Sequence[str], dtype: str = "float32") -> dict[str, Potential]:
    """The potentials, by what tables call them; without names, CHGNet 0.3.0.

    Raises as `jaxmlip.load`, and ValueError where two share a name.
    """
    from jaxmlip.system.arguments import DEFAULT_MODEL
    from jaxmlip.zoo.load import load

    found: dict[str, Potential] = {}
    for name in names or (DEFAULT_MODEL,):
        potential = load(name, dtype=dtype)
        if potential.name in found:
            raise ValueError(f"found two models called {potential.name}, needed names that tell them apart.")
        found[potential.name] = potential
    return found


def knows(potential: Potential, numbers: Iterable[int]) -> bool:
    """Whether all these elements are among those that the potential was fitted to."""
    return {int(z) for z in numbers} <= set(potential.elements)


def bootstrap(
    values: Any, statistic: Callable[[np.ndarray], float] = np.mean, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """A statistic of `values` with its 95 % percentile interval, by draws of whole rows (materials, frames).

    No interval for fewer than two rows.
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
    """The rows of one experiment, kept in its folder as they come.

    Rows are JSON objects; a material that failed has the one entry "failed", which says why. `free` are
    settings that may differ when the experiment goes on: they choose rows and change none. Raises StudyError
    where the folder holds rows of other settings or of other weights under the same name.
    """

    def __init__(
        self,
        name: str,
        question: str,
        settings: Any,
        potentials: Mapping[str, Potential],
        free: Sequence[str] = (),
    ):
        self.free = (*FREE, *free)
        self.name, self.question = name, question.strip().splitlines()[0]
        self.folder = Path(settings.out)
        self.settings = json.loads(json.dumps(asdict(settings), default=str))
        if "data" in self.settings:  # given or from the environment, it is the same folder
            self.settings["data"] = str(data_root(settings.data))
        self.weights = {label: fingerprint(p) for label, p in potentials.items()}
        self.spent, self.last = 0.0, time.perf_counter()
        check_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_begun()
        self.rows = self._read()

    def _check_begun(self) -> None:
        path = self.folder / BEGUN
        fixed = {k: v for k, v in self.settings.items() if k not in self.free}
        weights = dict(self.weights)
        if path.exists():
            begun = json.loads(path.read_text())
            were = begun["settings"] | {"experiment": begun["experiment"]} | begun["weights"]
            now = fixed | {"experiment": self.name} | self.weights
            differ = [f"{k}: {were[k]} there, {now[k]} here" for k in now if k in were and were[k] != now[k]]
            differ += [f"{k}: only here" for k in fixed if k not in begun["settings"]]
            if differ:
                raise StudyError(
                    f"{self.folder} holds rows of other settings or weights ({'; '.join(differ)}). Give "
                    "another --out, or remove that folder."
                )
            weights = begun["weights"] | weights
        begun = {"experiment": self.name, "settings": fixed, "weights": weights}
        write_whole(path, json.dumps(begun, indent=1) + "\n")

    def _read(self) -> dict[str, dict[str, Any]]:
        path = self.folder / ROWS
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        if lines[-1]:  # a kill left half a line
            with writing(path) as draft:
                draft.write_bytes(b"".join(line + b"\n" for line in lines[:-1]))
        found = [json.loads(line) for line in lines[:-1]]
        self.spent = sum(x["seconds"] for x in found)
        return {x["key"]: x["row"] for x in found}

    def keep(self, key: str, row: Mapping[str, Any]) -> None:
        """Keeps one row, on disk too."""
        row = json.loads(json.dumps(_plain(row)))
        seconds, self.last = time.perf_counter() - self.last, time.perf_counter()
        with (self.folder / ROWS).open("a") as file:
            file.write(json.dumps({"key": key, "row": row, "seconds": round(seconds, 3)}) + "\n")
        self.spent += seconds
        self.rows[key] = row

    def fail(self, key: str, reason: object) -> None:
        """Keeps why there is no row."""
        self.keep(key, {"failed": str(reason)})

    def left(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that have no row yet."""
        return [key for key in keys if key not in self.rows]

    def each(
        self, what: str, keys: Sequence[str], measure: Callable[[str], Mapping[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """The rows of `keys`, under a progress bar; `measure` makes those that are not there yet.

        A ValueError or RuntimeError of `measure` becomes a row that failed.
        """
        for key in track(self.left(keys), what):
            try:
                row = measure(key)
            except (ValueError, RuntimeError) as error:
                self.fail(key, error)
            else:
                self.keep(key, row)
        return {key: self.rows[key] for key in keys}

    def write(
        self,
        tables: Sequence[Table],
        figures: Mapping[str, tuple[str, Figure]],
        findings: Sequence[str] = (),
    ) -> None:
        """Prints the tables and what was found; writes the record, the tables and the figures.

        `figures`: by the name of their file, a caption and the figure. Rows that failed are counted in words.
        """
        from jaxmlip.training.records import circumstances

        failed = {key: row["failed"] for key, row in self.rows.items() if "failed" in row}
        findings = list(findings)
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
            "minutes": self.spent / 60,  # that it took to compute the rows, in all runs together
            "tables": [{**asdict(t), "rows": [[_plain(x) for x in row] for row in t.rows]} for t in tables],
            "figures": [{"file": file, "caption": caption} for file, (caption, _) in figures.items()],
            "findings": findings,
            "rows": self.rows,
        }
        with writing_folder(self.folder, last=RECORD) as draft:
            write_whole(draft / f"{self.name}.md", text + "\n")
            for file, (_, figure) in figures.items():
                figure.savefig(draft / file, dpi=150)
            write_whole(draft / RECORD, json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n")
        say(f"\nwritten to {self.folder}")


def run(main: Callable[[Any], None], settings: type) -> None:
    """The command of an experiment: what goes wrong is said in one line, with exit code 1."""
    import tyro

    try:
        main(tyro.cli(settings))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        say(f"error: {error}", stderr=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def fingerprint(potential: Potential) -> str:
    """A hash of all parameters of a potential."""
    import jax

    digest = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(potential.params):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(x).tobytes())
    return digest.hexdigest()[:16]


def _plain(x: Any) -> Any:
    """`x` as JSON has it: arrays as lists, NaN as null, an Estimate as an object."""
    if isinstance(x, Estimate):
        return {name: _plain(part) for name, part in x._asdict().items()}
    if isinstance(x, Mapping):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, np.ndarray):
        return _plain(x.tolist())
    if isinstance(x, list | tuple):
        return [_plain(part) for part in x]
    if isinstance(x, np.generic):
        return _plain(x.item())
    return None if isinstance(x, float) and not math.isfinite(x) else x
