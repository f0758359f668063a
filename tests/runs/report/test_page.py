from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from datainf_ray.common.words import byte_size, duration, short
from datainf_ray.runs import schemas
from datainf_ray.runs.report import page as report
from datainf_ray.runs.report.page import write_report
from datainf_ray.runs.report.render import count, signed, times

if TYPE_CHECKING:
    from conftest import Made

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=http://example.org/x onerror=alert(1)>",
    "</td></table></main><iframe>",
    "{{ 7 * 7 }}{% endfor %}",
    "\u202egnihtyreve sesrever",
    "A" * 300,
    "🔥 \"quoted\" 'and' &amp; done",
]


SCRIPT = Path(report.__file__).parent / "templates" / "report.js"


class _Page(HTMLParser):
    """The tags, attributes and text of a page; fails on tags that do not match."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _page(it: Made) -> tuple[str, _Page]:
    url = write_report(it.run)
    assert url == it.run.url + "/report.html"
    page = Path(url).read_text(encoding="utf-8")
    return page, _Page(page)


def test_the_report_answers_which_rows_in_which_direction_and_at_what_cost(made: Callable[..., Made]) -> None:
    it = made()
    _, page = _page(it)
    for query in range(3):
        for harmful in (False, True):
            for row in it.run.top(query, 10, harmful).to_pylist():
                assert row["preview"] in page.text
                assert row["id"] in page.text
                assert signed(row["influence"]) in page.text
        assert f"asked {query} ⟶ said {query}" in page.text
    assert "training more on this row would raise the query’s loss" in page.text
    assert "training more on this row would lower the query’s loss" in page.text
    assert "10 min 20 s" in page.text
    assert "no_target_tokens" in page.text
    assert "rows scored of 200" in page.text
    assert "s3://b/adapter" in page.text
    assert "top_k: 20" in page.text
    assert "torch 2.9.0" in page.text
    assert page.tags.count("svg") == 2 * 3 + 1  # two for each query, and the layers


def test_what_rows_say_never_becomes_markup(made: Callable[..., Made]) -> None:
    rows = [HOSTILE[r % len(HOSTILE)] for r in range(200)]
    it = made(previews=rows, query_previews=HOSTILE[:3], path=["s3://b/<script>x</script>.parquet"])
    source, page = _page(it)
    for text in HOSTILE:
        assert text.removeprefix("\u202e") in page.text
    assert "\u202e" not in source
    assert not {"img", "iframe", "link", "object"} & set(page.tags)
    script = SCRIPT.read_text()
    assert re.findall("<script>(.*?)</script>", source, re.DOTALL) == [script]
    assert page.tags.count("script") == 1
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in source
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "action")]
    # links inside the drawings only; the content policy forbids everything else besides
    assert all((value or "").startswith("#") for name, value in page.attributes if name.endswith("href"))
    assert "default-src 'none'" in source
    assert "49" not in re.findall(r"<div class=\"text\"[^>]*>(.*?)</div>", source)


def test_the_same_run_gives_the_same_bytes(made: Callable[..., Made]) -> None:
    it = made()
    assert _page(it)[0] == _page(it)[0]


def test_more_queries_than_are_shown_and_those_that_failed_are_said(made: Callable[..., Made]) -> None:
    _, page = _page(made(queries=30, query_status=["unreadable"] + ["ok"] * 29))
    assert "The first 20 of 29 queries" in page.text
    assert "Query 0 ·" not in page.text
    assert "Query 20 ·" in page.text
    assert "Query 21 ·" not in page.text
    assert "Queries without scores" in page.text


def test_without_scores_there_is_no_distribution(made: Callable[..., Made]) -> None:
    it = made(results={"scores": False})
    _, page = _page(it)
    assert page.tags.count("svg") == 1  # the layers
    assert "this run stored no scores" in page.text
    assert signed(it.run.top(0, 1)["influence"][0].as_py()) in page.text


@pytest.mark.parametrize("influence", [np.zeros((30, 1)), np.full((30, 1), np.nan), np.full((30, 1), 2.0)])
def test_influences_without_any_spread_are_no_error(made: Callable[..., Made], influence: np.ndarray) -> None:
    _, page = _page(made(rows=30, queries=1, influence=influence.astype(np.float32)))
    assert "No row." in page.text


def test_a_multiple_is_of_the_median_size_over_all_scored_rows(made: Callable[..., Made]) -> None:
    influence = np.where(np.arange(40) % 2, 1e-3, -1e-3).astype(np.float32)[:, None]
    influence[7] = 5e-2
    _, page = _page(made(rows=40, queries=1, influence=influence))
    assert "50×" in page.text
    assert "1.0×" in page.text


def test_rows_that_recur_across_queries_are_counted(made: Callable[..., Made]) -> None:
    influence = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    influence[17] = [50, 60, -70]
    source, page = _page(made(influence=influence))
    across = source[source.index("Across all queries") : source.index("Query by query")]
    assert across.index("question 17 ") < across.index("Most helpful")
    assert re.search(r"<b>2</b></td>\s*<td><div class=\"id\"><bdi>sft-00.parquet#17</bdi>", across)
    assert "Across all queries" in page.text


def test_a_large_run_is_sampled_evenly_and_says_so(made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    it = made(rows=200, queries=3, chunk=20)  # ten parts
    monkeypatch.setattr(report, "_SAMPLE", 200)  # a third of the numbers that there are
    monkeypatch.setattr(report, "_PLACES", 2)
    sample = report._sample(it.run, [0, 2])
    assert sample.share == pytest.approx(0.4)
    expected = np.concatenate([it.influence[s : s + 20, [0, 2]] for s in (0, 40, 100, 140)])
    np.testing.assert_array_equal(sample.values, expected[~np.isnan(expected[:, 0])])
    _, page = _page(it)
    assert "a sample of 40 % of the rows" in page.text


def test_a_sample_of_a_large_part_is_of_places_all_over_it(
    made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas, "_GROUP_BYTES", 20 * (64 + 4 * 3))  # 20 rows
    monkeypatch.setattr(report, "_PLACES", 2)
    it = made(rows=800, queries=3, chunk=200)  # four parts of ten row groups
    monkeypatch.setattr(report, "_SAMPLE", 240)  # a tenth
    sample = report._sample(it.run, [1])
    assert sample.share == pytest.approx(0.1)
    expected = np.concatenate([it.influence[s : s + 20, [1]] for s in (0, 100, 400, 500)])
    np.testing.assert_array_equal(sample.values, expected[~np.isnan(expected[:, 0])])


def test_the_report_says_how_the_work_was_done_and_how_exact_it_is(made: Callable[..., Made]) -> None:
    sweep = {"examples": 200, "tokens": 2400, "seconds": 3.0, "workers": 2}
    said = {
        "sizes": {
            "chunk_rows": 1024,
            "batch_tokens": 16384,
            "groups": [[0, 2], [2, 3]],
            "gradients": "keep",
            "why": "gradients are kept: they take 1.2 GB of the 4.0 GB that the object store can spare.",
        },
        "curvature": {"rows": 40, "bound": 3.12e-9, "exact_blocks": 1, "sampling_error": 0.0231},
        "index": {
            "url": "s3://b/<i>index",
            "projection": 64,
            "dtype": "float16",
            "bytes": 3_400_000_000,
            "correlation": 0.99871,
            "correlation_rows": 512,
        },
        "sweeps": [
            {**sweep, "name": "curvature", "source": "backward"},
            {**sweep, "name": "scores", "source": "object-store", "recomputed": 3},
        ],
    }
    _, page = _page(made(method={"curvature_rows": 40}, **said, answers={"run": "s3://b/first", "index": "s3://b/i"}))
    for sentence in (
        "Chunks of 1,024 rows in batches of at most 16,384 tokens, padding included; the queries in 2 groups. ",
        "Gradients are kept: they take 1.2 GB of the 4.0 GB that the object store can spare.",
        "The kept gradients of 3 chunks were lost and had to be computed again.",
        "curvature from a sample of 40 rows",
        "a random sample of 40 rows; its two halves suggest a relative error of 2.3 % in the inverse-Hessian products.",
        "that adds a relative error of at most 3.1e-09.",
        "For 1 block interpolating was not exact enough",
        "at s3://b/<i>index: 3.4 GB of float16, projected to 64 per side of a block.",
        "correlate 0.9987 with those of this report, over 512 rows.",
        "object-store",
        "Answered from the gradient index of s3://b/first: the corpus was not gone through again.",
    ):
        assert sentence in page.text


def test_the_report_says_nothing_of_what_was_not_done(made: Callable[..., Made]) -> None:
    assert 'class="remark"' not in _page(made())[0]  # an older run
    said = {
        "sizes": {"chunk_rows": 64, "batch_tokens": 8192, "groups": [[0, 3]], "gradients": "recompute", "why": ""},
        "curvature": {"rows": 200, "bound": 0.0, "exact_blocks": 0, "error": None},
        "index": {"url": "x", "projection": None, "dtype": "float32", "bytes": 10, "correlation": None},
    }
    source, page = _page(made(**said))
    assert re.findall(r'<p class="remark">(.*?)</p>', source) == [
        "Chunks of 64 rows in batches of at most 8,192 tokens, padding included. Every sweep computed its gradients.",
        "A gradient index for later queries is at x: 10 bytes of float32.",
    ]
    assert "sample" not in page.text


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            {"left_out": ["b<1>"]},
            "1 of 24 blocks is left out: its gradient is zero but for rounding (b<1>).",
        ),
        (
            {"left_out": [f"b{k}" for k in range(5)]},
            "5 of 24 blocks are left out: their gradients are zero but for rounding (b0, b1, b2 and 2 more).",
        ),
        (
            {"dtype": "bfloat16"},
            "The base computes in bfloat16: against float32 that moved influences by 3 to 8 % in real models, and "
            "their order hardly (rank correlation 0.99).",
        ),
        (
            {"dtype": "float16"},
            "The base computes in float16: against float32 that moved influences by 0.5 % in real models, and their "
            "order hardly (rank correlation 1.00).",
        ),
        ({"dtype": "float32"}, None),
    ],
)
def test_the_report_tells_what_was_left_out_and_of_half_precision(
    made: Callable[..., Made], said: dict[str, Any], sentence: str | None
) -> None:
    remarks = re.findall(r'<p class="remark">(.*?)</p>', _page(made(**said))[0])
    assert [html.unescape(remark) for remark in remarks] == ([] if sentence is None else [sentence])


@pytest.mark.cluster
def test_a_report_is_written_into_a_bucket(made: Callable[..., Made], bucket: str) -> None:
    it = made(url=f"{bucket}/a")
    assert write_report(it.run) == f"{bucket}/a/report.html"
    assert it.run.directory.read("report.html").startswith(b"<!doctype html>")


def test_figures_are_written_for_people() -> None:
    assert [count(v) for v in (0, 1234567, None)] == ["0", "1,234,567", "–"]
    assert [signed(v) for v in (-3.214e-5, 0.5, None)] == ["−3.21e-05", "+5.00e-01", "–"]
    assert [short(v) for v in (0.1, 1234.5, 3.21e-7, None, math.nan)] == ["0.1", "1,234", "3.21e-07", "–", "–"]
    assert [byte_size(v) for v in (0, 999, 64e6, 3.456e9, 1e13, None)] == [
        "0 bytes",
        "999 bytes",
        "64.0 MB",
        "3.5 GB",
        "10.0 TB",
        "–",
    ]
    assert [times(v) for v in (1.04, 9.96, 120.4)] == ["1.0×", "10.0×", "120×"]
    assert [duration(v) for v in (4.21, 59.99, 200, 7500, None)] == [
        "4.2 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
        "–",
    ]
