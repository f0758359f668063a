"""The damping λ_l before it is known: nodes around a guess, and how much interpolating between them can be wrong.

DataInf's curvature needs λ_l = c · mean_i ‖g_il‖² / d_l, which is known only when every row has been seen. But
1 / (λ + s) is smooth in λ, so the curvature is summed at K nodes λ_1..λ_K around a guess from a few random rows, and
interpolated to the true λ afterwards. Lagrange's polynomial p through the nodes is off, for a row with s = ‖g‖², by

    1/(λ+s) − p(λ)  =  1/(λ+s) · Π_j (λ − λ_j) / (λ_j + s)

A gradient may be zero in theory and rounding in practice: softmax does not see what is added to all keys, so the loss
does not depend on the bias of a key projection. λ then shrinks with the rounding, and dividing by it would make the
block count like any other. Such a block is left out: its λ is set to zero, as that of a block without any gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import COUNT, SMALLEST, TOTAL, Statistic, sqnorms_of

TOLERANCE = 1e-6  #: of a block's iHVP, relative; beyond it the block is swept again with the true damping
MOST_NODES = 8
LEAST = 1e-6  #: of the largest block's root mean square gradient; below it a gradient is rounding
_AIM = 1e-8  # what the nodes are chosen for, by the guess
_FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "other")
_ROUNDING = 2.0**-24  # float32's; each node's sum carries it


def block_damping(block: Block, statistic: Statistic, *, c: float) -> Statistic:
    """`damping` λ_l = c · mean_i ‖g_il‖² / d_l, a float64 scalar (zero where there is no row), beside the `moments`."""
    moments = statistic["moments"]
    return {"damping": c * moments[TOTAL] / (moments[COUNT].clamp(min=1) * block.size), "moments": moments}


def least_damping(dampings: Iterable[float]) -> float:
    """The λ below which a block's gradient is rounding, from λ of all blocks: λ/c is the mean square of its entries."""
    return LEAST**2 * max(dampings, default=0.0)


def is_rounding(block: Block, damping: float, least: float) -> bool:
    """Whether a block's gradient is rounding, by its λ and by `least_damping`.

    A factor of a product is never left out: the gradient of lora_A is a multiple of lora_B, which is as small as it
    likes at the beginning of training.
    """
    return 0 < damping < least and (block.kind not in _FACTORS or block.name.endswith(".bias"))


def leave_out(block: Block, facts: Statistic, *, least: float) -> Statistic:
    """What is known of a block; with `left_out`, and without damping, where its gradient is rounding."""
    if not is_rounding(block, float(facts["damping"]), least):
        return facts
    return {**facts, "damping": torch.zeros_like(facts["damping"]), "left_out": torch.tensor(1.0)}


def share_damping(block: Block, facts: Statistic, *, dampings: Mapping[str, float]) -> Statistic:
    """What is known of a block, with the damping of its tensor: of several draws, their mean."""
    return {**facts, "damping": torch.full_like(facts["damping"], dampings[block.tensor])}


def choose_nodes(
    block: Block, pilot: Statistic, *, c: float, pooled: Mapping[str, Tensor] | None = None, whole: bool = False
) -> Statistic:
    """`nodes` (K float64, ascending) from the pilot's `sqnorms`; none where all of those are zero.

    With `pooled` the guess is by every tensor's squared norms, the mean over its draws, which share a damping. A pilot
    of the `whole` corpus needs no guess: the damping itself is the only node.

    They are Chebyshev's, in log λ, on an interval around the guess that is as wide as the guess is uncertain: three
    standard errors of the mean either way. K is the least from 2 to `MOST_NODES` whose error over that interval would
    be below 1e-8 if all rows were like the pilot's. Two do where λ is far below every ‖g‖²; a model that has learnt
    some rows by heart needs more.
    """
    s = pilot["sqnorms"]
    own = s if pooled is None else pooled[block.tensor]
    guess = c * own.mean() / block.size if len(s) else s.new_zeros(())
    if guess == 0:
        return {"nodes": s.new_zeros(0)}
    if whole:
        return {"nodes": guess[None]}
    spread = own.std() / (own.mean() * len(s) ** 0.5) if len(s) > 1 else s.new_ones(())
    width = float((3 * spread).clamp(0.05, 1.5))
    true = guess * torch.linspace(-width, width, 33, dtype=s.dtype).exp()
    for k in range(2, MOST_NODES + 1):
        angles = (2 * torch.arange(k, dtype=s.dtype) + 1) * torch.pi / (2 * k)
        nodes = (guess * (-width * angles.cos()).exp()).sort().values
        if interpolation_error(nodes, true, tail(nodes, s) / len(s)).max() <= _AIM:
            break
    return {"nodes": nodes}


