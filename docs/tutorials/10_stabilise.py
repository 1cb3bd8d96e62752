"""
Unstable crystals
=================

An imaginary frequency says that a crystal does not rest where it was drawn. Here the modes of a
cubic perovskite are found, and followed to where the energy is lowest. The command is ``jaxmlip
stabilise CaTiO3.cif --model m3gnet-mp-2021.2.8``, which goes on until nothing is unstable.
"""

import warnings

import matplotlib.pyplot as plt
from ase import Atoms

import jaxmlip
from jaxmlip import phonons

places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
perovskite = Atoms("CaTiO3", scaled_positions=places, cell=[3.9] * 3, pbc=True)
potential = jaxmlip.load("m3gnet-mp-2021.2.8", dtype="float64")
crystal = jaxmlip.relax(potential, perovskite, fix_symmetry=True).atoms
print(f"a = {crystal.cell.lengths()[0]:.3f} Å")

# %%
# Which modes are unstable
# ------------------------
# Frequencies on a mesh are not enough: the lowest may lie between its points. From the lowest point
# of the mesh the search goes downhill in q, by the exact derivative of ω², and wave vectors whose
# waves repeat after two cells are asked as well. At M and R the octahedra tilt.

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*nearly")  # of cells that are nearly symmetric
    unstable = phonons.instabilities(potential, crystal, mesh=(2, 2, 2), cells=2)
for mode in unstable:
    print(mode)

# %%
# Where they lead
# ---------------
# Modes that symmetry makes equal are combined into the directions that keep a space group. Along
# each the energy is expanded to fourth order at rest, which foretells the well before any distorted
# crystal was computed.

simple = [mode for mode in unstable if mode.cells is not None and mode.cells <= 2]
wells = phonons.follow(potential, simple[0], cells=2) if simple else []
figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
for k, well in enumerate(wells):
    per_atom = 1000 / len(well.crystal)
    axes.plot(well.amplitudes, per_atom * well.energies, f"C{k}o", ms=4, label=well.space_group)
    axes.plot(well.amplitudes, per_atom * well.at_rest(well.amplitudes), f"C{k}", lw=1)
    print(f"{well.space_group:14} {1000 * well.gain:6.1f} meV/atom lower when relaxed")
lowest = min([0.0, *(1000 / len(well.crystal) * well.energies.min() for well in wells)])
axes.set(
    xlabel="how far the atom moves that moves farthest (Å)",
    ylabel="energy (meV/atom)",
    ylim=(1.3 * lowest - 1, 1 - lowest),
)
if wells:
    axes.legend(frameon=False)

# %%
# Points are energies, lines what the derivatives at rest foretold. The relaxed crystal may be
# unstable itself: the command looks at the lowest one next, and draws the tree.

if wells and wells[0].relaxed is not None:
    print("at rest in", wells[0].relaxed.space_group)
