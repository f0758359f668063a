"""The methods over gradients in memory, against the paper's sums as loops, and against retraining."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.cosine import Cosines, cosine, unit
from datainf_ray.influence.damping import block_damping
from datainf_ray.influence.datainf import datainf, error_by_query, ihvp
from datainf_ray.influence.folds import COUNT, SMALLEST, TOTAL, Curvature, GradientSums, Moments, Scores, Statistic
from datainf_ray.influence.hessian_free import hessian_free
from datainf_ray.influence.memory import InMemory
from datainf_ray.influence.method import Extent, Settings
from datainf_ray.influence.queries import mean_of_group
from datainf_ray.influence.register import NAMES, method_named
from tests import reference


def gradients(rows: int, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Two blocks of very different size and scale, a third without any gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int, scale: float) -> Tensor:
        wide = torch.randn(rows, 1, generator=generator, dtype=torch.float64).exp()  # norms over orders of magnitude
        return (scale * wide * torch.randn(rows, size, generator=generator, dtype=torch.float64)).to(dtype)

    return {"a": draw(40, 1.0), "b": draw(7, 1e-4), "zero": torch.zeros(rows, 5, dtype=dtype)}


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() for k, v in state.items()}


@pytest.mark.parametrize("chunk", [8, 50, 1024])
def test_datainf_equals_the_papers_sums(chunk: int) -> None:
    g, v = gradients(50, 1), gradients(3, 2)
    sweeps = InMemory(g, batch=7, chunk=chunk)
    datainf(sweeps, sweeps.vectors(v), 0.1)
    assert reference.worst(sweeps.scores, reference.datainf(doubled(g), doubled(v))) < 1e-5


def test_the_formula_is_exact_in_double_precision_where_the_damping_is_known() -> None:
    g, v = gradients(30, 3, torch.float64), gradients(4, 4, torch.float64)
    sweeps = InMemory(g, batch=4, chunk=16)
    lambdas = {name: 0.3 * x.square().sum() / x.numel() for name, x in g.items()}
    datainf(sweeps, sweeps.vectors(v), 0.3, known={name: {"damping": lam} for name, lam in lambdas.items()})
    assert reference.worst(sweeps.scores, reference.datainf(g, v, 0.3)) < 1e-12
    assert sweeps.names == ["curvature", "scores"]


@pytest.mark.parametrize("batch", [1, 5, 9, 16, 300])
def test_rows_may_come_a_few_at_a_time(batch: int) -> None:
    g, v = gradients(41, 3, torch.float64), gradients(5, 4, torch.float64)  # ten rows may wait for their turn
    sweeps = InMemory(g, batch=batch)
    lambdas = {name: {"damping": 0.1 * x.square().sum() / x.numel()} for name, x in g.items()}
    datainf(sweeps, sweeps.vectors(v), 0.1, known=lambdas)
    assert reference.worst(sweeps.scores, reference.datainf(g, v)) < 1e-12


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e7])
@pytest.mark.parametrize("c", [1e-12, 1e12])
def test_datainf_is_exact_at_both_ends_of_what_damping_may_be(c: float, scale: float) -> None:
    g, v = ({k: scale * x for k, x in gradients(rows, seed).items()} for rows, seed in ((50, 1), (3, 2)))
    sweeps = InMemory(g, batch=7)
    datainf(sweeps, sweeps.vectors(v), c)
    assert reference.worst(sweeps.scores, reference.datainf(doubled(g), doubled(v), c)) < 1e-6


def test_queries_in_groups_give_what_they_give_together() -> None:
    g, v = gradients(30, 3, torch.float64), gradients(5, 4, torch.float64)
    sweeps = InMemory(g, groups=[(0, 2), (2, 4), (4, 5)])
    datainf(sweeps, sweeps.vectors(v), 0.1)
    assert reference.worst(sweeps.scores, reference.datainf(g, v)) < 1e-6
    assert sweeps.names.count("curvature") == 3


def test_a_sample_of_all_rows_is_exact_and_a_smaller_one_says_how_far_off_it_is() -> None:
    generator = torch.Generator().manual_seed(3)
    basis = torch.randn(6, 30, generator=generator, dtype=torch.float64)
    rows = torch.randn(400, 6, generator=generator, dtype=torch.float64) @ basis
    v = {"a": torch.randn(3, 6, generator=generator, dtype=torch.float64) @ basis}
    whole = InMemory({"a": rows}, sample=400)
    datainf(whole, whole.vectors(v), 0.1, sampled=True)
    want = reference.datainf({"a": rows}, v)
    assert reference.worst(whole.scores, want) < 1e-12
    assert whole.names == ["moments", "moments", "curvature", "curvature", "scores"]
    # the standard error of a mean over 100 of 400 rows, ten times over: told within a factor, right on average
    told, true = [], []
    for seed in range(10):
        some = InMemory({"a": rows}, sample=100, seed=seed)
        solved = datainf(some, some.vectors(v), 0.1, sampled=True)
        told.append(error_by_query(solved["error"]))
        true.append((some.scores - want).norm(dim=0) / want.norm(dim=0))
    ratio = float(torch.stack(told).mean() / torch.stack(true).mean())
    assert 1 / 2 < ratio < 2


def test_hessian_free_is_the_negative_dot_product() -> None:
    g, v = gradients(20, 5), gradients(3, 6)
    sweeps = InMemory(g)
    hessian_free(sweeps, sweeps.vectors(v))
    assert reference.worst(sweeps.scores, reference.hessian_free(doubled(g), doubled(v))) < 1e-5


@pytest.mark.parametrize("chunk", [8, 1024])
def test_cosine_is_that_of_whole_gradients_and_zero_where_there_is_none(chunk: int) -> None:
    g, v = gradients(20, 5), gradients(3, 6)
    for block in g.values():
        block[4] = 0
    for block in v.values():
        block[1] = 0
    sweeps = InMemory(g, batch=7, chunk=chunk)
    cosine(sweeps, unit(sweeps, sweeps.vectors(v)))
    want = reference.cosine(doubled(g), doubled(v))
    np.testing.assert_allclose(sweeps.scores, want, rtol=1e-4, atol=0)
    assert (want[4] == 0).all()
    assert (want[:, 1] == 0).all()
    assert want.abs().max() <= 1


def test_cosines_by_block_add_up_to_the_cosine() -> None:
    g, v = gradients(9, 17), gradients(2, 18)
    blocks = [Block(n, "", tuple(x.shape[1:])) for n, x in g.items()]
    fold = Cosines(blocks, 9, vectors=InMemory.vectors(v), by_block=True)
    for name, x in g.items():
        fold.update(name, x, torch.arange(9))
    each = fold.by_block()
    assert each is not None
    torch.testing.assert_close(each.sum(2), fold.influence(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_makes_the_sweeps_that_it_says(name: str) -> None:
    """Planning asks the method; what it answers is what its program does."""
    method, g, v = method_named(name), gradients(50, 1), gradients(5, 2)
    assert method.name == name
    for groups in (((0, 5),), ((0, 2), (2, 5))):
        for sampled in (None, 20) if method.damped else (None,):
            sweeps = InMemory(g, pilot=16, sample=sampled, groups=groups)
            extent = Extent(50, groups, sampled)
            queries = method.prepare(sweeps, sweeps.vectors(v))
            method.program(sweeps, queries, Settings(0.1, sampled is not None), None)
            planned = method.sweeps(extent)
            done = [n for n in sweeps.names if n != "curvature again"]
            assert done == [sweep.name for sweep in planned]
            assert planned[-1].products * planned[-1].queries == 5
            sample = method.sample(extent)
            wanted = {sweep.over for sweep in planned} - {"train"}
            assert wanted == set(sample.parts if sample is not None else ())
    known = {block: {"damping": torch.tensor(0.1, dtype=torch.float64)} for block in g}
    sweeps = InMemory(g)
    method.program(sweeps, sweeps.vectors(v), Settings(), known)
    assert sweeps.names == [sweep.name for sweep in method.sweeps(Extent(50, ((0, 5),), known=True))]


def test_a_block_without_gradient_adds_nothing_and_no_nan() -> None:
    g, v = gradients(20, 7), gradients(2, 8)
    v["zero"] = torch.ones_like(v["zero"])  # the queries have a gradient where no row has
    with_it, without = InMemory(g), InMemory({k: g[k] for k in ("a", "b")})
    datainf(with_it, with_it.vectors(v), 0.1)
    datainf(without, without.vectors({k: v[k] for k in ("a", "b")}), 0.1)
    assert with_it.scores.isfinite().all()
    torch.testing.assert_close(with_it.scores, without.scores, rtol=0, atol=0)


def test_a_row_without_gradient_has_no_influence() -> None:
    g, v = gradients(20, 9), gradients(2, 10)
    for block in g.values():
        block[4] = 0
    sweeps = InMemory(g)
    datainf(sweeps, sweeps.vectors(v), 0.1)
    assert (sweeps.scores[4] == 0).all()
    assert (sweeps.scores[[3, 5]] != 0).all()


@pytest.mark.parametrize("power", [-80, -73, -60, -40, 40])
@pytest.mark.parametrize("how", [{}, {"pilot": 16}, {"sample": 50}])
def test_gradients_may_be_as_small_as_float32_holds(power: int, how: dict[str, int]) -> None:
    """Squared norms and the damping are beyond float32 then; influence is what it was before all became smaller."""
    g, v = gradients(50, 1), gradients(3, 2)
    for state in (g, v):
        state["b"] *= 1e4  # else the smallest have lost their own last bits
    want = reference.datainf(doubled(g), doubled(v))
    small, asked = ({name: x * 2.0**power for name, x in state.items()} for state in (g, v))
    sweeps = InMemory(small, batch=7, chunk=20, **how)
    solved = datainf(sweeps, sweeps.vectors(asked), 0.1, sampled="sample" in how)
    assert reference.worst(sweeps.scores, want) < 1e-5
    lam = 0.1 * float(doubled(small)["a"].square().mean())
    assert float(solved["facts"]["a"]["damping"]) == pytest.approx(lam, rel=1e-5)


def test_ordinary_queries_of_small_gradients_are_right_or_refused() -> None:
    g, v = gradients(50, 1), gradients(3, 2)
    g["b"] *= 1e4
    for power in (-30, -50):
        small = {name: x * 2.0**power for name, x in g.items()}
        sweeps = InMemory(small, pilot=16)
        datainf(sweeps, sweeps.vectors(v), 0.1)
        assert reference.worst(sweeps.scores, reference.datainf(doubled(small), doubled(v))) < 1e-5
    sweeps = InMemory({name: x * 2.0**-73 for name, x in g.items()}, pilot=16)
    with pytest.raises(FloatingPointError, match=r"a: inverse-Hessian-vector products are beyond torch.float32"):
        datainf(sweeps, sweeps.vectors(v), 0.1)


def test_a_row_whose_scores_are_beyond_float32_is_reported() -> None:
    g = gradients(4, 16)["a"]
    g[2] *= 1e10
    fold = Scores([Block("a", "", (40,))], 4, vectors={"a": {"vector": torch.full((1, 40), 1e29)}})
    fold.update("a", g, torch.arange(4))
    assert fold.finite(torch.arange(4)).tolist() == [True, True, False, True]


def test_damping_is_the_papers() -> None:
    g = gradients(20, 11)["a"]
    fold = Moments([Block("a", "", (40,))], 20)
    fold.update("a", g, torch.arange(20))
    fold.finite(torch.arange(20))
    statistic = fold.result()["a"]
    moments = statistic["moments"]
    sqnorms = g.double().square().sum(1)
    assert moments[COUNT] == 20
    assert float(moments[TOTAL]) == pytest.approx(float(sqnorms.sum()), rel=1e-6)
    assert float(moments[SMALLEST]) == pytest.approx(float(sqnorms.min()), rel=1e-6)
    want = 0.1 * float(sqnorms.sum()) / (20 * 40)
    known = block_damping(Block("a", "", (40,)), statistic, c=0.1)
    assert float(known["damping"]) == pytest.approx(want, rel=1e-6)


def test_the_ihvp_solves_the_papers_approximation() -> None:
    """r = (1/n) Σ (g gᵀ + λI)⁻¹ v, of which the closed form is Sherman and Morrison's."""
    g, v = gradients(12, 12, torch.float64)["a"], gradients(2, 13, torch.float64)["a"]
    block = Block("a", "", (40,))
    moments = torch.tensor([12.0, float(g.square().sum()), 0.0], dtype=torch.float64)
    facts = block_damping(block, {"moments": moments}, c=0.1)
    lam = facts["damping"]
    nodes, queries = {"nodes": lam[None]}, {"vector": v}
    fold = Curvature([block], 12, queries={"a": queries}, nodes={"a": nodes})
    fold.update("a", g, torch.arange(12))
    fold.finite(torch.arange(12))
    r = ihvp(block, queries, fold.result()["a"], nodes, facts)["vector"]
    eye = torch.eye(40, dtype=torch.float64)
    want = sum(torch.linalg.solve(torch.outer(x, x) + lam * eye, v.T) for x in g).T / 12
    torch.testing.assert_close(r, want, rtol=1e-9, atol=0)


