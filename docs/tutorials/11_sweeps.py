"""
Sweeps and many devices
=======================

Which learning rate, which seed: many runs of one file, each done once, whatever is killed.
``jaxmlip sweep sweep.yaml --processes 4`` does them on one machine and ``--slurm`` on a cluster.
Here they go one after another, from Python; and at the end one step is divided among devices.
"""

import os
import tempfile
from pathlib import Path

import ase.io
import jax
import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

import jaxmlip
from jaxmlip import training
from jaxmlip.training.records import read_metrics
from jaxmlip.training.sweeps.sweep import write_table
from jaxmlip.training.sweeps.sweep_file import read_sweep

folder = Path(tempfile.mkdtemp())

# %%
# Crystals
# --------
# Sixteen rattled cells. They would come from DFT; here a public potential labels them.

teacher = jaxmlip.load("m3gnet-matpes-pbe-2025.1")
rng = np.random.default_rng(0)
for _ in range(16):
    atoms = bulk("SiC", "zincblende", a=4.36, cubic=True)
    atoms.positions += 0.08 * rng.normal(size=atoms.positions.shape)
    its = teacher.predict(atoms)
    atoms.calc = SinglePointCalculator(atoms, energy=its["energy"], forces=its["forces"])
    ase.io.write(folder / "crystals.extxyz", atoms, append=True)

# %%
# A file of runs
# --------------
# ``base`` is what all share, with the keys of ``jaxmlip train --example``. Each combination of what
# ``vary`` lists is a run: a small M3GNet that begins with random parameters. With ``seed: [0, 1, 2]``
# below the learning rates there would be six.

(folder / "sweep.yaml").write_text(f"""
base:
  model:
    architecture: m3gnet
    hyperparameters: {{features: 8, bond_cutoff: 4.0, angle_cutoff: 3.0}}
  data: {{train: [{folder}/crystals.extxyz], fractions: [0.75, 0.25, 0], split_by: crystal}}
  loss: {{stress: 0, magmoms: 0}}
  epochs: 10
  batch_size: 4
  tensorboard: false
vary:
  optimizer.learning_rate: [1e-3, 1e-2]
""")
runs = read_sweep(folder / "sweep.yaml")
for run in runs:
    training.run_training(run.config, run.folder(folder / "sweep"))
rows = write_table(runs, folder / "sweep")

# %%
# The table of a sweep has what was varied, and the errors of each run. A run's folder is named after
# what it computes, so that a file that has grown, or one that was stopped, does what is missing.

(error,) = (name for name in rows[0] if name.startswith("forces_mae"))
for row in rows:
    print(f"{row['name']:28} {error} {row[error]:.3f}")

# %%
# Each folder has the course of its run as well.

figure, axes = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
for run in runs:
    lines = read_metrics(run.folder(folder / "sweep") / "metrics.jsonl")
    course = [(line["step"], line["forces_mae"]) for line in lines if line["kind"] == "validation"]
    axes.plot(*zip(*course, strict=True), "o-", ms=3, label=run.name)
axes.set(xlabel="step", ylabel=f"mean error of forces, {error.partition(' / ')[2]}")
axes.legend(frameon=False)

# %%
# Devices
# -------
# Without being told, training and columns of second derivatives take all devices that there are.
# The results are the same. A CPU can play several: set
# ``XLA_FLAGS=--xla_force_host_platform_device_count=8`` before Python starts.

print(len(jax.devices()), "device(s);", os.environ.get("XLA_FLAGS", "no XLA_FLAGS"))
everywhere = teacher.on_devices()  # or on_devices(4); jaxmlip.hessian(everywhere, atoms) divides its columns
