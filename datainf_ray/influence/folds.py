"""What one sweep accumulates, block by block, while the backward pass produces the gradients.

A fold sees a chunk of rows. `update` takes the gradients of one block for some of them, and is called inside the
backward pass, so that no example's whole gradient ever exists. `result` gives a statistic per block, a few named
tensors, and `merge` joins the statistics of two chunks. Sums are in the gradients' own precision, which is float32 or
wider. What a fold is given may lie on another device than the gradients: it is moved block by block then, and the sums
stay where it lies.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from datainf_ray.influence.block import Block

#: What is known of one block: a few tensors by their names.
Statistic = dict[str, Tensor]

#: A statistic for every block, by the block's name.
Statistics = Mapping[str, Statistic]

COUNT, TOTAL, SMALLEST = 0, 1, 2  #: what stands where in a block's `moments`

#: A damping λ below this is that of gradients whose products may be too small for float32.
TINY = 2.0**-80

_ENOUGH = 128  # rows for a product at full speed


def sqnorms_of(gradients: Tensor) -> Tensor:
    """‖g‖² of every row (b × d), in float64."""
    norms = torch.linalg.vector_norm(gradients, dim=1).double()
    if gradients.dtype != torch.float64:
        # Squares of float32 below 2⁻¹²⁶ lose their last bits, and below 2⁻¹⁵⁰ all.
        small = norms < gradients.shape[1] ** 0.5 * 2.0**-62
        if gradients.is_cuda or small.any():  # to ask a GPU takes longer than to compute it
            norms = torch.where(small, torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64), norms)
    return norms.square()


def times_power(x: Tensor, exponent: int) -> Tensor:
    """2^`exponent` · x, exact where float32 holds it; in two steps, as the power itself may be beyond float32."""
    half = exponent // 2
    return x * 2.0**half * 2.0 ** (exponent - half)


class Fold(ABC):
    """The part that all folds share: the squared norm of every row's gradient in every block.

    `blocks` are all that will be seen, `rows` is the number of rows in the chunk, and `device` is where the gradients
    will be.
    """

    scoring: ClassVar[bool] = False  #: it is a `Scores`, whose rows are committed, listed and written
    held: ClassVar[bool] = False  #: its statistics take what `Method.state` says, not what follows from the queries
    keeps: ClassVar[bool] = False  #: a later sweep over the same rows will want the gradients that it is given

    def __init__(self, blocks: Sequence[Block], rows: int, device: torch.device | str = "cpu") -> None:
        self.blocks = {block.name: block for block in blocks}
        self.position = {name: k for k, name in enumerate(self.blocks)}
        self.sqnorms = torch.zeros(rows, len(blocks), dtype=torch.float64, device=device)  # rows × blocks
        self.seen = torch.zeros(rows, dtype=torch.bool, device=device)

    def update(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor | None = None) -> None:
        """Take in `gradients` (b × d_l) of the chunk's rows `rows` (b positions, each at most once per block).

        `sqnorms` (b) are the squared norms where they are not those of `gradients`, as with projected ones.
        """
        if sqnorms is None:
            sqnorms = sqnorms_of(gradients)
        sqnorms = sqnorms.double()
        self.sqnorms[rows, self.position[block]] = sqnorms
        self.accumulate(block, gradients, rows, sqnorms)

    @abstractmethod
    def accumulate(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor) -> None:
        """What the fold itself makes of the gradients (b × d_l) and of their squared norms (b, float64)."""

    def finite(self, rows: Tensor) -> Tensor:
        """After the backward pass of a batch: which of its rows (b booleans) had finite gradients in all blocks.

        Rows with a gradient of which some block was never updated count as having a zero gradient there. One that is
        not finite has spoiled the sums: the caller starts the chunk again without it.
        """
        self.seen[rows] = True
        return self.sqnorms[rows].sum(1).isfinite()

    def result(self) -> dict[str, Statistic]:
        """The statistic of every block over all rows of the chunk; here its `moments`, 3 float64.

        They are the number of rows, Σ_i ‖g_il‖² and the smallest ‖g_il‖² that is not zero (inf where all are).
        """
        sqnorms = self.sqnorms[self.seen]
        count = torch.full((len(self.blocks),), float(len(sqnorms)), dtype=torch.float64, device=sqnorms.device)
        positive = torch.where(sqnorms > 0, sqnorms, torch.inf)
        smallest = positive.amin(0) if len(sqnorms) else torch.full_like(count, torch.inf)
        table = torch.stack([count, sqnorms.sum(0), smallest], 1).cpu()
        return {name: {"moments": row.clone()} for name, row in zip(self.blocks, table, strict=True)}

    @staticmethod
    def merge(left: Statistic, right: Statistic) -> Statistic:
        """The statistic of one block over two disjoint sets of rows: sums, unless the fold says otherwise."""
        joined = {name: value + right[name] for name, value in left.items()}
        if "moments" in joined:
            joined["moments"][SMALLEST] = torch.minimum(left["moments"][SMALLEST], right["moments"][SMALLEST])
        return joined


class Moments(Fold):
    """The blocks' `moments` and nothing else; the damping follows from them."""

    keeps = True

    def accumulate(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor) -> None:
        pass


