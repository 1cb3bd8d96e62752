"""
Screening many crystals
=======================

Small crystals lie side by side in one graph, so that programs are compiled once and a device is
kept busy. On the command line, with a table, a database of ASE, and any number of processes that
may be killed at any time: ``jaxmlip screen cifs/ --properties relax elastic phonons --out
screening``.
"""

import matplotlib.pyplot as plt
from ase.build import bulk, fcc111

import jaxmlip
from jaxmlip.studies.screen import screen

# %%
# A dictionary of crystals, or a list. What fails becomes a reason in its row and stops nothing
# else. A slab has phonons, but no elastic constants.

lattice = {"LiF": 4.06, "NaCl": 5.69, "MgO": 4.25, "CaO": 4.84}
crystals = {name: bulk(name, "rocksalt", a=a) for name, a in lattice.items()}
crystals["Mg layer"] = fcc111("Mg", (1, 1, 2), a=4.5, vacuum=8.0)
potential = jaxmlip.load("m3gnet-mp-2021.2.8", dtype="float64")

# %%
# Rows come as they are computed. Columns have their units in their names.

rows = {}
for row in screen(potential, crystals, ["relax", "elastic", "phonons"], mesh=(2, 2, 2)):
    its = rows[row.columns["name"]] = row.columns
    failed = [f"{name}: {said}" for name, said in its.items() if name.endswith("failed") and said]
    print(its["name"], f"up to {its['phonons_max_THz']:.2f} THz;" if its["phonons_max_THz"] else "", *failed)

# %%
# Stiff crystals are fast ones.

figure, axes = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
for name, its in rows.items():
    bulk_modulus, highest = its["elastic_bulk_GPa"], its["phonons_max_THz"]
    if bulk_modulus and highest:
        axes.plot(bulk_modulus, highest, "C0o")
        axes.annotate(name, (bulk_modulus, highest), xytext=(5, -10), textcoords="offset points")
axes.set(xlabel="bulk modulus (GPa)", ylabel="highest frequency (THz)")
axes.margins(0.15)
