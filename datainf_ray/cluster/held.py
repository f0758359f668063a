"""What a worker holds while a sweep goes on, and of a chunk that is done."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from datainf_ray.cluster.chunk import Kept, Swept, Timing
from datainf_ray.cluster.orders import Sweep
from datainf_ray.cluster.reduce import Shard
from datainf_ray.influence.folds import Statistic


@dataclass(frozen=True)
class CurrentSweep:
    """A sweep, with its inputs where they are needed."""

    sweep: Sweep
    inputs: dict[str, dict[str, Statistic]]


@dataclass
class Outcome:
    """What came of a chunk."""

    facts: pa.Table
    state: Shard
    timing: Timing
    swept: Swept | None = None  # None: it was committed before
    influence: np.ndarray | None = None
    kept: Kept | None = None
    recomputed: bool = False
    batch_tokens: int | None = None  # of the batches, where there was no room for those that were planned
