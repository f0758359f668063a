"""DataInf: the inverse of a mean replaced by the mean of inverses, each of which has a closed form.

damping      λ_l  = c · (1 / (n d_l)) Σ_i ‖g_il‖²
curvature    h_ql = (1/n) Σ_i  (v_ql·g_il) / (λ_l + ‖g_il‖²) · g_il
iHVP         r_ql = (v_ql − h_ql) / λ_l
influence    I(q,k) = − Σ_l r_ql · g_kl
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.damping import (
    block_damping,
    choose_nodes,
    interpolated,
    judge,
    known_nodes,
    least_damping,
    leave_out,
    nodes_again,
    share_damping,
)
from datainf_ray.influence.folds import TINY, Curvature, Moments, Norms, Scores, Statistic, Statistics
from datainf_ray.influence.method import Extent, Handle, Method, Over, PlannedSweep, Sample, Settings, Sweeps
from datainf_ray.influence.sampled import HALVES, planned_over, sample_of
from datainf_ray.influence.self_influence import (
    SelfScores,
    refuses,
    self_sample,
    self_sweeps,
    selves_from_sample,
    state,
)

NODES = 2  #: of damping that a block usually needs; what time and transport are reckoned with
FEW = 16  #: rows that a pilot has at least: it sees all of a corpus of no more


def datainf(
    sweeps: Sweeps[Handle],
    queries: Handle,
    damping: float,
    *,
    sampled: bool = False,
    known: Handle | None = None,
    norms_first: bool = False,
    rows: int | None = None,
    few: bool = False,
) -> dict[str, Handle]:
    """DataInf in two sweeps: the curvature from one, the scores from another.

    `queries` are the queries' gradients (`vector`, m × d_l a block) and `damping` is c. The curvature's damping is
    interpolated (see `damping`); blocks where that might be wrong by more than `damping.TOLERANCE` are swept once more.
    With `norms_first` a sweep of its own finds the damping, which costs next to nothing where gradients are at hand.
    With `sampled` the curvature and the damping are those of a random sample, swept twice; with `known` (`damping` and
    `moments` a block) the damping is given. Blocks whose gradient is rounding are left out (see `damping`). With
    `rows`, the number of the corpus' rows, there is every row's influence on itself, too (see `self_influence`).

    `few` is for a corpus of at most `FEW` rows. Of a single one, or where all are alike, r·g is what h leaves of v·g: a
    share of about λ / ‖g‖², which is c / d_l, and rounding in float32 may be larger. So r is float64 then, and no
    damping is interpolated.

    Returns `facts` (`damping` and `moments` a block; `left_out` where it is; where it was interpolated, `bound` too,
    and `again` where the block was swept once more), `nodes` where it was interpolated or sampled, and with `sampled`
    `error`; the scores are with the rows.
    """

    if few:
        queries = sweeps.each_block(_wide, queries)

    def solve() -> dict[str, Handle]:
        if known is not None:
            facts = without_rounding(sweeps, known)
            return {"facts": facts, "vectors": _exact(sweeps, queries, facts, sweeps.groups)}
        if sampled:
            return _from_sample(sweeps, queries, damping)
        if norms_first:
            facts = damping_of(sweeps, sweeps.run("moments", Moments), damping)
            return {"facts": facts, "vectors": _exact(sweeps, queries, facts, sweeps.groups)}
        return _interpolated(sweeps, queries, damping, few)

    solved = sweeps.remember("ihvp", solve)
    if rows is None:
        sweeps.run("scores", Scores, vectors=solved["vectors"])
    else:
        selves, spread = selves_from_sample(sweeps, solved["facts"], rows, sampled and known is None)
        values = {"spread": spread}
        sweeps.run("scores", SelfScores, values=values, vectors=solved["vectors"], selves=selves)
    return {name: state for name, state in solved.items() if name != "vectors"}


def _interpolated(sweeps: Sweeps[Handle], queries: Handle, c: float, whole: bool) -> dict[str, Handle]:
    """Damping and iHVP from one sweep over all rows for the first group of queries; the others know the damping."""

    def chosen() -> dict[str, Handle]:
        pilot = sweeps.run("pilot", Norms, "pilot")
        pooled = _pooled(sweeps.collect(pilot))
        return {"nodes": sweeps.each_block(choose_nodes, pilot, c=c, pooled=pooled, whole=whole)}

    nodes = sweeps.remember("nodes", chosen)["nodes"]
    first, *others = sweeps.groups
    group = slice_of(sweeps, queries, first)
    swept = sweeps.run("curvature", Curvature, queries=group, nodes=nodes)
    known = damping_of(sweeps, swept, c)
    vectors = sweeps.each_block(ihvp, group, swept, nodes, known)
    facts = sweeps.each_block(judge, known, group, swept, nodes, vectors)
    again = sweeps.each_block(nodes_again, facts)
    if any(len(statistic["nodes"]) for statistic in sweeps.collect(again).values()):
        swept = sweeps.run("curvature again", Curvature, queries=group, nodes=again)
        exact = sweeps.each_block(ihvp, group, swept, again, facts)
        vectors = sweeps.each_block(_where_exact, vectors, exact, again)
        facts = sweeps.each_block(_without_bound, facts, again)
    if others:
        vectors = sweeps.each_block(joined, vectors, _exact(sweeps, queries, facts, others))
    return {"facts": facts, "nodes": nodes, "vectors": vectors}


def _exact(sweeps: Sweeps[Handle], queries: Handle, facts: Handle, groups: Sequence[tuple[int, int]]) -> Handle:
    """The iHVP of some groups of queries where the damping is known, a curvature sweep for each."""
    nodes = sweeps.each_block(known_nodes, facts)
    found = []
    for group in groups:
        some = slice_of(sweeps, queries, group)
        swept = sweeps.run("curvature", Curvature, queries=some, nodes=nodes)
        found.append(sweeps.each_block(ihvp, some, swept, nodes, facts))
    return found[0] if len(found) == 1 else sweeps.each_block(joined, *found)


def _from_sample(sweeps: Sweeps[Handle], queries: Handle, c: float) -> dict[str, Handle]:
    """Damping and iHVP from two halves of a sample, and from how they differ an estimate of the iHVP's error."""
    moments = [sweeps.run("moments", Moments, half) for half in HALVES]
    facts = damping_of(sweeps, sweeps.merged(Moments, *moments), c)
    owns = [sweeps.each_block(_as_whole, _dampings(sweeps, m, c), facts) for m in moments]
    nodes = sweeps.each_block(known_nodes, facts)
    vectors, errors = [], []
    for group in sweeps.groups:
        some = slice_of(sweeps, queries, group)
        swept = [sweeps.run("curvature", Curvature, half, queries=some, nodes=nodes) for half in HALVES]
        both = sweeps.each_block(ihvp, some, sweeps.merged(Curvature, *swept), nodes, facts)
        parts = [sweeps.each_block(ihvp, some, s, nodes, own) for s, own in zip(swept, owns, strict=True)]
        errors.append(sweeps.each_block(_difference, both, *parts))
        vectors.append(both)
    join = len(vectors) > 1
    return {
        "facts": facts,
        "nodes": nodes,
        "vectors": sweeps.each_block(joined, *vectors) if join else vectors[0],
        "error": sweeps.each_block(joined, *errors) if join else errors[0],
    }


