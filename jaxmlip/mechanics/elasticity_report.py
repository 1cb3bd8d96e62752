"""Elastic constants for a file and for a terminal."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmlip.mechanics.elasticity import Elasticity


def as_record(found: Elasticity) -> dict[str, Any]:
    """All results as lists and numbers for JSON, with units in the names; None for missing ones."""
    moduli = None
    if found.resists_everything:
        moduli = {
            name: {"bulk": m.bulk, "shear": m.shear, "young": m.young, "poisson": m.poisson}
            for name, m in (("voigt", found.voigt), ("reuss", found.reuss), ("hill", found.hill))
        }
    return {
        "voigt_order": "xx yy zz yz xz xy",
        "C_GPa": found.C.tolist(),
        "clamped_GPa": found.clamped.tolist(),
        "stress_strain_GPa": found.stress_strain.tolist(),
        "compliance_per_GPa": found.compliance.tolist() if found.resists_everything else None,
        "moduli_GPa": moduli,
        "universal_anisotropy": found.anisotropy if found.resists_everything else None,
        "eigenvalues_GPa": found.eigenvalues.tolist(),
        "stable": found.stable,
        "internal_modes_eV_per_A2": found.internal_modes.tolist(),
        "internal_modes_stable": found.internal_modes_stable,
        "force_strain_eV_per_A": found.force_strain.tolist(),
        "internal_strain_A": found.internal_strain.tolist(),
        "residual": {"stress_GPa": found.stress.tolist(), "max_force_eV_per_A": found.max_force},
        "density_kg_per_m3": found.density,
    }


def describe(found: Elasticity) -> list[str]:
    """Lines of text: moduli, stability, sound and residual forces."""
    lines = []
    if found.resists_everything:
        m = found.hill
        lines.append(
            f"K {found.voigt.bulk:.1f} {m.bulk:.1f} {found.reuss.bulk:.1f}, "
            f"G {found.voigt.shear:.1f} {m.shear:.1f} {found.reuss.shear:.1f} GPa (Voigt, Hill, Reuss); "
            f"Young {m.young:.1f} GPa, Poisson {m.poisson:.3f} (Hill); anisotropy {found.anisotropy:.3f}"
        )
    lowest = found.eigenvalues[0]
    lines.append(
        f"stable: every strain costs energy, Kelvin's moduli are {lowest:.1f} GPa or more"
        if found.stable
        else f"UNSTABLE: a strain lowers the energy, Kelvin's lowest modulus is {lowest:.1f} GPa"
    )
    if not found.internal_modes_stable:
        lines.append(
            f"The atoms sit on a saddle: {(found.internal_modes < 0).sum()} of {len(found.internal_modes)} "
            "internal modes have negative curvature (lowest "
            f"{found.internal_modes[0]:.3g} eV/Å²); C is the response there"
        )
    for name, direction in (("x", (1, 0, 0)), ("y", (0, 1, 0)), ("z", (0, 0, 1))):
        v = ", ".join(f"{v:.0f}" for v in found.christoffel(direction))
        lines.append(f"sound along {name}: {v} m/s")
    stress = np.abs(found.stress).max()
    lines.append(f"what remains: forces up to {found.max_force:.2g} eV/Å, stresses up to {stress:.2g} GPa")
    return lines
