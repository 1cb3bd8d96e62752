"""Which crystals, and how many a second, does a public model label to stand in for DFT?

    python -m experiments.make_teacher_set --teacher A [--teacher B] --structures 20000 --seed 0 --out FOLDER

writes the same crystals with the labels of each teacher. Prototypes are filled with the elements that all
teachers know (`experiments.prototypes`), charges balanced in salts, and relaxed by the first teacher within
their symmetry: that is the frame "ideal". Others are strained, rattled, and taken from short molecular
dynamics at a temperature drawn for each material; those that are displaced are cells of four atoms at least,
repeated where the primitive cell has fewer. Frames that a teacher finds absurd are dropped and counted.

FOLDER/TEACHER is a dataset as `jaxmlip data convert` writes, for each teacher; crystals, their order and
their splits (8:1:1 by material) are the same in all. A crystal's material is such as "rocksalt-MgO", and its
name such as "rocksalt-MgO/md-2". FOLDER/set.json says what was made, and how fast. The ground states of all
elements (or the nearest prototype to them) come first, so that formation energies can be had.

The work is done in parts, each from a random stream of its own: a killed run goes on with the part at which
it was, and ends with the set of an undisturbed one. A teacher's label is a stand-in for DFT, and no DFT.
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import tyro
from ase import Atoms

from experiments.prototypes import Candidate, drawn, generator, ground_state
from experiments.study import Study, StudyError, Table, load_models, run
from jaxmlip import batching
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.progress import track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxmlip.potential import Potential, Prediction

SET = "set.json"
PART = 200  # materials that are worked on together
ALL_FRAMES = (
    20  # structures for each element from which on ground states have all frames, not the ideal alone
)
LEAST = 4  # atoms of the cells in which atoms are displaced
SPARE = 0.3  # of the room of a batch, for crystals that are denser than those it was made for
MESSAGES = 4_000  # bonds and angles in a batch: on a CPU, time goes with their number from fewer on
SAMPLE = 300  # compositions from whose crystals the rooms of batches follow
# The configurations that molecular dynamics visits do not depend on masses, so all atoms have that of Ca, and
# one time step suits all.
MASS, DT, FRICTION, BETWEEN = 40.0, 4.0, 0.02, 8  # amu, fs, 1/fs, steps between two frames
ANHARMONIC = (
    2.0  # the first velocities are those of so many times the temperature: half of it goes into bonds
)
TIGHT = {"fmax": 0.05, "smax": 0.5}  # eV/Å, GPa: where the relaxation of an ideal crystal may end
SPLIT = (0.8, 0.1, 0.1)
LABELS = ("energy", "forces", "stress", "magmoms")


@dataclass(frozen=True)
class Settings:
    """Which crystals, and how many a second, does a public model label to stand in for DFT?

    Varied crystals with the labels of one model or several, as datasets to train on.
    """

    teacher: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(help="as `jaxmlip models` lists, or a model folder; the first one relaxes and heats"),
    ] = ()
    structures: int = 20_000
    """How many crystals in all, those of one material and its ground states included."""
    seed: int = 0
    element: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Take these elements alone; default: all that the teachers know."""
    strained: int = 3
    """Strained crystals of each material."""
    rattled: int = 3
    """Crystals of each material with atoms displaced at random."""
    md: int = 3
    """Frames of molecular dynamics of each material."""
    strain: float = 0.03
    """Standard deviation of each component of the strains; volumes change by up to three times this more."""
    rattle: tuple[float, float] = (0.03, 0.2)
    """Standard deviations of the displacements (Å): a crystal's is drawn from this interval."""
    temperature: tuple[float, float] = (300.0, 2000.0)
    """Of molecular dynamics (K): a material's is drawn from this interval."""
    relax_steps: int = 40
    """Steps after which a relaxation ends where it is."""
    max_pressure: float = 5.0
    """GPa. A material whose ideal crystal is left with more is dropped."""
    max_force: float = 10.0
    """eV/Å. A crystal with a larger one on an atom is dropped."""
    max_energy: float = 1.0
    """eV/atom. A crystal whose energy is farther from that of its ideal crystal is dropped."""
    part: int = PART
    """Materials that are worked on together; a killed run loses one part at most."""
    out: Path = Path("teacher_set")
    """Folder for the datasets."""


class Frame(NamedTuple):
    """A crystal of a material before it is labelled."""

    material: str
    family: str
    kind: str  # "ideal", "strained", "rattled", "md"
    name: str  # "rocksalt-MgO/md-2"
    atoms: Atoms


