"""
Fine-tune on ten structures
===========================

Ten labelled structures of one material cure most of a model's softness there. They would come from
DFT, by ``jaxmlip finetune --data frames.extxyz``. So that this page runs anywhere, another
potential stands in for DFT: M3GNet fitted to MatPES labels what M3GNet of the Materials Project
learns.
"""

import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk

import jaxmlip
from jaxmlip import data, training

teacher = jaxmlip.load("m3gnet-matpes-pbe-2025.1")
student = jaxmlip.load("m3gnet-mp-2021.2.8")

# %%
# Labels
# ------
# Twenty rattled and strained cells of silicon carbide: ten to learn from, ten to be asked about.

rng = np.random.default_rng(0)
crystals = []
for _ in range(20):
    atoms = bulk("SiC", "zincblende", a=4.36, cubic=True)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms.positions += 0.08 * rng.normal(size=atoms.positions.shape)
    its = teacher.predict(atoms)
    labels = data.Labels(energy=its["energy"], forces=its["forces"], stress=its["stress"])
    crystals.append(data.LabelledCrystal(atoms, labels))
seen, unseen = (
    data.MemorySplit.from_crystals(part, student.cutoffs) for part in (crystals[:10], crystals[10:])
)

# %%
# Training
# --------
# What is in a batch follows from the plan alone. Forces count most; energies of two functionals
# differ by what each calls zero, so that they do not count here.

plan = data.Plan(seen.sizes, batch_size=5, epochs=30)
batches = data.Loader(seen, plan, student.params["reference_energies"])
loss = training.LossConfig(kind="mse", energy=0.0, forces=1.0, stress=0.1, magmoms=0.0)
optimizer = training.OptimizerConfig(learning_rate=5e-4)
mesh = training.make_mesh(1)
state = training.init_state(student, optimizer, plan.steps, mesh)
step = training.make_train_step(student, loss, optimizer, plan.steps, mesh)
losses = []
for batch in batches.iterate():
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
trained = training.potential_of(student, state)

# %%
# Forces on the ten that it has not seen
# --------------------------------------
# A slope below 1 is softness: the model's forces are too small.

figure, axes = plt.subplots(figsize=(4.2, 4), layout="constrained")
for name, model in (("before", student), ("after", trained)):
    pairs = training.compare(model, unseen)["forces"]
    dft, own = (np.concatenate([np.ravel(getattr(p, of)) for p in pairs]) for of in ("dft", "model"))
    slope = (dft @ own) / (dft @ dft)
    print(f"{name:6} slope {slope:.2f}, mean error {1000 * np.abs(own - dft).mean():.0f} meV/Å")
    axes.plot(dft, own, ".", ms=3, label=f"{name}: {slope:.2f}")
axes.axline((0, 0), slope=1, color="0.5", lw=1)
axes.set(xlabel="force, teacher (eV/Å)", ylabel="force, student (eV/Å)")
axes.legend(frameon=False)

# %%
# ``trained`` is a potential like any other. ``trained.save(folder)`` keeps it, and
# ``jaxmlip.load(folder)`` brings it back. Ask it about materials that you did not train on, too:
# what is mended in one place may get worse in another.

print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
