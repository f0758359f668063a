"""A state in portions that suit the object store."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch

from datainf_ray.cluster.reduce import arrays
from datainf_ray.cluster.states import SHARD_BYTES, Held, States, shard_blocks
from datainf_ray.influence.block import Block
from datainf_ray.influence.folds import Moments
from datainf_ray.influence.products import SecondMoments
from datainf_ray.runs.directory import RunDirectory


@pytest.mark.parametrize("queries", [1, 7, 1000])
def test_shards_hold_every_block_once_in_order_and_are_of_a_size(queries: int) -> None:
    blocks = [Block(f"b{k}", "lora_A", (8, 16 * (k % 5 + 1))) for k in range(200)]
    shards = shard_blocks(blocks, queries)
    assert [name for shard in shards for name in shard] == [b.name for b in blocks]
    size = {b.name: 4 * queries * b.size for b in blocks}
    totals = [sum(size[name] for name in shard) for shard in shards]
    assert all(total <= SHARD_BYTES for total in totals)
    assert all(a + size[shard[0]] > SHARD_BYTES for a, shard in zip(totals, shards[1:], strict=False))


def test_a_block_larger_than_a_shard_is_one() -> None:
    blocks = [Block("small", "lora_A", (2,)), Block("large", "lora_A", (SHARD_BYTES,)), Block("last", "lora_A", (2,))]
    assert shard_blocks(blocks, 1) == (("small",), ("large",), ("last",))


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_the_sum_of_two_halves_is_as_large_as_a_half(tmp_path: Path) -> None:
    """Matrices of a sample are solved a few at a time, as those of all rows are."""
    blocks = [Block("a", "lora_A", (3,)), Block("b", "lora_A", (2,))]
    states = States(blocks, 1, RunDirectory(str(tmp_path)), "run", print, held=lambda size: 8 * size**2)
    g = torch.arange(24.0).view(8, 3)
    for fold in (SecondMoments, Moments):
        halves = []
        for some in g.split(4):
            part = fold(blocks, 4)
            for block in blocks:
                part.update(block.name, some[:, : block.size], torch.arange(4))
            part.finite(torch.arange(4))
            state = [arrays({name: part.result()[name] for name in shard}) for shard in states.shards]
            halves.append(tuple(map(ray.put, state)))
        both = states.merged(fold, *halves)
        assert isinstance(both, Held) == fold.held
        found = states.collect(both)
        assert float(found["a"]["moments"][0]) == len(g)
    assert states.bytes_of(0, held=True) > states.bytes_of(0)
