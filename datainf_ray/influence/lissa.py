"""LiSSA: the inverse as a series, whose terms are products of the damped curvature with the query's gradient.

    r_0 = v,   r_j = v + r_{j−1} − (G_l + λ_l I) r_{j−1} / s_l,   then r_J / s_l    →    (G_l + λ_l I)⁻¹ v

λ is added to the curvature, as the damping of an inverse must be. (In the paper's own code it is subtracted, and then
there is no limit.) The series converges where s_l is more than half of the largest eigenvalue of G_l + λ_l I, the
faster the smaller s_l is; slowly, where λ_l is far below it: after J steps what is left of an eigenvalue μ is
(1 − μ/s_l)^{J+1}.

Agarwal, Bullins and Hazan take one random row a step, for a corpus that is too large to go over. Here a step is a
sweep: G_l r = (1/n) Σ_i (r·g_il) g_il over all rows, for all queries and blocks at once. A row's gradient costs a
backward pass here, whatever is made of it; a step by one row would have a variance that only means over many runs take
away, and its bits would depend on the order of rows. So this is LiSSA's expectation.

`method.scale` null is, block by block, SAFETY times an estimate of G_l's largest eigenvalue, but no more than the
trace, which is never too small; and λ_l. The estimate, which is never too large, is that of `POWER` steps of subspace
iteration (each is a sweep) from SIDE vectors of signs, which are drawn by the seed and the block's name. A single
vector is too few: in some blocks it has so little of the first eigenvector that the estimate is below half, and the
series grows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.conjugate import iteration
from datainf_ray.influence.datainf import damping_of, joined, slice_of, without_rounding
from datainf_ray.influence.folds import COUNT, TOTAL, Moments, Scores, Statistic
from datainf_ray.influence.method import Extent, Handle, Method, PlannedSweep, Sample, Settings, Sweeps
from datainf_ray.influence.products import Products
from datainf_ray.influence.projection import random_signs
from datainf_ray.influence.sampled import over_sample, planned_over, sample_of

STEPS = 10  #: as in the paper
POWER = 4
SIDE = 8
SAFETY = 1.1
_ROUNDING = 1e-9  # that a norm may grow by without having grown
_WHICH = 2  # of the signs that belong to a block: the projection has 0 and 1


def lissa(
    sweeps: Sweeps[Handle], queries: Handle, settings: Settings, known: Handle | None = None
) -> dict[str, Handle]:
    """LiSSA after `settings.iterations` steps. `queries` are the queries' gradients (`vector`, m × d_l a block).

    Returns `facts`: `damping` and `moments` a block, `scale` s_l, and `residual`, the largest
    ‖v − (G_l + λ_l I) r‖ / ‖v‖ of its queries at the last step but one.
    """
    sampled = settings.sampled and known is None
    facts = _with_scale(sweeps, queries, settings, known, sampled)
    vectors, ends = [], []
    for number, group in enumerate(sweeps.groups):
        some = slice_of(sweeps, queries, group)
        last = sweeps.iterate(
            f"solve-{number}",
            functools.partial(_start, sweeps, some),
            functools.partial(_step, sweeps, settings.iterations or STEPS, sampled, some, facts),
        )
        ends.append(sweeps.each_block(_end, last["solution"], some))
        vectors.append(sweeps.each_block(_vector, last["solution"], facts))
    whole = vectors[0] if len(vectors) == 1 else sweeps.each_block(joined, *vectors)
    facts = sweeps.each_block(_with_residual, facts, *ends)
    sweeps.run("scores", Scores, vectors=whole)
    return {"facts": facts}


def _with_scale(
    sweeps: Sweeps[Handle], queries: Handle, settings: Settings, known: Handle | None, sampled: bool
) -> Handle:
    """The damping and the scale of every block."""
    if settings.scale is not None:

        def found() -> dict[str, Handle]:
            facts = known
            if facts is None:
                facts = damping_of(sweeps, over_sample(sweeps, "moments", Moments, sampled), settings.damping)
            return {"facts": sweeps.each_block(_given, facts, scale=settings.scale)}

        if known is not None:
            known = without_rounding(sweeps, known)
        return sweeps.remember("scale", found)["facts"]

    def start() -> dict[str, Handle]:
        return {"power": sweeps.each_block(_signs, queries, seed=settings.seed)}

    def step(k: int, states: dict[str, Handle]) -> dict[str, Handle] | None:
        if k > POWER:
            return None
        swept = over_sample(sweeps, "power", Products, sampled, vectors=states["power"])
        return {"power": sweeps.each_block(_turned, swept)}

    last = sweeps.iterate("power", start, step)["power"]
    facts = without_rounding(sweeps, known) if known is not None else damping_of(sweeps, last, settings.damping)
    return sweeps.each_block(_estimated, facts, last)


def _signs(block: Block, queries: Statistic, *, seed: int) -> Statistic:
    size = queries["vector"].shape[1]
    return {"vector": _orthonormal(random_signs(block.name, min(SIDE, size), size, which=_WHICH, seed=seed).double())}


def _orthonormal(rows: Tensor) -> Tensor:
    """Unit vectors at right angles that span the rows."""
    return torch.linalg.qr(rows.T).Q.T.contiguous()


def _turned(block: Block, swept: Statistic) -> Statistic:
    """The next orthonormal vectors; `largest`, ‖G X‖₂ of those before, which tends to the first eigenvalue."""
    product = swept["sums"] / swept["moments"][COUNT].clamp(min=1)
    largest = torch.linalg.matrix_norm(product, 2)
    return {"vector": _orthonormal(product), "largest": largest, "moments": swept["moments"]}


def _given(block: Block, facts: Statistic, *, scale: float) -> Statistic:
    return {**facts, "scale": torch.full_like(facts["damping"], scale)}


def _estimated(block: Block, facts: Statistic, power: Statistic) -> Statistic:
    moments = power["moments"]
    trace = moments[TOTAL] / moments[COUNT].clamp(min=1)
    return {**facts, "scale": torch.minimum(SAFETY * power["largest"], trace) + facts["damping"]}


def _start(sweeps: Sweeps[Handle], queries: Handle) -> dict[str, Handle]:
    return {"solution": sweeps.each_block(_begun, queries)}


def _begun(block: Block, queries: Statistic) -> Statistic:
    v = queries["vector"].double()
    return {"vector": v, "change": v.norm(dim=1)}


def _step(
    sweeps: Sweeps[Handle],
    steps: int,
    sampled: bool,
    queries: Handle,
    facts: Handle,
    k: int,
    states: dict[str, Handle],
) -> dict[str, Handle] | None:
    if k > steps:
        return None
    swept = over_sample(sweeps, "iteration", Products, sampled, vectors=states["solution"])
    return {"solution": sweeps.each_block(_advanced, states["solution"], swept, queries, facts)}


def _advanced(block: Block, state: Statistic, swept: Statistic, queries: Statistic, facts: Statistic) -> Statistic:
    """The block's state after a step. Raises `FloatingPointError` where what is left has grown beyond v.

    That is (I − (G_l + λ_l I) / s_l)^j v, which is never longer than v where the series converges.
    """
    r, v, lam = state["vector"], queries["vector"].double(), facts["damping"]
    if lam == 0:  # no row has a gradient there, and none can have influence through it
        return {"vector": torch.zeros_like(v), "change": torch.zeros_like(state["change"])}
    product = swept["sums"] / swept["moments"][COUNT] + lam * r
    change = v - product / facts["scale"]
    sizes = change.norm(dim=1)
    if not (sizes <= v.norm(dim=1) * (1 + _ROUNDING)).all():
        raise FloatingPointError(
            f"{block.name}: LiSSA does not converge with a scale of {float(facts['scale']):.3g}: use a larger "
            "method.scale, or null"
        )
    return {"vector": r + change, "change": sizes}


def _vector(block: Block, state: Statistic, facts: Statistic) -> Statistic:
    zero = facts["damping"] == 0
    return {"vector": state["vector"] if zero else state["vector"] / facts["scale"]}  # r is zero there


def _end(block: Block, state: Statistic, queries: Statistic) -> Statistic:
    """The block's `residual`."""
    sizes = queries["vector"].double().norm(dim=1)
    found = state["change"][sizes > 0] / sizes[sizes > 0]
    return {"residual": found.max() if len(found) else sizes.new_zeros(())}


