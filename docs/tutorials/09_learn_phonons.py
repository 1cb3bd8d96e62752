"""
Learn from frequencies
======================

Force constants of DFT are rare, frequencies are not: databases have them, and neutrons measure
them. A frequency at any wave vector is a label here, like an energy, and needs no supercell. The
command is ``jaxmlip finetune --preset phonons --data mesh.yaml --model m3gnet-matpes-pbe-2025.1``,
with the file that phonopy writes. So that this page runs anywhere, another potential, of another
functional, stands in for DFT.
"""

import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk

import jaxmlip
from jaxmlip import data, phonons, training
from jaxmlip.data.dataset import spectral_labels
from jaxmlip.data.labels import Frequencies

teacher = jaxmlip.load("m3gnet-matpes-r2scan-2025.1", dtype="float64")
student = jaxmlip.load("m3gnet-matpes-pbe-2025.1", dtype="float64")

# %%
# Labels
# ------
# Frequencies of a primitive cell on a mesh, which symmetry reduces to a few wave vectors. Their
# weights say how many each stands for; the masses are those of the isotopes that were measured.

crystal = jaxmlip.relax(teacher, bulk("MgO", "rocksalt", a=4.2), fix_symmetry=True).atoms
modes = phonons.mesh_modes(teacher, crystal, (4, 4, 4))
frequencies = Frequencies(
    q_points=modes.q_points,
    thz=modes.frequencies,
    masses=crystal.get_masses(),
    weights=modes.weights,
)
labels = data.Labels(frequencies=frequencies).check(len(crystal), "MgO")
seen = data.MemorySplit.from_crystals([data.LabelledCrystal(crystal, labels)], student.cutoffs)
print(f"{modes.frequencies.size} frequencies at {len(modes.q_points)} wave vectors")

# %%
# Training
# --------
# In each step the crystal is taken at two of its wave vectors, drawn by their weights. For one
# crystal the last layers suffice (``train``); by default all of the network is trained. With
# structures that are replayed beside it, which have energies and forces, the model would forget
# less of what else it knew.

loss = training.LossConfig(energy=0, forces=0, stress=0, magmoms=0, frequencies=1)
plan = data.Plan(seen.sizes, batch_size=1, epochs=40, waves=2, spectra=spectral_labels(seen, loss.properties))
batches = data.Loader(seen, plan, student.params["reference_energies"], np.dtype("float64"))
optimizer = training.OptimizerConfig(learning_rate=2e-3, train=("readout",))
mesh = training.make_mesh(1)
state = training.init_state(student, optimizer, plan.steps, mesh)
step = training.make_train_step(student, loss, optimizer, plan.steps, mesh)
errors = []
for batch in batches.iterate():
    state, metrics = step(state, batch)
    errors.append(float(metrics["frequencies_mae"]))
trained = training.potential_of(student, state)
print(f"mean error {np.mean(errors[:5]):.2f} -> {np.mean(errors[-5:]):.2f} THz in {len(errors)} steps")

# %%
# Bands
# -----
# Lines between the wave vectors that were learnt follow too, because the network is what changed.
# Ask other materials as well: `docs/learn_phonons.md <../learn_phonons.html>`_ says what is known
# of them.

figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
for name, model, look in (
    ("teacher", teacher, {"color": "0.6", "lw": 3}),
    ("before", student, {"color": "C1", "ls": "--"}),
    ("after", trained, {"color": "C0"}),
):
    bands = phonons.band_modes(model, crystal, "GX", points=31)
    lines = axes.plot(bands.distance, bands.modes.frequencies, **look)
    lines[0].set_label(name)
axes.set(xlabel="wave vector, Γ to X (1/Å)", ylabel="frequency (THz)")
axes.legend(frameon=False)
