"""A row's influence on itself: how much the model leans on that row alone. It needs no query.

hessian-free    I(k,k) = − Σ_l ‖g_kl‖²
exact           I(k,k) = − Σ_l g_klᵀ (G_l + λ_l I)⁻¹ g_kl
datainf         I(k,k) = − Σ_l (1/λ_l) (‖g_kl‖² − (1/n) Σ_i (g_il·g_kl)² / (λ_l + ‖g_il‖²))

DataInf's sum over i is taken from a random sample: the rows of the curvature where that is sampled, else `SAMPLE` rows
(all, where there are no more). It is right on average, and its standard error stands beside it: that of a mean over s
of n rows, (standard deviation) · √((1 − s/n) / s).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Fold, Scores, Statistic, Statistics
from datainf_ray.influence.method import Extent, Handle, Over, PlannedSweep, Sample, Sweeps
from datainf_ray.influence.sampled import over_sample, planned_over

SAMPLE = 512  #: rows that DataInf's sum is taken from, where nobody says how many
MOST_BYTES = 4 * 2**30  #: of the sample's gradients, which every worker holds
#: The share of ‖x‖² that DataInf's sum must leave to be taken in float32. Less is left where rows are all alike: of a
#: single one λ / (λ + ‖x‖²), and where a block has many entries float32's rounding is larger than that.
_ROOM = 1e-2
_STEPS = 3


class Gathered(Fold):
    """The rows' gradients themselves, one below the other: `gradients`, b × d_l a block, beside the `moments`.

    For few rows. A row without gradient in a block has zeros there, so that it stands at the same place in all blocks.
    """

    held = True
    keeps = True

    def __init__(self, blocks: Sequence[Block], rows: int, device: torch.device | str = "cpu") -> None:
        super().__init__(blocks, rows, device)
        self.gradients: dict[str, Tensor] = {}

    def accumulate(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor) -> None:
        if block not in self.gradients:
            self.gradients[block] = gradients.new_zeros(len(self.seen), gradients.shape[1])
        self.gradients[block][rows] = gradients

    def result(self) -> dict[str, Statistic]:
        nothing = torch.zeros(len(self.seen), 0, device=self.seen.device)
        return {
            name: {**statistic, "gradients": self.gradients.get(name, nothing)[self.seen]}
            for name, statistic in super().result().items()
        }

    @staticmethod
    def merge(left: Statistic, right: Statistic) -> Statistic:
        merged = Fold.merge({"moments": left["moments"]}, {"moments": right["moments"]})
        width = max(left["gradients"].shape[1], right["gradients"].shape[1])
        parts = [_as_wide(one["gradients"], width) for one in (left, right)]
        return merged | {"gradients": torch.cat(parts)}


def _as_wide(gradients: Tensor, width: int) -> Tensor:
    """Zeros for the gradients of rows that have none, of whom it was not known how wide they would be."""
    return gradients if gradients.shape[1] else gradients.new_zeros(len(gradients), width)


class SelfScores(Scores):
    """`Scores`, and every row's influence on itself, under an inverse that is known as

        x_lᵀ r_l  =  shift · ‖x_l‖²  +  sign · ‖factor x_l‖²

    `selves` has for every block the `shift` and the `sign` (float64) and the `factor`, k × d_l. Sums are float64, and
    products are in the factor's precision. With `spread` the k rows of all blocks' factors belong to k samples of a
    random sample, whose sum has the standard error `spread` · (their standard deviation).
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        rows: int,
        device: torch.device | str = "cpu",
        *,
        vectors: Statistics,
        selves: Statistics,
        spread: float | None = None,
        by_block: bool = False,
    ) -> None:
        super().__init__(blocks, rows, device, vectors=vectors, by_block=by_block)
        self.selves, self.spread = selves, spread
        self.own = torch.zeros(rows, dtype=torch.float64, device=device)
        self.terms: Tensor | None = None  # rows × k, by the sample's rows

    def accumulate(self, block: str, gradients: Tensor, rows: Tensor, sqnorms: Tensor) -> None:
        super().accumulate(block, gradients, rows, sqnorms)
        known = self.selves[block]
        # `sqnorms` come of norms in float32, and the two terms may cancel out but for a small rest.
        squares = torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64).square()
        self.own[rows] -= known["shift"].to(squares) * squares
        factor = known["factor"].to(gradients.device)
        if not len(factor):
            return
        squares = (gradients.to(factor.dtype) @ factor.T).double().square() * known["sign"].to(sqnorms)
        self.own[rows] -= squares.sum(1)
        if self.spread is not None:
            if self.terms is None:
                self.terms = squares.new_zeros(len(self.own), len(factor))
            self.terms[rows] += squares

    def self_influence(self) -> tuple[Tensor, Tensor] | None:
        if self.spread is None or self.terms is None or self.terms.shape[1] < 2:
            return self.own, torch.zeros_like(self.own)
        return self.own, self.terms.std(1) * self.spread


