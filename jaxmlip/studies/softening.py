"""Is the curvature of a potential too soft? Phonon frequencies of binary crystals against DFT.

The reference is `phonondb`. Potential and DFT have the same cell, relaxed with PBE, and the same mesh of wave
vectors. The non-analytical correction of polar crystals, which the potentials lack, is left out on both
sides.

The potential's frequencies are computed in two ways: from the Hessian, the curvature at the lattice sites, by
exact dynamical matrices of the primitive cell; and, as DFT's, from forces at displacements of 0.03 Å in a
supercell of at most 128 atoms, interpolated between the wave vectors that fit it. If the energy is smooth on
the scale of the displacement, the two agree. If they differ, the potential is rough on that scale, which
neither number alone would show.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms

from jaxmlip.crystals import batching
from jaxmlip.data.readers.phonondb import SOURCE
from jaxmlip.mechanics.elasticity import NotAtRestWarning
from jaxmlip.phonons.commensurate import interpolated_frequencies
from jaxmlip.phonons.lattice import mesh_modes
from jaxmlip.phonons.modes import Modes
from jaxmlip.phonons.supercell import displaced_force_constants, repeat_distance, repeats_within
from jaxmlip.studies.phonondb import Material, Spectrum, builtin_materials, read_phonondb
from jaxmlip.studies.study import bootstrap, save
from jaxmlip.system.files import check_folder
from jaxmlip.system.plots import legend, panels, parity, styles
from jaxmlip.system.progress import track
from jaxmlip.system.tables import Estimate, Table, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxmlip.phonons.supercell import ForceConstants
    from jaxmlip.potential import Potential

Rows = Sequence[Mapping[str, Any]]
SUPERCELL = 128  # atoms of a supercell at most
TOLERANCE = 2e-3  # THz, of Fourier sums; the table has two digits
DISPLACEMENT = 0.03  # Å, the default of phono3py
MEASURES = {"hessian": "Hessian", "displaced": f"±{DISPLACEMENT} Å"}
SHORT = {"rocksalt": "rs", "zincblende": "zb", "wurtzite": "wz"}
MARKERS = {"rocksalt": "s", "zincblende": "D", "wurtzite": "H"}
IMAGINARY = -0.1  # THz; frequencies below are unstable modes, not rounding errors


class Published(NamedTuple):
    """Published ratios for a potential: maximum frequencies of PhononDB crystals (PBEsol), model / DFT."""

    median: float  # of 298 materials, from the table of janosh/ffonons (df-summary-tol=0.01)
    below_1: float  # share of 229 materials: Deng et al., npj Comput. Mater. 11, 9 (2025), Fig. 4b


PUBLISHED = {
    "m3gnet-mp-2021.2.8": Published(0.784, 0.974),
    "chgnet-0.3.0": Published(0.894, 0.908),
    "mace-mp-0a-medium": Published(0.921, 0.939),
}


class Job(NamedTuple):
    """A crystal whose frequencies are computed. All crystals of a study decide the shapes of its programs."""

    atoms: Atoms
    repeats: tuple[int, int, int]  # of the cell, for displacements
    shape: batching.BatchShape
    repeated_room: batching.BatchShape

    def modes(self, potential: Potential, mesh: tuple[int, int, int], **options: Any) -> Modes:
        """Modes from the Hessian, on a mesh of wave vectors; `options` go to `mesh_modes`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotAtRestWarning)  # DFT's cells are not the model's
            return mesh_modes(potential, self.atoms, mesh, shape=self.shape, **options)

    def constants(self, potential: Potential, displacement: float) -> ForceConstants:
        """Force constants from a displacement (Å) in the supercell."""
        return displaced_force_constants(
            potential, self.atoms, self.repeats, displacement, symmetry=True, shape=self.repeated_room
        )


