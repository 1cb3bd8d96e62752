"""Many devices: one mesh with the axis "data" over devices of all hosts, for training and for columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def connect(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the other processes of a run on several hosts; call it before anything is computed.

    Without arguments the address and the numbers come from SLURM, Open MPI or a TPU slice; else `coordinator`
    is host:port of process 0. Raises ValueError if only some of the three are given.
    """
    given = [x is not None for x in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise ValueError(
            f"found coordinator={coordinator!r}, processes={processes} and process={process}, needed all "
            "three, or none if SLURM, Open MPI or a TPU slice gives them."
        )
    jax.distributed.initialize(coordinator, processes, process)


def reports() -> bool:
    """True for the one process of a run that prints and writes its results, the first."""
    return jax.process_index() == 0


def make_mesh(devices: int | None = None) -> Mesh:
    """The mesh over the first `devices` devices; default: all devices of all processes."""
    found = jax.devices()
    kinds = ", ".join(sorted({d.device_kind for d in found}))
    if devices is not None and not 1 <= devices <= len(found):
        raise ValueError(
            f"found devices={devices}, needed 1 to {len(found)}: {kinds}. "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight devices of one CPU."
        )
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices or len(found),), (AXIS,), axis_types=auto, devices=found[:devices])


def check_all_have_some(mesh: Mesh) -> None:
    """Raises ValueError if a process of this run has no device of `mesh`."""
    having = {d.process_index for d in mesh.devices.flat}
    if without := sorted(set(range(jax.process_count())) - having):
        raise ValueError(
            f"found {mesh.size} devices, which leave process {', '.join(map(str, without))} without any; "
            "needed one of each process. Use all devices, or start fewer processes."
        )


def own_mesh(mesh: Mesh) -> Mesh:
    """The mesh over those devices of `mesh` that belong to this process."""
    mine = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(mine),), (AXIS,), axis_types=auto, devices=mine)


def local_shards(mesh: Mesh) -> list[int]:
    """The positions on the mesh that this process feeds, in order."""
    return [k for k, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on every device."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(whole, np.asarray(x)), tree)


def divide(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process has as a whole, of which each device keeps its part of the leading axis."""
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, split, x.__getitem__), tree)


def gather(x: jax.Array) -> np.ndarray:
    """The whole of an array that is spread over the devices of any number of hosts, on every host."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def least(number: int) -> int:
    """The smallest of the numbers that the processes of this run give; all have to call it."""
    if jax.process_count() == 1:
        return number
    return int(np.min(multihost_utils.process_allgather(np.asarray(number))))


class FailedElsewhereError(RuntimeError):
    """Another process of this run has failed. Its own message says why."""


@dataclass(frozen=True)
class Crew:
    """The processes that share a piece of work, and the place of this one among them."""

    count: int
    index: int

    @classmethod
    def of(cls, mesh: Mesh | None) -> Crew:
        """The processes that have devices of `mesh`, which are all of this run, or this process alone."""
        if mesh is None or len({d.process_index for d in mesh.devices.flat}) == 1:
            return cls(1, 0)
        return cls(jax.process_count(), jax.process_index())

    @property
    def first(self) -> bool:
        """True for the one process that does what is done once."""
        return self.index == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """A step that all processes begin, and leave when all have done it; if it fails in one, in all.

        Raises FailedElsewhereError where it did not fail itself.
        """
        try:
            yield
        except Exception:
            if self.count > 1:
                least(0)
            raise
        if self.count > 1 and least(1) == 0:
            raise FailedElsewhereError("another process of this run has failed; its own message says why.")

    def from_first(self, value: Any) -> Any:
        """What the first process gives, in all of them; it must be fit for JSON."""
        if self.count == 1:
            return value
        text = np.frombuffer(json.dumps(value if self.first else None).encode(), np.uint8)
        size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(text))))
        given = text if self.first else np.zeros(size, np.uint8)
        return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(given)).tobytes())


def spread(batch: Any, mesh: Mesh) -> Any:
    """Arrays over the whole mesh, to which each process gives its shards along the leading axis."""
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, np.asarray(x)), batch)
