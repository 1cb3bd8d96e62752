"""Are migration barriers of a universal potential too low?

    python -m experiments.softening.migration --model chgnet-0.3.0 --model m3gnet-mp-2021.2.8 --out migration

There are three sets of paths. A vacancy in silicon has DFT energies and forces of every ionic step (PBEsol,
climbing-image NEB; emmet's test files). Magnesium moves in hosts that are made here, without DFT, to compare
models with each other. The ApproxNEB hops of Rutt et al. (2022), which Deng et al. (2025), Fig. 3, use, are
added if the data folder has them.

The barrier is the kinetically resolved one: the highest image minus the mean of both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from experiments.datasets import MissingDataError, data_file
from jaxmlip.studies.study import Study, bootstrap, check_known, load_models, run
from jaxmlip.system.arguments import Models
from jaxmlip.system.plots import grid, legend, panels, parity, styles
from jaxmlip.system.tables import Estimate, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.softening.hops import Hop
    from jaxmlip.mechanics.neb import Band
    from jaxmlip.potential import Potential

SILICON = "emmet_testfiles"
APPROX = "approx_neb"
AT_ONCE = 8  # hops whose images are computed side by side
PUBLISHED = (  # Deng et al. (2025), text and Fig. 3b: MAE / eV, share of barriers below DFT / %
    ("M3GNet, published", 0.49, 85.1),
    ("CHGNet, published", 0.39, 82.8),
    ("MACE-MP-0, published", 0.34, 73.8),
)


@dataclass(frozen=True)
class Settings:
    """Are migration barriers of a universal potential too low?"""

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with emmet_testfiles/ and approx_neb/; default: JAXMLIP_DATA
    out: Path = Path("migration")  # folder for the record, the table and the figures
    hosts: tuple[str, ...] = ("MgO", "MgSc2S4", "MgTi2S4", "TiS2")  # of moving magnesium; none: ()
    images: int = 5  # between the ends of the paths that are made here
    fmax: float = 0.05  # eV/Å, the largest force in converged bands and ends
    steps: int = 300  # of a band at most
    hops: int = 40  # of the ApproxNEB data, drawn at random; 0: all
    seed: int = 0  # of that draw


def main(settings: Settings) -> None:
    check_known("host", settings.hosts, HOSTS)
    potentials = load_models(settings.model)
    study = Study("migration", settings, potentials)
    findings: list[str] = []
    silicon = _silicon(settings, findings)
    hops = _hops(settings, findings)
    study.ask(
        "Si vacancy",
        {"Si vacancy": silicon} if silicon else {},
        lambda it: it[0][0].numbers,
        lambda potential, it: on_silicon(potential, settings, *it),
    )
    for name, potential in potentials.items():
        in_hosts(study, name, potential, settings)
        over_hops(study, name, potential, settings, hops)
    rows = study.done()
    tables = [make(potentials, settings, rows) for make in (silicon_table, host_table, hop_table)]
    figures = {}
    if paths := draw(potentials, settings, rows):
        figures["migration.png"] = ("Energy along the paths, from the first end.", paths)
    if parity := draw_hops(potentials, rows):
        figures["migration_hops.png"] = ("KRA barriers of ApproxNEB hops, model against DFT.", parity)
    study.write(tables, figures, findings)


def _silicon(settings: Settings, findings: list[str]):
    """DFT's images and their energies, in one order of atoms, and the frames of its relaxation; or None."""
    import ase.io

    from experiments.datasets import read
    from jaxmlip.mechanics.neb import in_order_of

    try:
        path = data_file(settings.data, f"{SILICON}/Si_vacancy_NEB_final_images.extxyz")
        frames = read(data_file(settings.data, f"{SILICON}/Si_vacancy_NEB_ionic_steps.extxyz.gz"))
    except MissingDataError as error:
        findings.append(f"The vacancy in silicon is left out: {error}")
        return None
    images = ase.io.read(path, ":")
    for k in range(1, len(images)):  # the atoms of the last image are listed in another order
        images[k] = in_order_of(images[k], images[k - 1])
    return images, [image.info["dft_energy"] for image in images], frames


