"""The columns of the tables in a run directory, and the two array shapes that numpy does not give by itself.

Plain Parquet types only, so that DuckDB, Polars, pandas and Spark read the files as they are.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

#: The only status of a row or query that has a score; every other status says why there is none.
OK = "ok"


def examples_schema(queries: int, scores: bool = True, blocks: int = 0) -> pa.Schema:
    """The schema of examples/part-*.parquet, in which every input row stands once.

    `influence` has one value per query and is left out where `scores` is false. With `blocks` > 0 there is
    `block_influence` as well: queries × blocks values, all blocks of query 0 first, in the order of blocks.parquet.
    `loss`, `sqnorm` and the influences are null where `status` is not "ok".
    """
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("tokens", pa.int32()),
        pa.field("loss", pa.float32()),
        pa.field("sqnorm", pa.float32()),
        pa.field("status", pa.string(), nullable=False),
    ]
    if scores:
        fields.append(pa.field("influence", pa.list_(pa.float32(), queries)))
        if blocks:
            fields.append(pa.field("block_influence", pa.list_(pa.float32(), queries * blocks)))
    return pa.schema(fields)


def queries_schema() -> pa.Schema:
    """The schema of queries.parquet; `loss` is null and `rows` 0 where `status` is not "ok"."""
    return pa.schema(
        [
            pa.field("query", pa.int32(), nullable=False),
            pa.field("id", pa.string(), nullable=False),
            pa.field("rows", pa.int64()),
            pa.field("tokens", pa.int64()),
            pa.field("loss", pa.float32()),
            pa.field("preview", pa.string()),
            pa.field("status", pa.string(), nullable=False),
        ]
    )


def blocks_schema() -> pa.Schema:
    """The schema of blocks.parquet: one row per block; `damping` is λ and `mean_sqnorm` the mean of ‖g‖²."""
    return pa.schema(
        [
            pa.field("block", pa.string(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),
            pa.field("shape", pa.list_(pa.int64()), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("damping", pa.float64()),
            pa.field("mean_sqnorm", pa.float64()),
        ]
    )


def top_schema() -> pa.Schema:
    """The schema of top.parquet; `direction` is "helpful" or "harmful", `rank` counts from 1."""
    return pa.schema(
        [
            pa.field("query", pa.int32(), nullable=False),
            pa.field("direction", pa.string(), nullable=False),
            pa.field("rank", pa.int32(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("id", pa.string(), nullable=False),
            pa.field("influence", pa.float32(), nullable=False),
            pa.field("preview", pa.string()),
        ]
    )


def vectors(values: np.ndarray, missing: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """A matrix (rows × width) as a column of fixed-size lists of float32; null where `missing` (rows, bool) is true."""
    width = values.shape[1]
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1), pa.float32())
    mask = None if missing is None else pa.array(np.ascontiguousarray(missing, dtype=bool))
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=mask)


def matrix(column: pa.ChunkedArray | pa.FixedSizeListArray) -> np.ndarray:
    """The inverse of `vectors`: float32 (rows × width), NaN throughout a row that is null."""
    width = column.type.list_size
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    out = np.full((len(column), width), np.nan, np.float32)
    at = 0
    for chunk in chunks:
        # flatten() leaves the values of null lists out, so what it gives belongs to the valid rows in order
        valid = chunk.is_valid().to_numpy(zero_copy_only=False)
        out[at : at + len(chunk)][valid] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        at += len(chunk)
    return out


def table_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file; equal tables give equal bytes."""
    # Dictionaries pay for text that repeats; for influences they cost time and memory and are then thrown away.
    text = [field.name for field in table.schema if pa.types.is_string(field.type)]
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=text or False)
    return buffer.getvalue()
