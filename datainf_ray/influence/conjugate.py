"""Conjugate gradient over sweeps: (G_l + λ_l I) r_ql = v_ql for all blocks and queries at once.

    p_1 = v,  x_0 = 0,  s_0 = v
    α = ‖s‖² / p·(G + λI)p;   x += α p;   s −= α (G + λI)p;   p = s + (‖s_new‖² / ‖s‖²) p

An iteration is one sweep, for G_l p = (1/n) Σ_i (p·g_il) g_il. Every query of every block is solved for itself, and a
block whose queries all have ‖s‖ ≤ tolerance · ‖v‖ costs nothing any more. All is float64. What an iteration leaves is
kept with the run: three vectors of float64 for every query and block.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from datainf_ray.influence.block import Block
from datainf_ray.influence.datainf import damping_of, joined, slice_of
from datainf_ray.influence.folds import COUNT, TOTAL, Statistic
from datainf_ray.influence.method import Extent, Handle, Over, PlannedSweep, Settings, Sweeps
from datainf_ray.influence.products import Products
from datainf_ray.influence.sampled import over_sample, planned_over

ITERATIONS = 200  #: sweeps that are planned for where nobody says how many: with c = 0.1, G + λI is ill-conditioned
VECTORS = 2 * 3 * 2  #: of D float32 a query, between sweeps: x, s and p in float64, before a step and behind it
_MOST = 1000
_EPSILON = 2.0**-52  # float64's


def conjugate(
    sweeps: Sweeps[Handle], queries: Handle, settings: Settings, known: Handle | None
) -> tuple[Handle, Handle]:
    """`facts` (`damping`, `moments`, `residual`, `iterations` a block) and the iHVPs (`vector`), a group at a time.

    `residual` is the largest ‖s‖ / ‖v‖ of a block's queries, as the recursion has it, but no less than what rounding in
    float64 may have added that the recursion does not see.
    """
    vectors, ends = [], []
    facts = known
    for number, group in enumerate(sweeps.groups):
        some = slice_of(sweeps, queries, group)
        name = f"solve-{number}"
        last = sweeps.iterate(
            name,
            functools.partial(_start, sweeps, some, facts, settings.tolerance),
            functools.partial(_iterate, sweeps, settings, known is None),
        )
        facts = last["facts"]
        vectors.append(sweeps.each_block(_vector, last["solution"]))
        ends.append(sweeps.each_block(_end, last["solution"]))
    assert facts is not None
    whole = vectors[0] if len(vectors) == 1 else sweeps.each_block(joined, *vectors)
    return sweeps.each_block(_with_ends, facts, *ends), whole


def _start(sweeps: Sweeps[Handle], queries: Handle, facts: Handle | None, tolerance: float) -> dict[str, Handle]:
    states = {"solution": sweeps.each_block(_begun, queries, tolerance=tolerance)}
    return states if facts is None else {**states, "facts": facts}


def _iterate(
    sweeps: Sweeps[Handle], settings: Settings, sampling: bool, k: int, states: dict[str, Handle]
) -> dict[str, Handle] | None:
    if k > (settings.iterations or _MOST):
        return None
    directions = sweeps.each_block(_direction, states["solution"])
    if k > 1 and not any(float(s["left"]) for s in sweeps.collect(sweeps.each_block(_left, directions)).values()):
        return None
    sampled = settings.sampled and sampling
    swept = over_sample(sweeps, "iteration", Products, sampled, vectors=directions)
    facts = states.get("facts")
    if facts is None:
        facts = damping_of(sweeps, swept, settings.damping)
    return {"solution": sweeps.each_block(_advanced, states["solution"], swept, facts), "facts": facts}


def _begun(block: Block, queries: Statistic, *, tolerance: float) -> Statistic:
    v = queries["vector"].double()
    squares = v.square().sum(1)
    return {
        "x": torch.zeros_like(v),
        "rest": v,
        "p": v if squares.any() else v[:0],
        "square": squares,  # ‖s‖²
        "size": squares,  # ‖v‖²
        "goal": tolerance**2 * squares,
        "most": squares.new_zeros(()),  # that ‖G + λI‖ can be
        "iterations": squares.new_zeros(()),
    }


def _direction(block: Block, state: Statistic) -> Statistic:
    return {"vector": state["p"]}


def _left(block: Block, directions: Statistic) -> Statistic:
    return {"left": torch.tensor(float(len(directions["vector"])))}


def _advanced(block: Block, state: Statistic, swept: Statistic, facts: Statistic) -> Statistic:
    """The block's state after an iteration; its `p` has no rows any more when all queries have come to their goal."""
    p, lam = state["p"], facts["damping"]
    if not len(p):
        return state
    if lam == 0:  # no row has a gradient there, and none can have influence through it
        return {**state, "p": p[:0], "square": torch.zeros_like(state["square"])}
    product = swept["sums"] / swept["moments"][COUNT] + lam * p
    trace = swept["moments"][TOTAL] / swept["moments"][COUNT]
    bend = (p * product).sum(1)
    going = (state["square"] > state["goal"]) & (bend > 0)
    alpha = torch.where(going, state["square"] / bend, 0)[:, None]
    x, rest = state["x"] + alpha * p, state["rest"] - alpha * product
    square = torch.where(going, rest.square().sum(1), state["square"])
    going = going & (square > state["goal"])
    beta = torch.where(going, square / state["square"], 0)[:, None]
    return {
        **state,
        "x": x,
        "rest": rest,
        "square": square,
        "p": torch.where(going[:, None], rest + beta * p, 0) if going.any() else p[:0],
        "most": trace + lam,
        "iterations": state["iterations"] + 1,
    }


def _vector(block: Block, state: Statistic) -> Statistic:
    return {"vector": state["x"]}


def _end(block: Block, state: Statistic) -> Statistic:
    some = state["size"] > 0
    residuals = (state["square"][some] / state["size"][some]).sqrt()
    # what is added to x is rounded, and so is what that takes from s: by up to ε ‖G + λI‖ ‖x‖
    rounding = _EPSILON * state["most"] * state["x"][some].norm(dim=1) / state["size"][some].sqrt()
    residuals = torch.maximum(residuals, rounding)
    residual = residuals.max() if len(residuals) else state["size"].new_zeros(())
    return {"residual": residual, "iterations": state["iterations"]}


def _with_ends(block: Block, facts: Statistic, *ends: Statistic) -> Statistic:
    most = {name: torch.stack([end[name] for end in ends]).max() for name in ("residual", "iterations")}
    return {**facts, **most}


def planned(extent: Extent) -> list[PlannedSweep]:
    """The sweeps; how many iterations there will be is a guess, where `iterations` is not given."""
    settings = extent.settings
    return [
        replace(iteration(rows, over, group), guess=settings.iterations is None)
        for group in extent.groups
        for _ in range(settings.iterations or expected(settings))
        for rows, over in planned_over(extent)
    ]


def expected(settings: Settings) -> int:
    """About how many iterations there will be: with exact arithmetic one more than there are eigenvalues, at most."""
    return min(ITERATIONS, settings.curvature_rows + 1, max(settings.sizes.values(), default=ITERATIONS) + 1)


def iteration(rows: int, over: Over, group: tuple[int, int], name: str = "iteration") -> PlannedSweep:
    """One sweep of `Products`: two of n × D with D × q, and sums in float64."""
    return PlannedSweep(name, rows, over, group[1] - group[0], products=2, sums=2)
