"""The main job: from a request to a finished run directory."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import torch

from datainf_ray.cluster.ahead import Ahead
from datainf_ray.cluster.connect import connected
from datainf_ray.cluster.facts import ClusterFacts
from datainf_ray.cluster.gather import consolidate_parts
from datainf_ray.cluster.indexing import finish_index
from datainf_ray.cluster.orders import worker_spec
from datainf_ray.cluster.pool import Pool
from datainf_ray.cluster.reduce import StateLostError
from datainf_ray.cluster.states import CHECKPOINTS, Shards
from datainf_ray.cluster.sweep import ClusterSweeps
from datainf_ray.common.errors import RunFailedError, one_line
from datainf_ray.common.redaction import redacted_tree
from datainf_ray.common.versions import versions
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.corpus.sample import sample_chunks
from datainf_ray.influence.folds import GradientSums, State
from datainf_ray.influence.method import SIGN, Over
from datainf_ray.influence.projection import projected
from datainf_ray.influence.queries import mean_of_group
from datainf_ray.model.fit import CPU_BATCH_TOKENS
from datainf_ray.model.replica import Verdict
from datainf_ray.planning.sizing import (
    FEWEST_ROWS,
    Sizes,
    choose_query_rows,
    choose_sizes,
    equal_rows,
    held_bytes,
)
from datainf_ray.request.job import Job, refuse_another
from datainf_ray.runs.events import Journal
from datainf_ray.runs.index import begin_index
from datainf_ray.runs.lease import Lease
from datainf_ray.runs.parts import CHUNKS, names_of
from datainf_ray.runs.report.page import write_report
from datainf_ray.runs.results import Run, open_run
from datainf_ray.runs.schemas import OK
from datainf_ray.runs.top import top_table
from datainf_ray.session.outcome import blocks_table, queries_table
from datainf_ray.watch.meter import Meter
from datainf_ray.watch.progress import Watcher

#: What a run that is taken up again keeps of what run.json had.
_CARRIED = ("fingerprint", "sweeps", "sizes", "crashed", "startup", "device", "dtype", "attention", "capture")
_LOSSES = 20  # times that sums may be lost for good, and be computed again


def execute(job: Job, watcher: Watcher, ahead: Ahead | None = None) -> Run:
    """Do a prepared job, from wherever an earlier attempt left it, and write the run directory to the end.

    `ahead` is a Ray that may be coming up already.
    Raises `RunFailedError` where it cannot be finished; run.json says so too, as it does of an interrupt.
    """
    began = time.perf_counter()
    journal = Journal(job.directory)
    lease = Lease(job.directory, lambda: asdict(meter.progress))
    meter = Meter(watcher, lease.tell)
    with lease:
        document = _document(job)
        if job.directory.exists("run.json"):  # looked at now: a driver that was waited for may have ended the run
            run = Run(job.directory)
            refuse_another(job, run.document)
            if run.state == "done":
                _finish(job, run)  # it may have been cut off just before the very end
                watcher.say(f"{run.url}: already done; remove it, or choose another output, to compute it again")
                return run
            document |= {key: run.document.get(key, document[key]) for key in _CARRIED}
        journal.note("run_begun", rows=job.rows, detail=document["fingerprint"])
        lease.write_json("run.json", document)
        watcher.say(
            f"{job.rows:,} rows, {job.queries:,} {'query' if job.queries == 1 else 'queries'}, "
            f"{len(job.facts.blocks)} blocks with all {job.facts.parameters:,} trainable parameters"
        )
        try:
            _sweep(job, document, meter, ahead, began, lease, journal)
        except BaseException as error:  # an interrupt too: whoever looks at the run must not think that it goes on
            document["state"] = "failed" if isinstance(error, Exception) else "interrupted"
            document["reason"] = one_line(error)
            document["seconds"] = round(time.perf_counter() - began, 3)
            journal.note(f"run_{document['state']}", detail=document["reason"])
            if lease.lost is None:  # else the document is another driver's by now
                _write_last(lease, document, journal, watcher)
            if isinstance(error, OSError):  # files and stores: the user's to mend
                cause = getattr(error, "cause", error)  # under what Ray puts around it
                raise RunFailedError(f"{type(cause).__name__}: {one_line(cause)[:500]}") from error
            raise
        document.update(state="done", finished=_now(), seconds=round(time.perf_counter() - began, 3))
        journal.note("run_done", seconds=document["seconds"])
        journal.flush()
        lease.write_json("run.json", document)
        run = open_run(job.directory.url, job.directory.options)
        write_report(run)
        _finish(job, run)
    return run


def _finish(job: Job, run: Run) -> None:
    """What is left to do when run.json says that a run is done."""
    if not job.directory.exists("report.html"):
        write_report(run)
    job.directory.remove_folder(CHECKPOINTS)  # last: until the run is done they are what it goes on from
    job.directory.remove_temporaries()


def _write_last(lease: Lease, document: dict[str, Any], journal: Journal, watcher: Watcher) -> None:
    """run.json and the last events of a run that has gone wrong, if they can be written: that may be what is wrong."""
    try:
        lease.write_json("run.json", document)
        journal.flush()
    except Exception as error:  # every storage library has its own classes
        watcher.say(f"{lease.directory.path('run.json')} could not be written: {one_line(error)}")


def _sweep(
    job: Job,
    document: dict[str, Any],
    watcher: Watcher,
    ahead: Ahead | None,
    began: float,
    lease: Lease,
    journal: Journal,
) -> None:
    """All that needs the cluster, and the files that come of it; fills in `document` of the run that `began` then."""
    with connected(job.config.cluster, job.config.output, ahead) as cluster:
        _on_cluster(job, document, watcher, cluster, began, lease, journal)  # its frame holds references, this one not


def _on_cluster(
    job: Job,
    document: dict[str, Any],
    watcher: Watcher,
    cluster: ClusterFacts,
    began: float,
    lease: Lease,
    journal: Journal,
) -> None:
    """The same, with Ray up."""

    def note() -> None:
        lease.write_json("run.json", document)
        journal.flush()

    def pulse() -> None:
        lease.check()
        journal.tick()

    pool = Pool(
        worker_spec(job),
        cluster.room.workers,
        job.config.cluster.min_workers,
        cluster.room.gpus_per_worker,
        cluster.actors,
        grows=not cluster.local,
        say=watcher.say,
        crashed=document["crashed"],
        found=note,
        note=journal.note,
    )
    with closing(pool):
        pool.start(job.rows)
        sizes = _sizes(job, cluster, pool, document)
        if job.written_index is not None:
            portions = {"chunk_rows": sizes.chunk_rows, "batch_tokens": sizes.batch_tokens}
            begin_index(job.written_index, document["fingerprint"], portions)
        lease.write_json("run.json", document)
        watcher.say(f"chunks of {sizes.chunk_rows:,} rows; {sizes.why}")
        query_rows = choose_query_rows(job, sizes.chunk_rows)
        chunks = _chunks(job, sizes)
        for attempt in itertools.count(1):
            sweeps = ClusterSweeps(
                pool,
                pool.spec,
                chunks,
                job.corpora["queries"].chunks(query_rows),
                job.queries,
                sizes,
                watcher,
                _committed(job),
                document["sweeps"],
                job.source,
                noted=note,
                pulse=pulse,
            )
            try:
                _attempt(job, sweeps, document)
                break
            except StateLostError as error:
                if attempt == _LOSSES:
                    raise RunFailedError(f"sums were lost with their nodes {attempt} times: {error}") from None
                watcher.say("sums were lost with their node; going on from the last checkpoint")
        consolidate_parts(job, [chunk.rows for chunk in chunks["train"]])
    _note_outcome(job, pool, sweeps, document, began, watcher)


def _note_outcome(
    job: Job, pool: Pool, sweeps: ClusterSweeps, document: dict[str, Any], began: float, watcher: Watcher
) -> None:
    """What run.json says of workers and rows."""
    if pool.begun:  # else all had been done by an earlier attempt
        document["startup"] = round(pool.begun[0] - began, 3)
    if pool.infos:
        info = pool.infos[0]
        document["device"], document["dtype"], document["attention"] = info.device, info.dtype, info.attention
        document["capture"] = asdict(info.verdict)
        _tell(job, info.verdict, watcher)
    document["counts"].update(status=dict(sweeps.status), tokens=sweeps.records[-1]["tokens"])
    document["problems"] = [dict(zip(("id", "status", "detail"), p, strict=True)) for p in sweeps.problems[:100]]


def _attempt(job: Job, sweeps: ClusterSweeps, document: dict[str, Any]) -> None:
    """The method from its first sweep to its last, from what the run directory has of it."""
    gradients = sweeps.remember("queries", lambda: _query_gradients(job, sweeps))["gradients"]
    status = job.directory.read_table("queries.parquet")["status"].to_pylist()
    sweeps.unusable = tuple(k for k, one in enumerate(status) if one != OK)
    _solve(job, sweeps, gradients, document)


def _tell(job: Job, verdict: Verdict, watcher: Watcher) -> None:
    """What the user should know of how gradients were taken."""
    if verdict.reason:
        watcher.say(f"gradients were taken one example at a time, which is slow: {verdict.reason}")
    if verdict.loss == "whole" and job.config.model.task == "causal-lm":
        watcher.say(f"logits were formed for whole batches, which takes memory: {verdict.loss_reason}")


def _sizes(job: Job, cluster: ClusterFacts, pool: Pool, document: dict[str, Any]) -> Sizes:
    """How large the portions are; those of an earlier attempt where there was one, because the bits depend on them."""
    room, earlier = cluster.room, document["sizes"]
    asked = job.config.cluster.batch_tokens if earlier is None else earlier["batch_tokens"]
    if room.gpus_per_worker:
        room = cluster.with_device(pool.first("device_bytes"))
    if asked == "auto" and room.device_bytes is not None:
        longest = max((e.tokens for examples in job.examples.values() for e in examples), default=1)
        asked = pool.first("largest_batch", longest, held_bytes(job, room.device_bytes))
    tokens = CPU_BATCH_TOKENS if asked == "auto" else asked
    sizes = choose_sizes(job, room, tokens)
    if earlier is not None:
        groups = tuple((first, last) for first, last in earlier["groups"])
        sizes = replace(sizes, chunk_rows=earlier["chunk_rows"], groups=groups, resident=earlier["resident"])
    document["sizes"] = asdict(sizes)
    return sizes


def _chunks(job: Job, sizes: Sizes) -> dict[Over, list[Chunk]]:
    """The chunks of every set of training rows that the method sweeps over."""
    chunks: dict[Over, list[Chunk]] = {"train": job.chunks(sizes.chunk_rows)}
    sample = job.method.sample(job.extent(sizes.groups))
    if sample is not None:
        most = min(sizes.chunk_rows, max(FEWEST_ROWS, sample.rows // sample.pieces))
        chunk_rows = equal_rows(sample.rows, most) if sample.even else most
        corpus, seed = job.corpora["train"], job.config.seed
        parts = sample_chunks(corpus, sample.rows, seed, chunk_rows, parts=len(sample.parts))
        chunks |= dict(zip(sample.parts, parts, strict=True))
    return chunks


def _solve(job: Job, sweeps: ClusterSweeps, gradients: Shards, document: dict[str, Any]) -> None:
    """Run the method, and write what came of it but for the rows: blocks.parquet, top.parquet, the index's end."""
    method = job.method
    queries = method.prepare(sweeps, gradients)
    if job.projection is not None:
        side, seed = job.projection
        queries = sweeps.each_block(projected, queries, side=side, seed=seed)
    known = sweeps.spread(job.known) if method.damped and job.known is not None else None
    solved = method.program(sweeps, queries, job.settings, known)
    blocks = job.blocks
    if blocks is None:
        found: dict[str, State] = {k: sweeps.collect(solved[k]) for k in ("facts", "nodes", "error") if k in solved}
        blocks = blocks_table(job, found["facts"], found.get("nodes"))
        document["curvature"] = method.tell(found, job.sampled_rows or job.rows)
    job.directory.write_table("blocks.parquet", blocks)
    assert sweeps.top is not None
    job.directory.write_table("top.parquet", top_table(sweeps.top))
    if job.written_index is not None:
        document["index"] = finish_index(job, sweeps, queries, blocks, document["fingerprint"])


