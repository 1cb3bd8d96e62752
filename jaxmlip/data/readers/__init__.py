"""Reading of files of labelled crystals as a stream: `read_labelled`."""

from __future__ import annotations

import glob
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from lzma import LZMAError
from pathlib import Path
from typing import Any, NamedTuple

from jaxmlip.data.labels import LabelError, LabelledCrystal, functional_name
from jaxmlip.data.readers import (
    ase_files,
    averages,
    json_files,
    phono3py_run,
    phonondb,
    phonopy_run,
    spectra,
    vasp,
)
from jaxmlip.data.readers.common import Frame, Keys, ReadOptions, open_bytes
from jaxmlip.data.readers.common import ReadError as ReadError
from jaxmlip.data.readers.families import mixed
from jaxmlip.system.borders import in_lines

HEAD = 1 << 20  # bytes from the start of a file in which its format is looked for
# Files of chgnet's parser: lists by name, where MPtrj has an object or a number.
COLUMNS = re.compile(rb'\s*\{\s*"(structure|uncorrected_total_energy|energy_per_atom|force)"\s*:\s*\[')
MODES = re.compile(rb"^nqpoint:", re.MULTILINE)  # in all files of frequencies that phonopy writes
NAMED = 5  # crystals left out of a file that its warning names
THERMAL = re.compile(rb"^thermal_properties:", re.MULTILINE)
SKIP = "skip_bad=True (--skip-bad, or data.skip_bad: true) leaves it out and reads the rest."


