"""
Phonons in five minutes
=======================

Bands, a density of states and a heat capacity of MgO, from an M3GNet that is fetched the first
time. On the command line all of it is ``jaxmlip phonons MgO.cif --relax --model
m3gnet-matpes-pbe-2025.1``.
"""

import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk

import jaxmlip
from jaxmlip import phonons

# %%
# Second derivatives want float64. The crystal has to be at rest in the potential itself, so it is
# relaxed first, with its space group kept.

potential = jaxmlip.load("m3gnet-matpes-pbe-2025.1", dtype="float64")
relaxation = jaxmlip.relax(potential, bulk("MgO", "rocksalt", a=4.25), fix_symmetry=True)
crystal = relaxation.atoms
print(f"a = {2 ** (2 / 3) * crystal.cell.volume ** (1 / 3):.3f} Å, space group {relaxation.space_group}")

# %%
# Bands
# -----
# D(q) is exact at any wave vector. There is no supercell and no displacement to choose: only a
# path. Imaginary frequencies would show as negative numbers.

bands = phonons.band_modes(potential, crystal, "GXK,GL", points=61)
thz = bands.modes.frequencies
print(f"frequencies from {thz.min():.2f} to {thz.max():.2f} THz")

# %%
# Sums over the zone
# ------------------
# A mesh of wave vectors is reduced by the space group. Its density of states is drawn beside the
# bands.

on_mesh = phonons.mesh_modes(potential, crystal, (12, 12, 12))
density = phonons.density_of_states(on_mesh)

figure, (left, right) = plt.subplots(1, 2, sharey=True, width_ratios=(3, 1), layout="constrained")
for segment in bands.segments:
    left.plot(bands.distance[segment.rows], thz[segment.rows], "C0")
ends = [bands.distance[segment.rows][0] for segment in bands.segments] + [bands.distance[-1]]
left.set_xticks(ends, ["Γ", "X", "K|Γ", "L"])
left.set_ylabel("frequency (THz)")
right.plot(density.total, density.thz, "k")
right.set_xlabel("states per THz")

# %%
# Thermodynamics follow from the same modes, in J/K for a mole of the cells that were given: here of
# MgO. At high temperature the heat capacity goes to that of Dulong and Petit, 3 k for each atom.

kelvin = np.array([100.0, 300.0, 1000.0])
heat = phonons.thermodynamics(on_mesh, kelvin).heat_capacity
for t, c in zip(kelvin, heat, strict=True):
    print(f"{t:6.0f} K {c:6.2f} J/K/mol, {c / (6 * 8.314):.0%} of Dulong and Petit")

# %%
# Is it right? That depends on the model, not on the derivative: see the tutorial on softness, and the
# page *D(q) without a supercell* for how it works. ``phonons.group_velocities`` and
# ``phonons.grueneisen`` have ∂D/∂q and ∂D/∂ε, as exactly.
