"""Two sweeps for three: the damping's nodes, and the bound on what is lost between them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.damping import (
    MOST_NODES,
    TOLERANCE,
    block_damping,
    choose_nodes,
    interpolated,
    interpolation_error,
    judge,
    lagrange,
    tail,
)
from datainf_ray.influence.datainf import datainf, ihvp
from datainf_ray.influence.folds import Curvature
from datainf_ray.influence.memory import InMemory
from tests import reference

BLOCK = Block("a", "", (30,))


def draw(rows: int, seed: int, spread: float = 1.0, size: int = 30) -> Tensor:
    """Gradients whose norms spread over e^spread either way."""
    generator = torch.Generator().manual_seed(seed)
    wide = (spread * torch.randn(rows, 1, generator=generator, dtype=torch.float64)).exp()
    return wide * torch.randn(rows, size, generator=generator, dtype=torch.float64)


def curvature(g: Tensor, v: Tensor, nodes: Tensor) -> dict[str, Tensor]:
    fold = Curvature([BLOCK], len(g), queries={"a": {"vector": v}}, nodes={"a": {"nodes": nodes}})
    fold.update("a", g, torch.arange(len(g)))
    fold.finite(torch.arange(len(g)))
    return fold.result()["a"]


def exact(g: Tensor, v: Tensor, lam: Tensor) -> Tensor:
    h = torch.zeros_like(v)
    for x in g:
        h += (v @ x)[:, None] / (lam + x @ x) * x / len(g)
    return h


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("off", [0.6, 0.97, 1.2, 3.0])
def test_the_bound_holds_and_is_not_idle(spread: float, k: int, off: float) -> None:
    g, v = draw(50, 1, spread), draw(4, 2, 0.5)
    lam = 0.1 * g.square().sum() / g.numel()
    nodes = lam * off * torch.linspace(-0.3, 0.3, k, dtype=torch.float64).exp()
    swept, want = curvature(g, v, nodes), exact(g, v, lam)
    error = (interpolated(swept, nodes, lam) - want).norm(dim=1) / v.norm(dim=1)
    s = g.square().sum(1)
    torch.testing.assert_close(swept["tail"], tail(nodes, s), rtol=1e-12, atol=0)
    bound = interpolation_error(nodes, lam, swept["tail"] / len(g))
    assert (error <= bound + 1e-14).all()  # double precision's own rounding
    # one direction, one row after the other: then no term's error cancels another's
    line = (s.sqrt()[:, None] * torch.eye(30, dtype=torch.float64)[:1]).contiguous()
    along = torch.eye(30, dtype=torch.float64)[:1]
    worst = (interpolated(curvature(line, along, nodes), nodes, lam) - exact(line, along, lam)).norm()
    assert worst <= bound + 1e-14
    assert worst > 0.05 * bound or bound < 1e-13


def test_the_bound_of_a_block_is_on_its_ihvp() -> None:
    g, v = draw(50, 3), draw(4, 4)
    lam = 0.1 * g.square().sum() / g.numel()
    nodes = lam * torch.tensor([0.8, 1.3], dtype=torch.float64)
    swept = curvature(g, v, nodes)
    queries, points = {"vector": v}, {"nodes": nodes}
    known = block_damping(BLOCK, swept, c=0.1)
    facts = judge(BLOCK, known, queries, swept, points, ihvp(BLOCK, queries, swept, points, known))
    torch.testing.assert_close(facts["damping"], lam, rtol=1e-12, atol=0)
    r = v - exact(g, v, lam)
    error = ((v - interpolated(swept, nodes, lam)) - r).norm(dim=1) / r.norm(dim=1)
    assert 0 < error.max() <= facts["bound"]


def test_the_weights_reproduce_polynomials() -> None:
    nodes = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    for lam in (torch.tensor(3.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)):
        weights = lagrange(nodes, lam)
        for power in range(3):
            assert float(weights @ nodes**power) == pytest.approx(float(lam**power), rel=1e-12)


def test_two_nodes_do_where_damping_is_far_below_the_norms_and_more_where_rows_are_learnt_by_heart() -> None:
    wide = Block("a", "", (4096,))
    usual = draw(256, 5, 0.2).square().sum(1)
    assert len(choose_nodes(wide, {"sqnorms": usual}, c=0.1)["nodes"]) == 2
    learnt = torch.cat([usual[:64], usual[64:] * 1e-5])
    nodes = choose_nodes(wide, {"sqnorms": learnt}, c=0.1)["nodes"]
    assert 2 < len(nodes) <= MOST_NODES
    assert (nodes.diff() > 0).all()
    guess = 0.1 * learnt.mean() / 4096
    assert nodes[0] < guess < nodes[-1]


def test_a_pilot_without_gradients_chooses_no_nodes() -> None:
    for sqnorms in (torch.zeros(8, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)):
        assert len(choose_nodes(BLOCK, {"sqnorms": sqnorms}, c=0.1)["nodes"]) == 0


def test_a_usual_corpus_takes_two_sweeps() -> None:
    g, v = {"a": draw(300, 6, 0.3, 2048)}, {"a": draw(3, 7, 0.3, 2048)}
    sweeps = InMemory(g, pilot=32)
    solved = datainf(sweeps, sweeps.vectors(v), 0.1)
    assert sweeps.names == ["pilot", "curvature", "scores"]
    assert 0 < solved["facts"]["a"]["bound"] < TOLERANCE
    assert reference.worst(sweeps.scores, reference.datainf(g, v)) < 1e-7


def test_a_block_that_the_pilot_misjudged_is_swept_again_and_right() -> None:
    """A tenth of the rows carries nearly all of the norm, and the pilot has none of them."""
    g, v = {"odd": draw(100, 8), "even": draw(100, 9, 0.1, 2048)}, {"odd": draw(3, 10), "even": draw(3, 11, 0.1, 2048)}
    seed, pilot = 0, 8
    rows = InMemory(g, pilot=pilot, seed=seed).rows["pilot"]
    heavy = [k for k in range(100) if k not in rows.tolist()][:10]
    g["odd"][heavy] *= 1000
    sweeps = InMemory(g, pilot=pilot, seed=seed)
    solved = datainf(sweeps, sweeps.vectors(v), 0.1)
    assert sweeps.names == ["pilot", "curvature", "curvature again", "scores"]
    assert solved["facts"]["odd"]["bound"] == 0
    assert 0 < solved["facts"]["even"]["bound"] < TOLERANCE
    assert reference.worst(sweeps.scores, reference.datainf(g, v)) < 1e-7


def test_a_block_of_whose_gradients_the_pilot_saw_none_is_swept_again() -> None:
    g, v = {"a": draw(100, 12)}, {"a": draw(3, 13)}
    rows = InMemory(g, pilot=8).rows["pilot"]
    g["a"][rows] = 0
    sweeps = InMemory(g, pilot=8)
    datainf(sweeps, sweeps.vectors(v), 0.1)
    assert sweeps.names == ["pilot", "curvature", "curvature again", "scores"]
    assert reference.worst(sweeps.scores, reference.datainf(g, v)) < 1e-12