def test_merged_halves_are_the_whole() -> None:
    g = gradients(20, 14)["a"]
    block = [Block("a", "", (40,))]

    def moments(part: Tensor) -> Statistic:
        fold = Moments(block, len(part))
        fold.update("a", part, torch.arange(len(part)))
        fold.finite(torch.arange(len(part)))
        return fold.result()["a"]

    merged = Moments.merge(moments(g[:6]), moments(g[6:]))["moments"]
    torch.testing.assert_close(merged, moments(g)["moments"], rtol=1e-12, atol=0)


def test_gradient_sums_are_by_group() -> None:
    g = gradients(9, 15)["a"]
    groups = torch.tensor([1, 0, 1, 4, 0, 1, 3, 1, 0])
    block, parts = Block("a", "", (40,)), []
    for chunk in (slice(0, 6), slice(6, 9)):
        fold = GradientSums([block], len(g[chunk]), groups=groups[chunk])
        for rows in torch.arange(len(g[chunk])).flip(0).split(2):
            fold.update("a", g[chunk][rows], rows)
        parts.append(fold.result()["a"])
    assert parts[1]["ids"].tolist() == [0, 1, 3]
    merged = GradientSums.merge(*parts)
    means = mean_of_group(block, merged, counts=groups.bincount())["vector"]
    for q in (0, 1, 3, 4):
        torch.testing.assert_close(means[q], g[groups == q].mean(0), rtol=1e-5, atol=0)
    assert (means[2] == 0).all()


