"""Data: `jaxmlip data inspect`."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from jaxmlip.cli.arguments import AsJson, Positional
from jaxmlip.cli.tables import print_table, table_of

SHOWN = 4  # outliers of each kind in the table; JSON has all of them


def inspect(
    paths: Positional[list[str]],
    format: str | None = None,
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    magmoms_key: str | None = None,
    material_key: str | None = None,
    every: int = 1,
    limit: int | None = None,
    figure: Path | None = None,
    json_: AsJson = False,
) -> None:
    """What files of labelled crystals hold, and which crystals look wrong.

    Args:
        paths: files, folders or patterns: extended XYZ, ASE databases and trajectories, MPtrj, MatPES,
            MP-r2SCAN, WBM, mlearn, vasprun.xml, OUTCAR, phonopy
        format: the format of all of them; default: guessed of each
        energy_key: the name of the energy, if not the usual one
        forces_key: the name of the forces
        stress_key: the name of the stress (or of a virial, if it has that word in its name)
        magmoms_key: the name of the magnetic moments
        material_key: the name of what tells materials apart
        every: read every so many-th crystal of each file
        limit: read so many crystals in all
        figure: draw histograms into this file (.png, .pdf, .svg)
        json_: print everything as JSON instead of tables
    """
    from jaxmlip.data import inspection
    from jaxmlip.data.readers import read_labelled
    from jaxmlip.progress import track

    crystals = read_labelled(
        paths,
        format,
        energy_key=energy_key,
        forces_key=forces_key,
        stress_key=stress_key,
        magmoms_key=magmoms_key,
        material_key=material_key,
        every=every,
        limit=limit,
    )
    found = inspection.inspect(track(crystals, "inspecting"))
    if figure is not None:
        inspection.figure(found, figure)
    if json_:
        print(json.dumps(found.as_dict(), indent=2))
        return
    console = Console(highlight=False)
    elements = ", ".join(f"{name} {count}" for name, count in found.elements.items())
    console.print(
        f"{found.crystals} crystals of {found.materials} materials; with {elements}",
        markup=False,
        soft_wrap=True,
    )
    known = ", ".join(f"{name} {count}" for name, count in found.properties.items())
    console.print(f"labels: {known or 'none'}", markup=False, soft_wrap=True)
    table = table_of("ranges", ("", "unit", "crystals", "min", "median", "99 %", "max"), left=("", "unit"))
    for name, spread in found.spreads.items():
        numbers = (f"{x:.4g}" for x in spread[1:])
        table.add_row(name, inspection.QUANTITIES[name], str(spread.count), *numbers)
    print_table(table)
    if found.outliers:
        table = table_of("outliers", ("kind", "count", "worst", "value", "in"), left=("kind", "worst", "in"))
        for kind, unit in inspection.KINDS.items():
            these = [outlier for outlier in found.outliers if outlier.kind == kind]
            for k, outlier in enumerate(these[:SHOWN]):
                first = (kind, str(len(these))) if k == 0 else ("", "")
                table.add_row(*first, outlier.crystal, f"{outlier.value:.4g}", unit)
        print_table(table)
    for kind, pairs in (("exact", found.exact_duplicates), ("near", found.near_duplicates)):
        line = f"{len(pairs)} {kind} duplicates" + (f", such as {pairs[0][0]}" if pairs else "")
        console.print(line, markup=False, soft_wrap=True)