def main(settings: Settings) -> None:
    check(settings)
    teachers = load_models(settings.teacher)
    check_names(teachers)
    study = Study("make_teacher_set", Settings.__doc__, settings, teachers)
    parts = divided(settings, common_elements(settings, teachers.values()))
    numbers = make_parts(study, settings, teachers, parts)
    made = Made(settings, [part_file(settings.out, k) for k in range(len(numbers))], list(teachers))
    splits = write_sets(made, teachers)
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
    (settings.out / SET).write_text(json.dumps(statement, indent=1) + "\n")
    tables = [kinds_table(made), families_table(made), dropped_table(statement), speed_table(statement)]
    study.write(tables, figures(made), findings(statement))


def check(settings: Settings) -> None:
    """Raises StudyError for settings without a set."""
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
            raise StudyError(f"found {name}={first:g} {last:g}, needed two numbers that ascend from 0.")


def check_names(teachers: Iterable[str]) -> None:
    """Raises StudyError for a name that cannot be that of a folder among the others."""
    for name in teachers:
        if Path(name).name != name or name in ("parts", "", ".."):
            raise StudyError(f"found a teacher called {name!r}, needed a name that a folder can have.")


def common_elements(settings: Settings, teachers: Iterable[Potential]) -> list[str]:
    """Symbols of the elements to use. Raises StudyError where one that was asked for is not known to all."""
    from ase.data import chemical_symbols

    known = set.intersection(*({chemical_symbols[z] for z in t.elements} for t in teachers))
    unknown = [s for s in settings.element if s not in known]
    if unknown:
        raise StudyError(f"found --element {unknown[0]}, which is not known to all teachers. Leave it out.")
    return sorted(settings.element or known)


class Piece(NamedTuple):
    """What a part is made of."""

    groups: list[list[Candidate]]  # those of one composition together
    ideal_only: bool = False


