"""Stand-ins for potentials: energies that are known by heart, and a pair potential that compiles nothing."""

from abc import ABC, abstractmethod

import numpy as np
from ase import Atoms

from jaxmlip.crystals.graph import Cutoffs, from_atoms


class StandIn(ABC):
    """What studies ask of a potential; a subclass says what one crystal has."""

    name = "stand-in"
    elements, params = tuple(range(1, 95)), {}
    cutoffs = Cutoffs(2.0)  # Å

    @abstractmethod
    def predict_one(self, species: np.ndarray, positions: np.ndarray, cell: np.ndarray) -> dict:
        """Energy (eV), forces (eV/Å) and stress (eV/Å³) of atomic numbers, positions (Å) and cell (Å)."""

    def graph(self, crystal: Atoms):
        return from_atoms(crystal, self.cutoffs)

    def predict(self, crystals):
        if isinstance(crystals, Atoms):
            return self.predict([crystals])[0]
        return self.predict_graphs([self.graph(crystal) for crystal in crystals], None)

    def predict_graphs(self, graphs, shape) -> list[dict]:
        return [
            self.predict_one(
                np.asarray(g.species), np.asarray(g.positions, float), np.asarray(g.cell[0], float)
            )
            for g in graphs
        ]


class Morse(StandIn):
    """Pairs of any elements: D (x² - 2x) f with x = exp(-a (r - r₀)) and f = (1 - r²/R²)³ up to R.

    Atoms have reference energies too. Metals are at rest near 3.6 Å (fcc); `depth` is D in eV.
    """

    reach, place, width = 4.5, 2.6, 1.6  # R and r₀ in Å, a in 1/Å

    def __init__(self, name: str, depth: float = 0.4):
        self.name, self.depth, self.params = name, depth, {"depth": np.array(depth)}

    def predict_one(self, species, positions, cell) -> dict:
        # Each pair counts half, once from either end; images are as many as the narrowest cell needs.
        heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
        most = np.ceil(self.reach / heights + 1).astype(int)
        shifts = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), -1)
        vectors = (
            positions[None, :, None] - positions[:, None, None] + (shifts.reshape(-1, 3) @ cell)[None, None]
        )
        r = np.linalg.norm(vectors, axis=-1)
        pairs = np.nonzero((r > 0) & (r < self.reach))
        first, vectors, r = pairs[0], vectors[pairs], r[pairs]
        x, f = np.exp(-self.width * (r - self.place)), 1 - (r / self.reach) ** 2
        well, slope = x * x - 2 * x, -2 * self.width * (x * x - x)
        along = self.depth * (slope * f**3 - well * 6 * f**2 * r / self.reach**2) / r  # (dE/dr) / r
        pull = along[:, None] * vectors
        forces = np.zeros(positions.shape)
        np.add.at(forces, first, pull)
        stress = np.einsum("pi,pj->ij", pull, vectors) / 2 / abs(np.linalg.det(cell))
        energy = self.depth * np.sum(well * f**3) / 2 - 0.1 * np.sum(species)
        return {"energy": float(energy), "forces": forces, "stress": stress}


class Mixture(StandIn):
    """E / N = c x (1 - x) + k (V / N - v)², v a mean over elements; eV and Å³."""

    name = "mixture"
    oxide, alloy = 0.9, -0.4  # eV times x (1 - x), per MO and per atom
    stiff = 0.05  # eV/Å⁶ per atom
    sizes = {8: 0.0, 12: 19.0, 20: 28.0, 42: 15.9, 74: 16.2}  # noqa: RUF012

    def predict_one(self, species, positions, cell) -> dict:
        n, volume = len(species), abs(np.linalg.det(cell))
        cations = species[species != 8]
        x = np.mean(cations == cations.max()) if len(set(cations)) > 1 else 0.0
        c = self.oxide / 2 if 8 in species else self.alloy
        off = volume / n - np.mean([self.sizes[int(z)] for z in species])
        energy = n * (c * x * (1 - x) + self.stiff * off**2 - np.mean(species))
        stress = 2 * self.stiff * off * np.eye(3)  # dE/dV
        return {"energy": float(energy), "forces": np.zeros((n, 3)), "stress": stress}
