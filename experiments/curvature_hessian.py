"""Is the curvature of a potential too small, by how much, and which part of it?

    python -m experiments.curvature_hessian --model chgnet-0.3.0 --data FOLDER --out FOLDER

Deng et al. (npj Comput. Mater. 11, 9, 2025) conclude from slopes of forces and from highest frequencies that
universal potentials underpredict curvature; they do not compare it. Here force constants of phonopy's and
phono3py's runs are compared, element by element and along DFT's modes. The model's come from second
derivatives at the sites of the lattice, and from the very displacements of DFT, where there are some.

The model's curvature along the stiffest mode of DFT is followed to large amplitudes, and its forces are
compared on frames of silicon ever farther from rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.reference_runs import RUNS
from experiments.study import Estimate, Study, Table, bootstrap, data_file, knows, load_models, run
from jaxmlip.cli.arguments import Models

if TYPE_CHECKING:
    from ase import Atoms
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxmlip.curvature import Slope
    from jaxmlip.phonons.phonopy_files import PhonopyRun
    from jaxmlip.phonons.supercell import ForceConstants
    from jaxmlip.potential import Potential

Rows = Sequence[Mapping[str, Any]]
MEASURES = {"hessian": "Hessian", "displaced": "DFT's displacements"}
RANGES = ("self", "first neighbours", "beyond")
SHELL = 1.15  # of the nearest distance, up to which an atom is a first neighbour
THIRDS = ("lower", "middle", "upper")
AMPLITUDES = np.linspace(0, 0.5, 11)  # Å, of the atom that moves farthest
POINTS = 600  # of a material in the figure, at most


def root(x: float) -> float:
    """√|x| with the sign of x: of a curvature, negative where it is that of an unstable mode."""
    return float(np.sign(x) * np.sqrt(abs(x)))


SUMMED: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "slope": lambda m: m["all"]["slope"],
    "slope without self terms": lambda m: m["without_self"]["slope"],
    "√mode slope": lambda m: root(m["modes"]["slope"]),
    "ω_max ratio": lambda m: m["ratios"]["maximum"],
    **{f"{third} third of modes": lambda m, third=third: root(m["thirds"][third]) for third in THIRDS},
}


class Frames(NamedTuple):
    """Frames with DFT forces, from near rest to far away."""

    name: str
    path: str  # below the folder of all data
    says: tuple[tuple[str, Any], ...] = ()  # what their info lines must say


PHONO3PY = "phonopy_displaced_extxyz/Si-phono3py-PBE__PBE.extxyz.gz"
SILICON = (
    Frames("0.03 Å, one or two atoms", PHONO3PY),
    *(
        Frames(f"{t} K", "mlearn/Si.extxyz.gz", (("group", "AIMD-NVT"), ("temperature_K", t)))
        for t in (300, 843, 1518)
    ),
)


@dataclass(frozen=True)
class Settings:
    """Is the curvature of a potential too small, by how much, and which part of it?"""

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with phonopy_examples_PBE/ and the others; default: JAXMLIP_DATA
    out: Path = Path("curvature_hessian")
    runs: tuple[str, ...] = tuple(r.name for r in RUNS)  # which runs to compare with, by name
    silicon: bool = True  # forces on frames of silicon, of phonopy_displaced_extxyz/ and mlearn/, too


def main(settings: Settings) -> None:
    references = {r.name: r for r in RUNS}
    if unknown := sorted(set(settings.runs) - set(references)):
        raise ValueError(f"found the runs {', '.join(unknown)}, needed some of {', '.join(references)}.")
    runs = {name: references[name].read(settings.data) for name in settings.runs}
    frames = silicon(settings)
    potentials = load_models(settings.model, "float64")
    study = Study("curvature_hessian", Settings.__doc__, settings, potentials)
    found: dict[str, list[Mapping[str, Any]]] = {}
    elsewhere: dict[str, list[Mapping[str, Any]]] = {}
    unknown_elements = []
    for model, potential in potentials.items():
        known = {k: r for k, r in runs.items() if knows(potential, r.supercell.numbers)}
        unknown_elements += [f"{model}: {k}" for k in runs if k not in known]
        keys = {f"{model} | {name}": name for name in known}
        rows = study.each(
            f"curvature of {model}",
            list(keys),
            lambda key, keys=keys, potential=potential: {
                "functional": references[keys[key]].functional,
                **measure(potential, runs[keys[key]]),
            },
        )
        found[model] = [{"run": keys[k], **row} for k, row in rows.items() if "failed" not in row]
        elsewhere[model] = forces_on(study, model, potential, frames)
    tables = [
        summary_table(found),
        slope_table(found),
        root_table(found),
        range_table(found),
        third_table(found),
        amplitude_table(found),
    ]
    if settings.silicon:
        tables.append(silicon_table(found, elsewhere))
    said = findings(found, elsewhere)
    if unknown_elements:
        said.append(f"Left out for elements that the model does not know: {', '.join(unknown_elements)}.")
    drawn = {model: rows for model, rows in found.items() if rows}
    figures = {}
    if drawn:
        figures = {
            "curvature_hessian.png": (
                "Force constants, model against DFT (left), and the model's frequency along each mode of DFT "
                "over DFT's, against DFT's (right)",
                draw(drawn),
            ),
            "curvature_amplitude.png": (
                "Curvature of the model along the stiffest mode of DFT, over DFT's harmonic one",
                draw_amplitudes(drawn),
            ),
        }
    study.write(tables, figures, said)


def measure(potential: Potential, reference: PhonopyRun) -> dict[str, Any]:
    """One run: slopes of force constants, of modes, of forces; ratios of frequencies; the curve."""
    from jaxmlip.curvature import force_slope
    from jaxmlip.phonons.supercell import force_constants

    dft = reference.constants
    constants = {"hessian": force_constants(potential, dft.primitive, dft.supercell, symmetry=True)}
    formula = dft.primitive.get_chemical_formula("metal", empirical=True)
    row: dict[str, Any] = {"formula": formula, "displaced": None, "forces": None}
    if reference.displaced:
        residual, *model = (
            np.asarray(p["forces"], float)
            for p in potential.predict([reference.supercell, *reference.displaced])
        )
        moved = [forces - residual for forces in model]
        constants["displaced"] = reference.with_forces(moved)
        row["forces"] = numbers(force_slope(moved, list(reference.forces)))
    row |= {name: compared(c, dft) for name, c in constants.items()}
    row["points"] = points(constants["hessian"], dft)
    row["stiffest"] = along_stiffest(potential, dft)
    return row


def compared(model: ForceConstants, dft: ForceConstants) -> dict[str, Any]:
    """Force constants of the model against DFT's."""
    from jaxmlip.curvature import frequency_ratios, hessian_slope, mode_slope
    from jaxmlip.phonons.commensurate import dynamical_matrices, mesh_frequencies
    from jaxmlip.phonons.compare import MESH

    y, x = model.pairs, dft.pairs
    modes = mode_slope(dynamical_matrices(model), dynamical_matrices(dft))
    ratios = frequency_ratios(mesh_frequencies(model, MESH), mesh_frequencies(dft, MESH))
    return {
        "all": numbers(hessian_slope(y, x)),
        "without_self": numbers(hessian_slope(y, x, self_terms=False)),
        "ranges": {name: numbers(hessian_slope(y, x, pairs=some)) for name, some in ranges(dft).items()},
        "modes": {"slope": modes.slope, "mean": modes.mean},
        "thirds": {name: modes.ratio_of(some) for name, some in thirds(modes.dft).items()},
        "ratios": ratios._asdict(),
    }


