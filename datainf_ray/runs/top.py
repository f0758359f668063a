"""The most helpful and the most harmful rows of every query, as a state of bounded size that merges.

The state of a chunk is selected where its scores are; states are merged in any order and grouping with the same result,
because a row's place depends only on its influence and, between equals, on its number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from datainf_ray.runs.schemas import top_schema

#: Axis 1 of a `Top`, and the order of the rows in top.parquet.
DIRECTIONS = ("helpful", "harmful")

_TEXTS = pa.schema([("row", pa.int64()), ("id", pa.string()), ("preview", pa.string())])
_EMPTY = -1  # the row number of a place that is not taken


@dataclass(frozen=True)
class Top:
    """The best rows seen so far.

    Places are ordered from the strongest influence on; width is min(k, rows seen). A place that is not taken has row -1
    and influence NaN.
    """

    k: int
    influence: np.ndarray  # (queries × 2 × width) float32, signed
    rows: np.ndarray  # (queries × 2 × width) int64
    texts: pa.Table  # row, id, preview of every row in `rows`, once, sorted by row


def select_top(influence: np.ndarray, rows: np.ndarray, texts: pa.Table, k: int) -> Top:
    """The `k` most negative (helpful) and `k` most positive (harmful) influences of every query.

    `influence` is (rows × queries) float32, with NaN where a row has no score; `rows` (int64) their distinct numbers;
    `texts` has columns row, id, preview with at least these rows. Zero is neither helpful nor harmful, and neither is a
    value that is not finite. Raises `ValueError` if shapes differ or a text is missing.
    """
    if influence.ndim != 2 or rows.shape != influence.shape[:1] or k < 1:
        raise ValueError(f"influence {influence.shape}, rows {rows.shape}, k {k}: want (n, m), (n,) and k >= 1")
    by_row = np.argsort(rows, kind="stable")
    rows = np.asarray(rows, dtype=np.int64)[by_row]
    values = np.asarray(influence, dtype=np.float32)[by_row].T  # (queries × rows)
    kept_values, kept_rows = [], []
    for sign in (-1, 1):
        with np.errstate(invalid="ignore"):
            strength = np.where(np.isfinite(values) & (sign * values > 0), sign * values, 0)
        order = np.argsort(-strength, axis=1, kind="stable")[:, :k]  # stable: the smaller row number first
        taken = np.take_along_axis(strength, order, axis=1) > 0
        kept_values.append(np.where(taken, np.take_along_axis(values, order, axis=1), np.nan))
        kept_rows.append(np.where(taken, rows[order], _EMPTY))
    return _with_texts(k, np.stack(kept_values, axis=1), np.stack(kept_rows, axis=1), texts)


def merge_top(a: Top, b: Top) -> Top:
    """The top of the rows of both; they must not share a row. Raises `ValueError` if queries or `k` differ."""
    if a.k != b.k or a.influence.shape[0] != b.influence.shape[0]:
        raise ValueError(f"tops of {a.influence.shape[0]} and {b.influence.shape[0]} queries, k {a.k} and {b.k}")
    influence = np.concatenate([a.influence, b.influence], axis=2)
    rows = np.concatenate([a.rows, b.rows], axis=2)
    order = np.lexsort((rows, -np.nan_to_num(np.abs(influence), nan=0)), axis=2)[:, :, : a.k]
    influence = np.take_along_axis(influence, order, axis=2)
    rows = np.take_along_axis(rows, order, axis=2)
    return _with_texts(a.k, influence, rows, pa.concat_tables([a.texts, b.texts]))


def top_table(top: Top) -> pa.Table:
    """The rows of top.parquet, sorted by query, direction (helpful first) and rank."""
    query, direction, place = np.nonzero(top.rows != _EMPTY)
    rows = top.rows[query, direction, place]
    texts = top.texts.take(np.searchsorted(_numbers(top.texts), rows))
    columns = [
        pa.array(query, pa.int32()),
        pa.array(np.array(DIRECTIONS, dtype=object)[direction], pa.string()),
        pa.array(place + 1, pa.int32()),
        pa.array(rows),
        texts["id"],
        pa.array(top.influence[query, direction, place], pa.float32()),
        texts["preview"],
    ]
    return pa.table(columns, schema=top_schema())


def _with_texts(k: int, influence: np.ndarray, rows: np.ndarray, texts: pa.Table) -> Top:
    """A `Top` with the texts that it needs and no others."""
    needed = np.unique(rows[rows != _EMPTY])
    numbers = _numbers(texts)
    order = np.argsort(numbers, kind="stable")
    at = np.searchsorted(numbers, needed, sorter=order)
    if np.any(at == len(numbers)) or np.any(numbers[order[at]] != needed):
        raise ValueError("texts lack a row that was selected")
    # cast: a table made of Python lists of which all are empty, or all None, knows no types
    kept = texts.select(_TEXTS.names).take(order[at]).cast(_TEXTS).combine_chunks()
    return Top(k, influence.astype(np.float32, copy=False), rows, kept)


def _numbers(texts: pa.Table) -> np.ndarray:
    return texts["row"].to_numpy()
