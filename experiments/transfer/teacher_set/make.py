"""Which crystals, and how many a second, does a public model label to stand in for DFT?

    python -m experiments.transfer.teacher_set.make --teacher A [--teacher B] --structures 20000 --out FOLDER

writes the same crystals with the labels of each teacher. Prototypes are filled with elements that all
teachers know (`prototypes`), in salts with balanced charges, and relaxed by the first teacher within their
symmetry: this is the frame "ideal". Other frames are strained, rattled, or taken from short molecular
dynamics at a temperature drawn for each material. Cells with displaced atoms have at least four atoms;
smaller primitive cells are repeated. Frames that a teacher finds absurd are dropped and counted.

FOLDER/TEACHER is, for each teacher, a dataset as `jaxmlip data convert` writes it. Crystals, their order and
their splits (8:1:1 by material) are the same in all. A crystal's material is, for example, "rocksalt-MgO",
and its name "rocksalt-MgO/md-2". FOLDER/set.json describes the set, and how fast it was made. The ground
states of all elements (or the nearest prototypes) come first, so that formation energies can be computed.

The work is done in parts, each with its own random numbers: a killed run goes on with its current part, and
ends with the same set as an undisturbed one. A teacher's label stands in for DFT, and is not DFT.
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.transfer.teacher_set.frames import (
    MESSAGES,
    Frame,
    deformed,
    enlarged,
    heated,
    predict,
    relaxed,
    sensible,
    without_duplicates,
)
from experiments.transfer.teacher_set.parts import Made, arrays_of
from experiments.transfer.teacher_set.prototypes import Candidate, drawn, ground_state
from experiments.transfer.teacher_set.reading import SET
from experiments.transfer.teacher_set.results import (
    dropped_table,
    families_table,
    figures,
    findings,
    kinds_table,
    speed_table,
)
from experiments.transfer.teacher_set.settings import Settings
from jaxmlip.crystals import batches, batching
from jaxmlip.studies.study import Study, StudyError, load_models, run
from jaxmlip.system.files import write_whole, writing
from jaxmlip.system.progress import track

if TYPE_CHECKING:
    from jaxmlip.potential import Potential

ALL_FRAMES = 20  # structures for each element; with fewer, ground states have the ideal frame only
SPARE = 0.3  # of the shape of a batch, for crystals that are denser than the sample
SAMPLE = 300  # compositions whose crystals determine the shapes of batches
SPLIT = (0.8, 0.1, 0.1)


def main(settings: Settings) -> None:
    check(settings)
    teachers = load_models(settings.teacher)
    check_names(teachers)
    study = Study("make_teacher_set", settings, teachers)
    parts = divided(settings, common_elements(settings, teachers.values()))
    numbers = make_parts(study, settings, teachers, parts)
    files = [part_file(settings.out, k) for k in range(len(numbers))]
    made = Made(files, list(teachers), settings.structures)
    splits = write_sets(settings, made, teachers)
    statement = {
        "note": "labels of public models, which stand in for DFT and are none",
        "teachers": {name: {"sha256": study.weights[name]} for name in teachers},
        "settings": study.settings,
        "structures": len(made.frames),
        "materials": len({f.material for f in made.frames}),
        "splits": splits,
        "kinds": dict(Counter(f.kind for f in made.frames)),
        "families": dict(Counter(f.family for f in made.frames)),
        "dropped": dict(total(study, numbers, "dropped")),
        "throughput": throughput(study, numbers),
    }
    write_whole(settings.out / SET, json.dumps(statement, indent=1) + "\n")
    tables = [kinds_table(made), families_table(made), dropped_table(statement), speed_table(statement)]
    study.write(tables, figures(made), findings(statement))


def check(settings: Settings) -> None:
    """Raises StudyError for settings from which no set can be made."""
    from ase.data import atomic_numbers

    if not settings.teacher:
        raise StudyError("found no teacher, needed --teacher with a name that `jaxmlip models` lists.")
    low = [n for n in ("structures", "part") if getattr(settings, n) < 1]
    low += [n for n in ("strained", "rattled", "md", "seed", "relax_steps") if getattr(settings, n) < 0]
    if low:
        raise StudyError(f"found {low[0]}={getattr(settings, low[0])}, needed a larger number.")
    unknown = [s for s in settings.element if s not in atomic_numbers]
    if unknown:
        raise StudyError(f"found --element {unknown[0]}, needed a chemical symbol such as Mg.")
    for name in ("rattle", "temperature"):
        first, last = getattr(settings, name)
        if not 0 <= first <= last:
            raise StudyError(
                f"found {name}={first:g} {last:g}, needed two numbers from 0 in ascending order."
            )


def check_names(teachers: Iterable[str]) -> None:
    """Raises StudyError for a name that the folder of a teacher cannot have."""
    for name in teachers:
        if Path(name).name != name or name in ("parts", "", ".."):
            raise StudyError(
                f"found a teacher called {name!r}, needed a name that a folder beside the others can have."
            )


def common_elements(settings: Settings, teachers: Iterable[Potential]) -> list[str]:
    """Symbols of the elements to use. Raises StudyError if a teacher does not know a given one."""
    from ase.data import chemical_symbols

    known = set.intersection(*({chemical_symbols[z] for z in t.elements} for t in teachers))
    unknown = [s for s in settings.element if s not in known]
    if unknown:
        raise StudyError(f"found --element {unknown[0]}, which some teacher does not know. Leave it out.")
    return sorted(settings.element or known)


class Piece(NamedTuple):
    """The contents of a part."""

    groups: list[list[Candidate]]  # candidates of one composition form a group
    ideal_only: bool = False


def divided(settings: Settings, symbols: Sequence[str]) -> list[Piece]:
    """All materials in parts, ground states first."""
    few = settings.structures < ALL_FRAMES * len(symbols)
    pieces = [
        Piece([[ground_state(s)] for s in some], few) for some in batches.chunks(symbols, settings.part)
    ]
    waiting: list[list[Candidate]] = []
    for group in drawn(symbols, settings.seed):
        waiting.append(group)
        if sum(map(len, waiting)) >= settings.part:
            pieces.append(Piece(waiting))
            waiting = []
    return [*pieces, *([Piece(waiting)] if waiting else [])]


def make_parts(
    study: Study, settings: Settings, teachers: Mapping[str, Potential], parts: Sequence[Piece]
) -> list[str]:
    """Makes parts until there are enough crystals, and keeps existing parts; returns their keys."""
    (settings.out / "parts").mkdir(exist_ok=True)
    # Shapes from the same crystals in each run, so that programs and results are the same after a kill.
    shapes: dict[str, list[batching.BatchShape]] = {}
    bar = iter(track(range(settings.structures), "structures"))
    keys, kept = [], 0
    for k, piece in enumerate(parts):
        if kept >= settings.structures:
            break
        key, path = f"part {k:05d}", part_file(settings.out, k)
        if key not in study.rows or not path.is_file():
            shapes = shapes or {name: sample_shapes(t, parts) for name, t in teachers.items()}
            arrays, row = make_part(settings, teachers, shapes, piece)
            with writing(path) as draft:
                np.savez(draft, **arrays)
            study.keep(key, row)
        keys.append(key)
        kept += study.rows[key]["kept"]
        for _ in islice(bar, study.rows[key]["kept"]):
            pass
    if kept < settings.structures:
        raise StudyError(
            f"found {kept} crystals in all {len(parts)} parts, needed {settings.structures}: "
            f"{dict(total(study, keys, 'dropped')) or 'none was dropped'}. Ask for fewer structures, more "
            "elements or wider bounds, and give another --out."
        )
    return keys


def part_file(out: Path, k: int) -> Path:
    return out / "parts" / f"{k:05d}.npz"


def sample_shapes(teacher: Potential, parts: Sequence[Piece]) -> list[batching.BatchShape]:
    groups = list(islice((group for piece in parts for group in piece.groups), SAMPLE))
    graphs = [teacher.graph(enlarged(c.atoms())) for group in groups for c in group]
    return batches.shapes_for(graphs, MESSAGES, SPARE)


def make_part(
    settings: Settings,
    teachers: Mapping[str, Potential],
    shapes: Mapping[str, Sequence[batching.BatchShape]],
    piece: Piece,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Crystals of these materials with the labels of all teachers, and a row that counts them."""
    first = next(iter(teachers))
    dropped: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    evaluations: Counter[str] = Counter()
    with clock(seconds, "relaxing"), quiet():
        ideals = relaxed(settings, teachers[first], shapes[first], piece.groups, dropped, evaluations)
    with clock(seconds, "duplicates"):
        ideals = without_duplicates(ideals, dropped)
    frames = [Frame(c.material, c.family, "ideal", f"{c.material}/ideal", a) for c, a in ideals]
    if not piece.ideal_only:
        frames += [f for c, a in ideals for f in deformed(settings, c, a)]
        with clock(seconds, "molecular dynamics"), quiet():
            frames += heated(settings, teachers[first], shapes[first], ideals, dropped, evaluations)
    order = {c.material: k for k, (c, _) in enumerate(ideals)}
    frames.sort(key=lambda frame: order[frame.material])
    found = {}
    for name, teacher in teachers.items():
        with clock(seconds, f"labels of {name}"), quiet():
            found[name] = predict(teacher, [f.atoms for f in frames], shapes[name])
        evaluations[f"labels of {name}"] += len(frames)
    kept = sensible(settings, frames, found, dropped)
    row = {
        "tried": sum(map(len, piece.groups)),
        "kept": len(kept),
        "dropped": dict(dropped),
        "seconds_of": seconds,
        "evaluations": dict(evaluations),
    }
    return arrays_of([frames[k] for k in kept], {n: [p[k] for k in kept] for n, p in found.items()}), row


