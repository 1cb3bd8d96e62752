"""
Is my model too soft?
=====================

Universal potentials are fitted to relaxations, and their curvature comes out too small. Frequencies
of DFT for 18 binary crystals come with the package, so that a model can be asked in minutes:
``jaxmlip softening`` asks CHGNet about all of them. Here an M3GNet is asked about three.
"""

import matplotlib.pyplot as plt
import numpy as np

import jaxmlip
from jaxmlip.studies.phonondb import builtin_materials
from jaxmlip.studies.softening import ratios, softening

wanted = ("MgO", "NaCl", "SiC")
materials = [m for m in builtin_materials() if m.formula in wanted]
potential = jaxmlip.load("m3gnet-mp-2021.2.8", dtype="float64")

# %%
# Each crystal is taken in DFT's own cell and on DFT's mesh of wave vectors, so that nothing but the
# curvature differs. It is measured twice: by the Hessian, and by forces at ±0.03 Å, as phonon
# programs do it.

rows = softening(potential, materials, supercell=32)
by_hessian, by_forces = ratios(rows, "hessian"), ratios(rows, "displaced")
for row, a, b in zip(rows, by_hessian, by_forces, strict=True):
    dft = row["dft"]["maximum"]
    print(f"{row['formula']:5} {dft:6.2f} THz by DFT; model / DFT {a:.2f} (Hessian) {b:.2f} (±0.03 Å)")

# %%
# A ratio below 1 means too soft. Forces see the supercell as well, and 32 atoms are few: with more
# the two measures of M3GNet agree. Those of CHGNet do not, because its angles have a kink (see the
# page on it).

dft = np.array([row["dft"]["maximum"] for row in rows])
figure, axes = plt.subplots(figsize=(4.2, 4), layout="constrained")
axes.plot(dft, dft * by_hessian, "o", label="Hessian")
axes.plot(dft, dft * by_forces, "x", label="±0.03 Å")
axes.axline((0, 0), slope=1, color="0.5", lw=1)
for name, x, y in zip((row["formula"] for row in rows), dft, dft * by_hessian, strict=True):
    axes.annotate(name, (x, y), xytext=(6, -10), textcoords="offset points")
axes.set(xlim=(0, 1.15 * dft.max()), ylim=(0, 1.15 * dft.max()))
axes.set(xlabel="highest frequency, DFT (THz)", ylabel="model (THz)")
axes.legend(frameon=False)

# %%
# What to do about it
# -------------------
# With a few DFT structures of your material, fine-tune: the next tutorial. With frequencies alone,
# measured or computed, ``jaxmlip finetune --preset phonons --data mesh.yaml`` learns from these.
# One factor on all forces is ``jaxmlip softening-scale frames.extxyz``: it mends the crystal it was
# fitted to, and often spoils another.

print(f"geometric mean of the ratios: {np.exp(np.log(np.maximum(by_hessian, 0.01)).mean()):.2f}")
