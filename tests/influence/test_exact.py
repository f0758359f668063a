"""Exact influence and LiSSA over gradients in memory, against dense inverses in float64."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datainf_ray.influence import exact as module
from datainf_ray.influence.block import Block
from datainf_ray.influence.exact import METHOD, exact, portions
from datainf_ray.influence.lissa import POWER, lissa
from datainf_ray.influence.memory import InMemory
from datainf_ray.influence.method import Extent, Settings
from datainf_ray.influence.products import SecondMoments, form_bytes, products_of
from tests import reference


def gradients(rows: int, seed: int, sizes: tuple[int, ...] = (40, 7)) -> dict[str, Tensor]:
    """Blocks of very different scale, whose rows' norms go over orders of magnitude, and one without gradient."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for k, size in enumerate(sizes):
        wide = torch.randn(rows, 1, generator=generator).exp()
        found[f"b{k}"] = 10.0 ** (-2 * k) * wide * torch.randn(rows, size, generator=generator)
    return found | {"zero": torch.zeros(rows, 5)}


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() for name, x in state.items()}


def iterating(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a problem that is too large for any matrix."""
    monkeypatch.setattr(module, "SIDE", 4)
    return Settings(0.1, tolerance=1e-9, rows=50, curvature_rows=50, sizes={"b0": 40, "b1": 7, "zero": 5})


def run(g: dict[str, Tensor], v: dict[str, Tensor], settings: Settings, **how: Any) -> tuple[InMemory, dict[str, Any]]:
    options = {k: how.pop(k) for k in ("batch", "chunk", "groups", "sample") if k in how}
    sweeps = InMemory(g, **{"batch": 7, "chunk": 16, **options})
    return sweeps, exact(sweeps, sweeps.vectors(v), settings, **how)


@pytest.mark.parametrize("rows", [5, 30, 50, 70, 81, 200])
@pytest.mark.parametrize("chunk", [9, 1024])
def test_exact_equals_the_dense_inverse(rows: int, chunk: int) -> None:
    """With more rows than entries and with fewer, and where the one form goes over into the other."""
    g, v = gradients(rows, 1), gradients(3, 2)
    sweeps, found = run(g, v, Settings(0.1), chunk=chunk)
    want = reference.exact(doubled(g), doubled(v))
    np.testing.assert_allclose(sweeps.scores, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
    assert reference.worst(sweeps.scores, want) < 1e-5
    assert sweeps.names == ["products", "scores"]
    assert float(found["facts"]["b0"]["form"]) == (2 if rows <= 40 else 1)
    assert all(float(f["residual"]) < 1e-10 for f in found["facts"].values())


def test_the_three_ways_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    g, v = gradients(50, 1, (40, 26)), gradients(3, 2, (40, 26))
    by_matrix, matrix = run(g, v, Settings(0.1), form="matrix")
    by_rows, gram = run(g, v, Settings(0.1), form="gram")
    assert {float(f["form"]) for n, f in matrix["facts"].items() if n != "zero"} == {1}
    assert {float(f["form"]) for n, f in gram["facts"].items() if n != "zero"} == {2}
    monkeypatch.setattr(module, "SIDE", 4)
    sizes = {"b0": 40, "b1": 26, "zero": 5}
    by_sweeps, _ = run(g, v, Settings(0.1, tolerance=1e-9, curvature_rows=50, sizes=sizes))
    assert "products" not in by_sweeps.names
    assert reference.worst(by_rows.scores, by_matrix.scores) < 1e-5
    assert reference.worst(by_sweeps.scores, by_matrix.scores) < 1e-5


def test_every_block_stops_by_itself_at_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = iterating(monkeypatch)
    g, v = gradients(50, 1), gradients(3, 2)
    v["b0"][1] = 0  # a query without gradient there
    want = reference.exact(doubled(g), doubled(v))
    worst = []
    for tolerance in (1e-2, 1e-4, 1e-8):
        sweeps, found = run(g, v, Settings(**{**vars(settings), "tolerance": tolerance}))
        facts = found["facts"]
        assert all(float(f["residual"]) <= tolerance for f in facts.values())
        assert 0 == facts["zero"]["iterations"] < facts["b1"]["iterations"] < facts["b0"]["iterations"]
        assert len(sweeps.names) == facts["b0"]["iterations"] + 1
        worst.append(reference.worst(sweeps.scores, want))
    assert worst[0] > worst[1] > worst[2]
    assert worst[2] < 1e-6


def test_no_more_iterations_than_asked_for_and_the_residual_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(**{**vars(iterating(monkeypatch)), "iterations": 3})
    g, v = gradients(50, 1), gradients(3, 2)
    sweeps, found = run(g, v, settings)
    assert sweeps.names == ["iteration"] * 3 + ["scores"]
    assert float(found["facts"]["b0"]["residual"]) > settings.tolerance
    told = METHOD.tell(found, 50)
    assert told is not None
    assert told["iterations"] == 3
    assert told["residual"] == float(found["facts"]["b0"]["residual"])
    assert [s.name for s in METHOD.sweeps(Extent(50, ((0, 3),), settings=settings))] == sweeps.names


@pytest.mark.parametrize("way", ["direct", "conjugate"])
@pytest.mark.parametrize("how", ["groups", "known", "sample"])
def test_groups_a_known_damping_and_a_sample(how: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = iterating(monkeypatch) if way == "conjugate" else Settings(0.1)
    g, v = gradients(50, 1), gradients(3, 2)
    want = reference.exact(doubled(g), doubled(v))
    options: dict[str, Any] = {}
    if how == "groups":
        options["groups"] = ((0, 1), (1, 3))
    elif how == "known":
        options["known"] = {name: {"damping": 0.3 * x.double().square().mean()} for name, x in g.items()}
        want = reference.exact(doubled(g), doubled(v), 0.3)
    else:  # of all rows, in its two halves
        settings, options["sample"] = Settings(**{**vars(settings), "sampled": True}), 50
    sweeps, _ = run(g, v, settings, **options)
    assert reference.worst(sweeps.scores, want) < 1e-5
    if how == "sample":
        some, _ = run(g, v, settings, sample=20)
        rows = torch.cat([some.rows["half a"], some.rows["half b"]])
        part = reference.exact({k: x.double()[rows] for k, x in g.items()}, doubled(v), on=doubled(g))
        assert reference.worst(some.scores, part) < 1e-5


def test_what_does_not_fit_at_once_is_swept_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    g, v = gradients(50, 1, (40, 30, 7)), gradients(3, 2, (40, 30, 7))
    sizes = {name: x.shape[1] for name, x in g.items()}
    settings = Settings(0.1, rows=50, curvature_rows=50, sizes=sizes)
    assert portions(settings) == [None]
    monkeypatch.setattr(module, "PORTION", 10_000)  # 4 · 50 · 40 bytes of rows are 8,000
    assert portions(settings) == [["b0"], ["b1", "b2", "zero"]]
    sweeps, _ = run(g, v, settings)
    assert sweeps.names == ["products", "products", "scores"]
    assert [s.name for s in METHOD.sweeps(Extent(50, ((0, 3),), settings=settings))] == sweeps.names
    assert reference.worst(sweeps.scores, reference.exact(doubled(g), doubled(v))) < 1e-5
    monkeypatch.setattr(module, "MOST_PORTIONS", 1)
    assert portions(settings) is None


def test_products_of_many_merges_are_those_of_all_rows() -> None:
    """Rows as long as they take less room than their products; wherever in the tree that ends."""
    g = gradients(90, 3, (20,))["b0"]
    block = [Block("b0", "", (20,))]

    def part(rows: Tensor) -> dict[str, Tensor]:
        fold = SecondMoments(block, len(rows))
        for few in torch.arange(len(rows)).split(6):
            fold.update("b0", rows[few], few)
        fold.finite(torch.arange(len(rows)))
        return fold.result()["b0"]

    want = g.double().T @ g.double()
    for cuts in ((10, 20, 60), (45, 45), (0, 40, 50), (90,), (3, 7, 70, 10)):
        parts = [part(some) for some in g.split(list(cuts))]
        merged = parts[0]
        for more in parts[1:]:
            merged = SecondMoments.merge(merged, more)
        assert ("products" in merged) == (len(g) > 40)
        torch.testing.assert_close(products_of(merged), want, rtol=1e-12, atol=1e-12 * float(want.abs().max()))
        assert merged["moments"][0] == 90
    assert "gradients" in part(g[:40])


@pytest.mark.parametrize("way", ["direct", "conjugate"])
@pytest.mark.parametrize("rows", [1, 2, 30])
@pytest.mark.parametrize("damping", [0.1, 1e-6])
def test_few_rows_and_a_small_damping_lose_nothing_to_rounding(
    rows: int, damping: float, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of r is then where no row has a gradient, and none of that may be left in r·g."""
    settings = Settings(damping, tolerance=1e-10, rows=rows, curvature_rows=rows, sizes={"b0": 40, "b1": 7, "zero": 5})
    if way == "conjugate":
        monkeypatch.setattr(module, "SIDE", 0)
    g, v = gradients(rows, 1), gradients(3, 2)
    sweeps, found = run(g, v, settings)
    assert reference.worst(sweeps.scores, reference.exact(doubled(g), doubled(v), damping)) < 1e-5
    assert max(float(f["residual"]) for f in found["facts"].values()) < 1e-7


def test_self_influence_of_few_rows_and_a_small_damping() -> None:
    g, v = gradients(30, 1), gradients(3, 2)
    sweeps, _ = run(g, v, Settings(1e-6, rows=30, curvature_rows=30, self_influence=True))
    assert sweeps.selves is not None
    want = reference.self_influence(doubled(g), "exact", 1e-6)
    np.testing.assert_allclose(sweeps.selves[0], want, rtol=1e-5, atol=0)


def test_conjugate_gradient_claims_no_more_than_float64_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the recursion's own residual goes to zero, and that of its solution does not."""
    settings = Settings(**{**vars(iterating(monkeypatch)), "damping": 1e-12})
    g, v = gradients(30, 1), gradients(3, 2)
    sweeps = InMemory(g, chunk=16)
    facts, vectors = module.conjugate(sweeps, sweeps.vectors(v), settings, None)
    for name in ("b0", "b1"):
        rows, want, r = g[name].double(), v[name].double(), vectors[name]["vector"]
        off = (r @ rows.T @ rows / 30 + facts[name]["damping"] * r - want).norm(dim=1) / want.norm(dim=1)
        assert float(off.max()) < 100 * float(facts[name]["residual"])
    assert float(facts["b0"]["residual"]) > settings.tolerance


def test_lissas_limit_is_exact() -> None:
    g, v = gradients(50, 1, (12, 7)), gradients(3, 2, (12, 7))
    want = reference.exact(doubled(g), doubled(v), 1.0)
    off = []
    for steps in (5, 50, 2000):
        sweeps = InMemory(g, chunk=16)
        found = lissa(sweeps, sweeps.vectors(v), Settings(1.0, iterations=steps))
        assert sweeps.names == ["power"] * POWER + ["iteration"] * steps + ["scores"]
        off.append(reference.worst(sweeps.scores, want))
        assert all(float(f["residual"]) <= 1 for f in found["facts"].values())
    assert off[0] > off[1] > off[2]
    assert off[2] < 1e-5


def test_lissas_steps_are_the_recursion() -> None:
    """A loop with a scale that is given, and what it comes to after three steps."""
    g, v = gradients(50, 1), gradients(3, 2)
    sweeps = InMemory(g, chunk=16, groups=((0, 2), (2, 3)))
    scale = 500.0
    lissa(sweeps, sweeps.vectors(v), Settings(0.1, iterations=3, scale=scale))
    want = reference.lissa(doubled(g), doubled(v), 3, scale)
    assert reference.worst(sweeps.scores, want) < 1e-5


@pytest.mark.parametrize(("scale", "steps"), [(0.01, 1), (1e-30, 1), (0.48, 50)])
def test_a_series_that_grows_ends_when_that_is_seen(scale: float, steps: int) -> None:
    """And not after all of its steps, each of which is a sweep. Above half the first eigenvalue it does not grow."""
    g, v = {"b0": gradients(50, 1)["b0"]}, {"b0": gradients(3, 2)["b0"]}
    top = float(torch.linalg.eigvalsh(reference.damped(g["b0"].double()))[-1]) if scale == 0.48 else 1.0
    sweeps = InMemory(g, chunk=64)
    with pytest.raises(FloatingPointError, match=r"b0: LiSSA does not converge with a scale of .*: use a larger"):
        lissa(sweeps, sweeps.vectors(v), Settings(0.1, iterations=200, scale=scale * top))
    assert sweeps.names.count("iteration") <= steps
    found = lissa(sweeps, sweeps.vectors(v), Settings(0.1, iterations=200, scale=max(scale, 0.52) * top + 100))
    assert float(found["facts"]["b0"]["residual"]) < 1


@pytest.mark.slow
def test_the_scale_is_just_above_the_largest_eigenvalue() -> None:
    """Of every one of many blocks, in which the eigenvalues fall slowly."""
    draw, shape = torch.Generator().manual_seed(0), 1 / (1 + torch.arange(300)).sqrt()
    g = {f"b{k}": torch.randn(40, 300, generator=draw) * shape for k in range(60)}
    sweeps = InMemory(g)
    v = {name: torch.randn(1, 300, generator=draw) for name in g}
    facts = lissa(sweeps, sweeps.vectors(v), Settings(0.1, iterations=1))["facts"]
    for name, x in doubled(g).items():
        largest = float(torch.linalg.eigvalsh(x @ x.T / 40)[-1] + facts[name]["damping"])
        assert 1 < float(facts[name]["scale"]) / largest < 1.2


def test_exact_is_refused_where_it_takes_too_much() -> None:
    sizes = {"a": 50_000}
    large = Settings(rows=10**7, curvature_rows=10**7, sizes=sizes)
    refused = METHOD.refuses(Extent(10**7, ((0, 1),), settings=large))
    assert refused is not None
    assert "a block of 50,000 entries and 10,000,000 rows need about 200 sweeps, 2.0e+09 backward passes" in refused[0]
    for fine in (
        {"iterations": 100}, {"curvature_rows": 4096}, {"sizes": {"a": 4096}}, {"curvature_rows": 10**5},
    ):  # fmt: skip
        settings = Settings(**{**vars(large), **fine})
        assert METHOD.refuses(Extent(10**7, ((0, 1),), settings=settings)) is None
    own = METHOD.refuses(Extent(10**7, ((0, 1),), settings=Settings(**{**vars(large), "self_influence": True})))
    assert own is not None
    assert own == (
        "self_influence needs matrices of at most 4,096, not a block of 50,000 entries and 10,000,000 rows",
        "use method.curvature_rows: 4096, or datainf",
    )


@pytest.mark.parametrize("self_influence", [False, True])
@pytest.mark.parametrize("rows", [300, 4096, 10**7])
@pytest.mark.parametrize("blocks", [1, 40, 448])
@pytest.mark.parametrize("size", [4096, 65_536, 4_000_000])
def test_what_is_refused_is_not_when_its_advice_is_taken(
    size: int, blocks: int, rows: int, self_influence: bool
) -> None:
    sizes = {f"b{k}": size for k in range(blocks)}
    asked = Settings(rows=10**7, curvature_rows=rows, sizes=sizes, self_influence=self_influence)

    def refused(settings: Settings) -> tuple[str, str] | None:
        return METHOD.refuses(Extent(10**7, ((0, 1),), settings=settings))

    found = portions(asked)
    for part in found or ():
        some = sizes if part is None else {name: sizes[name] for name in part}
        assert sum(form_bytes(rows, one) for one in some.values()) <= module.PORTION
    if (told := refused(asked)) is None:
        return
    advised = re.search(r"curvature_rows: (\d+)(?:, which takes (\w+))?", told[1])
    if advised is None:
        assert told[1] in ("use datainf", "use method.iterations, the most that you want")
        return
    fewer = Settings(**{**vars(asked), "curvature_rows": int(advised[1])})
    assert int(advised[1]) < rows
    assert refused(fewer) is None
    takes = portions(fewer)
    assert takes is not None
    assert advised[2] in (None, "one" if len(takes) == 1 else str(len(takes)))
