"""What a run would take, as a function of the prepared job and of the room that there is: `Plan`."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from datainf_ray.common.words import byte_size, counted, estimate
from datainf_ray.influence.datainf import NODES
from datainf_ray.influence.method import CURVATURE
from datainf_ray.planning.calibration import Calibration
from datainf_ray.planning.estimate import (
    PROCESS_BYTES,
    activation_bytes,
    half_precision,
    index_row_bytes,
    mean_tokens,
    picture_flops,
    score_bytes,
    text_bytes,
    weight_bytes,
)
from datainf_ray.planning.fits import too_large
from datainf_ray.planning.guess import guess_room
from datainf_ray.planning.listed import PICTURE_SWEEP, TOKEN_SWEEPS, listed_rows
from datainf_ray.planning.overhead import cpu_flops, overhead_seconds
from datainf_ray.planning.room import Room
from datainf_ray.planning.sizing import (
    PLANNED_NODES,
    SHARE,
    STORE_RATE,
    Sizes,
    choose_chunk_rows,
    choose_query_rows,
    choose_sizes,
    expected_batch_tokens,
    kept_rows,
    nodes_of,
    state_bytes,
    transport_seconds,
    transport_share,
)
from datainf_ray.request.job import Job
from datainf_ray.request.sampled import Looked, describe
from datainf_ray.request.seen import SeenRow
from datainf_ray.runs.parts import PART_BYTES, row_bytes
from datainf_ray.runs.record import tell_half_precision, tell_left_out

_GPU_FLOPS = 150e12  # a present GPU in bfloat16 at the share of its peak that training reaches
_READ_RATE = 5e9  # bytes/s of kept gradients, from the memory of the worker's own node
START_SECONDS = 10.0  #: Ray and a worker with its libraries; a large model takes longer
_DRIVER_BYTES = 650_000_000  # a driver with its libraries, seen on four small runs; what it holds comes on top
_CHUNK_FILE_BYTES = 5000  # of a chunk's file beside its rows: schema, checksum, places and text
_ALONG = 1.5  # forward-mode passes beside the forward and backward pass that a row of a sweep takes
_KEYS = frozenset({"key", "k_proj", "k_lin", "k"})  # what a key projection is called
_PLACE_BYTES = 14  # a place among a query's top rows, compressed, without its text


class Plan(BaseModel):
    """What a run is expected to take. Bytes and seconds are estimates; rows, blocks, chunks and sweeps are exact."""

    model_config = ConfigDict(frozen=True)

    rows: int
    query_rows: int
    queries: int
    tokens: int = Field(description="of the training rows, estimated from some of them")
    query_tokens: int
    row: SeenRow | None = Field(description="a training row as the model sees it; null where a query run has none")
    looked: dict[str, Looked] = Field(description="rows of each corpus that were looked at: unusable ones, cut ones")
    blocks: int
    parameters: int = Field(description="trainable, in all blocks")
    left_out: list[str] = Field(description="blocks that are likely to have no gradient but rounding")
    base_parameters: int
    adapter: str | None = Field(description="null: the base was trained itself")
    adapters: int = Field(1, description="each has a run of its own; sizes of blocks and chunks are the last one's")
    chosen: bool = Field(description="model.blocks says which blocks count")
    states: bool = Field(False, description="a hidden state is taken of each row, and no gradient")
    notes: tuple[str, ...] = Field(description="what is to be known of base and adapter")
    half_precision: str | None = Field(description="the 16 bits that the base computes in; null: it has more")
    chunks: int
    chunk_rows: int
    batch_tokens: int = Field(description="padded tokens in a batch; on a GPU an estimate where it is auto")
    groups: list[tuple[int, int]] = Field(description="ranges of queries; each costs a curvature sweep")
    resident: bool = Field(description="queries and sums lie on the device; else they are moved block by block")
    sweeps: list[str] = Field(description="in order; a block whose damping was hard to guess may cost one more")
    sweeps_guessed: bool = Field(False, description="how many there will be shows only when they are made")
    sampled_rows: int = Field(description="rows of the pilot, or the sample that the curvature is taken from")
    making: str | None = Field(None, description="what the pipeline makes of the queries before they are swept")
    token_rows: int = Field(0, description="looked at token by token, at most; a row counts for each query")
    gradients: Literal["keep", "recompute"]
    gradients_why: str
    transport: float = Field(description="a chunk's statistics on their way, as a share of its computing time")
    transport_why: str
    workers: int = Field(description="that the estimate of the time is for")
    worker_bytes: int = Field(description="a worker's peak host memory, sums planned for 4 nodes of damping")
    device_bytes: int | None = Field(description="a worker's peak GPU memory, of all its GPUs; null on a CPU")
    driver_bytes: int = Field(description="peak memory of the driver, with Python and its libraries")
    store_bytes: int = Field(description="in the object store at a time")
    store_room: int = Field(description="bytes that the object store has; Ray puts on disk what is more")
    output_bytes: int = Field(description="of the tables")
    peak_output_bytes: int = Field(description="on disk before the end: the chunks' scores, and the parts made of them")
    output_parts: int = Field(description="files of examples/")
    index_bytes: int = Field(description="of the gradient index; 0 where none is written")
    flops: float = Field(description="floating-point operations of all sweeps")
    seconds: float
    assumption: str = Field(description="what the seconds rest on, and the memory where a cluster was not asked")
    problem: str | None = Field(description="why such a run fits in no way, and what would; null where it may fit")
    output: str


def forecast(job: Job, calibration: Calibration | None = None, room: Room | None = None) -> Plan:
    """What a prepared job would take in `room`, or in what can be guessed of it."""
    config, facts, m = job.config, job.facts, job.queries
    room, assumed = guess_room(job) if room is None else (room, "")
    batch_tokens = expected_batch_tokens(job, room)
    sizes = choose_sizes(job, room, batch_tokens)
    seen = calibration.tokens_per_row if calibration is not None else None
    tokens = {"train": seen or mean_tokens(job), "queries": mean_tokens(job, "queries")}
    tokens = {name: round(tokens[name] * corpus.rows) for name, corpus in job.corpora.items()}
    chunks = math.ceil(job.rows / sizes.chunk_rows)
    workers = min(room.workers, chunks)
    sweeps = _sweeps(job, sizes)
    if config.results.tokens:
        sweeps += [
            _SweepCost(name, round(_ALONG * n), True, 0.0) for name, n in zip(TOKEN_SWEEPS, _listed(job), strict=True)
        ]

    if job.makes:
        sweeps.insert(0, _SweepCost(PICTURE_SWEEP, 0, True, picture_flops(job)))

    # Forward 2 operations per parameter and token, backward through the activations as many; the base's own weights
    # get no gradient.
    each = 2.0 if job.method.states else 4.0
    passes = tokens["queries"] + tokens["train"] / job.rows * sum(s.rows for s in sweeps if s.backward)
    flops = each * facts.base_parameters * passes + sum(s.products for s in sweeps)
    if calibration is not None:
        products = (2 + 2 * NODES) * m * facts.parameters * job.rows / tokens["train"]  # a token's part of a row's
        rate = (each * facts.base_parameters + products) * calibration.tokens_per_second
        said = f"{calibration.tokens_per_second:,.0f} tokens/s, as measured on {calibration.device}"
    elif room.gpus_per_worker:
        rate = _GPU_FLOPS  # of one, where a worker has several: a batch passes through them one after the other
        said = f"{rate / 1e12:.0f} Tflop/s, a GPU of today in bfloat16"
    else:
        rate = cpu_flops(config.cluster.cpus_per_worker)
        said = f"{rate / 1e9:.0f} Gflop/s, half of what a matrix product reaches on this CPU"
    reading = 4 * facts.parameters * sum(s.rows for s in sweeps if not s.backward) / _READ_RATE
    uneven = math.ceil(chunks / workers) * workers / chunks  # the last round leaves workers idle
    own = _overhead(job, sizes, sweeps, room) if calibration is None else 0.0  # it is in the measured rate
    seconds = (flops / rate + own + reading + chunks * transport_seconds(job)) * uneven / workers
    seconds += sum(s.state for s in sweeps) / STORE_RATE
    seconds += calibration.start_seconds if calibration is not None else START_SECONDS

    worker, device = _memory(job, sizes, room, calibration)
    state = 4 * m * facts.parameters
    group = max(last - first for first, last in sizes.groups) / m * state
    largest = max(nodes_of(job) * group, state_bytes(job))
    between = int(job.method.between(job.extent(sizes.groups)) * group)
    kept = 4 * facts.parameters * kept_rows(job) if sizes.gradients == "keep" else 0
    blocks = len(facts.blocks) if config.results.blocks else 0
    places = 2 * m * min(config.results.top_k, job.rows)
    output = job.rows * row_bytes(m, config.results.scores, blocks, config.results.self_influence)
    sampled = next((s.rows for s in sweeps if s.name == "pilot"), 0)
    tables = output + places * _PLACE_BYTES + min(places, job.rows) * text_bytes(job)
    share = transport_share(job, room.gpus_per_worker, sizes.chunk_rows, len(sizes.groups))
    return Plan(
        rows=job.rows,
        query_rows=job.corpora["queries"].rows,
        queries=m,
        tokens=tokens["train"],
        query_tokens=tokens["queries"],
        row=job.row,
        looked=job.looked,
        blocks=len(facts.blocks),
        parameters=facts.parameters,
        left_out=_key_biases(job),
        base_parameters=facts.base_parameters,
        adapter=config.model.one_adapter,
        chosen=config.model.blocks is not None,
        states=job.method.states,
        notes=facts.notes,
        half_precision=_half(job, room),
        chunks=chunks,
        chunk_rows=sizes.chunk_rows,
        batch_tokens=batch_tokens,
        groups=list(sizes.groups),
        resident=sizes.resident,
        sweeps=[s.name for s in sweeps],
        sweeps_guessed=any(s.guess for s in sweeps),
        sampled_rows=job.sampled_rows or sampled,
        making=job.making,
        token_rows=sum(_listed(job)) if config.results.tokens else 0,
        gradients=sizes.gradients,
        gradients_why=sizes.why,
        transport=share,
        transport_why=_transport_why(job, room, share, batch_tokens),
        workers=workers,
        worker_bytes=worker,
        device_bytes=device,
        # its part of the reduction, the queries' groups, the chunks it hands out, the top rows
        driver_bytes=_DRIVER_BYTES
        + 2 * min(state, 32 * 2**20)
        + 8 * job.corpora["queries"].rows
        + 500 * chunks
        + 300 * places,
        # the queries, a chunk's sums from every worker and on every level of the tree, what an iteration leaves, and
        # what is kept
        store_bytes=int((2 + job.method.wide) * state + largest * (workers + math.log2(chunks) + 1)) + between + kept,
        store_room=room.store_bytes,
        output_bytes=tables,
        peak_output_bytes=tables + output + chunks * _CHUNK_FILE_BYTES + (2 + job.method.wide) * state + between,
        output_parts=max(1, min(output // PART_BYTES, chunks)),
        index_bytes=job.rows * (index_row_bytes(job) + text_bytes(job)) if config.index else 0,
        flops=flops,
        seconds=seconds,
        assumption=f"{counted(workers, 'worker')} at {said}{assumed}",
        problem=too_large(job, room),
        output=job.directory.url,
    )


def _key_biases(job: Job) -> list[str]:
    """The biases of key projections: softmax does not see them, unless keys are turned by their position."""
    if not job.method.damped or job.facts.rotary:
        return []
    names = [b.name for b in job.facts.blocks if b.name.endswith(".bias")]
    return [name for name in names if not _KEYS.isdisjoint(name.split("."))]


def _but(p: Plan) -> str:
    """What is to be said of blocks that have no gradient but rounding."""
    if not p.left_out:
        return ""
    if p.half_precision is None:
        return f", but probably {tell_left_out(p.left_out, p.blocks)}"
    biases = f"{counted(len(p.left_out), 'key bias', 'key biases')} (the first is {p.left_out[0]})"
    return f"; {biases} without a gradient but rounding, which passes for one in 16 bits: use model.dtype: float32"


def _half(job: Job, room: Room) -> str | None:
    """The 16 bits that the base is taken to compute in; None where it has more."""
    dtype = job.config.model.dtype
    if not half_precision(job, room.device_bytes is not None):
        return None
    return "16 bits, if its checkpoint does" if dtype == "auto" else dtype


def _overhead(job: Job, sizes: Sizes, sweeps: list[_SweepCost], room: Room) -> float:
    """Seconds of all sweeps that are no arithmetic, for one worker."""
    chunk_rows = {"train": sizes.chunk_rows, "queries": choose_query_rows(job, sizes.chunk_rows)}
    on_gpu, total = room.device_bytes is not None, 0.0
    for sweep in sweeps:
        corpus, rows = ("train", sweep.rows) if sweep.name != "queries" else ("queries", job.corpora["queries"].rows)
        total += overhead_seconds(
            job, corpus, rows, chunk_rows[corpus], sizes.batch_tokens, backward=sweep.backward, on_gpu=on_gpu
        )
    return total


def _listed(job: Job) -> tuple[int, int]:
    """The rows of the corpus and of the queries that are looked at token by token, at most."""
    return listed_rows(job.queries, job.rows, job.config.results.top_k, job.corpora["queries"].rows)


@dataclass(frozen=True)
class _SweepCost:
    name: str
    rows: int  # of the corpus
    backward: bool  # else from kept gradients
    products: float  # operations of the fold
    state: int = 0  # bytes of what it sums, apart from what grows with the queries
    guess: bool = False


def _sweeps(job: Job, sizes: Sizes) -> list[_SweepCost]:
    """The sweeps of a run, in order: the method's own, behind the one over the queries."""
    planned = [_SweepCost("queries", 0, True, 0.0)]  # its rows are of another corpus
    kept: set[str] = set()
    for sweep in job.method.sweeps(job.extent(sizes.groups)):
        operations = 2.0 * sweep.products * sweep.rows * sweep.queries * job.facts.parameters
        backward = sweep.over not in kept
        planned.append(_SweepCost(sweep.name, sweep.rows, backward, operations, sweep.state, sweep.guess))
        if sweep.over in CURVATURE and sizes.gradients == "keep":
            kept.add(sweep.over)
    return planned