def divided(settings: Settings, symbols: Sequence[str]) -> list[Piece]:
    """All materials in parts, ground states first."""
    few = settings.structures < ALL_FRAMES * len(symbols)
    pieces = [
        Piece([[ground_state(s)] for s in some], few) for some in batching.chunks(symbols, settings.part)
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
    """Makes parts, those that are there already left as they are, until there are enough; their keys."""
    (settings.out / "parts").mkdir(exist_ok=True)
    # Of the same crystals in any run, so that programs and results are the same after a kill.
    rooms: dict[str, list[batching.Capacity]] = {}
    bar = iter(track(range(settings.structures), "structures"))
    keys, kept = [], 0
    for k, piece in enumerate(parts):
        if kept >= settings.structures:
            break
        key, path = f"part {k:05d}", part_file(settings.out, k)
        if key not in study.rows or not path.is_file():
            rooms = rooms or {name: sample_rooms(t, parts) for name, t in teachers.items()}
            arrays, row = make_part(settings, teachers, rooms, piece)
            draft = path.with_suffix(".part")
            with draft.open("wb") as file:
                np.savez(file, **arrays)
            draft.replace(path)
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


def sample_rooms(teacher: Potential, parts: Sequence[Piece]) -> list[batching.Capacity]:
    groups = list(islice((group for piece in parts for group in piece.groups), SAMPLE))
    graphs = [teacher.graph(enlarged(c.atoms())) for group in groups for c in group]
    return batching.rooms_for(graphs, MESSAGES, SPARE)


def make_part(
    settings: Settings,
    teachers: Mapping[str, Potential],
    rooms: Mapping[str, Sequence[batching.Capacity]],
    piece: Piece,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Crystals of these materials with the labels of all teachers, and what is to be said of them."""
    first = next(iter(teachers))
    dropped: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    evaluations: Counter[str] = Counter()
    with clock(seconds, "relaxing"), quiet():
        ideals = relaxed(settings, teachers[first], rooms[first], piece.groups, dropped, evaluations)
    with clock(seconds, "duplicates"):
        ideals = without_duplicates(ideals, dropped)
    frames = [Frame(c.material, c.family, "ideal", f"{c.material}/ideal", a) for c, a in ideals]
    if not piece.ideal_only:
        frames += [f for c, a in ideals for f in deformed(settings, c, a)]
        with clock(seconds, "molecular dynamics"), quiet():
            frames += heated(settings, teachers[first], rooms[first], ideals, dropped, evaluations)
    order = {c.material: k for k, (c, _) in enumerate(ideals)}
    frames.sort(key=lambda frame: order[frame.material])
    found = {}
    for name, teacher in teachers.items():
        with clock(seconds, f"labels of {name}"), quiet():
            found[name] = predict(teacher, [f.atoms for f in frames], rooms[name])
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
    """What the library warns of is counted here: relaxations without end, atoms close to each other."""
    from jaxmlip.relaxation import NotConvergedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        warnings.filterwarnings("ignore", message=".* Å apart")
        warnings.filterwarnings("ignore", message="FixSymmetry adjust_cell")
        yield


def relaxed(
    settings: Settings,
    teacher: Potential,
    rooms: Sequence[batching.Capacity],
    groups: Sequence[Sequence[Candidate]],
    dropped: Counter[str],
    evaluations: Counter[str],
) -> list[tuple[Candidate, Atoms]]:
    """The ideal crystals, at rest within their symmetry but for what pressure is allowed."""
    from jaxmlip.relaxation import relax_many

    candidates = [c for group in groups for c in group]
    starts = [c.atoms() for c in candidates]
    largest = batching.Capacity(*np.max([batching.need([teacher.graph(a)]) for a in starts], axis=0))
    room = next((room for room in rooms if room.holds(largest)), rooms[-1])
    results = relax_many(teacher, starts, **TIGHT, fix_symmetry=True, steps=settings.relax_steps, room=room)
    kept = []
    for candidate, result in zip(candidates, results, strict=True):
        evaluations["relaxing"] += result.steps + 1
        atoms = Atoms(result.atoms.numbers, result.atoms.positions, cell=result.atoms.cell.array, pbc=True)
        lost = not result.converged and not result.reason.startswith("force ")
        if lost or not np.isfinite(result.energy):
            dropped["ideal: fell apart in relaxing"] += 1
        elif not abs(result.pressure) <= settings.max_pressure:
            dropped["ideal: pressure"] += 1
        else:
            kept.append((candidate, atoms))
    return kept


def without_duplicates(
    ideals: Sequence[tuple[Candidate, Atoms]], dropped: Counter[str]
) -> list[tuple[Candidate, Atoms]]:
    """Those that are no other of the same composition, as pymatgen's StructureMatcher has it."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.io.ase import AseAtomsAdaptor

    matcher, kept = StructureMatcher(), []
    seen: dict[str, list] = {}
    for candidate, atoms in ideals:
        others = seen.setdefault(candidate.composition, [])
        structure = AseAtomsAdaptor.get_structure(atoms)
        if any(matcher.fit(structure, other) for other in others):
            dropped["ideal: the same as another"] += 1
        else:
            others.append(structure)
            kept.append((candidate, atoms))
    return kept


def enlarged(atoms: Atoms) -> Atoms:
    """A copy of `atoms`, repeated along its shortest vectors until it has LEAST atoms."""
    atoms = atoms.copy()
    while len(atoms) < LEAST:
        times = np.ones(3, int)
        times[np.argmin(atoms.cell.lengths())] = 2
        atoms = atoms.repeat(times)
    return atoms


def deformed(settings: Settings, candidate: Candidate, ideal: Atoms) -> Iterator[Frame]:
    """The strained and the rattled crystals of a material."""
    rng = generator(settings.seed, candidate.material, "deformed")
    about = candidate.material, candidate.family
    for k in range(1, settings.strained + 1):
        eps = rng.normal(0, settings.strain, (3, 3))
        eps = (eps + eps.T) / 2 + rng.uniform(-settings.strain, settings.strain) * np.eye(3)
        atoms = ideal.copy()
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + eps), scale_atoms=True)
        yield Frame(*about, "strained", f"{candidate.material}/strained-{k}", atoms)
    for k in range(1, settings.rattled + 1):
        atoms = enlarged(ideal)
        atoms.positions += rng.normal(0, rng.uniform(*settings.rattle), (len(atoms), 3))
        yield Frame(*about, "rattled", f"{candidate.material}/rattled-{k}", atoms)


