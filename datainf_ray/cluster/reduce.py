"""Summing what the chunks send, in a tree whose shape follows from the number of chunks and from nothing else.

Floating-point sums depend on their order. Here chunk 2j is always joined with 2j + 1, and so on upwards, whoever
computed them and whenever they arrived, so the same plan gives the same bits with one worker or with a hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

#: Below this many bytes the driver does the work itself: a task's process costs seconds to start.
HERE = 32 * 2**20


@ray.remote(num_cpus=0)
def _task(function: Callable[..., Any], *values: Any) -> Any:
    return function(*values)


def compute(function: Callable[..., Any], references: Sequence[Any], size: int) -> Any:
    """A reference to `function(*values)`: computed by a Ray task, or in the driver where `size` bytes are few."""
    if size > HERE:
        return _task.remote(function, *references)
    return ray.put(function(*ray.get(list(references))))


class Tree:
    """A binary tree over `leaves` chunks, each giving a row of references that are joined one by one.

    `join(k, left, right)` gives a reference to the joined k-th entries. What has been joined is let go at once, so at
    most about log2(leaves) rows are held, and what arrived out of order.
    """

    def __init__(self, leaves: int, join: Callable[[int, Any, Any], Any]) -> None:
        self.widths = [leaves]  # the number of nodes on every level
        while self.widths[-1] > 1:
            self.widths.append((self.widths[-1] + 1) // 2)
        self.join = join
        self.waiting: dict[tuple[int, int], list[Any]] = {}

    def add(self, leaf: int, references: Sequence[Any]) -> None:
        level, index, row = 0, leaf, list(references)
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
        """The root's references, once every leaf has been added."""
        ((at, row),) = self.waiting.items()
        assert at == (len(self.widths) - 1, 0), "a leaf is missing"
        return row
