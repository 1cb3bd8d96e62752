"""Runs of VASP: every ionic step of vasprun.xml or OUTCAR.

The energy is extrapolated to zero smearing, "energy(sigma->0)", as in Materials Project, MPtrj and MatPES;
ASE converts the stress from VASP's kbar, positive in compression.

Magnetic moments are only in OUTCAR; those of the OUTCAR beside a vasprun.xml are joined to its steps.

If the electrons do not converge within NELM steps, energy and forces are not those of the crystal, but VASP
goes on to the next ionic step.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterator
from functools import partial
from lzma import LZMAError
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxmlip.data.readers.common import Frame, Keys, crystal, open_bytes, symmetric

XML = re.compile(rb"<calculation>|<scstep>|</calculation>|name=\"NELM\"[^>]*>\s*(\d+)")
# VASP's tags that determine the functional; PAW stands for the kind of the pseudopotentials.
XML_HEAD = re.compile(
    rb"name=\"GGA\">\s*(?P<GGA>[^<\s]+)|name=\"METAGGA\">\s*(?P<METAGGA>[^<\s]+)"
    rb"|name=\"LDAU\">\s*(?P<LDAU>[TF])|name=\"LHFCALC\">\s*(?P<LHFCALC>[TF])"
    rb"|name=\"LUSE_VDW\">\s*(?P<LUSE_VDW>[TF])|name=\"IVDW\">\s*(?P<IVDW>\d+)"
    rb"|<c>\s*(?P<PAW>PAW\w*)\s"
)
TEXT_HEAD = re.compile(
    rb"^\s+GGA +=\s*(?P<GGA>\S+)|^\s+METAGGA *=\s*(?P<METAGGA>\S+)|(?P<LDAU>LDA\+U) is selected"
    rb"|^\s+LHFCALC *=\s*(?P<LHFCALC>[TF])|^\s+LUSE_VDW *=\s*(?P<LUSE_VDW>[TF])"
    rb"|^\s+IVDW *=\s*(?P<IVDW>\d+)|^\s*(?:TITEL *=|POTCAR:) *(?P<PAW>PAW\w*)\s"
)
GGA = {"PE": "PBE", "PS": "PBEsol", "CA": "LDA", "RP": "RPBE", "91": "PW91"}
META = {"SCAN": "SCAN", "R2SCAN": "r2SCAN"}
POTENTIALS = {"PAW_PBE": "PBE", "PAW": "LDA", "PAW_GGA": "PW91"}  # if GGA is not set
# The line that ends an ionic step, as in ASE's reader.
TEXT = re.compile(
    rb"Iteration +\d+\(|EDIFF is reached|FREE ENERGIE OF THE ION-ELECTRON SYSTEM|NELM += +(\d+)"
)
END = b"FREE ENERGIE OF THE ION-ELECTRON SYSTEM"
MOMENTS = re.compile(rb"\s*magnetization \(([xyz])\)")  # y and z if spins are not collinear
SAME_FORCE = 1e-4  # eV/Å; OUTCAR has six digits after the point
PACKED = (".gz", ".bz2", ".xz")


def read_vasprun(path: Path, keys: Keys) -> Iterator[Frame]:
    functional = _functional(path, XML_HEAD, b"<calculation>")
    yield from _steps(path, "vasp-xml", XML, keys, functional, outcar_of(path))
    _whole(path, b"</modeling>", "vasprun.xml has no </modeling> at its end: VASP did not finish")


def read_outcar(path: Path, keys: Keys) -> Iterator[Frame]:
    yield from _steps(path, "vasp-out", TEXT, keys, _functional(path, TEXT_HEAD, b"Iteration "), path)
    _whole(path, b"General timing and accounting", "OUTCAR has no timing at its end: VASP did not finish")


def outcar_of(vasprun: Path) -> Path | None:
    """The OUTCAR of the run whose vasprun.xml this is, compressed or not: OUTCAR.relax1.gz beside
    vasprun.xml.relax1; None if there is none."""
    if "vasprun.xml" not in vasprun.name:
        return None
    name = vasprun.name.replace("vasprun.xml", "OUTCAR").removesuffix(vasprun.suffix * _packed(vasprun))
    names = (name, *(name + end for end in PACKED))
    return next((path for n in names if (path := vasprun.with_name(n)).is_file()), None)


def _packed(path: Path) -> bool:
    return path.suffix in PACKED


def _steps(
    path: Path, format: str, marks: re.Pattern, keys: Keys, functional: str, outcar: Path | None
) -> Iterator[Frame]:
    import io

    from ase.io import iread

    converged, allowed = _convergence(path, marks)
    left_out = 0 if keys.naming.unconverged else converged.count(False)
    if left_out:
        said = (
            f"{left_out} of {len(converged)} ionic steps whose electrons did not converge within "
            f"NELM={allowed} steps"
        )
        if left_out == len(converged):
            raise ValueError(f"it has only {said}. unconverged=True (--unconverged) reads them")
        warnings.warn(f"{path}: left out {said}. unconverged=True (--unconverged) reads them.", stacklevel=2)
    moments = _Moments(outcar, keys)
    with open_bytes(path) as file:
        source = file if format == "vasp-xml" else io.TextIOWrapper(file, encoding="utf-8", errors="replace")
        steps = enumerate(iread(source, index=":", format=format))
        while True:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                number, atoms = next(steps, (-1, None))
            if atoms is None:
                return
            if left_out and number < len(converged) and not converged[number]:
                continue
            found = atoms.calc.results if atoms.calc else {}
            stress = found.get("stress")
            yield partial(
                crystal,
                atoms,
                f"{path} step {number}",
                functional=functional,
                energy=found.get("energy"),
                forces=found.get("forces"),
                stress=None if stress is None else symmetric(stress),
                magmoms=moments.of(found.get("forces")),
            )


class _Moments:
    """Magnetic moments of the ionic steps of an OUTCAR, found by the forces of the step.

    Step numbers do not identify a step: an OUTCAR may have steps that vasprun.xml lacks, such as those of a
    force field.
    """

    def __init__(self, outcar: Path | None, keys: Keys):
        self.outcar, self.keys = outcar, keys
        self.steps = iter(()) if outcar is None else _magnetic_steps(outcar)

    def of(self, forces: Float[np.ndarray, "N 3"] | None) -> Float[np.ndarray, "N 3"] | None:
        """The moments (μB) of the next step with these `forces` (eV/Å), along x, y, z; None: not known."""
        if forces is None:
            return None
        try:
            for printed, moments in self.steps:
                if printed.shape == forces.shape and np.abs(printed - forces).max() < SAME_FORCE:
                    return moments
        except (OSError, EOFError, ValueError, zlib.error, LZMAError) as error:
            self.keys.noted[f"without magnetic moments: {self.outcar} cannot be read ({error})"] += 1
            self.steps = iter(())
            return None
        if self.outcar is not None:
            self.keys.noted[f"without magnetic moments: {self.outcar} has no step of these forces"] += 1
        return None


def _magnetic_steps(
    outcar: Path,
) -> Iterator[tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, "N 3"] | None]]:
    """Forces and moments (along x, y, z) of each complete ionic step of an OUTCAR."""
    forces, moments = np.zeros((0, 3)), {}
    with open_bytes(outcar) as file:
        for line in file:
            if b"TOTAL-FORCE" in line:
                forces = np.array([row[3:6] for row in _table(file)]).reshape(-1, 3)
            elif b"magnetization (" in line and (axis := MOMENTS.match(line)):
                moments[axis[1]] = np.array([row[-1] for row in _table(file)])
            elif END in line:
                axes = [moments.get(axis, np.zeros(len(forces))) for axis in (b"x", b"y", b"z")]
                whole = moments and all(len(m) == len(forces) for m in axes)
                yield forces, np.column_stack(axes) if whole else None
                moments = {}


def _table(file) -> Iterator[list[float]]:
    """The rows of a table of OUTCAR as numbers, without its heading, dashes and blank lines."""
    begun = False
    for line in file:
        words = line.split()
        try:
            row = [float(word) for word in words]
        except ValueError:
            row = []
        if row:
            begun = True
            yield row
        elif begun or (words and not (line.lstrip().startswith((b"#", b"-")))):
            return


def _functional(path: Path, settings: re.Pattern, end: bytes) -> str:
    """The functional by the settings before the first step, or "" if they do not determine it."""
    found: dict[str, str] = {}
    with open_bytes(path) as file:
        for line in file:
            if end in line:
                break
            for match in settings.finditer(line):
                ((tag, value),) = ((k, v) for k, v in match.groupdict().items() if v is not None)
                value = value.decode("ascii", "replace")
                # Pseudopotentials of two kinds do not determine a functional.
                found[tag] = "" if tag == "PAW" and found.get(tag, value) != value else value
    if "T" in (found.get("LHFCALC"), found.get("LUSE_VDW")) or int(found.get("IVDW", "0")):
        return ""
    if (meta := found.get("METAGGA", "F")) in ("F", "--"):
        gga = found.get("GGA", "--")
        name = GGA.get(gga, "") if gga != "--" else POTENTIALS.get(found.get("PAW", ""), "")
    else:
        name = META.get(meta.upper(), "")
    return f"{name}+U" if name and found.get("LDAU") in ("T", "LDA+U") else name


def _convergence(path: Path, marks: re.Pattern) -> tuple[list[bool], int | None]:
    """Whether the electrons of each complete ionic step converged, and how many steps they were allowed."""
    found: list[tuple[int, bool]] = []  # electronic steps, and whether VASP says that they converged
    taken, enough, allowed = 0, False, None
    with open_bytes(path) as file:
        for line in file:
            for mark in marks.finditer(line):
                word = mark.group()
                if mark.group(1):
                    allowed = int(mark.group(1))
                elif word == b"<calculation>":
                    taken = 0
                elif word == b"EDIFF is reached":
                    enough = True
                elif word == b"<scstep>" or word.startswith(b"Iteration"):
                    taken += 1
                else:
                    found.append((taken, enough))
                    taken, enough = 0, False
    # More steps than allowed belong to several loops, as in linear response.
    return [taken != allowed or enough for taken, enough in found], allowed


def _whole(path: Path, end: bytes, otherwise: str) -> None:
    last = b""
    with open_bytes(path) as file:
        while piece := file.read(1 << 20):
            last = (last + piece)[-(1 << 16) :]
    if end not in last:
        raise EOFError(otherwise)
