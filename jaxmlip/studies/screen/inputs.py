"""Crystals of a screening, from files, folders, patterns and databases.

What cannot be read is no error, but a crystal that failed, with a name and a reason.
"""

from __future__ import annotations

import glob
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmlip.crystals.atoms import as_atoms
from jaxmlip.crystals.structures import Found, read_crystals
from jaxmlip.data.readers.common import open_bytes
from jaxmlip.system.borders import shallow

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

IDS = ("material_id", "mp_id", "matpes_id", "task_id", "id", "name")  # of documents, in this order
STRUCTURES = ("structure", "final_structure", "initial_structure")  # in documents
CUT = "cannot be read beyond"  # in the warning of `read_crystals` about a file that ends early


class Given(NamedTuple):
    """A crystal as it was given, or the reason why there is none."""

    name: str
    atoms: Atoms | None
    failed: str = ""
    notes: tuple[str, ...] = ()  # what its reader warned of


def named(crystals: Mapping[str, Any] | Iterable[Atoms | Structure | Given]) -> Iterator[Given]:
    """Crystals of a program, by their names or numbers from 0 on."""
    pairs = crystals.items() if isinstance(crystals, Mapping) else enumerate(crystals)
    for name, crystal in pairs:
        if isinstance(crystal, Given):
            yield crystal
        else:
            yield _converted(str(name), crystal)


def _converted(name: str, crystal: Any) -> Given:
    try:
        return Given(name, as_atoms(crystal))
    except (ValueError, TypeError) as error:
        return Given(name, None, str(error))


def read_inputs(paths: Sequence[Path], limit: int | None = None, out: Path | None = None) -> Iterator[Given]:
    """The crystals in files, at most `limit` from each; see `files_of` for `paths` and `out`."""
    for path in files_of(paths, out):
        yield from _crystals_of(path, limit)


def files_of(paths: Sequence[Path], out: Path | None = None) -> list[Path]:
    """The files that are meant by files, folders and patterns such as "cifs/*.cif", each once.

    In a folder every file counts, those of its folders too, but hidden ones and those below `out`. Brackets
    in the name of a file that exists are no pattern. Raises FileNotFoundError if nothing is there.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_file():
            found[path] = None
            continue
        several = (
            [path] if path.is_dir() else [Path(each) for each in sorted(glob.glob(str(path), recursive=True))]
        )
        if not several:
            raise FileNotFoundError(
                f"{path} is neither a file nor a folder, and as a pattern it matches none."
            )
        for each in several:
            found |= dict.fromkeys(_below(each, out) if each.is_dir() else [each])
    if not found:
        raise FileNotFoundError(
            f"found no file in {', '.join(map(str, paths)) or 'nothing'}, needed one or more."
        )
    return list(found)


def _below(folder: Path, out: Path | None) -> list[Path]:
    own = None if out is None else out.resolve()
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (own is None or own not in path.resolve().parents)
    ]


@contextmanager
def noted() -> Iterator[list[str]]:
    """The warnings of a block, each once, in the list when the block has ended.

    Packages say what is deprecated once for a process. Rows would depend on kills, so that it is left out.
    """
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)
        yield notes
    notes += dict.fromkeys(str(w.message) for w in said)


def _crystals_of(path: Path, limit: int | None) -> Iterator[Given]:
    if path.name.endswith((".json", ".json.gz")):
        documents = _documents(path)
        if documents is not None:
            yield from _of_documents(path, documents, limit)
            return
    with noted() as texts:
        try:
            frames = read_crystals(path, limit, skip_bad=True)
        except Exception as error:  # readers of a hundred formats raise any exception
            yield Given(str(path), None, str(error))
            return
    cut = [text for text in texts if CUT in text]
    notes = tuple(text for text in texts if text not in cut)
    for k, atoms in enumerate(frames):
        yield Given(Found(path, k, atoms).name, atoms, notes=notes)
    for text in cut:
        yield Given(f"{path} [{len(frames)} …]", None, text.removesuffix("; the rest is left out."))


def _documents(path: Path) -> dict[str, Any] | None:
    """Documents with structures of pymatgen by their ids; None for a file of another kind."""
    try:
        with open_bytes(path) as file, shallow():
            found = json.load(file)
    except (ValueError, OSError, EOFError, RecursionError):
        return None  # the reader of crystals says what is wrong
    if isinstance(found, dict):
        if "lattice" in found or any(name in found for name in STRUCTURES):
            return {"": found}
        if "ids" in found and "nextid" in found:  # ASE's database
            return None
        its = found
    elif isinstance(found, list):
        its = {_id_of(document, k): document for k, document in enumerate(found)}
        if len(its) < len(found):  # ids are not unique
            its = {str(k): document for k, document in enumerate(found)}
    else:
        return None
    return its if any(_structure_in(document) for document in its.values()) else None


def _id_of(document: Any, k: int) -> str:
    if isinstance(document, dict):
        return str(next((document[name] for name in IDS if document.get(name)), k))
    return str(k)


def _structure_in(document: Any) -> dict[str, Any] | None:
    if not isinstance(document, dict):
        return None
    if "lattice" in document and "sites" in document:
        return document
    return next((document[name] for name in STRUCTURES if isinstance(document.get(name), dict)), None)


def _of_documents(path: Path, documents: Mapping[str, Any], limit: int | None) -> Iterator[Given]:
    from pymatgen.core import Structure

    for k, (key, document) in enumerate(documents.items()):
        if k == limit:
            return
        name, its = f"{path} {key}".strip(), _structure_in(document)
        if its is None:
            yield Given(
                name, None, f"{name} has no structure, needed one of pymatgen under {STRUCTURES[0]!r}."
            )
            continue
        try:
            structure = Structure.from_dict(its)
        except Exception as error:  # documents may hold anything
            yield Given(name, None, f"{name} is no structure of pymatgen ({type(error).__name__}: {error}).")
            continue
        yield _converted(name, structure)
