"""The columns of the tables in a run directory, and matrices as columns of them.

Plain Parquet types only, so that DuckDB, Polars, pandas and Spark read the files as they are.
"""

from __future__ import annotations

import io
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datainf_ray.influence.block import HIDDEN_STATE

#: The only status of a row or query that has a score; every other status says why there is none.
OK = "ok"
#: The status of a row that ended every worker that computed it.
CRASHED = "crashed"
#: The status of a row of which the model's forward or backward pass raises an exception, whatever row is beside it.
FAILED = "failed"

#: One number for each row of examples/: of its influences on all queries that have a gradient.
ACROSS = ("influence_mean", "influence_min", "influence_max")

#: Columns that earlier versions did not write: null where a file does not have them.
LATER = frozenset({"tokens_cut", "left_out", "residual", "detail", *ACROSS, "text", "predicted", "picture"})

_SIZE = b"list_size"  # in the metadata of a column of lists
_GROUP_BYTES = 16 * 2**20  # of a row group: much less costs readers time, much more costs them memory
_ROW_BYTES = 64  # of a row of examples/ besides its lists, about


def examples_schema(queries: int, scores: bool = True, blocks: int = 0, selves: bool = False) -> pa.Schema:
    """The schema of examples/part-*.parquet, in which every input row stands once.

    `influence` has one value per query and is left out where `scores` is false. With `blocks` > 0 there is
    `block_influence` as well: queries × blocks values, all blocks of query 0 first, in the order of blocks.parquet.
    With `selves` there is `self_influence`, the row's influence on itself, and `self_influence_error`, its standard
    error: 0 where no sum is over a sample. `loss`, `sqnorm` and the influences are null where `status` is not "ok".
    `tokens_cut` are those that the row has beyond max_length; null in the run of a version that did not count them.

    `detail` says why `status` is not "ok", in a line, and is null where there is nothing to say. `influence_mean`,
    `influence_min` and `influence_max` are over the queries that have a gradient, as `ACROSS` has them: they need no
    lists, so there they are where `scores` is false too. The runs of versions that did not write these four columns
    have nulls in them.

    `predicted` is what the model itself predicts for the row, in the words of the label that it was given: the name of
    the class with the largest logit, its number where the model has no names, the number of a regression. It is null
    where the task predicts nothing, where `status` is not "ok", and where nobody has asked the model: in the run of an
    earlier version, and where gradients come from an index of one.

    Of a run that combines others, with weights w_c: the influences, `self_influence` and `sqnorm` are Σ_c w_c times
    the runs' (‖g‖² of gradients that stand side by side, each times √w_c); `loss` is Σ_c w_c loss_c / Σ_c w_c;
    `self_influence_error` is √(Σ_c (w_c error_c)²), as of independent samples; `tokens`, `tokens_cut` and `predicted`
    are the last run's. `status` is "ok" where all runs have that, else that of the first that has not, and `detail` is
    that run's.
    """
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("tokens", pa.int32()),
        pa.field("tokens_cut", pa.int32()),
        pa.field("loss", pa.float32()),
        pa.field("sqnorm", pa.float32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
    if scores:
        fields.append(pa.field("influence", pa.list_(pa.float32(), queries)))
        if blocks:
            fields.append(pa.field("block_influence", pa.list_(pa.float32(), queries * blocks)))
    if queries:
        fields += [pa.field(name, pa.float32()) for name in ACROSS]
    if selves:
        fields += [pa.field("self_influence", pa.float32()), pa.field("self_influence_error", pa.float32())]
    return pa.schema([*fields, pa.field("predicted", pa.string())])


def norm_of(blocks: pa.Table) -> str:
    """What the rows' `sqnorm` is the square of, for a person, by the run's blocks.parquet."""
    return "hidden state’s norm" if HIDDEN_STATE in blocks["kind"].to_pylist() else "gradient norm"


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
    """The schema of blocks.parquet: one row per block; `damping` is λ and `mean_sqnorm` the mean of ‖g‖² over the rows.

    `smallest_sqnorm` is the smallest ‖g‖² that is not zero, null where all are. `nodes` are the dampings at which the
    curvature was summed, and `error_bound` is what the relative error of the block's iHVP that comes of interpolating
    between them cannot exceed, the largest over the queries: 0 where the block was swept at λ itself. Both are null
    where there was no curvature, as `damping` is.

    `left_out` says whether no influence goes through the block because its gradient is rounding: then λ is zero. It is
    null where there is no damping, and in the run of a version that left no block out. `residual` is the relative
    residual of the block's iHVP, ‖(G + λI) r − v‖ / ‖v‖, the largest over the queries, of a method that solves for it.

    Of a run that combines others it has all blocks of the first, then those of the next; NUMBER/NAME is what each is
    called, with its run's number from 0.
    """
    return pa.schema(
        [
            pa.field("block", pa.string(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),
            pa.field("shape", pa.list_(pa.int64()), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("damping", pa.float64()),
            pa.field("mean_sqnorm", pa.float64()),
            pa.field("smallest_sqnorm", pa.float64()),
            pa.field("nodes", pa.list_(pa.float64())),
            pa.field("error_bound", pa.float64()),
            pa.field("left_out", pa.bool_()),
            pa.field("residual", pa.float64()),
        ]
    )


def left_out(blocks: pa.Table) -> list[str]:
    """The names of the blocks that a blocks.parquet says are left out."""
    return blocks.filter(pc.fill_null(blocks["left_out"], False))["block"].to_pylist()


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


def tokens_schema() -> pa.Schema:
    """The schema of tokens.parquet: what each token of a row contributes to its influence on a query.

    A line has a row of the corpus from the first places of top.parquet, with its `direction` and `rank`; or, with
    direction "query" and null for rank, a row of the query itself, where `row` counts in the queries' corpus.

    `tokens` are the row's tokens as pieces of text: one after the other they are the text, and the bytes of a
    character of several tokens stand in the last of them. Of an encoder-decoder they are those of the target. `shares`
    has a value for each, null where it is no target. A row's shares add up to `influence`: its influence on the query,
    with the same sign. A query's own rows have shares of v·r, the gradient of the query times its iHVP, all of whose
    rows together make up the whole; positive: what the query is about. Both are null where `status` is not "ok";
    `detail` says why.
    """
    return pa.schema(
        [
            pa.field("query", pa.int32(), nullable=False),
            pa.field("direction", pa.string(), nullable=False),
            pa.field("rank", pa.int32()),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("id", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("detail", pa.string(), nullable=False),
            pa.field("influence", pa.float32()),
            pa.field("tokens", pa.list_(pa.string())),
            pa.field("shares", pa.list_(pa.float32())),
        ]
    )


def vectors(values: np.ndarray, missing: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """A matrix (rows × width) as a column of fixed-size lists of float32; null where `missing` (rows, bool) is true."""
    width = values.shape[1]
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1), pa.float32())
    mask = None if missing is None else pa.array(np.ascontiguousarray(missing, dtype=bool))
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=mask)


def across(influence: np.ndarray, missing: np.ndarray) -> list[pa.Array]:
    """The columns `ACROSS` of influences (rows × queries), null where `missing` (rows, bool) is true.

    The mean is a sum in float64, of each row alone, so that it does not depend on which rows are beside it.
    """
    values = np.ascontiguousarray(np.where(missing[:, None], 0, influence), dtype=np.float64)
    if not values.shape[1]:
        return [pa.nulls(len(values), pa.float32()) for _ in ACROSS]
    found = values.mean(axis=1), values.min(axis=1), values.max(axis=1)
    return [pa.array(each.astype(np.float32), pa.float32(), mask=missing) for each in found]


def matrix(column: pa.ChunkedArray | pa.FixedSizeListArray) -> np.ndarray:
    """The inverse of `vectors`: float32 (rows × width), NaN throughout a row that is null."""
    column = pa.chunked_array([column]) if isinstance(column, pa.Array) else column
    out = np.full((len(column), column.type.list_size), np.nan, np.float32)
    out[column.is_valid().to_numpy()] = _values(column).to_numpy(zero_copy_only=False).reshape(-1, out.shape[1])
    return out


def open_parquet(source: bytes | IO[bytes]) -> pq.ParquetFile:
    """A Parquet file in memory or in an open file; read it with `use_threads=False`.

    The checksums of its pages are compared as they are read: pyarrow says "could not verify page integrity".
    Arrow's threads may still hold what Python gave them when the interpreter ends, and then abort it
    (https://github.com/apache/arrow/issues/34314). And by path, a folder called k=v would become a column.
    """
    file = pa.BufferReader(source) if isinstance(source, bytes) else source
    return pq.ParquetFile(file, page_checksum_verification=True)


def read_parquet(data: bytes, schema: pa.Schema | None = None) -> pa.Table:
    """The table that `table_bytes` made these bytes of; a row group at a time, so that no list array is too long.

    With `schema` it must have its columns, in order and of its types, but for those that are `LATER`. Raises
    `ValueError` if it is no such table.
    """
    try:
        file = open_parquet(data)
        groups = [file.read_row_group(group, use_threads=False) for group in range(file.num_row_groups)]
        table = pa.concat_tables([sized(group) for group in [file.schema_arrow.empty_table(), *groups]])
        table.validate(full=True)
    except Exception as error:  # bytes from memory: whatever goes wrong is the content's
        raise ValueError(f"cannot be read as Parquet: {type(error).__name__}: {error}") from None
    if schema is not None:
        table = with_later(table, schema)
        conform(table, schema)
    return table


def with_later(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table, with nulls for each column of `schema` that it lacks because an earlier version has written it."""
    for at, field in enumerate(schema):
        if field.name in LATER and field.name not in table.schema.names:
            table = table.add_column(min(at, table.num_columns), field, pa.nulls(len(table), field.type))
    return table


def schema_now(there: pa.Schema) -> pa.Schema:
    """The schema that examples/ has today, where an earlier version may have written a file of it with `there`."""
    names = there.names
    queries = (_list_size(there.field("influence")) if "influence" in names else None) or 1
    blocks = (_list_size(there.field("block_influence")) or 0) // queries if "block_influence" in names else 0
    return examples_schema(queries, "influence" in names, blocks, "self_influence" in names)


def conform(table: pa.Table, schema: pa.Schema) -> None:
    """Raises `ValueError` where a table's columns are not those of `schema`, in order, by name and type."""
    for there, wanted in zip(table.schema, schema, strict=False):
        if (there.name, there.type) != (wanted.name, wanted.type):
            told = f"column {there.name!r} is {there.type}"
            raise ValueError(f"{told} where {wanted.name!r} was to be, {wanted.type}")
        if not wanted.nullable and table[there.name].null_count:
            raise ValueError(f"column {there.name!r} has nulls")
    if len(table.schema) != len(schema):
        raise ValueError(f"has {len(table.schema)} columns instead of {len(schema)}")


def table_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file; equal tables give equal bytes."""
    buffer = io.BytesIO()
    step = group_rows(table.schema)
    with parquet_writer(buffer, table.schema) as writer:
        for first in range(0, len(table), step):
            writer.write_table(plain(table.slice(first, step)))
    return buffer.getvalue()


def parquet_writer(sink: IO[bytes], schema: pa.Schema) -> pq.ParquetWriter:
    """What writes `plain` tables of a schema into an open file; give it `group_rows(schema)` rows at a time."""
    # Dictionaries pay for text that repeats; for influences they cost time and memory and are then thrown away.
    text = [field.name for field in schema if pa.types.is_string(field.type)]
    options = {"compression": "zstd", "use_dictionary": text or False, "write_page_checksum": True}
    return pq.ParquetWriter(sink, plain_schema(schema), **options)


def group_rows(schema: pa.Schema) -> int:
    """How many rows make a row group of about 16 MB.

    It also keeps the values of one list array below 2³¹, where Arrow's offsets end, however many queries there are.
    """
    return max(1, _GROUP_BYTES // (_ROW_BYTES + 4 * sum(_list_size(field) or 0 for field in schema)))


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """A schema as it is in a file: lists of fixed size are plain ones, and their size is noted in the field.

    Parquet has lists, but none of fixed size. pyarrow notes the size beside the schema, and then every pyarrow before
    26 refuses to read the file if one list is null. So that note is left out, and all readers see plain lists; ours is
    where only `sized` looks for it.
    """
    for at, field in enumerate(schema):
        if pa.types.is_fixed_size_list(field.type):
            note = {_SIZE: str(field.type.list_size)}
            schema = schema.set(at, pa.field(field.name, pa.list_(field.type.value_type), metadata=note))
    return schema


def plain(table: pa.Table) -> pa.Table:
    """A table of at most `group_rows` rows as `plain_schema` has it."""
    schema = plain_schema(table.schema)
    columns = [
        _plain_lists(column) if pa.types.is_fixed_size_list(column.type) else column for column in table.itercolumns()
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def sized(table: pa.Table) -> pa.Table:
    """A table read from a file of `table_bytes`, with its fixed-size lists as they were."""
    for at, field in enumerate(table.schema):
        size = _list_size(field)
        if size is not None and pa.types.is_list(field.type):
            table = table.set_column(at, field.name, _sized_lists(table.column(at), size))
    return table


def _list_size(field: pa.Field) -> int | None:
    """The size of the lists in a column, in memory or in a file; None if it is not one of fixed size."""
    if pa.types.is_fixed_size_list(field.type):
        return field.type.list_size
    size = (field.metadata or {}).get(_SIZE)
    return None if size is None else int(size)


def _plain_lists(column: pa.ChunkedArray) -> pa.ListArray:
    valid = column.is_valid().to_numpy()
    offsets = np.concatenate([[0], np.cumsum(valid * column.type.list_size)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), _values(column), mask=pa.array(~valid))


def _sized_lists(column: pa.ChunkedArray, size: int) -> pa.FixedSizeListArray:
    missing = column.is_null().to_numpy()
    values = np.full((len(column), size), np.nan, np.float32)
    values[~missing] = _values(column).to_numpy(zero_copy_only=False).reshape(-1, size)
    return vectors(values, missing)


def _values(column: pa.ChunkedArray) -> pa.Array:
    """The values of all lists that are not null, one after the other."""
    return pa.concat_arrays([chunk.flatten() for chunk in column.chunks] or [pa.array([], column.type.value_type)])