def _query_gradients(job: Job, sweeps: ClusterSweeps) -> dict[str, Shards]:
    """The queries' gradients, from a sweep over their rows; writes queries.parquet on the way."""
    sums = sweeps.run("queries", GradientSums, "queries", per_row={"groups": job.groups})
    rows = pa.concat_tables(sweeps.tables)
    table = queries_table(job, rows)
    counts = table["rows"].to_numpy()
    if not counts.any():
        why = Counter(zip(rows["status"].to_pylist(), rows["detail"].to_pylist(), strict=True)).most_common(1)[0][0]
        raise RunFailedError(f"queries: none of the {job.corpora['queries'].rows} rows can be used: {': '.join(why)}")
    job.directory.write_table("queries.parquet", table)
    return {"gradients": sweeps.each_block(mean_of_group, sums, counts=torch.tensor(counts))}


def _committed(job: Job) -> frozenset[int]:
    """The chunks whose scores an earlier attempt has written; none where scores are not kept and cannot be read."""
    if not job.config.results.scores:
        return frozenset()
    names = names_of(job.directory, CHUNKS)
    return frozenset(int(name.removeprefix(CHUNKS).removesuffix(".parquet")) for name in names)


def _document(job: Job) -> dict[str, Any]:
    facts = job.facts
    return {
        "format": 1,
        "state": "running",
        "reason": None,
        "config": redacted_tree(job.config.model_dump(mode="json")),
        "fingerprint": job.fingerprint,
        "identity": job.identity,
        "versions": versions(),
        "sign": SIGN,
        "created": _now(),
        "finished": None,
        "seconds": 0.0,
        "startup": None,
        "counts": {
            "rows": job.rows,
            "tokens": None,
            "queries": job.queries,
            "blocks": len(facts.blocks),
            "parameters": facts.parameters,
            "status": {},
        },
        "trainable": {"attributed": facts.parameters, "total": facts.parameters},
        "device": None,
        "dtype": None,
        "attention": None,
        "capture": None,
        "sizes": None,
        "sweeps": [],
        "crashed": {},
        "curvature": None,
        "index": None,
        "damped": job.method.damped,
        "answers": job.earlier,
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
