"""A short measurement on one real worker, for the plan."""

from __future__ import annotations

import time
from contextlib import closing

from datainf_ray.cluster.connect import connected
from datainf_ray.cluster.facts import ClusterFacts
from datainf_ray.cluster.orders import worker_spec
from datainf_ray.cluster.pool import Pool
from datainf_ray.corpus.sample import sample_chunks
from datainf_ray.planning.calibration import Calibration
from datainf_ray.planning.room import Room
from datainf_ray.planning.sizing import choose_groups, expected_batch_tokens
from datainf_ray.request.job import Job

_ROWS = 128  # random ones, that the worker is timed on


def measure(job: Job) -> tuple[Calibration, Room]:
    """Start one worker where the run would, and let it sweep some random training rows for a few seconds.

    Returns the measurement and the room of the cluster. Raises the errors that the run would raise if the cluster
    cannot be reached or the worker cannot start.
    """
    with connected(job.config.cluster, job.config.output) as cluster:
        return _by_one_worker(job, cluster)  # its frame holds references into Ray, this one not


def _by_one_worker(job: Job, cluster: ClusterFacts) -> tuple[Calibration, Room]:
    with closing(Pool(worker_spec(job), 1, 1, cluster.room.gpus_per_worker)) as pool:
        return measured(job, cluster, pool)


def measured(job: Job, cluster: ClusterFacts, pool: Pool) -> tuple[Calibration, Room]:
    """The same, by the first worker of a pool."""
    ((chunk, *_),) = sample_chunks(job.corpora["train"], _ROWS, job.config.seed, _ROWS)
    began = time.perf_counter()
    room = cluster.with_device(pool.first("device_bytes"))
    start = time.perf_counter() - began
    batch_tokens = expected_batch_tokens(job, room)
    queries = max(last - first for first, last in choose_groups(job, room, batch_tokens)[0])
    rate, peak, tokens = pool.first("calibrate", chunk, queries, batch_tokens)
    return Calibration(rate, peak, start, pool.infos[0].device, tokens), room
