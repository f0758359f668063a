"""A state in portions that suit the object store."""

from __future__ import annotations

import pytest

from datainf_ray.cluster.states import SHARD_BYTES, shard_blocks
from datainf_ray.influence.block import Block


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