def _wide(block: Block, queries: Statistic) -> Statistic:
    return {"vector": queries["vector"].double()}


def damping_of(sweeps: Sweeps[Handle], moments: Handle, c: float) -> Handle:
    """The damping of every block, without those whose gradient is rounding."""
    return without_rounding(sweeps, _dampings(sweeps, moments, c))


def _dampings(sweeps: Sweeps[Handle], moments: Handle, c: float) -> Handle:
    """The damping of every block; where a tensor's draws are blocks of their own, one for all of them: the mean."""
    facts = sweeps.each_block(block_damping, moments, c=c)
    draws = _draws(known := sweeps.collect(facts))
    if draws is None:
        return facts
    means = {
        tensor: math.fsum(float(known[name]["damping"]) for name in names) / len(names)
        for tensor, names in draws.items()
    }
    return sweeps.each_block(share_damping, facts, dampings=means)


def _draws(blocks: Iterable[str]) -> dict[str, list[str]] | None:
    """The blocks of each tensor; None where no tensor has draws."""
    found: dict[str, list[str]] = {}
    for name in blocks:
        found.setdefault(Block(name, "", ()).tensor, []).append(name)
    return found if any(names != [tensor] for tensor, names in found.items()) else None


def _pooled(pilot: Statistics) -> dict[str, Tensor] | None:
    """Every tensor's squared norms by row (float64), the mean over its draws; None where no tensor has draws."""
    draws = _draws(pilot)
    if draws is None:
        return None
    return {tensor: torch.stack([pilot[n]["sqnorms"] for n in names]).mean(0) for tensor, names in draws.items()}


def without_rounding(sweeps: Sweeps[Handle], facts: Handle) -> Handle:
    """What is known of the blocks, without the damping of those whose gradient is rounding."""
    dampings = [float(statistic["damping"]) for statistic in sweeps.collect(facts).values()]
    least = least_damping(dampings)
    return sweeps.each_block(leave_out, facts, least=least) if any(0 < lam < least for lam in dampings) else facts


def _as_whole(block: Block, half: Statistic, whole: Statistic) -> Statistic:
    """The damping of half a sample; none where the block is left out."""
    return {**half, "damping": torch.zeros_like(half["damping"])} if "left_out" in whole else half


def slice_of(sweeps: Sweeps[Handle], queries: Handle, group: tuple[int, int]) -> Handle:
    """The queries' gradients of one group."""
    if len(sweeps.groups) == 1:
        return queries
    return sweeps.each_block(_rows, queries, first=group[0], last=group[1])


