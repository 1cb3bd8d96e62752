"""Is the curvature of a potential too soft? Phonon frequencies of binary crystals against DFT.

The reference is `phonondb`. Both sides take the PBE cell as it is, without relaxation, leave out the
non-analytical correction of polar crystals (which the potentials lack), and look at the same mesh of wave
vectors.

The potential's frequencies come twice: from the Hessian, the curvature at the lattice sites, through exact
dynamical matrices of the primitive cell; and from forces at displacements of 0.03 Å in a supercell of at most
128 atoms, as DFT's force constants are made, interpolated between the wave vectors that fit it. For an energy
that is smooth on that scale the two are one. Where they differ, the potential is rough there, and neither
number alone would say so.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import rich.box
from ase import Atoms
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.table import Table

import jaxmlip
from jaxmlip.crystals import batching
from jaxmlip.mechanics.elasticity import NotAtRestWarning
from jaxmlip.phonons.commensurate import interpolated_frequencies
from jaxmlip.phonons.modes import Modes, mesh_modes
from jaxmlip.phonons.supercell import displaced_force_constants, repeat_distance, repeats_within
from jaxmlip.studies.phonondb import SOURCE, Material, Spectrum, builtin_materials, read_phonondb
from jaxmlip.system.console import console, say
from jaxmlip.system.figures import COLOURS
from jaxmlip.system.files import check_folder, write_whole, writing_folder
from jaxmlip.system.progress import track

if TYPE_CHECKING:
    from jaxmlip.potential import Potential

SUPERCELL = 128  # atoms at most
TOLERANCE = 2e-3  # THz, of Fourier sums; the table has two digits
DISPLACEMENT = 0.03  # Å, the default of phono3py
MEASURES = {"hessian": "Hessian", "displaced": f"±{DISPLACEMENT} Å"}
SHORT = {"rocksalt": "rs", "zincblende": "zb", "wurtzite": "wz"}
MARKERS = {"rocksalt": "s", "zincblende": "D", "wurtzite": "H"}
IMAGINARY = -0.1  # THz; what lies below is a mode without a restoring force, not rounding


class Published(NamedTuple):
    """What others found for a potential: maximum frequencies of PhononDB crystals (PBEsol), model / DFT."""

    median: float  # of 298 materials, from the table of janosh/ffonons (df-summary-tol=0.01)
    below_1: float  # share of 229 materials: Deng et al., npj Comput. Mater. 11, 9 (2025), Fig. 4b


PUBLISHED = {
    "m3gnet-mp-2021.2.8": Published(0.784, 0.974),
    "chgnet-0.3.0": Published(0.894, 0.908),
    "mace-mp-0a-medium": Published(0.921, 0.939),
}


@dataclass(frozen=True, eq=False)
class Row:
    """A potential against DFT for one material; all frequencies in THz."""

    id: str
    formula: str
    structure: str
    dft: Spectrum
    hessian: Spectrum
    displaced: Spectrum
    repeats: tuple[int, int, int]  # of the primitive cell, for displacements
    atoms: int  # of that supercell
    repeat_distance: float  # Å between its nearest images
    modes: Modes  # from the Hessian

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

    For displacements, of the supercells of at most `supercell` atoms the one whose images are farthest apart
    is taken. `memory_limit` (bytes) goes to `dynamical_matrix`.

    Raises ValueError where an element is unknown to the potential, and MemoryLimitError where the limit
    cannot be met.
    """
    repeats = [_repeats(m.atoms, supercell) for m in materials]
    primitive = shared_rooms([batching.need([potential.graph(m.atoms)]) for m in materials])
    repeated = shared_rooms(
        [
            batching.need([potential.graph(m.atoms.repeat(n))])
            for m, n in zip(track(materials, "supercells"), repeats, strict=True)
        ]
    )
    jobs = list(zip(materials, repeats, primitive, repeated, strict=True))
    rows = []
    for material, n, room, wide in track(jobs, f"phonons of {potential.name}"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotAtRestWarning)  # the cells are DFT's
            modes = mesh_modes(
                potential,
                material.atoms,
                material.mesh,
                tolerance=TOLERANCE,
                memory_limit=memory_limit,
                room=room,
            )
        by_forces = displaced_force_constants(
            potential, material.atoms, n, DISPLACEMENT, symmetry=True, room=wide
        )
        displaced = interpolated_frequencies(by_forces, modes.q_points)
        rows.append(
            Row(
                id=material.id,
                formula=material.formula,
                structure=material.structure,
                dft=material.dft,
                hessian=Spectrum.of(modes.frequencies, modes.weights),
                displaced=Spectrum.of(displaced, modes.weights),
                repeats=n,
                atoms=int(np.prod(n)) * len(material.atoms),
                repeat_distance=repeat_distance(material.atoms.cell.array, n),
                modes=modes,
            )
        )
    return rows


