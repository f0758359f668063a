"""Sweeps over gradients that are already in memory: for small problems, for tests, for reading along with the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Fold, Scores, State


class InMemory:
    """`Sweeps` over gradient matrices.

    `gradients` holds n × d_l per block; `batch` rows are folded at a time and `chunk` rows merged at a time. After a
    method has run, `scores` is n × m.

        sweeps = InMemory({"a": g_a, "b": g_b})
        datainf(sweeps, {"a": v_a, "b": v_b}, damping=0.1)
        sweeps.scores
    """

    def __init__(self, gradients: State, batch: int = 256, chunk: int = 1024) -> None:
        self.gradients, self.batch, self.chunk = gradients, batch, chunk
        self.blocks = [Block(name, "", tuple(g.shape[1:])) for name, g in gradients.items()]
        self.scores: Tensor | None = None

    def run(self, name: str, fold: type[Fold], **inputs: Any) -> dict[str, Tensor]:
        n = len(next(iter(self.gradients.values())))
        merged: dict[str, Tensor] | None = None
        scores = []
        for start in range(0, n, self.chunk):
            rows = min(self.chunk, n - start)
            part = fold(self.blocks, rows, **inputs)
            for first in range(0, rows, self.batch):
                positions = torch.arange(first, min(first + self.batch, rows))
                for block, g in self.gradients.items():
                    part.update(block, g[start + positions], positions)
                part.finite(positions)
            result = part.result()
            merged = result if merged is None else {k: fold.merge(merged[k], result[k]) for k in merged}
            if isinstance(part, Scores):
                scores.append(part.scores)
        if scores:
            self.scores = torch.cat(scores)
        return merged or {}

    def each_block(self, function: Callable[..., Tensor], *states: Mapping[str, Tensor], **values: Any) -> State:
        return {b.name: function(b, *(state[b.name] for state in states), **values) for b in self.blocks}

    def remember(self, name: str, solve: Callable[[], dict[str, State]]) -> dict[str, State]:
        return solve()
