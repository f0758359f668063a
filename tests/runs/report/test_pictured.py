"""Pictures on the page and in a cell: which of them there is room for, and what else the page may load for them."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

import datainf_ray
from datainf_ray.corpus.passages import Passage
from datainf_ray.corpus.thumbnails import thumbnail
from datainf_ray.runs.checksums import stored
from datainf_ray.runs.pictures import PICTURES, address, pictures_of
from datainf_ray.runs.report.listed import Listed, said
from datainf_ray.runs.report.page import _BYTES, write_report
from datainf_ray.runs.report.pictured import pictured
from datainf_ray.runs.results import Run, open_run
from datainf_ray.runs.texts import QUERY
from tests.browser import browsing
from tests.runs_of import write_table

if TYPE_CHECKING:
    from conftest import Made

SHOWN = re.compile(r'<img[^>]*src="([^"]*)"[^>]*>')


def seen(number: int, size: int = 128) -> bytes:
    return thumbnail(np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8))


def with_pictures(run: Run, size: int = 128, but: int = -1, odd: bytes | None = None) -> Run:
    """The run with a picture of each text that it keeps; training row `but` has none, or `odd`."""
    texts = run.texts()
    numbers = [(1000 + line["number"]) if line["kind"] == QUERY else line["number"] for line in texts.to_pylist()]
    each = [odd if number == but else seen(number, size) for number in numbers]
    write_table(run.directory, PICTURES, pictures_of(texts, pa.chunked_array([pa.array(each, pa.binary())])))
    document = run.record.model_dump(mode="json")
    document["files"][PICTURES] = stored(run.directory.read(PICTURES)).model_dump()
    run.directory.write_json("run.json", document)
    return open_run(run.url)


def policy(page: str) -> str:
    return page[: page.index("<title>")].partition("Content-Security-Policy")[2]


def test_each_row_and_query_has_its_own(made: Callable[..., Made]) -> None:
    run = made(queries=2, rows=60, results={"top_k": 12}).run
    run = with_pictures(run, 16, but=run.top(0, 1)["row"][0].as_py())
    page = Path(write_report(run)).read_text()
    assert "img-src data:;" in policy(page)
    parts = re.findall(r'<tr[^>]* data-row="(\d+)".*?</tr>', page, re.S)
    rows = re.findall(r'<tr[^>]* data-row="\d+".*?</tr>', page, re.S)
    bare = 0
    for number, row in zip(map(int, parts), rows, strict=True):
        if number == run.top(0, 1)["row"][0].as_py():
            assert "<img" not in row
            bare += 1
        else:
            assert SHOWN.findall(row) == [address(seen(number, 16))]
    assert bare >= 1
    for query in (0, 1):
        summary = page[page.index(f'id="query-{query}"') :].partition("</summary>")[0]
        assert SHOWN.findall(summary) == [address(seen(1000 + query, 16))]
    assert all(one.startswith("data:image/jpeg;base64,") for one in SHOWN.findall(page))


def test_without_pictures_the_page_may_load_none(made: Callable[..., Made]) -> None:
    page = Path(write_report(made().run)).read_text()
    assert "img-src" not in page
    assert "<img" not in page


def test_a_table_that_others_wrote_puts_nothing_on_the_page(made: Callable[..., Made]) -> None:
    run = made(queries=1).run
    best = run.top(0, 1)["row"][0].as_py()
    run = with_pictures(run, 16, but=best, odd=b'"><script>alert(1)</script>')
    page, cell = Path(write_report(run)).read_text(), run._repr_html_()
    for text in (page, cell):
        assert base64.b64encode(b'"><script>alert(1)').decode()[:16] not in text
        assert SHOWN.findall(text)


def test_queries_and_first_rows_come_before_the_others(made: Callable[..., Made]) -> None:
    run = made(queries=3, rows=200, results={"top_k": 40}).run
    run = with_pictures(run, 16)
    tops, table = run.tops(), run.pictures()
    one = len(address(seen(0, 16))) + 700
    lines = tops.to_pylist()
    first = {(line["query"], line["row"]) for line in lines if line["rank"] <= 10}
    for count in (0, 1, 2, 30, 61, 64, 90, 160, 1000):
        made_of = pictured(table, [0, 1, 2], tops, 10, count * one)
        asked = [address for some in made_of.queries.values() for address in some]
        shown = [*made_of.rows.values(), *made_of.over_all.values(), *asked]
        assert sum(map(len, shown)) <= count * one
        assert bool(made_of) == (count > 0)
        if count < len(first):  # no room for all of them: none is of a row behind
            assert made_of.rows.keys() <= first
        if count == 2:
            assert (made_of.queries.keys(), made_of.rows) == ({0, 1}, {})
        if made_of.rows.keys() - first:
            assert made_of.rows.keys() >= first
            assert made_of.queries.keys() == {0, 1, 2}
    assert made_of.rows.keys() == {(line["query"], line["row"]) for line in lines}


@pytest.mark.slow
def test_however_many_there_are_the_page_stays_below_its_size(made: Callable[..., Made]) -> None:
    it = made(rows=300, queries=25, previews=['"<&' * 2_000 + " ⟶ " + '"' * 5_000] * 300, results={"top_k": 150})
    page = Path(write_report(with_pictures(it.run))).read_text()
    assert len(page.encode()) <= _BYTES
    assert 100 < len(SHOWN.findall(page)) < 20 * 300
    for query in range(20):
        assert "<img" in page[page.index(f'id="query-{query}"') :].partition("</summary>")[0]


def test_a_cell_shows_them_beside_the_rows(made: Callable[..., Made]) -> None:
    run = with_pictures(made(queries=2).run, 16)
    wanted = [1000, *(row for harmful in (False, True) for row in run.top(0, 5, harmful)["row"].to_pylist())]
    assert SHOWN.findall(run._repr_html_()) == [address(seen(number, 16)) for number in wanted]


@pytest.mark.parametrize(
    ("path", "to"),
    [("rows/metadata.jsonl", "cleaned"), ("rows/t.parquet", "cleaned"), ("rows", "cleaned")],
)
def test_the_page_names_a_place_that_the_pictures_fit_into(made: Callable[..., Made], path: str, to: str) -> None:
    run = with_pictures(made(path=path).run, 16)
    assert f'data-to=" --to {to}"' in Path(write_report(run)).read_text()


def test_who_reads_a_run_needs_no_pillow(made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    url = with_pictures(made(queries=2).run, 16).url
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError):
        seen(0)
    run = datainf_ray.open_run(url)
    assert len(SHOWN.findall(run._repr_html_())) == 11
    assert len(run.pictures()) == len(run.texts())


def test_a_gallery_shows_any_query_and_more_rows(made: Callable[..., Made]) -> None:
    url = with_pictures(made(queries=2).run, 16).url
    run = datainf_ray.open_run(url)
    wanted = [1001, *(row for harmful in (False, True) for row in run.top(1, 12, harmful)["row"].to_pylist())]
    shown = run.gallery("eval.jsonl#1", k=12)._repr_html_()
    assert SHOWN.findall(shown) == [address(seen(number, 16)) for number in wanted]
    assert "Most helpful" in shown
    assert len(wanted) == 25


def test_a_browser_shows_them_and_asks_nobody(made: Callable[..., Made]) -> None:
    run = with_pictures(made(queries=2, rows=60, results={"top_k": 12}).run)
    with browsing(Path(write_report(run))) as page:
        for width in (1280, 390):
            page.looks(width, "light")
            page.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
            drawn = page.run("Array.from(document.images).map(i => [i.complete, i.naturalWidth, i.clientWidth])")
            assert len(drawn) > 40
            assert all(complete and wide == 128 and 60 < shown <= 128 for complete, wide, shown in drawn)
            assert page.run("document.documentElement.scrollWidth") <= width
        asked = [one["request"]["url"].partition(":")[0] for one in page.told("Network.requestWillBeSent")]
        assert (set(asked), asked.count("file")) == ({"file", "data"}, 1)
        assert page.told("Log.entryAdded") == []
        foreign = "const one = document.createElement('img'); one.src = 'http://127.0.0.1:9/x.png'"
        page.run(f"new Promise(done => {{ {foreign}; one.onerror = done; document.body.append(one) }}).then(() => 1)")
        page.call("Runtime.evaluate", expression="0")
        assert any("Content Security Policy" in one["entry"]["text"] for one in page.told("Log.entryAdded"))


def test_files_of_one_size_have_nothing_in_common() -> None:
    """What is marked in a caption is what the query's caption has too, and not that both are files of 1.0 kB."""
    query = [Passage("prompt", "a green circle"), Passage("image", "a.png, 128 × 128 pixels, 1.0 kB", answer=True)]
    row = [Passage("prompt", "some green circle"), Passage("image", "b.png, 128 × 128 pixels, 1.0 kB", answer=True)]
    others = {k: [Passage("prompt", "some red square"), Passage("image", f"{k}.png, {k} kB")] for k in range(1, 40)}
    listed = Listed({}, {0: row, **others}, {0: query})
    html = str(said(row, 10_000, listed.phrases(0), listed.rarity))
    assert re.findall("<mark>(.*?)</mark>", html) == ["green circle"]