def _hops(settings: Settings, findings: list[str]) -> list[Hop]:
    from experiments.softening.hops import read_hops

    try:
        hops, failed = read_hops(data_file(settings.data, APPROX))
    except MissingDataError as error:
        findings.append(f"The ApproxNEB hops are left out: {error}")
        return []
    if failed:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(failed.items())[:3])
        findings.append(
            f"{len(failed)} of {len(hops) + len(failed)} ApproxNEB hops cannot be used ({first})."
        )
    if 0 < settings.hops < len(hops):
        findings.append(f"{settings.hops} of {len(hops)} ApproxNEB hops were drawn at random.")
        drawn = np.random.default_rng(settings.seed).permutation(len(hops))[: settings.hops]
        hops = [hops[k] for k in sorted(drawn)]
    return hops


def on_silicon(
    potential: Potential, settings: Settings, images: list[Atoms], dft: list[float], frames
) -> dict:
    """The model's energies of DFT's images, its own band from there, and its forces in DFT's frames."""
    from jaxmlip.derivatives.slopes import force_slope
    from jaxmlip.mechanics.neb import band, path_length

    single = [p["energy"] for p in potential.predict(images)]
    found = [p["forces"].astype(float) for p in potential.predict([f.atoms for f in frames])]
    forces = force_slope(found, [f.labels.forces for f in frames])
    own = band(potential, *images, fmax=settings.fmax, steps=settings.steps)
    return {
        "dft": _from_first(dft),
        "dft_path": path_length(images),
        "single": _from_first(single),
        "slope": Estimate(forces.slope, *forces.interval),
        "mae": forces.mae,
        "frames": forces.samples,
        **(_of_band(own) if own.converged else {"reason": own.reason}),
    }


def in_hosts(study: Study, name: str, potential: Potential, settings: Settings) -> None:
    """The bands of magnesium in the hosts, side by side."""
    from jaxmlip.mechanics.neb import bands

    ends = {}
    for host in study.known(
        name, {host: host for host in settings.hosts}, lambda it: Atoms(f"Mg{it}").numbers
    ):
        key = f"{name}: Mg in {host}"
        if key in study.rows:
            continue
        try:
            ends[key] = HOSTS[host](potential)
        except (ValueError, RuntimeError) as error:
            study.fail(key, error)
    made = bands(
        potential, list(ends.values()), images=settings.images, fmax=settings.fmax, steps=settings.steps
    )
    for key, found in zip(ends, made, strict=True):
        _keep(study, key, found)


def over_hops(study: Study, name: str, potential: Potential, settings: Settings, hops: list[Hop]) -> None:
    """ApproxNEB with the model, from the images of DFT."""
    from jaxmlip.crystals.batches import chunks
    from jaxmlip.mechanics.neb import approximate_bands
    from jaxmlip.system.progress import track

    known = study.known(name, {f"hop {hop.name}": hop for hop in hops}, lambda hop: hop.images[0].numbers)
    by_key = {f"{name}: {hop}": it for hop, it in known.items()}
    for keys in track(list(chunks(study.left(by_key), AT_ONCE)), f"hops of {name}"):
        some = [by_key[key] for key in keys]
        found = approximate_bands(
            potential, [hop.images for hop in some], [hop.mobile for hop in some],
            fmax=settings.fmax, steps=settings.steps,
        )  # fmt: skip
        for key, hop, own in zip(keys, some, found, strict=True):
            _keep(study, key, own, dft=_from_first(hop.energies))


def _keep(study: Study, key: str, found: Band, **more: Any) -> None:
    if found.converged:
        study.keep(key, {**_of_band(found), **more})
    else:
        study.fail(key, found.reason)


