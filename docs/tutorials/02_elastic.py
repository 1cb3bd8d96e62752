"""
Elastic constants
=================

A crystal answers a strain twice: the cell deforms, and the atoms move within it until no force is
left. Both answers are second derivatives of the energy, so no finite strain is needed. The command
is ``jaxmlip elastic FILE --relax --model m3gnet-mp-2021.2.8``.
"""

import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk

import jaxmlip

potential = jaxmlip.load("m3gnet-mp-2021.2.8", dtype="float64")
crystal = jaxmlip.relax(potential, bulk("ZnO", "wurtzite", a=3.25, c=5.2), fix_symmetry=True).atoms
found = jaxmlip.elastic_tensor(potential, crystal)
print(found.C.round(1))  # GPa, in the order xx yy zz yz xz xy

# %%
# What the atoms add
# ------------------
# ``clamped`` are the constants of a crystal whose atoms keep their places in the cell. The atoms
# always soften it.

print("C33 with atoms at rest:", found.C[2, 2].round(1), "GPa; atoms clamped:", found.clamped[2, 2].round(1))

# %%
# Stability, and a polycrystal
# ----------------------------
# Born's criterion asks that no strain lowers the energy. Moduli of a polycrystal lie between Reuss'
# and Voigt's.

print("stable:", found.stable, found.eigenvalues.round(1))
if found.resists_everything:
    for name in ("reuss", "hill", "voigt"):
        its = getattr(found, name)
        print(f"{name:6} bulk {its.bulk:6.1f} shear {its.shear:6.1f} Young {its.young:6.1f} GPa")

# %%
# Sound
# -----
# Velocities of long waves follow from C and the density. Here they are in the plane of the
# hexagonal axis: a circle would be an isotropic crystal.

angles = np.linspace(0, 2 * np.pi, 73)
speeds = np.array([found.christoffel([np.sin(a), 0, np.cos(a)]) for a in angles]) / 1000  # km/s
figure, axes = plt.subplots(subplot_kw={"projection": "polar"}, figsize=(4.6, 4.2), layout="constrained")
axes.plot(angles, speeds, label=["transverse", "transverse", "longitudinal"])
axes.set_theta_zero_location("N")  # the hexagonal axis is up
axes.set_thetagrids(range(0, 360, 90))
axes.set_title("sound in ZnO (km/s)")
axes.legend(loc="lower right", bbox_to_anchor=(1.15, -0.1))
