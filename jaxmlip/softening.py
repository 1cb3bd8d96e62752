"""Is the curvature of a potential too soft? Phonon frequencies of binary crystals against DFT.

The reference is phononDB-PBE as k_SRME publishes it: 103 rocksalt, zincblende and wurtzite crystals. Both
sides take the PBE cell as it is, without relaxation, leave out the non-analytical correction of polar
crystals (which the potentials lack), and look at the same Γ-centred mesh of wave vectors, 19 × 19 × 19
(wurtzite: 19 × 19 × 15). The potential's frequencies there are interpolated from a supercell of at most 128
atoms, whose images are 9 Å (BeO), and mostly 12 to 21 Å, apart.

They come twice: from the Hessian, the curvature at the lattice sites, and from forces at displacements of
0.03 Å, as DFT's force constants are made. For an energy that is smooth on that scale the two are one. Where
they differ, the potential is rough there, and neither number alone would say so.
"""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np
import rich.box
from ase import Atoms
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table

import jaxmlip
from jaxmlip import batching
from jaxmlip.derivatives import MemoryLimitError
from jaxmlip.phonons.commensurate import frequencies, mesh_frequencies
from jaxmlip.phonons.force_constants import (
    ForceConstants,
    displaced_force_constants,
    force_constants,
    repeat_distance,
    repeats_within,
)
from jaxmlip.progress import track

if TYPE_CHECKING:
    from jaxmlip.potential import Potential