class Norms(Fold):
    """Every row's ‖g_il‖², one after the other: `sqnorms`, as many float64 as there are rows. For small samples."""

    def accumulate(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor) -> None:
        pass

    def result(self) -> dict[str, Statistic]:
        table = self.sqnorms[self.seen].T.cpu()
        return {name: {"sqnorms": row.clone()} for name, row in zip(self.blocks, table, strict=True)}

    @staticmethod
    def merge(left: Statistic, right: Statistic) -> Statistic:
        return {"sqnorms": torch.cat([left["sqnorms"], right["sqnorms"]])}


class GradientSums(Fold):
    """Σ of the gradients of the rows in each group: the queries' gradients, before they are divided into means.

    `groups` (one int64 per row of the chunk) is the query that a row belongs to. A block's statistic has the `ids` of
    the g queries that the chunk has rows of, in order, and their `sums`, g × d_l.
    """

    def __init__(
        self, blocks: Sequence[Block], rows: int, device: torch.device | str = "cpu", *, groups: Tensor
    ) -> None:
        super().__init__(blocks, rows, device)
        self.ids, places = groups.unique(return_inverse=True)
        self.places = places.to(device)
        self.sums = {b.name: torch.zeros(len(self.ids), b.size, device=device) for b in blocks}

    def accumulate(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor) -> None:
        sums = self.sums[block]
        # A product with the indicator matrix sums in a fixed order on every device; index_add_ does not on a GPU.
        indicator = torch.zeros(len(sums), len(rows), dtype=gradients.dtype, device=gradients.device)
        indicator[self.places[rows], torch.arange(len(rows), device=gradients.device)] = 1
        self.sums[block] = torch.addmm(sums.to(gradients.dtype), indicator, gradients)

    def result(self) -> dict[str, Statistic]:
        return {name: {"ids": self.ids, "sums": sums} for name, sums in self.sums.items()}

    @staticmethod
    def merge(left: Statistic, right: Statistic) -> Statistic:
        ids = torch.cat([left["ids"], right["ids"]]).unique()
        sums = left["sums"].new_zeros(len(ids), left["sums"].shape[1])
        for part in (left, right):
            sums[torch.searchsorted(ids, part["ids"])] += part["sums"]  # ids are distinct within a part
        return {"ids": ids, "sums": sums}


class _Waiting:
    """Room for `most` rows of a block (like `gradients`, b × d_l) and their squared norms.

    They are copied: if the gradients themselves were kept, the next batch's activations would have to be made in
    memory that no cache knows.
    """

    def __init__(self, gradients: Tensor, sqnorms: Tensor, most: int) -> None:
        self.gradients, self.sqnorms = gradients.new_empty(most, gradients.shape[1]), sqnorms.new_empty(most)
        self.count = 0

    def put(self, gradients: Tensor, sqnorms: Tensor) -> None:
        place = slice(self.count, self.count + len(gradients))
        self.gradients[place], self.sqnorms[place] = gradients, sqnorms
        self.count = place.stop

    def taken(self) -> tuple[Tensor, Tensor]:
        """What waits, as long as nothing else is put in."""
        count, self.count = self.count, 0
        return self.gradients[:count], self.sqnorms[:count]


