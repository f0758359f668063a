"""Blocks whose gradient is zero but for rounding: influence is that of the other blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from datainf_ray.influence.block import Block
from datainf_ray.influence.damping import LEAST, is_rounding, least_damping
from datainf_ray.influence.datainf import datainf, error_by_query
from datainf_ray.influence.memory import InMemory
from tests import reference

WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "interpolated": ({}, {}),
    "a small pilot": ({"pilot": 4}, {}),
    "norms first": ({}, {"norms_first": True}),
    "sampled": ({"sample": 24}, {"sampled": True}),
    "in groups": ({"groups": [(0, 2), (2, 3)]}, {}),
}


def gradients(rows: int, seed: int, noise: float) -> dict[str, Tensor]:
    """Two blocks, and between them a third of `noise` times the larger one's size."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"a": (40, 1.0), "noise": (8, noise), "b": (7, 1e-3)}
    return {name: scale * torch.randn(rows, size, generator=generator) for name, (size, scale) in sizes.items()}


def without(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in state.items() if name != "noise"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("noise", [1e-7, 1e-10])
def test_a_block_of_rounding_changes_no_bit_of_the_others_influence(way: str, noise: float) -> None:
    g, v = gradients(50, 1, noise), gradients(3, 2, noise)
    room, how = WAYS[way]
    with_it, alone = InMemory(g, batch=7, **room), InMemory(without(g), batch=7, **room)
    solved = datainf(with_it, with_it.vectors(v), 0.1, **how)
    expected = datainf(alone, alone.vectors(without(v)), 0.1, **how)
    torch.testing.assert_close(with_it.scores, alone.scores, rtol=0, atol=0)
    assert with_it.names == alone.names, "no sweep is made for it"
    facts = solved["facts"]
    assert [name for name in facts if "left_out" in facts[name]] == ["noise"]
    assert facts["noise"]["damping"] == 0
    if "error" in solved:
        torch.testing.assert_close(error_by_query(solved["error"]), error_by_query(expected["error"]), rtol=0, atol=0)


def test_a_damping_that_is_known_from_a_run_that_left_nothing_out_is_judged_too() -> None:
    g, v = gradients(50, 1, 1e-8), gradients(3, 2, 1e-8)
    known = {name: {"damping": 0.1 * x.double().square().mean()} for name, x in g.items()}
    asked, alone = InMemory(g), InMemory(without(g))
    solved = datainf(asked, asked.vectors(v), 0.1, known=known)
    datainf(alone, alone.vectors(without(v)), 0.1, known=without(known))  # type: ignore[arg-type]
    torch.testing.assert_close(asked.scores, alone.scores, rtol=0, atol=0)
    assert "left_out" in solved["facts"]["noise"]
    again = InMemory(g)
    solved = datainf(again, again.vectors(v), 0.1, known=solved["facts"])  # as from that run's index
    torch.testing.assert_close(again.scores, alone.scores, rtol=0, atol=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("small", [1e-4, 3e-6])
def test_a_small_block_that_is_no_rounding_counts_like_any_other(way: str, small: float) -> None:
    g, v = gradients(50, 1, small), gradients(3, 2, small)
    room, how = WAYS[way]
    sweeps = InMemory(g, batch=7, **({**room, "sample": 50} if "sample" in room else room))
    solved = datainf(sweeps, sweeps.vectors(v), 0.1, **how)
    assert not any("left_out" in statistic for statistic in solved["facts"].values())
    doubled, asked = ({k: x.double() for k, x in state.items()} for state in (g, v))
    assert reference.worst(sweeps.scores, reference.datainf(doubled, asked)) < 1e-5
    assert reference.worst(sweeps.scores, reference.datainf(without(doubled), without(asked))) > 0.1


@pytest.mark.parametrize("kind", ["lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"])
def test_a_factor_is_never_left_out(kind: str) -> None:
    """After a first step of 1e-7 lora_B is that small, and with it the gradient of lora_A, to all its digits."""
    g, v = gradients(50, 1, 1e-9), gradients(3, 2, 1e-9)
    sweeps = InMemory(g)
    sweeps.blocks = [replace(block, kind=kind) for block in sweeps.blocks]
    solved = datainf(sweeps, sweeps.vectors(v), 0.1)
    assert not any("left_out" in statistic for statistic in solved["facts"].values())
    want = reference.datainf({k: x.double() for k, x in g.items()}, {k: x.double() for k, x in v.items()})
    assert reference.worst(sweeps.scores, want) < 1e-5


@pytest.mark.parametrize(
    ("name", "kind", "ratio", "rounding"),
    [
        ("key.bias", "bias", 0.9, True),
        ("key.bias", "bias", 1.1, False),
        ("key.bias", "bias", 0.0, False),  # no gradient at all: nothing to leave out
        ("key.lora_B.bias", "lora_B", 0.9, True),  # `lora_bias`: it is added, like any bias
        ("key.lora_B.weight", "lora_B", 0.9, False),
        ("key.bias", "modules_to_save", 0.9, True),
    ],
)
def test_what_is_rounding(name: str, kind: str, ratio: float, rounding: bool) -> None:
    largest = 3e-5
    least = least_damping([largest, largest / 2])
    assert is_rounding(Block(name, kind, (4,)), largest * (ratio * LEAST) ** 2, least) is rounding


def test_there_is_nothing_to_leave_out_where_no_block_has_a_gradient() -> None:
    assert least_damping([]) == 0
    assert not is_rounding(Block("a", "bias", (4,)), 0.0, least_damping([0.0, 0.0]))
