"""The queries' gradients, from a sweep over their rows."""

from __future__ import annotations

from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Statistic


def mean_of_group(block: Block, swept: Statistic, *, counts: Tensor) -> Statistic:
    """The queries' gradients from the sums over their rows, and the number of rows (m); zero where there is none."""
    vector = swept["sums"].new_zeros(len(counts), swept["sums"].shape[1])
    vector[swept["ids"]] = swept["sums"] / counts[swept["ids"]].clamp(min=1).to(vector)[:, None]
    return {"vector": vector}
