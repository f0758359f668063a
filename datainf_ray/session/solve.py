"""The part of a run that needs Ray: portions chosen, the method's sweeps, the tables that come of them."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from contextlib import closing
from dataclasses import asdict, replace

import pyarrow as pa
import torch

from datainf_ray.cluster.facts import ClusterFacts
from datainf_ray.cluster.gather import consolidate_parts
from datainf_ray.cluster.indexing import finish_index
from datainf_ray.cluster.orders import worker_spec
from datainf_ray.cluster.pool import Pool
from datainf_ray.cluster.reduce import StateLostError
from datainf_ray.cluster.states import Shards
from datainf_ray.cluster.sweep import ClusterSweeps
from datainf_ray.common.errors import DamagedError, RequestError, RunFailedError
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.corpus.sample import sample_chunks
from datainf_ray.influence.folds import GradientSums, Statistics
from datainf_ray.influence.method import Over
from datainf_ray.influence.projection import projected
from datainf_ray.influence.queries import mean_of_group
from datainf_ray.model.replica import Verdict
from datainf_ray.planning.fits import least_memory, too_large
from datainf_ray.planning.room import Room
from datainf_ray.planning.sizing import (
    FEWEST_ROWS,
    Sizes,
    choose_query_rows,
    choose_sizes,
    equal_rows,
    expected_batch_tokens,
    held_bytes,
)
from datainf_ray.request.job import Job, doubt_of
from datainf_ray.runs.checkpoints import CHECKPOINTS, forget_scores
from datainf_ray.runs.checksums import Stored, read_checked_table, stored, table_file
from datainf_ray.runs.index import begin_index
from datainf_ray.runs.parts import CHUNKS, names_of
from datainf_ray.runs.pictures import PICTURES
from datainf_ray.runs.record import Capture, Portions, Problem, RunRecord, StartLoss
from datainf_ray.runs.schemas import OK, queries_schema, table_bytes
from datainf_ray.runs.texts import TEXTS, with_previews
from datainf_ray.runs.top import Top, top_table
from datainf_ray.session.attempt import Attempt
from datainf_ray.session.outcome import (
    ASKED_SCHEMA,
    blocks_table,
    known_blocks,
    note_left_out,
    queries_table,
    query_texts,
    texts_and_pictures,
)
from datainf_ray.session.pictures import with_pictures
from datainf_ray.session.shares import tokens_table
from datainf_ray.watch.progress import Watcher

_LOSSES = 20  # times that sums may be lost for good, and be computed again


def solve(job: Job, record: RunRecord, cluster: ClusterFacts, attempt: Attempt) -> None:
    """Sweep the corpus and write every table; `record` says what that took. Ray is up.

    References into Ray live in the frames of this function and below, and nowhere else when it returns.
    """

    spec = replace(worker_spec(job), fingerprint=record.fingerprint)
    if job.written_index is not None:
        spec = replace(spec, index_owner=record.fingerprint)
    pool = Pool(
        spec,
        cluster.room.workers,
        job.config.cluster.min_workers,
        cluster.room.gpus_per_worker,
        cluster.actors,
        grows=not cluster.local,
        memory=0 if cluster.local or cluster.grows else least_memory(job, cluster.room),
        say=attempt.watcher.say,
        crashed=record.crashed,
        found=attempt.keep,
        log=attempt.journal.log,
        weights=record.weights,
    )
    with closing(pool):
        if not cluster.room.gpus_per_worker:
            _must_fit(job, cluster.room)
        pool.start(job.rows)
        if job.makes:
            with_pictures(record, pool, attempt)
        sizes = _sizes(job, cluster, pool, record)
        if job.written_index is not None:
            portions = {"chunk_rows": sizes.chunk_rows, "batch_tokens": sizes.batch_tokens}
            begin_index(job.written_index, record.fingerprint, portions)
        attempt.keep()
        attempt.watcher.say(f"chunks of {sizes.chunk_rows:,} rows; {sizes.why}")
        query_rows = choose_query_rows(job, sizes.chunk_rows)
        chunks = _chunks(job, sizes)
        for losses in itertools.count(1):
            sweeps = ClusterSweeps(
                pool,
                pool.spec,
                chunks,
                job.corpora["queries"].chunks(query_rows),
                job.queries,
                sizes,
                attempt.watcher,
                _committed(job),
                record.sweeps,
                job.source,
                held=functools.partial(job.method.state, job.extent(sizes.groups)),
                recorded=attempt.keep,
                pulse=attempt.pulse,
            )
            try:
                tables = _from_first_to_last(job, sweeps, record)
                parts = consolidate_parts(job, [chunk.rows for chunk in chunks["train"]], record.fingerprint)
                break
            except StateLostError as error:
                if losses == _LOSSES:
                    raise RunFailedError(f"sums were lost with their nodes {losses} times: {error}") from None
                attempt.watcher.say("sums were lost with their node; going on from the last checkpoint")
            except DamagedError as error:
                if losses == _LOSSES or not error.path.startswith(job.directory.path(CHUNKS)):
                    raise
                attempt.watcher.say(f"{error.path}: {error.problem}; its rows are scored again")
                forget_scores(job.directory)
        record.files = {**_written(job, tables), **parts}
    _note_outcome(job, pool, sweeps, record, attempt)


def _note_outcome(job: Job, pool: Pool, sweeps: ClusterSweeps, record: RunRecord, attempt: Attempt) -> None:
    """What run.json says of workers and rows."""
    if pool.begun:  # else all had been done by an earlier attempt
        record.startup = round(pool.begun[0] - attempt.began, 3)
    if pool.infos:
        info = pool.infos[0]
        record.device, record.dtype, record.attention = info.device, info.dtype, info.attention
        record.capture = Capture(**asdict(info.verdict))
        record.start_loss = None if info.loss is None else StartLoss(**asdict(info.loss))
        _tell(info.verdict, attempt.watcher)
        if (doubt := doubt_of(job, info.loss)) is not None:
            attempt.watcher.say(doubt)
    assert record.counts is not None
    record.counts.status, record.counts.tokens = dict(sweeps.status), sweeps.scored_tokens
    record.counts.rows_cut = sweeps.cut
    record.problems = [Problem(id=name, status=status, detail=detail) for name, status, detail in sweeps.problems[:100]]


def _from_first_to_last(job: Job, sweeps: ClusterSweeps, record: RunRecord) -> dict[str, pa.Table]:
    """The method from its first sweep to its last, from what the run directory has of it; the tables by name."""
    kept = {f"{CHECKPOINTS}/queries.parquet": queries_schema(), f"{CHECKPOINTS}/texts.parquet": ASKED_SCHEMA}

    def known() -> list[pa.Table]:
        return [read_checked_table(job.directory, name, sweeps.owner, schema) for name, schema in kept.items()]

    try:
        known()
    except (DamagedError, FileNotFoundError):
        job.directory.remove(f"{CHECKPOINTS}/queries.json")  # one comes with the other
    gradients = sweeps.remember("queries", lambda: _query_gradients(job, sweeps, *kept))["gradients"]
    table, asked = (each.replace_schema_metadata() for each in known())
    sweeps.unusable = tuple(k for k, one in enumerate(table["status"].to_pylist()) if one != OK)
    blocks, top = _run_method(job, sweeps, gradients, record)
    texts, pictures = texts_and_pictures(top.texts, asked)
    tops = with_previews(top_table(top), texts, own=job.task.preview is not None)
    tables = {"queries.parquet": table, "blocks.parquet": blocks, "top.parquet": tops, TEXTS: texts}
    if len(pictures):
        tables[PICTURES] = pictures
    if job.config.results.tokens:
        tables["tokens.parquet"] = tokens_table(job, sweeps, table, tops)
    return tables


def _written(job: Job, tables: dict[str, pa.Table]) -> dict[str, Stored]:
    """Write the tables; what each of them holds, by name."""
    files = {}
    for name, table in tables.items():
        data = table_bytes(table)
        job.directory.write(name, data)
        files[name] = stored(data)
    return files


def _tell(verdict: Verdict, watcher: Watcher) -> None:
    """What the user should know of how gradients were taken."""
    if verdict.reason:
        how = (
            "by vmap, for rows of the same length" if verdict.path == "vmap" else "one example at a time, which is slow"
        )
        watcher.say(f"gradients were taken {how}: {verdict.reason}")
    if verdict.lengths_reason and not verdict.reason:
        watcher.say(f"only rows of the same length shared a batch: {verdict.lengths_reason}")
    if verdict.loss_reason is not None:
        watcher.say(f"logits were formed for whole batches, which takes memory: {verdict.loss_reason}")


def _must_fit(job: Job, room: Room) -> None:
    """Raises `RequestError` where the run would end for want of memory, however it is cut into portions."""
    if (problem := too_large(job, room)) is not None:
        raise RequestError("model", None, f"cannot run: {problem}")


def _sizes(job: Job, cluster: ClusterFacts, pool: Pool, record: RunRecord) -> Sizes:
    """How large the portions are; those of an earlier attempt where there was one, because the bits depend on them."""
    room, earlier = cluster.room, record.sizes
    asked = job.config.cluster.batch_tokens if earlier is None else earlier.batch_tokens
    if room.gpus_per_worker:
        room = cluster.with_device(pool.first("device_bytes"))
        _must_fit(job, room)
    if asked == "auto" and room.device_bytes is not None:
        longest = max((e.tokens for examples in job.examples.values() for e in examples), default=1)
        asked = pool.first("largest_batch", longest, held_bytes(job, room.device_bytes))
    tokens = expected_batch_tokens(job, room) if asked == "auto" else asked
    sizes = choose_sizes(job, room, tokens)
    if earlier is not None:
        sizes = replace(sizes, chunk_rows=earlier.chunk_rows, groups=earlier.groups, resident=earlier.resident)
    record.sizes = Portions(**asdict(sizes))
    return sizes


def _chunks(job: Job, sizes: Sizes) -> dict[Over, list[Chunk]]:
    """The chunks of every set of training rows that the method sweeps over."""
    chunks: dict[Over, list[Chunk]] = {"train": job.chunks(sizes.chunk_rows)}
    extent = job.extent(sizes.groups)
    for sample in filter(None, (job.method.sample(extent), job.method.self_sample(extent))):
        most = min(sizes.chunk_rows, max(FEWEST_ROWS, sample.rows // sample.pieces))
        chunk_rows = equal_rows(sample.rows, most) if sample.even else most
        corpus, seed = job.corpora["train"], job.config.seed
        parts = sample_chunks(corpus, sample.rows, seed, chunk_rows, parts=len(sample.parts))
        chunks |= dict(zip(sample.parts, parts, strict=True))
    return chunks


def _run_method(job: Job, sweeps: ClusterSweeps, gradients: Shards, record: RunRecord) -> tuple[pa.Table, Top]:
    """Run the method, and write the index's end; the table blocks.parquet, and the best rows."""
    method = job.method
    queries = method.prepare(sweeps, gradients)
    if job.projection is not None:
        side, seed = job.projection
        queries = sweeps.each_block(projected, queries, side=side, seed=seed)
    known = sweeps.spread(job.known) if method.damped and job.known is not None else None
    solved = method.program(sweeps, queries, job.settings, known)
    blocks = job.blocks
    if blocks is None:
        found: dict[str, Statistics] = {
            k: sweeps.collect(solved[k]) for k in ("facts", "nodes", "error") if k in solved
        }
        blocks = blocks_table(job, found["facts"], found.get("nodes"))
        record.curvature = method.tell(found, job.sampled_rows or job.rows)
    elif method.damped:
        facts = sweeps.collect(solved["facts"])
        blocks = known_blocks(job, blocks, facts)
        if any("residual" in statistic for statistic in facts.values()):
            record.curvature = method.tell({"facts": facts}, job.rows)
    if method.damped:
        note_left_out(record, blocks)
    assert sweeps.top is not None
    if job.written_index is not None:
        record.index = finish_index(job, sweeps, queries, blocks, record.fingerprint)
    return blocks, sweeps.top


