"""Sweeps over gradients that are already in memory: for small problems, for tests, for reading along with the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Fold, Scores, Statistic, Statistics, sqnorms_of
from datainf_ray.influence.method import Over


class InMemory:
    """`Sweeps` over gradient matrices.

    `gradients` holds n × d_l per block; `batch` rows are folded at a time and `chunk` rows merged at a time. `pilot` is
    the number of rows of the pilot (None: all of them), `sample` that of the sampled curvature and `own` that of
    self-influence's sample, drawn with `seed`. `names` lists the sweeps that were done, and after a method has run
    `scores` is n × m, and `selves` the rows' influences on themselves and their standard errors, where it gives them.

        sweeps = InMemory({"a": g_a, "b": g_b})
        datainf(sweeps, sweeps.vectors({"a": v_a, "b": v_b}), damping=0.1, norms_first=True)
        sweeps.scores
    """

    def __init__(
        self,
        gradients: Mapping[str, Tensor],
        batch: int = 1024,
        chunk: int = 1024,
        *,
        pilot: int | None = None,
        sample: int | None = None,
        own: int | None = None,
        seed: int = 0,
        groups: Sequence[tuple[int, int]] = ((0, 2**31),),
    ) -> None:
        self.gradients, self.batch, self.chunk = gradients, batch, chunk
        self.groups: Sequence[tuple[int, int]] = groups
        self.blocks = [Block(name, "", tuple(g.shape[1:])) for name, g in gradients.items()]
        n = len(next(iter(gradients.values())))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        half = (sample or n) // 2
        self.rows: dict[Over, Tensor | None] = {
            "train": None,
            "pilot": order[:pilot].sort().values,
            "half a": order[:half].sort().values,
            "half b": order[half : sample or n].sort().values,
            "self": order.flip(0)[:own].sort().values,
        }
        self.n = n
        self.names: list[str] = []
        self.scores: Tensor | None = None
        self.selves: tuple[Tensor, ...] | None = None
        self._sqnorms: dict[str, Tensor] = {}  # of all rows, by block

    @staticmethod
    def vectors(queries: Mapping[str, Tensor]) -> Statistics:
        """The queries' gradients (m × d_l a block) as the state that methods take."""
        return {name: {"vector": vector} for name, vector in queries.items()}

    def run(
        self,
        name: str,
        fold: type[Fold],
        over: Over = "train",
        values: Mapping[str, Any] | None = None,
        **inputs: Statistics,
    ) -> Statistics:
        self.names.append(name)
        given: dict[str, Any] = {**inputs, **(values or {})}
        chosen = self.rows[over]
        total = self.n if chosen is None else len(chosen)
        merged: dict[str, Statistic] | None = None
        scores: list[Tensor] = []
        selves: list[tuple[Tensor, Tensor]] = []
        for start in range(0, total, self.chunk):
            rows = min(self.chunk, total - start)
            part = fold(self.blocks, rows, **given)
            for first in range(0, rows, self.batch):
                positions = torch.arange(first, min(first + self.batch, rows))
                here = slice(start + first, start + first + len(positions))
                for block, g in self.gradients.items():
                    some, norms = (g[here], self._norms(block)[here]) if chosen is None else (g[chosen[here]], None)
                    part.update(block, some, positions, norms)
                part.finite(positions)
            result = part.result()
            merged = result if merged is None else {k: fold.merge(merged[k], result[k]) for k in merged}
            if isinstance(part, Scores):
                scores.append(part.influence())
                selves += [own] if (own := part.self_influence()) is not None else []
        if scores:
            self.scores = torch.cat(scores)
        if selves:
            self.selves = tuple(map(torch.cat, zip(*selves, strict=True)))
        return merged or {}

    def _norms(self, block: str) -> Tensor:
        if block not in self._sqnorms:
            self._sqnorms[block] = sqnorms_of(self.gradients[block])
        return self._sqnorms[block]

    def each_block(self, function: Callable[..., Statistic], *states: Statistics, **values: Any) -> Statistics:
        return {b.name: function(b, *(state[b.name] for state in states), **values) for b in self.blocks}

    def merged(self, fold: type[Fold], left: Statistics, right: Statistics) -> Statistics:
        return {name: fold.merge(left[name], right[name]) for name in left}

    def collect(self, state: Statistics) -> Statistics:
        return state

    def remember(self, name: str, solve: Callable[[], dict[str, Statistics]]) -> dict[str, Statistics]:
        return solve()

    def iterate(
        self,
        name: str,
        start: Callable[[], dict[str, Statistics]],
        step: Callable[[int, dict[str, Statistics]], dict[str, Statistics] | None],
    ) -> dict[str, Statistics]:
        states, k = start(), 1
        while (after := step(k, states)) is not None:
            states, k = after, k + 1
        return states
