"""The memory that columns of second derivatives need, known before they are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class MemoryPlan:
    """Memory (bytes) that columns of second derivatives need, as XLA reports it for the compiled programs."""

    process: int  # already held by the process (0 on an accelerator, which has its own memory)
    fixed: int  # kept while columns are computed: all that does not depend on the column
    per_column: int  # more for each column of a block
    block_size: int

    @property
    def total(self) -> int:
        """Peak memory with a block of `block_size` columns."""
        return self.process + self.fixed + self.block_size * self.per_column

    def fitting(self, limit: float) -> int:
        """The largest block that stays within `limit` bytes; 0 if none does."""
        return max(0, int((limit - self.process - self.fixed) // self.per_column))


class MemoryLimitError(MemoryError):
    """Columns of second derivatives that cannot be computed within the allowed memory."""


def plan_within(
    limit: float,
    block: int,
    *,
    fixed: int,
    for_block: Callable[[int], int],
    held: Callable[[], int],
    agreed: Callable[[int], int],
    smaller: bool,
) -> MemoryPlan:
    """The plan with the largest block, of at most `block` columns, that needs at most `limit` bytes.

    `fixed` bytes are needed whatever the block, `for_block` gives those of a block, `held` those of the
    process. `agreed` turns the block that fits into one that all hosts take. Raises MemoryLimitError if none
    fits, or if that of `block` columns does not and may not be `smaller`.
    """
    while True:
        per_block = for_block(block)
        # Measured last, since compiling also takes memory that is not returned at once.
        plan = MemoryPlan(held(), fixed, -(-per_block // block), block)
        fitting = agreed(block if plan.total <= limit else min(plan.fitting(limit), block - 1))
        if fitting == block:
            return plan
        if not smaller or fitting < 1:
            break
        block = fitting
    raise MemoryLimitError(
        f"block_size={plan.block_size} needs {gb(plan.total)} ({gb(plan.process)} held by the process, "
        f"{gb(fixed)} whatever the block, {gb(plan.per_column)} for each column); "
        f"memory_limit={gb(limit)} was given. "
        + (f"block_size={fitting} fits." if fitting >= 1 else "No block size fits: allow more.")
    )


def bytes_of(shapes: Any) -> int:
    """The size of arrays on each of their devices."""

    def size(x):
        own = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        return int(np.prod(own)) * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(shapes)))


def scratch(lowered: Any) -> int:
    """Bytes that a lowered program needs besides its arguments; it is compiled."""
    memory = lowered.compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def gb(size: float) -> str:
    """`size` bytes for a message."""
    return f"{size / 1e9:.3g} GB"
