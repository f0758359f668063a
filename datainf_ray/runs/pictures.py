"""pictures.parquet: small pictures of the rows of top.parquet and of the queries, where rows have a picture."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from datainf_ray.corpus.thumbnails import is_thumbnail
from datainf_ray.runs.texts import QUERY, ROW

PICTURES = "pictures.parquet"
#: Query rows that bring a picture to the driver, which has all of them in memory.
QUERY_ROWS = 4096


def pictures_schema() -> pa.Schema:
    """The schema of pictures.parquet: `kind`, `number`, `place` and `id` as in texts.parquet; `picture` is a JPEG of at
    most 8 KiB and 128 pixels a side, of what the model sees of the row. A row without a picture has no line.

    There are pictures of the first places of the first 1,000 queries: of 1,000 places each way in all, at least one of
    each query. A run of which no row has a picture has no such table.
    """
    return pa.schema(
        [
            pa.field("kind", pa.string(), nullable=False),
            pa.field("number", pa.int64(), nullable=False),
            pa.field("place", pa.int32(), nullable=False),
            pa.field("id", pa.string(), nullable=False),
            pa.field("picture", pa.binary(), nullable=False),
        ]
    )


def pictures_of(texts: pa.Table, pictures: pa.ChunkedArray) -> pa.Table:
    """The part of pictures.parquet that goes with a part of texts.parquet, from the pictures in the same order."""
    table = texts.select(["kind", "number", "place", "id"]).append_column("picture", pictures)
    return table.filter(pc.is_valid(table["picture"])).cast(pictures_schema())


def pictures_by(table: pa.Table, kind: str) -> dict[int, list[bytes]]:
    """The pictures of each training row, or of the shown rows of each query; none of what does not look like ours."""
    there = table.filter(pc.equal(table["kind"], kind))
    found: dict[int, list[bytes]] = {}
    for number, picture in zip(there["number"].to_pylist(), there["picture"].to_pylist(), strict=True):
        if is_thumbnail(picture):
            found.setdefault(number, []).append(picture)
    return found


def pictures_among(tables: Sequence[pa.Table], texts: pa.Table, numbers: Mapping[int, int]) -> pa.Table:
    """The part of pictures.parquet that goes with `texts`, as far as one of the `tables` has it: a training row's from
    any, a query's from the last, in which the queries are called by the keys of `numbers`.
    """
    rows = {number: some[0] for table in tables for number, some in pictures_by(table, ROW).items()}
    queries = {
        (numbers[one["number"]], one["place"]): one["picture"]
        for one in tables[-1].to_pylist()
        if one["kind"] == QUERY and one["number"] in numbers
    }
    found = [
        rows.get(one["number"]) if one["kind"] == ROW else queries.get((one["number"], one["place"]))
        for one in texts.select(["kind", "number", "place"]).to_pylist()
    ]
    return pictures_of(texts, pa.chunked_array([pa.array(found, pa.binary())]))


def with_fewer_pictures(rows: pa.Table) -> pa.Table:
    """The rows of a queries' corpus (row, picture), of which those behind `QUERY_ROWS` lose their pictures."""
    if rows["picture"].null_count == len(rows):
        return rows
    at = rows.schema.get_field_index("picture")
    field = rows.schema.field(at)
    kept = pc.if_else(pc.less(rows["row"], QUERY_ROWS), rows["picture"], pa.scalar(None, field.type))
    return rows.set_column(at, field, kept)


def address(picture: bytes) -> str:
    """A picture as an address that holds it all, for the `src` of an <img>."""
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