def selves_from_sample(sweeps: Sweeps[Handle], facts: Handle, rows: int, sampled: bool) -> tuple[Handle, float]:
    """DataInf's inverse as `SelfScores` takes it, from some of so many `rows`, and the `spread` of that sample."""
    if sampled:
        swept = over_sample(sweeps, "self", Gathered, True)
    else:
        swept = sweeps.run("self", Gathered, "train" if rows <= SAMPLE else "self")
    selves = sweeps.each_block(_from_rows, swept, facts)
    size = max(int(s["size"]) for s in sweeps.collect(sweeps.each_block(_size, swept)).values())
    return selves, math.sqrt(size * max(1 - size / rows, 0.0)) if sampled or rows > SAMPLE else 0.0


def _from_rows(block: Block, swept: Statistic, facts: Statistic) -> Statistic:
    """factor_i = g_i / √(s λ (λ + ‖g_i‖²)): then ‖factor x‖² = (1/λ) (1/s) Σ_i (g_i·x)² / (λ + ‖g_i‖²)."""
    lam, g = facts["damping"].double(), swept["gradients"]
    if lam == 0 or not g.shape[1]:  # in the second case none of the sampled rows has a gradient there
        shift = torch.zeros_like(lam) if lam == 0 else 1 / lam
        return {"shift": shift, "sign": -torch.ones_like(lam), "factor": g[:0]}
    wide = g.double()
    weights = (len(g) * lam * (lam + wide.square().sum(1))).rsqrt()
    factor = wide * weights[:, None]
    if not 1 - lam * _largest(factor) <= _ROOM:  # nor where no row has a gradient here, and there is none
        factor = factor.to(g.dtype)
    return {"shift": 1 / lam, "sign": -torch.ones_like(lam), "factor": factor}


def _largest(factor: Tensor) -> Tensor:
    """The largest eigenvalue of factorᵀ factor, or a little less, in a few steps of the power iteration.

    The sum of all is at most 1/λ here. So where one of them comes near to that, the others are far below it, and a step
    or two find it.
    """
    x = factor[factor.square().sum(1).argmax()]
    for _ in range(_STEPS):
        x = factor.T @ (factor @ (x / x.norm()))
    return x.norm()


def _size(block: Block, swept: Statistic) -> Statistic:
    return {"size": torch.tensor(float(len(swept["gradients"])))}


def identity(sweeps: Sweeps[Handle], queries: Handle) -> Handle:
    """The identity as `SelfScores` takes it: xᵀx = ‖x‖²."""
    return sweeps.each_block(_identity, queries)


def _identity(block: Block, queries: Statistic) -> Statistic:
    one = torch.ones((), dtype=torch.float64)
    return {"shift": one, "sign": one, "factor": queries["vector"][:0]}


def self_sweeps(extent: Extent) -> list[PlannedSweep]:
    """The sweeps of `selves_from_sample`."""
    if not extent.settings.self_influence:
        return []
    halves = planned_over(extent) if extent.sampled is not None else [_own(extent)]
    return [PlannedSweep("self", rows, over) for rows, over in halves]


def _own(extent: Extent) -> tuple[int, Over]:
    return (extent.rows, "train") if extent.rows <= SAMPLE else (SAMPLE, "self")


def self_sample(extent: Extent) -> Sample | None:
    """The rows that DataInf's self-influence is summed over, where they are a sample of their own."""
    if not extent.settings.self_influence or extent.sampled is not None or extent.rows <= SAMPLE:
        return None
    return Sample(SAMPLE, ("self",), pieces=16, even=True)


def sample_rows(extent: Extent) -> int:
    """How many rows `selves_from_sample` gathers."""
    return min(extent.rows, SAMPLE) if extent.sampled is None else extent.sampled


def state(extent: Extent, size: int) -> int:
    """What a block's gradients of the sample take, in bytes."""
    return 4 * sample_rows(extent) * size if extent.settings.self_influence else 0


def refuses(extent: Extent) -> tuple[str, str] | None:
    """Why there is no room for the sample's gradients, and what to do about it."""
    needed = sum(state(extent, size) for size in extent.settings.sizes.values())
    if needed <= MOST_BYTES:
        return None
    rows, most = sample_rows(extent), MOST_BYTES // (4 * sum(extent.settings.sizes.values()))
    return (
        f"self_influence needs the gradients of {rows:,} rows on every worker, {needed / 2**30:.1f} GiB of at most "
        f"{MOST_BYTES / 2**30:.0f}",
        f"use method.curvature_rows: {max(most, 2)}, or hessian-free",
    )