def _of_band(found: Band) -> dict[str, Any]:
    return {
        "atoms": len(found.images[0]),
        "energies": _from_first(found.energies),
        "path": found.path,
        "steps": found.steps,
    }


def _from_first(energies: Any) -> np.ndarray:
    return np.asarray(energies, float) - energies[0]


def mgo(potential: Potential) -> tuple[Atoms, Atoms]:
    """A vacancy of Mg in rock salt, filled by its neighbour along <110>; 63 atoms."""
    from ase.build import bulk

    return _vacancy(potential, bulk("MgO", "rocksalt", 4.25, cubic=True), 2)


def spinel(symbols: str, a: float) -> Callable[[Potential], tuple[Atoms, Atoms]]:
    """A vacancy of Mg in a normal spinel, filled through the empty octahedron 16c; 55 atoms."""

    def ends(potential: Potential) -> tuple[Atoms, Atoms]:
        from ase.spacegroup import crystal

        places = [(1 / 8, 1 / 8, 1 / 8), (1 / 2, 1 / 2, 1 / 2), (0.258, 0.258, 0.258)]  # 8a, 16d, 32e
        elements = ["Mg", symbols, "S"]
        return _vacancy(
            potential, crystal(elements, places, spacegroup=227, setting=2, cellpar=[a, a, a, 90, 90, 90]), 1
        )

    return ends


def tis2(potential: Potential) -> tuple[Atoms, Atoms]:
    """One Mg between the layers of 1T-TiS2, from one octahedron to the next; 55 atoms."""
    from ase.spacegroup import crystal

    places = [(0, 0, 0), (1 / 3, 2 / 3, 0.25)]
    cell = _at_rest(
        potential, crystal(["Ti", "S"], places, spacegroup=164, cellpar=[3.41, 3.41, 5.70, 90, 90, 120])
    )
    start = cell.repeat((3, 3, 2))
    end = start.copy()
    for atoms, to in ((start, 0), (end, 1)):
        atoms.append("Mg")
        atoms.positions[-1] = (to, 0, 0.5) @ cell.cell.array
    return start, end


HOSTS: dict[str, Callable[[Potential], tuple[Atoms, Atoms]]] = {
    "MgO": mgo,
    "MgSc2S4": spinel("Sc", 10.63),
    "MgTi2S4": spinel("Ti", 10.2),
    "TiS2": tis2,
}


def _vacancy(potential: Potential, cell: Atoms, times: int) -> tuple[Atoms, Atoms]:
    from jaxmlip.mechanics.neb import vacancy_hop

    host = _at_rest(potential, cell).repeat(times)
    magnesium = np.flatnonzero(host.symbols == "Mg")
    nearest = magnesium[1:][host.get_distances(magnesium[0], magnesium[1:], mic=True).argmin()]
    return vacancy_hop(host, magnesium[0], nearest)


def _at_rest(potential: Potential, cell: Atoms) -> Atoms:
    from jaxmlip.mechanics.relaxation import relax

    found = relax(potential, cell, fmax=0.01, smax=0.1, fix_symmetry=True)
    if not found.converged:
        raise RuntimeError(f"the host did not come to rest: {found.reason}")
    return found.atoms


def kra(energies: Any) -> float:
    from jaxmlip.mechanics.neb import barriers

    return barriers(energies)[2]


def silicon_table(potentials, settings: Settings, rows) -> Table:
    found = {name: rows[key] for name in potentials if (key := f"{name}: Si vacancy") in rows}
    reasons = [
        f" The band of {name} did not converge: {x['reason']}." for name, x in found.items() if "reason" in x
    ]
    return Table.of(
        "Vacancy in Si, 63 atoms",
        (
            {
                "model": name,
                "barrier of DFT / eV": kra(x["dft"]),
                "of the model on DFT's images / eV": kra(x["single"]),
                "of its own band / eV": kra(x["energies"]) if "energies" in x else None,
                "force slope on DFT's way (95 %)": Estimate.read(x["slope"]),
                "force MAE / eV/Å": x["mae"],
                "frames": x["frames"],
            }
            for name, x in found.items()
        ),
        note="KRA barriers, at the images. DFT is PBEsol with the energy at zero smearing; its forces are "
        "those of the free energy. Models of PBE data carry the difference between the two functionals too."
        + "".join(reasons),
    )


