"""Cosine: how alike the directions of two gradients are, whatever their lengths.

    influence    I(q,k) = − Σ_l v_ql · g_kl / (‖v_q‖ ‖g_k‖)        norms over all blocks

From −1 (helpful) to 1 (harmful). A row whose gradient is zero has no direction, and no influence: 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Scores, Statistic, sqnorms_of
from datainf_ray.influence.method import Extent, Handle, Method, PlannedSweep, Settings, Sweeps


class Cosines(Scores):
    """`Scores` over the norm of the row's gradient in all blocks. Give it unit vectors for `vectors`."""

    def influence(self) -> Tensor:
        return _times(super().influence(), self._factors())

    def by_block(self) -> Tensor | None:
        scores = super().by_block()
        return None if scores is None else _times(scores, self._factors())

    def _factors(self) -> Tensor:
        """1 / ‖g_k‖ of every row, in float64; 0 for a row without a gradient."""
        norms = self.sqnorms.sum(1).sqrt()
        return torch.where(norms > 0, 1 / norms, 0)


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
    return {"squares": sqnorms_of(queries["vector"])}


def _scaled(block: Block, queries: Statistic, *, factors: Tensor) -> Statistic:
    return {"vector": _times(queries["vector"], factors)}


def _times(values: Tensor, factors: Tensor) -> Tensor:
    """Every row of `values` (b × …) times its factor (b, float64), in the values' own precision.

    One over a norm may be beyond that, as of a row that the model knows by heart, and only their product is not.
    """
    factors = factors.view(-1, *[1] * (values.dim() - 1))
    own = factors.to(values)
    return values * own if own.isfinite().all() else (values.double() * factors).to(values)


def _program(sweeps: Sweeps[Handle], queries: Handle, settings: Settings, known: Handle | None) -> dict[str, Handle]:
    return cosine(sweeps, queries)


def _sweeps(extent: Extent) -> list[PlannedSweep]:
    return [PlannedSweep("scores", extent.rows, queries=extent.queries, products=1)]


METHOD = Method("cosine", _program, _sweeps, prepare=unit, additive=False)