def _repeats(primitive: Atoms, atoms: int) -> tuple[int, int, int]:
    return repeats_within(primitive.cell.array, atoms // len(primitive))


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


def published_in_words(model: str, rows: Sequence[Row]) -> list[str]:
    """The published ratios beside ours, where there are some for this potential."""
    if model not in PUBLISHED:
        return []
    ours = np.array([row.ratio("maximum", "displaced") for row in rows])
    published = PUBLISHED[model]
    return [
        f"published, displacements of other crystals (PhononDB, PBEsol, relaxed): median ω_max ratio "
        f"{published.median:.3f} of 298, {100 * published.below_1:.1f} % of 229 below 1; here, "
        f"±{DISPLACEMENT} Å: {np.median(ours):.3f}, {100 * (ours < 1).mean():.1f} % of {len(ours)}"
    ]


def save_json(rows_by_model: Mapping[str, Sequence[Row]], path: Path, settings: Mapping[str, Any]) -> None:
    """Everything that was computed, with settings, versions and the source of the reference."""
    record = {
        "what": "phonon frequencies of potentials against DFT, in THz; ratios are potential / DFT",
        "settings": {
            "cell": "primitive PBE cell of the reference, not relaxed",
            "non_analytical_correction": "left out on both sides",
            "wave_vectors": "the reference's Γ-centred mesh; from the Hessian by exact dynamical matrices, "
            "see `method`, from displacements interpolated from the supercell",
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
    write_whole(path, json.dumps(record, ensure_ascii=False) + "\n")


def _as_record(row: Row) -> dict[str, Any]:
    names = ("dft", "hessian", "displaced")
    ratios = {measure: {of: row.ratio(of, measure) for of in ("maximum", "mean")} for measure in MEASURES}
    return {
        **{name: getattr(row, name) for name in ("id", "formula", "structure", "repeats", "atoms")},
        "repeat_distance": row.repeat_distance,
        **{name: asdict(getattr(row, name)) for name in names},
        "ratios": ratios,
        "method": row.modes.method,
        "max_force_eV_per_A": row.modes.max_force,
        "q_points": row.modes.q_points.round(6).tolist(),
        "weights": row.modes.mesh.weights.tolist(),
        "frequencies": row.modes.frequencies.round(5).tolist(),
    }


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
    dtype: str = "float64",
    heads: Sequence[str] = (),
) -> None:
    """`softening` for each of `models`: prints tables, writes softening.json and softening.png to `out`.

    `data` is the folder of `read_phonondb`; None takes the built-in materials. `heads` are those of
    `load_each`.
    """
    from jaxmlip.zoo.load import load_each

    check_folder(out)
    materials = builtin_materials() if data is None else read_phonondb(data)
    potentials = load_each(models, dtype, heads)
    rows_by_model = {}
    for potential in potentials:
        rows = softening(potential, materials, supercell, memory_limit)
        rows_by_model[potential.name] = rows
        console(width=110).print(table(rows, potential.name))
        for line in in_words(summary(rows)) + published_in_words(potential.name, rows):
            console(width=110).print(line)
    settings = {
        "dtype": dtype,
        "supercell_atoms_at_most": supercell,
        "materials": "built-in list" if data is None else "all of the given folder",
        "weights_sha256": {p.name: p.manifest.get("sha256") for p in potentials},
        "heads": {p.name: p.manifest["head"] for p in potentials if "head" in p.manifest},
    }
    with writing_folder(out) as draft:
        save_json(rows_by_model, draft / "softening.json", settings)
        draw(rows_by_model, draft / "softening.png")
    say(f"written to {out / 'softening.json'} and {out / 'softening.png'}")