def host_table(potentials, settings: Settings, rows) -> Table:
    lines = []
    for host in settings.hosts:
        found = {name: rows.get(f"{name}: Mg in {host}") for name in potentials}
        known = [x for x in found.values() if x]
        if known:
            cells = [kra(x["energies"]) if x else None for x in found.values()]
            lines.append([f"Mg in {host}", known[0]["atoms"], *cells])
    note = (
        "No DFT was done for these: they show how far models differ. Cells are neutral and as large as given."
    )
    return Table("KRA barriers of Mg / eV", ("path", "atoms", *potentials), lines, note=note)


def hop_table(potentials, settings: Settings, rows) -> Table:
    lines = []
    for name in potentials:
        pairs = _pairs(name, rows)
        if len(pairs):
            low = bootstrap(pairs, lambda p: 100 * np.mean(p[:, 1] < p[:, 0]))
            error = bootstrap(pairs, lambda p: np.mean(np.abs(p[:, 1] - p[:, 0])))
            signed = bootstrap(pairs, lambda p: np.mean(p[:, 1] - p[:, 0]))
            lines.append([name, len(pairs), error, signed, low])
    if lines:
        lines += [[name, 477, error, None, share] for name, error, share in PUBLISHED]
    columns = ("model", "hops", "MAE / eV", "mean error / eV", "below DFT / %")
    return Table(
        "KRA barriers of ApproxNEB hops against DFT", columns, lines, note="Published: 470 or 477 hops."
    )


def _pairs(name: str, rows) -> np.ndarray:
    """KRA barriers (eV) of DFT and of the model, (hops, 2)."""
    start = f"{name}: hop "
    return np.array([[kra(x["dft"]), kra(x["energies"])] for key, x in rows.items() if key.startswith(start)])


def draw(potentials, settings: Settings, rows) -> Figure | None:
    """A panel for each path that has rows; None where none has."""
    paths = ["Si vacancy", *(f"Mg in {host}" for host in settings.hosts)]
    shown = [path for path in paths if any(f"{name}: {path}" in rows for name in potentials)]
    if not shown:
        return None
    figure, axes = grid(len(shown), each=(3.2, 2.7))
    for ax, panel in zip(axes, shown, strict=True):
        for name, style in styles(potentials).items():
            row = rows.get(f"{name}: {panel}", {})
            if "dft" in row:
                ax.plot(row["dft_path"], row["dft"], "k*-", ms=9, lw=1, label="DFT")
                look = {"mfc": "none", "ls": ":", "label": f"{name} on DFT's images"}
                ax.plot(row["dft_path"], row["single"], **style, **look)
            if "energies" in row:
                ax.plot(row["path"], row["energies"], ms=5, label=name, **style)
        ax.set(title=panel, xlabel="path / Å")
        ax.axhline(0, c="0.8", lw=0.8, zorder=0)
    axes[0].set_ylabel("energy / eV")
    legend(figure, "upper")
    return figure


def draw_hops(potentials, rows) -> Figure | None:
    found = {name: pairs for name in potentials if len(pairs := _pairs(name, rows))}
    if not found:
        return None
    figure, ((ax,),) = panels(each=(3.8, 3.5))
    for name, style in styles(found).items():
        ax.plot(*found[name].T, ls="", ms=5, alpha=0.7, label=name, **style)
    parity(ax, "KRA barrier", "eV", top=max(pairs.max() for pairs in found.values()))
    ax.legend(frameon=False)
    return figure


if __name__ == "__main__":
    run(main, Settings)