def heated(
    settings: Settings,
    teacher: Potential,
    rooms: Sequence[batching.Capacity],
    ideals: Sequence[tuple[Candidate, Atoms]],
    dropped: Counter[str],
    evaluations: Counter[str],
) -> list[Frame]:
    """Frames of Langevin dynamics of all materials side by side, in cells that stay as they are.

    The integrator is BAOAB, Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34. A material whose atoms
    meet forces that are not finite or above the bound stops there; frames that it does not reach are dropped.
    """
    from ase.units import fs, kB

    if not settings.md:
        return []
    dt, keep = DT * fs, np.exp(-FRICTION * DT)
    walkers = []
    for candidate, ideal in ideals:
        rng = generator(settings.seed, candidate.material, "md")
        atoms, kT = enlarged(ideal), kB * rng.uniform(*settings.temperature)
        velocities = rng.normal(0, np.sqrt(ANHARMONIC * kT / MASS), (len(atoms), 3))
        walkers.append([candidate, atoms, velocities, kT, rng])
    frames = []
    forces = forces_of(teacher, [w[1] for w in walkers], rooms)
    evaluations["molecular dynamics"] += len(walkers)
    for step in range(1, settings.md * BETWEEN + 1):
        for (_, atoms, v, kT, rng), f in zip(walkers, forces, strict=True):
            v += dt / 2 * f / MASS
            atoms.positions += dt / 2 * v
            v *= keep
            v += np.sqrt((1 - keep**2) * kT / MASS) * rng.normal(size=v.shape)
            atoms.positions += dt / 2 * v
        forces = forces_of(teacher, [w[1] for w in walkers], rooms)
        evaluations["molecular dynamics"] += len(walkers)
        sound = [np.linalg.norm(f, axis=1).max() <= settings.max_force for f in forces]
        dropped["md: forces on the way"] += (len(sound) - sum(sound)) * (settings.md - (step - 1) // BETWEEN)
        walkers = [w for w, ok in zip(walkers, sound, strict=True) if ok]
        forces = [f for f, ok in zip(forces, sound, strict=True) if ok]
        for w, f in zip(walkers, forces, strict=True):
            w[2] += dt / 2 * f / MASS
        if step % BETWEEN == 0:
            k = step // BETWEEN
            frames += [
                Frame(c.material, c.family, "md", f"{c.material}/md-{k}", atoms.copy())
                for c, atoms, *_ in walkers
            ]
    return frames


def forces_of(
    teacher: Potential, crystals: Sequence[Atoms], rooms: Sequence[batching.Capacity]
) -> list[np.ndarray]:
    return [p["forces"].astype(float) for p in predict(teacher, crystals, rooms)]


def predict(
    teacher: Potential, crystals: Sequence[Atoms], rooms: Sequence[batching.Capacity]
) -> list[Prediction]:
    """In batches of crystals of like sizes, in the rooms of all."""
    graphs = [teacher.graph(atoms) for atoms in crystals]
    found: list[Any] = [None] * len(graphs)
    for batch, room in batching.side_by_side(graphs, MESSAGES, rooms):
        for k, p in zip(batch, teacher.predict_graphs([graphs[k] for k in batch], room), strict=True):
            found[k] = p
    return found


def sensible(
    settings: Settings,
    frames: Sequence[Frame],
    found: Mapping[str, Sequence[Prediction]],
    dropped: Counter[str],
) -> list[int]:
    """Which of `frames` no teacher finds absurd. Without its ideal crystal a material is dropped."""

    def energies(k: int) -> np.ndarray:
        return np.array([p[k]["energy"] / len(frames[k].atoms) for p in found.values()])

    kept, ideal, seen = [], {}, set()
    for k, frame in enumerate(frames):
        largest = max(float(np.linalg.norm(p[k]["forces"], axis=1).max()) for p in found.values())
        here = hash_of(frame.atoms)
        if frame.kind != "ideal" and frame.material not in ideal:
            reason = "of a material whose ideal crystal was dropped"
        elif not (largest <= settings.max_force and np.isfinite(energies(k)).all()):
            reason = "force"
        elif (
            frame.kind != "ideal"
            and not np.abs(energies(k) - ideal[frame.material]).max() <= settings.max_energy
        ):
            reason = "energy"
        elif here in seen:
            reason = "the same as another"
        else:
            seen.add(here)
            kept.append(k)
            if frame.kind == "ideal":
                ideal[frame.material] = energies(k)
            continue
        dropped[f"{frame.kind}: {reason}"] += 1
    return kept


def hash_of(atoms: Atoms) -> bytes:
    return atoms.numbers.tobytes() + atoms.positions.tobytes() + atoms.cell.array.tobytes()


def arrays_of(frames: Sequence[Frame], found: Mapping[str, Sequence[Prediction]]) -> dict[str, np.ndarray]:
    """A part as arrays, for a file without anything that could be executed."""
    arrays = {
        "atoms": np.array([len(f.atoms) for f in frames], int),
        "numbers": np.concatenate([np.zeros(0, int), *(f.atoms.numbers for f in frames)]),
        "positions": np.concatenate([np.zeros((0, 3)), *(f.atoms.positions for f in frames)]),
        "cells": np.array([f.atoms.cell.array for f in frames]).reshape(-1, 3, 3),
    }
    for field in ("material", "family", "kind", "name"):
        arrays[field] = np.array([getattr(f, field) for f in frames], np.str_)
    for k, predictions in enumerate(found.values()):
        for label in LABELS:
            if predictions and label in predictions[0]:
                values = [
                    np.asarray(p[label], np.float32 if label != "energy" else float) for p in predictions
                ]
                per_atom = label in ("forces", "magmoms")
                arrays[f"{label} {k}"] = np.concatenate(values) if per_atom else np.array(values)
    return arrays


class Made:
    """The crystals of all parts, as many as were asked for, and the labels of each teacher."""

    def __init__(self, settings: Settings, files: Sequence[Path], teachers: Sequence[str]):
        self.settings = settings
        self.frames: list[Frame] = []
        self.labels: dict[str, list[Labels]] = {name: [] for name in teachers}
        for path in files:
            self._add(path, teachers)
        self.frames = self.frames[: settings.structures]

    def _add(self, path: Path, teachers: Sequence[str]) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                part = dict(file)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise StudyError(f"{path} cannot be read ({error}). Remove it and run again.") from None
        ends = np.cumsum(part["atoms"])
        for k, (n, end) in enumerate(zip(part["atoms"], ends, strict=True)):
            of = slice(end - n, end)
            atoms = Atoms(part["numbers"][of], part["positions"][of], cell=part["cells"][k], pbc=True)
            about = (str(part[field][k]) for field in ("material", "family", "kind", "name"))
            self.frames.append(Frame(*about, atoms))
            for t, name in enumerate(teachers):
                here = {"energy": k, "stress": k, "forces": of, "magmoms": of}
                labels = {p: part[f"{p} {t}"][i] for p, i in here.items() if f"{p} {t}" in part}
                self.labels[name].append(Labels(**labels))

    def crystals(self, teacher: str) -> list[LabelledCrystal]:
        """With the labels of a teacher, which is named in the functional's place."""
        labels = self.labels[teacher]
        return [
            LabelledCrystal(f.atoms, labels[k], f.material, f.name, teacher)
            for k, f in enumerate(self.frames)
        ]

    def above_ideal(self, teacher: str) -> np.ndarray:
        """eV/atom, by the frames."""
        per_atom = np.array(
            [self.labels[teacher][k].energy / len(f.atoms) for k, f in enumerate(self.frames)]
        )
        ideal = {f.material: e for f, e in zip(self.frames, per_atom, strict=True) if f.kind == "ideal"}
        return per_atom - [ideal[f.material] for f in self.frames]

    def forces(self, teacher: str) -> list[np.ndarray]:
        """|F| on each atom, eV/Å, by the frames."""
        labels = self.labels[teacher]
        return [np.linalg.norm(labels[k].forces, axis=1) for k in range(len(self.frames))]


def write_sets(made: Made, teachers: Mapping[str, Potential]) -> dict[str, int]:
    """The dataset of each teacher, where it is not there; how many crystals each split has."""
    from jaxmlip.data.dataset import Dataset
    from jaxmlip.data.writing import write_dataset

    for name, teacher in track(list(teachers.items()), "datasets"):
        folder = made.settings.out / name
        if not folder.exists():
            write_dataset(
                folder,
                made.crystals(name),
                teacher.cutoffs,
                fractions=SPLIT,
                seed=made.settings.seed,
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


def kinds_table(made: Made) -> Table:
    rows = []
    for name in made.labels:
        above, forces = made.above_ideal(name), made.forces(name)
        for kind in dict.fromkeys(f.kind for f in made.frames):
            these = [k for k, f in enumerate(made.frames) if f.kind == kind]
            F = np.concatenate([forces[k] for k in these])
            atoms = float(np.mean([len(made.frames[k].atoms) for k in these]))
            e = 1e3 * np.percentile(above[these], (50, 95))
            row = [name, kind, len(these), atoms, *map(float, (*e, *np.percentile(F, (50, 95)), F.max()))]
            rows.append(row)
    columns = ("teacher", "crystals", "number", "atoms, mean", "energy above ideal: median / meV/atom")
    columns += ("95 %", "force on an atom: median / eV/Å", "95 %", "largest")
    return Table("What was done to the crystals", columns, rows, 2)


def families_table(made: Made) -> Table:
    rows = []
    for family in dict.fromkeys(f.family for f in made.frames):
        these = [f for f in made.frames if f.family == family]
        kinds = Counter(f.material.rsplit("-", 1)[0] for f in these if f.kind == "ideal")
        elements = {z for f in these for z in f.atoms.numbers}
        words = ", ".join(f"{name} {n}" for name, n in kinds.most_common())
        rows.append([family, len({f.material for f in these}), len(these), len(elements), words])
    every = {z for f in made.frames for z in f.atoms.numbers}
    rows.append(["all", len({f.material for f in made.frames}), len(made.frames), len(every), ""])
    columns = ("family", "materials", "crystals", "elements", "materials of each prototype")
    return Table("Families of compounds", columns, rows)


def dropped_table(statement: Mapping[str, Any]) -> Table:
    rows = [[*reason.split(": ", 1), n] for reason, n in statement["dropped"].items()]
    return Table("What was dropped, and why", ("crystals", "reason", "number"), rows or [["-", "-", 0]])


def speed_table(statement: Mapping[str, Any]) -> Table:
    rows = [[name, *x.values()] for name, x in statement["throughput"].items()]
    note = "Time to compile programs is in it, and lasts as long for few structures as for many."
    return Table("Throughput", ("", "time / s", "number", "1/s"), rows, 1, note)


def findings(statement: Mapping[str, Any]) -> list[str]:
    splits = ", ".join(f"{n} in {name}" for name, n in statement["splits"].items())
    names = " and ".join(statement["teachers"])
    return [
        f"{statement['structures']} crystals of {statement['materials']} materials ({splits}), labelled by "
        f"{names}. Labels of a model stand in for DFT and are none.",
    ]


def figures(made: Made) -> dict[str, tuple[str, Figure]]:
    first = next(iter(made.labels))
    return {
        "teacher_set.png": (
            f"Energies above that of the ideal crystal, forces on atoms, and how many crystals have each "
            f"element; by {first}.",
            draw(made, first),
        )
    }


def draw(made: Made, teacher: str) -> Figure:
    import matplotlib.pyplot as plt
    from ase.data import chemical_symbols

    from jaxmlip.figures import COLOURS

    figure = plt.figure(figsize=(9, 6), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    axes = [figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, :])]
    above, forces = made.above_ideal(teacher), made.forces(teacher)
    kinds = [kind for kind in dict.fromkeys(f.kind for f in made.frames) if kind != "ideal"]
    ends = np.percentile(above, (0.5, 99.5)) if kinds else (-1.0, 1.0)
    bins = (1e3 * np.linspace(min(ends[0], -0.01), max(ends[1], 0.01), 60), np.geomspace(1e-3, 30, 60))
    for k, kind in enumerate(kinds):
        these = [n for n, f in enumerate(made.frames) if f.kind == kind]
        style = {"histtype": "step", "color": COLOURS[k], "ls": ("-", "--", "-.")[k % 3], "lw": 1.4}
        axes[0].hist(1e3 * above[these], bins[0], label=kind, **style)
        axes[1].hist(np.concatenate([forces[n] for n in these]), bins[1], label=kind, **style)
    axes[0].set(xlabel="energy above the ideal crystal / meV/atom", ylabel="crystals")
    axes[1].set(xlabel="force on an atom / eV/Å", ylabel="atoms", xscale="log")
    for ax in axes[:2]:
        if kinds:
            ax.legend(frameon=False, fontsize="small")
    counts = Counter(int(z) for f in made.frames for z in np.unique(f.atoms.numbers))
    numbers = sorted(counts)
    axes[2].bar(range(len(numbers)), [counts[z] for z in numbers], color=COLOURS[0], width=0.8)
    labels = ["\n" * (k % 2) + chemical_symbols[z] for k, z in enumerate(numbers)]
    axes[2].set_xticks(range(len(numbers)), labels, fontsize=6)
    axes[2].set(ylabel="crystals with this element", xlim=(-1, len(numbers)))
    plt.close(figure)
    return figure


if __name__ == "__main__":
    run(main, Settings)
