"""
Vibrations of an adsorbate
==========================

An oxygen atom on copper: where it rests, how it vibrates, and what that adds to its free energy.
The command is ``jaxmlip vibrations FILE --model m3gnet-matpes-pbe-2025.1 --atoms O --relax``.
"""

import matplotlib.pyplot as plt
from ase.build import add_adsorbate, fcc111
from ase.constraints import FixAtoms

import jaxmlip

# %%
# A slab repeats in its plane alone: ``pbc`` says so, and nothing else has to. The lowest two layers
# are held.

slab = fcc111("Cu", (2, 2, 3), a=3.61, vacuum=8.0)
add_adsorbate(slab, "O", height=1.2, position="fcc")
slab.set_constraint(FixAtoms(mask=slab.get_tags() >= 2))
print("repeats along", slab.pbc)

potential = jaxmlip.load("m3gnet-matpes-pbe-2025.1", dtype="float64")
rest = jaxmlip.relax(potential, slab, cell=False).atoms
top = rest.positions[rest.get_tags() == 1, 2].mean()
print(f"O sits {rest.positions[-1, 2] - top:.2f} Å above the top layer")

# %%
# Three columns of the Hessian
# ----------------------------
# If the oxygen alone moves, three columns of the exact Hessian are all that is computed. If the top
# layer moves too, its modes mix with those of the adsorbate.

alone = jaxmlip.vibrations(potential, rest, indices=[len(rest) - 1])
with_layer = jaxmlip.vibrations(potential, rest)
print("O alone:         ", alone.per_cm.round(0), "1/cm")
print("with top layer:  ", with_layer.per_cm[-3:].round(0), "1/cm, the highest three")

share = (with_layer.eigenvectors[:, -1] ** 2).sum(axis=-1)  # of the oxygen in each mode
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.stem(with_layer.per_cm, share, basefmt=" ")
axes.set(
    xlabel="wavenumber (1/cm); imaginary ones would be negative", ylabel="share of the oxygen", ylim=(0, 1)
)

# %%
# Free energy
# -----------
# The classes of ``ase.thermochemistry`` take it from here. Imaginary modes are refused unless they
# are left out.

harmonic = alone.harmonic(ignore_imag_modes=True)
print(f"zero-point energy {alone.zero_point_energy:.3f} eV")
for kelvin in (300.0, 600.0):
    free = harmonic.get_helmholtz_energy(temperature=kelvin, verbose=False) - rest.get_potential_energy()
    print(f"{kelvin:.0f} K: the oxygen's vibrations add {free:+.3f} eV to the energy at rest")

# %%
# ``with_layer.animation(0)`` has the frames of a mode, which ASE writes for a viewer.
