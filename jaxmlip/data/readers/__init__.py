"""Files of labelled crystals, read as a stream: `read_labelled`."""

from __future__ import annotations

import glob
import itertools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from lzma import LZMAError
from pathlib import Path
from typing import NamedTuple

from jaxmlip.data.labels import PROPERTIES, LabelError, LabelledCrystal
from jaxmlip.data.readers import ase_files, json_files, phonopy_run, vasp
from jaxmlip.data.readers.common import Keys, open_bytes
from jaxmlip.data.readers.common import ReadError as ReadError

HEAD = 1 << 20  # bytes from the start of a file that must tell its format


class Format(NamedTuple):
    """One format: what it is called in words, whether a file is of it, and its reader."""

    about: str
    matches: Callable[[Path, bytes], object]  # truth of it; name and first bytes, decompressed
    read: Callable[[Path, Keys], Iterator[LabelledCrystal]]


def _named(*ends: str) -> Callable[[Path, bytes], bool]:
    def matches(path: Path, head: bytes) -> bool:
        name = path.name.lower()
        return any(name.endswith((end, end + ".gz", end + ".xz")) for end in ends)

    return matches


def _json_with(*names: str) -> Callable[[Path, bytes], bool]:
    def matches(path: Path, head: bytes) -> bool:
        return head.lstrip()[:1] in (b"{", b"[") and any(f'"{name}"'.encode() in head for name in names)

    return matches


def _is_output(path: Path, name: str) -> bool:
    return name in path.name and ".tar" not in path.name  # vasprun.xml-001, OUTCAR.relax2.gz, ...


FORMATS: dict[str, Format] = {
    "extxyz": Format("extended XYZ (.extxyz, .xyz)", _named(".extxyz", ".xyz"), ase_files.read_extxyz),
    "traj": Format(
        "ASE trajectory (.traj)", lambda path, head: head.startswith(b"- of Ulm"), ase_files.read_trajectory
    ),
    "db": Format(
        "ASE database (.db)", lambda path, head: head.startswith(b"SQLite format 3"), ase_files.read_sqlite
    ),
    "aselmdb": Format(
        "ASE database in LMDB (.aselmdb, .lmdb)",
        lambda path, head: path.suffix in (".aselmdb", ".lmdb") or (path / "data.mdb").is_file(),
        ase_files.read_lmdb,
    ),
    "wbm": Format("WBM high-energy states (.json)", _json_with("vasp_f"), json_files.read_wbm),
    "mlearn": Format("mlearn and maml (.json)", _json_with("virial_stress"), json_files.read_mlearn),
    "mptrj": Format(
        "MPtrj and MP-r2SCAN (.json)",
        _json_with("uncorrected_total_energy", "corrected_total_energy"),
        json_files.read_mptrj,
    ),
    "matpes": Format("MatPES (.json)", _json_with("matpes_id"), json_files.read_matpes),
    "phonopy": Format(
        "phonopy (a folder, or its yaml file, with FORCE_SETS or FORCE_CONSTANTS beside it)",
        lambda path, head: path.name in (*phonopy_run.YAML, *phonopy_run.DATA) or phonopy_run.is_run(path),
        phonopy_run.read_phonopy_run,
    ),
    "vasprun": Format(
        "VASP (vasprun.xml)",
        lambda path, head: (
            re.match(rb"\s*<(\?xml[^>]*>\s*<)?modeling>", head) or _is_output(path, "vasprun.xml")
        ),
        vasp.read_vasprun,
    ),
    "outcar": Format("VASP (OUTCAR)", lambda path, head: _is_output(path, "OUTCAR"), vasp.read_outcar),
}


