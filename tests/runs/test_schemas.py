from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datainf_ray.runs.schemas import (
    ACROSS,
    LATER,
    across,
    blocks_schema,
    examples_schema,
    group_rows,
    matrix,
    plain_schema,
    queries_schema,
    read_parquet,
    schema_now,
    sized,
    table_bytes,
    top_schema,
    vectors,
)


def test_examples_hold_the_contracts_columns() -> None:
    assert {field.name: field.type for field in examples_schema(3)} == {
        "row": pa.int64(),
        "id": pa.string(),
        "tokens": pa.int32(),
        "tokens_cut": pa.int32(),
        "loss": pa.float32(),
        "sqnorm": pa.float32(),
        "status": pa.string(),
        "detail": pa.string(),
        "influence": pa.list_(pa.float32(), 3),
        "influence_mean": pa.float32(),
        "influence_min": pa.float32(),
        "influence_max": pa.float32(),
        "predicted": pa.string(),
    }
    assert examples_schema(3, scores=False).names == [n for n in examples_schema(3).names if n != "influence"]
    assert examples_schema(0, scores=False).names[-2:] == [
        "detail",
        "predicted",
    ]  # without queries there is nothing to average
    assert examples_schema(3, blocks=5).field("block_influence").type.list_size == 15
    assert examples_schema(3, selves=True).names[-4:] == [
        "influence_max",
        "self_influence",
        "self_influence_error",
        "predicted",
    ]


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        (queries_schema(), "query id rows tokens loss preview status"),
        (
            blocks_schema(),
            "block kind shape size damping mean_sqnorm smallest_sqnorm nodes error_bound left_out residual",
        ),
        (top_schema(), "query direction rank row id influence preview"),
    ],
)
def test_the_other_tables_hold_the_contracts_columns(schema: pa.Schema, names: str) -> None:
    assert schema.names == names.split()


def test_one_number_across_the_queries_is_numpys_and_does_not_depend_on_the_rows_beside_it() -> None:
    values = np.random.default_rng(1).standard_t(2, size=(500, 37)).astype(np.float32)
    missing = np.arange(500) % 7 == 3
    values[missing] = np.nan
    mean, low, high = across(values, missing)
    for column, of in ((mean, np.mean), (low, np.min), (high, np.max)):
        assert column.type == pa.float32()
        assert column.is_null().to_numpy(zero_copy_only=False).tolist() == missing.tolist()
        want = [of(row.astype(np.float64)) for row in values[~missing]]
        np.testing.assert_array_equal(column.drop_null().to_numpy(), np.asarray(want, np.float32))
    for rows in (slice(0, 1), slice(10, 13), slice(499, 500)):
        alone = across(values[rows], missing[rows])
        assert [one.to_pylist() for one in alone] == [one[rows].to_pylist() for one in (mean, low, high)]
        turned = across(np.asfortranarray(values[rows]), missing[rows])
        assert [one.to_pylist() for one in turned] == [one.to_pylist() for one in alone]
    nobody = across(values[:, :0], missing)
    assert [one.null_count for one in nobody] == [500] * 3


@pytest.mark.parametrize(("scores", "blocks", "selves"), [(True, 0, False), (True, 4, True), (False, 0, True)])
def test_a_file_of_an_earlier_version_gets_the_later_columns_in_their_places(
    scores: bool, blocks: int, selves: bool
) -> None:
    now = examples_schema(3, scores, blocks, selves)
    earlier = pa.schema([field for field in now if field.name not in LATER])
    assert {"detail", *ACROSS, "predicted"} <= set(now.names) - set(earlier.names)
    assert schema_now(earlier).equals(now)
    assert schema_now(plain_schema(earlier)).equals(now)  # as it stands in a file
    back = read_parquet(table_bytes(earlier.empty_table()), now)
    assert back.schema.equals(now)


@pytest.mark.parametrize("width", [1, 7])
def test_vectors_come_back_from_parquet_with_their_nulls(width: int) -> None:
    values = np.random.default_rng(0).normal(size=(20, width)).astype(np.float32)
    missing = np.arange(20) % 3 == 0
    column = vectors(values, missing)
    assert column.null_count == 7
    # chunks that are slices, the first of them starting inside the array
    table = pa.table({"v": pa.chunked_array([column.slice(4, 6), column.slice(0, 3), column.slice(10)])})
    order = [*range(4, 10), *range(3), *range(10, 20)]
    back = pq.read_table(pa.BufferReader(table_bytes(table)))
    # what pyarrow notes about fixed sizes makes every version before 26 refuse the file
    assert back["v"].type.equals(pa.list_(pa.float32()))
    expected = np.where(missing[:, None], np.nan, values)[order]
    for read in (sized(back)["v"], table["v"]):
        assert read.type == pa.list_(pa.float32(), width)
        assert read.null_count == 6
        np.testing.assert_array_equal(matrix(read), expected)
        np.testing.assert_array_equal(matrix(read.slice(4, 11)), expected[4:15])


def test_a_column_of_nulls_only_and_an_empty_one_are_allowed() -> None:
    values = np.zeros((2, 3), np.float32)
    for column in (vectors(values, np.array([True, True])), vectors(values[:0])):
        table = pa.table({"n": range(len(column)), "v": column}).replace_schema_metadata({"kept": "too"})
        back = sized(pq.read_table(pa.BufferReader(table_bytes(table))))
        assert back["v"].null_count == len(column)
        assert back["v"].type == pa.list_(pa.float32(), 3)
        assert matrix(back["v"]).shape == (len(column), 3)
        assert np.isnan(matrix(back["v"])).all()
        assert back.schema.metadata == {b"kept": b"too"}


def test_equal_tables_give_equal_bytes() -> None:
    table = pa.table({"id": ["a", "b"], "v": vectors(np.ones((2, 3), np.float32))})
    assert table_bytes(table) == table_bytes(pa.concat_tables([table.slice(0, 1), table.slice(1)]).combine_chunks())


def test_a_table_of_wide_rows_is_written_and_read_in_groups_below_the_end_of_arrows_offsets() -> None:
    for queries in (1, 100, 10_000, 10**6, 2**30):
        assert group_rows(examples_schema(queries)) * queries < 2**31
    values = np.random.default_rng(0).normal(size=(50, 10**6)).astype(np.float32)
    table = pa.table({"row": np.arange(50), "v": vectors(values, np.arange(50) == 7)}).replace_schema_metadata(
        {"a": "b"}
    )
    data = table_bytes(table)
    assert group_rows(table.schema) == 4
    assert pq.ParquetFile(pa.BufferReader(data)).num_row_groups == 13
    values[7] = np.nan
    back = read_parquet(data)
    np.testing.assert_array_equal(matrix(back["v"]), values)
    assert back["row"].to_pylist() == list(range(50))
    assert back.schema.metadata == {b"a": b"b"}
