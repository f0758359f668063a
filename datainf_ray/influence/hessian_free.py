"""Hessian-free: the identity in place of the inverse curvature.

influence    I(q,k) = − Σ_l v_ql · g_kl
"""

from __future__ import annotations

from datainf_ray.influence.folds import Scores
from datainf_ray.influence.method import Extent, Handle, Method, PlannedSweep, Settings, Sweeps
from datainf_ray.influence.self_influence import SelfScores, identity


def hessian_free(sweeps: Sweeps[Handle], queries: Handle, *, selves: bool = False) -> dict[str, Handle]:
    """Hessian-free in one sweep, without damping. Returns `facts`, the blocks' `moments`; the scores are with the rows.

    `queries` are the queries' gradients (`vector`, m × d_l a block). With `selves` there is every row's influence on
    itself, too.
    """
    if selves:
        return {"facts": sweeps.run("scores", SelfScores, vectors=queries, selves=identity(sweeps, queries))}
    return {"facts": sweeps.run("scores", Scores, vectors=queries)}


def _program(sweeps: Sweeps[Handle], queries: Handle, settings: Settings, known: Handle | None) -> dict[str, Handle]:
    return hessian_free(sweeps, queries, selves=settings.self_influence)


def _sweeps(extent: Extent) -> list[PlannedSweep]:
    return [PlannedSweep("scores", extent.rows, queries=extent.queries, products=1)]


METHOD = Method("hessian-free", _program, _sweeps, self_influence=True)
