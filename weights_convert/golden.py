"""Records the results of the original packages in float64, for the parity tests.

    python -m weights_convert.golden tests/golden              # needs chgnet 0.4.2
    python -m weights_convert.golden tests/golden/mace mace    # needs mace-torch 0.3.16
    python -m weights_convert.golden tests/golden/mattersim mattersim    # needs mattersim 1.2.5
    python -m weights_convert.golden tests/golden/matgl matgl-chgnet    # needs matgl 4.1.2

These write one .npz for each model with keys structure/quantity (including the structure's positions, cell
and numbers; all are periodic in three directions), and `versions`; for all but the published CHGNets also the
models, which are small and have random weights. Neither JAX nor jaxmlip is needed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weights_convert import original_chgnet, original_mace, original_matgl, original_mattersim

if TYPE_CHECKING:
    from ase import Atoms

FOLDERS = {"chgnet-0.2.0": "0.2.0", "chgnet-0.3.0": "0.3.0", "chgnet-r2scan": "r2scan"}
WITH_HESSIAN = ("MgO_strained", "CO2_box")
OF_OTHERS = ("MgO_strained", "TiO2_rutile", "Cu_one_atom", "CO2_box")


def structures() -> dict[str, Atoms]:
    """Small crystals that together have every kind of neighbourhood; all of them have angles."""
    from ase import Atoms
    from ase.build import bulk, molecule
    from ase.spacegroup import crystal

    salt = bulk("NaCl", "rocksalt", a=5.69, cubic=True)
    salt.rattle(0.05, seed=1)
    salt.positions[3] += salt.cell[0] - 2 * salt.cell[2]  # the same crystal, one atom given in another cell

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


def small_structures() -> dict[str, Atoms]:
    """Crystals of the elements of `original_mace.VARIANTS`."""
    from ase import Atoms
    from ase.build import bulk

    salt = bulk("CoO", "rocksalt", a=4.26)
    salt.set_cell(
        salt.cell.array @ [[1.02, 0.01, -0.03], [0.0, 0.98, 0.02], [0.04, 0.0, 1.01]], scale_atoms=True
    )
    salt.rattle(0.05, seed=1)

    layered = Atoms(
        "LiCoO2",
        cell=[[2.82, 0.05, 0.0], [1.41, 2.44, 0.0], [1.4, 0.8, 4.68]],
        scaled_positions=[[0.5, 0.5, 0.5], [0, 0, 0], [0.24, 0.24, 0.24], [0.76, 0.76, 0.76]],
        pbc=True,
    )
    layered.rattle(0.05, seed=2)
    layered.positions[3] += layered.cell[0] - 2 * layered.cell[2]  # the same atom, given in another cell
    return {
        "CoO_strained": salt,
        "LiCoO2_rattled": layered,
        "Li_one_atom": bulk("Li", a=3.5),  # all of its neighbours are its own images
        "O_isolated": Atoms("O", cell=[9, 9, 9], pbc=True),
    }


def further_structures() -> dict[str, Atoms]:
    """A long thin cell, a crystal of many elements, and one whose angles are all of 90° or 180°."""
    from ase import Atoms
    from ase.build import bulk

    thin = Atoms(
        "TiNiO",
        cell=[[2.9, 0.0, 0.1], [0.2, 2.8, 0.0], [0.0, 0.3, 13.0]],
        scaled_positions=[[0.1, 0.2, 0.05], [0.6, 0.7, 0.2], [0.55, 0.1, 0.35]],
        pbc=True,
    )
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.arange(3) / 3] * 2, np.arange(2) / 2, indexing="ij"), -1)
    many = Atoms(
        numbers=[1, 4, 9, 17, 24, 31, 38, 45, 52, 59, 66, 73, 78, 80, 82, 83, 90, 94],
        cell=[[7.4, 0.2, 0.0], [-0.4, 7.6, 0.3], [0.5, -0.3, 5.2]],
        scaled_positions=places.reshape(-1, 3) + 0.02 * rng.normal(size=(18, 3)),
        pbc=True,
    )
    return {"TiNiO_thin": thin, "many_elements": many, "MgO_ideal": bulk("MgO", "rocksalt", a=4.21)}


def structures_of(elements: Sequence[int]) -> dict[str, Atoms]:
    """The crystals above that consist only of `elements`, and one made of the first four elements."""
    from ase import Atoms

    cell = [[3.9, 0.3, 0.0], [-0.5, 4.1, 0.4], [0.6, 0.2, 4.4]]
    places = [[0, 0, 0], [0.5, 0.45, 0.1], [0.5, 0.05, 0.5], [0.0, 0.55, 0.55]]
    mixed = Atoms((list(elements) * 4)[:4], cell=cell, scaled_positions=places, pbc=True)
    crystals = {**structures(), **small_structures(), "mixed": mixed}
    return {name: atoms for name, atoms in crystals.items() if set(atoms.numbers) <= set(elements)}


def record(
    evaluate: Callable[[str, Atoms], dict[str, np.ndarray]],
    crystals: Mapping[str, Atoms],
    versions: dict[str, str],
    target: Path,
) -> None:
    """Writes the results of evaluate(name, atoms) for `crystals` to the file `target`."""
    arrays = {"versions": np.array(json.dumps(versions))}
    for name, atoms in crystals.items():
        found = evaluate(name, atoms)
        found |= {"positions": atoms.positions, "cell": atoms.cell.array, "numbers": atoms.numbers}
        arrays |= {f"{name}/{quantity}": value for quantity, value in found.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, **arrays)


def record_chgnet(out: Path) -> None:
    """Records the published models."""
    import chgnet

    for model_name, folder in FOLDERS.items():
        (checkpoint,) = (Path(chgnet.__file__).parent / "pretrained" / folder).glob("*.pth.tar")
        _record_chgnet(checkpoint, structures(), out / f"{model_name}.npz")
    record_other_chgnets(out / "chgnet")


def record_other_chgnets(out: Path) -> None:
    """Records random models with options that the published ones lack."""
    out.mkdir(parents=True, exist_ok=True)
    crystals = {name: structures()[name] for name in OF_OTHERS}
    for seed, (variant, options) in enumerate(original_chgnet.VARIANTS.items()):
        model = original_chgnet.random_model(seed, **options)
        original_chgnet.strengthen(model, crystals["TiO2_rutile"])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{variant}.pth.tar"
            original_chgnet.save(model, path)
            (out / f"{variant}.pth.tar.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            _record_chgnet(path, crystals, out / f"{variant}.npz")


def _record_chgnet(checkpoint: Path, crystals: Mapping[str, Atoms], target: Path) -> None:
    with original_chgnet.float64():
        model = original_chgnet.read(checkpoint)

        def evaluate(name: str, atoms: Atoms) -> dict[str, np.ndarray]:
            found = original_chgnet.evaluate(model, atoms)
            if name in WITH_HESSIAN:
                found["hessian"] = original_chgnet.hessian(model, atoms)
            return found

        record(evaluate, crystals, original_chgnet.versions(), target)


def record_mace(out: Path) -> None:
    """Records random models of every kind, compressed, because their coupling tensors are mostly zeros."""
    out.mkdir(parents=True, exist_ok=True)
    for seed, (variant, options) in enumerate(original_mace.VARIANTS.items()):
        model = original_mace.random_model(seed=seed, **options)
        original_mace.strengthen(model, small_structures()["LiCoO2_rattled"])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{variant}.model"
            original_mace.save(model, path)
            # The file holds no time, so the same model gives the same file.
            (out / f"{variant}.model.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            with original_mace.precision():
                model = original_mace.read(path)
                for head in options.get("heads", [None]):

                    def evaluate(name: str, atoms: Atoms, model=model, head=head) -> dict[str, np.ndarray]:
                        return original_mace.evaluate(model, atoms, head, with_hessian=len(atoms) > 1)

                    target = out / (f"{variant}.{head}.npz" if head else f"{variant}.npz")
                    record(evaluate, small_structures(), original_mace.versions(), target)


WITH_MATGL_HESSIAN = ("MgO_strained", "MgO_ideal", "Cu_one_atom", "TiNiO_thin", "CO2_box")
WITH_MATTERSIM_HESSIAN = ("MgO_strained", "MgO_ideal", "Cu_one_atom", "TiNiO_thin", "CO2_box")


def record_mattersim(out: Path) -> None:
    """Records random models with exact constants, and energies and forces as the package gives them."""
    out.mkdir(parents=True, exist_ok=True)
    small = small_structures()
    crystals = {**structures(), "O_isolated": small["O_isolated"], **further_structures()}
    for seed, (variant, options) in enumerate(original_mattersim.VARIANTS.items()):
        model = original_mattersim.random_model(seed, **options)
        original_mattersim.strengthen(model, crystals["NaCl_rattled"])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{variant}.pth"
            original_mattersim.save(model, path)
            if variant == "1m":
                original_mattersim.without_later_tensors(path)
            (out / f"{variant}.pth.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            model = original_mattersim.read(path)

        def evaluate(name: str, atoms: Atoms, model=model) -> dict[str, np.ndarray]:
            shipped = original_mattersim.evaluate(model, atoms)
            with original_mattersim.exact(model):
                found = original_mattersim.evaluate(model, atoms, with_hessian=name in WITH_MATTERSIM_HESSIAN)
            return found | {f"{quantity}_as_shipped": shipped[quantity] for quantity in ("energy", "forces")}

        record(evaluate, crystals, original_mattersim.versions(), out / f"{variant}.npz")


def record_matgl(out: Path) -> None:
    """Records random CHGNets and M3GNets, each as the two files of a folder that are read."""
    out.mkdir(parents=True, exist_ok=True)
    small = small_structures()
    crystals = {**structures(), "O_isolated": small["O_isolated"], **further_structures()}
    for seed, (variant, (kind, options)) in enumerate(original_matgl.VARIANTS.items()):
        potential = original_matgl.random_model(seed, kind, **options)
        original_matgl.strengthen(potential, crystals["NaCl_rattled"])
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            potential.save(folder)
            packed = gzip.compress((folder / "state.pt").read_bytes(), mtime=0)
            (out / f"{variant}.state.pt.gz").write_bytes(packed)
            (out / f"{variant}.model.json").write_bytes((folder / "model.json").read_bytes())
            original = original_matgl.read(folder)

        def evaluate(name: str, atoms: Atoms, original=original) -> dict[str, np.ndarray]:
            return original_matgl.evaluate(original, atoms, with_hessian=name in WITH_MATGL_HESSIAN)

        record(evaluate, crystals, original_matgl.versions(), out / f"{variant}.npz")


PACKAGES = {
    "chgnet": (original_chgnet, record_chgnet, "chgnet==0.4.2"),
    "mace": (original_mace, record_mace, "mace-torch==0.3.16"),
    "matgl-chgnet": (original_matgl, record_matgl, "matgl==4.1.2"),
    "mattersim": (original_mattersim, record_mattersim, "mattersim==1.2.5"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m weights_convert.golden", description=__doc__.split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder for one .npz of each model")
    parser.add_argument("package", nargs="?", choices=PACKAGES, default="chgnet", help="default: chgnet")
    arguments = parser.parse_args()
    original, record_all, requirement = PACKAGES[arguments.package]
    absent = original.missing()
    if absent:
        raise SystemExit(
            f"found no {' and no '.join(absent)} here, needed both, in the versions that {requirement} "
            f"asks for: pip install {requirement}"
        )
    record_all(arguments.out)
    for path in sorted(arguments.out.iterdir()):
        if path.is_file():
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
