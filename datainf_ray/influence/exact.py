"""Exact: the inverse of the damped curvature itself, nothing approximated.

damping      λ_l  = c · (1 / (n d_l)) Σ_i ‖g_il‖²
curvature    G_l  = (1/n) Σ_i g_il g_ilᵀ
iHVP         r_ql = (G_l + λ_l I)⁻¹ v_ql
influence    I(q,k) = − Σ_l r_ql · g_kl

There are two ways, and which one a run takes follows from its rows and its blocks alone (`portions`):

- direct, where every block has at most 4,096 entries or there are at most 4,096 rows, and no block's gradients take
  more than 2 GiB: one sweep sums a block's
  d_l × d_l products, or gathers its n gradients, whichever is less, and Cholesky's factors in float64 solve it. With
  fewer rows than entries that is Woodbury's identity over the n × n Gram matrix K = G Gᵀ of the gradients G (n × d_l):

        (GᵀG/n + λI)⁻¹ v  =  (v − Gᵀ (K + nλI)⁻¹ G v) / λ

  What does not fit at once is swept in portions of blocks. So exact influence takes two sweeps over any corpus.
- conjugate gradient elsewhere (`conjugate`): a sweep an iteration, for all queries and blocks at once.

r and its products with the rows are float64. Most of r is v/λ where no row has a gradient; of that nothing is left in
r·g, and in float32 what is left of its rounding would be as large as r·g itself where there are few rows or λ is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.conjugate import VECTORS, conjugate, expected, planned
from datainf_ray.influence.datainf import damping_of, without_rounding
from datainf_ray.influence.folds import COUNT, Scores, Statistic
from datainf_ray.influence.method import Extent, Handle, Method, PlannedSweep, Sample, Settings, Sweeps
from datainf_ray.influence.products import SecondMoments, form_bytes, products_of
from datainf_ray.influence.sampled import over_sample, planned_over, sample_of
from datainf_ray.influence.self_influence import SelfScores

Form = Literal["matrix", "gram"]

SIDE = 4096  #: of the largest matrix that is factored
PORTION = 2 * 2**30  #: bytes of the sums of one sweep
MOST_PORTIONS = 16  #: sweeps; of more, conjugate gradient has no more to make
MOST_PASSES = 10**8  #: rows times sweeps that nobody has to ask for by `iterations`
_FEWER = [SIDE >> k for k in range(9)]  # rows for which the direct way may be open, where it is not for more


def portions(settings: Settings) -> list[list[str] | None] | None:
    """The blocks that each sweep of the direct way looks at (None: all); None where that way is closed."""
    if not settings.sizes:
        return [None]
    n = settings.curvature_rows
    if any(min(n, size) > SIDE or form_bytes(n, size) > PORTION for size in settings.sizes.values()):
        return None
    found: list[list[str] | None] = []
    room = 0
    for name, size in settings.sizes.items():
        needed = form_bytes(n, size)
        if not found or needed > room:
            found.append([])
            room = PORTION
        last = found[-1]
        assert last is not None
        last.append(name)
        room -= needed
    if len(found) > MOST_PORTIONS:
        return None
    return [None] if len(found) == 1 else found


def exact(
    sweeps: Sweeps[Handle],
    queries: Handle,
    settings: Settings,
    *,
    known: Handle | None = None,
    form: Form | None = None,
) -> dict[str, Handle]:
    """Exact influence; `queries` are the queries' gradients (`vector`, m × d_l a block).

    With `known` (`damping` a block) the damping is given. `form` is for trying one out: it makes the direct way take
    the d_l × d_l matrix of every block, or the Gram matrix (as long as there are at most 2 d_l rows).

    Returns `facts`: `damping` and `moments` a block, `residual` (the largest ‖(G_l + λ_l I) r − v‖ / ‖v‖ of its
    queries), and `form` (1: a matrix of its entries, 2: one of rows; absent where gradients were conjugate).
    """
    if known is not None:
        known = without_rounding(sweeps, known)
    parts = portions(settings)
    if parts is None:
        facts, vectors = conjugate(sweeps, queries, settings, known)
        sweeps.run("scores", Scores, vectors=vectors)
        return {"facts": facts}

    def solve() -> dict[str, Handle]:
        facts, found = known, []
        for part in parts:
            only = None if part is None else tuple(part)
            sampled = settings.sampled and known is None
            swept = over_sample(sweeps, "products", SecondMoments, sampled, values={"only": only})
            if facts is None:
                facts = damping_of(sweeps, swept, settings.damping)
            values = {"form": form, "own": settings.self_influence}
            found.append(sweeps.each_block(solved, queries, swept, facts, **values))
        assert facts is not None
        vectors = found[0] if len(found) == 1 else sweeps.each_block(_of_its_portion, *found)
        ends = sweeps.each_block(_with_end, facts, vectors)
        states = {"facts": ends, "vectors": sweeps.each_block(_vector, vectors)}
        if settings.self_influence:
            states["selves"] = sweeps.each_block(_selves, vectors)
        return states

    states = sweeps.remember("ihvp", solve)
    if settings.self_influence:
        sweeps.run("scores", SelfScores, vectors=states["vectors"], selves=states["selves"])
    else:
        sweeps.run("scores", Scores, vectors=states["vectors"])
    return {"facts": states["facts"]}


def solved(
    block: Block, queries: Statistic, swept: Statistic, facts: Statistic, *, form: Form | None, own: bool
) -> Statistic:
    """`vector` r_l = (G_l + λ_l I)⁻¹ v_l (m × d_l float64), `residual` and `form`; with `own` what `SelfScores` takes.

    Nothing where the sweep did not look at the block. Where λ_l is zero r_l is, too. Raises `FloatingPointError` where
    the matrix cannot be factored.
    """
    if "gradients" not in swept and "products" not in swept:
        return {}
    v, lam, n = queries["vector"].double(), facts["damping"].double(), swept["moments"][COUNT]
    if lam == 0:
        zero, one = lam.new_zeros(()), lam.new_ones(())
        nothing = {"vector": torch.zeros_like(v), "residual": zero, "form": zero}
        return nothing | ({"shift": zero, "sign": one, "factor": v.new_zeros(0, v.shape[1])} if own else {})
    rows = swept.get("gradients")
    by_rows = rows is not None and (form == "gram" or (form is None and len(rows) <= rows.shape[1]))
    if by_rows:
        assert rows is not None
        r, residual, selves = _by_rows(block, rows.double(), v, lam, n)
    else:
        r, residual, selves = _by_entries(block, products_of(swept) / n, v, lam, own)
    found = {"vector": r, "residual": residual, "form": lam.new_full((), 2.0 if by_rows else 1.0)}
    return found | selves if own else found


def _by_rows(block: Block, g: Tensor, v: Tensor, lam: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Statistic]:
    """By the Gram matrix of the gradients g (b × d_l): r, its residual, and xᵀ(G+λ)⁻¹x = ‖x‖²/λ − ‖factor x‖²."""
    gram = g @ g.T
    gram.diagonal().add_(n * lam)
    root = _cholesky(block, gram, lam)
    r = (v - torch.cholesky_solve(g @ v.T, root).T @ g) / lam
    residual = _residual(((r @ g.T) @ g) / n + lam * r, v)
    factor = torch.linalg.solve_triangular(root, g, upper=False) / lam.sqrt()
    return r, residual, {"shift": 1 / lam, "sign": -torch.ones_like(lam), "factor": factor}


def _by_entries(block: Block, curvature: Tensor, v: Tensor, lam: Tensor, own: bool) -> tuple[Tensor, Tensor, Statistic]:
    """By the matrix G (d_l × d_l) itself: r, its residual, and, if `own`, xᵀ(G+λ)⁻¹x = ‖factor x‖²."""
    damped = curvature.clone()
    damped.diagonal().add_(lam)
    root = _cholesky(block, damped, lam)
    r = torch.cholesky_solve(v.T, root).T
    residual = _residual(r @ damped, v)
    if not own:
        return r, residual, {}
    eye = torch.eye(len(root), dtype=root.dtype)
    factor = torch.linalg.solve_triangular(root, eye, upper=False)
    return r, residual, {"shift": torch.zeros_like(lam), "sign": torch.ones_like(lam), "factor": factor}


def _cholesky(block: Block, matrix: Tensor, lam: Tensor) -> Tensor:
    root, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise FloatingPointError(
            f"{block.name}: the curvature cannot be factored in float64 at the damping {float(lam):.3g}: "
            "method.damping is too small"
        )
    return root


def _residual(product: Tensor, v: Tensor) -> Tensor:
    """The largest of the rows' ‖product − v‖ / ‖v‖."""
    sizes = v.norm(dim=1)
    off = (product - v).norm(dim=1)
    return (off[sizes > 0] / sizes[sizes > 0]).max() if (sizes > 0).any() else sizes.new_zeros(())