def test_a_row_that_is_not_finite_is_reported() -> None:
    g = gradients(4, 16)["a"]
    g[2, 3] = torch.nan
    fold = Scores([Block("a", "", (40,))], 4, vectors={"a": {"vector": torch.ones(1, 40)}})
    fold.update("a", g, torch.arange(4))
    assert fold.finite(torch.arange(4)).tolist() == [True, True, False, True]


def test_scores_by_block_add_up_to_the_scores() -> None:
    g, v = gradients(9, 17), gradients(2, 18)
    blocks = [Block(n, "", tuple(x.shape[1:])) for n, x in g.items()]
    fold = Scores(blocks, 9, vectors=InMemory.vectors(v), by_block=True)
    for name, x in g.items():
        fold.update(name, x, torch.arange(9))
    assert fold.block_scores is not None
    torch.testing.assert_close(fold.block_scores.sum(2), fold.scores, rtol=1e-5, atol=0)
    torch.testing.assert_close(fold.block_scores[:, :, 0], -(g["a"] @ v["a"].T), rtol=1e-5, atol=0)


def test_retraining_without_the_most_harmful_row_lowers_the_querys_loss() -> None:
    """The sign, on ridge-regularised logistic regression, where retraining is exact."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    truth = torch.randn(5, generator=generator, dtype=torch.float64)
    y = torch.where(x @ truth + 0.5 * torch.randn(40, generator=generator, dtype=torch.float64) > 0, 1.0, -1.0)
    queries = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    signs = torch.where(queries @ truth > 0, 1.0, -1.0)

    def fit(keep: Tensor) -> Tensor:
        w = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        for _ in range(30):  # Newton's method: converged to rounding
            loss = torch.nn.functional.softplus(-y[keep] * (x[keep] @ w)).sum() / 40 + 0.05 * w @ w
            (gradient,) = torch.autograd.grad(loss, w, create_graph=True)
            hessian = torch.stack([torch.autograd.grad(g, w, retain_graph=True)[0] for g in gradient])
            with torch.no_grad():
                w -= torch.linalg.solve(hessian, gradient)
        return w.detach()

    def per_row(rows: Tensor, labels: Tensor, w: Tensor) -> Tensor:
        return (-labels * torch.sigmoid(-labels * (rows @ w)))[:, None] * rows

    everyone = torch.arange(40)
    w = fit(everyone)
    sweeps = InMemory({"w": per_row(x, y, w)})
    datainf(sweeps, sweeps.vectors({"w": per_row(queries, signs, w)}), 0.1)

    def query_loss(w: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-signs * (queries @ w))

    before = query_loss(w)
    for q in range(6):
        harmful, helpful = int(sweeps.scores[:, q].argmax()), int(sweeps.scores[:, q].argmin())
        assert sweeps.scores[harmful, q] > 0 > sweeps.scores[helpful, q]
        assert query_loss(fit(everyone[everyone != harmful]))[q] < before[q]
        assert query_loss(fit(everyone[everyone != helpful]))[q] > before[q]


@pytest.mark.parametrize("damping", [0.1, 1e-3])
@pytest.mark.parametrize("copies", [1, 9])
def test_datainf_of_one_row_is_what_the_curvature_leaves(copies: int, damping: float) -> None:
    """r·g = v·g / (λ + ‖g‖²): a share c / d_l of v·g / λ, most of which must cancel out."""
    generator = torch.Generator().manual_seed(0)
    g = {"a": torch.randn(1, 4000, generator=generator), "b": 1e-3 * torch.randn(1, 30, generator=generator)}
    v = {name: torch.randn(3, x.shape[1], generator=generator) for name, x in g.items()}
    want = torch.zeros(3, dtype=torch.float64)
    for name, x in g.items():
        s = x.double().square().sum()
        want -= (v[name].double() @ x.double()[0]) / (damping * s / x.numel() + s)
    sweeps = InMemory({name: x.repeat(copies, 1) for name, x in g.items()}, batch=4, chunk=4)
    settings = Settings(damping, rows=copies, curvature_rows=copies)
    method_named("datainf").program(sweeps, sweeps.vectors(v), settings, None)
    assert sweeps.scores is not None
    np.testing.assert_allclose(sweeps.scores, want.expand(copies, 3), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1e-25, 1e-39])
def test_cosine_of_gradients_whose_squares_or_inverses_are_beyond_float32(scale: float) -> None:
    """As of rows, and queries, that a model knows by heart."""
    g, v = ({"a": scale * gradients(20, seed)["a"]} for seed in (1, 2))
    sweeps = InMemory(g, batch=7, chunk=16)
    cosine(sweeps, unit(sweeps, sweeps.vectors(v)))
    assert sweeps.scores is not None
    rtol = 1e-5 if scale > 1e-38 else 1e-3  # float32 has few bits there
    assert reference.worst(sweeps.scores, reference.cosine(doubled(g), doubled(v))) < rtol