def ranges(dft: ForceConstants) -> dict[str, np.ndarray]:
    """Which pairs of atoms (n, N) are one atom, first neighbours, or farther apart."""
    distance = dft.distances
    own = np.zeros(distance.shape, bool)
    own[np.arange(len(own)), np.arange(len(own))] = True
    nearest = np.where(own, np.inf, distance).min(axis=1, keepdims=True)
    near = ~own & (distance < SHELL * nearest)
    return dict(zip(RANGES, (own, near, ~own & ~near), strict=True))


def thirds(squares: np.ndarray) -> dict[str, np.ndarray]:
    """The modes (q, modes) by their frequency; next to nothing (acoustic, Γ) is in none."""
    from jaxmlip.curvature import NEGLIGIBLE

    counted = squares > NEGLIGIBLE * squares.max()
    low, high = np.quantile(squares[counted], (1 / 3, 2 / 3))
    parts = (squares <= low, (squares > low) & (squares <= high), squares > high)
    return {name: counted & part for name, part in zip(THIRDS, parts, strict=True)}


def numbers(slope: Slope) -> dict[str, Any]:
    return {
        "slope": slope.slope,
        "interval": slope.interval,
        "inverse": slope.inverse,
        "r2": slope.r_squared,
        "shrinkage": slope.shrinkage_share,
        "mae": slope.mae,
    }


