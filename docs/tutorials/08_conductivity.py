"""
Thermal conductivity
====================

Third derivatives of the energy make phonons decay, and decay makes heat meet resistance. Here they
are exact: no displaced supercells, no step. The command is ``jaxmlip conductivity FILE --model
m3gnet-mp-2021.2.8 --relax``, and phono3py solves the Boltzmann equation (``pip install
'jaxmlip[phono3py]'``).
"""

import matplotlib.pyplot as plt
from ase.build import bulk

import jaxmlip
from jaxmlip import phonons

potential = jaxmlip.load("m3gnet-mp-2021.2.8", dtype="float64")
crystal = jaxmlip.relax(potential, bulk("CaO", "rocksalt", a=4.8), fix_symmetry=True).atoms

# %%
# Force constants
# ---------------
# In a supercell of 54 atoms. Of the columns of third order only those are computed that symmetry
# does not give. The sum rules hold to rounding, which no finite displacement can say. Second order
# comes with them; ``phonons.second_order`` has it in a larger supercell.

third = phonons.third_order(potential, crystal, (3, 3, 3))
print(third.checks)

# %%
# Conductivity
# ------------
# In W/m/K, a tensor for each temperature. Natural isotopes scatter as well. Compare two meshes and
# two supercells before you trust a number; this mesh is small. And think of softness: a model whose
# frequencies are a quarter too low has too low a conductivity by more than half.

kelvin = (200.0, 300.0, 500.0, 800.0)
found = phonons.conductivity(third, mesh=(7, 7, 7), temperatures=kelvin)
for t, kappa in zip(kelvin, found.kappa, strict=True):
    print(f"{t:5.0f} K {kappa[0, 0]:7.2f} W/m/K")

# %%
# Which phonons carry it
# ----------------------
# The conductivity summed up to a mean free path says below which size grains matter.

upto = phonons.cumulative(found, by="mean_free_path", temperature=300)
print(f"half of it is carried by phonons with mean free paths below {upto.half():.0f} nm")
figure, axes = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
axes.loglog(kelvin, found.kappa[:, 0, 0], "o-", label="κ")
axes.loglog(kelvin, found.kappa[1, 0, 0] * 300 / found.temperatures, "k:", label="1/T")
axes.set(xlabel="temperature (K)", ylabel="κ (W/m/K)")
axes.legend(frameon=False)
