"""A stand-in for potentials whose energies are known by heart."""

from abc import ABC, abstractmethod

import numpy as np
from ase import Atoms

from jaxmlip.crystals.graph import from_atoms


class StandIn(ABC):
    """What studies ask of a potential; a subclass says what one crystal has."""

    name = "stand-in"
    elements, params = tuple(range(1, 95)), {}
    cutoff = 2.0  # Å

    @abstractmethod
    def predict_one(self, species: np.ndarray, positions: np.ndarray, cell: np.ndarray) -> dict:
        """Energy (eV), forces (eV/Å) and stress (eV/Å³) of atomic numbers, positions (Å) and cell (Å)."""

    def graph(self, crystal: Atoms):
        return from_atoms(crystal, self.cutoff)

    def predict(self, crystals: list[Atoms]) -> list[dict]:
        return self.predict_graphs([self.graph(crystal) for crystal in crystals], None)

    def predict_graphs(self, graphs, shape) -> list[dict]:
        return [
            self.predict_one(
                np.asarray(g.species), np.asarray(g.positions, float), np.asarray(g.cell[0], float)
            )
            for g in graphs
        ]
