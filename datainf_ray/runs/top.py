"""The most helpful and the most harmful rows of every query, as a state of bounded size that merges.

The state of a chunk is selected where its scores are; states are merged in any order and grouping with the same result,
because a row's place depends only on its influence and, between equals, on its number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datainf_ray.common.errors import DamagedError
from datainf_ray.runs.checksums import read_checked_table, read_tensors, table_file, tensors_file
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import top_schema

#: Axis 1 of a `Top`, and the order of the rows in top.parquet.
DIRECTIONS = ("helpful", "harmful")
#: What tokens.parquet has in their place for a row of the query itself.
QUERY = "query"

# What is written about a row; large_string, because the texts of a chunk may be more than 2 GB.
_TEXTS = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("preview", pa.string()),
        ("text", pa.large_string()),
        ("picture", pa.large_binary()),
    ]
)
_PICTURED = 1000  # queries of which rows have pictures, and places of all of them together
_EMPTY = -1  # the row number of a place that is not taken
_PORTION = 2**20  # influences that are looked at together: what is needed for them besides stays small


@dataclass(frozen=True)
class Top:
    """The best rows seen so far.

    Places are ordered from the strongest influence on; width is min(k, rows seen). A place that is not taken has row -1
    and influence NaN.
    """

    k: int
    influence: np.ndarray  # (queries × 2 × width) float32, signed
    rows: np.ndarray  # (queries × 2 × width) int64
    texts: pa.Table  # row, id, preview, text, picture of every row in `rows`, once, sorted by row


def select_top(influence: np.ndarray, rows: np.ndarray, texts: pa.Table, k: int) -> Top:
    """The `k` most negative (helpful) and `k` most positive (harmful) influences of every query.

    `influence` is (rows × queries) float32, with NaN where a row has no score; `rows` (int64) their distinct numbers;
    `texts` has columns row, id, and preview, text and picture where they are known, with at least these rows. Zero is
    neither helpful nor harmful, and neither is a value that is not finite. Raises `ValueError` if shapes differ or a
    text is missing.
    """
    if influence.ndim != 2 or rows.shape != influence.shape[:1] or k < 1:
        raise ValueError(f"influence {influence.shape}, rows {rows.shape}, k {k}: want (n, m), (n,) and k >= 1")
    by_row = np.argsort(rows, kind="stable")
    rows = np.asarray(rows, dtype=np.int64)[by_row]
    count, queries = influence.shape
    best = np.full((queries, 2, min(k, count)), np.nan, np.float32)
    best_rows = np.full(best.shape, _EMPTY)
    step = max(1, _PORTION // max(count, 1))
    for first in range(0, queries, step):
        some = slice(first, first + step)
        values = np.ascontiguousarray(influence[:, some][by_row].T, dtype=np.float32)  # (some queries × rows)
        for direction, sign in enumerate((-1, 1)):
            places = _strongest(sign * values, k)
            taken = places >= 0
            best[some, direction] = np.where(taken, np.take_along_axis(values, places, axis=1), np.nan)
            best_rows[some, direction] = np.where(taken, rows[places], _EMPTY)
    return _with_texts(k, best, best_rows, texts)


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


def write_top(directory: RunDirectory, name: str, top: Top, owner: str) -> None:
    """Keep a state: its numbers as safetensors in the file `name`, its texts beside it, both with checksums."""
    directory.write(f"{name}.parquet", table_file(top.texts, owner, f"{name}.parquet"))
    numbers = {"influence": top.influence, "rows": top.rows, "k": np.array([top.k])}
    values = {key: np.ascontiguousarray(value) for key, value in numbers.items()}
    directory.write(name, tensors_file(values, owner, name))


def read_top(directory: RunDirectory, name: str, owner: str) -> Top:
    """What `write_top` wrote. Raises `DamagedError` where a file is damaged, another run's, or gone."""
    try:
        numbers = read_tensors(directory, name, owner)
        texts = read_checked_table(directory, f"{name}.parquet", owner, _TEXTS).replace_schema_metadata()
    except FileNotFoundError:
        raise DamagedError(directory.path(name), "is gone") from None
    return Top(int(numbers["k"][0]), numbers["influence"], numbers["rows"], texts)


def _strongest(strength: np.ndarray, k: int) -> np.ndarray:
    """The columns of the `k` largest positive finite values of every row, largest first, then by column; -1 for none.

    A positive float32 is ordered as its bits are. With the column behind them in one integer no two keys are equal, so
    a partition, which is many times faster than a stable sort and says nothing of equals, gives the same every time.
    """
    count = strength.shape[1]
    bits = np.where(np.isfinite(strength) & (strength > 0), strength, np.float32(0)).view(np.int32)
    keys = (bits.astype(np.int64) << 32) | np.arange(count - 1, -1, -1)
    if k < count:
        keys.partition(count - k, axis=1)
        keys = keys[:, count - k :]
    keys.sort(axis=1)
    keys = keys[:, ::-1]
    return np.where(keys >> 32 > 0, count - 1 - (keys & 0xFFFFFFFF), -1)


def _with_texts(k: int, influence: np.ndarray, rows: np.ndarray, texts: pa.Table) -> Top:
    """A `Top` with the texts that it needs and no others, and pictures of the first places.

    Who is among those of all rows is so among those of any part of them: the order of merging changes nothing.
    """
    needed = np.unique(rows[rows != _EMPTY])
    numbers = _numbers(texts)
    order = np.argsort(numbers, kind="stable")
    at = np.searchsorted(numbers, needed, sorter=order)
    if np.any(at == len(numbers)) or np.any(numbers[order[at]] != needed):
        raise ValueError("texts lack a row that was selected")
    # cast: a table made of Python lists of which all are empty, or all None, knows no types
    for name in _TEXTS.names:
        if name not in texts.schema.names:
            texts = texts.append_column(name, pa.nulls(len(texts), _TEXTS.field(name).type))
    kept = texts.select(_TEXTS.names).take(order[at]).cast(_TEXTS).combine_chunks()
    if kept["picture"].null_count < len(kept):
        first = np.isin(needed, rows[:_PICTURED, :, : max(1, _PICTURED // max(len(rows), 1))])
        at, field = kept.schema.get_field_index("picture"), _TEXTS.field("picture")
        kept = kept.set_column(at, field, pc.if_else(pa.array(first), kept["picture"], pa.scalar(None, field.type)))
    return Top(k, influence.astype(np.float32, copy=False), rows, kept)


def _numbers(texts: pa.Table) -> np.ndarray:
    return texts["row"].to_numpy()
