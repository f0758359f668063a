"""Summing what the chunks send, in a tree whose shape follows from the number of chunks and from nothing else.

Floating-point sums depend on their order. Here chunk 2j is always joined with 2j + 1, and so on upwards, whoever
computed them and whenever they arrived, so the same plan gives the same bits with one worker or with a hundred.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

#: Below this many bytes the driver does the work itself: a task's process costs seconds to start.
HERE = 32 * 2**20


# The store's memory is read-only, and torch warns of that. Nothing here writes into what it was given.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

#: A portion of a state as it travels: for every block of the portion its statistic, as numpy arrays.
Shard = dict[str, dict[str, np.ndarray]]


def arrays(state: Mapping[str, Mapping[str, Tensor]]) -> Shard:
    """A state's tensors as arrays on the host."""
    return {
        block: {name: np.asarray(value.cpu()) for name, value in statistic.items()}
        for block, statistic in state.items()
    }


def tensors(shard: Shard, place: torch.device | str = "cpu") -> dict[str, dict[str, Tensor]]:
    """A shard's arrays as tensors in a place; on the host they share its memory, and are not to be written to."""
    return {
        block: {name: torch.as_tensor(value).to(place) for name, value in statistic.items()}
        for block, statistic in shard.items()
    }


@ray.remote(num_cpus=0)
def _task(function: Callable[..., Any], *values: Any) -> Any:
    return function(*values)


def compute(function: Callable[..., Any], references: Sequence[Any], size: int) -> Any:
    """A reference to `function(*values)`: computed by a Ray task, or in the driver where `size` bytes are few."""
    if size > HERE:
        return _task.remote(function, *references)
    return ray.put(function(*ray.get(list(references))))


class Tree:
    """A binary tree over `leaves` chunks, each giving a row of values (or references) that are joined one by one.

    `join(k, left, right)` gives the joined k-th entries. What has been joined is let go at once, so at most about
    log2(leaves) rows are held, and what arrived out of order.
    """

    def __init__(self, leaves: int, join: Callable[[int, Any, Any], Any]) -> None:
        self.widths = [leaves]  # the number of nodes on every level
        while self.widths[-1] > 1:
            self.widths.append((self.widths[-1] + 1) // 2)
        self.join = join
        self.waiting: dict[tuple[int, int], list[Any]] = {}

    def add(self, leaf: int, values: Sequence[Any]) -> None:
        level, index, row = 0, leaf, list(values)
        while level < len(self.widths) - 1:
            sibling = index ^ 1
            if sibling < self.widths[level]:
                other = self.waiting.pop((level, sibling), None)
                if other is None:
                    break
                pairs = zip(row, other, strict=True) if index < sibling else zip(other, row, strict=True)
                row = [self.join(k, left, right) for k, (left, right) in enumerate(pairs)]
            level, index = level + 1, index // 2
        self.waiting[level, index] = row

    def result(self) -> list[Any]:
        """The root's values, once every leaf has been added."""
        ((at, row),) = self.waiting.items()
        assert at == (len(self.widths) - 1, 0), "a leaf is missing"
        return row
