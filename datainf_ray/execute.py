"""The main job: from a request to a finished run directory."""

from __future__ import annotations

import platform
import time
from collections import Counter
from contextlib import closing
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from datainf_ray.cluster.pool import Pool
from datainf_ray.cluster.start import connected
from datainf_ray.cluster.sweep import CHECKPOINTS, ClusterSweeps, State
from datainf_ray.cluster.worker import WorkerSpec
from datainf_ray.config import RunConfig, load_config, one_line
from datainf_ray.errors import RunFailedError
from datainf_ray.influence.folds import COUNT, TOTAL, GradientSums
from datainf_ray.influence.methods import SIGN, datainf, hessian_free, mean_of_group
from datainf_ray.job import Job, prepare
from datainf_ray.progress import Watcher, watching
from datainf_ray.runs.report import write_report
from datainf_ray.runs.results import Run, open_run
from datainf_ray.runs.schemas import OK, blocks_schema, queries_schema
from datainf_ray.runs.top import top_table

_PACKAGES = ("datainf-ray", "torch", "transformers", "peft", "ray", "pyarrow")


def attribute(config: str | Path | dict[str, Any] | RunConfig, *, progress: bool = True, **overrides: Any) -> Run:
    """Compute the influence of every training row on every query, and write the run directory.

    `config` is a YAML file, a dict or a `RunConfig`; `overrides` replace its keys (`output="runs/a"`, or
    `**{"cluster.max_workers": 2}`). A run that is already there and done is returned as it is; one that was cut off is
    taken up again. Raises `RequestError` before anything is started where the request is wrong, and `RunFailedError`
    where the run could not be finished.
    """
    job = prepare(load_config(config, **overrides))
    with watching(progress) as watcher:
        run = execute(job, watcher)
        for line in findings(run):
            watcher.say(line)
        return run


def execute(job: Job, watcher: Watcher) -> Run:
    """Do a prepared job, from wherever an earlier attempt left it, and write the run directory to the end.

    Raises `RunFailedError` where it cannot be finished; run.json says so too, as it does of an interrupt.
    """
    if job.directory.exists("run.json"):
        run = open_run(job.directory.url)
        if run.state == "done":
            watcher.say(f"{run.url}: already done; remove it, or choose another output, to compute it again")
            return run
        earlier = run.document["sweeps"]
    else:
        earlier = []
    began = time.perf_counter()
    document = _document(job) | {"sweeps": earlier}
    job.directory.write_json("run.json", document)
    watcher.say(
        f"{job.corpora['train'].rows:,} rows, {job.queries:,} {'query' if job.queries == 1 else 'queries'}, "
        f"{len(job.facts.blocks)} blocks with all {job.facts.parameters:,} trainable parameters"
    )
    try:
        _sweep(job, document, watcher)
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
    return run


def _sweep(job: Job, document: dict[str, Any], watcher: Watcher) -> None:
    """All that needs the cluster, and the files that come of it; fills in `document`."""
    config = job.config
    spec = WorkerSpec(config, job.facts, job.corpora, job.sample, job.directory)
    chunks = {name: job.chunks(name) for name in job.corpora}
    with connected(config.cluster, config.output) as cluster:
        pool = Pool(spec, cluster.workers, config.cluster.min_workers, cluster.gpus_per_worker)
        with closing(pool):
            pool.start(len(chunks["train"]))
            sweeps = ClusterSweeps(pool, spec, chunks, job.queries, watcher, _committed(job), document["sweeps"])
            gradients = sweeps.remember("queries", lambda: _query_gradients(job, sweeps))["gradients"]
            queries = job.directory.read_table("queries.parquet")
            sweeps.unusable = tuple(k for k, status in enumerate(queries["status"].to_pylist()) if status != OK)
            if config.method.name == "datainf":
                solved = datainf(sweeps, gradients, config.method.damping)
            else:
                solved = hessian_free(sweeps, gradients)
            blocks = _blocks_table(
                job, *(sweeps.collect(solved[k]) if k in solved else None for k in ("moments", "damping"))
            )
            job.directory.write_table("blocks.parquet", blocks)
            job.directory.write_table("top.parquet", top_table(sweeps.top_rows()))
            info = pool.infos[0]
    document["device"], document["dtype"], document["attention"] = info.device, info.dtype, info.attention
    document["capture"] = {
        "path": info.verdict.path,
        "cosine": info.verdict.cosine,
        "reason": info.verdict.reason,
    }
    if info.verdict.reason:
        watcher.say(f"gradients were taken one example at a time, which is slow: {info.verdict.reason}")
    document["counts"].update(status=dict(sweeps.status), tokens=sweeps.records[-1]["tokens"])
    document["problems"] = [dict(zip(("id", "status", "detail"), p, strict=True)) for p in sweeps.problems[:100]]


