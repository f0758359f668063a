"""The report's section of rows token by token: other people's text, and no more of it than there is room for."""

from __future__ import annotations

import re
from typing import Any

from datainf_ray.runs.report.by_token import section


def line(**other: Any) -> dict[str, Any]:
    return {
        "query": 0, "direction": "harmful", "rank": 1, "row": 7, "id": "<i>\u202eid", "status": "ok", "detail": "",
        "influence": 3.0, "tokens": ["<script>", " b\u202e"], "shares": [None, 3.0],
    } | other  # fmt: skip


def test_rows_are_escaped_and_named_and_the_first_alone() -> None:
    lines = [
        line(direction="query", rank=None),
        *(line(rank=k) for k in range(1, 9)),
        line(status="failed", shares=None),
    ]
    html = str(section([*lines[:-1], lines[-1] | {"rank": 2, "detail": "<u>why"}]))
    assert html.count(">the query itself · <") == 1
    assert [int(k) for k in re.findall(r"harmful, rank (\d)", html)] == [1, 2, 3, 4, 5, 2]
    assert html.count("&lt;script&gt;") == 6
    assert "&lt;u&gt;why" in html
    assert "\u202e" not in html
    tags = {tag.split()[0] for tag in re.findall(r"<(/?[^>]*)>", html)}
    assert tags == {"details", "/details", "summary", "/summary", "div", "/div", "bdi", "/bdi", "span", "/span"}


def test_there_is_no_section_without_rows_and_a_long_one_ends() -> None:
    assert str(section([])) == ""
    long = [line(rank=k, tokens=["x" * 1000, "y"], shares=[1.0, 2.0]) for k in (1, 2, 3)]
    html = str(section(long, room=3000))
    assert html.count("harmful, rank") == 2
    assert html.endswith('<p class="none">More are in tokens.parquet.</p></details>')
