"""Pictures of queries' prompts, on the driver: which the run directory has, and which the workers are to make.

A stage before the sweep over the queries. A picture that is kept is what the run uses, whoever takes it up: it is not
made again, because another kind of device would make other pixels of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import ray
from ray.exceptions import RayError

from datainf_ray.cluster.orders import WorkerSpec
from datainf_ray.cluster.picture_orders import PictureOrder, PictureSweep, mark
from datainf_ray.cluster.pool import Pool
from datainf_ray.common.errors import RunFailedError
from datainf_ray.corpus.pictures import made_name
from datainf_ray.corpus.sample import rows_chunk
from datainf_ray.diffusion.generate import mark_of
from datainf_ray.influence.folds import Moments
from datainf_ray.planning.listed import PICTURE_SWEEP
from datainf_ray.runs.checksums import Stored, stored
from datainf_ray.runs.directory import MADE
from datainf_ray.runs.record import SweepRecord
from datainf_ray.watch.progress import Watcher

_THREADS = 16  # pictures that are looked at at a time: mostly waiting for the store


def kept_pictures(spec: WorkerSpec, known: Mapping[str, Stored]) -> dict[int, Stored]:
    """The pictures of the run that its directory has, by the numbers of their rows.

    What is another run's, or not as run.json has it (`known`), is taken away. Raises `RunFailedError` where a file of
    that name is nobody's.
    """
    directory = spec.directory

    def look(row: int) -> Stored | None:
        name = f"{MADE}/{made_name(row)}"
        try:
            data = directory.read(name)
        except FileNotFoundError:
            return None
        whose = mark_of(data)
        now = stored(data)
        if whose == mark(spec.fingerprint, row) and known.get(name, now) == now:
            return now
        if whose is None and name not in known:
            raise RunFailedError(f"{directory.path(name)}: is no picture that this run has made; move it away")
        directory.remove(name)
        return None

    rows = range(spec.corpora["queries"].rows)
    with ThreadPoolExecutor(_THREADS) as pool:
        return {row: found for row, found in zip(rows, pool.map(look, rows), strict=True) if found is not None}


def make_missing(
    pool: Pool, spec: WorkerSpec, rows: Sequence[int], watcher: Watcher, pulse: Callable[[], None]
) -> tuple[SweepRecord, dict[int, str]]:
    """Have the pictures of these rows made; what that took, and of which rows there is none, and why."""
    corpus = spec.corpora["queries"]
    sweep = PictureSweep(next(pool.numbers), PICTURE_SWEEP, "queries", Moments, shards=(), batch_tokens=1)
    chunks = [replace(rows_chunk(corpus, [row]), number=k, first=k) for k, row in enumerate(rows)]
    began, workers, why = time.perf_counter(), 0, dict[int, str]()
    watcher.begin(PICTURE_SWEEP, len(rows))
    pool.log("sweep_begun", sweep=PICTURE_SWEEP, rows=len(rows))
    for done in pool.run(sweep, chunks, PictureOrder):
        pulse()
        workers = max(workers, pool.ready)
        if done is None:
            watcher.advance(0, 0, pool.ready)
            continue
        try:
            table = ray.get(done.results[0]).to_pylist()
        except RayError:  # it went with its node; the pictures are where they belong
            table = []
        why |= {one["row"]: one["detail"] for one in table if one["detail"] is not None}
        watcher.advance(done.report.rows, 0, pool.ready)
    watcher.end()
    seconds = round(time.perf_counter() - began, 3)
    pool.log("sweep_done", sweep=PICTURE_SWEEP, rows=len(rows), seconds=seconds)
    record = SweepRecord(
        id=f"{PICTURE_SWEEP}-1",
        name=PICTURE_SWEEP,
        source="prompts",
        examples=len(rows) - len(why),
        tokens=0,
        seconds=seconds,
        workers=workers,
    )
    return record, why