def _query_gradients(job: Job, sweeps: ClusterSweeps) -> dict[str, State]:
    """The queries' gradients, from a sweep over their rows; writes queries.parquet on the way."""
    sums = sweeps.run(
        "queries", GradientSums, "queries", values={"queries": job.queries}, per_row={"groups": job.groups}
    )
    rows = pa.concat_tables(sweeps.tables)
    table = _queries_table(job, rows)
    counts = table["rows"].to_numpy()
    if not counts.any():
        why = Counter(zip(rows["status"].to_pylist(), rows["detail"].to_pylist(), strict=True)).most_common(1)[0][0]
        raise RunFailedError(f"queries: none of the {job.corpora['queries'].rows} rows can be used: {': '.join(why)}")
    job.directory.write_table("queries.parquet", table)
    return {"gradients": sweeps.each_block(mean_of_group, sums, counts=torch.tensor(counts))}


def _queries_table(job: Job, rows: pa.Table) -> pa.Table:
    """queries.parquet from the query rows: sums and means over the usable rows of each query."""
    fine = np.array([status == OK for status in rows["status"].to_pylist()])
    groups, m = job.groups, job.queries
    counts = np.bincount(groups[fine], minlength=m)
    losses = rows["loss"].to_numpy(zero_copy_only=False)
    total = np.bincount(groups[fine], weights=losses[fine], minlength=m)
    tokens = np.bincount(groups[fine], weights=rows["tokens"].to_numpy()[fine], minlength=m).astype(np.int64)
    first = np.full(m, -1)  # the row that stands for the query: its first usable one, else its first
    for wanted in (np.flatnonzero(~fine), np.flatnonzero(fine)):
        for row in wanted[::-1]:
            first[groups[row]] = row
    ids = job.names or [rows["id"][int(row)].as_py() for row in first]
    return pa.table(
        [
            pa.array(np.arange(m), pa.int32()),
            pa.array(ids, pa.string()),
            pa.array(counts, pa.int64()),
            pa.array(tokens, pa.int64()),
            pa.array(total / np.maximum(counts, 1), pa.float32(), mask=counts == 0),
            rows["preview"].take(pa.array(first)).combine_chunks(),
            pa.array([OK if n else rows["status"][int(row)].as_py() for n, row in zip(counts, first, strict=True)]),
        ],
        schema=queries_schema(),
    )


def _blocks_table(
    job: Job, moments: dict[str, torch.Tensor] | None, damping: dict[str, torch.Tensor] | None
) -> pa.Table:
    assert moments is not None
    blocks = job.facts.blocks
    means = [float(moments[b.name][TOTAL] / moments[b.name][COUNT]) if moments[b.name][COUNT] else None for b in blocks]
    return pa.table(
        [
            [b.name for b in blocks],
            [b.kind for b in blocks],
            [list(b.shape) for b in blocks],
            [b.size for b in blocks],
            pa.array([None if damping is None else float(damping[b.name]) for b in blocks], pa.float64()),
            pa.array(means, pa.float64()),
        ],
        schema=blocks_schema(),
    )


def _committed(job: Job) -> frozenset[int]:
    """The chunks whose scores an earlier attempt has written; none where scores are not kept and cannot be read."""
    if not job.config.results.scores:
        return frozenset()
    names = job.directory.list("examples/part-")
    return frozenset(int(name.removeprefix("examples/part-").removesuffix(".parquet")) for name in names)


def _document(job: Job) -> dict[str, Any]:
    facts = job.facts
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
        "counts": {
            "rows": job.corpora["train"].rows,
            "tokens": None,
            "queries": job.queries,
            "blocks": len(facts.blocks),
            "parameters": facts.parameters,
            "status": {},
        },
        "trainable": {"attributed": facts.parameters, "total": facts.parameters},
        "device": None,
    }


def findings(run: Run) -> list[str]:
    """What is said at the end, line by line: how the rows fared, the strongest row each way, and where to look."""
    document = run.document
    status = document["counts"]["status"]
    scored = status.get(OK, 0)
    bad = ", ".join(f"{n:,} {what}" for what, n in sorted(status.items()) if what != OK)
    lines = [
        f"done in {document['seconds']:.0f} s: {scored:,} rows scored" + (f"; without a score: {bad}" if bad else "")
    ]
    lines += [f"  {p['id']}: {p['status']}: {p['detail']}" for p in document["problems"][:3]]
    skipped = [q for q in run.queries().to_pylist() if q["status"] != OK]
    if skipped:
        lines.append(
            f"{len(skipped):,} queries could not be used, the first is {skipped[0]['id']}: {skipped[0]['status']}"
        )
    first = next(q for q in run.queries().to_pylist() if q["status"] == OK)
    for harmful, word in ((True, "harmful"), (False, "helpful")):
        for row in run.top(query=first["query"], k=1, harmful=harmful).to_pylist():
            lines.append(
                f"most {word} to query {first['id']}: {row['id']} ({row['influence']:.3g}) {row['preview'][:80]}"
            )
    lines.append(f"report: {run.directory.path('report.html')}")
    lines.append(f"more:   datainf top {run.url}")
    return lines


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
