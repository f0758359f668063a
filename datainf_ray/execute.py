"""The main job: from a request to a finished run directory."""

from __future__ import annotations

import platform
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from datainf_ray.cluster.gather import consolidate_parts
from datainf_ray.cluster.indexing import finish_index
from datainf_ray.cluster.orders import WorkerSpec
from datainf_ray.cluster.pool import Pool
from datainf_ray.cluster.start import Ahead, ClusterFacts, connected
from datainf_ray.cluster.sweep import CHECKPOINTS, ClusterSweeps, State
from datainf_ray.config import RunConfig, load_config, one_line
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.corpus.sample import sample_chunks
from datainf_ray.errors import RunFailedError
from datainf_ray.influence.folds import GradientSums
from datainf_ray.influence.methods import SIGN, datainf, error_by_query, hessian_free, mean_of_group
from datainf_ray.influence.projection import projected
from datainf_ray.job import Job, prepare, prepare_query
from datainf_ray.model.fit import CPU_BATCH_TOKENS
from datainf_ray.outcome import blocks_table, curvature_facts, findings, queries_table
from datainf_ray.progress import Watcher, watching
from datainf_ray.runs.index import begin_index
from datainf_ray.runs.parts import CHUNKS, names_of
from datainf_ray.runs.report import write_report
from datainf_ray.runs.results import Run, open_run
from datainf_ray.runs.schemas import OK
from datainf_ray.runs.top import top_table
from datainf_ray.sizing import Sizes, choose_groups, choose_query_rows, choose_sizes, held_bytes, pilot_rows

_PACKAGES = ("datainf-ray", "torch", "transformers", "peft", "ray", "pyarrow")


def attribute(config: str | Path | dict[str, Any] | RunConfig, *, progress: bool = True, **overrides: Any) -> Run:
    """Compute the influence of every training row on every query, and write the run directory.

    `config` is a YAML file, a dict or a `RunConfig`; `overrides` replace its keys (`output="runs/a"`, or
    `**{"cluster.max_workers": 2}`). A run that is already there and done is returned as it is; one that was cut off is
    taken up again. Raises `RequestError` before anything is started where the request is wrong, and `RunFailedError`
    where the run could not be finished.
    """
    asked = load_config(config, **overrides)
    with Ahead(asked.cluster) as ahead:
        return _watched(prepare(asked, meanwhile=ahead.begin), progress, ahead)


def query(run: str, *, queries: Any, output: str, progress: bool = True, **overrides: Any) -> Run:
    """Answer new queries from the gradient index of a finished run: no backward pass over the corpus.

    `run` is its URL; `queries` a path, a list of paths or the keys of the configuration's `queries`; `output` the new
    run directory. What else the run was configured with holds here too, but for `overrides`. Raises as `attribute`.
    """
    earlier = open_run(run)
    asked = queries if isinstance(queries, dict) else {"path": queries}
    changed = {"queries": {**earlier.config["queries"], "columns": {}, "id": None, "group": None, **asked}}
    made_without = {"index": None, "index_projection": None}
    config = load_config(earlier.config | changed | made_without, output=output, **overrides)
    with Ahead(config.cluster) as ahead:
        return _watched(prepare_query(earlier, config), progress, ahead)


def _watched(job: Job, progress: bool, ahead: Ahead) -> Run:
    with watching(progress) as watcher:
        run = execute(job, watcher, ahead)
        for line in findings(run):
            watcher.say(line)
        return run


def execute(job: Job, watcher: Watcher, ahead: Ahead | None = None) -> Run:
    """Do a prepared job, from wherever an earlier attempt left it, and write the run directory to the end.

    `ahead` is a Ray that may be coming up already.
    Raises `RunFailedError` where it cannot be finished; run.json says so too, as it does of an interrupt.
    """
    document = _document(job)
    if job.directory.exists("run.json"):
        run = open_run(job.directory.url)
        if run.state == "done":
            watcher.say(f"{run.url}: already done; remove it, or choose another output, to compute it again")
            return run
        document |= {key: run.document[key] for key in ("sweeps", "sizes")}
    began = time.perf_counter()
    job.directory.write_json("run.json", document)
    watcher.say(
        f"{job.rows:,} rows, {job.queries:,} {'query' if job.queries == 1 else 'queries'}, "
        f"{len(job.facts.blocks)} blocks with all {job.facts.parameters:,} trainable parameters"
    )
    try:
        _sweep(job, document, watcher, ahead, began)
    except BaseException as error:  # an interrupt too: whoever looks at the run must not think that it goes on
        document["state"] = "failed" if isinstance(error, Exception) else "interrupted"
        document["reason"] = one_line(error)
        document["seconds"] = round(time.perf_counter() - began, 3)
        job.directory.write_json("run.json", document)
        raise
    document.update(state="done", finished=_now(), seconds=round(time.perf_counter() - began, 3))
    job.directory.write_json("run.json", document)
    run = open_run(job.directory.url)
    write_report(run)
    job.directory.remove_folder(CHECKPOINTS)  # last: until the run is done they are what it goes on from
    job.directory.remove_temporaries()
    return run


