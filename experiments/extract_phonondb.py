"""Which cells and DFT frequencies does `jaxmlip softening` carry along?

    python -m experiments.extract_phonondb --data FOLDER

reads the files of phononDB-PBE in FOLDER (default: the environment variable JAXMLIP_DATA) and writes
jaxmlip/studies/phonondb_pbe.json: a spread over three structure types, light and heavy, ionic and covalent,
with some seconds of work for each. Highest and mean frequency are computed from those on the whole mesh, and
compared with a summary of them where the folder holds one.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jaxmlip.studies.softening import SOURCE, Material, read_phonondb
from jaxmlip.system.console import say
from jaxmlip.system.files import write_whole

TARGET = Path(__file__).parent.parent / "jaxmlip" / "studies" / "phonondb_pbe.json"
CHOSEN = {
    "rocksalt": ("LiF", "NaCl", "KCl", "CsF", "MgO", "CaO", "PbTe"),
    "zincblende": ("BN", "SiC", "ZnS", "InP", "GaAs", "CdTe"),
    "wurtzite": ("BeO", "AlN", "GaN", "ZnO", "CdS"),
}


def choose(materials: Sequence[Material]) -> list[Material]:
    """The chosen ones among `materials`, in the order of CHOSEN."""
    by_name = {(m.structure, m.formula): m for m in materials}
    wanted = [(structure, formula) for structure, formulas in CHOSEN.items() for formula in formulas]
    missing = [
        f"{formula} ({structure})" for structure, formula in wanted if (structure, formula) not in by_name
    ]
    if missing:
        raise SystemExit(f"the data hold no {', '.join(missing)}; needed all of CHOSEN.")
    return [by_name[key] for key in wanted]


def record(materials: Sequence[Material]) -> dict:
    """The contents of phonondb_pbe.json: coordinates to 1e-10, frequencies to 1e-4 THz."""
    return {
        "what": "Primitive cells (Å, rows; relaxed with PBE) and highest, mean and lowest harmonic frequency "
        "(THz) on a Γ-centred mesh, without the non-analytical correction. Written by "
        "experiments/extract_phonondb.py.",
        "source": SOURCE,
        "materials": [
            {
                "id": m.id,
                "formula": m.formula,
                "structure": m.structure,
                "symbols": list(m.atoms.symbols),
                "cell": m.atoms.cell.array.round(10).tolist(),
                "scaled_positions": m.atoms.get_scaled_positions().round(10).tolist(),
                "mesh": [int(n) for n in m.mesh],
                "dft": {name: round(thz, 4) for name, thz in asdict(m.dft).items()},
            }
            for m in materials
        ],
    }


def largest_disagreement(materials: Sequence[Material], summary: Path) -> float:
    """Largest difference (THz) of highest and mean frequencies between `materials` and another table."""
    with summary.open(newline="") as file:
        theirs = {row["mp_id"]: row for row in csv.DictReader(file)}
    return max(
        abs(ours - float(theirs[m.id][column]))
        for m in materials
        for ours, column in ((m.dft.maximum, "max_freq_THz"), (m.dft.mean, "mean_freq_THz"))
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("JAXMLIP_DATA"))
    parser.add_argument("--out", type=Path, default=TARGET)
    settings = parser.parse_args()
    if settings.data is None:
        parser.error("found neither --data nor JAXMLIP_DATA; needed the folder of the files of phononDB-PBE.")
    materials = read_phonondb(settings.data)
    lines = json.dumps(record(choose(materials)), indent=1, ensure_ascii=False)
    write_whole(settings.out, lines + "\n")
    say(f"{len(materials)} materials read, {settings.out} written")
    for summary in sorted(Path(settings.data).glob("**/phonondb_PBE_103/summary_DERIVED*.csv")):
        say(f"{largest_disagreement(materials, summary):.1e} THz at most from {summary.name}")


if __name__ == "__main__":
    main()