def _of_its_portion(block: Block, *found: Statistic) -> Statistic:
    return next(one for one in found if one)


def _with_end(block: Block, facts: Statistic, found: Statistic) -> Statistic:
    return {**facts, "residual": found["residual"], "form": found["form"]}


def _vector(block: Block, found: Statistic) -> Statistic:
    return {"vector": found["vector"]}


def _selves(block: Block, found: Statistic) -> Statistic:
    return {name: found[name] for name in ("shift", "sign", "factor")}


def _program(sweeps: Sweeps[Handle], queries: Handle, settings: Settings, known: Handle | None) -> dict[str, Handle]:
    return exact(sweeps, queries, settings, known=known)


def _sweeps(extent: Extent) -> list[PlannedSweep]:
    """Those of `exact`; the number of conjugate gradient's iterations is a guess where `iterations` is not given."""
    settings = extent.settings
    scores = PlannedSweep("scores", extent.rows, queries=extent.queries, products=1)
    parts = portions(settings)
    if parts is None:
        return [*planned(extent), scores]
    n, sizes = settings.curvature_rows, settings.sizes
    total = max(sum(sizes.values()), 1)
    found = []
    for part in parts:
        some = sizes if part is None else {name: sizes[name] for name in part}
        work = round(sum(min(n, size) * size for size in some.values()) / total)
        state = sum(form_bytes(n, size) for size in some.values())
        for rows, over in planned_over(extent):
            found.append(PlannedSweep("products", rows, over, queries=1, products=work, state=state))
    return [*found, scores]