def supercell_of(primitive: Atoms, atoms: int) -> tuple[int, int, int]:
    """The repeats of the supercell, of at most `atoms` atoms, whose images are farthest apart."""
    return repeats_within(primitive.cell.array, atoms // len(primitive))


def jobs_of(
    potential: Potential, crystals: Sequence[Atoms], repeats: Sequence[tuple[int, int, int]]
) -> list[Job]:
    """A job for each crystal and its supercell. Raises ValueError for elements unknown to the potential."""
    shapes = shared_shapes([batching.exact_shape([potential.graph(atoms)]) for atoms in crystals])
    pairs = zip(track(crystals, "supercells"), repeats, strict=True)
    repeated = shared_shapes([batching.exact_shape([potential.graph(atoms.repeat(n))]) for atoms, n in pairs])
    return [Job(*parts) for parts in zip(crystals, repeats, shapes, repeated, strict=True)]


def softening(
    potential: Potential,
    materials: Sequence[Material],
    supercell: int = SUPERCELL,
    memory_limit: float | None = None,
) -> list[dict[str, Any]]:
    """One row for each material, in the same order. The potential should have dtype "float64".

    A row has "dft", "hessian" and "displaced", each a `Spectrum` as a mapping (THz), and settings.
    Displacements use the supercell of at most `supercell` atoms whose images are farthest apart.
    `memory_limit` (bytes) goes to `dynamical_matrix`.

    Raises ValueError if an element is unknown to the potential, and MemoryLimitError if the limit cannot be
    met.
    """
    crystals = [m.atoms for m in materials]
    repeats = [supercell_of(atoms, supercell) for atoms in crystals]
    jobs = list(zip(materials, jobs_of(potential, crystals, repeats), strict=True))
    rows = []
    for material, job in track(jobs, f"phonons of {potential.name}"):
        row, modes, _ = spectra_of(potential, material, job, DISPLACEMENT, TOLERANCE, memory_limit)
        row |= {
            "repeats": job.repeats,
            "atoms": int(np.prod(job.repeats)) * len(material.atoms),
            "repeat_distance": repeat_distance(material.atoms.cell.array, job.repeats),  # Å
            "max_force_eV_per_A": modes.max_force,
            "q_points": modes.q_points.round(6),
            "weights": modes.mesh.weights,
            "frequencies": modes.frequencies.round(5),
        }
        both = {m: {of: float(ratios([row], m, of)[0]) for of in ("maximum", "mean")} for m in MEASURES}
        rows.append(row | {"ratios": both})
    return rows


def spectra_of(
    potential: Potential,
    material: Material,
    job: Job,
    displacement: float,
    tolerance: float,
    memory_limit: float | None = None,
) -> tuple[dict[str, Any], Modes, np.ndarray]:
    """A row with the `Spectrum` of DFT and of each of MEASURES; the modes of the Hessian; and the frequencies
    (THz) from displacements. The latter two are at the irreducible wave vectors of the material's mesh.
    """
    modes = job.modes(potential, material.mesh, tolerance=tolerance, memory_limit=memory_limit)
    displaced = interpolated_frequencies(job.constants(potential, displacement), modes.q_points)
    row = {"id": material.id, "formula": material.formula, "structure": material.structure}
    row |= {"dft": asdict(material.dft), "method": modes.method}
    for measure, thz in zip(MEASURES, (modes.frequencies, displaced), strict=True):
        row[measure] = asdict(Spectrum.of(thz, modes.weights))
    return row, modes, displaced


def ratios(rows: Rows, measure: str, of: str = "maximum") -> np.ndarray:
    """The ratio model / DFT of each row, for "maximum" or "mean"; 0 if no mode of the model is real."""
    return np.array([max(row[measure][of], 0.0) / row["dft"][of] for row in rows])


def imaginary(rows: Rows, measure: str) -> np.ndarray:
    """True for each row with an imaginary mode."""
    return np.array([row[measure]["lowest"] < IMAGINARY for row in rows], bool)


def geometric_mean(values: np.ndarray, resamples: int = 10_000) -> Estimate:
    """The geometric mean with its 95 % interval over materials; 0 if one of the values is 0."""
    with np.errstate(divide="ignore"):
        logs = np.log(values)
    drawn = np.random.default_rng(0).choice(logs, (resamples, len(logs))).mean(axis=1)
    return Estimate(float(np.exp(logs.mean())), *np.percentile(np.exp(drawn), (2.5, 97.5)).tolist())


def shared_shapes(needs: Sequence[batching.BatchShape], waste: float = 2.5) -> list[batching.BatchShape]:
    """A shape for each need, with few different ones among them, so that few programs are compiled.

    No shape makes a crystal's work more than about `waste` times its work in a shape of its own.
    """

    def cost(c: batching.BatchShape) -> float:
        return c.messages + 3 * c.angles

    classes: list[list[int]] = []
    for k in sorted(range(len(needs)), key=lambda k: -cost(needs[k])):
        for members in classes:
            both = [needs[m] for m in (*members, k)]
            if cost(batching.BatchShape.covering(both)) <= waste * min(map(cost, both)):
                members.append(k)
                break
        else:
            classes.append([k])
    shapes = [needs[0]] * len(needs) if needs else []
    for members in classes:
        most = batching.BatchShape.covering(needs[m] for m in members)
        # Displaced atoms may have a few more neighbours.
        shape = batching.BatchShape(
            batching.round_up(most.atoms + 1),
            batching.round_up(int(1.02 * most.short) + 1),
            batching.round_up(int(1.02 * most.long)),
            batching.round_up(most.angles),
            batching.round_up(int(1.02 * most.pairs)),
        )
        for m in members:
            shapes[m] = shape
    return shapes


def summary(rows: Rows) -> dict[str, Any]:
    """Ratios of the maximum and of the mean frequency over all rows, by measure.

    Each: the geometric mean with its 95 % interval (bootstrap over materials), the median, and how many are
    below 1; and the number of materials with imaginary modes.
    """
    result: dict[str, Any] = {"materials": len(rows)}
    for measure in MEASURES:
        result[measure] = {"with_imaginary_modes": int(imaginary(rows, measure).sum())}
        for of in ("maximum", "mean"):
            values = ratios(rows, measure, of)
            mean, *interval = geometric_mean(values)
            shown = {"geometric_mean": mean, "interval": interval, "median": float(np.median(values))}
            result[measure][of] = shown | {"below_1": int((values < 1).sum())}
    return result


def summary_table(title: str, groups: Iterable[tuple[Mapping[str, Any], Rows, str]], note: str = "") -> Table:
    """A table with a line for each of `groups`, (labels, rows, measure); "model" is the first of the labels.
    If there is only one other label, the published ratios of the models, which are of all materials, follow.
    """
    lines: list[dict[str, Any]] = []
    for labels, rows, measure in groups:
        highest, mean = (ratios(rows, measure, of) for of in ("maximum", "mean"))
        line: dict[str, Any] = {**labels, "materials": len(rows)}
        if len(rows):
            means = [
                geometric_mean(x) if len(rows) > 1 else Estimate.of(float(x[0]), None)
                for x in (highest, mean)
            ]
            line |= {"ω_max ratio": means[0], "median": bootstrap(highest, np.median)}
            line |= {"share below 1": bootstrap(highest < 1), "ω_mean ratio": means[1]}
            line["its median"] = bootstrap(mean, np.median)
            line["imaginary"] = int((imaginary(rows, measure) & ~imaginary(rows, "dft")).sum())
            if "rms_difference" in rows[0][measure]:
                rms = [row[measure]["rms_difference"] for row in rows]
                line["rms difference / THz, median"] = bootstrap(rms, np.median)
        lines.append(line)
    alone = bool(lines) and list(lines[0])[2] == "materials"
    known = [model for model in dict.fromkeys(x["model"] for x in lines) if alone and model in PUBLISHED]
    for model in known:
        median, below = PUBLISHED[model]
        line = {"model": model, list(lines[0])[1]: "published", "materials": "298; 229"}
        lines.append(line | {"median": median, "share below 1": below})
    about = (
        "Ratios of the highest and of the mean frequency, model / DFT: geometric means and medians, with\n"
        f"95 % intervals by bootstrap over materials. imaginary: those with a mode below {IMAGINARY} THz,\n"
        "where DFT has none."
    )
    if known:
        about += (
            " Published: displacements about the relaxed cell of other crystals (PhononDB,\n"
            "PBEsol), the median of 298 from janosh/ffonons, the share of 229 from Deng et al. 2025."
        )
    return Table.of(title, lines, note=f"{about} {note}".strip())


def table(rows: Rows, model: str) -> Table:
    """A table of the rows for a terminal: frequencies in THz, ratios potential / DFT."""
    columns = ("solid", "N", "DFT", "Hessian", "ratio", MEASURES["displaced"], "ratio")
    lines = []
    for row in rows:
        (own, mean), (displaced, mean_displaced) = (
            [f"{ratios([row], measure, of)[0]:.3f}" for of in ("maximum", "mean")] for measure in MEASURES
        )
        highest = [f"{row[side]['maximum']:.2f}" for side in ("dft", *MEASURES)]
        lowest = f"{round(row['hessian']['lowest'], 2) + 0.0:.2f}"  # no -0.00
        solid = f"{row['formula']} {SHORT.get(row['structure'], row['structure'])}"
        cells = [*highest[:2], own, highest[2], displaced, mean, mean_displaced, lowest]
        lines.append([solid, row["atoms"], *cells])
    return Table(
        f"{model} against phononDB-PBE: highest frequency (THz), mean frequency",
        (*columns, "of mean,\nHessian", f"of mean,\n{MEASURES['displaced']}", "min"),
        lines,
        note="rs rocksalt, zb zincblende, wz wurtzite; N: atoms of the supercell;\n"
        "ratios are model / DFT; min: of the Hessian, negative where imaginary",
    )


def draw(rows_by_model: Mapping[str, Rows], displacement: float = DISPLACEMENT) -> Figure:
    """Parity plots of the highest and the mean frequency, from the Hessian and from displacements (Å)."""
    figure, lines = panels(2, 2, each=(4.5, 4.3), spare=(0, 0))
    sources = {"hessian": "Hessian", "displaced": f"forces at ±{displacement:g} Å"}
    for line, (measure, source) in zip(lines, sources.items(), strict=True):
        for axes, (of, name) in zip(line, (("maximum", "highest"), ("mean", "mean")), strict=True):
            highest = _points(axes, rows_by_model, of, measure)
            parity(axes, f"{name} frequency", "THz", "model = DFT", highest)
            axes.set_title(f"{source}; median ratios model / DFT", loc="left", fontsize=10)
    legend(figure, ncols=4)
    return figure


def _points(axes, rows_by_model: Mapping[str, Rows], of: str, measure: str) -> float:
    """Draws the models against DFT, and returns the highest frequency of all (THz)."""
    highest = 0.0
    for k, (model, style) in enumerate(styles(rows_by_model).items()):
        rows, colour = rows_by_model[model], style["color"]
        x, y = (np.array([row[side][of] for row in rows]) for side in ("dft", measure))
        highest = max(highest, x.max(), y.max())
        kinds = np.array([row["structure"] for row in rows])
        for kind in dict.fromkeys(kinds):
            look = {"marker": MARKERS.get(kind, "o"), "alpha": 0.75, "edgecolors": "white", "linewidths": 0.6}
            axes.scatter([], [], s=34, color="0.45", label=kind, **look)
            axes.scatter(x[kinds == kind], y[kinds == kind], s=34, color=colour, zorder=3, **look)
        note = f"{np.median(ratios(rows, measure, of)):.2f}  {model}"
        place = (0.03, 0.97 - 0.055 * k)
        axes.text(*place, note, transform=axes.transAxes, va="top", fontsize=8, color=colour, weight="bold")
    return highest


def main(
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
        show(table(rows, potential.name))
    pairs = [(model, measure) for model in rows_by_model for measure in MEASURES]
    groups = [({"model": m, "curvature": MEASURES[of]}, rows_by_model[m], of) for m, of in pairs]
    show(summary_table("All materials", groups))
    save(
        out,
        "softening",
        "phonon frequencies of potentials against DFT, in THz; ratios are potential / DFT",
        {
            "cell": "primitive PBE cell of the reference, not relaxed",
            "non_analytical_correction": "left out on both sides",
            "wave_vectors": "the reference's Γ-centred mesh; from the Hessian by exact dynamical matrices, "
            "see `method`, from displacements interpolated from the supercell",
            "mean": "over wave vectors and branches, the acoustic branches at Γ included, imaginary "
            "frequencies as 0",
            "displacement_A": DISPLACEMENT,
            "imaginary_below_THz": IMAGINARY,
            "dtype": dtype,
            "supercell_atoms_at_most": supercell,
            "materials": "built-in list" if data is None else "all of the given folder",
        },
        potentials,
        draw(rows_by_model),
        indent=None,
        reference=SOURCE,
        models={name: {"summary": summary(rows), "rows": rows} for name, rows in rows_by_model.items()},
    )
