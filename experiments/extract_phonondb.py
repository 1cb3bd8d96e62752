"""Which cells and DFT frequencies does `jaxmlip softening` carry along?

    python -m experiments.extract_phonondb --data FOLDER

reads phononDB-PBE in FOLDER/phonondb_PBE_103 and writes jaxmlip/studies/phonondb_pbe.json: a spread over
three structure types, light and heavy, ionic and covalent, each of some seconds of work. The highest and the
mean frequency are those of the whole mesh.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.datasets import data_file
from jaxmlip.data.readers.phonondb import SOURCE
from jaxmlip.studies.phonondb import Material, read_phonondb
from jaxmlip.studies.study import run
from jaxmlip.system.console import say
from jaxmlip.system.files import write_whole

TARGET = Path(__file__).parent.parent / "jaxmlip" / "studies" / "phonondb_pbe.json"
CHOSEN = {
    "rocksalt": ("LiF", "NaCl", "KCl", "CsF", "MgO", "CaO", "PbTe"),
    "zincblende": ("BN", "SiC", "ZnS", "InP", "GaAs", "CdTe"),
    "wurtzite": ("BeO", "AlN", "GaN", "ZnO", "CdS"),
}


@dataclass(frozen=True)
class Settings:
    """Which cells and DFT frequencies does `jaxmlip softening` carry along?"""

    data: Path | None = None  # folder with phonondb_PBE_103/; default: JAXMLIP_DATA
    out: Path = TARGET


def choose(materials: Sequence[Material]) -> list[Material]:
    """The `materials` in CHOSEN, in that order."""
    by_name = {(m.structure, m.formula): m for m in materials}
    wanted = [(structure, formula) for structure, formulas in CHOSEN.items() for formula in formulas]
    missing = [
        f"{formula} ({structure})" for structure, formula in wanted if (structure, formula) not in by_name
    ]
    if missing:
        raise ValueError(f"found no {', '.join(missing)} in the data, needed all of CHOSEN.")
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


def main(settings: Settings) -> None:
    materials = read_phonondb(data_file(settings.data, "phonondb_PBE_103"))
    lines = json.dumps(record(choose(materials)), indent=1, ensure_ascii=False)
    write_whole(settings.out, lines + "\n")
    say(f"{len(materials)} materials read, {settings.out} written")


if __name__ == "__main__":
    run(main, Settings)
