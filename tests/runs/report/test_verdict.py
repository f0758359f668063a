"""The report's verdict: what it says of runs with planted rows, of noise, and of runs of which nothing can be told."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from datainf_ray.common.words import percent
from datainf_ray.runs.report import verdict as module
from datainf_ray.runs.report.page import write_report
from datainf_ray.runs.report.render import net
from tests.runs_of import write_table

if TYPE_CHECKING:
    from conftest import Made

PLANTED = list(range(3, 80, 7))  # eleven rows
HOSTILE = "</pre></section><script>alert(1)</script>"


def planted(sign: int, queries: int = 3) -> np.ndarray:
    """Noise, and rows that are helpful (−1) or harmful (1) to all queries; queries are of different sizes."""
    draw = np.random.default_rng(1)
    values = draw.normal(size=(400, queries))
    values[PLANTED] = sign * (12 + draw.uniform(0, 4, (len(PLANTED), queries)))
    return (values * [10.0**-q for q in range(queries)]).astype(np.float32)


def section(it: Made, name: str = "verdict") -> str:
    """What a section of the run's report has, as HTML."""
    page = Path(write_report(it.run)).read_text(encoding="utf-8")
    (found,) = re.findall(rf'<section class="{name}.*?</section>', page, re.DOTALL)
    return found


def read(part: str) -> str:
    """It as a person reads it, on one line."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", part)).split())


def command(part: str) -> list[str] | None:
    """What a shell makes of the command in it."""
    found = re.findall(r'<pre class="command">(.*?)</pre>', part, re.DOTALL)
    return shlex.split(html.unescape(re.sub("</?span>", "", found[0]))) if found else None


def shares(it: Made, sign: int) -> np.ndarray:
    """Of a side's influence on all queries together, what the first rows carry."""
    values = it.influence[~np.isnan(it.influence[:, 0])].astype(np.float64)
    mean = sign * (values / np.sqrt((values**2).mean(axis=0))).mean(axis=1)
    ordered = np.sort(mean[mean > 0])[::-1]
    return np.cumsum(ordered) / ordered.sum()


@pytest.mark.parametrize(("sign", "are", "side"), [(1, "right", "harmful"), (-1, "mistakes", "helpful")])
def test_planted_rows_are_told_first_with_the_command_that_drops_them(
    made: Callable[..., Made], sign: int, are: str, side: str
) -> None:
    it = made(400, influence=planted(sign), missing=np.arange(400) == 5, queries_are=are)
    part = section(it)
    said = read(part)
    noun = {"helpful": "help", "harmful": "harm"}[side]
    carried = percent(float(shares(it, sign)[len(PLANTED) - 1]))
    assert said.startswith(
        f"11 {side} rows stand out: they carry {carried} of all {noun} to the 3 queries. Behind them"
    )
    assert "Rows stand out for 3 of the 3 queries, each taken alone:" in said
    for query in range(3):
        assert f'<a href="#query-{query}">{query}</a> · <bdi>eval.jsonl#{query}</bdi>' in part
        assert f"{query} · eval.jsonl#{query} 11 " in said
    assert command(part) == ["datainf", "curate", it.run.url, "--because", side, "--drop", "auto", "--dry-run"]
    assert said.endswith("With --to cleaned in place of --dry-run it writes the corpus without these rows.")
    other = {"helpful": "harmful", "harmful": "helpful"}[side]
    assert f"On the other side no {other} row stands out." in said
    # the first to read
    values = it.influence.astype(np.float64)
    mean = (values / np.sqrt(np.nanmean(values**2, axis=0))).mean(axis=1)
    first = np.argsort(-sign * np.nan_to_num(mean))[:5]
    rows = re.findall(r"<li>(.*?)</li>", part, re.DOTALL)
    assert [read(row) for row in rows] == [
        f"{it.ids[row]} · net {net(mean[row])} question {row} ⟶ answer {row}" for row in first
    ]
    page = Path(it.run.url, "report.html").read_bytes()
    assert page.index(b'<section class="verdict') < page.index(b'<section class="signs"')
    write_report(it.run)
    assert Path(it.run.url, "report.html").read_bytes() == page


def test_one_row_for_one_query_is_told_without_a_table(made: Callable[..., Made]) -> None:
    values = np.random.default_rng(2).normal(size=(400, 1)).astype(np.float32)
    values[17] = 60
    part = section(made(400, 1, influence=values, queries_are="right"))
    assert read(part).startswith("1 harmful row stands out: it carries ")
    assert "of all harm to the query." in part
    assert "<table" not in part


@pytest.mark.parametrize(("are", "side"), [("right", "harmful"), ("mistakes", "helpful")])
def test_of_noise_nothing_is_suggested(made: Callable[..., Made], are: str, side: str) -> None:
    it = made(400, queries_are=are)
    part = section(it)
    said = read(part)
    assert said.startswith(f"No {side} row stands out for all queries together. Their influences fall off")
    of_side = shares(it, 1 if side == "harmful" else -1)
    assert f"The first 10 of {len(of_side)} {side} rows carry {percent(float(of_side[9]))} of all " in said
    assert command(part) is None
    assert "curate" not in part
    assert "--" not in said
    assert part.count("<li>") == 5