def tail(nodes: Tensor, sqnorms: Tensor) -> Tensor:
    """Σ_i s_i / (λ_1 + s_i) · Π_j λ_j / (λ_j + s_i), a scalar, for K `nodes` λ and the squared norms s of n rows."""
    shifted = (nodes[:, None] + sqnorms).masked_fill(sqnorms == 0, torch.inf)
    return ((sqnorms / shifted[0]) * (nodes[:, None] / shifted).prod(0)).sum()


def interpolation_error(nodes: Tensor, damping: Tensor, mean_tail: Tensor) -> Tensor:
    """A bound on ‖h interpolated − h‖ / ‖v‖ at each of some dampings λ, whatever the gradients' directions.

    A row's term of h is off by at most ‖v‖ · s/(λ+s) · Π_j |λ − λ_j|/(λ_j+s). With `mean_tail` the mean over rows of
    s/(λ_1+s) · Π_j λ_j/(λ_j+s), and (λ_1+s)/(λ+s) ≤ max(1, λ_1/λ), the mean of all terms is off by at most

        max(1, λ_1/λ) · Π_j |λ/λ_j − 1| · mean_tail
    """
    lam = damping[..., None]
    return torch.clamp(nodes[0] / damping, min=1) * (lam / nodes - 1).abs().prod(-1) * mean_tail


def lagrange(nodes: Tensor, damping: Tensor) -> Tensor:
    """The weights w (K) with p(λ) = Σ_j w_j f(λ_j) for the polynomial p through f at the nodes."""
    others = ~torch.eye(len(nodes), dtype=torch.bool)
    above = torch.where(others, damping - nodes[None, :], 1)
    below = torch.where(others, nodes[:, None] - nodes[None, :], 1)
    return (above / below).prod(1)


def interpolated(swept: Statistic, nodes: Tensor, damping: Tensor) -> Tensor:
    """h at `damping` (m × d_l) from the curvature's `sums` at the nodes."""
    sums = swept["sums"]
    weights = (lagrange(nodes, damping) / swept["moments"][COUNT]).to(sums)
    return (weights @ sums.flatten(1)).view(sums.shape[1:])


def judge(
    block: Block, known: Statistic, queries: Statistic, swept: Statistic, nodes: Statistic, vectors: Statistic
) -> Statistic:
    """What is `known` of the damping, and `bound`, a float64 scalar: how wrong interpolating may have made the iHVP.

    The bound is on ‖r interpolated − r‖ / ‖r‖, r = (v − h)/λ, the largest over the queries: that on h, times
    ‖v‖ / ‖v − h‖, and in it what `lagrange`'s weights make of the sums' rounding where λ lies outside the nodes. inf
    where there were no nodes although there are gradients.
    """
    lam, points, v = known["damping"], nodes["nodes"], queries["vector"]
    if lam == 0 or not v.any():
        return {**known, "bound": lam.new_zeros(())}
    if not len(points):
        return {**known, "bound": lam.new_full((), torch.inf)}
    error = interpolation_error(points, lam, swept["tail"] / swept["moments"][COUNT])
    error = error + (lagrange(points, lam).abs().sum() - 1).clamp(min=0) * _ROUNDING
    sizes, rests = map(_norms, (v, vectors["vector"]))
    # ‖v − h‖ is at least what was found less what that may be off by
    rests = (rests * lam - error * sizes).clamp(min=0)
    return {**known, "bound": (error * sizes[sizes > 0] / rests[sizes > 0]).max()}


def _norms(vectors: Tensor) -> Tensor:
    """The norm of every row (m × d), in float64, whatever its size: a square may be beyond float32."""
    norms = sqnorms_of(vectors).sqrt()
    return norms if norms.isfinite().all() else torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)


def known_nodes(block: Block, facts: Statistic) -> Statistic:
    """The true damping as the only node: nothing is interpolated."""
    lam = facts["damping"]
    return {"nodes": lam[None] if lam > 0 else lam.new_zeros(0)}


def nodes_again(block: Block, facts: Statistic) -> Statistic:
    """The true damping where the bound exceeds `TOLERANCE`, no node where it does not."""
    return known_nodes(block, facts) if facts["bound"] > TOLERANCE else {"nodes": facts["damping"].new_zeros(0)}


def smallest_sqnorm(facts: Statistic) -> float | None:
    """The smallest ‖g_il‖² that is not zero; None where all are."""
    value = float(facts["moments"][SMALLEST])
    return value if value != float("inf") else None
