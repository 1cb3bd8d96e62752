"""The ASE calculator: the only class of the library with state."""

from __future__ import annotations

from typing import ClassVar

from ase.calculators.calculator import Calculator as ASECalculator
from ase.calculators.calculator import all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from jaxmlip import batching
from jaxmlip.graph import CrystalGraph
from jaxmlip.potential import Potential

SPARE = 0.15  # room for neighbours that come and go, as a fraction
GROWTH = 0.5  # and once they did not fit


class Calculator(ASECalculator):
    """A potential as an ASE calculator, for optimisers, molecular dynamics, filters and vibrations.

    Properties: energy (also as free_energy), forces, stress, energies (of each atom), and magmoms where
    the model has them; eV, Å, μB, and ASE's Voigt order and sign of stress. As atoms move and neighbours
    come and go, nothing is compiled anew until they exceed the spare room, which then grows by half.
    """

    implemented_properties: ClassVar[list[str]] = [
        *("energy", "free_energy", "energies", "forces", "stress", "magmoms")
    ]

    def __init__(self, potential: Potential, **kwargs):
        super().__init__(**kwargs)
        self.potential = potential
        self._room: batching.Capacity | None = None

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        graph = self.potential.graph(self.atoms)
        if "numbers" in system_changes:  # another crystal, not the same one moved
            self._room = None
        found = self.potential.predict_graphs([graph], self._room_for(graph))[0]
        self.results = {
            "energy": found["energy"],
            "free_energy": found["energy"],
            "energies": found["site_energies"],
            "forces": found["forces"],
            "stress": full_3x3_to_voigt_6_stress(found["stress"]),
        }
        if "magmoms" in found:
            self.results["magmoms"] = found["magmoms"]

    def _room_for(self, graph: CrystalGraph) -> batching.Capacity:
        if self._room is None:
            self._room = batching.capacity([graph], SPARE)
        elif not self._room.holds(batching.need([graph])):
            grown = batching.capacity([graph], GROWTH)
            self._room = batching.Capacity(*map(max, grown, self._room))
        return self._room
