"""Constants of third order as phono3py writes them: the supercell at rest, with columns of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.readers.common import Frame, Keys, crystal

FILE = "fc3.hdf5"


def read_third_order(path: Path, keys: Keys) -> Iterator[Frame]:
    """fc3.hdf5 with the cells beside it, as `phonons.phono3py_files.read_third_order` reads it.

    Pairs of atoms whose constants are all zero, as a cutoff leaves them, count as not known.
    """
    from jaxmlip.phonons.phono3py_files import read_third_order as read

    constants = read(path)
    supercell, atoms = constants.cells.supercell, len(constants.cells.supercell)
    first = (3 * constants.cells.p2s[:, None] + np.arange(3)).ravel()
    pairs = np.stack(np.meshgrid(first, np.arange(3 * atoms), indexing="ij"), axis=-1).reshape(-1, 2)
    # (n, N, N, 3, 3, 3) to a row of (N, 3) for each pair of a coordinate in the primitive cell and another
    third = constants.fc3.transpose(0, 3, 1, 4, 2, 5).reshape(len(pairs), atoms, 3)
    known = np.abs(third).max(axis=(1, 2)) > 0

    def at_rest() -> LabelledCrystal:
        found = crystal(supercell, f"{path} supercell", path.resolve().parent.name)
        return replace(found, labels=Labels(pairs=pairs[known], third=third[known]))

    yield at_rest
