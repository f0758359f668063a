"""From the chunks' files to the parts of examples/."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import ray

from datainf_ray.cluster.reduce import compute, is_large
from datainf_ray.common.storage import persistently
from datainf_ray.request.job import Job
from datainf_ray.runs.parts import PART_BYTES, consolidate, plan_parts, row_bytes

_AT_ONCE = 4  # parts that are written at a time; each takes up to 500 MB of memory


def consolidate_parts(job: Job, chunk_rows: Sequence[int]) -> None:
    """Write every part of examples/ from the chunks that make it: here where that is little, else by Ray's tasks."""
    results = job.config.results
    size = row_bytes(job.queries, results.scores, len(job.facts.blocks) if results.blocks else 0)
    parts = plan_parts(chunk_rows, size)
    small = len(parts) == 1 and not is_large(sum(chunk_rows) * size)
    waiting: list[ray.ObjectRef] = []
    for number, chunks in enumerate(parts):
        write = functools.partial(persistently, functools.partial(consolidate, job.directory, number, chunks))
        waiting.append(compute(write, [], 0 if small else PART_BYTES))
        if len(waiting) == _AT_ONCE:
            done, waiting = ray.wait(waiting, num_returns=1)
            ray.get(done)
    ray.get(waiting)
