"""What is said of rows: the columns of those that go, of a corpus with scores, and of one with weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from datainf_ray.common.words import counted
from datainf_ray.curate.extra import Extra, Feed
from datainf_ray.curate.rules import GOES, SIBLING, STAYS, UNKNOWN, Decided, Rule, rms_of, weight_of
from datainf_ray.runs.scores import Scores

REJECTED = pa.schema(
    [
        ("reason", pa.string()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("query", pa.string()),
        ("rank", pa.int64()),
        ("influence", pa.float32()),
        ("share", pa.float32()),
    ]
)
WEIGHT = pa.schema([("weight", pa.float32())])


def annotated_schema(scores: Scores) -> pa.Schema:
    """The columns of a corpus with scores; `self_influence` where the first run has it, `predicted` where it may."""
    fields = [("row", pa.int64()), ("id", pa.string()), ("status", pa.string()), ("loss", pa.float32())]
    numbers = ["influence", "influence_mean", "influence_min", "influence_max", *_own(scores)]
    said = [("predicted", pa.string())] if _predicts(scores) else []
    return pa.schema([*fields, *((name, pa.float32()) for name in numbers), *said])


def annotated(scores: Scores, decided: Decided) -> Extra:
    """Each row's number and id in the run, its status and loss, and its influence: across the queries in RMS, positive
    where it is harmful; and the mean, least and largest of the run's own.
    """
    schema = annotated_schema(scores)

    def tables() -> Iterator[pa.Table]:
        said = ["predicted"] if _predicts(scores) else []
        for portion in scores.portions(["id", "loss", *_own(scores), *said]):
            last = portion.first + len(portion)
            raw, missing = portion.influence, np.isnan(portion.influence[:, 0])
            values = {
                "influence": scores.sign * decided.score.read(portion.first, last),
                "influence_mean": raw.mean(axis=1, dtype=np.float64),
                "influence_min": raw.min(axis=1),
                "influence_max": raw.max(axis=1),
            }
            own = portion.tables[0]
            columns = {
                "row": np.arange(portion.first, last),
                **{name: own[name] for name in ("id", "loss", *_own(scores), *said)},
                "status": portion.status,
                **{name: pa.array(one.astype(np.float32), mask=missing) for name, one in values.items()},
            }
            yield pa.table([columns[name] for name in schema.names], schema=schema)

    return Extra(schema, Feed(tables()))


def weighted(rule: Rule, decided: Decided) -> Extra:
    """A weight for each row."""
    rms = rms_of(decided.score)

    def tables() -> Iterator[pa.Table]:
        for _, values in decided.score.blocks():
            yield pa.table([pa.array(weight_of(rule, values, rms).astype(np.float32))], schema=WEIGHT)

    return Extra(WEIGHT, Feed(tables()))


def rejected(rule: Rule, scores: Scores, decided: Decided) -> Extra:
    """Of the rows that go: why; number and id; the query that blames the row most, and the influence on it as the run
    has it; the row's place among those that go, the most to blame first; its share of all that rows are blamed with.
    """
    return Extra(REJECTED, Feed(rejected_tables(rule, scores, decided)))


def rejected_tables(rule: Rule, scores: Scores, decided: Decided) -> Iterator[pa.Table]:
    """The columns of `rejected` for every row; null for those that stay."""
    ranks, total, why, passed = _ranks(decided), blamed(decided)[0], words(rule, scores), 0
    for portion in scores.portions(["id"]):
        last = portion.first + len(portion)
        gone = np.flatnonzero(decided.fate[portion.first : last] != STAYS)
        score = decided.score.read(portion.first, last)[gone]
        known = ~np.isnan(score)
        worst = scores.worst(portion.influence[gone])
        rank = ranks[passed : passed + len(gone)]
        passed += len(gone)
        rows = (portion.first + gone).tolist()
        values = [
            [
                _reason(decided, row, why, one)
                for row, one in zip(rows, portion.status.take(gone).to_pylist(), strict=True)
            ],
            rows,
            portion.tables[0]["id"].take(gone).to_pylist(),
            [scores.queries[at].id if fine else None for at, fine in zip(worst.tolist(), known, strict=True)],
            pa.array(rank, mask=~known),
            pa.array(portion.influence[gone, worst], pa.float32(), mask=~known),
            pa.array((np.maximum(score, 0) / (total or 1)).astype(np.float32), mask=~known),
        ]
        yield _spread(pa.table(values, schema=REJECTED), gone, len(portion))


def words(rule: Rule, scores: Scores) -> str:
    """Why a row goes by the rule."""
    count = rule.rows(scores.scored, scores.rows) if rule.name in ("drop", "select", "sample") else 0
    side = ("lower" if rule.because == "helpful" else "raise") + ("s" if count == 1 else "")
    blamed_rows = f"that {side} the loss of the queries"
    return {
        "drop": f"among the {counted(count, 'row')} {blamed_rows} most",
        "drop_above": f"above {rule.above:g} RMS among the rows {blamed_rows}",
        "select": f"not among the {counted(count, 'row')} selected",
        "between": f"outside of q{100 * rule.band[0]:g} to q{100 * rule.band[1]:g}",
        "sample": f"not among the {counted(count, 'row')} drawn",
        "ids": "named",
    }.get(rule.name, "")


def blamed(decided: Decided) -> tuple[float, float]:
    """What all rows are blamed with, those that are at all; and what of it goes."""
    total = gone = 0.0
    for first, values in decided.score.blocks():
        blame = np.maximum(np.nan_to_num(values), 0)
        total += float(blame.sum())
        gone += float(blame[decided.fate[first : first + len(values)] != STAYS].sum())
    return total, gone


def _ranks(decided: Decided) -> np.ndarray:
    """For each row that goes, in the rows' order, its place from 1 on; rows without a score come last."""
    parts = [values[decided.fate[first : first + len(values)] != STAYS] for first, values in decided.score.blocks()]
    score = np.nan_to_num(np.concatenate(parts) if parts else np.zeros(0), nan=-np.inf)
    ranks = np.empty(len(score), np.int64)
    ranks[np.argsort(-score, kind="stable")] = np.arange(1, len(score) + 1)
    return ranks


def _reason(decided: Decided, row: int, why: str, status: str) -> str | None:
    fate = decided.fate[row]
    if fate == SIBLING:
        return f"nearly the text of row {decided.siblings[row]}"
    return {GOES: why, UNKNOWN: f"no score: {status}"}.get(int(fate))


def _spread(table: pa.Table, rows: np.ndarray, count: int) -> pa.Table:
    """A table of `count` rows of which these are the given ones, and all others null."""
    at = np.full(count, -1)
    at[rows] = np.arange(len(rows))
    return table.take(pa.array(at, mask=at < 0))


def _own(scores: Scores) -> list[str]:
    return ["self_influence"] if scores.runs[0].config["results"].get("self_influence") else []


def _predicts(scores: Scores) -> bool:
    """Whether the first run may know what the model predicts: a classifier's, or one of a task of the user's own."""
    task = scores.runs[0].config["model"]["task"]
    return task == "sequence-classification" or ":" in task


def top_rejected(rule: Rule, scores: Scores, decided: Decided, count: int) -> list[dict[str, Any]]:
    """The rows that go, the first `count` of them, the most to blame first."""
    found: list[dict[str, Any]] = []
    for table in rejected_tables(rule, scores, decided):
        if table["rank"].null_count < len(table):
            mask = np.array([rank is not None and rank <= count for rank in table["rank"].to_pylist()])
            found += table.filter(pa.array(mask)).to_pylist()
    return sorted(found, key=lambda row: row["rank"])