def _query_gradients(job: Job, sweeps: ClusterSweeps, name: str, texts: str) -> dict[str, Shards]:
    """The queries' gradients, from a sweep over their rows; keeps their table and texts in two files on the way."""
    sums = sweeps.run("queries", GradientSums, "queries", per_row={"groups": job.groups})
    rows = pa.concat_tables(sweeps.tables)
    table = queries_table(job, rows)
    counts = table["rows"].to_numpy()
    if not counts.any():
        why = Counter(zip(rows["status"].to_pylist(), rows["detail"].to_pylist(), strict=True)).most_common(1)[0][0]
        raise RunFailedError(f"queries: none of the {job.corpora['queries'].rows} rows can be used: {': '.join(why)}")
    job.directory.write(name, table_file(table, sweeps.owner, name))
    job.directory.write(texts, table_file(query_texts(job, rows), sweeps.owner, texts))
    return {"gradients": sweeps.each_block(mean_of_group, sums, counts=torch.tensor(counts))}


def _committed(job: Job) -> frozenset[int]:
    """The chunks whose scores an earlier attempt has written; none where scores are not kept and cannot be read."""
    if not job.config.results.scores:
        return frozenset()
    names = names_of(job.directory, CHUNKS)
    return frozenset(int(name.removeprefix(CHUNKS).removesuffix(".parquet")) for name in names)
