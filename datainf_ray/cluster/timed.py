"""How fast a worker is, by a few seconds of real work: what a plan can rest on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from datainf_ray.cluster.chunk import require_usable, sweep_chunk
from datainf_ray.cluster.memory import peak_bytes
from datainf_ray.corpus.batches import Batch
from datainf_ray.corpus.tokens import Example
from datainf_ray.influence.folds import Curvature
from datainf_ray.model.replica import Replica

_CALIBRATION = 3.0  # seconds


def timed_curvature(
    replica: Replica,
    examples_again: Callable[[], list[Example]],
    make_batch: Callable[[Sequence[Example], Sequence[int]], Batch],
    queries: int,
    batch_tokens: int,
) -> tuple[float, int, float]:
    """A curvature sweep over a chunk, again and again; `examples_again` reads and encodes its rows.

    Tokens per second, peak memory in bytes, and tokens per row. Raises `RunFailedError` where no row can be used.
    """
    blocks, device = replica.blocks, replica.device
    state = {b.name: {"vector": torch.randn(queries, b.size, device=device)} for b in blocks}
    nodes = {b.name: {"nodes": torch.ones(2, dtype=torch.float64)} for b in blocks}
    rows = 0

    def turn() -> int:
        nonlocal rows
        examples = examples_again()
        rows = len(examples)
        fold = Curvature(blocks, rows, device, queries=state, nodes=nodes)
        swept = sweep_chunk(replica, examples, lambda: fold, batch_tokens, make_batch)
        require_usable(swept, "random training rows")
        return int(swept.facts["tokens"].to_numpy()[swept.usable].sum())

    turn()  # the first is for warming up
    tokens, turns, began = 0, 0, time.perf_counter()
    while turns == 0 or time.perf_counter() - began < _CALIBRATION:
        tokens, turns = tokens + turn(), turns + 1
    rate = tokens / (time.perf_counter() - began)
    return rate, peak_bytes(replica.devices), tokens / (turns * rows)
