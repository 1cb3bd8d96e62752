"""The pair potential that stands in for networks: its forces and stress are derivatives of its energy."""

import numpy as np
import pytest
from ase.build import bulk
from stand_in import Morse


def test_forces_and_stress_are_differences_of_the_energy():
    pairs, crystal, h = Morse("pairs"), bulk("Cu", a=3.5, cubic=True), 1e-5
    crystal.rattle(0.2, seed=0)
    found = pairs.predict(crystal)

    def energy(moved):
        return pairs.predict(moved)["energy"]

    for atom, axis in ((0, 0), (2, 1), (3, 2)):
        ends = []
        for step in (h, -h):
            moved = crystal.copy()
            moved.positions[atom, axis] += step
            ends.append(energy(moved))
        assert found["forces"][atom, axis] == pytest.approx(-(ends[0] - ends[1]) / (2 * h), abs=1e-6)
    for i, j in ((0, 0), (1, 2)):
        ends = []
        for step in (h, -h):
            strain = np.zeros((3, 3))
            strain[i, j] = strain[j, i] = step / 2 if i != j else step
            moved = crystal.copy()
            moved.set_cell(crystal.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            ends.append(energy(moved))
        slope = (ends[0] - ends[1]) / (2 * h) / crystal.get_volume()
        assert found["stress"][i, j] == pytest.approx(slope, abs=1e-7)