def read_labelled(
    path: str | Path | Sequence[str | Path],
    format: str | None = None,
    *,
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    magmoms_key: str | None = None,
    material_key: str | None = None,
    functional_key: str | None = None,
    functional: str | None = None,
    unconverged: bool = False,
    properties: Sequence[str] = PROPERTIES,
    weight: float = 1.0,
    every: int = 1,
    limit: int | None = None,
    checked: bool = True,
) -> Iterator[LabelledCrystal]:
    """The labelled crystals of a file, a folder, a pattern such as "runs/*/vasprun.xml", or several of these.

    In a folder every file of a known format is read, with those of its folders, in the order of names.
    `format` is one of FORMATS, guessed from the name and the first bytes of each file if not given. The keys
    are the names under which files keep a property, where they are not the usual ones; `functional` is that
    of crystals of which the file does not say it. Ionic steps of VASP
    whose electrons did not converge within NELM steps are left out, with a warning that counts them, unless
    `unconverged`. Of each property only
    those in `properties` are kept, of each file every `every`-th crystal, and `limit` crystals in all. Where
    `checked` is false they come as they are, for who leaves out those that LabelledCrystal.checked refuses.
    Labels are in the units of Labels; what a file does not hold is None.

    Raises FileNotFoundError; ReadError naming the file, and how many of its crystals were read, where it is
    broken or of no known format; LabelError naming file and frame where a label cannot be true, after which
    `next` goes on with the crystal behind it.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"Found format {format!r}, needed one of {', '.join(FORMATS)}.")
    if wrong := sorted(set(properties) - set(PROPERTIES)):
        raise ValueError(f"Found properties {', '.join(wrong)}, needed some of {', '.join(PROPERTIES)}.")
    if every < 1:
        raise ValueError(f"Found every={every}, needed a number from 1.")
    keys = Keys(energy_key, forces_key, stress_key, magmoms_key, material_key, functional_key, unconverged)
    files = find_files(path, format)  # before the first crystal is asked for, so that mistakes show at once
    found = itertools.chain.from_iterable(
        itertools.islice(_read(file, FORMATS[name], keys), 0, None, every) for file, name in files
    )

    def keep(crystal: LabelledCrystal) -> LabelledCrystal:
        kept = replace(
            crystal,
            labels=replace(crystal.labels.only(properties), weight=weight),
            functional=crystal.functional or functional or "",
        )
        return kept.checked() if checked else kept

    return map(keep, itertools.islice(found, limit))


def find_files(path: str | Path | Iterable[str | Path], format: str | None = None) -> list[tuple[Path, str]]:
    """Each file (or folder of phonopy) that `read_labelled` would read, with its format."""
    if not isinstance(path, str | Path):
        return [found for each in path for found in find_files(each, format)]
    path = Path(path)
    if not path.exists():
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise FileNotFoundError(f"{path} is no file or folder, and no pattern that matches one.")
        return [found for each in matches for found in find_files(each, format)]
    if format is not None and (path.is_file() or format == "phonopy"):
        return [(path, format)]
    if path.is_file() or _is_unit(path):
        if (name := guess(path)) is None:
            raise ReadError(f"{path} is of no known format. {_known()}")
        return [(path, name)]
    found = list(_in_folder(path, format))
    if not found:
        raise ReadError(f"{path} has no file of a known format. {_known()}")
    return found


def guess(path: Path) -> str | None:
    """The format of a file by its name and its first bytes, or None."""
    head = b""
    if path.is_file():
        try:
            with open_bytes(path) as file:
                head = file.read(HEAD)
        except (OSError, EOFError, zlib.error, LZMAError):
            pass  # its reader will say what is wrong, if its name tells which
    return next((name for name, format in FORMATS.items() if format.matches(path, head)), None)


def _is_unit(folder: Path) -> bool:
    return phonopy_run.is_run(folder) or (folder / "data.mdb").is_file()


def _in_folder(folder: Path, format: str | None) -> Iterator[tuple[Path, str]]:
    if _is_unit(folder) and format is None:
        yield folder, guess(folder)
        return
    inside = sorted(folder.iterdir())
    run = any("vasprun.xml" in path.name for path in inside)
    for path in inside:
        if path.is_dir():
            yield from _in_folder(path, format)
            continue
        name = guess(path)
        # OUTCAR beside vasprun.xml is the same run again; yaml files of phonopy alone hold no labels.
        if name is None or name == "phonopy" or (name == "outcar" and run) or format not in (None, name):
            continue
        yield path, name


def _read(path: Path, format: Format, keys: Keys) -> Iterator[LabelledCrystal]:
    number = 0
    try:
        for crystal in format.read(path, keys):
            yield crystal
            number += 1
        if number == 0:
            raise ValueError("it holds no crystal")
    except LabelError as error:
        raise LabelError(f"{path}, after {number} crystals: {error}") from None
    except FileNotFoundError:
        raise
    except Exception as error:  # hostile files make parsers raise whatever they stumble over
        if isinstance(error, ImportError | MemoryError):
            raise
        kind = "" if isinstance(error, ValueError | EOFError) else f"{type(error).__name__}: "
        before = f" limit={number} reads what comes before." if number else ""
        raise ReadError(
            f"{path} cannot be read as {format.about} beyond {number} crystals: "
            f"{kind}{str(error).strip().rstrip('.')}.{before}"
        ) from None


def _known() -> str:
    return "Known are " + "; ".join(f"{name}: {format.about}" for name, format in FORMATS.items()) + "."