def _sweep(job: Job, document: dict[str, Any], watcher: Watcher, ahead: Ahead | None, began: float) -> None:
    """All that needs the cluster, and the files that come of it; fills in `document` of the run that `began` then."""
    config = job.config
    if job.answers is None and job.index is not None:
        begin_index(job.index, job.fingerprint)
    spec = WorkerSpec(config, job.facts, job.corpora, job.sample, job.directory, job.index)
    with connected(config.cluster, config.output, ahead) as cluster:
        pool = Pool(spec, cluster.room.workers, config.cluster.min_workers, cluster.room.gpus_per_worker)
        with closing(pool):
            pool.start(job.rows)
            sizes = _sizes(job, cluster, pool, document)
            job.directory.write_json("run.json", document)
            watcher.say(f"chunks of {sizes.chunk_rows:,} rows; {sizes.why}")
            query_rows = choose_query_rows(job, sizes.chunk_rows)
            chunks = {"queries": job.corpora["queries"].chunks(query_rows), **_chunks(job, sizes)}
            source = "backward" if job.answers is None else "index"
            sweeps = ClusterSweeps(
                pool, spec, chunks, job.queries, sizes, watcher, _committed(job), document["sweeps"], source
            )
            gradients = sweeps.remember("queries", lambda: _query_gradients(job, sweeps))["gradients"]
            queries = job.directory.read_table("queries.parquet")
            sweeps.unusable = tuple(k for k, status in enumerate(queries["status"].to_pylist()) if status != OK)
            _solve(job, sweeps, gradients, document)
            consolidate_parts(job, [chunk.rows for chunk in chunks["train"]])
            info = pool.infos[0]
            document["startup"] = round(pool.begun[0] - began, 3)
    document["device"], document["dtype"], document["attention"] = info.device, info.dtype, info.attention
    document["capture"] = asdict(info.verdict)
    if info.verdict.reason:
        watcher.say(f"gradients were taken one example at a time, which is slow: {info.verdict.reason}")
    if info.verdict.loss == "whole" and config.model.task == "causal-lm":
        watcher.say(f"logits were formed for whole batches, which takes memory: {info.verdict.loss_reason}")
    document["counts"].update(status=dict(sweeps.status), tokens=sweeps.records[-1]["tokens"])
    document["problems"] = [dict(zip(("id", "status", "detail"), p, strict=True)) for p in sweeps.problems[:100]]


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
    if job.answers is None:
        sizes = choose_sizes(job, room, tokens)
    else:
        groups, resident = choose_groups(job, room, tokens)
        sizes = Sizes(
            job.answers.chunk_rows, tokens, groups, resident, "recompute", "gradients are read from the index"
        )
    if earlier is not None:
        groups = tuple((first, last) for first, last in earlier["groups"])
        sizes = replace(sizes, chunk_rows=earlier["chunk_rows"], groups=groups, resident=earlier["resident"])
    document["sizes"] = asdict(sizes)
    return sizes


def _chunks(job: Job, sizes: Sizes) -> dict[str, list[Chunk]]:
    """The chunks of every set of training rows that the method sweeps over."""
    chunks = {"train": job.chunks(sizes.chunk_rows)}
    if job.answers is not None or job.config.method.name == "hessian-free":
        return chunks
    corpus, seed = job.corpora["train"], job.config.seed
    if job.sampled_rows is None:
        rows = pilot_rows(corpus.rows)
        (chunks["pilot"],) = sample_chunks(corpus, rows, seed, min(sizes.chunk_rows, max(16, rows // 8)))
    else:
        chunk_rows = min(sizes.chunk_rows, max(16, job.sampled_rows // 64))  # something for every worker
        halves = sample_chunks(corpus, job.sampled_rows, seed, chunk_rows, parts=2)
        chunks["half a"], chunks["half b"] = halves
    return chunks


def _solve(job: Job, sweeps: ClusterSweeps, gradients: State, document: dict[str, Any]) -> None:
    """Run the method, and write what came of it but for the rows: blocks.parquet, top.parquet, the index's end."""
    config, answers = job.config, job.answers
    if answers is not None:
        side, seed = answers.index.projection, answers.index.seed
        gradients = sweeps.each_block(projected, gradients, side=side, seed=seed)
    if config.method.name == "hessian-free":
        solved = hessian_free(sweeps, gradients)
    elif answers is not None:
        solved = datainf(sweeps, gradients, config.method.damping, known=sweeps.spread(answers.facts))
    else:
        sampled = job.sampled_rows is not None
        solved = datainf(sweeps, gradients, config.method.damping, sampled=sampled)
    if answers is not None:
        blocks = answers.blocks
    else:
        facts, nodes = (sweeps.collect(solved[k]) if k in solved else None for k in ("facts", "nodes"))
        assert facts is not None
        blocks = blocks_table(job, facts, nodes)
        document["curvature"] = curvature_facts(job, facts)
        if "error" in solved:
            errors = error_by_query(sweeps.collect(solved["error"]))
            document["curvature"]["error"] = float(errors[errors > 0].mean()) if errors.any() else 0.0
    job.directory.write_table("blocks.parquet", blocks)
    assert sweeps.top is not None
    job.directory.write_table("top.parquet", top_table(sweeps.top))
    if answers is None and job.index is not None:
        document["index"] = finish_index(job, sweeps, gradients, blocks)


def _query_gradients(job: Job, sweeps: ClusterSweeps) -> dict[str, State]:
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
    facts, answers = job.facts, job.answers
    return {
        "format": 1,
        "state": "running",
        "reason": None,
        "config": job.config.model_dump(mode="json"),
        "fingerprint": job.fingerprint,
        "identity": job.identity,
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
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
        "sizes": None,
        "sweeps": [],
        "curvature": None,
        "index": None,
        "answers": None if answers is None else {"run": answers.run, "index": answers.directory.url},
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
