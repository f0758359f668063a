"""What one sweep accumulates, block by block, while the backward pass produces the gradients.

A fold sees a chunk of rows. `update` takes the gradients of one block for some of them, and is called inside the
backward pass, so that no example's whole gradient ever exists. `result` gives one statistic per block, and `merge`
joins the statistics of two chunks. Sums are in the gradients' own precision, which is float32 or wider.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from datainf_ray.influence.block import Block

#: A statistic for every block, by the block's name.
State = Mapping[str, Tensor]

COUNT, TOTAL, SMALLEST = 0, 1, 2  #: what stands where in a block's moments


class Fold(ABC):
    """The part that all folds share: the squared norm of every row's gradient in every block.

    `blocks` are all that will be seen, `rows` is the number of rows in the chunk, and `device` is where the gradients
    will be.
    """

    def __init__(self, blocks: Sequence[Block], rows: int, device: torch.device | str = "cpu") -> None:
        self.blocks = {block.name: block for block in blocks}
        self.position = {name: k for k, name in enumerate(self.blocks)}
        self.sqnorms = torch.zeros(rows, len(blocks), dtype=torch.float64, device=device)  # rows × blocks
        self.seen = torch.zeros(rows, dtype=torch.bool, device=device)

    @abstractmethod
    def update(self, block: str, gradients: Tensor, rows: Tensor) -> None:
        """Take in `gradients` (b × d_l) of the chunk's rows `rows` (b positions, each at most once per block)."""

    def finite(self, rows: Tensor) -> Tensor:
        """After the backward pass of a batch: which of its rows (b booleans) had finite gradients in all blocks.

        Rows with a gradient of which some block was never updated count as having a zero gradient there. One that is
        not finite has spoiled the sums: the caller starts the chunk again without it.
        """
        self.seen[rows] = True
        return self.sqnorms[rows].sum(1).isfinite()

    @abstractmethod
    def result(self) -> dict[str, Tensor]:
        """One statistic for every block, over all rows of the chunk."""

    @staticmethod
    def merge(left: Tensor, right: Tensor) -> Tensor:
        """The statistic of one block over two disjoint sets of rows. Sums, unless the fold says otherwise."""
        return left + right

    def _squared_norms(self, block: str, gradients: Tensor, rows: Tensor) -> Tensor:
        sqnorms = torch.einsum("bd,bd->b", gradients, gradients)
        self.sqnorms[rows, self.position[block]] = sqnorms.to(self.sqnorms.dtype)
        return sqnorms


class Moments(Fold):
    """The number of rows, Σ_i ‖g_il‖² and the smallest ‖g_il‖² that is not zero (inf where all are): 3 float64 a block.

    The damping follows from the first two; the third bounds the error of interpolating in it.
    """

    def update(self, block: str, gradients: Tensor, rows: Tensor) -> None:
        self._squared_norms(block, gradients, rows)

    def result(self) -> dict[str, Tensor]:
        return _moments(self)

    @staticmethod
    def merge(left: Tensor, right: Tensor) -> Tensor:
        joined = left + right
        joined[SMALLEST] = torch.minimum(left[SMALLEST], right[SMALLEST])
        return joined


class GradientSums(Fold):
    """Σ of the gradients of the rows in each group: the queries' gradients, before they are divided into means.

    `groups` (one int64 per row of the chunk) is the query that a row belongs to, of `queries` in all. A block's result
    is queries × d_l.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        rows: int,
        device: torch.device | str = "cpu",
        *,
        groups: Tensor,
        queries: int,
    ) -> None:
        super().__init__(blocks, rows, device)
        self.groups = groups.to(device)
        self.sums = {b.name: torch.zeros(queries, b.size, device=device) for b in blocks}

    def update(self, block: str, gradients: Tensor, rows: Tensor) -> None:
        self._squared_norms(block, gradients, rows)
        sums = self.sums[block]
        # A product with the indicator matrix sums in a fixed order on every device; index_add_ does not on a GPU.
        indicator = torch.zeros(len(sums), len(rows), dtype=gradients.dtype, device=gradients.device)
        indicator[self.groups[rows], torch.arange(len(rows), device=gradients.device)] = 1
        self.sums[block] = torch.addmm(sums.to(gradients.dtype), indicator, gradients)

    def result(self) -> dict[str, Tensor]:
        return self.sums


class Curvature(Fold):
    """Σ_i (v_ql·g_il) / (λ_l + ‖g_il‖²) · g_il for every query: n times the paper's h_ql; a block's result is m × d_l.

    `queries` holds the queries' gradients v (m × d_l a block), `damping` λ_l (a scalar a block).
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        rows: int,
        device: torch.device | str = "cpu",
        *,
        queries: State,
        damping: State,
    ) -> None:
        super().__init__(blocks, rows, device)
        self.queries, self.damping = queries, damping
        self.sums = {name: torch.zeros_like(v) for name, v in queries.items()}

    def update(self, block: str, gradients: Tensor, rows: Tensor) -> None:
        sqnorms = self._squared_norms(block, gradients, rows)
        v = self.queries[block]
        weights = 1 / (self.damping[block].to(sqnorms.dtype) + sqnorms)
        # λ_l is zero only where every row's gradient is: such a block has no curvature, and no influence
        weights = weights.masked_fill(sqnorms == 0, 0.0)
        self.sums[block].addmm_((v @ gradients.T) * weights, gradients)

    def result(self) -> dict[str, Tensor]:
        return self.sums


class Scores(Fold):
    """− Σ_l x_ql · g_il: a row's influence on each query, for query vectors x (m × d_l a block).

    With x the iHVP this is DataInf; with x the query's own gradient it is Hessian-free. `scores` is rows × m, and
    `block_scores` (kept if `by_block`) rows × m × blocks. The result is the blocks' moments.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        rows: int,
        device: torch.device | str = "cpu",
        *,
        vectors: State,
        by_block: bool = False,
    ) -> None:
        super().__init__(blocks, rows, device)
        self.vectors = vectors
        first = next(iter(vectors.values()))
        self.scores = torch.zeros(rows, len(first), dtype=first.dtype, device=device)
        self.block_scores = (
            torch.zeros(rows, len(first), len(blocks), dtype=first.dtype, device=device) if by_block else None
        )

    def update(self, block: str, gradients: Tensor, rows: Tensor) -> None:
        self._squared_norms(block, gradients, rows)
        scores = -(gradients @ self.vectors[block].T)
        self.scores[rows] += scores  # rows are distinct within a batch
        if self.block_scores is not None:
            self.block_scores[rows, :, self.position[block]] = scores

    def result(self) -> dict[str, Tensor]:
        return _moments(self)

    @staticmethod
    def merge(left: Tensor, right: Tensor) -> Tensor:
        return Moments.merge(left, right)


def _moments(fold: Fold) -> dict[str, Tensor]:
    sqnorms = fold.sqnorms[fold.seen]
    count = torch.full((len(fold.blocks),), float(len(sqnorms)), dtype=torch.float64, device=sqnorms.device)
    positive = torch.where(sqnorms > 0, sqnorms, torch.inf)
    smallest = positive.amin(0) if len(sqnorms) else torch.full_like(count, torch.inf)
    table = torch.stack([count, sqnorms.sum(0), smallest], 1).cpu()
    return dict(zip(fold.blocks, table, strict=True))
