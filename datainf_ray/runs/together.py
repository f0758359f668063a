"""The rows that helped or harmed all queries together most; and the place of a row on each query's side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from datainf_ray.common.errors import RequestError
from datainf_ray.runs.results import Run
from datainf_ray.runs.schemas import top_schema
from datainf_ray.runs.scores import Scores
from datainf_ray.runs.top import DIRECTIONS

ALL = "all"  #: as a query: all of them together


def top_schema_of_all() -> pa.Schema:
    """That of top.parquet, but that `query` is null: the rows are those of all queries together."""
    return pa.schema([field.with_nullable(True) if field.name == "query" else field for field in top_schema()])


def top_of_all(run: Run, k: int = 10, harmful: bool = False) -> pa.Table:
    """The `k` rows that were most helpful, or most harmful, to all queries together, as `Run.top` has them of one.

    The influence is the mean over the queries, each query's divided by its root mean square, as `curate` takes it.
    `query` is null; the preview is null where the row is in no query's list. Raises `RequestError` where the run stored
    no scores.
    """
    if k < 1:
        raise RequestError("k", k, "want at least 1")
    scores, sign = Scores([run], "harmful"), 1 if harmful else -1
    values, rows, ids = np.zeros(0), np.zeros(0, np.int64), np.zeros(0, object)
    for portion in scores.portions(["id"]):
        mean = scores.blame(portion.influence).mean(axis=1)
        some = np.flatnonzero(sign * mean > 0)  # NaN is neither
        if len(some) > k:
            some = some[np.argsort(-sign * mean[some], kind="stable")[:k]]
        values, rows = np.concatenate([values, mean[some]]), np.concatenate([rows, portion.first + some])
        ids = np.concatenate([ids, np.array(portion.tables[0]["id"].take(some).to_pylist(), object)])
        best = np.lexsort((rows, -sign * values))[:k]
        values, rows, ids = values[best], rows[best], ids[best]
    listed = run.tops()
    previews = dict(zip(listed["row"].to_pylist(), listed["preview"].to_pylist(), strict=True))
    count = len(rows)
    columns = [
        pa.nulls(count, pa.int32()), [DIRECTIONS[int(harmful)]] * count, np.arange(1, count + 1), rows,
        pa.array(ids, pa.string()), values, pa.array([previews.get(row) for row in rows.tolist()], pa.string()),
    ]  # fmt: skip
    return pa.table(
        [pa.array(one).cast(field.type) for one, field in zip(columns, top_schema_of_all(), strict=True)],
        schema=top_schema_of_all(),
    )


@dataclass(frozen=True)
class Standing:
    """A row's influence on a query, or with None on all together (in root mean squares), and its place on its side."""

    query: int | None
    id: str | None
    influence: float
    side: str | None  #: None where the influence is 0
    rank: int | None  #: from 1; of equals the row with the lowest number is first
    of: int  #: rows on that side


def standings(run: Run, row: int) -> list[Standing]:
    """A row's place on every query that has scores, and of several on all together first; none where it has no score.

    Two passes over the scores. Raises `RequestError` where the run stored none.
    """
    scores = Scores([run], "harmful")
    own = next((one for first, one in _blocks(scores) if first <= row < first + len(one)), None)
    assert own is not None  # of a row of the run
    mine = own[row % scores.portion]
    if np.isnan(mine).any():
        return []
    side, before, beside = np.sign(mine), np.zeros(len(mine), np.int64), np.zeros(len(mine), np.int64)
    for first, values in _blocks(scores):
        same = values * side > 0
        stronger = np.abs(values) > np.abs(mine)
        equal = (values == mine) & (first + np.arange(len(values)) < row)[:, None]
        beside += same.sum(axis=0)
        before += (same & (stronger | equal)).sum(axis=0)
    several = len(scores.queries) > 1
    names = [(None, None)] * several + [(query.number, query.id) for query in scores.queries]
    return [
        Standing(number, name, float(value), *_place(int(sign), int(ahead), int(all_of)))
        for (number, name), value, sign, ahead, all_of in zip(names, mine, side, before, beside, strict=True)
    ]


def _place(sign: int, ahead: int, all_of: int) -> tuple[str | None, int | None, int]:
    return (DIRECTIONS[int(sign > 0)], ahead + 1, all_of) if sign else (None, None, 0)


def _blocks(scores: Scores) -> Iterator[tuple[int, np.ndarray]]:
    """The first row, and the influences (rows × queries), of several queries with those on all together in front."""
    for portion in scores.portions():
        values = portion.influence.astype(np.float64)
        if values.shape[1] > 1:
            values = np.concatenate([scores.blame(values).mean(axis=1, keepdims=True), values], axis=1)
        yield portion.first, values
