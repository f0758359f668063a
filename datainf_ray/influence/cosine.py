"""Cosine: how alike the directions of two gradients are, whatever their lengths.

    influence    I(q,k) = − Σ_l v_ql · g_kl / (‖v_q‖ ‖g_k‖)        norms over all blocks

From −1 (helpful) to 1 (harmful). A row whose gradient is zero has no direction, and no influence: 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Scores, Statistic
from datainf_ray.influence.method import Extent, Handle, Method, PlannedSweep, Settings, Sweeps


class Cosines(Scores):
    """`Scores` over the norm of the row's gradient in all blocks. Give it unit vectors for `vectors`."""

    def influence(self) -> Tensor:
        return super().influence() * self._factors()[:, None]

    def by_block(self) -> Tensor | None:
        scores = super().by_block()
        return None if scores is None else scores * self._factors()[:, None, None]

    def _factors(self) -> Tensor:
        """1 / ‖g_k‖ of every row, in the scores' own precision; 0 for a row without a gradient."""
        norms = self.sqnorms.sum(1).sqrt()
        return torch.where(norms > 0, 1 / norms, 0).to(self.scores)


def cosine(sweeps: Sweeps[Handle], queries: Handle) -> dict[str, Handle]:
    """Cosine in one sweep, without damping. Returns `facts`, the blocks' `moments`; the scores are with the rows.

    `queries` are the queries' gradients over their norms, as `unit` gives them.
    """
    return {"facts": sweeps.run("scores", Cosines, vectors=queries)}


def unit(sweeps: Sweeps[Handle], gradients: Handle) -> Handle:
    """The queries' gradients (`vector`, m × d_l a block) over their norms in all blocks; zero where that is zero."""
    squares = sweeps.collect(sweeps.each_block(_squares, gradients)).values()
    norms = torch.stack([statistic["squares"] for statistic in squares]).sum(0).sqrt()
    return sweeps.each_block(_scaled, gradients, factors=torch.where(norms > 0, 1 / norms, 0))


def _squares(block: Block, queries: Statistic) -> Statistic:
    return {"squares": torch.linalg.vector_norm(queries["vector"], dim=1).double().square()}


def _scaled(block: Block, queries: Statistic, *, factors: Tensor) -> Statistic:
    return {"vector": queries["vector"] * factors.to(queries["vector"])[:, None]}


def _program(sweeps: Sweeps[Handle], queries: Handle, settings: Settings, known: Handle | None) -> dict[str, Handle]:
    return cosine(sweeps, queries)


def _sweeps(extent: Extent) -> list[PlannedSweep]:
    return [PlannedSweep("scores", extent.rows, queries=extent.queries, products=1)]


METHOD = Method("cosine", _program, _sweeps, prepare=unit, additive=False)
