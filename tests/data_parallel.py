"""20 steps of training pairs on the same global batch, as one process of any number of devices and hosts.

python data_parallel.py OUT [COORDINATOR PROCESSES PROCESS]
"""

import sys

import jax
import numpy as np
import pairs
from ase.build import bulk
from labels import REFERENCES, labelled

from jaxmlip.crystals import batching
from jaxmlip.data.batch import Example, collate, stack
from jaxmlip.data.dataset import MemorySplit
from jaxmlip.data.labels import Frequencies, Labels
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.system import parallel
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig
from jaxmlip.training.step import init_state, make_train_step

STEPS = 20
LOSS = LossConfig(energy=1.0, forces=2.0, stress=0.3, magmoms=0.0)


def main(out: str, *address: str) -> None:
    if address:
        parallel.connect(address[0], int(address[1]), int(address[2]))
    mesh = parallel.make_mesh()
    found = learnt(mesh)
    if jax.process_index() == 0:
        np.savez(out, devices=mesh.size, **found)


def learnt(mesh) -> dict[str, np.ndarray]:
    """What training on the devices of `mesh` leaves, by its precision and name."""
    found = {
        f"{dtype}/{name}": x for dtype in ("float32", "float64") for name, x in train(dtype, mesh).items()
    }
    return found | {f"float64/frequencies/{name}": x for name, x in learn_frequencies(mesh).items()}


def train(dtype: str, mesh) -> dict[str, np.ndarray]:
    """The parameters after the last step, and its loss."""
    potential = pairs.potential().astype(dtype)
    metals = [bulk(e, cubic=True) for e in ("Cu", "Al", "Ag", "Ca", "Ni", "Pd", "Rh", "Sr")]
    for k, atoms in enumerate(metals):
        atoms.rattle(0.1, seed=k)
    examples = labelled(potential, metals)
    shards = np.array_split(np.arange(len(examples)), mesh.size)
    parts = [[examples[k] for k in shard] for shard in shards]
    shape = batching.BatchShape(
        *map(max, *(batching.shape_for([e.graph for e in part]) for part in [*parts, *parts]))
    )
    mine = [parts[k] for k in parallel.local_shards(mesh)]
    batch = stack([collate(p, shape, REFERENCES, np.random.default_rng(0), dtype) for p in mine])
    config = OptimizerConfig(ema=0.9, clip=1.0)
    state = init_state(potential, config, STEPS, mesh)
    step = make_train_step(potential, LOSS, config, STEPS, mesh)
    for _ in range(STEPS):
        state, metrics = step(state, batch)
    params = {n: np.asarray(x.addressable_data(0)) for n, x in state.params.items()}
    return {"loss": np.asarray(metrics["loss"]), **params}


def learn_frequencies(mesh) -> dict[str, np.ndarray]:
    """The same, of pairs that learn frequencies from batches of a loader."""
    potential = pairs.potential(alike=2**0.5)
    rng, examples = np.random.default_rng(4), []
    for name in ("MgO", "CaO", "NaCl", "KCl", "LiCl", "SrO", "BaO", "NaF"):
        salt = bulk(name, "rocksalt", 4.4)
        thz = np.sort(rng.uniform(2, 9, (3, 6)), axis=1)
        labels = Labels(frequencies=Frequencies(rng.uniform(-0.5, 0.5, (3, 3)), thz, salt.get_masses()))
        examples.append(Example(potential.graph(salt), labels.check(2, name)))
    split = MemorySplit(examples, potential.cutoffs)
    plan = Plan(split.sizes, 8, mesh.size, epochs=STEPS, waves=2, spectra=np.tile([1, 0], (8, 1)))
    references, shards = potential.params["reference_energies"], parallel.local_shards(mesh)
    loader = Loader(split, plan, references, np.float64, shards=shards)
    config = OptimizerConfig(learning_rate=1e-3)
    state = init_state(potential, config, STEPS, mesh)
    loss = LossConfig(energy=0, forces=0, stress=0, magmoms=0, frequencies=1.0)
    step = make_train_step(potential, loss, config, STEPS, mesh)
    for k in range(STEPS):
        state, metrics = step(state, loader.at(k))
    params = {n: np.asarray(x.addressable_data(0)) for n, x in state.params.items()}
    return {"loss": np.asarray(metrics["loss"]), **params}


if __name__ == "__main__":
    main(*sys.argv[1:])
