"""How large the portions of a run are: rows in a chunk, queries at a time, and what is kept between two sweeps.

Functions of the request and of what there is to work with. Rates are nominal, not measured, so that a plan depends
neither on the mood of a machine nor on the number of workers. With m queries, D trainable parameters and P in the base:

    a row's computing     4 · P · tokens + (2 + 2K) · m · D operations: forward, backward, the curvature's products
    a chunk's statistics  K · m · D float32: the curvature's sums at K nodes of damping
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from datainf_ray.common.errors import RequestError
from datainf_ray.common.words import byte_size
from datainf_ray.influence.datainf import NODES
from datainf_ray.model.fit import CPU_BATCH_TOKENS, MOST
from datainf_ray.model.spread import HELD
from datainf_ray.planning.estimate import (
    GPU_GAPS,
    activation_bytes,
    half_precision,
    index_row_bytes,
    mean_tokens,
    pass_tokens,
    row_gradient_bytes,
    score_bytes,
    token_bytes,
    weight_bytes,
)
from datainf_ray.planning.room import Room
from datainf_ray.request.job import Job

PLANNED_NODES = 4  #: what memory is reckoned with: two, and as much again for rows that wait to be added to their sums
CPU_FLOPS = 60e9  #: a core's, in float32
GPU_FLOPS = 100e12  #: a GPU's, in bfloat16
STORE_RATE = 0.5e9  #: bytes/s from a worker through the object store into the sum, all in
SHARE = 0.05  #: of a chunk's computing time that its statistics may spend on their way
FEWEST_ROWS, MOST_ROWS = 16, 16384
CHUNK_SECONDS, LONGEST_SECONDS = 30, 600  # that a chunk computes; the second where fewer rows would not do
FULL_BATCH = 32768  #: tokens that keep any GPU busy; larger batches, where there is room for them, gain little
_ALIKE_ROWS, _ALIKE_SECONDS = 128, 3  # among so many rows there are some of like length for every batch
_SPREAD = 64  # chunks that a small corpus is cut into, for workers to share
_INDEX_BYTES = 256 * 10**6  # of a chunk's part of the index
_SCORE_BYTES = 128 * 10**6  # of a chunk's scores
_VALUES_BYTES = 256 * 10**6  # of a chunk's rows, as pictures are; the next chunk's are read meanwhile
_QUERY_BYTES = 256 * 10**6  # of the gradients of a chunk of queries
_KEPT_BYTES = 2**30  # of a chunk's gradients in the object store
_ON_DEVICE = HELD  # of a GPU's memory, for queries and sums; where a worker has several, of the first one's
_MOVE_RATE = 10e9  # bytes/s between a GPU and the host, with the addition there


@dataclass(frozen=True)
class Sizes:
    """The portions of a run. A run that is taken up again must take them from run.json: they may differ elsewhere."""

    chunk_rows: int
    batch_tokens: int
    groups: tuple[tuple[int, int], ...]  # ranges of queries; each costs a curvature sweep of its own
    resident: bool  # queries and sums lie on the device; else in host memory, and are moved block by block
    gradients: Literal["keep", "recompute"]
    why: str  # gradients are kept, or not: a sentence


def choose_sizes(job: Job, room: Room, batch_tokens: int) -> Sizes:
    """The portions of a run in `room` with batches of `batch_tokens`.

    Raises `RequestError` where `gradients: keep` is asked for and they do not fit.
    """
    chunk_rows = choose_chunk_rows(job, room.gpus_per_worker, batch_tokens)
    groups, resident = choose_groups(job, room, batch_tokens)
    gradients, why = choose_gradients(job, room, chunk_rows)
    return Sizes(chunk_rows, batch_tokens, groups, resident, gradients, why)


def choose_chunk_rows(job: Job, gpus: int, batch_tokens: int) -> int:
    """Rows in a chunk of the training corpus: `cluster.chunk_rows`, or the best for workers with `gpus` GPUs each.

    1/64 of the corpus or what takes 30 s, whichever is less; but at least one full batch (or 32768 tokens), 128 rows or
    3 s, and enough that the statistics' transport is under 5 % of the computing. Within fixed bounds: 600 s, 256 MB of
    the index, 128 MB of scores, 256 MB of pictures, 1 GiB of gradients that must be kept, and, before all others, 16 to
    16384 rows. Where that leaves room, chunks are of equal size and even in number. Those of an index stay what they
    were.
    """
    config, facts, rows = job.config, job.facts, job.rows
    if job.chunk_rows is not None:
        return job.chunk_rows
    seconds = row_seconds(job, gpus)
    few = min(math.ceil(rows / _SPREAD), CHUNK_SECONDS / seconds)
    alike = min(_ALIKE_ROWS, _ALIKE_SECONDS / seconds)
    least = math.ceil(max(min(batch_tokens, FULL_BATCH) / mean_tokens(job), transport_seconds(job) / (SHARE * seconds)))
    most = [MOST_ROWS, LONGEST_SECONDS / seconds, _SCORE_BYTES / score_bytes(job)]
    if config.index:
        most.append(_INDEX_BYTES / index_row_bytes(job))
    if facts.row_bytes:
        most.append(_VALUES_BYTES / facts.row_bytes)
    if config.gradients == "keep":
        most.append(_KEPT_BYTES / (4 * facts.parameters))
    chunk_rows = max(int(min(max(few, alike, least), *most)), FEWEST_ROWS)
    return min(max(equal_rows(rows, chunk_rows), min(least, chunk_rows), FEWEST_ROWS), rows)


def choose_query_rows(job: Job, chunk_rows: int) -> int:
    """Rows in a chunk of the queries: a 64th of them, so that workers share them, but 16 at least, of equal size.

    No more than in a chunk of the corpus, and fewer where their gradients would exceed 256 MB.
    """
    rows = job.corpora["queries"].rows
    most = max(1, min(chunk_rows, _QUERY_BYTES // (4 * job.facts.parameters)))
    return equal_rows(rows, min(most, max(FEWEST_ROWS, math.ceil(rows / _SPREAD))))


def equal_rows(rows: int, most: int) -> int:
    """Rows in each of a few chunks of at most `most` rows: of equal size and even in number, for workers to share."""
    count = math.ceil(rows / most)
    return math.ceil(rows / (count + count % 2 if count > 1 else 1))


def choose_groups(job: Job, room: Room, batch_tokens: int) -> tuple[tuple[tuple[int, int], ...], bool]:
    """Ranges of queries whose gradients and sums fit, and whether they lie on the device.

    Planned for sums at 4 nodes of damping (at 2, the other half is for rows that wait to be added). On a GPU both may
    take 40 % of its memory; else they lie in the host's, of which the sums may take half, and are moved block by block
    for every batch. A second group costs another sweep, moving costs the bus: what is less by nominal rates is taken.
    All queries' vectors, which the scores take, lie where the sums do.
    On a CPU only the second limit counts: the queries' gradients are in the object store, which a node's workers share.
    One query is never split.
    """
    m, state = job.queries, 4 * job.queries * job.facts.parameters
    fits = room.device_bytes is None or (1 + job.method.wide) * state <= _ON_DEVICE * room.device_bytes
    if not nodes_of(job):
        return ((0, m),), fits
    by_host = _groups(job, PLANNED_NODES, room.worker_bytes / 2)
    if room.device_bytes is None:
        return _split(m, by_host), True
    by_device = _groups(job, 1 + PLANNED_NODES, _ON_DEVICE * room.device_bytes)
    sweep = 4 * job.facts.base_parameters * batch_tokens / flops_per_second(job, room.gpus_per_worker)
    moving = (1 + NODES) * state / _MOVE_RATE
    resident = fits and by_device * sweep <= by_host * sweep + moving
    return _split(m, by_device if resident else by_host), resident


def choose_gradients(job: Job, room: Room, chunk_rows: int) -> tuple[Literal["keep", "recompute"], str]:
    """Whether later sweeps read the gradients of the first in the object store, and why: those of all rows, or, where
    the curvature is taken from a sample, those of its rows.

    They may take half of the store, less four times the queries' own gradients, and 1 GiB a chunk. Raises
    `RequestError` where `gradients: keep` is asked for and they do not fit.
    """
    config, parameters = job.config, job.facts.parameters
    if job.not_kept is not None:
        return "recompute", job.not_kept
    rows = kept_rows(job)
    if not rows:
        return "recompute", "gradients are not kept: only one sweep needs those of all rows"
    whole = rows == job.rows
    portion = chunk_rows if whole else min(chunk_rows, rows)
    computed = "gradients are computed in both sweeps" if whole else "gradients are computed in every sweep"
    if config.gradients == "recompute":
        return "recompute", f"{computed}, as asked for"
    kept, chunk = 4 * parameters * rows, 4 * parameters * portion
    limit = max(room.store_bytes // 2 - 16 * job.queries * parameters, 0)
    size = f"{byte_size(kept)} fit into {byte_size(limit)}, half of the object store less the queries' part"
    if kept <= limit and chunk <= _KEPT_BYTES:
        what = "gradients are kept for the second sweep" if whole else "gradients of the sampled rows are kept"
        return "keep", f"{what}: {size}"
    if kept > limit:
        size = size.replace("fit", "do not fit", 1)
    else:
        size = f"{byte_size(chunk)} in a chunk of {portion:,} rows are more than {byte_size(_KEPT_BYTES)}"
    if config.gradients == "keep":
        raise RequestError("gradients", "keep", f"is not possible: {size}", "use auto or recompute")
    return "recompute", f"{computed}: {size}"


def kept_rows(job: Job) -> int:
    """The rows whose gradients more than one sweep needs: all, those of a sampled curvature, or none.

    A method never needs those of all rows twice where its curvature is that of a sample.
    """
    sweeps = Counter(sweep.over for sweep in job.method.sweeps(job.extent(((0, job.queries),))))
    if sweeps["train"] > 1:
        return job.rows
    return (job.sampled_rows or 0) if sweeps["half a"] > 1 else 0


def held_bytes(job: Job, device_bytes: int | None = None) -> int:
    """What queries and sums may take of a device beside model and batch; at most the 40 % of `choose_groups`."""
    held = 4 * (1 + PLANNED_NODES) * job.queries * job.facts.parameters + state_bytes(job)
    return held if device_bytes is None else min(held, int(_ON_DEVICE * device_bytes))


def expected_batch_tokens(job: Job, room: Room) -> int:
    """`cluster.batch_tokens`, or what `auto` will come to: on a GPU, by estimate, what fits.

    On a CPU a constant; half of it, and so on, where a batch would leave no room: large blocks have large gradients.
    """
    given = job.config.cluster.batch_tokens
    if given != "auto":
        return given
    if room.device_bytes is None:
        left = room.worker_bytes - weight_bytes(job, on_gpu=False)
        tokens = CPU_BATCH_TOKENS
        while left > 0 and tokens > pass_tokens(job) and activation_bytes(job, tokens, on_gpu=False) > left:
            tokens //= 2
        return tokens
    # several GPUs are filled alike, with weights and with what the weights' forward pass leaves
    memory = room.device_bytes * max(room.gpus_per_worker, 1)
    free = 0.9 * memory - weight_bytes(job, on_gpu=True) - held_bytes(job, room.device_bytes)
    each = token_bytes(job.facts, half_precision(job, on_gpu=True)) + row_gradient_bytes(job) / pass_tokens(job)
    fit = free / (GPU_GAPS * each)
    return int(min(2 ** int(math.log2(max(fit, pass_tokens(job)))), MOST))


def flops_per_second(job: Job, gpus: int) -> float:
    """A worker's nominal speed. Several GPUs are as fast as one: a batch passes through them one after the other."""
    return GPU_FLOPS if gpus else CPU_FLOPS * job.config.cluster.cpus_per_worker


