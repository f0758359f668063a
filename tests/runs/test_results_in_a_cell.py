"""What a notebook's cell shows of a run."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Made


def test_a_notebook_shows_whole_previews_as_text(made: Callable[..., Made]) -> None:
    ends = "<script>alert(1)</script> " + "word " * 80 + "& the <b>end</b>"
    page = made(previews=[f"{row} {ends}" for row in range(200)], query_previews=[ends] * 3).run._repr_html_()
    assert page.count(html.escape(ends)) == 11  # of the query, and of five rows each way
    assert "<script>" not in page


def test_a_notebook_shows_both_directions_and_escapes_the_rows(made: Callable[..., Made]) -> None:
    run = made(previews=["<script>alert(1)</script>"] * 200, query_previews=["<img src=x>"] * 3).run
    html = run._repr_html_()
    assert "Most helpful" in html
    assert "Most harmful" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<script" not in html
    assert "<img" not in html
    assert run.top(0, 1)["id"][0].as_py() in html


def test_a_notebook_takes_the_first_query_that_could_be_used(made: Callable[..., Made]) -> None:
    assert (
        "Query 1,"
        in made(query_status=["unreadable", "ok", "ok"], results={"top_k": 2, "scores": False}).run._repr_html_()
    )