@contextlib.contextmanager
def clock(seconds: dict[str, float], what: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - begun


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the library's warnings of atoms close to each other: they are counted here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* Å apart")
        warnings.filterwarnings("ignore", message="FixSymmetry adjust_cell")
        yield


def write_sets(settings: Settings, made: Made, teachers: Mapping[str, Potential]) -> dict[str, int]:
    """Writes the datasets of teachers that are missing; returns the number of crystals in each split."""
    from jaxmlip.data.dataset import Dataset
    from jaxmlip.data.writing import write_dataset

    for name, teacher in track(list(teachers.items()), "datasets"):
        folder = settings.out / name
        if not folder.exists():
            write_dataset(
                folder,
                made.crystals(name),
                teacher.cutoffs,
                fractions=SPLIT,
                seed=settings.seed,
                sources=[f"labels of {name}, which are no DFT"],
            )
    return {split: len(part) for split, part in Dataset(folder).splits.items()}


def total(study: Study, keys: Sequence[str], what: str) -> Counter:
    """The sum of an entry of rows that are counts or times by name."""
    found: Counter = Counter()
    for key in keys:
        found.update(study.rows[key][what])
    return Counter({name: n for name, n in found.most_common() if n})


def throughput(study: Study, keys: Sequence[str]) -> dict[str, dict[str, float]]:
    """Seconds and calculations of each step, and calculations a second; compilation included."""
    seconds, done = total(study, keys, "seconds_of"), total(study, keys, "evaluations")
    found = {
        name: {"seconds": t, "calculations": done[name], "per_second": done[name] / t}
        for name, t in seconds.items()
        if done[name]
    }
    kept, whole = sum(study.rows[key]["kept"] for key in keys), sum(seconds.values())
    labelling = sum(t for name, t in seconds.items() if name.startswith("labels of"))
    found["structures made"] = {
        "seconds": whole - labelling,
        "calculations": kept,
        "per_second": kept / (whole - labelling),
    }
    found["structures made and labelled"] = {
        "seconds": whole,
        "calculations": kept,
        "per_second": kept / whole,
    }
    return found


if __name__ == "__main__":
    run(main, Settings)
