"""The report's section on influence by a column: which values, in which order, and that they stay text."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from datainf_ray.runs.by import BY_FILE, by_schema
from datainf_ray.runs.report.page import write_report
from tests.runs_of import write_table

if TYPE_CHECKING:
    from conftest import Made

HOSTILE = "</td></table><script>alert(1)</script>\x1b[31m\u202ered"


def section(it: Made) -> str:
    page = Path(write_report(it.run)).read_text(encoding="utf-8")
    found = re.findall(r'<section class="by".*?</section>', page, re.DOTALL)
    return "".join(found)


def tables(part: str) -> list[list[list[str]]]:
    """The cells of the tables in it, as a person reads them."""
    return [
        [
            [html.unescape(re.sub("<[^>]*>", "", cell)).strip() for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]
            for row in re.findall(r"<tr>(<td.*?)</tr>", table, re.DOTALL)
        ]
        for table in re.findall(r"<tbody>(.*?)</tbody>", part, re.DOTALL)
    ]


def one(query: int | None, value: str | None, total: float, **more: Any) -> dict[str, Any]:
    """A row of by.parquet."""
    name = None if query is None else f"eval.jsonl#{query}"
    known = {"column": "source", "query": query, "id": name, "value": value, "rows": 4, "scored": 4, "sum": total}
    mean = total / 4
    return {**known, "mean": mean, "low": mean - 0.5, "high": mean + 0.5, "share": 0.25, **more}


def written(it: Made, rows: list[dict[str, Any]]) -> Made:
    """The run with such a table, in its order: of each query the most harmful first."""
    write_table(it.run.directory, BY_FILE, pa.Table.from_pylist(rows, by_schema()))
    return it


def test_the_values_with_the_largest_sums_come_first_for_all_queries_and_for_each(made: Callable[..., Made]) -> None:
    rows = [one(None, "web", 8), one(None, None, 1), one(None, HOSTILE, -12.5, rows=1234, scored=1200)]
    rows += [one(query, f"v{k}", 30.0 - k) for query in (0, 1) for k in range(60)]
    rows += [one(2, "lone", -3e-5, rows=1, scored=1, mean=-3e-5, low=None, high=None, share=1.0)]
    rows += [one(2, "none", 0.0, rows=2, scored=0, mean=None, low=None, high=None, share=0.0)]
    part = section(written(made(results={"by": "source"}), rows))
    together, first, second, third = tables(part)
    assert together == [
        ["</td></table><script>alert(1)</script>[31mred", "1,200 of 1,234", "−1.25e+01", "25 %", "−3.12e+00 ± 5.0e-01"],
        ["web", "4", "+8.00e+00", "25 %", "+2.00e+00 ± 5.0e-01"],
        ["(null)", "4", "+1.00e+00", "25 %", "+2.50e-01 ± 5.0e-01"],
    ]
    # 30, ±29, ±28 and so on: of equals the harmful one is first
    pairs = [name for k in range(1, 10) for name in (f"v{k}", f"v{60 - k}")]
    assert [row[0] for row in first] == ["v0", *pairs, "v10"]
    assert first == second
    assert part.count("and 40 more, in <code>by.parquet</code>.") == 2
    assert third == [
        ["lone", "1", "−3.00e-05", "100 %", "−3.00e-05"], ["none", "0 of 2", "+0.00e+00", "0 %", "–"]
    ]  # fmt: skip
    widths = re.findall(r"width: ([\d.]+)%", part)
    assert widths[:3] == ["100.0", "64.0", "8.0"]
    assert re.findall(r'class="n (h\w+)">', part)[:3] == ["helpful", "harmful", "harmful"]
    assert "<script" not in part
    assert "\x1b" not in part
    assert "\u202e" not in part
    assert "All queries together" in part
    assert [html.unescape(name) for name in re.findall(r"<summary>.*?<bdi>(.*?)</bdi>", part)] == [
        f"eval.jsonl#{query}" for query in range(3)
    ]


def test_of_one_query_there_is_one_table_and_no_together(made: Callable[..., Made]) -> None:
    rows = [one(0, "a", 2), one(0, "b\n" * 500, 1)]
    part = section(written(made(queries=1, results={"by": "source"}), rows))
    assert [[row[0] for row in table] for table in tables(part)] == [["a", "b " * 49 + "b…"]]
    assert "All queries together" not in part
    assert '<details class="page" open>' in part


def test_queries_that_are_not_on_the_page_have_no_table(made: Callable[..., Made]) -> None:
    rows = [one(query, "a", 2) for query in (None, *range(30))]
    part = section(written(made(queries=30, results={"by": "source"}), rows))
    assert len(tables(part)) == 1 + 20


def test_the_columns_name_is_hostile_too(made: Callable[..., Made]) -> None:
    part = section(written(made(results={"by": HOSTILE}), [one(None, "a", 1)]))
    assert (
        html.unescape(re.findall("<h2>By <bdi>(.*?)</bdi>", part)[0]) == "</td></table><script>alert(1)</script>[31mred"
    )
    assert "<script" not in part


@pytest.mark.parametrize("content", [b"PAR1 no table PAR1", b""])
def test_a_table_that_is_damaged_is_said_and_the_page_is_written(made: Callable[..., Made], content: bytes) -> None:
    it = made(results={"by": "source"})
    it.run.directory.write(BY_FILE, content)
    part = section(it)
    assert BY_FILE in part
    assert tables(part) == []
    assert '<p class="none">' in part


def test_a_table_that_was_asked_for_and_is_not_there_is_said(made: Callable[..., Made]) -> None:
    assert "There is no by.parquet: " in section(made(results={"by": "source"}))


def test_nothing_is_said_where_none_was_asked_for(made: Callable[..., Made]) -> None:
    assert section(written(made(), [one(None, "a", 1)])) == ""
