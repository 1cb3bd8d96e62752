"""The ASE calculator: the only class of the library with state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from ase.calculators.calculator import Calculator as ASECalculator
from ase.calculators.calculator import all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from jaxtyping import Float

from jaxmlip.crystals.batches import InFlight
from jaxmlip.derivatives.hessian import hessian
from jaxmlip.potential import Potential, Prediction

if TYPE_CHECKING:
    from ase import Atoms


class Calculator(ASECalculator):
    """A potential as an ASE calculator, for optimisers, molecular dynamics, filters and vibrations.

    Properties: energy (also as free_energy), forces, stress, and, if the model has them, energies (of each
    atom) and magmoms with their sum magmom; eV, Å, μB, and ASE's Voigt order and sign of stress; in float64,
    as ASE's files require, whatever the potential computes in. Slabs and wires have the stress of
    `Prediction`, molecules none. As atoms move and neighbours change, nothing is recompiled until they exceed
    the spare padding, which then grows by half.

    `potential` is a Potential, or an argument of `jaxmlip.load`: a name or a path. Raises TypeError for
    anything else.
    """

    implemented_properties: ClassVar[list[str]] = [
        *("energy", "free_energy", "energies", "forces", "stress", "magmom", "magmoms")
    ]

    def __init__(self, potential: Potential | str | Path, **kwargs):
        super().__init__(**kwargs)
        if isinstance(potential, str | Path):
            from jaxmlip.zoo.load import load

            potential = load(potential)
        if not hasattr(potential, "predict_graphs"):
            raise TypeError(
                f"found {type(potential).__name__}, needed a potential: jaxmlip.Calculator(jaxmlip.load(…)), "
                "or a name that `jaxmlip models` lists."
            )
        self.potential = potential
        self._compute = InFlight(potential, several=False)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        graph = self.potential.graph(self.atoms)
        if "numbers" in system_changes:  # another crystal, not the same one moved
            self._compute = InFlight(self.potential, several=False)
        self.results = results(self._compute([graph])[0])

    def get_hessian(self, atoms: Atoms | None = None) -> Float[np.ndarray, "n n"]:
        """The exact Hessian ∂²E/∂r∂r of all atoms, (3N, 3N) in eV/Å², symmetric, in float64.

        Rows and columns are in the order x₀ y₀ z₀ x₁ …; constraints are ignored, as ASE's force fields do.
        `atoms` are by default those of the last calculation. It is what `sella.Sella(atoms,
        hessian_function=calculator.get_hessian)` takes. Raises ValueError if there are no atoms, and as
        `Potential.graph` does.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise ValueError("found no atoms, needed get_hessian(atoms), or a calculation before.")
        found = hessian(self.potential, atoms).astype(float)
        return (found + found.T) / 2


def results(prediction: Prediction) -> dict[str, float | np.ndarray]:
    """A prediction with ASE's names and shapes, in float64, as which ASE's databases read bytes."""
    numbers = {name: np.asarray(value, np.float64) for name, value in prediction.items()}
    energy = float(numbers["energy"])
    found = {
        "energy": energy,
        "free_energy": energy,
        "forces": numbers["forces"],
    }
    if "site_energies" in numbers:
        found["energies"] = numbers["site_energies"]
    if "stress" in numbers:
        found["stress"] = full_3x3_to_voigt_6_stress(numbers["stress"])
    if "magmoms" in numbers:
        found |= {"magmoms": numbers["magmoms"], "magmom": float(numbers["magmoms"].sum())}
    return found
