"""One step of training: (state, batch) -> (state, metrics), the same program on one device and on thousands.

Each device computes the sums and the gradient of its shard; counts and gradients are added over the mesh. A
step divides by the counts of the whole batch, so sharding changes rounding and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmlip.data.batch import Batch
from jaxmlip.data.labels import PROPERTIES
from jaxmlip.potential import Potential
from jaxmlip.system import parallel
from jaxmlip.system.memory import resident
from jaxmlip.training.losses import LossConfig, errors, means, sums
from jaxmlip.training.optimizer import OptimizerConfig, learning_rate, make_optimizer, trained

Flat = dict[str, jax.Array]  # parameters by name, such as network/readout/layer_0/kernel


@flax.struct.dataclass
class TrainState:
    """Everything that changes during training."""

    params: Flat  # those that are trained
    opt_state: Any
    ema: Flat | None  # their moving average, if asked for
    step: jax.Array  # batches seen

    @property
    def eval_params(self) -> Flat:
        """The parameters that are validated and exported: the average, if there is one."""
        return self.params if self.ema is None else self.ema


def init_state(potential: Potential, config: OptimizerConfig, steps: int, mesh: Mesh) -> TrainState:
    """The state before the first of `steps` batches.

    Raises ValueError if the patterns of `config` match no parameter, as `trained` does.
    """
    flat = flat_params(potential)
    with _precision(potential):
        params = {name: flat[name] for name in trained(config, flat)}
        state = TrainState(
            params=params,
            opt_state=make_optimizer(config, learning_rate(config, steps)).init(params),
            ema=None if config.ema is None else params,
            step=np.zeros((), np.int32),
        )
        return parallel.replicate(state, mesh)


class Needs(NamedTuple):
    """What a training step needs on each device, as XLA reports it for the compiled program."""

    memory: int  # bytes, besides those that are held
    held: int  # bytes that the process holds (0 on an accelerator, which has its own memory)
    flops: float  # operations on floating-point numbers


def flat_params(potential: Potential) -> dict[str, np.ndarray]:
    """All parameters by name, in the precision of the potential, as they are trained.

    Reference energies are those that training adds to the potential's: the potential's own are subtracted
    from the labels in float64, before anything is rounded.
    """
    own = {"scale": np.ones(())} | dict(potential.params)
    own["reference_energies"] = np.zeros_like(own["reference_energies"])
    flat = flax.traverse_util.flatten_dict(own, sep="/")
    return {name: np.asarray(x, potential.dtype) for name, x in flat.items()}


def potential_of(potential: Potential, state: TrainState, ema: bool = True) -> Potential:
    """`potential` with the parameters of `state`; the averaged ones if they exist and `ema` is true."""
    flat = flax.traverse_util.flatten_dict(dict(potential.params), sep="/")
    new = dict(flat)
    for name, x in (state.eval_params if ema else state.params).items():
        found = np.asarray(jax.device_get(x))
        new[name] = flat[name] + found.astype(np.float64) if name == "reference_energies" else found
    return replace(potential, params=flax.traverse_util.unflatten_dict(new, sep="/"))


def make_train_step(
    potential: Potential, loss: LossConfig, config: OptimizerConfig, steps: int, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The step of a run of `steps` batches.

    It takes a state, whose memory it reuses, and a batch whose leading axis are the shards of this process,
    one for each of its devices. Its metrics, arrays on the device, are the loss, {property}_mae and
    {property}_rmse in the units of `losses.UNITS`, grad_norm, learning_rate, and the numbers of crystals and
    atoms. Its attribute `needs`, of the same arguments, compiles the step and says what it needs.
    """
    schedule = learning_rate(config, steps)
    everything = _everything(potential, mesh)

    def of_shard(params, others, batch):
        def share(params):
            """The contribution of this shard to the loss of the whole batch."""
            summed = _sums(potential, loss, loss.properties, others | params, batch)
            counts = jax.lax.psum({name: s["count"] for name, s in summed.items()}, parallel.AXIS)
            whole = {name: s | {"count": counts[name]} for name, s in summed.items()}
            return means(loss, whole)["loss"], summed

        (_, summed), grads = jax.value_and_grad(share, has_aux=True)(params)
        return jax.lax.psum((grads, summed), parallel.AXIS)

    on_mesh = jax.shard_map(
        of_shard, mesh=mesh, in_specs=(P(), P(), P(parallel.AXIS)), out_specs=P(), check_vma=False
    )

    @jax.jit
    def rate(step: jax.Array) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):  # Optax takes powers of floats by its integer counters
            return jnp.asarray(schedule(step // config.accumulate), float)

    # The rate is an argument, so that runs that differ in it, or in length, share this program.
    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, others, batch: Batch, rate: jax.Array):
        optimizer = make_optimizer(config, lambda _: rate)
        grads, summed = on_mesh(state.params, others, batch)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            # At first the average is over few steps, so that it forgets the initial parameters.
            seen = state.step.astype(float)
            decay = jnp.minimum(config.ema, (1 + seen) / (10 + seen))
            ema = jax.tree.map(lambda a, x: decay.astype(x.dtype) * (a - x) + x, ema, params)
        metrics = means(loss, summed) | {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": rate,
            "crystals": jnp.sum(batch.atoms > 0),
            "atoms": jnp.sum(batch.atoms),
        }
        return TrainState(params, opt_state, ema, state.step + 1), metrics

    def call(state: TrainState, batch: Batch):
        with _precision(potential):
            return step(*arguments(state, batch))

    def arguments(state: TrainState, batch: Batch) -> tuple[Any, ...]:
        return state, everything, parallel.spread(batch, mesh), rate(state.step)

    def needs(state: TrainState, batch: Batch) -> Needs:
        with _precision(potential):
            compiled = step.lower(*arguments(state, batch)).compile()
        memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
        # New states take the place of old ones.
        size = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return Needs(size, resident(), cost.get("flops", float("nan")))

    call.jitted, call.arguments, call.needs = step, arguments, needs
    return call


def make_eval_step(
    potential: Potential, loss: LossConfig, mesh: Mesh
) -> Callable[[Flat, Batch], dict[str, dict[str, jax.Array]]]:
    """The function (state.eval_params, batch) -> sums over the batch as `losses.sums` gives them.

    All properties with labels in the batch are compared; Hessian columns, frequencies, averages and third
    derivatives, which take long, only if they are in the loss. `losses.means` turns sums over batches into
    metrics.
    """
    everything = _everything(potential, mesh)
    costly = {"hessian", "frequencies", "averages", "third"}
    properties = tuple(p for p in PROPERTIES if p not in costly or getattr(loss, p))

    def of_shard(params, others, batch):
        return jax.lax.psum(_sums(potential, loss, properties, others | params, batch), parallel.AXIS)

    on_mesh = jax.jit(
        jax.shard_map(
            of_shard, mesh=mesh, in_specs=(P(), P(), P(parallel.AXIS)), out_specs=P(), check_vma=False
        )
    )

    def call(params: Flat, batch: Batch):
        with _precision(potential):
            return on_mesh(*arguments(params, batch))

    def arguments(params: Flat, batch: Batch) -> tuple[Any, ...]:
        return params, everything, parallel.spread(batch, mesh)

    call.jitted, call.arguments = on_mesh, arguments
    return call


def _sums(potential, loss, properties, flat, shard):
    """Sums over the shard of this device, whose leading axis has length one."""
    batch = jax.tree.map(lambda x: x[0], shard)
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    return sums(loss, errors(potential.energy_fn, params, batch, properties))


def _everything(potential: Potential, mesh: Mesh) -> Flat:
    with _precision(potential):
        return parallel.replicate(flat_params(potential), mesh)


def _precision(potential: Potential):
    # Products have the device's default precision, which is enough for training.
    return jax.enable_x64(potential.dtype == "float64")
