"""Several draws of a tensor's gradient, side by side: blocks of their own that share the tensor's damping."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.datainf import datainf
from datainf_ray.influence.memory import InMemory
from datainf_ray.influence.method import Settings
from datainf_ray.influence.register import method_named
from tests import reference

C = 0.1
DRAWS = (25, 525, 925)


def gradients(rows: int, seed: int) -> dict[str, Tensor]:
    """Two tensors at three draws, whose gradients differ by orders of magnitude; and one that has no draws."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int, scale: float) -> Tensor:
        return scale * torch.randn(rows, size, generator=generator, dtype=torch.float64)

    return {
        f"t{t}/{name}": draw(size, scale) for t, scale in zip(DRAWS, (10.0, 1.0, 0.01), strict=True)
        for name, size in (("a", 30), ("b.c", 7))
    } | {"alone": draw(5, 1.0)}  # fmt: skip


def dampings(g: dict[str, Tensor]) -> dict[str, float]:
    """λ of every block, by hand: over all rows, entries and draws of its tensor."""
    tensors: dict[str, list[float]] = {}
    for name, x in g.items():
        tensors.setdefault(name.rpartition("/")[2], []).extend(x.square().flatten().tolist())
    return {name: C * sum(of := tensors[name.rpartition("/")[2]]) / len(of) for name in g}


def inverses(g: dict[str, Tensor], exact: bool) -> dict[str, Tensor]:
    """What each block's inverse is by the formulas, with its λ: the mean of inverses, or the inverse of the mean."""
    found = {}
    for name, lam in dampings(g).items():
        x = g[name]
        one = torch.eye(x.shape[1], dtype=torch.float64)
        if exact:
            found[name] = (x.T @ x / len(x) + lam * one).inverse()
        else:
            found[name] = torch.stack([(torch.outer(row, row) + lam * one).inverse() for row in x]).mean(0)
    return found


def by_hand(g: dict[str, Tensor], v: dict[str, Tensor], exact: bool = False) -> Tensor:
    inverse = inverses(g, exact)
    return -sum(g[name] @ inverse[name] @ v[name].T for name in g)


def test_draws_share_their_tensors_damping() -> None:
    g, v = gradients(40, 1), gradients(3, 2)
    sweeps = InMemory(g, batch=7, chunk=16)
    solved = datainf(sweeps, sweeps.vectors(v), C)
    assert reference.worst(sweeps.scores, by_hand(g, v)) < 1e-6
    for name, lam in dampings(g).items():
        assert float(sweeps.collect(solved["facts"])[name]["damping"]) == pytest.approx(lam, rel=1e-12)
    assert sweeps.names == ["pilot", "curvature", "scores"]  # the guess was of the shared damping: none is swept again


def test_queries_in_groups_a_sample_and_the_damping_first() -> None:
    g, v = gradients(40, 1), gradients(3, 2)
    want = by_hand(g, v)
    for how in ({"groups": [(0, 2), (2, 3)]}, {}):
        sweeps = InMemory(g, **how)
        datainf(sweeps, sweeps.vectors(v), C, norms_first=not how)
        assert reference.worst(sweeps.scores, want) < 1e-6


def test_the_exact_inverse() -> None:
    g, v = gradients(40, 1), gradients(3, 2)
    sweeps = InMemory(g)
    settings = Settings(C, rows=40, curvature_rows=40, sizes={name: x.shape[1] for name, x in g.items()})
    method_named("exact").program(sweeps, sweeps.vectors(v), settings, None)
    assert reference.worst(sweeps.scores, by_hand(g, v, exact=True)) < 1e-6


def test_what_is_a_draw() -> None:
    block = Block("x.lora_A.weight", "lora_A", (2, 3))
    assert block.at(25) == Block("t25/x.lora_A.weight", "lora_A", (2, 3))
    assert [b.tensor for b in (block, block.at(25))] == ["x.lora_A.weight"] * 2
    assert Block("talk/x", "other", (1,)).tensor == "talk/x"  # a name of a model's own
