"""Data sets as JSON with pymatgen's structures. Energies in eV, forces in eV/Å, stresses as VASP prints them.

VASP's stress is in kbar and positive in compression. Files are parsed as a stream: one material is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.data.readers.common import (
    VASP_ORDER,
    Keys,
    crystal,
    from_vasp,
    open_bytes,
    site_property,
    structure_atoms,
)


def read_mptrj(path: Path, keys: Keys) -> Iterator[LabelledCrystal]:
    """{material: {frame: {structure, uncorrected_total_energy, force, stress, magmom}}}: MPtrj, MP-r2SCAN.

    The energy is `uncorrected_total_energy`, that of VASP extrapolated to zero smearing, which alone fits
    forces and stress in one functional; `energy_key="corrected_total_energy"` has Materials Project's
    corrections, with which CHGNet 0.3.0 was trained. Fields called ..._per_atom are multiplied by N.
    Frames may also lie directly under their own names, with the material in `mp_id`.
    """
    for material, frames in _pairs(path):
        flat = "structure" in _checked(frames, material)
        for frame, found in ({"": frames} if flat else frames).items():
            yield _of_document(
                found,
                keys,
                f"{path} {material} {frame}".rstrip(),
                keys.first("material", found, "mp_id")[1] or material,
                ("uncorrected_total_energy", "energy"),
                ("force", "forces"),
                ("stress",),
                ("magmom", "magmoms"),
            )


def read_wbm(path: Path, keys: Keys) -> Iterator[LabelledCrystal]:
    """{material: {frame: {structure, vasp_e, vasp_f, vasp_s}}}: WBM high-energy states, figshare 27307776."""
    for material, frames in _pairs(path):
        for frame, found in _checked(frames, material).items():
            names = (("vasp_e",), ("vasp_f",), ("vasp_s",), ("vasp_m",))
            yield _of_document(found, keys, f"{path} {material} {frame}", material, *names)


def read_matpes(path: Path, keys: Keys) -> Iterator[LabelledCrystal]:
    """Documents as emmet's MatPESTrainDoc has them, in a list or under keys: MatPES.

    The stress has the order xx yy zz yz xz xy; moments are those on the sites. The material is
    `provenance.original_mp_id`, since frames of one material must not be on both sides of a split.
    """
    for number, found in enumerate(_documents(path)):
        origin = _checked(found.get("provenance") or {}, f"document {number}").get("original_mp_id")
        name = f"{path} {found.get('matpes_id') or f'document {number}'}"
        material = keys.first("material", found, "mp_id")[1] or origin or found.get("matpes_id")
        names = (("energy",), ("forces",), ("stress", "stress_matrix"), ("magmoms",))
        yield _of_document(found, keys, name, material, *names, sites="magmom")


def read_mlearn(path: Path, keys: Keys) -> Iterator[LabelledCrystal]:
    """A list of {structure, outputs: {energy, forces, virial_stress}}: mlearn and maml.

    The stress has VASP's order xx yy zz xy yz zx. The material is the formula.
    """
    for number, found in enumerate(_documents(path)):
        outputs = _checked(found.get("outputs", found), f"document {number}")
        material = keys.first("material", found, "material")[1]
        names = (("energy",), ("forces",), ("virial_stress",), ("magmoms",))
        record = {**outputs, "structure": found["structure"]}
        yield _of_document(record, keys, f"{path} document {number}", material, *names, order=VASP_ORDER)


def _of_document(
    found: Any, keys: Keys, name: str, material, energy, forces, stress, magmoms, *, sites=None, order=None
) -> LabelledCrystal:
    structure = _checked(found, name)["structure"]
    atoms = structure_atoms(structure)
    energy_field, total = keys.first("energy", found, *energy)
    if total is not None and energy_field.endswith("per_atom"):
        total = float(total) * len(atoms)
    moments = keys.first("magmoms", found, *magmoms)[1]
    if moments is None and sites:
        moments = site_property(structure, sites)
    found_stress = keys.first("stress", found, *stress)[1]
    return crystal(
        atoms,
        name,
        str(material or ""),
        keys.functional_of(found),
        energy=total,
        forces=keys.first("forces", found, *forces)[1],
        stress=None if found_stress is None else from_vasp(found_stress, *([order] if order else [])),
        magmoms=moments,
    )


def _pairs(path: Path) -> Iterator[tuple[str, Any]]:
    import ijson

    with open_bytes(path) as file:
        yield from ijson.kvitems(file, "", use_float=True)


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    import ijson

    with open_bytes(path) as file:
        listed = file.read(1024).lstrip()[:1] == b"["
    with open_bytes(path) as file:
        if listed:
            found = ijson.items(file, "item", use_float=True)
        else:
            found = (value for _, value in ijson.kvitems(file, "", use_float=True))
        for number, document in enumerate(found):
            yield _checked(document, f"document {number}")


def _checked(found: Any, of: str) -> dict:
    if not isinstance(found, dict):
        raise ValueError(f"{of} is of type {type(found).__name__}, needed an object with names")
    return found
