"""pictures.parquet: which rows have a picture, in what order tops are merged, and what is passed over."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from datainf_ray.corpus.passages import as_json, pair
from datainf_ray.runs import top as tops
from datainf_ray.runs.pictures import (
    QUERY_ROWS,
    pictures_among,
    pictures_by,
    pictures_of,
    pictures_schema,
    with_fewer_pictures,
)
from datainf_ray.runs.texts import QUERY, ROW, texts_of_queries, texts_of_rows
from datainf_ray.runs.top import Top, merge_top, select_top, top_table

JPEG = b"\xff\xd8\xff"


def described(rows: np.ndarray) -> pa.Table:
    """What is known of rows, of which every seventh has no picture."""
    pictures = [None if row % 7 == 0 else JPEG + str(row).encode() for row in rows.tolist()]
    return pa.table({
        "row": rows, "id": [f"r{row}" for row in rows], "text": [as_json(pair("a", "b"))] * len(rows),
        "picture": pa.array(pictures, pa.large_binary()),
    })  # fmt: skip


def of_parts(influence: np.ndarray, parts: list[np.ndarray], k: int) -> Top:
    merged = None
    for rows in parts:
        one = select_top(influence[rows], rows, described(rows), k)
        merged = one if merged is None else merge_top(merged, one)
    assert merged is not None
    return merged


@pytest.mark.parametrize("queries", [1, 2, 5, 9])
def test_the_first_places_have_pictures_in_whatever_order_they_come(
    queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tops, "_PICTURED", 6)
    influence = np.random.default_rng(queries).normal(size=(90, queries)).astype(np.float32)
    whole = of_parts(influence, [np.arange(90)], 12)
    table = top_table(whole).to_pylist()
    first = {line["row"] for line in table if line["query"] < 6 and line["rank"] <= max(1, 6 // queries)}
    found = {line["row"] for line in whole.texts.to_pylist() if line["picture"]}
    assert found == {row for row in first if row % 7}
    assert len(found) < len({line["row"] for line in table})
    for parts in itertools.permutations(np.split(np.arange(90), [20, 30, 75])):
        again = of_parts(influence, [*parts], 12)
        assert again.texts.equals(whole.texts)
        np.testing.assert_array_equal(again.rows, whole.rows)


def test_rows_of_text_have_none() -> None:
    rows = np.arange(5)
    made = select_top(np.ones((5, 1), np.float32), rows, described(rows).drop_columns("picture"), 3)
    assert made.texts["picture"].null_count == len(made.texts)


def test_a_table_is_of_the_rows_that_have_one() -> None:
    rows = described(np.arange(3))
    asked = texts_of_queries([0, 0, 4], ["x", "y", "z"], [None] * 3)
    seen = pa.chunked_array([[JPEG, None, JPEG + b"z"]], pa.large_binary())
    parts = [pictures_of(texts_of_rows(rows), rows["picture"]), pictures_of(asked, seen)]
    table = pa.concat_tables(parts)
    assert table.schema.equals(pictures_schema())
    assert [tuple(line.values())[:4] for line in table.to_pylist()] == [
        (ROW, 1, 0, "r1"), (ROW, 2, 0, "r2"), (QUERY, 0, 0, "x"), (QUERY, 4, 0, "z")
    ]  # fmt: skip
    assert pictures_by(table, ROW) == {1: [JPEG + b"1"], 2: [JPEG + b"2"]}
    assert pictures_by(table, QUERY) == {0: [JPEG], 4: [JPEG + b"z"]}


def test_what_others_put_into_the_table_is_passed_over() -> None:
    asked = texts_of_queries([0, 1, 2], ["x", "y", "z"], [None] * 3)
    bad = pa.chunked_array([[b"<svg onload=alert(1)>", JPEG + bytes(10_000), JPEG]], pa.large_binary())
    assert pictures_by(pictures_of(asked, bad), QUERY) == {2: [JPEG]}


def test_of_very_many_query_rows_the_first_bring_theirs() -> None:
    rows = described(np.arange(QUERY_ROWS - 2, QUERY_ROWS + 3))
    some = with_fewer_pictures(rows)
    kept = [row for row, one in zip(some["row"].to_pylist(), some["picture"].to_pylist(), strict=True) if one]
    assert kept == [row for row in (QUERY_ROWS - 2, QUERY_ROWS - 1) if row % 7]
    assert some.drop_columns("picture").equals(rows.drop_columns("picture"))


def test_a_sum_of_runs_has_the_rows_of_all_and_the_queries_of_the_last() -> None:
    def table(rows: list[int], mark: bytes) -> pa.Table:
        of_rows = described(np.array(rows))
        asked = texts_of_queries([0, 1], ["x", "y"], [None] * 2)
        seen = pa.chunked_array([[JPEG + mark, JPEG + mark * 2]], pa.large_binary())
        return pa.concat_tables([pictures_of(texts_of_rows(of_rows), of_rows["picture"]), pictures_of(asked, seen)])

    asked = texts_of_queries([0, 1], ["y", "x"], [None] * 2)
    wanted = pa.concat_tables([texts_of_rows(described(np.array([1, 2, 3]))), asked])
    made = pictures_among([table([1, 5], b"a"), table([3], b"b")], wanted, {1: 0, 0: 1})
    assert pictures_by(made, ROW) == {1: [JPEG + b"1"], 3: [JPEG + b"3"]}
    assert pictures_by(made, QUERY) == {0: [JPEG + b"bb"], 1: [JPEG + b"b"]}