def _memory(job: Job, sizes: Sizes, room: Room, calibration: Calibration | None) -> tuple[int, int | None]:
    """A worker's peak memory: the host's, and that of its GPUs, all together, where it has any."""
    on_gpu = room.device_bytes is not None
    group = max(last - first for first, last in sizes.groups)
    queries = 4 * group * job.facts.parameters
    sums = PLANNED_NODES * queries if nodes_of(job) else 0
    model = weight_bytes(job, on_gpu) + activation_bytes(job, sizes.batch_tokens, on_gpu)
    if calibration is not None:
        own = calibration.worker_bytes - 4 * (1 + NODES) * job.queries * job.facts.parameters
        model = max(int(own if on_gpu else own - PROCESS_BYTES), 0)
    # A chunk's results stay on the host until they have been sent, while the next chunk is under way.
    host = PROCESS_BYTES + sums + sizes.chunk_rows * score_bytes(job)
    if sizes.gradients == "keep":
        host += 2 * 4 * job.facts.parameters * sizes.chunk_rows
    host += state_bytes(job)  # of a chunk, or what every worker holds of self-influence
    host += 2 * job.facts.row_bytes * sizes.chunk_rows  # and the next chunk's, which are read meanwhile
    if job.config.index:
        host += 4 * index_row_bytes(job) * sizes.chunk_rows
    if not (on_gpu and sizes.resident):
        host += sums
    if not on_gpu:
        return int(host + model), None
    return int(host), int(model + (queries + sums if sizes.resident else 0) + sizes.chunk_rows * score_bytes(job))


