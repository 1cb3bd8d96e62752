"""Choice of the entries of a record that are its labels: all from one source; other labels are reported.

A record is one frame of a file: values by name. Prefixed names, such as REF_energy or dft_forces, are those
of the reference calculation; bare ones may be results of a calculator that was still attached when the frame
was written. Stresses are in eV/Å³, positive in tension. A virial is -V σ (eV), as QUIP and MACE write it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from jaxmlip.data.labels import LabelError
from jaxmlip.data.readers.common import Keys, same, symmetric

FAMILIES = ("ref_", "dft_", "")  # prefixes, in upper or lower case; the first one present counts
NAMES = {
    "energy": ("energy",),
    "forces": ("forces", "force"),
    "stress": ("stress", "virial", "virials"),
    "magmoms": ("magmoms", "magmom"),
}
APART = 0.02, 1e-3  # largest difference of stress and virial: relative to the largest component, and eV/Å³
# An unread entry whose name has one of these words looks like a label.
WORDS = {
    "energy": ("energy",),
    "forces": ("force",),
    "stress": ("stress", "virial"),
    "magmoms": ("magmom", "magnetic_moment"),
}
ISOLATED = ("isolatedatom", "isolatedatoms", "isolated")


class Label(NamedTuple):
    name: str
    value: Any


def labels_of(atoms: Atoms, record: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """Arguments of `crystal`: labels, their weights, and whether it is an isolated atom.

    If the record has a prefixed energy or prefixed forces, all labels are of that prefix. A name that `keys`
    give always counts. Notes are made of labels that are not read, and of other entries that look like
    labels.

    Raises LabelError if stress and virial of one source contradict each other.
    """
    asked = {p: name for p in NAMES if (name := keys.asked(p)) is not None}
    families = {prefix: dict(_family(record, prefix, atoms)) for prefix in FAMILIES}
    chosen = _chosen(families, asked)
    found: dict[str, Label] = {}
    for prop in NAMES:
        if prop in asked:
            if (value := record.get(asked[prop])) is not None:
                found[prop] = Label(asked[prop], value)
            continue
        # A prefixed stress may stand alone, beside a bare energy.
        sources = (chosen,) if chosen else FAMILIES
        labels = next((families[prefix][prop] for prefix in sources if prop in families[prefix]), [])
        if labels:
            found[prop] = labels[0]
    if any(prop in found and prop not in asked for prop in ("energy", "forces")):
        keys.sources[chosen] += 1
    _note_passed_over(families, found, asked, keys)
    note_look_alikes(atoms, record, found, keys)
    if "stress" in found and not atoms.pbc.any():
        keys.noted[
            f"{found.pop('stress').name} of a molecule was not read: only crystals that repeat have a stress"
        ] += 1
    values = {prop: label.value for prop, label in found.items()}
    if "energy" in found and found["energy"].name.endswith("per_atom"):
        values["energy"] = float(values["energy"]) * len(atoms)
    if "stress" in found:
        values["stress"] = stress_of(found["stress"], atoms)
        if "stress" not in asked:
            _check_agree(families, found["stress"], values["stress"], atoms)
    weighted = weights_of(record, {prop: label.name for prop, label in found.items()}, keys)
    values = {prop: value for prop, value in values.items() if weighted["weights"].get(prop) != 0}
    return values | weighted | {"isolated": is_isolated(record)}


def _family(record: Mapping[str, Any], prefix: str, atoms: Atoms) -> Iterator[tuple[str, list[Label]]]:
    """The labels of one prefix by property; the first of each counts."""
    for prop, bases in NAMES.items():
        labels = []
        for base in bases:
            names = [base]
            if prefix:
                names = [n for n in record if str(n).lower() == prefix + base and n.endswith(base)]
            for name in names:
                value = record.get(name)
                # A bare "magmom" may be the initial moments; a single number is the moment of the whole cell.
                unsure = base == "magmom" and (not prefix or np.shape(value)[:1] != (len(atoms),))
                if value is not None and not unsure:
                    labels.append(Label(name, value))
        if labels:
            yield prop, labels


def _chosen(families: Mapping[str, Mapping[str, list[Label]]], asked: Mapping[str, str]) -> str:
    for prop in ("energy", "forces"):
        if prop in asked:
            prefix = next(p for p in FAMILIES if asked[prop].lower().startswith(p))
            if prefix:
                return prefix
    free = [prop for prop in ("energy", "forces") if prop not in asked]
    return next((prefix for prefix in FAMILIES if any(prop in families[prefix] for prop in free)), "")


def mixed(sources: Mapping[str, int]) -> str | None:
    """A remark on a file with labels of several `sources`: the number of frames with each prefix."""
    if len(sources) < 2:
        return None
    counts = ", ".join(f"{count} with {prefix.upper() or 'bare '}names" for prefix, count in sources.items())
    return (
        f"labels of the frames come from different sources ({counts}): bare names may be those of a "
        "calculator. The options energy_key and forces_key (--energy-key, --forces-key) choose one source"
    )


def stress_of(label: Label, atoms: Atoms) -> np.ndarray:
    """The stress (3, 3) in eV/Å³ from a label that is a stress or, by its name, a virial."""
    full = symmetric(label.value)
    if "virial" not in label.name.lower():
        return full
    if atoms.cell.rank < 3:
        raise LabelError(
            f"found {label.name} of a crystal without a cell, needed a cell: a stress is the virial over its "
            "volume."
        )
    return -full / atoms.get_volume()


def _check_agree(families, chosen: Label, stress: np.ndarray, atoms: Atoms) -> None:
    """Raises LabelError if another stress or virial from the source of `chosen` differs."""
    for other in _beside(chosen, "stress", families):
        apart = np.abs(stress_of(other, atoms) - stress).max()
        if not apart <= APART[0] * np.abs(stress).max() + APART[1]:
            raise LabelError(
                f"found {chosen.name} and {other.name} that contradict each other by {apart:.3g} eV/Å³ (a "
                f"virial is -V σ), needed one stress. Choose by stress_key={other.name} (--stress-key) or "
                f"stress_key={chosen.name}."
            )


def _beside(label: Label, prop: str, families) -> list[Label]:
    """The other labels of a property in the source of `label`."""
    of_source = next(
        (f[prop] for f in families.values() if label.name in [its.name for its in f.get(prop, ())]), []
    )
    return [its for its in of_source if its.name != label.name]


def _note_passed_over(families, found: Mapping[str, Label], asked: Mapping[str, str], keys: Keys) -> None:
    passed = [
        (prop, label.name)
        for family in families.values()
        for prop, labels in family.items()
        for label in labels
        if prop not in asked and not _in_source(label, prop, families, found)
    ]
    if passed:
        taken = ", ".join(dict.fromkeys(label.name for label in found.values())) or "nothing"
        keys.noted[
            f"did not read {', '.join(name for _, name in passed)}: all labels of a crystal come from one "
            f"source, here {taken}. {_remedy(*passed)} all the same"
        ] += 1


def _in_source(label: Label, prop: str, families, found: Mapping[str, Label]) -> bool:
    """True if `label` was taken, comes from the same source as the one taken, or has the same value."""
    taken = found.get(prop)
    if taken is None:
        return False
    if label.name in [taken.name, *(its.name for its in _beside(taken, prop, families))]:
        return True
    return same(taken.value, label.value)


def note_look_alikes(atoms: Atoms, record: Mapping[str, Any], found, keys: Keys) -> None:
    """Notes entries with the name and the shape of a label, for labels that were not read by another name."""
    known = {prefix + base for prefix in FAMILIES for bases in NAMES.values() for base in bases} - {"magmom"}
    for prop, words in WORDS.items():
        if prop in found:
            continue
        for name, value in record.items():
            lower = str(name).lower()
            if lower in known or "weight" in lower or lower.startswith("initial_"):
                continue
            if any(word in lower for word in words) and _has_shape(value, prop, len(atoms)):
                keys.noted[f"{name} looks like {prop} and was not read. {_remedy((prop, name))}"] += 1


def _has_shape(value: Any, prop: str, atoms: int) -> bool:
    if isinstance(value, str | bool | dict) or value is None:
        return False
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return False
    shapes = {
        "energy": [()],
        "forces": [(atoms, 3)],
        "stress": [(6,), (9,), (3, 3)],
        "magmoms": [(atoms,), (atoms, 3)],
    }
    return array.dtype.kind in "iuf" and array.shape in shapes[prop]


def _remedy(*unread: tuple[str, str]) -> str:
    """The option that would read labels that were not read, given as (property, name)."""
    options = ", ".join(f"{prop}_key={name}" for prop, name in unread)
    flags = " ".join(f"--{prop}-key {name}" for prop, name in unread)
    return f"The option {options} ({flags}) reads {'it' if len(unread) == 1 else 'them'}"


def weights_of(record: Mapping[str, Any], names: Mapping[str, str], keys: Keys) -> dict[str, Any]:
    """The weights of a crystal and of its properties by MACE's names: config_weight, config_energy_weight,
    config_forces_weight, config_stress_weight or config_virials_weight.

    `names` are the labels that were read. A label of weight 0 counts as unknown, with a note.
    """
    weights = {}
    for prop, name in names.items():
        kinds = ("virials", "virial", "stress") if "virial" in name.lower() else (prop,)
        own = next((w for k in kinds if (w := record.get(f"config_{k}_weight")) is not None), None)
        if own is not None and float(own) != 1:
            weights[prop] = float(own)
        if weights.get(prop) == 0:
            keys.noted[f"{name} has weight 0 (config_{prop}_weight) and was not read"] += 1
    weight = record.get("config_weight")
    return {"weight": 1.0 if weight is None else float(weight), "weights": weights}


def is_isolated(record: Mapping[str, Any]) -> bool:
    """True if `record` marks an isolated atom, as MACE's training files do: config_type=IsolatedAtom."""
    kind = record.get("config_type")
    return isinstance(kind, str) and "".join(filter(str.isalnum, kind.lower())) in ISOLATED
