"""Records what the original CHGNet computes in float64, for the tests of parity.

    python -m weights_convert.golden tests/golden    # where torch, chgnet 0.4.2 and ase are installed

writes one .npz for each model with keys structure/quantity (the structure's positions, cell and numbers
among them; all are periodic in three directions), and `versions`. It needs neither JAX nor jaxmlip.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weights_convert import original_chgnet

if TYPE_CHECKING:
    from ase import Atoms

FOLDERS = {"chgnet-0.2.0": "0.2.0", "chgnet-0.3.0": "0.3.0", "chgnet-r2scan": "r2scan"}
WITH_HESSIAN = ("MgO_strained", "CO2_box")


def structures() -> dict[str, Atoms]:
    """Small crystals that between them have every kind of neighbourhood; all of them have angles."""
    from ase import Atoms
    from ase.build import bulk, molecule
    from ase.spacegroup import crystal

    salt = bulk("NaCl", "rocksalt", a=5.69, cubic=True)
    salt.rattle(0.05, seed=1)
    salt.positions[3] += salt.cell[0] - 2 * salt.cell[2]  # the same crystal, an atom named in another cell

    strained = bulk("MgO", "rocksalt", a=4.19)
    strained.set_cell(
        strained.cell.array @ [[1.02, 0.01, -0.03], [0.0, 0.98, 0.02], [0.04, 0.0, 1.01]], scale_atoms=True
    )
    strained.rattle(0.04, seed=2)

    rutile = crystal(
        ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.6, 4.6, 2.96, 90, 90, 90]
    )
    rutile = Atoms(rutile.numbers, positions=rutile.positions, cell=rutile.cell, pbc=True)
    rutile.rattle(0.04, seed=3)

    silicon = bulk("Si")
    silicon.rattle(0.05, seed=4)

    magnet = bulk("FeO", "rocksalt", a=4.3)
    magnet.rattle(0.05, seed=5)

    gas = molecule("CO2")
    gas.set_cell([8.0, 8.5, 9.0])
    gas.center()
    gas.pbc = True
    gas.rattle(0.02, seed=6)

    return {
        "NaCl_rattled": salt,
        "MgO_strained": strained,
        "TiO2_rutile": rutile,
        "Si_rattled": silicon,
        "FeO_rattled": magnet,
        "Cu_one_atom": bulk("Cu", a=3.6),  # all of its neighbours are its own images
        "CO2_box": gas,
    }


def record(checkpoint: Path, target: Path) -> None:
    """Writes what the network of `checkpoint` gives for `structures()` to the file `target`."""
    arrays = {"versions": np.array(json.dumps(original_chgnet.versions()))}
    with original_chgnet.float64():
        model = original_chgnet.read(checkpoint)
        for name, atoms in structures().items():
            found = original_chgnet.evaluate(model, atoms)
            if name in WITH_HESSIAN:
                found["hessian"] = original_chgnet.hessian(model, atoms)
            found |= {"positions": atoms.positions, "cell": atoms.cell.array, "numbers": atoms.numbers}
            arrays |= {f"{name}/{quantity}": value for quantity, value in found.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m weights_convert.golden", description=__doc__.split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder for one .npz of each model")
    out = parser.parse_args().out
    absent = original_chgnet.missing()
    if absent:
        raise SystemExit(
            f"found no {' and no '.join(absent)} here, needed both, in the versions that chgnet 0.4.2 "
            "asks for: pip install chgnet==0.4.2"
        )
    import chgnet

    for name, folder in FOLDERS.items():
        (checkpoint,) = (Path(chgnet.__file__).parent / "pretrained" / folder).glob("*.pth.tar")
        record(checkpoint, out / f"{name}.npz")
        print(f"{out / name}.npz: {(out / f'{name}.npz').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
