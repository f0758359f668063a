"""From the chunks' files to the parts of examples/."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from datainf_ray.cluster.failures import Fault, classify, final_error
from datainf_ray.cluster.reduce import compute, is_large
from datainf_ray.common.errors import RunFailedError
from datainf_ray.common.storage import persistently
from datainf_ray.request.job import Job
from datainf_ray.runs.checksums import Stored
from datainf_ray.runs.parts import PART_BYTES, consolidate, part_name, plan_parts, row_bytes

_ATTEMPTS = 5  # times that a part is written, where that fails by no fault of its own
_AT_ONCE = 4  # parts that are written at a time; each takes up to 500 MB of memory


def consolidate_parts(job: Job, chunk_rows: Sequence[int], owner: str) -> dict[str, Stored]:
    """Write every part of examples/ from the chunks that make it: here where that is little, else by Ray's tasks.

    The chunks' files are those of the run `owner`. Returns what each part holds, by its name. Raises `DamagedError`
    where a chunk's file is not as it was written.
    """
    results = job.config.results
    size = row_bytes(
        job.queries, results.scores, len(job.facts.blocks) if results.blocks else 0, results.self_influence
    )
    parts = plan_parts(chunk_rows, size)
    small = len(parts) == 1 and not is_large(sum(chunk_rows) * size)
    waiting: _Waiting = {}
    written: dict[int, Stored] = {}
    for number, chunks in enumerate(parts):
        write = functools.partial(persistently, functools.partial(consolidate, job.directory, number, chunks, owner))
        waiting[compute(write, [], 0 if small else PART_BYTES)] = number, write, 1
        while len(waiting) == _AT_ONCE:
            _finish_one(waiting, written)
    while waiting:
        _finish_one(waiting, written)
    return {part_name(number): written[number] for number in sorted(written)}


#: By reference, what is under way: the part's number, what writes it, and which attempt it is.
_Waiting = dict[Any, tuple[int, Callable[[], Any], int]]


def _finish_one(waiting: _Waiting, written: dict[int, Stored]) -> None:
    """Wait for the first that comes to an end, and begin it again where Ray lost it.

    Raises what would go wrong again, or goes wrong too often.
    """
    (reference, *_), _ = ray.wait(list(waiting), num_returns=1)
    number, write, attempt = waiting.pop(reference)
    try:
        written[number] = ray.get(reference)
    except RayError as error:
        failure = classify(error)
        if failure.fault is Fault.PERMANENT:
            raise final_error(failure) from None
        if attempt == _ATTEMPTS:
            told = f"a part of examples/ could not be written in {attempt} attempts: {failure.reason}"
            raise RunFailedError(told) from None
        waiting[compute(write, [], PART_BYTES)] = number, write, attempt + 1
