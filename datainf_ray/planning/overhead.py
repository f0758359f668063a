"""What a run spends beside arithmetic: Python, hooks and small kernels for every chunk, batch, block and row.

It is what tiny models are bound by. The constants are CPU time of one core of a Xeon, seen with Llama, GPT-2, BERT and
T5 of width 32, of 2 to 12 layers (4 to 50 blocks), in batches of 1 to 21 rows of 12 tokens; fitted by hand.
"""

from __future__ import annotations

import itertools
import time

import torch

from datainf_ray.corpus.batches import plan_batches
from datainf_ray.request.job import Job
from datainf_ray.runs.schemas import OK

_CHUNK = 10e-3  # seconds: ordered, reported, written
_READ = 40e-6  # a row, read and tokenised
_BATCH, _BATCH_BLOCK = 1.5e-3, 0.35e-3  # a batch's forward and backward pass; its hooks and the fold, a block
_ROW, _ROW_BLOCK = 0.1e-3, 16e-6  # a row's part of these; a GPU does it for all rows of a batch at once
_REPLAYED, _REPLAYED_ROW = 50e-6, 4e-6  # a batch of kept gradients, and a row's part of it, a block


def overhead_seconds(
    job: Job, corpus: str, rows: int, chunk_rows: int, batch_tokens: int, *, backward: bool, on_gpu: bool
) -> float:
    """Of a sweep over `rows` rows of a corpus, for one worker. `backward`: else their gradients are kept."""
    if not rows:
        return 0.0
    blocks = len(job.facts.blocks)
    batches = rows * batches_per_row(job, corpus, min(chunk_rows, rows), batch_tokens)
    chunks = rows / min(chunk_rows, rows)
    if not backward:
        return chunks * _CHUNK + blocks * (batches * _REPLAYED + (0 if on_gpu else rows * _REPLAYED_ROW))
    row = _READ if on_gpu else _READ + _ROW + blocks * _ROW_BLOCK
    return chunks * _CHUNK + batches * (_BATCH + blocks * _BATCH_BLOCK) + rows * row


def batches_per_row(job: Job, corpus: str, chunk_rows: int, batch_tokens: int) -> float:
    """Batches of a chunk over its rows, as if it were made of the rows that were looked at."""
    seen = [example.lengths for example in job.examples[corpus] if example.status == OK]
    lengths = list(itertools.islice(itertools.cycle(seen), chunk_rows))
    return len(plan_batches(lengths, batch_tokens)) / chunk_rows


def cpu_flops(threads: int) -> float:
    """Half the speed of a float32 matrix product on `threads` threads of this machine, measured for a moment."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.ones(512, 512), torch.ones(512, 512)
        a @ b
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 0.1:
            a @ b
            count += 1
        return count * 2 * 512**3 / (time.perf_counter() - began) / 2
    finally:
        torch.set_num_threads(before)