class Curvature(Fold):
    """Σ_i (v_ql·g_il) / (λ + ‖g_il‖²) · g_il for every query, at K values of the damping λ, the nodes.

    `queries` holds the queries' gradients v (`vector`, m × d_l, in whose precision products and sums are), `nodes` the
    values of λ (`nodes`, K in ascending order; a block with K = 0 is left out). A block's statistic has its `moments`,
    its `sums` (K × m × d_l: n times the paper's h_ql, by node) and its `tail` (a float64), from which
    `damping.interpolation_error` bounds what is lost between the nodes:

        tail = Σ_i  s_i / (λ_1 + s_i) · Π_j λ_j / (λ_j + s_i)    with s_i = ‖g_il‖²
    """

    keeps = True

    def __init__(
        self,
        blocks: Sequence[Block],
        rows: int,
        device: torch.device | str = "cpu",
        *,
        queries: Statistics,
        nodes: Statistics,
    ) -> None:
        super().__init__(blocks, rows, device)
        self.nodes = {name: nodes[name]["nodes"] for name in self.blocks}
        self.powers = _powers(self.nodes)
        self.queries = {name: queries[name]["vector"] for name in self.blocks}
        for name, power in self.powers.items():
            if power:
                self.queries[name] = times_power(self.queries[name], -power)
        self.sums: dict[str, Tensor] = {}
        self.tails = torch.zeros(len(blocks), dtype=torch.float64, device=device)
        self._waiting: dict[str, _Waiting] = {}

    def accumulate(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor) -> None:
        """Take the rows in, many at a time: every addition passes over K m d_l sums, for two rows or for a hundred.

        Those that wait take at most what the sums at two nodes do.
        """
        if not len(self.nodes[block]):
            return
        most = min(_ENOUGH, 2 * len(self.queries[block]))
        waiting = self._waiting.get(block)
        if waiting is not None and waiting.count + len(gradients) > most:
            self._add(block, *waiting.taken())
        if len(gradients) >= most:
            self._add(block, gradients, sqnorms)
            return
        if waiting is None:
            waiting = self._waiting[block] = _Waiting(gradients, sqnorms, most)
        waiting.put(gradients, sqnorms)

    def _add(self, block: str, gradients: Tensor, sqnorms: Tensor) -> None:
        """Add the terms of some rows to the block's sums."""
        v, nodes = self.queries[block], self.nodes[block].to(sqnorms)[:, None]
        if gradients.dtype != v.dtype:
            gradients = gradients.to(v.dtype)
            if gradients.shape[1] == self.blocks[block].size:  # else they are projected, and these are not their norms
                sqnorms = sqnorms_of(gradients)
        # A row without gradient has no curvature; λ may be zero too, where every row is such a one.
        shifted = (nodes + sqnorms).masked_fill(sqnorms == 0, torch.inf)
        self.tails[self.position[block]] += ((sqnorms / shifted[0]) * (nodes / shifted).prod(0)).sum()
        products = v.to(gradients.device) @ gradients.T  # m × b
        weights = 2.0 ** self.powers[block] / shifted  # where v was divided by that power
        weighted = (products * weights.to(products.dtype)[:, None, :]).flatten(0, 1)  # K m × b
        sums = self.sums.get(block)
        if sums is None:  # a block's first product makes them: to clear so much memory takes its time
            self.sums[block] = (weighted @ gradients).view(len(nodes), *v.shape).to(v.device)
        elif sums.device == gradients.device:
            sums.view(-1, sums.shape[-1]).addmm_(weighted, gradients)
        else:
            sums += (weighted @ gradients).view_as(sums).to(sums.device)

    def result(self) -> dict[str, Statistic]:
        for name, waiting in self._waiting.items():
            if waiting.count:
                self._add(name, *waiting.taken())
        tails = self.tails.cpu()

        def sums(name: str) -> Tensor:
            v = self.queries[name]
            return self.sums[name] if name in self.sums else v.new_zeros(len(self.nodes[name]), *v.shape)

        return {
            name: {**statistic, "sums": sums(name), "tail": tails[self.position[name]].clone()}
            for name, statistic in super().result().items()
        }


def _powers(nodes: Mapping[str, Tensor]) -> dict[str, int]:
    """For every block the exponent of a power of two near its λ where that is very small, else 0.

    With gradients g so small v·g is below what float32 holds, and 1/(λ+s) above it, but not (v/λ)·g and λ/(λ+s).
    """
    first = [some[:1].cpu() for some in nodes.values() if len(some)]
    values = iter(torch.cat(first).tolist() if first else [])
    smallest = {name: next(values) if len(some) else 0.0 for name, some in nodes.items()}
    return {name: math.frexp(lam)[1] if 0 < lam < TINY else 0 for name, lam in smallest.items()}


class Scores(Fold):
    """− Σ_l x_ql · g_il: a row's influence on each query, for query vectors x (`vector`, m × d_l a block).

    With x the iHVP this is DataInf; with x the query's own gradient it is Hessian-free. Products are in the vectors'
    precision, which is the gradients' or wider. `influence` gives them, and
    `by_block` those of every block, kept if `by_block` is asked for. A block's statistic is its `moments`. A fold that
    scores rows in another way derives from this one.
    """

    scoring = True

    def __init__(
        self,
        blocks: Sequence[Block],
        rows: int,
        device: torch.device | str = "cpu",
        *,
        vectors: Statistics,
        by_block: bool = False,
    ) -> None:
        super().__init__(blocks, rows, device)
        self.vectors = {name: vectors[name]["vector"] for name in self.blocks}
        first = next(iter(self.vectors.values()))
        self.scores = torch.zeros(rows, len(first), dtype=first.dtype, device=device)
        self.block_scores = (
            torch.zeros(rows, len(first), len(blocks), dtype=first.dtype, device=device) if by_block else None
        )

    def accumulate(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor) -> None:
        vectors = self.vectors[block].to(gradients.device)
        scores = -(gradients.to(vectors.dtype) @ vectors.T)
        self.scores[rows] += scores  # rows are distinct within a batch
        if self.block_scores is not None:
            self.block_scores[rows, :, self.position[block]] = scores

    def finite(self, rows: Tensor) -> Tensor:
        """As `Fold.finite`; a row whose gradient is finite, and its scores are not, is none of these rows either."""
        return super().finite(rows) & self.scores[rows].isfinite().all(1)

    def influence(self) -> Tensor:
        """Every row's influence on every query, rows × m, once all gradients have been taken in."""
        return self.scores

    def by_block(self) -> Tensor | None:
        """The same through every block, rows × m × blocks; None where that was not asked for."""
        return self.block_scores

    def self_influence(self) -> tuple[Tensor, Tensor] | None:
        """Every row's influence on itself and its standard error, rows each; None where that is not known."""
        return None
