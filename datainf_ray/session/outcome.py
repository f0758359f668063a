"""The results of a run: its tables, and the lines that are printed at the end."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from datainf_ray.influence.damping import smallest_sqnorm
from datainf_ray.influence.folds import COUNT, TOTAL, Statistic, Statistics
from datainf_ray.request.job import Job
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import OK, blocks_schema, queries_schema


def queries_table(job: Job, rows: pa.Table) -> pa.Table:
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


def blocks_table(job: Job, facts: Statistics, nodes: Statistics | None) -> pa.Table:
    """blocks.parquet from what the sweeps gave: `moments`, and `damping`, `bound` and `nodes` where there are some."""
    blocks = job.facts.blocks

    def known(name: str, states: Mapping[str, Statistic] | None = facts) -> pa.Array:
        return pa.array(
            [None if states is None or name not in states[b.name] else states[b.name][name].tolist() for b in blocks],
            pa.list_(pa.float64()) if name == "nodes" else pa.float64(),
        )

    moments = [facts[b.name]["moments"] for b in blocks]
    return pa.table(
        [
            [b.name for b in blocks],
            [b.kind for b in blocks],
            [list(b.shape) for b in blocks],
            [b.size for b in blocks],
            known("damping"),
            pa.array([float(m[TOTAL] / m[COUNT]) if m[COUNT] else None for m in moments], pa.float64()),
            pa.array([smallest_sqnorm(facts[b.name]) for b in blocks], pa.float64()),
            known("nodes", nodes),
            known("bound"),
        ],
        schema=blocks_schema(),
    )


def findings(run: Run) -> list[str]:
    """The lines that are printed at the end: rows by status, the strongest row each way, where to look."""
    record = run.record
    status = record.counts.status if record.counts else {}
    scored = status.get(OK, 0)
    bad = ", ".join(f"{n:,} {what}" for what, n in sorted(status.items()) if what != OK)
    lines = [f"done in {record.seconds:.0f} s: {scored:,} rows scored" + (f"; without a score: {bad}" if bad else "")]
    lines += [f"  {p.id}: {p.status}: {p.detail}" for p in record.problems[:3]]
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
