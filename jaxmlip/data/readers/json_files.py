"""Data sets as JSON with pymatgen's structures. Energies in eV, forces in eV/Å, stresses as VASP prints them.

VASP's stress is in kbar and positive in compression. Files are parsed as a stream, with one material in
memory. Documents may be in a list, under keys, or one after the other (JSON lines).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.data.readers.common import (
    VASP_ORDER,
    Frame,
    Keys,
    crystal,
    from_vasp,
    open_bytes,
    site_property,
    structure_atoms,
)
from jaxmlip.data.readers.families import Label, is_isolated, note_look_alikes, weights_of
from jaxmlip.system.borders import shallow


def read_mptrj(path: Path, keys: Keys) -> Iterator[Frame]:
    """{material: {frame: {structure, uncorrected_total_energy, force, stress, magmom}}}: MPtrj, MP-r2SCAN.

    The energy is `uncorrected_total_energy`, VASP's energy extrapolated to zero smearing, the only one that
    fits forces and stress in one functional; `energy_key="corrected_total_energy"` has Materials Project's
    corrections, with which CHGNet 0.3.0 was trained. Fields called ..._per_atom are multiplied by N. Frames
    may also lie directly under their own names, in a list or in lines, with the material in `mp_id`.
    """
    names = (("uncorrected_total_energy", "energy"), ("force", "forces"), ("stress",), ("magmom", "magmoms"))
    for number, (key, found) in enumerate(documents(path)):
        for frame, its in ({"": found} if "structure" in found else found).items():
            name = " ".join(filter(None, (str(path), key or f"document {number}", frame)))
            material = keys.first("material", _checked(its, name), "mp_id")[1] or key
            yield partial(_of_document, its, keys, name, material, *names)


def read_chgnet(path: Path, keys: Keys) -> Iterator[Frame]:
    """Lists under structure, uncorrected_total_energy, energy_per_atom, force, stress and magmom, as chgnet's
    parse_vasp_dir saves them. The file is read as a whole.

    The energy is `uncorrected_total_energy`, or `energy_per_atom` times N. Raises ValueError if the lists do
    not have the same length; an empty list, or null, means that there is no label.
    """
    with open_bytes(path) as file:
        try:
            with shallow():
                found = json.load(file)
        except RecursionError:
            raise ValueError("it is nested too deeply, needed lists of structures and labels") from None
    columns = {name: its for name, its in _checked(found, str(path)).items() if its}
    count = len(columns.get("structure", ()))
    lengths = {name: len(its) for name, its in columns.items() if isinstance(its, list)}
    if wrong := {name: n for name, n in lengths.items() if n != count}:
        raise ValueError(f"it has {count} structures and {wrong}, needed lists of one length")
    names = (
        ("uncorrected_total_energy", "energy", "energy_per_atom"),
        ("force", "forces"),
        ("stress",),
        ("magmom", "magmoms"),
    )
    for k in range(count):
        found = {name: its[k] if name in lengths else its for name, its in columns.items()}
        material = keys.first("material", found, "mp_id", "material_id")[1]
        yield partial(_of_document, found, keys, f"{path} step {k}", material, *names)


def read_wbm(path: Path, keys: Keys) -> Iterator[Frame]:
    """{material: {frame: {structure, vasp_e, vasp_f, vasp_s}}}: WBM high-energy states, figshare 27307776."""
    names = (("vasp_e",), ("vasp_f",), ("vasp_s",), ("vasp_m",))
    for material, frames in documents(path):
        for frame, found in frames.items():
            yield partial(_of_document, found, keys, f"{path} {material} {frame}", material, *names)


def read_matpes(path: Path, keys: Keys) -> Iterator[Frame]:
    """Documents as emmet's MatPESTrainDoc has them, in a list, under keys or in lines: MatPES.

    The stress has the order xx yy zz yz xz xy; moments are those on the sites. The material is
    `provenance.original_mp_id`, since frames of one material must not be on both sides of a split.
    """
    names = (("energy",), ("forces",), ("stress", "stress_matrix"), ("magmoms",))
    for number, (_, found) in enumerate(documents(path)):
        origin = _checked(found.get("provenance") or {}, f"document {number}").get("original_mp_id")
        name = f"{path} {found.get('matpes_id') or f'document {number}'}"
        material = keys.first("material", found, "mp_id")[1] or origin or found.get("matpes_id")
        yield partial(_of_document, found, keys, name, material, *names, sites="magmom")


def read_mlearn(path: Path, keys: Keys) -> Iterator[Frame]:
    """A list of {structure, outputs: {energy, forces, virial_stress}}: mlearn and maml.

    The stress has VASP's order xx yy zz xy yz zx. The material is the formula.
    """
    names = (("energy",), ("forces",), ("virial_stress",), ("magmoms",))
    for number, (_, found) in enumerate(documents(path)):
        outputs = _checked(found.get("outputs", found), f"document {number}")
        material = keys.first("material", found, "material")[1]
        record = {**outputs, "structure": found["structure"]}
        name = f"{path} document {number}"
        yield partial(_of_document, record, keys, name, material, *names, order=VASP_ORDER)


def _of_document(
    found: Any, keys: Keys, name: str, material, energy, forces, stress, magmoms, *, sites=None, order=None
) -> LabelledCrystal:
    structure = _checked(found, name)["structure"]
    atoms = structure_atoms(structure)
    asked = {"energy": energy, "forces": forces, "stress": stress, "magmoms": magmoms}
    labels = {}
    for prop, names in asked.items():
        field, value = keys.first(prop, found, *names)
        if value is not None:
            labels[prop] = Label(field, value)
    if "magmoms" not in labels and sites and (moments := site_property(structure, sites)) is not None:
        labels["magmoms"] = Label(sites, moments)
    note_look_alikes(atoms, found, labels, keys)
    weighted = weights_of(found, {prop: label.name for prop, label in labels.items()}, keys)
    values = {p: label.value for p, label in labels.items() if weighted["weights"].get(p) != 0}
    if "energy" in values and labels["energy"].name.endswith("per_atom"):
        values["energy"] = float(values["energy"]) * len(atoms)
    if "stress" in values:
        values["stress"] = from_vasp(values["stress"], *([order] if order else []))
    if "magmoms" in values:
        values["magmoms"] = [_moment(each) for each in values["magmoms"]]
    functional = keys.functional_of(found)
    return crystal(atoms, name, str(material or ""), functional, is_isolated(found), **weighted, **values)


def _moment(value: Any) -> Any:
    """A magnetic moment as one number or three; pymatgen writes it as an object with its axis."""
    return value["moment"] if isinstance(value, dict) else value


def documents(path: Path, marks: Collection[str] = ("structure",)) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects with their keys; the key is "" in a list, and for objects one after the other.

    `marks` are names by which an object is known; it has one of them.
    """
    import ijson

    layout = _layout(path, marks)
    with open_bytes(path) as file:
        if layout == "keys":
            found = ijson.kvitems(file, "", use_float=True, multiple_values=True)
        else:
            place = "item" if layout == "list" else ""
            found = (("", its) for its in ijson.items(file, place, use_float=True, multiple_values=True))
        for number, (key, document) in enumerate(found):
            yield key, _checked(document, key or f"document {number}")


def _layout(path: Path, marks: Collection[str]) -> str:
    """ "list", "lines" of documents, or documents under "keys", by where the first of `marks` stands."""
    import ijson

    depth = 0
    with open_bytes(path) as file:
        for event, value in ijson.basic_parse(file, use_float=True, multiple_values=True):
            if event == "start_array" and depth == 0:
                return "list"
            if event in ("start_map", "start_array"):
                depth += 1
            elif event in ("end_map", "end_array"):
                depth -= 1
            elif event == "map_key" and value in marks:
                return "lines" if depth == 1 else "keys"
    return "keys"


def _checked(found: Any, of: str) -> dict:
    if not isinstance(found, dict):
        raise ValueError(f"{of} is of type {type(found).__name__}, needed an object with names")
    return found
