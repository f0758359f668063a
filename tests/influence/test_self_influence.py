"""Every row's influence on itself, against the formulas over all pairs of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datainf_ray.influence import self_influence as module
from datainf_ray.influence.memory import InMemory
from datainf_ray.influence.method import Extent, Settings
from datainf_ray.influence.register import NAMES, method_named
from tests import reference
from tests.influence.test_exact import doubled, gradients

METHODS = [name for name in NAMES if method_named(name).self_influence]


def settings(rows: int, **more: object) -> Settings:
    return Settings(**{"self_influence": True, "rows": rows, "curvature_rows": rows, **more})  # type: ignore[arg-type]


def test_the_methods_that_tell_it() -> None:
    assert METHODS == ["datainf", "hessian-free", "exact"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [30, 60])  # exact: by rows, and by entries
def test_it_is_the_formula_over_all_pairs(method: str, rows: int) -> None:
    g, v = gradients(rows, 1), gradients(3, 2)
    g["b0"][4], g["b1"][4] = 0, 0
    sweeps = InMemory(g, batch=7, chunk=16)
    method_named(method).program(sweeps, sweeps.vectors(v), settings(rows), None)
    assert sweeps.selves is not None
    want = reference.self_influence(doubled(g), method)
    np.testing.assert_allclose(sweeps.selves[0], want, rtol=1e-4, atol=0)
    assert (sweeps.selves[1] == 0).all()  # no row was left out of any sum
    assert (want <= 0).all()
    assert want[4] == 0


@pytest.mark.parametrize("damping", [0.1, 1e-6, 1e-9])
@pytest.mark.parametrize("rows", ["one", "copies", "signs"])
def test_of_rows_that_are_all_alike_a_small_rest_of_datainfs_sum_is_right(rows: str, damping: float) -> None:
    """Of ‖x‖² then next to nothing is left, as of the bias of two classes, (a, −a), where the damping is small."""
    g, v = gradients(1, 1), gradients(3, 2)
    if rows == "copies":
        g = {name: x.repeat(9, 1) for name, x in g.items()}
    if rows == "signs":
        signs = torch.tensor([[1.0], [-2.0], [0.0], [3.0]])
        g, v = {"bias": signs * torch.tensor([[1.0, -1.0]])}, {"bias": v["b0"][:, :2]}
    count = len(next(iter(g.values())))
    sweeps = InMemory(g, batch=7, chunk=16)
    method_named("datainf").program(sweeps, sweeps.vectors(v), settings(count, damping=damping), None)
    assert sweeps.selves is not None
    want = torch.zeros(count, dtype=torch.float64)
    for x in doubled(g).values():
        if not x.any():
            continue
        # all y = t u: ‖x‖² − Σ_y (y·x)² / (λ + ‖y‖²) / n  =  ‖x‖² · mean of λ / (λ + ‖y‖²)
        lam = damping * x.square().sum() / x.numel()
        want -= x.square().sum(1) * (1 / (lam + x.square().sum(1))).mean()
    np.testing.assert_allclose(sweeps.selves[0], want, rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_what_they_are_without_it(method: str) -> None:
    g, v = gradients(40, 1), gradients(3, 2)
    found = []
    for own in (False, True):
        sweeps = InMemory(g, batch=7, chunk=16)
        asked = settings(40, self_influence=own)
        method_named(method).program(sweeps, sweeps.vectors(v), asked, None)
        found.append(sweeps.scores)
        assert (sweeps.selves is None) == (not own)
        done = [name for name in sweeps.names if name != "curvature again"]
        assert done == [s.name for s in method_named(method).sweeps(Extent(40, ((0, 3),), settings=asked))]
    assert torch.equal(*found)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_sample_is_right_within_the_error_that_it_tells(sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many draws: on average right, and as far off as its standard error says."""
    monkeypatch.setattr(module, "SAMPLE", 60)
    generator = torch.Generator().manual_seed(3)
    rows, v = torch.randn(300, 12, generator=generator), torch.randn(1, 12, generator=generator)
    g = {"a": rows @ torch.randn(12, 12, generator=generator), "b": rows[:, :4].clone()}
    want = reference.self_influence(doubled(g), "datainf")
    off, errors = [], []
    for seed in range(20):
        sweeps = InMemory(g, chunk=64, own=60, sample=60 if sampled else None, seed=seed)
        # the damping of all rows, for the sample's own adds an error that is not this sum's
        known = {name: {"damping": 0.1 * x.double().square().mean()} for name, x in g.items()}
        asked = settings(300, sampled=sampled)
        program = method_named("datainf").program
        program(sweeps, sweeps.vectors({"a": v, "b": v[:, :4]}), asked, None if sampled else known)
        assert sweeps.selves is not None
        off.append(sweeps.selves[0] - want)
        errors.append(sweeps.selves[1])
    told, true = torch.stack(errors).square().mean(0).sqrt(), torch.stack(off).square().mean(0).sqrt()
    if sampled:
        assert float((told / want.abs()).mean()) < 0.1
    else:
        assert 0.8 < float(told.mean() / true.mean()) < 1.25
        assert float((torch.stack(off).mean(0) / true).abs().mean()) < 3 / 20**0.5


def test_it_is_refused_where_the_samples_gradients_do_not_fit() -> None:
    method = method_named("datainf")
    asked = settings(10_000, sizes={"a": 5_000_000})
    refused = method.refuses(Extent(10_000, ((0, 1),), settings=asked))
    assert refused == (
        "self_influence needs the gradients of 512 rows on every worker, 9.5 GiB of at most 4",
        "use method.curvature_rows: 214, or hessian-free",
    )
    assert method.refuses(Extent(10_000, ((0, 1),), sampled=214, settings=asked)) is None
    assert method.refuses(Extent(10_000, ((0, 1),), settings=settings(10_000, self_influence=False))) is None


@pytest.mark.parametrize("where", ["in no chunk", "in one chunk"])
def test_a_block_in_which_hardly_a_sampled_row_has_a_gradient(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an expert that few rows are sent to: no fold has seen how wide its gradients are."""
    monkeypatch.setattr(module, "SAMPLE", 40)
    g, v = gradients(200, 1), gradients(3, 2)
    sweeps = InMemory(g, batch=8, chunk=8, own=40)
    sample = sweeps.rows["self"]
    assert sample is not None
    kept = torch.ones(200, dtype=torch.bool)
    kept[sample if where == "in no chunk" else sample[:32]] = False
    g["b1"][~kept] = 0

    class Sparse(InMemory):
        def run(self, name, fold, over="train", values=None, **inputs):  # type: ignore[no-untyped-def]
            seen = fold.update

            def update(self, block, some, rows, norms=None):  # type: ignore[no-untyped-def]
                if block != "b1" or some.any():
                    seen(self, block, some, rows, norms)

            return super().run(name, type(fold.__name__, (fold,), {"update": update}), over, values, **inputs)

    sparse = Sparse(g, batch=8, chunk=8, own=40)
    for one in (sweeps, sparse):
        method_named("datainf").program(one, one.vectors(v), settings(200), None)
    assert sweeps.selves is not None
    assert sparse.selves is not None
    for want, got in zip(sweeps.selves, sparse.selves, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
