"""A model of the time of a training step on many devices, from the work of one program.

With B structures in a batch of all n devices on h = ⌈n / per host⌉ hosts,

    T(n) = max(T_work, T_input) + T_sum

    T_work  = B/n / (1 - w) · max(F / peak, M / memory) + K · launch
    T_input = B/h · seconds that a host's loader takes to make a structure's part of a batch
    T_sum   = 2 (n - 1)/n · 4 P / bandwidth + 2 log2(n) · latency

F: floating-point operations, and M: bytes read and written, for a structure; w: the fraction of the shape of
each device that is padding (it grows with n: fewer crystals on each even out less); K: instructions of a
step; P: parameters, whose gradients in float32 are summed over all devices. Bandwidth and latency are those
of a host's links within one host, and those of the network beyond. No program reaches the peaks: T is a lower
bound, and its ratios show where more devices stop helping.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxmlip.data.loader import Plan, cost


class Device(NamedTuple):
    """An accelerator, and the links between several."""

    name: str
    peak: float  # FLOP/s of products in the default precision for float32
    memory: float  # byte/s
    per_host: int
    link: float  # byte/s that each device sends (and receives at the same time), within a host
    network: float  # the same between hosts
    link_latency: float = 3e-6  # s
    network_latency: float = 10e-6  # s
    launch: float = 3e-6  # s for each instruction


# Peaks and bandwidths are of the makers' data sheets: NVIDIA A100 80 GB SXM (TF32 156 TFLOP/s, 2,039 GB/s,
# NVLink 600 GB/s in both directions together; DGX A100: 200 Gbit/s InfiniBand for each), H100 SXM (TF32
# without sparsity 494.7 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s; DGX H100: 400 Gbit/s), and
# cloud.google.com/tpu/docs/v5e (bfloat16 197 TFLOP/s, 819 GB/s, 1,600 Gbit/s between chips, which also
# connects hosts up to 256 chips). Latencies and launches are assumptions.
DEVICES = (
    Device("A100", 156e12, 2.039e12, 8, 300e9, 25e9),
    Device("H100", 494.7e12, 3.35e12, 8, 450e9, 50e9),
    Device("TPU v5e", 197e12, 0.819e12, 8, 200e9, 200e9, 1e-6, 1e-6, 0.5e-6),
)


class Work(NamedTuple):
    """The work of a training step."""

    flops: float  # for a structure
    bytes: float  # for a structure
    parameters: int  # that are trained
    instructions: int = 0
    loading: float = 0.0  # s that a host's loader takes for a structure


class StepTime(NamedTuple):
    """The parts of the time of a step, s."""

    work: float
    input: float
    summing: float

    @property
    def total(self) -> float:
        return max(self.work, self.input) + self.summing


def summed_bytes(parameters: int, devices: int) -> float:
    """Bytes that a device sends to sum gradients in float32 over all devices of a ring."""
    return 2 * (devices - 1) / devices * 4 * parameters


def step_time(work: Work, device: Device, devices: int, batch: float, waste: float = 0.0) -> StepTime:
    """The time of a step with `batch` structures over all `devices`; the fraction `waste` is padding."""
    hosts = -(-devices // device.per_host)
    within = hosts == 1
    bandwidth = device.link if within else device.network
    latency = device.link_latency if within else device.network_latency
    each = max(work.flops / device.peak, work.bytes / device.memory)
    return StepTime(
        work=batch / devices / (1 - waste) * each + work.instructions * device.launch,
        input=batch / hosts * work.loading,
        summing=summed_bytes(work.parameters, devices) / bandwidth + 2 * math.log2(devices) * latency,
    )


def padding(sizes: Int[np.ndarray, "n 4"], batch: int, devices: int, epochs: int = 1) -> float:
    """The fraction of the work of all devices that is padding, from the loader's plan.

    `sizes`: atoms, short bonds, long bonds and angles of each crystal.
    """
    plan = Plan(sizes, batch, devices, epochs=epochs)
    shape = plan.steps * devices * cost(np.array([plan.shape[:4]])).sum()
    return float(1 - epochs * cost(plan.sizes).sum() / shape)
