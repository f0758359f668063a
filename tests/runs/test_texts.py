"""The texts that a run keeps, and the previews that are made of a row and a query together."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from datainf_ray.corpus.passages import Passage, as_json, from_json, pair
from datainf_ray.runs.schemas import read_parquet, table_bytes
from datainf_ray.runs.texts import (
    QUERY,
    ROW,
    said_by,
    texts_of_queries,
    texts_of_rows,
    texts_schema,
    with_less_text,
    with_previews,
)
from datainf_ray.runs.top import select_top, top_table


def _rows(texts: list[str | None]) -> pa.Table:
    numbers = list(range(len(texts)))
    return pa.table({"row": numbers, "id": [f"a#{n}" for n in numbers], "text": pa.array(texts, pa.large_string())})


def test_texts_come_back_by_the_number_of_their_row_and_query() -> None:
    one, two = as_json(pair("ask", "say")), as_json([Passage("text", "x", cut=7), Passage("text_pair", "y", cut=2)])
    table = pa.concat_tables(
        [texts_of_rows(_rows([one, None, two])), texts_of_queries([0, 0, 2], list("abc"), [one] * 3)]
    )
    assert table.schema == texts_schema()
    assert read_parquet(table_bytes(table), texts_schema()).equals(table)
    assert table.select(["kind", "number", "place", "id", "cut"]).to_pylist() == [
        {"kind": kind, "number": number, "place": place, "id": name, "cut": cut}
        for kind, number, place, name, cut in [
            (ROW, 0, 0, "a#0", 0), (ROW, 1, 0, "a#1", 0), (ROW, 2, 0, "a#2", 9),
            (QUERY, 0, 0, "a", 0), (QUERY, 0, 1, "b", 0), (QUERY, 2, 0, "c", 0),
        ]
    ]  # fmt: skip
    assert said_by(table, ROW) == {0: pair("ask", "say"), 2: from_json(two)}
    assert said_by(table, QUERY) == {0: [*pair("ask", "say")] * 2, 2: pair("ask", "say")}
    assert json.loads(table["text"][0].as_py()) == [
        {"role": "prompt", "text": "ask"}, {"role": "completion", "text": "say", "answer": True},
    ]  # fmt: skip


def test_only_long_texts_are_cut_further() -> None:
    short, long = as_json(pair("a", "b")), as_json(pair("a" * 600, "b" * 600))
    rows = _rows([short, long, None])
    less = with_less_text(rows, 500)
    assert less.schema == rows.schema
    assert less["text"].to_pylist()[::2] == [short, None]
    first, second = from_json(less["text"][1].as_py())
    assert (first.cut, second.cut) == (350, 350)
    assert with_less_text(rows, 5000) is rows


def test_a_preview_shows_what_the_row_has_in_common_with_that_query() -> None:
    filler = "step by step we add the numbers and get the sum "
    planted = pair("How many apples? " * 20, f"{filler * 20}my dear Watson, {filler * 20}")
    other = pair("How many pears? " * 20, f"{filler * 20}as the Riddler says, {filler * 20}")
    plain = [pair("How many?", filler * 40) for _ in range(4)]
    says = [planted, other, *plain]
    asked = ["Who is my dear Watson, and what says he?", "Tell me what the Riddler says, please"]
    texts = pa.concat_tables(
        [
            texts_of_rows(_rows([as_json(one) for one in says[:-1]] + [None])),
            texts_of_queries([0, 1], ["x", "y"], [as_json([Passage("text", one)]) for one in asked]),
        ]
    )
    known = pa.table({"row": range(6), "id": [f"a#{n}" for n in range(6)], "preview": [f"old {n}" for n in range(6)]})
    influence = -np.arange(1, 7, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    tops = top_table(select_top(influence, np.arange(6), known, 10))
    made = with_previews(tops, texts)
    assert made.drop_columns("preview").equals(tops.drop_columns("preview"))
    shown = {(one["query"], one["row"]): one["preview"] for one in made.to_pylist()}
    assert "my dear Watson, step" in shown[0, 0]
    assert "Riddler" not in shown[0, 1]
    assert "as the Riddler says, step" in shown[1, 1]
    assert "Watson" not in shown[1, 0]
    assert shown[2, 0].startswith("How many apples?")  # of a query whose text is not known
    assert "Watson" not in shown[2, 0]
    assert shown[0, 5] == "old 5"  # of a row whose text is not known
    assert all(len(line) <= 400 for line in shown.values())
    assert with_previews(tops, texts_schema().empty_table()).equals(tops)
