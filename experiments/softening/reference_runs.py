"""The phonopy and phono3py runs with DFT forces or force constants that experiments compare with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxmlip.studies.study import data_file

if TYPE_CHECKING:
    from jaxmlip.phonons.phonopy_files import PhonopyRun


class Reference(NamedTuple):
    """A run of phonopy or phono3py, and how its DFT was done."""

    name: str
    path: str  # below the folder of all data
    functional: str
    supercell: tuple[int, int, int] | None = None  # where no file says so

    def read(self, data: Path | None) -> PhonopyRun:
        """Raises MissingDataError, or as `read_phonopy` does."""
        from jaxmlip.phonons.phonopy_files import read_phonopy

        return read_phonopy(data_file(data, self.path), self.supercell)


PHONOPY, PHONO3PY = "phonopy_examples_PBE", "phono3py_examples"
RUNS = (
    Reference("NaCl", f"{PHONOPY}/NaCl", "PBE"),
    Reference("NaCl (random)", f"{PHONOPY}/NaCl-rd", "PBE"),
    Reference("NaCl (DFPT)", f"{PHONOPY}/NaCl-VASPdfpt", "PBE", (2, 2, 2)),
    Reference("MgO", f"{PHONOPY}/MgO", "PBE"),
    Reference("Si", f"{PHONOPY}/Si", "PBE"),
    Reference("Si (V0)", f"{PHONOPY}/Si-gruneisen/orig", "PBE", (2, 2, 2)),
    Reference("Si (larger)", f"{PHONOPY}/Si-gruneisen/plus", "PBE", (2, 2, 2)),
    Reference("Si (smaller)", f"{PHONOPY}/Si-gruneisen/minus", "PBE", (2, 2, 2)),
    Reference("MgB2", f"{PHONOPY}/MgB2", "PBE"),
    Reference("SiO2 (stishovite)", f"{PHONOPY}/SiO2-HP", "PBE"),
    Reference("CaTiO3 (cubic)", f"{PHONOPY}/CaTiO3", "PBE"),
    Reference("Si (0.03 Å)", f"{PHONO3PY}/Si-PBE", "PBE"),
    Reference("Si (PBEsol)", f"{PHONO3PY}/Si-PBEsol", "PBEsol"),
    Reference("NaCl (PBEsol)", f"{PHONO3PY}/NaCl-rd/phono3py_params_NaCl.yaml.xz", "PBEsol"),
    Reference("AlN (PBEsol)", f"{PHONO3PY}/AlN-rd/phonopy_params_mp-661.yaml.xz", "PBEsol"),
)