def _with_residual(block: Block, facts: Statistic, *ends: Statistic) -> Statistic:
    return {**facts, "residual": torch.stack([end["residual"] for end in ends]).max()}


def _program(sweeps: Sweeps[Handle], queries: Handle, settings: Settings, known: Handle | None) -> dict[str, Handle]:
    return lissa(sweeps, queries, settings, known)


def _sweeps(extent: Extent) -> list[PlannedSweep]:
    settings, over = extent.settings, planned_over(extent)
    if settings.scale is None:
        first = [iteration(rows, which, (0, SIDE), "power") for _ in range(POWER) for rows, which in over]
    else:
        first = [] if extent.known else [PlannedSweep("moments", rows, which) for rows, which in over]
    steps = [
        iteration(rows, which, group)
        for group in extent.groups
        for _ in range(settings.iterations or STEPS)
        for rows, which in over
    ]
    return [*first, *steps, PlannedSweep("scores", extent.rows, queries=extent.queries, products=1)]


def _sample(extent: Extent) -> Sample | None:
    return sample_of(extent)


def _state(extent: Extent, size: int) -> int:
    """Of a block: the vectors of the subspace, in float64, and what they become."""
    return 2 * 8 * SIDE * size if extent.settings.scale is None else 0


def _tell(found: Mapping[str, Mapping[str, Statistic]], rows: int) -> dict[str, Any]:
    """The largest residual, and the scales."""
    facts = [statistic for statistic in found["facts"].values() if float(statistic["damping"]) > 0]
    scales = [float(statistic["scale"]) for statistic in facts] or [0.0]
    residual = max((float(statistic["residual"]) for statistic in facts), default=0.0)
    return {"rows": rows, "way": "series", "residual": residual, "scale": [min(scales), max(scales)]}


METHOD = Method(
    "lissa",
    _program,
    _sweeps,
    _sample,
    damped=True,
    keys=frozenset({"iterations", "scale"}),
    wide=True,
    tell=_tell,
    state=_state,
    between=lambda extent: 2 * 2,  # r in float64, before a step and behind it
)