SUPERCELL = 128  # atoms at most
DISPLACEMENT = 0.03  # Å, the default of phono3py
MEASURES = {"hessian": "Hessian", "displaced": f"±{DISPLACEMENT} Å"}
STRUCTURES = {225: "rocksalt", 216: "zincblende", 186: "wurtzite"}  # by space group
SHORT = {"rocksalt": "rs", "zincblende": "zb", "wurtzite": "wz"}
MARKERS = {"rocksalt": "s", "zincblende": "D", "wurtzite": "H"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito (2008)
IMAGINARY = -0.1  # THz; what lies below is a mode without a restoring force, not rounding
STRUCTURES_FILE, FREQUENCIES_FILE = "phononDB-PBE-structures.extxyz", "kappas_phononDB_PBE_noNAC.json.gz"
SOURCE = {
    "data": "phononDB-PBE, A. Togo: harmonic frequencies of VASP force constants (PBE), without the "
    "non-analytical correction",
    "published_in": "https://github.com/MPA2suite/k_SRME, folder data, files "
    f"{STRUCTURES_FILE} and {FREQUENCIES_FILE}",
    "commit": "0269a946a1e4c53552b060a92b98df94e039fd80",
    "licence": "that repository is under GPL-3.0; quoted here are cells and frequencies, no code",
    "paper": "B. Póta, P. Ahlawat, G. Csányi and M. Simoncelli, arXiv:2408.00755",
}


@dataclass(frozen=True)
class Spectrum:
    """Frequencies of one crystal in THz."""

    maximum: float
    mean: float  # over wave vectors and branches; an imaginary frequency counts as 0
    lowest: float  # negative where it is imaginary

    @classmethod
    def of(cls, thz: np.ndarray, weights: np.ndarray | None = None) -> Spectrum:
        """From frequencies (q, branches), and the weights of the wave vectors where these differ."""
        mean = np.average(np.maximum(thz, 0).mean(axis=1), weights=weights)
        return cls(float(thz.max()), float(mean), float(thz.min()))


@dataclass(frozen=True)
class Material:
    """A crystal with its DFT frequencies."""

    id: str  # of the Materials Project, as far as it has one
    formula: str
    structure: str
    atoms: Atoms  # primitive cell, as relaxed with PBE
    mesh: tuple[int, int, int]  # of wave vectors, Γ-centred
    dft: Spectrum


@dataclass(frozen=True)
class Row:
    """A potential against DFT for one material; all frequencies in THz."""

    id: str
    formula: str
    structure: str
    repeats: tuple[int, int, int]  # of the primitive cell
    atoms: int  # of the supercell
    repeat_distance: float  # Å between nearest images
    dft: Spectrum
    hessian: Spectrum
    displaced: Spectrum
    commensurate: Spectrum  # the Hessian's, at the wave vectors that fit the supercell: not interpolated

    def ratio(self, of: str = "maximum", measure: str = "hessian") -> float:
        """Potential over DFT, for "maximum" or "mean", and for one of MEASURES."""
        return max(getattr(getattr(self, measure), of), 0.0) / getattr(self.dft, of)


def softening(
    potential: Potential,
    materials: Sequence[Material],
    supercell: int = SUPERCELL,
    memory_limit: float | None = None,
) -> list[Row]:
    """One row for each material, in the same order. The potential should have dtype "float64".

    Of the supercells of at most `supercell` atoms the one whose images are farthest apart is taken, and
    one of at most half as many atoms, with a warning, where its Hessian does not fit into `memory_limit`
    bytes.

    Raises ValueError where an element is unknown to the potential, and MemoryLimitError where even two
    cells do not fit.
    """
    repeats = [_repeats(m.atoms, supercell) for m in materials]
    graphs = [
        potential.graph(m.atoms.repeat(n))
        for m, n in zip(track(materials, "supercells"), repeats, strict=True)
    ]
    rooms = shared_rooms([batching.need([g]) for g in graphs])
    jobs = list(zip(materials, repeats, rooms, strict=True))
    rows = []
    for material, n, room in track(jobs, f"phonons of {potential.name}"):
        try:
            by_hessian = force_constants(potential, material.atoms, n, memory_limit=memory_limit, room=room)
        except MemoryLimitError:
            n, by_hessian = _smaller(potential, material.atoms, supercell // 2, memory_limit)
            room = None
            warnings.warn(
                f"{material.formula}: the Hessian of the supercell does not fit into memory_limit="
                f"{memory_limit / 1e9:.3g} GB; {np.prod(n) * len(material.atoms)} atoms are taken instead, "
                "whose frequencies can be several per cent off. Allow more memory for comparable rows.",
                stacklevel=2,
            )
        by_forces = displaced_force_constants(potential, material.atoms, n, DISPLACEMENT, room)
        rows.append(_row(material, n, by_hessian, by_forces))
    return rows


def _repeats(primitive: Atoms, atoms: int) -> tuple[int, int, int]:
    return repeats_within(primitive.cell.array, atoms // len(primitive))


def _smaller(potential, primitive, atoms, memory_limit) -> tuple[tuple[int, int, int], ForceConstants]:
    while True:
        n = _repeats(primitive, atoms)
        try:
            return n, force_constants(potential, primitive, n, memory_limit=memory_limit)
        except MemoryLimitError:
            atoms //= 2
            if atoms < 2 * len(primitive):
                raise


def _row(material: Material, n, by_hessian: ForceConstants, by_forces: ForceConstants) -> Row:
    on_mesh = partial(mesh_frequencies, mesh=material.mesh)
    return Row(
        id=material.id,
        formula=material.formula,
        structure=material.structure,
        repeats=n,
        atoms=int(np.prod(n)) * len(material.atoms),
        repeat_distance=repeat_distance(material.atoms.cell.array, n),
        dft=material.dft,
        hessian=Spectrum.of(on_mesh(by_hessian)),
        displaced=Spectrum.of(on_mesh(by_forces)),
        commensurate=Spectrum.of(frequencies(by_hessian)),
    )


def shared_rooms(needs: Sequence[batching.Capacity], waste: float = 2.5) -> list[batching.Capacity]:
    """A capacity for each need, few different ones among them, so that few programs are compiled.

    None makes a crystal's work more than about `waste` times what it would be alone.
    """

    def cost(c: batching.Capacity) -> float:
        return 2 * (c.short + c.long) + 4 * c.angles

    def joint(members: Sequence[batching.Capacity]) -> batching.Capacity:
        return batching.Capacity(*(max(column) for column in zip(*members, strict=True)))

    classes: list[list[int]] = []
    for k in sorted(range(len(needs)), key=lambda k: -cost(needs[k])):
        for members in classes:
            both = [needs[m] for m in (*members, k)]
            if cost(joint(both)) <= waste * min(map(cost, both)):
                members.append(k)
                break
        else:
            classes.append([k])
    rooms = [needs[0]] * len(needs) if needs else []
    for members in classes:
        most = joint([needs[m] for m in members])
        # A displaced atom may meet a few more neighbours.
        room = batching.Capacity(
            batching.round_up(most.atoms + 1),
            batching.round_up(int(1.02 * most.short) + 1),
            batching.round_up(int(1.02 * most.long)),
            batching.round_up(most.angles),
        )
        for m in members:
            rooms[m] = room
    return rooms


def summary(rows: Sequence[Row], resamples: int = 10_000) -> dict[str, Any]:
    """Ratios of the maximum and of the mean frequency over all rows, by measure.

    Each: the geometric mean with its 95 % interval (bootstrap over materials), the median, and how many are
    below 1; and the number of materials with imaginary modes.
    """
    result: dict[str, Any] = {"materials": len(rows)}
    for measure in MEASURES:
        lowest = np.array([getattr(row, measure).lowest for row in rows])
        result[measure] = {"with_imaginary_modes": int((lowest < IMAGINARY).sum())}
        for of in ("maximum", "mean"):
            ratios = np.array([row.ratio(of, measure) for row in rows])
            with np.errstate(divide="ignore"):
                logs = np.log(ratios)  # -inf where no mode is real: then the geometric mean is 0
            drawn = np.random.default_rng(0).choice(logs, (resamples, len(logs))).mean(axis=1)
            result[measure][of] = {
                "geometric_mean": float(np.exp(logs.mean())),
                "interval": np.percentile(np.exp(drawn), (2.5, 97.5)).tolist(),
                "median": float(np.median(ratios)),
                "below_1": int((ratios < 1).sum()),
            }
    return result


def builtin_materials() -> list[Material]:
    """The materials whose cells and DFT frequencies come with this package."""
    record = json.loads(files("jaxmlip").joinpath("phonondb_pbe.json").read_text())
    return [
        Material(
            id=m["id"],
            formula=m["formula"],
            structure=m["structure"],
            atoms=Atoms(m["symbols"], cell=m["cell"], scaled_positions=m["scaled_positions"], pbc=True),
            mesh=tuple(m["mesh"]),
            dft=Spectrum(**m["dft"]),
        )
        for m in record["materials"]
    ]


def read_phonondb(folder: str | Path) -> list[Material]:
    """All materials of k_SRME's phononDB-PBE files in `folder`, or in its folder phonondb_PBE_103.

    Raises FileNotFoundError where a file is missing, and ValueError where the two files do not agree.
    """
    folder = Path(folder)
    if not (folder / STRUCTURES_FILE).is_file() and (folder / "phonondb_PBE_103").is_dir():
        folder = folder / "phonondb_PBE_103"
    missing = [name for name in (STRUCTURES_FILE, FREQUENCIES_FILE) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}. Both files are published at "
            f"{SOURCE['published_in'].split(',')[0]}, commit {SOURCE['commit'][:8]}, in its folder data; put "
            "them into one folder and name that folder with --data. Without --data the built-in list is "
            "used, which needs no files."
        )
    with gzip.open(folder / FREQUENCIES_FILE, "rt") as file:
        columns = json.load(file)
    index = {mp_id: k for k, mp_id in columns["mp_id"].items()}
    crystals = ase.io.read(folder / STRUCTURES_FILE, ":")
    unmatched = sorted({a.info["mp_id"] for a in crystals} ^ set(index))
    if unmatched:
        raise ValueError(
            f"{STRUCTURES_FILE} and {FREQUENCIES_FILE} in {folder} name different materials: "
            f"{', '.join(unmatched[:5])}{' …' * (len(unmatched) > 5)} are in one of them alone. Take both "
            "from the same commit."
        )
    found = []
    for crystal in crystals:
        k = index[crystal.info["mp_id"]]
        thz, weights = np.array(columns["frequencies"][k]), np.array(columns["weights"][k])
        primitive = primitive_cell(crystal, crystal.info.get("primitive_matrix"))
        if thz.shape != (len(weights), 3 * len(primitive)) or weights.sum() != np.prod(columns["q_mesh"][k]):
            raise ValueError(
                f"{crystal.info['mp_id']} ({crystal.info['name']}) has frequencies of shape {thz.shape} and "
                f"weights that add up to {weights.sum()}; needed {3 * len(primitive)} branches, and weights "
                f"for a mesh of {columns['q_mesh'][k]}. Take both files from the same commit."
            )
        found.append(
            Material(
                id=crystal.info["mp_id"],
                formula=crystal.info["name"],
                structure=STRUCTURES[int(crystal.info["symm.no"])],
                atoms=primitive,
                mesh=tuple(columns["q_mesh"][k]),
                dft=Spectrum.of(thz, weights),
            )
        )
    return found


def primitive_cell(crystal: Atoms, matrix: np.ndarray | None) -> Atoms:
    """The primitive cell: its lattice vectors are the columns of `matrix` in units of the crystal's.

    Without a matrix, the cell as it is. Raises ValueError where the crystal does not repeat with that cell.
    """
    if matrix is None:
        return Atoms(crystal.numbers, crystal.positions, cell=crystal.cell, pbc=True)
    cell = np.asarray(matrix).T @ crystal.cell.array
    scaled = crystal.positions @ np.linalg.inv(cell)
    apart = scaled[:, None] - scaled
    same = np.linalg.norm((apart - apart.round()) @ cell, axis=-1) < 1e-3  # Å
    first = same.argmax(axis=1)
    kept = np.flatnonzero(first == np.arange(len(crystal)))
    copies = round(len(crystal) / len(kept))
    alike = (crystal.numbers[first] == crystal.numbers).all() and (same.sum(axis=1) == copies).all()
    if not alike or abs(copies * abs(np.linalg.det(cell)) / crystal.cell.volume - 1) > 1e-6:
        raise ValueError(
            f"{crystal.get_chemical_formula()} does not repeat with the cell {cell.round(4).tolist()} Å that "
            f"its primitive_matrix names: of its {len(crystal)} atoms, {len(kept)} are no lattice copies of "
            "others. Check that structure and matrix belong together."
        )
    return Atoms(crystal.numbers[kept], scaled_positions=scaled[kept] % 1.0, cell=cell, pbc=True)


def table(rows: Sequence[Row], model: str) -> Table:
    """The rows for a terminal: frequencies in THz, ratios potential / DFT."""
    result = Table(
        title=f"{model} against phononDB-PBE: highest frequency (THz), mean frequency",
        caption="rs rocksalt, zb zincblende, wz wurtzite; N: atoms of the supercell;\n"
        "ratios are model / DFT; min: of the Hessian, negative where imaginary",
        title_justify="left",
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    result.add_column("solid", no_wrap=True)
    for name in (
        "N",
        "DFT",
        "Hessian",
        "ratio",
        MEASURES["displaced"],
        "ratio",
        "of mean,\nHessian",
        "of mean,\n±0.03 Å",
        "min",
    ):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        result.add_row(
            f"{row.formula} {SHORT.get(row.structure, row.structure)}",
            str(row.atoms),
            f"{row.dft.maximum:.2f}",
            f"{row.hessian.maximum:.2f}",
            f"{row.ratio('maximum', 'hessian'):.3f}",
            f"{row.displaced.maximum:.2f}",
            f"{row.ratio('maximum', 'displaced'):.3f}",
            f"{row.ratio('mean', 'hessian'):.3f}",
            f"{row.ratio('mean', 'displaced'):.3f}",
            f"{round(row.hessian.lowest, 2) + 0.0:.2f}",  # no -0.00
        )
    return result


def in_words(result: dict[str, Any]) -> list[str]:
    """What `summary` found, a line for each measure."""
    lines = []
    for measure, label in MEASURES.items():
        highest, mean = result[measure]["maximum"], result[measure]["mean"]
        low, high = highest["interval"]
        lines.append(
            f"{label}: ω_max ratio {highest['geometric_mean']:.3f} (geometric mean, 95 % interval {low:.3f} "
            f"to {high:.3f}), median {highest['median']:.3f}, {highest['below_1']} of {result['materials']} "
            f"below 1; "
            f"mean frequency {mean['geometric_mean']:.3f}, median {mean['median']:.3f}; "
            f"{result[measure]['with_imaginary_modes']} with imaginary modes"
        )
    return lines


def save_json(rows_by_model: Mapping[str, Sequence[Row]], path: Path, settings: Mapping[str, Any]) -> None:
    """Everything that was computed, with settings, versions and the source of the reference."""
    record = {
        "what": "phonon frequencies of potentials against DFT, in THz; ratios are potential / DFT",
        "settings": {
            "cell": "primitive PBE cell of the reference, not relaxed",
            "non_analytical_correction": "left out on both sides",
            "wave_vectors": "the reference's Γ-centred mesh, interpolated from the supercell; "
            "`commensurate`: those that fit the supercell",
            "mean": "over wave vectors and branches, the acoustic branches at Γ included, imaginary "
            "frequencies as 0",
            "displacement_A": DISPLACEMENT,
            "imaginary_below_THz": IMAGINARY,
            **settings,
        },
        "versions": {name: version(name) for name in ("jax", "numpy")} | {"jaxmlip": jaxmlip.__version__},
        "reference": SOURCE,
        "models": {
            model: {"summary": summary(rows), "rows": [_as_record(row) for row in rows]}
            for model, rows in rows_by_model.items()
        },
    }
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _as_record(row: Row) -> dict[str, Any]:
    ratios = {measure: {of: row.ratio(of, measure) for of in ("maximum", "mean")} for measure in MEASURES}
    return asdict(row) | {"ratios": ratios}


def draw(rows_by_model: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Parity figures of the highest and the mean frequency, from the Hessian and from displacements."""
    # The object interface needs no display and leaves a caller's pyplot alone.
    figure = Figure(figsize=(9, 8.6), layout="constrained")
    panels = figure.subplots(2, 2)
    for line, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for axes, of in zip(line, ("maximum", "mean"), strict=True):
            _parity(axes, rows_by_model, of, measure)
            name = {"maximum": "highest", "mean": "mean"}[of]
            axes.set_xlabel(f"{name} frequency, DFT (THz)")
            axes.set_ylabel(f"{name} frequency, model (THz)")
            by = {"hessian": "Hessian", "displaced": f"forces at {label}"}[measure]
            axes.set_title(f"{by}; median ratios model / DFT", loc="left", fontsize=10)
    figure.legend(handles=_legend(rows_by_model), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _parity(axes, rows_by_model, of: str, measure: str) -> None:
    highest = 0.0
    for k, (model, rows) in enumerate(rows_by_model.items()):
        colour = COLOURS[k % len(COLOURS)]
        x = np.array([getattr(row.dft, of) for row in rows])
        y = np.array([getattr(getattr(row, measure), of) for row in rows])
        highest = max(highest, x.max(), y.max())
        kinds = np.array([row.structure for row in rows])
        for kind in dict.fromkeys(kinds):
            axes.scatter(
                x[kinds == kind],
                y[kinds == kind],
                s=34,
                marker=MARKERS.get(kind, "o"),
                color=colour,
                alpha=0.75,
                edgecolors="white",
                linewidths=0.6,
                zorder=3,
            )
        note = f"{np.median([row.ratio(of, measure) for row in rows]):.2f}  {model}"
        place = (0.03, 0.97 - 0.055 * k)
        axes.text(*place, note, transform=axes.transAxes, va="top", fontsize=8, color=colour, weight="bold")
    limit = 1.06 * highest
    axes.plot([0, limit], [0, limit], color="0.4", lw=0.9, zorder=1)
    axes.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
    axes.grid(color="0.92", lw=0.6, zorder=0)


def _legend(rows_by_model) -> list[Line2D]:
    kinds = dict.fromkeys(row.structure for rows in rows_by_model.values() for row in rows)
    shapes = [Line2D([], [], ls="", marker=MARKERS.get(k, "o"), color="0.45", label=k) for k in kinds]
    return [*shapes, Line2D([], [], color="0.4", lw=0.9, label="model = DFT")]


def run(
    models: Sequence[str],
    data: Path | None,
    out: Path,
    memory_limit: float | None = None,
    supercell: int = SUPERCELL,
) -> None:
    """`softening` for each of `models`: prints tables, writes softening.json and softening.png to `out`.

    `data` is the folder of `read_phonondb`; None takes the built-in materials.
    """
    from jaxmlip.sources import load

    materials = builtin_materials() if data is None else read_phonondb(data)
    potentials = [load(model, dtype="float64") for model in models]
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    console = console if console.is_terminal else Console(width=110)
    rows_by_model = {}
    for potential in potentials:
        rows = softening(potential, materials, supercell, memory_limit)
        rows_by_model[potential.name] = rows
        console.print(table(rows, potential.name))
        for line in in_words(summary(rows)):
            console.print(line, highlight=False)
    settings = {
        "dtype": "float64",
        "supercell_atoms_at_most": supercell,
        "materials": "built-in list" if data is None else "all of the given folder",
        "weights_sha256": {p.name: p.manifest.get("sha256") for p in potentials},
    }
    save_json(rows_by_model, out / "softening.json", settings)
    draw(rows_by_model, out / "softening.png")
    console.print(f"written to {out / 'softening.json'} and {out / 'softening.png'}", highlight=False)
