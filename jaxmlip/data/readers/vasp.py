"""Runs of VASP: every ionic step of vasprun.xml or OUTCAR.

The energy is the one extrapolated to zero smearing, "energy(sigma->0)", as Materials Project and with it
MPtrj and MatPES have it; ASE converts the stress from VASP's kbar, positive in compression.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.data.readers.common import Keys, crystal, open_bytes, symmetric


def read_vasprun(path: Path, keys: Keys) -> Iterator[LabelledCrystal]:
    yield from _steps(path, "vasp-xml")
    _whole(path, b"</modeling>", "vasprun.xml has no </modeling> at its end: VASP did not finish")


def read_outcar(path: Path, keys: Keys) -> Iterator[LabelledCrystal]:
    yield from _steps(path, "vasp-out")
    _whole(path, b"General timing and accounting", "OUTCAR has no timing at its end: VASP did not finish")


def _steps(path: Path, format: str) -> Iterator[LabelledCrystal]:
    import io

    from ase.io import iread

    with open_bytes(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = file if format == "vasp-xml" else io.TextIOWrapper(file, encoding="utf-8", errors="replace")
        for number, atoms in enumerate(iread(source, index=":", format=format)):
            found = atoms.calc.results if atoms.calc else {}
            stress = found.get("stress")
            yield crystal(
                atoms,
                f"{path} step {number}",
                energy=found.get("energy"),
                forces=found.get("forces"),
                stress=None if stress is None else symmetric(stress),
                magmoms=found.get("magmoms"),
            )


def _whole(path: Path, end: bytes, otherwise: str) -> None:
    last = b""
    with open_bytes(path) as file:
        while piece := file.read(1 << 20):
            last = (last + piece)[-(1 << 16) :]
    if end not in last:
        raise EOFError(otherwise)