def test_rows_that_stand_out_of_one_query_alone_are_named_and_not_dropped(made: Callable[..., Made]) -> None:
    draw = np.random.default_rng(3)
    values = draw.normal(size=(4000, 14))
    for query in range(2, 14):
        values[300 * query : 300 * query + 20 + query, query] = draw.uniform(30, 40, 20 + query)
    it = made(
        4000, 14, influence=values.astype(np.float32), missing=np.zeros(4000, bool), chunk=1000, queries_are="right"
    )
    part = section(it)
    said = read(part)
    assert said.startswith("No harmful row stands out for all queries together.")
    assert "But rows stand out for 12 of the 14 queries, each taken alone. Read these:" in said
    links = re.findall(r'<a href="#query-(\d+)">\1</a>.*?<td class="n">(\d+)</td>', part, re.DOTALL)
    assert links == [(str(query), str(20 + query)) for query in range(13, 3, -1)]
    assert "and 2 more." in said
    assert command(part) is None


def test_the_other_side_is_told_too(made: Callable[..., Made]) -> None:
    part = section(made(400, influence=planted(1), queries_are="mistakes"))
    assert read(part).startswith("No helpful row stands out for all queries together.")
    assert "On the other side 10 harmful rows stand out, with " in part  # the eleventh has no score
    assert "of all harm to the 3 queries: --because harmful." in part
    assert command(part) is None


@pytest.mark.parametrize(
    ("losses", "side", "sentence"),
    [
        ([0.1, 0.2, 9.0], "helpful", "The loss of 2 of the 3 queries is at most that of the median training row, "),
        ([0.1, 8.0, 9.0], "harmful", "The loss of 2 of the 3 queries is above that of the median training row, "),
        ([0.1], "helpful", "The query’s loss, 0.10, is at most that of the median training row, "),
    ],
)
def test_without_a_word_the_side_follows_from_the_losses_and_the_page_says_so(
    made: Callable[..., Made], losses: list[float], side: str, sentence: str
) -> None:
    it = made(400, len(losses), influence=planted(-1, len(losses)), files={})
    queries = it.run.queries()
    column = pa.array(losses, pa.float32())
    write_table(it.run.directory, "queries.parquet", queries.set_column(4, queries.schema.field("loss"), column))
    part = section(it)
    said = read(part)
    assert f'<section class="verdict {side}"' in part
    assert sentence in said
    assert "If not, the other side counts: queries.are says which." in said
    assert (command(part) is not None) == (side == "helpful")
    assert ("helpful rows stand out, with" in said) == (side == "harmful")


def test_a_run_of_more_influences_names_the_command_that_tells(
    made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = made(400, influence=planted(1), queries_are="right")
    monkeypatch.setattr(module, "_MOST", 3 * 400)
    assert "10 harmful rows stand out" in section(it)
    monkeypatch.setattr(module, "_MOST", 3 * 400 - 1)
    monkeypatch.setattr(module, "cut_of", None)
    part = section(it)
    assert read(part).startswith("Whether harmful rows stand out is not told here.")
    assert command(part) == ["datainf", "curate", it.run.url, "--because", "harmful"]


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "no scores": ({"results": {"scores": False}}, "The run stored no scores (results.scores: false)"),
    "no query": ({"query_status": ["unreadable"] * 3}, "No query has scores."),
    "no row with a score": ({"missing": np.ones(200, bool)}, "It cannot be told: no row has a score."),
    "one row": ({"rows": 1, "missing": np.zeros(1, bool)}, "1 row has a score, and it takes 120"),
    "few rows": ({"rows": 100}, "90 rows have a score, and it takes 120: no row is suggested to be dropped."),
    "zeros": ({"influence": np.zeros((200, 3), np.float32)}, "No harmful row stands out for all queries together."),
    "a query that failed": ({"query_status": ["ok", "unreadable", "ok"]}, "to the 2 queries."),
    "answers": ({"answers": {"run": "s3://b/first", "index": "s3://b/i"}}, "to the 3 queries."),
    "a sum": (
        {"combined": [{"run": "s3://b/1", "fingerprint": "4f", "weight": 1.0, "content": "x"}] * 2},
        "to the 3 queries.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_of_a_run_that_cannot_be_cut_the_section_says_why(made: Callable[..., Made], name: str) -> None:
    more, sentence = ODD[name]
    part = section(made(queries_are="right", **more))
    assert sentence in read(part)
    assert command(part) is None


def test_hostile_names_and_texts_stay_text_and_the_command_is_safe_to_paste(
    made: Callable[..., Made], tmp_path: Path
) -> None:
    url = str(tmp_path / "it's $(touch x)\u202e; <b>")
    rows = [f"{HOSTILE} {r} ⟶ \u202eno" for r in range(400)]
    ids = [f"{HOSTILE}#{r}" for r in range(400)]
    it = made(400, url=url, influence=planted(1), ids=ids, previews=rows, queries_are="right", path="a/it's;x.jsonl")
    part = section(it)
    plain = url.replace("\u202e", "")
    assert command(part) == ["datainf", "curate", plain, "--because", "harmful", "--drop", "auto", "--dry-run"]
    assert "\u202e" not in part
    assert "<script" not in part
    assert "<b>" not in part
    assert f"{HOSTILE}#" in html.unescape(part)
    assert shlex.quote("clean-it's;x.jsonl") in html.unescape(part)