def points(model: ForceConstants, dft: ForceConstants) -> dict[str, Any]:
    """For the figures: force constants by range (eV/Å²), and modes: DFT's THz, and √(model / DFT)."""
    from jaxmlip.curvature import mode_slope
    from jaxmlip.phonons.commensurate import dynamical_matrices
    from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U

    some: dict[str, Any] = {}
    for name, pairs in ranges(dft).items():
        x, y = dft.pairs[pairs].ravel(), model.pairs[pairs].ravel()
        largest = np.argsort(-np.maximum(abs(x), abs(y)))[:POINTS]
        some[name] = [x[largest].round(4), y[largest].round(4)]
    modes = mode_slope(dynamical_matrices(model), dynamical_matrices(dft))
    squares, ratios = modes.dft.ravel(), modes.ratios.ravel()
    kept = np.isfinite(ratios) & (squares > 0)
    squares, ratios = squares[kept], ratios[kept]
    step = -(-len(squares) // POINTS)
    thz = np.sqrt(squares) * THZ_PER_ROOT_EV_PER_A2_U
    signed = np.sign(ratios) * np.sqrt(abs(ratios))
    return some | {"modes": [thz[::step].round(4), signed[::step].round(4)]}


def along_stiffest(potential: Potential, dft: ForceConstants) -> dict[str, Any]:
    """The model's curvature along DFT's stiffest mode, over DFT's harmonic one, at AMPLITUDES.

    "there", and the "mean" from rest to there, which is the restoring force over the amplitude; both are
    averaged over the two directions, which takes out forces that the model finds at the lattice sites. Of
    modes of one frequency the one that the eigensolver names last.
    """
    from jaxmlip.phonons.commensurate import dynamical_matrices
    from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U

    squares, vectors = np.linalg.eigh(dynamical_matrices(dft))
    q = int(squares[:, -1].argmax())
    atoms, u = standing_wave(dft, dft.q_points[q], vectors[q, :, -1])
    masses = atoms.get_masses()[:, None]
    harmonic = squares[q, -1] * (masses * u**2).sum() / (u**2).sum()
    slope, curvature = np.mean([along(potential, atoms, s * u, AMPLITUDES) for s in (1, -1)], axis=0).T
    mean = np.where(AMPLITUDES > 0, slope / np.where(AMPLITUDES > 0, AMPLITUDES, 1), curvature)
    return {
        "THz": np.sqrt(squares[q, -1]) * THZ_PER_ROOT_EV_PER_A2_U,
        "q": dft.q_points[q],
        "dft": harmonic,
        "there": curvature / harmonic,
        "mean": mean / harmonic,
    }


def standing_wave(dft: ForceConstants, q: np.ndarray, vector: np.ndarray) -> tuple[Atoms, np.ndarray]:
    """The supercell and a real displacement (atoms, 3) of this mode in it, 1 Å for the atom that moves most.

    `vector` has the phases of cells and is that of a mass-weighted matrix.
    """
    from ase import Atoms

    cell, r = dft.primitive.cell.array, dft.primitive.positions
    atoms = Atoms(
        np.tile(dft.primitive.numbers, len(dft.cells)),
        (dft.cells[:, None] @ cell + r).reshape(-1, 3),
        cell=dft.supercell @ cell,
        pbc=True,
    )
    atoms.set_masses(np.tile(dft.primitive.get_masses(), len(dft.cells)))
    phase = np.exp(2j * np.pi * dft.cells @ q)
    wave = np.einsum("c,ix->cix", phase, vector.reshape(-1, 3)).reshape(-1, 3)
    # Its real part or its imaginary part may be small, where q and -q are the same.
    wave = max((wave.real, wave.imag), key=np.linalg.norm) / np.sqrt(atoms.get_masses())[:, None]
    return atoms, wave / np.linalg.norm(wave, axis=1).max()


def along(potential: Potential, atoms: Atoms, u: np.ndarray, amplitudes: Iterable[float]) -> np.ndarray:
    """Slope (eV/Å) and curvature (eV/Å²) of the energy along u (atoms, 3), over |u|²: (amplitudes, 2).

    Where the atoms are displaced by each of `amplitudes` times u.
    """
    import jax
    import jax.numpy as jnp

    from jaxmlip import batching
    from jaxmlip.derivatives import gradient

    graphs = []
    for amplitude in amplitudes:
        moved = atoms.copy()
        moved.positions += amplitude * u
        graphs.append(potential.graph(moved))
    room = batching.Capacity(*np.max([batching.capacity([g]) for g in graphs], axis=0).tolist())

    @jax.jit
    def both(arrays, graph, u):
        force = gradient(partial(potential.energy_fn, arrays), graph)
        return jnp.stack([jnp.vdot(u, x) for x in jax.jvp(force, (graph.positions,), (u,))]) / jnp.vdot(u, u)

    found = []
    with potential.precision():
        for graph in graphs:
            packed = batching.pack([graph], room, np.dtype(potential.dtype))
            padded = np.zeros(packed.positions.shape, potential.dtype)
            padded[: len(u)] = u
            found.append(np.asarray(both(potential.arrays, packed, padded), float))
    return np.array(found)


def silicon(settings: Settings) -> dict[str, list]:
    """The frames of SILICON, by name."""
    from experiments.frames import read

    if not settings.silicon:
        return {}
    files = {path: read(data_file(settings.data, path)) for path in {f.path for f in SILICON}}
    found = {}
    for f in SILICON:
        found[f.name] = [
            frame for frame in files[f.path] if all(frame.atoms.info.get(k) == v for k, v in f.says)
        ]
        if not found[f.name]:
            raise ValueError(f"{f.path} has no frames of which {dict(f.says)} is true.")
    return found


def forces_on(study: Study, model: str, potential: Potential, frames: Mapping[str, list]) -> list:
    from jaxmlip.curvature import force_slope

    keys = {f"{model} | Si, {name}": name for name in frames}

    def measure_forces(key: str) -> dict[str, Any]:
        some = frames[keys[key]]
        predicted = potential.predict([frame.atoms for frame in some])
        dft = [frame.labels.forces for frame in some]
        slope = force_slope([np.asarray(p["forces"], float) for p in predicted], dft)
        rms = float(np.sqrt(np.mean(np.concatenate([f.ravel() for f in dft]) ** 2)))
        return {"frames": len(some), "rms_dft": rms, **numbers(slope)}

    rows = study.each(f"forces of {model}", list(keys), measure_forces)
    return [{"name": keys[k], **row} for k, row in rows.items() if "failed" not in row]


def summary_table(found: Mapping[str, Rows]) -> Table:
    """Medians over crystals, of each the mean of its runs."""
    lines = []
    for model, rows in found.items():
        for functional in sorted({row["functional"] for row in rows}):
            some = [row for row in rows if row["functional"] == functional]
            crystals = sorted({row["formula"] for row in some})
            line: list[Any] = [model, functional, len(some), len(crystals)]
            for value in SUMMED.values():
                means = [np.mean([value(r["hessian"]) for r in some if r["formula"] == c]) for c in crystals]
                line.append(bootstrap(means, np.median))
            lines.append(line)
    return Table(
        "All crystals, the model's Hessian against DFT: medians",
        ("model", "functional", "runs", "crystals", *SUMMED),
        lines,
        note="Of each crystal the mean over its runs; 95 % intervals by bootstrap over crystals.",
    )


def slope_table(found: Mapping[str, Rows]) -> Table:
    lines = [
        [
            model,
            f"{row['run']}, {row['functional']}",
            MEASURES[m],
            row[m]["all"]["slope"],
            row[m]["without_self"]["slope"],
            row[m]["without_self"]["inverse"],
            row[m]["without_self"]["r2"],
            row[m]["without_self"]["shrinkage"],
            row[m]["modes"]["slope"],
            row[m]["modes"]["mean"],
        ]
        for model, rows in found.items()
        for row in rows
        for m in MEASURES
        if row[m]
    ]
    return Table(
        "Force constants, model against DFT",
        (
            "model",
            "run",
            "model's from",
            "slope",
            "slope without self terms",
            "inverse",
            "r²",
            "shrinkage",
            "mode slope",
            "mean mode ratio",
        ),
        lines,
        note="Slope: Σxy/Σxx over all elements, x DFT; inverse, r², shrinkage (1 - r²)/(1 - slope) without "
        "self terms. Mode slope: the model's quadratic form in DFT's eigenvectors against ω², at the wave "
        "vectors that fit the supercell. Where DFT is PBEsol, slopes of models of PBE hold the difference of "
        "the two.",
    )


def root_table(found: Mapping[str, Rows]) -> Table:
    """Roots of slopes beside ratios of frequencies."""
    lines = []
    for model, rows in found.items():
        for row in rows:
            h, d = row["hessian"], row["displaced"]
            lines.append(
                [
                    model,
                    row["run"],
                    root(h["modes"]["slope"]),
                    h["ratios"]["maximum"],
                    h["ratios"]["rms"],
                    root(d["modes"]["slope"]) if d else None,
                    d["ratios"]["maximum"] if d else None,
                    root(row["forces"]["slope"]) if d else None,
                ]
            )
    return Table(
        "Is the root of the slope the ratio of frequencies?",
        (
            "model",
            "run",
            "√mode slope, Hessian",
            "ω_max ratio",
            "ω_rms ratio",
            "√mode slope, DFT's displacements",
            "ω_max ratio",
            "√force slope",
        ),
        lines,
    )


def range_table(found: Mapping[str, Rows]) -> Table:
    lines = []
    for model, rows in found.items():
        for row in rows:
            parts = [row["hessian"]["ranges"][name] for name in RANGES]
            lines.append([model, row["run"], *(x for p in parts for x in (p["slope"], p["r2"]))])
    return Table(
        "Slope of force constants by range (Hessian)",
        ("model", "run", *(x for name in RANGES for x in (name, "r²"))),
        lines,
        digits=2,
        note=f"First neighbours: up to {SHELL} times the nearest distance of an atom.",
    )


def third_table(found: Mapping[str, Rows]) -> Table:
    lines = [
        [
            model,
            row["run"],
            *(root(row[m]["thirds"][t]) if row[m] else None for m in MEASURES for t in THIRDS),
        ]
        for model, rows in found.items()
        for row in rows
    ]
    return Table(
        "Which modes are too soft? √(Σ model / Σ DFT) of the curvature along DFT's modes, by frequency",
        ("model", "run", *(f"{t}, {MEASURES[m]}" for m in MEASURES for t in THIRDS)),
        lines,
        note="Negative where the model is unstable along these modes: minus the root of the size.",
    )


def amplitude_table(found: Mapping[str, Rows]) -> Table:
    shown = (0, 2, 4, 6, 10)
    lines = [
        [model, row["run"], row["stiffest"]["THz"], *(row["stiffest"]["mean"][k] for k in shown)]
        for model, rows in found.items()
        for row in rows
    ]
    return Table(
        "Mean curvature along DFT's stiffest mode, model / DFT's harmonic one, by amplitude",
        ("model", "run", "ω_max of DFT / THz", *(f"{AMPLITUDES[k]:.1f} Å" for k in shown)),
        lines,
        note="Amplitude: of the atom that moves farthest. Mean curvature: restoring force over amplitude.",
    )


def silicon_table(found: Mapping[str, Rows], elsewhere: Mapping[str, Rows]) -> Table:
    lines: list[list[Any]] = []
    for model, rows in found.items():
        for row in rows:
            if row["run"] == "Si (V0)":
                lines.append([model, "Hessian", None, None, row["hessian"]["all"]["slope"], None, None, None])
                lines.append([model, "0.01 Å, one atom", None, None, *slope_cells(row["forces"])])
        lines += [
            [model, row["name"], row["frames"], row["rms_dft"], *slope_cells(row)] for row in elsewhere[model]
        ]
    return Table(
        "Silicon from rest to molecular dynamics: slopes against DFT",
        ("model", "frames", "number", "rms force of DFT / eV/Å", "slope", "inverse", "r²", "shrinkage"),
        lines,
        note="Of force constants in the first line of a model, of forces in the others. Temperatures: "
        "molecular dynamics of the crystal (mlearn).",
    )


def slope_cells(row: Mapping[str, Any]) -> list[Any]:
    low, high = (np.nan if x is None else x for x in row["interval"])
    return [Estimate(row["slope"], low, high), row["inverse"], row["r2"], row["shrinkage"]]


def findings(found: Mapping[str, Rows], elsewhere: Mapping[str, Rows]) -> list[str]:
    lines = []
    for model, rows in found.items():
        for functional in sorted({row["functional"] for row in rows}):
            some = [row for row in rows if row["functional"] == functional]
            roots = np.array([root(row["hessian"]["modes"]["slope"]) for row in some])
            highest = np.array([row["hessian"]["ratios"]["maximum"] for row in some])
            farther = np.median([row["stiffest"]["mean"] for row in some], axis=0)
            k = int(np.argmin(abs(AMPLITUDES - 0.2)))
            lines.append(
                f"{model}, {functional}, {len(some)} runs: √(mode slope) is off the ω_max ratio by "
                f"{np.abs(roots - highest).mean():.3f} on average. Mean curvature along the stiffest mode, "
                f"model / DFT's harmonic one: {farther[0]:.3f} at rest, {farther[k]:.3f} at "
                f"{AMPLITUDES[k]:.1f} Å."
            )
        if elsewhere[model]:
            slopes = ", ".join(f"{row['name']} {row['slope']:.3f}" for row in elsewhere[model])
            lines.append(f"{model}, slopes of forces in silicon: {slopes}.")
    return lines


def draw(found: Mapping[str, Rows]) -> Figure:
    """Force constants and modes, a line of two panels for each model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), 2, squeeze=False)
    for line, (model, rows) in zip(panels, found.items(), strict=True):
        draw_elements(line[0], rows)
        draw_modes(line[1], rows)
        line[0].set_title(model, loc="left", fontsize=10)
    return figure


def draw_elements(axes: Axes, rows: Rows) -> None:
    from jaxmlip.figures import COLOURS

    for name, colour, marker in zip(RANGES, COLOURS, "os^", strict=False):
        x, y = (np.concatenate([row["points"][name][k] for row in rows]) for k in (0, 1))
        axes.plot(x, y, marker, color=colour, ms=3, alpha=0.5, label=name, rasterized=True)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_yscale("symlog", linthresh=0.1)
    limit = axes.get_xlim()
    axes.plot(limit, limit, color="0.4", lw=0.9)
    axes.set_xlabel("force constant, DFT (eV/Å²)")
    axes.set_ylabel("force constant, model (eV/Å²)")
    axes.legend(frameon=False, fontsize=8, markerscale=2)


def draw_modes(axes: Axes, rows: Rows) -> None:
    from jaxmlip.figures import COLOURS

    for k, row in enumerate(rows):
        thz, ratio = row["points"]["modes"]
        colour, marker = COLOURS[k % len(COLOURS)], "os^Dv<>"[k % 7]
        axes.plot(thz, ratio, marker, color=colour, ms=3, alpha=0.5, label=row["run"], rasterized=True)
    axes.axhline(1, color="0.4", lw=0.9)
    axes.set_ylim(-0.5, 1.8)
    axes.set_xlabel("frequency of the mode, DFT (THz)")
    axes.set_ylabel("√(curvature along it, model / DFT)")
    axes.legend(frameon=False, fontsize=7, ncols=2, markerscale=2)


def draw_amplitudes(found: Mapping[str, Rows]) -> Figure:
    from matplotlib.figure import Figure

    from jaxmlip.figures import COLOURS

    figure = Figure(figsize=(9, 4.2 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), 2, squeeze=False, sharex=True)
    for line, (model, rows) in zip(panels, found.items(), strict=True):
        for axes, which in zip(line, ("mean", "there"), strict=True):
            for k, row in enumerate(rows):
                style = {"color": COLOURS[k % len(COLOURS)], "marker": "os^Dv<>"[k % 7], "ms": 4}
                label = f"{row['run']}, {row['stiffest']['THz']:.0f} THz"
                axes.plot(AMPLITUDES, row["stiffest"][which], label=label, **style)
            axes.axhline(1, color="0.4", lw=0.9, ls="--", label="DFT, harmonic")
            axes.set_ylim(-1, 3)
        line[0].set_title(model, loc="left", fontsize=10)
        line[0].set_ylabel("mean curvature from rest to there, model / DFT")
        line[1].set_ylabel("curvature there, model / DFT harmonic")
        line[0].legend(frameon=False, fontsize=7, ncols=2)
    for axes in panels[-1]:
        axes.set_xlabel("amplitude of the atom that moves farthest (Å)")
    return figure


if __name__ == "__main__":
    run(main, Settings)
