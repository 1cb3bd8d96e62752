"""Values that the originals gave, and what it means to repeat them.

weights_convert.golden recorded CHGNet in tests/golden; JAXMLIP_REFERENCE names a folder with more values.
"""

import functools
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from conftest import public

from jaxmlip.zoo import load as sources

MODELS = ["chgnet-0.2.0", "chgnet-0.3.0", "chgnet-r2scan"]
# Of both sides in float64: eV/atom, eV/Å, eV/Å³, eV, μB.
EXACT = {"energy": 1e-8, "forces": 1e-7, "stress": 1e-8, "site_energies": 1e-8, "magmoms": 1e-7}
# The larger set: the names that it has for the models, by file.
REFERENCE = {
    "chgnet.npz": {name: name.removeprefix("chgnet-") for name in MODELS},
    "m3gnet.npz": {
        name: source.origin.folder
        for name, source in sources.MODELS.items()
        if source.architecture == "m3gnet"
    },
}


def unpacked(folder: Path, pattern: str, into: Path) -> dict[str, Path]:
    """The compressed files of `folder` that match, written `into` another, by the names of their models."""
    found = {}
    for packed in folder.glob(pattern):
        path = into / packed.stem
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        found[packed.name.removesuffix(pattern[1:])] = path
    return found


@functools.cache
def golden(name: str) -> tuple[dict[str, Atoms], dict[str, dict[str, np.ndarray]]]:
    """The crystals, and what the original gives for each."""
    values: dict[str, dict[str, np.ndarray]] = {}
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as archive:
        for key in archive.files:
            if "/" in key:
                crystal, quantity = key.split("/")
                values.setdefault(crystal, {})[quantity] = archive[key]
    crystals = {
        key: Atoms(its["numbers"], positions=its["positions"], cell=its["cell"], pbc=True)
        for key, its in values.items()
    }
    return crystals, values


def assert_repeats(found, wanted, crystal: str, atoms: int) -> None:
    """`found` and `wanted`: quantity -> values of one crystal."""
    for quantity, tolerance in EXACT.items():
        if quantity not in wanted:
            continue
        scale = atoms if quantity == "energy" else 1
        np.testing.assert_allclose(
            found[quantity] / scale,
            wanted[quantity] / scale,
            rtol=0,
            atol=tolerance,
            err_msg=f"{quantity} of {crystal}",
        )


def reference(file: str) -> tuple[dict[str, Atoms], dict[str, np.ndarray]]:
    """The larger set of reference values, where this machine has it."""
    folder = os.environ.get("JAXMLIP_REFERENCE")
    if not folder or not (Path(folder) / file).is_file():
        pytest.skip(f"JAXMLIP_REFERENCE names no folder with {file} and structures.json")
    from ase.io.jsonio import read_json

    with np.load(Path(folder) / file) as archive:
        return read_json(Path(folder) / "structures.json"), dict(archive)


def repeats_the_larger_set(file: str, name: str) -> None:
    structures, values = reference(file)
    potential, key = public(name), REFERENCE[file][name]
    compared = [crystal for crystal in structures if f"{key}/{crystal}/energy" in values]
    assert len(compared) > 10
    found = potential.predict([structures[crystal] for crystal in compared])
    for crystal, prediction in zip(compared, found, strict=True):
        recorded = {q: values[f"{key}/{crystal}/{q}"] for q in EXACT if f"{key}/{crystal}/{q}" in values}
        assert_repeats(prediction, recorded, crystal, len(structures[crystal]))


def keeps_the_digits_that_screening_needs(name: str) -> None:
    potential = public(name, "float32")
    crystals, wanted = golden(name)
    for crystal, found in zip(crystals, potential.predict(list(crystals.values())), strict=True):
        assert found["forces"].dtype == np.float32
        assert abs(found["energy"] - wanted[crystal]["energy"]) / len(crystals[crystal]) < 2e-5
        assert np.abs(found["forces"] - wanted[crystal]["forces"]).max() < 2e-4