def ihvp(block: Block, queries: Statistic, swept: Statistic, nodes: Statistic, facts: Statistic) -> Statistic:
    """`vector` r_l = (v_l − h_l) / λ_l, m × d_l, with h interpolated from the curvature's sums at the nodes.

    Where λ_l is zero no row has a gradient in the block, and none can have influence through it: r_l is zero. Raises
    `FloatingPointError` where r_l is beyond the vectors' precision.
    """
    v, lam = queries["vector"], facts["damping"]
    if lam == 0 or not len(nodes["nodes"]):
        return {"vector": torch.zeros_like(v)}
    rest = v - interpolated(swept, nodes["nodes"], lam)
    vector = rest.double().div_(lam).to(v) if lam < TINY else rest.div_(lam.to(v))
    if not vector.isfinite().all():
        raise FloatingPointError(
            f"{block.name}: inverse-Hessian-vector products are beyond {v.dtype}: the training rows' gradients are too "
            f"small beside the queries' (damping {float(lam):.3g})"
        )
    return {"vector": vector}


def error_by_query(error: Mapping[str, Statistic]) -> Tensor:
    """The estimated relative error of each query's iHVP (m float64), over all blocks, from what `sampled` gave.

    Half the difference between the iHVPs of the two halves estimates the standard error of that of the whole sample.
    """
    parts = torch.stack([statistic["squares"] for statistic in error.values()]).sum(0)  # m × 2
    return (parts[:, 0] / parts[:, 1].clamp(min=torch.finfo(torch.float64).tiny)).sqrt()


def _difference(block: Block, both: Statistic, a: Statistic, b: Statistic) -> Statistic:
    off = (a["vector"].double() - b["vector"].double()) / 2
    return {"squares": torch.stack([off.square().sum(1), both["vector"].double().square().sum(1)], 1)}


def _rows(block: Block, queries: Statistic, *, first: int, last: int) -> Statistic:
    return {"vector": queries["vector"][first:last]}


def joined(block: Block, *parts: Statistic) -> Statistic:
    """The vectors of all groups of queries, one below the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _where_exact(block: Block, vectors: Statistic, exact: Statistic, again: Statistic) -> Statistic:
    return exact if len(again["nodes"]) else vectors


def _without_bound(block: Block, facts: Statistic, again: Statistic) -> Statistic:
    """A block that was swept exactly has no error left to bound."""
    swept = len(again["nodes"]) > 0
    bound = torch.zeros_like(facts["bound"]) if swept else facts["bound"]
    return {**facts, "bound": bound, "again": torch.tensor(float(swept))}


def pilot_rows(rows: int) -> int:
    """How many random rows of `rows` tell the damping well enough to put nodes around it: 1/32, 16 to 1024."""
    return min(rows, max(FEW, min(1024, rows // 32)))


def _program(sweeps: Sweeps[Handle], queries: Handle, settings: Settings, known: Handle | None) -> dict[str, Handle]:
    rows = settings.rows if settings.self_influence else None
    few = 0 < settings.rows <= FEW and not settings.sampled
    return datainf(sweeps, queries, settings.damping, sampled=settings.sampled, known=known, rows=rows, few=few)


def _sweeps(extent: Extent) -> list[PlannedSweep]:
    """Those of `datainf`, less the one for blocks that must be swept once more."""

    def curvature(rows: int, group: tuple[int, int], nodes: int, over: Over = "train") -> PlannedSweep:
        return PlannedSweep("curvature", rows, over, group[1] - group[0], products=1 + nodes, sums=nodes)

    scores = [*self_sweeps(extent), PlannedSweep("scores", extent.rows, queries=extent.queries, products=1)]
    if extent.known:
        return [*(curvature(extent.rows, group, 1) for group in extent.groups), *scores]
    if extent.sampled is not None:
        halves = planned_over(extent)
        moments = [PlannedSweep("moments", rows, over) for rows, over in halves]
        return [*moments, *(curvature(n, group, 1, over) for group in extent.groups for n, over in halves), *scores]
    first, *others = extent.groups
    pilot = PlannedSweep("pilot", pilot_rows(extent.rows), "pilot")
    curvatures = [curvature(extent.rows, first, NODES), *(curvature(extent.rows, group, 1) for group in others)]
    return [pilot, *curvatures, *scores]


def _sample(extent: Extent) -> Sample | None:
    if extent.known or extent.sampled is not None:
        return sample_of(extent)
    return Sample(pilot_rows(extent.rows), ("pilot",), pieces=8, even=True)


def _tell(solved: Mapping[str, Mapping[str, Statistic]], rows: int) -> dict[str, Any]:
    """The rows of the curvature, the largest error bound, how many blocks were swept once more; the sample's error.

    `sampling_error` estimates the relative error of the queries' iHVPs, on average, that comes of taking the curvature
    from a sample of rows; None where it was taken from all.
    """
    facts = solved["facts"].values()
    error = None
    if "error" in solved:
        errors = error_by_query(solved["error"])
        error = float(errors[errors > 0].mean()) if errors.any() else 0.0
    return {
        "rows": rows,
        "bound": max(float(statistic.get("bound", 0)) for statistic in facts),
        "exact_blocks": sum(bool(statistic.get("again", False)) for statistic in facts),
        "sampling_error": error,
    }


METHOD = Method(
    "datainf",
    _program,
    _sweeps,
    _sample,
    damped=True,
    self_influence=True,
    tell=_tell,
    self_sample=self_sample,
    refuses=refuses,
    state=state,
)
