"""Folds of the methods that take G_l = (1/n) Σ_i g_il g_ilᵀ as it is: the whole of it, or its products with vectors.

All sums are float64, whatever the gradients are: (G_l + λ_l I)⁻¹ multiplies rounding by the condition of G_l + λ_l I,
which is up to d_l / c.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Fold, Statistic, Statistics

_ENOUGH = 128  # rows for a product at full speed


def form_bytes(rows: int, size: int) -> int:
    """What `SecondMoments` has of a block of `size` entries after so many rows, in bytes, at most."""
    return min(4 * rows * size, 8 * size**2)


class SecondMoments(Fold):
    """Σ_i g_il g_ilᵀ of every block, in the smaller of two forms.

    Up to 2 d_l rows, a block's statistic has their `gradients` (b × d_l); more of them take more room than `products`
    do, d_l × d_l float64. Which it is follows from the number of rows alone. `only` names the blocks that are looked at
    (None: all); of the others there are the `moments` alone.
    """

    held = True
    keeps = True

    def __init__(
        self,
        blocks: Sequence[Block],
        rows: int,
        device: torch.device | str = "cpu",
        *,
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__(blocks, rows, device)
        self.only = frozenset(self.blocks if only is None else only)
        self.waiting: dict[str, list[Tensor]] = {name: [] for name in self.blocks}
        self.counts = dict.fromkeys(self.blocks, 0)
        self.products: dict[str, Tensor] = {}

    def accumulate(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor) -> None:
        if block not in self.only:
            return
        self.waiting[block].append(gradients.clone())  # the next batch may reuse their memory
        self.counts[block] += len(gradients)
        most = 2 * gradients.shape[1]
        if self.counts[block] > (min(most, _ENOUGH) if block in self.products else most):
            self._add(block)

    def _add(self, block: str) -> None:
        """Make products of the gradients that wait."""
        if self.waiting[block]:
            more = products_of({"gradients": torch.cat(self.waiting[block])})
            self.products[block] = self.products[block].add_(more) if block in self.products else more
        self.waiting[block], self.counts[block] = [], 0

    def result(self) -> dict[str, Statistic]:
        return {name: {**statistic, **self._form(name)} for name, statistic in super().result().items()}

    def _form(self, block: str) -> Statistic:
        if block not in self.only:
            return {}
        if block in self.products:
            self._add(block)
            return {"products": self.products[block]}
        waiting = self.waiting[block]
        return {"gradients": torch.cat(waiting) if waiting else torch.zeros(0, 0)}

    @staticmethod
    def merge(left: Statistic, right: Statistic) -> Statistic:
        merged = Fold.merge({"moments": left["moments"]}, {"moments": right["moments"]})
        if "gradients" in left and "gradients" in right:
            gradients = stacked(left["gradients"], right["gradients"])
            if len(gradients) <= 2 * gradients.shape[1]:
                return merged | {"gradients": gradients}
        sums = [products_of(part) for part in (left, right) if "products" in part or _some(part)]
        if not sums:  # it is not looked at
            return merged
        return merged | {"products": sums[0] if len(sums) == 1 else sums[0] + sums[1]}


def products_of(statistic: Statistic) -> Tensor:
    """Σ_i g_i g_iᵀ (d_l × d_l, float64), in whichever form the statistic has it."""
    if "products" in statistic:
        return statistic["products"]
    g = statistic["gradients"].double()
    return g.T @ g


def _some(statistic: Statistic) -> bool:
    return "gradients" in statistic and statistic["gradients"].numel() > 0


def stacked(left: Tensor, right: Tensor) -> Tensor:
    """Rows below rows; where one side has none, it may not know how wide they are."""
    parts = [part for part in (left, right) if part.numel()]
    return torch.cat(parts) if parts else left if left.shape[1] else right


class Products(Fold):
    """Σ_i (x·g_il) g_il for some vectors x (`vector`, m × d_l float64 a block): `sums`, m × d_l float64; the `moments`.

    A block without vectors (0 × d_l) is left out, and costs nothing.
    """

    keeps = True

    def __init__(
        self, blocks: Sequence[Block], rows: int, device: torch.device | str = "cpu", *, vectors: Statistics
    ) -> None:
        super().__init__(blocks, rows, device)
        self.vectors = {name: vectors[name]["vector"] for name in self.blocks}
        self.sums = {name: torch.zeros_like(x) for name, x in self.vectors.items()}
        self.waiting: dict[str, list[Tensor]] = {name: [] for name in self.blocks}
        self.counts = dict.fromkeys(self.blocks, 0)

    def accumulate(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor) -> None:
        """Take the rows in, many at a time: every addition passes over m d_l sums, for two rows or for a hundred."""
        if not len(self.vectors[block]):
            return
        self.waiting[block].append(gradients.clone())  # the next batch may reuse their memory
        self.counts[block] += len(gradients)
        if self.counts[block] >= min(_ENOUGH, 2 * len(self.vectors[block])):
            self._add(block)

    def _add(self, block: str) -> None:
        x, g = self.vectors[block], torch.cat(self.waiting[block]).double()
        self.sums[block] += ((x.to(g.device) @ g.T) @ g).to(x.device)
        self.waiting[block], self.counts[block] = [], 0

    def result(self) -> dict[str, Statistic]:
        for name, count in self.counts.items():
            if count:
                self._add(name)
        return {name: {**statistic, "sums": self.sums[name]} for name, statistic in super().result().items()}
