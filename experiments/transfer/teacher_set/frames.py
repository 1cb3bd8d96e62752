"""The crystals of a teacher set: relaxed, strained, rattled and heated, and the choice of which to keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ase import Atoms

from experiments.transfer.teacher_set.prototypes import Candidate, generator
from experiments.transfer.teacher_set.settings import Settings
from jaxmlip.crystals import batches, batching

if TYPE_CHECKING:
    from jaxmlip.potential import Potential, Prediction

LEAST = 4  # atoms at least of the cells in which atoms are displaced
MESSAGES = 4_000  # bonds and angles in a batch; on a CPU larger batches are not faster
# The configurations that molecular dynamics visits do not depend on masses, so all atoms have that of Ca, and
# one time step fits all.
MASS, DT, FRICTION, BETWEEN = 40.0, 4.0, 0.02, 8  # amu, fs, 1/fs, steps between two frames
ANHARMONIC = 2.0  # initial kinetic energy over that of the temperature: half of it goes into bonds
TIGHT = {"fmax": 0.05, "smax": 0.5}  # eV/Å, GPa; largest force and stress at the end of a relaxation


class Frame(NamedTuple):
    """A crystal of a material before it is labelled."""

    material: str
    family: str
    kind: str  # "ideal", "strained", "rattled", "md"
    name: str  # "rocksalt-MgO/md-2"
    atoms: Atoms


def relaxed(
    settings: Settings,
    teacher: Potential,
    shapes: Sequence[batching.BatchShape],
    groups: Sequence[Sequence[Candidate]],
    dropped: Counter[str],
    evaluations: Counter[str],
) -> list[tuple[Candidate, Atoms]]:
    """The ideal crystals, relaxed within their symmetry up to the allowed pressure."""
    from jaxmlip.mechanics.relaxation import relax_many

    candidates = [c for group in groups for c in group]
    starts = [c.atoms() for c in candidates]
    largest = batching.BatchShape.covering(batching.exact_shape([teacher.graph(a)]) for a in starts)
    shape = next((shape for shape in shapes if shape.fits(largest)), shapes[-1])
    results = relax_many(teacher, starts, **TIGHT, fix_symmetry=True, steps=settings.relax_steps, shape=shape)
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
    """The crystals without duplicates of the same composition, by pymatgen's StructureMatcher."""
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
    shapes: Sequence[batching.BatchShape],
    ideals: Sequence[tuple[Candidate, Atoms]],
    dropped: Counter[str],
    evaluations: Counter[str],
) -> list[Frame]:
    """Frames of Langevin dynamics of all materials side by side, in fixed cells.

    The integrator is BAOAB, Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34. A material stops when a
    force is above the bound or not finite; its further frames are dropped.
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
    forces = forces_of(teacher, [w[1] for w in walkers], shapes)
    evaluations["molecular dynamics"] += len(walkers)
    for step in range(1, settings.md * BETWEEN + 1):
        for (_, atoms, v, kT, rng), f in zip(walkers, forces, strict=True):
            v += dt / 2 * f / MASS
            atoms.positions += dt / 2 * v
            v *= keep
            v += np.sqrt((1 - keep**2) * kT / MASS) * rng.normal(size=v.shape)
            atoms.positions += dt / 2 * v
        forces = forces_of(teacher, [w[1] for w in walkers], shapes)
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
    teacher: Potential, crystals: Sequence[Atoms], shapes: Sequence[batching.BatchShape]
) -> list[np.ndarray]:
    return [p["forces"].astype(float) for p in predict(teacher, crystals, shapes)]


def predict(
    teacher: Potential, crystals: Sequence[Atoms], shapes: Sequence[batching.BatchShape]
) -> list[Prediction]:
    """Predictions in batches of crystals of similar sizes, in the given shapes."""
    graphs = [teacher.graph(atoms) for atoms in crystals]
    return batches.predicted(teacher, graphs, messages=MESSAGES, shapes=shapes)


def sensible(
    settings: Settings,
    frames: Sequence[Frame],
    found: Mapping[str, Sequence[Prediction]],
    dropped: Counter[str],
) -> list[int]:
    """Indices of the `frames` that no teacher finds absurd. A material needs its ideal crystal to be kept."""

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