class Format(NamedTuple):
    """One format: its name in messages, a test whether a file has it, and its reader."""

    about: str
    matches: Callable[[Path, bytes], object]  # takes the name and the first bytes, decompressed
    read: Callable[[Path, Keys], Iterator[Frame]]


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
    "chgnet": Format(
        "lists of chgnet's parse_vasp_dir (.json)",
        lambda path, head: COLUMNS.match(head),
        json_files.read_chgnet,
    ),
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
    "phono3py": Format(
        f"constants of third order of phono3py ({phono3py_run.FILE}), beside its cells",
        lambda path, head: path.name == phono3py_run.FILE,
        phono3py_run.read_third_order,
    ),
    "phonondb": Format(
        f"phononDB-PBE of k_SRME (a folder with {phonondb.FREQUENCIES_FILE} and {phonondb.STRUCTURES_FILE})",
        lambda path, head: path.name == phonondb.FREQUENCIES_FILE or phonondb.is_pair(path),
        phonondb.read_pair,
    ),
    "phonopy-modes": Format(
        "frequencies of phonopy (mesh.yaml, band.yaml)",
        lambda path, head: MODES.search(head),
        spectra.read_phonopy_modes,
    ),
    "pymatgen-modes": Format(
        "phonon band structures of pymatgen (.json)",
        # Band structures of electrons have a lattice_rec as well.
        lambda path, head: (
            _json_with(*spectra.BANDS)(path, head)
            or (_json_with("lattice_rec")(path, head) and _json_with("qpoints")(path, head))
        ),
        spectra.read_pymatgen_modes,
    ),
    "points": Format(
        "tables of phonon frequencies (.phonons.csv, .phonons.txt, .phonons.dat)",
        _named(".phonons.csv", ".phonons.txt", ".phonons.dat"),
        spectra.read_points,
    ),
    "density": Format(
        "phonon densities of states of phonopy (total_dos.dat), beside its phonopy.yaml",
        _named("total_dos.dat"),
        averages.read_density,
    ),
    "thermal": Format(
        "thermal properties of phonopy (thermal_properties.yaml), beside its phonopy.yaml",
        lambda path, head: THERMAL.search(head),
        averages.read_thermal,
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


FOLDERS = ("phonopy", "phonondb")  # formats of several files


def read_labelled(
    path: str | Path | Sequence[str | Path],
    format: str | None = None,
    **options: Any,
) -> Iterator[LabelledCrystal]:
    """The labelled crystals of a file, a folder, a pattern such as "runs/*/vasprun.xml", or several of these.

    In a folder every file of a known format is read, subfolders included, in the order of names. `format` is
    one of FORMATS (default: guessed from the name and the first bytes of each file). `options` are those of
    ReadOptions. Ionic steps of VASP whose electrons did not converge within NELM steps are left out, with a
    warning that counts them, unless `unconverged`. Labels are in the units of Labels; labels that a file does
    not hold are None.

    All labels of a crystal come from one source. Isolated atoms do not count as crystals: they are left out
    unless `isolated` asks for them, and neither `every` nor `limit` counts them. A warning names the labels
    of a file that were not read, and counts their frames.

    Raises FileNotFoundError; ReadError, with the file and the number of crystals read so far, if a file is
    broken or of no known format; LabelError, with file and frame, if a label cannot be true. After a
    LabelError `next` goes on with the next crystal. With `skip_bad` such crystals, and the rest of a broken
    file, are left out with a warning that names them; raises ReadError if nothing is left.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"Found format {format!r}, needed one of {', '.join(FORMATS)}.")
    how = ReadOptions(**options)
    # Checked before the first crystal is asked for, so that mistakes show at once.
    files = find_files(path, format, how.skip_bad)

    def keep(crystal: LabelledCrystal) -> LabelledCrystal:
        labels = replace(crystal.labels.only(how.properties), weight=how.weight * crystal.labels.weight)
        kept = replace(crystal, labels=labels, functional=crystal.functional or how.functional or "")
        if not how.checked:
            return kept
        if kept.isolated:  # it may have no cell
            its = functional_name(kept.functional)
            return replace(kept, labels=labels.check(1, kept.name), functional=its)
        return kept.checked()

    return _Crystals([_File(file, name, how, keep) for file, name in files], how.limit, how.skip_bad)


def find_files(
    path: str | Path | Iterable[str | Path], format: str | None = None, skip_bad: bool = False
) -> list[tuple[Path, str]]:
    """The files (and folders of phonopy) that `read_labelled` would read, with their formats.

    Raises ReadError for a file of no known format; with `skip_bad` it warns, unless nothing else is left.
    """
    if not isinstance(path, str | Path):
        return _of_several(path, format, skip_bad)
    path = Path(path)
    if not path.exists():
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise FileNotFoundError(
                f"{path} is neither a file nor a folder, and as a pattern it matches none."
            )
        return _of_several(matches, format, skip_bad)
    if not path.is_file() and not path.is_dir():
        raise ReadError(f"{path} is a device or a pipe; needed a file or a folder.")
    if format is not None and (path.is_file() or format in FOLDERS):
        return [(path, format)]
    if path.is_file() or _is_unit(path):
        if (name := guess(path)) is None:
            raise ReadError(f"{path} is of no known format. {_known()}")
        return [(path, name)]
    found = list(_in_folder(path, format))
    if not found:
        raise ReadError(f"{path} has no file of a known format. {_known()}")
    return found


def _of_several(paths: Iterable[str | Path], format: str | None, skip_bad: bool) -> list[tuple[Path, str]]:
    found, unknown = [], []
    for path in paths:
        try:
            found += find_files(path, format, skip_bad)
        except ReadError as error:
            if not skip_bad:
                raise
            unknown.append(error)
    if unknown and not found:
        raise unknown[0]
    for error in unknown:
        warnings.warn(f"left out: {str(error).partition('. Known are')[0]}.", stacklevel=3)
    return found


def guess(path: Path) -> str | None:
    """The format of a file by its name and its first bytes, or None."""
    head = b""
    if path.is_file():
        try:
            with open_bytes(path) as file:
                head = file.read(HEAD)
        except (OSError, EOFError, zlib.error, LZMAError):
            pass  # its reader reports the error, if its name determines the reader
    return next((name for name, format in FORMATS.items() if format.matches(path, head)), None)


def _is_unit(folder: Path) -> bool:
    return phonopy_run.is_run(folder) or phonondb.is_pair(folder) or (folder / "data.mdb").is_file()


def _in_folder(folder: Path, format: str | None) -> Iterator[tuple[Path, str]]:
    if _is_unit(folder) and format is None:
        yield folder, guess(folder)
        return
    inside = sorted(folder.iterdir())
    runs = [path for path in inside if "vasprun.xml" in path.name]
    joined = [vasp.outcar_of(path) for path in runs]
    for path in inside:
        if path.is_dir():
            yield from _in_folder(path, format)
            continue
        if not path.is_file():  # reading a pipe would block
            continue
        name = guess(path)
        # The files of these folders by themselves hold no labels.
        if name is None or name in FOLDERS or format not in (None, name):
            continue
        if name == "outcar" and runs and format is None:  # the same run again
            if path not in joined:
                warnings.warn(
                    f"{path} is not read, because {runs[0].name} in the same folder is. Name the file "
                    "itself to read it.",
                    stacklevel=2,
                )
            continue
        yield path, name


class _File:
    """One file being read: its crystals by `advance`, its warnings by `finish`."""

    def __init__(
        self,
        path: Path,
        format: str,
        options: ReadOptions,
        keep: Callable[[LabelledCrystal], LabelledCrystal],
    ):
        self.path, self.about = path, FORMATS[format].about
        self.every, self.isolated, self.keep = options.every, options.isolated, keep
        self.keys = Keys(options)
        self.frames = FORMATS[format].read(path, self.keys)
        self.number = 0  # frames so far
        self.atoms = 0  # isolated atoms among these frames
        self.left_out: list[str] = []
        self.ended = False

    def advance(self) -> LabelledCrystal | None:
        """The next crystal that is asked for, None at the end.

        Raises ReadError or LabelError; the next call goes on after the error where possible.
        """
        while (frame := self._next()) is not None:
            number = self.number
            self.number += 1
            asked = (number - self.atoms) % self.every == 0  # of crystals
            try:
                crystal = frame()
                self.atoms += crystal.isolated
                if crystal.isolated:
                    asked = self.isolated != "left out"
                elif self.isolated == "only":
                    continue
                if asked:
                    return self.keep(crystal)
            except Exception as error:  # parsers may raise anything on hostile files
                if isinstance(error, ImportError | MemoryError):
                    raise
                if not asked:
                    continue
                kind = LabelError if isinstance(error, LabelError) else ReadError
                its = "" if str(self.path) in str(error) else f"{self.path}, after {number} crystals: "
                raise kind(f"{its}{_words(error)}. {SKIP}") from None
        return None

    def _next(self) -> Frame | None:
        if self.ended:
            return None
        try:
            frame = next(self.frames, None)
            self.ended = frame is None
            if self.ended and self.number == 0:
                raise ValueError("it holds no crystal")
            return frame
        except (FileNotFoundError, ImportError, MemoryError):
            raise
        except Exception as error:
            self.ended = True
            raise ReadError(
                f"{self.path} cannot be read as {self.about} beyond {self.number} crystals: "
                f"{_words(error)}. {SKIP}"
            ) from None

    def finish(self) -> None:
        """Warns of what was left out, unless isolated atoms alone are read: the reader of crystals warns."""
        self.frames.close()
        if self.isolated == "only":
            return
        said = [f"{count} of {self.number} frames: {text}" for text, count in self.keys.noted.items()]
        said += filter(None, [mixed(self.keys.sources)])
        if self.atoms:
            said.append(
                f"left out {self.atoms} isolated atom(s), which are no crystals; reference_energies: "
                "isolated (--references isolated) uses their energies"
            )
        if self.left_out:
            bad = in_lines(self.left_out, most=NAMED)
            said.append(f"left out {len(self.left_out)} that cannot be used:{bad}")
        for text in said:
            warnings.warn(f"{self.path}: {text}{'' if text.endswith('.') else '.'}", stacklevel=4)


class _Crystals:
    """The crystals of files one after the other; an iterator that goes on after an error that it raised."""

    def __init__(self, files: Sequence[_File], limit: int | None, skip_bad: bool):
        self.files, self.limit, self.skip_bad = list(reversed(files)), limit, skip_bad
        self.given = 0
        self.bad = ""  # the first reason why something was left out

    def __iter__(self) -> Iterator[LabelledCrystal]:
        return self

    def __next__(self) -> LabelledCrystal:
        while self.files:
            file = self.files[-1]
            if self.given == self.limit:
                file.finish()
                self.files.clear()
                break
            try:
                crystal = file.advance()
            except (ReadError, LabelError) as error:
                if not self.skip_bad:
                    raise
                reason = str(error).removesuffix(SKIP).strip()
                self.bad = self.bad or reason
                file.left_out.append(reason)
                continue
            if crystal is not None:
                self.given += file.isolated == "only" or not crystal.isolated
                return crystal
            file.finish()
            self.files.pop()
        if self.bad and not self.given:
            bad, self.bad = self.bad, ""
            raise ReadError(f"found no crystal that can be used. {bad}")
        raise StopIteration


def _words(error: Exception) -> str:
    kind = "" if isinstance(error, ValueError | EOFError) else f"{type(error).__name__}: "
    return f"{kind}{str(error).strip().rstrip('.')}"


def _known() -> str:
    return "Known are " + "; ".join(f"{name}: {format.about}" for name, format in FORMATS.items()) + "."
