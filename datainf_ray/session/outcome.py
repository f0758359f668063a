"""The results of a run: its tables, and the lines that are printed at the end."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from datainf_ray.common.errors import RunFailedError
from datainf_ray.common.words import counted, percent, printable
from datainf_ray.influence.damping import smallest_sqnorm
from datainf_ray.influence.folds import COUNT, TOTAL, Statistic, Statistics
from datainf_ray.request.job import Job
from datainf_ray.runs.pictures import pictures_of
from datainf_ray.runs.record import RunRecord, tell_left_out, tell_unsolved
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import OK, blocks_schema, left_out, queries_schema
from datainf_ray.runs.texts import SHOWN, texts_of_queries, texts_of_rows, texts_schema

#: Of the queries' texts and pictures, kept until the run is done.
ASKED_SCHEMA = texts_schema().append(pa.field("picture", pa.large_binary()))


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


def query_texts(job: Job, rows: pa.Table) -> pa.Table:
    """The part of texts.parquet that is of queries, with a column `picture`, from the query rows: the first usable ones
    of each query, or the first of all.
    """
    fine = np.array([status == OK for status in rows["status"].to_pylist()])
    chosen: dict[int, list[int]] = {}
    for row in np.flatnonzero(fine):
        if len(of := chosen.setdefault(int(job.groups[row]), [])) < SHOWN:
            of.append(int(row))
    for row in np.flatnonzero(~fine):
        chosen.setdefault(int(job.groups[row]), [int(row)])
    kept = [(query, row) for query, some in sorted(chosen.items()) for row in some]
    some = rows.take(pa.array([row for _, row in kept], pa.int64()))
    texts = texts_of_queries([query for query, _ in kept], some["id"].to_pylist(), some["text"].to_pylist())
    return texts.append_column(ASKED_SCHEMA.field("picture"), some["picture"])


def texts_and_pictures(rows: pa.Table, asked: pa.Table) -> tuple[pa.Table, pa.Table]:
    """texts.parquet and pictures.parquet, from `Top.texts` and from `query_texts`."""
    own, of_queries = texts_of_rows(rows), asked.drop_columns("picture")
    pictures = [pictures_of(own, rows["picture"]), pictures_of(of_queries, asked["picture"])]
    return pa.concat_tables([own, of_queries]), pa.concat_tables(pictures)


def blocks_table(job: Job, facts: Statistics, nodes: Statistics | None) -> pa.Table:
    """blocks.parquet from what the sweeps gave: `moments`; and where there are some, `damping`, `bound` and `nodes`."""
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
            _left_out(job, facts),
            known("residual"),
        ],
        schema=blocks_schema(),
    )


def known_blocks(job: Job, made: pa.Table, facts: Statistics) -> pa.Table:
    """blocks.parquet of a query run, from that of the run that it asks, which an earlier version may have made."""
    at = made.schema.get_field_index("left_out")
    if made["left_out"].null_count:
        made = made.set_column(at, made.schema.field(at), _left_out(job, facts))
    residuals = [facts[b.name].get("residual") for b in job.facts.blocks]
    column = pa.array([None if r is None else float(r) for r in residuals], pa.float64())
    at = made.schema.get_field_index("residual")
    return made.set_column(at, made.schema.field(at), column)


def _left_out(job: Job, facts: Statistics) -> pa.Array:
    """By block, whether it is left out; null where the method has no damping."""
    each = ["left_out" in facts[b.name] if "damping" in facts[b.name] else None for b in job.facts.blocks]
    return pa.array(each, pa.bool_())


def note_left_out(record: RunRecord, blocks: pa.Table) -> None:
    """Name the blocks in run.json that blocks.parquet says are left out."""
    record.left_out = left_out(blocks)
    if record.trainable is not None:
        sizes = dict(zip(blocks["block"].to_pylist(), blocks["size"].to_pylist(), strict=True))
        attributed = record.trainable.total - sum(sizes[name] for name in record.left_out)
        record.trainable = record.trainable.model_copy(update={"attributed": attributed})


def findings(run: Run) -> list[str]:
    """The lines that are printed at the end: the strongest row each way, where to look; last, the rows by status."""
    record = run.record
    lines = [f"{printable(p.id)}: {p.status}: {printable(p.detail)}" for p in record.problems[:3]]
    queries = run.queries().to_pylist()
    skipped = [q for q in queries if q["status"] != OK]
    if skipped:
        what = counted(len(skipped), "query", "queries")
        first = skipped[0]
        lines.append(f"{what} could not be used, the first is {printable(first['id'])}: {first['status']}")
    if cut := record.counts and record.counts.rows_cut:
        rows = f"{cut:,} of {counted(record.counts.rows, 'row')}"
        lines.append(f"{rows} had more tokens than max_length, and were cut: tokens_cut in examples/ says by how many")
    if line := tell_unsolved(record.curvature or {}, record.config["method"]):
        lines.append(line)
    if record.left_out and record.counts:
        lines.append(tell_left_out(record.left_out, record.counts.blocks))
    for query in [q for q in queries if q["status"] == OK][:1]:
        for harmful, word in ((True, "harmful"), (False, "helpful")):
            for row in run.top(query=query["query"], k=1, harmful=harmful).to_pylist():
                where = f"most {word} to query {printable(query['id'])}: {printable(row['id'])}"
                lines.append(f"{where} ({row['influence']:.3g}) {printable(row['preview'] or '', 80)}")
    lines.append(f"report: {run.directory.path('report.html')}")
    lines.append(f"more:   datainf top {run.url}")
    lines.append(f"done in {record.seconds:.0f} s: {scored(record)}")
    return lines


def scored(record: RunRecord) -> str:
    """How many rows have a score, and the share without one by status, as in "998 of 1,000 rows scored; 0.2 % ..."."""
    rows, bad = _without_score(record)
    text = f"{rows - sum(bad.values()):,} of {counted(rows, 'row')} scored"
    if not bad:
        return text
    kinds = ", ".join(f"{count:,} {status}" for status, count in sorted(bad.items(), key=lambda item: -item[1]))
    return f"{text}; {percent(sum(bad.values()) / rows)} without a score: {kinds}"


def require_scores(record: RunRecord, most: float | None) -> None:
    """Raises `RunFailedError` where more than the share `most` of a finished run's rows have no score."""
    rows, bad = _without_score(record)
    count = sum(bad.values())
    if most is None or not rows or count / rows <= most:
        return
    first = record.problems[0] if record.problems else None
    example = (
        "" if first is None else f"; the first is {printable(first.id)}: {first.status}: {printable(first.detail)}"
    )
    raise RunFailedError(
        f"{percent(count / rows)} of the rows have no score, {count:,} of {rows:,}, and results.most_bad_rows is "
        f"{percent(most)}{example}"
    )


def _without_score(record: RunRecord) -> tuple[int, dict[str, int]]:
    """The number of all rows, and of those without a score by their status."""
    counts = record.counts
    if counts is None:
        return 0, {}
    return counts.rows, {status: count for status, count in counts.status.items() if status != OK and count}
