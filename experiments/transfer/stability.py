"""Formation and decomposition energies of crystals from energies of a potential or of DFT."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np


def formation_energies(
    crystals: Sequence[np.ndarray], energies: Sequence[float], asked: Sequence[bool]
) -> list[float]:
    """Energies per atom (eV) above the lowest crystals of the elements; NaN if one is missing.

    `crystals` are the atomic numbers of each.
    """
    lowest: dict[int, float] = {}
    for species, e in zip(crystals, energies, strict=True):
        if (species == species[0]).all():
            z = int(species[0])
            lowest[z] = min(lowest.get(z, math.inf), e / len(species))
    return [
        e / len(species) - np.mean([lowest.get(int(z), math.nan) for z in species])
        if wanted and len(set(species)) > 1
        else math.nan
        for species, e, wanted in zip(crystals, energies, asked, strict=True)
    ]


def decomposition_energies(
    crystals: Sequence[np.ndarray], energies: Sequence[float], asked: Sequence[bool]
) -> list[float]:
    """Energies per atom (eV), by pymatgen's phase diagram of all crystals in the chemical system of each.

    For a stable compound it is negative, by the cost of its decomposition. NaN for elements, and if an
    element of the system is not among the crystals.
    """
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition, Element

    entries = [
        PDEntry(Composition({Element.from_Z(int(z)): int(n) for z, n in zip(*counted, strict=True)}), e)
        for counted, e in zip((np.unique(s, return_counts=True) for s in crystals), energies, strict=True)
    ]
    systems = [frozenset(species.tolist()) for species in crystals]
    elements = {next(iter(system)) for system in systems if len(system) == 1}
    found = [math.nan] * len(entries)
    for system in sorted(
        {s for s, wanted in zip(systems, asked, strict=True) if wanted and len(s) > 1}, key=sorted
    ):
        if not system <= elements:
            continue
        with warnings.catch_warnings():
            # Formulas are sorted by it, and noble gases have none.
            warnings.filterwarnings("ignore", message="No Pauling electronegativity")
            diagram = PhaseDiagram([e for e, s in zip(entries, systems, strict=True) if s <= system])
            for k, its in enumerate(systems):
                if its == system and asked[k]:
                    found[k] = float(diagram.get_phase_separation_energy(entries[k]))
    return found