def nodes_of(job: Job) -> int:
    """Vectors of all parameters that a chunk sends for a query: at how many dampings the curvature is summed, say."""
    return job.method.sums(replace(job.extent(((0, job.queries),)), known=False))


def state_bytes(job: Job) -> int:
    """What the largest sums of the method take that do not grow with the queries."""
    extent = job.extent(((0, job.queries),))
    held = sum(job.method.state(extent, size) for size in extent.settings.sizes.values())
    if extent.settings.self_influence:  # every worker holds it for all blocks
        return held
    return min(held, max(sweep.state for sweep in job.method.sweeps(extent)))


def row_seconds(job: Job, gpus: int) -> float:
    """A training row's nominal computing time in the curvature sweep, on a worker with so many GPUs."""
    products = (2 + 2 * nodes_of(job)) * job.queries * job.facts.parameters
    return (4 * job.facts.base_parameters * mean_tokens(job) + products) / flops_per_second(job, gpus)


def transport_seconds(job: Job) -> float:
    """What a chunk's statistics spend on their way through the object store, by nominal rates."""
    return 4 * nodes_of(job) * job.queries * job.facts.parameters / STORE_RATE


def transport_share(job: Job, gpus: int, chunk_rows: int, groups: int = 1) -> float:
    """The statistics' transport over the computing of a chunk of so many rows; each group's sweep carries its own."""
    return transport_seconds(job) / (groups * chunk_rows * row_seconds(job, gpus))


def _groups(job: Job, vectors: int, limit: float) -> int:
    """In how many groups the queries fit into so many bytes, with so many vectors of all parameters each."""
    at_once = max(int(limit // (4 * vectors * job.facts.parameters)), 1)
    return math.ceil(job.queries / at_once)


def _split(queries: int, groups: int) -> tuple[tuple[int, int], ...]:
    edges = [k * queries // groups for k in range(groups + 1)]
    return tuple(itertools.pairwise(edges))