def _transport_why(job: Job, room: Room, share: float, batch_tokens: int) -> str:
    """What there is to say of the statistics' transport beside its share; nothing where that is small."""
    if share <= SHARE:
        return ""
    if job.config.cluster.chunk_rows == "auto":
        return f"more than {SHARE:.0%}, because a chunk cannot be larger"
    free = job.config.model_copy(update={"cluster": job.config.cluster.model_copy(update={"chunk_rows": "auto"})})
    better = choose_chunk_rows(replace(job, config=free), room.gpus_per_worker, batch_tokens)
    return f"more than {SHARE:.0%}; cluster.chunk_rows: auto would take {better:,} rows"


def _attributed(p: Plan) -> str:
    if p.states:
        return f"{p.parameters:,} numbers of each row, its last hidden state; no gradient is taken"
    which = "as model.blocks says" if p.chosen else "all attributed"
    return f"{p.blocks:,} blocks with {p.parameters:,} parameters, {which}{_but(p)}"


def render(expected: Plan) -> str:
    """The plan as lines for a person, of at most 100 columns unless a path is longer."""
    p = expected
    sweeps = [name if n == 1 else f"{n} × {name}" for name, n in Counter(p.sweeps).items()]
    memory = f"{byte_size(p.worker_bytes)} a worker"
    if p.device_bytes is not None:
        memory += f" and {byte_size(p.device_bytes)} of its GPU memory"
    groups = f"{p.queries:,} from {p.query_rows:,} rows, about {p.query_tokens:,} tokens"
    if len(p.groups) > 1:
        groups += f"; in {len(p.groups)} groups, because their sums do not fit at once: a curvature sweep for each"
    if not p.resident:
        groups += "; they and their sums are in host memory, moved to the GPU block by block"
    sampled = ""
    if "pilot" in p.sweeps:
        sampled = f"; {p.sampled_rows:,} random rows tell the damping"
    elif p.sampled_rows:
        sampled = f"; the curvature is that of {p.sampled_rows:,} random rows"
    chunks = f"{p.chunks:,} chunks of {p.chunk_rows:,}" if p.chunks > 1 else "one chunk"
    lines = {
        "rows": f"{p.rows:,}, about {p.tokens:,} tokens, in {chunks}",
        "queries": groups,
        "pictures": p.making or "",
        "rows seen": "; ".join(filter(None, (describe(seen, name) for name, seen in p.looked.items()))),
        "model": f"{p.base_parameters:,} parameters" + (", of which none gets a gradient" if p.adapter else ""),
        "precision": "" if p.half_precision is None else tell_half_precision(p.half_precision),
        "states" if p.states else "adapter" if p.adapter else "blocks": _attributed(p),
        "adapters": f"{p.adapters} adapters, each a run of its own in {p.output}/runs, and the sum of their influences"
        if p.adapters > 1
        else "",
        "note": "; ".join(p.notes),
        "sweeps": f"{'perhaps ' if p.sweeps_guessed else ''}{len(p.sweeps)}: {', '.join(sweeps)}{sampled}",
        "tokens": f"up to {counted(p.token_rows, 'row')}, each for a query, are looked at token by token"
        if p.token_rows
        else "",
        "batches": f"of {p.batch_tokens:,} tokens, padding counted",
        "gradients": p.gradients_why.removeprefix("gradients "),
        "transport": f"of a chunk's statistics, {p.transport:.1%} of its computing time"
        + (f": {p.transport_why}" if p.transport_why else ""),
        "memory": f"{memory}, {byte_size(p.driver_bytes)} in the driver",
        "object store": f"{byte_size(p.store_bytes)} at a time, of {byte_size(p.store_room)}",
        "output": f"{byte_size(p.output_bytes)} in {counted(p.output_parts, 'part')} at {p.output}; up to "
        f"{byte_size(p.peak_output_bytes)} before the end, while chunks and parts are both there",
        "index": f"{byte_size(p.index_bytes)}" if p.index_bytes else "",
        "work": f"{p.flops:.2g} floating-point operations",
        "time": f"about {estimate(p.seconds)}: {p.assumption}",
        "cannot run": p.problem or "",
    }
    wrapped = textwrap.TextWrapper(100, subsequent_indent=" " * 14, break_long_words=False, break_on_hyphens=False)
    told = [wrapped.fill(f"{name:<13} {text}") for name, text in lines.items() if text]
    if p.row is not None:
        told += [
            wrapped.fill(f"{'a row':<13} {p.row.heading}"),
            textwrap.fill(p.row.short(), 100, initial_indent=" " * 14, subsequent_indent=" " * 14),
        ]
    return "\n".join(told)
