"""The methods, each a short program of sweeps. With the notation of Kwon, Wu, Wu and Zou (ICLR 2024):

    damping      λ_l  = c · (1 / (n d_l)) Σ_i ‖g_il‖²
    curvature    h_ql = (1/n) Σ_i  (v_ql·g_il) / (λ_l + ‖g_il‖²) · g_il
    iHVP         r_ql = (v_ql − h_ql) / λ_l
    influence    I(q,k) = − Σ_l r_ql · g_kl

A row of positive influence is harmful: giving it more weight in training raises the query's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import COUNT, TOTAL, Curvature, Fold, Moments, Scores

SIGN = (
    "positive influence: upweighting the row raises the query's loss (harmful); "
    "negative influence: it lowers the query's loss (helpful)"
)

Handle = TypeVar("Handle")


class Sweeps(Protocol[Handle]):
    """Where a method's program runs. A handle is a statistic for every block, wherever it lies."""

    def run(self, name: str, fold: type[Fold], **inputs: Any) -> Handle:
        """One sweep over the training rows: the fold's merged statistics. Inputs are handles or plain values."""

    def each_block(self, function: Callable[..., Tensor], *states: Handle, **values: Any) -> Handle:
        """`function(block, *tensors, **values)` for every block, where the states lie."""

    def remember(self, name: str, solve: Callable[[], dict[str, Handle]]) -> dict[str, Handle]:
        """What `solve` gives, kept with the run, so that a run that is picked up again need not solve twice."""


def datainf(sweeps: Sweeps[Handle], queries: Handle, damping: float) -> dict[str, Handle]:
    """DataInf: the damping from one sweep, the iHVP from a second, the scores from a third.

    `queries` are the queries' gradients (m × d_l a block) and `damping` is c. Returns the blocks' `moments` and
    `damping`; the scores are with the rows.
    """

    def solve() -> dict[str, Handle]:
        moments = sweeps.run("moments", Moments)
        lambdas = sweeps.each_block(block_damping, moments, c=damping)
        curvature = sweeps.run("curvature", Curvature, queries=queries, damping=lambdas)
        vectors = sweeps.each_block(ihvp, queries, curvature, moments, lambdas)
        return {"moments": moments, "damping": lambdas, "vectors": vectors}

    solved = sweeps.remember("ihvp", solve)
    sweeps.run("scores", Scores, vectors=solved["vectors"])
    return {"moments": solved["moments"], "damping": solved["damping"]}


def hessian_free(sweeps: Sweeps[Handle], queries: Handle) -> dict[str, Handle]:
    """Hessian-free: the identity in place of the inverse curvature, − v_q · g_k. One sweep, no damping."""
    return {"moments": sweeps.run("scores", Scores, vectors=queries)}


def block_damping(block: Block, moments: Tensor, *, c: float) -> Tensor:
    """λ_l = c · mean_i ‖g_il‖² / d_l, a float64 scalar; zero where there is no row at all."""
    return c * moments[TOTAL] / (moments[COUNT].clamp(min=1) * block.size)


def ihvp(block: Block, queries: Tensor, curvature: Tensor, moments: Tensor, damping: Tensor) -> Tensor:
    """r_l = (v_l − h_l) / λ_l, m × d_l, from the curvature's sum over n rows.

    Where λ_l is zero no row has a gradient in the block, and none can have influence through it: r_l is zero.
    """
    if damping == 0:
        return torch.zeros_like(queries)
    h = curvature.double() / moments[COUNT]
    return ((queries.double() - h) / damping).to(queries.dtype)


def mean_of_group(block: Block, sums: Tensor, *, counts: Tensor) -> Tensor:
    """The queries' gradients from the sums over their rows (m × d_l) and the number of rows (m); zero where none is."""
    return sums / counts.clamp(min=1).to(sums)[:, None]