def _sample(extent: Extent) -> Sample | None:
    return sample_of(extent)


def _state(extent: Extent, size: int) -> int:
    """Of a block: the sums of the direct way, or, twice as much in float64, the rows of a factor."""
    if portions(extent.settings) is None:
        return 0
    n = extent.settings.curvature_rows
    return max(form_bytes(n, size), 8 * min(n, size) * size if extent.settings.self_influence else 0)


def _refuses(extent: Extent) -> tuple[str, str] | None:
    settings = extent.settings
    if _is_direct(settings):
        return None
    n, sizes = settings.curvature_rows, settings.sizes
    fewer = next((rows for rows in _FEWER if rows < n and _is_direct(replace(settings, curvature_rows=rows))), None)
    largest = max(sizes.values())
    what = f"a block of {largest:,} entries and {n:,} rows"
    if settings.self_influence:
        remedy = "use datainf" if fewer is None else f"use method.curvature_rows: {fewer}, or datainf"
        if min(n, largest) > SIDE:
            return f"self_influence needs matrices of at most {SIDE:,}, not {what}", remedy
        needed = f"{_factors(settings) / 2**30:.1f} GiB of factors on every worker, of at most {PORTION / 2**30:.0f}"
        return f"self_influence needs {needed}", remedy
    rounds = expected(settings)
    passes = rounds * n
    if settings.iterations is not None or passes <= MOST_PASSES or extent.known:
        return None
    remedy = "use method.iterations, the most that you want"
    if fewer is not None:
        count = len(portions(replace(settings, curvature_rows=fewer)) or ())
        takes = "one" if count == 1 else f"{count}"
        remedy = (
            f"use method.curvature_rows: {fewer}, which takes {takes}; or method.iterations, the most that you want"
        )
    return f"{what} need about {rounds} sweeps, {passes:.1e} backward passes", remedy


def _is_direct(settings: Settings) -> bool:
    """Whether the direct way is open, for self-influence too where that is asked for."""
    return portions(settings) is not None and (not settings.self_influence or _factors(settings) <= PORTION)


def _factors(settings: Settings) -> int:
    """What the factors of all blocks take in float64, in bytes."""
    return sum(8 * min(settings.curvature_rows, size) * size for size in settings.sizes.values())


def _tell(found: Mapping[str, Mapping[str, Statistic]], rows: int) -> dict[str, Any]:
    """How it was solved, by how many blocks, and the largest residual."""
    facts = found["facts"].values()
    forms = [float(statistic["form"]) for statistic in facts if "form" in statistic]
    residual = max((float(statistic["residual"]) for statistic in facts), default=0.0)
    if not forms:
        iterations = max(int(statistic["iterations"]) for statistic in facts)
        return {"rows": rows, "way": "conjugate gradient", "iterations": iterations, "residual": residual}
    return {
        "rows": rows,
        "way": "direct",
        "matrix_blocks": forms.count(1.0),
        "gram_blocks": forms.count(2.0),
        "residual": residual,
    }


METHOD = Method(
    "exact",
    _program,
    _sweeps,
    _sample,
    damped=True,
    keys=frozenset({"tolerance", "iterations"}),
    self_influence=True,
    wide=True,
    tell=_tell,
    refuses=_refuses,
    state=_state,
    between=lambda extent: VECTORS if portions(extent.settings) is None else 0,
)
