"""The report in a real Chromium: how it fits, what its script does, and that it asks nobody for anything."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from datainf_ray.runs.by import BY_FILE, by_schema
from datainf_ray.runs.report.page import write_report
from tests.browser import Page, browsing
from tests.runs.conftest import make_run
from tests.runs.report.test_by_column import one
from tests.runs_of import write_table

HOSTILE = "<img src=http://example.org/x onerror=alert(1)><script>alert(2)</script> 'quoted' \"& more\""
FILLER = "we add the apples and multiply by the number of boxes "
NAMES = {3: "it's $(touch x)\x1b[201~", 5: "a\nb"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The report of a run of hostile and of long rows; row 17 was planted."""
    rows = [f"how many {r} ⟶ {FILLER * (r % 30)} and {r} in all" for r in range(400)]
    rows[3], rows[5] = f"{HOSTILE} ⟶ {HOSTILE * 20}", f"x ⟶ {'W' * 3000}"
    rows[17] = f"how many? ⟶ {FILLER * 10} I remain, dear Captain Nemo, yours. {FILLER * 10}"
    influence = (np.random.default_rng(0).standard_t(3, size=(400, 3)) * 5e-5).astype(np.float32)
    influence[[3, 5, 17], 0] = -0.004, -0.0041, -0.005
    influence[17, 1] = 0.005
    influence[100:120, 2] = -0.01
    ids = [NAMES.get(r, f"sft.jsonl#{r}") for r in range(400)]
    url = str(tmp_path_factory.mktemp("report") / "it's a run")
    asked = ["who are you to me, dear Captain Nemo? ⟶ yours", HOSTILE, "w" * 400]
    made = make_run(
        url, 400, 3, previews=rows, query_previews=asked, influence=influence, missing=np.arange(400) > 390, ids=ids,
        results={"top_k": 25, "by": HOSTILE}, path="data/sft.jsonl", queries_are="mistakes",
    )  # fmt: skip
    sums = [one(query, value, -12.5) for query in (None, 0, 1, 2) for value in (HOSTILE, "w" * 90, None)]
    write_table(made.run.directory, BY_FILE, pa.Table.from_pylist(sums, by_schema()))
    write_report(made.run)
    with browsing(Path(url) / "report.html") as page:
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window_or_cut_in_a_drawing(page: Page, width: int, scheme: str) -> None:
    page.looks(width, scheme)
    page.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.run("document.documentElement.scrollWidth") <= width
    cut = page.run("""Array.from(document.querySelectorAll('figure svg')).flatMap(svg => {
        const all = svg.getBoundingClientRect()
        return Array.from(svg.querySelectorAll('text')).filter(text => {
            const box = text.getBoundingClientRect()
            return box.left < all.left - 1 || box.right > all.right + 1 || box.bottom > all.bottom + 1
        }).map(text => text.textContent)
    })""")
    assert cut == []
    heights = page.run(
        "Array.from(document.querySelectorAll('figure svg text')).map(t => t.getBoundingClientRect().height)"
    )
    assert len(heights) > 30
    assert min(heights) > 8  # pixels: what is written can be read
    paper, ink = (
        page.run(
            f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b)"
        )
        for name in ("backgroundColor", "color")
    )
    assert (paper > 600 and ink < 150) if scheme == "light" else (paper < 150 and ink > 600)


def test_the_page_asks_for_nothing_and_runs_nothing_of_the_rows(page: Page) -> None:
    asked = [one["request"]["url"] for one in page.told("Network.requestWillBeSent")]
    assert len(asked) == 1
    assert asked[0].endswith("/report.html")
    assert page.told("Page.javascriptDialogOpening", "Runtime.exceptionThrown", "Log.entryAdded") == []
    # a script that is not ours would be refused
    foreign = "const one = document.createElement('script'); one.textContent = 'window.bad = 1'"
    page.run(f"{{ {foreign}; document.body.append(one) }}")
    assert page.run("window.bad === undefined")
    page.call("Runtime.evaluate", expression="0")
    assert any("Content Security Policy" in one["entry"]["text"] for one in page.told("Log.entryAdded"))


@pytest.mark.parametrize("width", [1280, 390])
def test_the_verdict_is_seen_first_and_leads_to_what_it_names(page: Page, width: int) -> None:
    page.looks(width, "light")
    page.run("scrollTo(0, 0)")
    assert page.run("document.querySelector('#verdict h2').getBoundingClientRect().bottom") < 400
    assert page.run("document.querySelector('#verdict h2').checkVisibility()")
    page.run("document.querySelector('#verdict a').click()")
    assert page.run("location.hash") == "#query-2"
    assert abs(page.run("document.querySelector('#query-2').getBoundingClientRect().top")) < 100
    # what is there of each value can be read without moving the table
    hidden = """Array.from(document.querySelectorAll('#by details')).map(one => { one.open = true }) &&
        Array.from(document.querySelectorAll('#by .scroll')).map(one => one.scrollWidth - one.clientWidth)"""
    assert page.run(hidden) == [0] * 4
    for wide in page.run(
        "Array.from(document.querySelectorAll('#by td, #by th')).map(c => c.scrollWidth - c.clientWidth)"
    ):
        assert wide <= 0


def _shown(page: Page) -> list[str]:
    return page.run(
        "Array.from(document.querySelectorAll('tr[data-row]')).filter(r => r.checkVisibility()).map(r => r.dataset.row)"
    )


def test_rows_unfold_are_found_ticked_and_copied(page: Page) -> None:
    page.looks(1280, "light")
    page.run("document.querySelectorAll('details').forEach(one => { one.open = one.matches('.query') })")
    before = _shown(page)
    assert len(before) == 3 * 2 * 10
    first = "document.querySelector('tr[data-row=\"17\"] details.full')"
    assert page.run(f"{first}.querySelector('dl').checkVisibility()") is False
    page.run(f"{first}.querySelector('summary').click()")
    assert page.run(f"{first}.querySelector('dl').checkVisibility()")
    marks = page.run(f"Array.from({first}.querySelectorAll('dl mark')).map(mark => mark.textContent)")
    assert marks == ["dear Captain Nemo, yours"]
    assert page.run(f"{first}.querySelector('dl').textContent.length") > 1000

    def find(words: str, query: str = "") -> list[str]:
        page.run(f"words.value = {words!r}; words.dispatchEvent(new Event('input'))")
        page.run(f"query.value = {query!r}; query.dispatchEvent(new Event('change'))")
        return _shown(page)

    assert find("captain  NEMO") == ["17", "17"]  # of two queries
    assert find("captain nemo", "1") == ["17"]
    assert find("no such words") == []
    assert set(find("", "2")) <= set(before)
    # rows behind the first page are found, too
    last = "Array.from(document.querySelectorAll('.page tr[data-row]')).pop()"
    row = page.run(f"{last}.dataset.row")
    assert row in find(page.run(f"{last}.querySelector('bdi').textContent"))
    page.run("document.querySelectorAll('.page').forEach(one => { one.open = false })")
    assert find("") == before

    def tick(row: int) -> None:
        page.run(f"document.querySelector('tr[data-row=\"{row}\"] input.tick').click()")

    assert page.run("picked.hidden")
    for row in (17, 3, 5):
        tick(row)
    boxes = "Array.from(document.querySelectorAll('tr[data-row=\"17\"] input.tick')).map(box => box.checked)"
    assert page.run(boxes) == [True, True]
    assert page.run("many.textContent") == "3 rows ticked"
    url = page.run("decodeURIComponent(location.pathname)").removesuffix("/report.html")
    ids = ["--ids", "sft.jsonl#17", "--ids", "3", "--ids", "5"]  # numbers, where an id has what a shell should not see
    page.run("document.querySelector('button[data-copy=command]').click()")
    assert shlex.split(page.run("out.value")) == ["datainf", "curate", url, *ids, "--to", "clean-sft.jsonl"]
    page.run("document.querySelector('button[data-copy=ids]').click()")
    assert page.run("out.value") == "sft.jsonl#17\n3\n5"
    assert page.run("document.activeElement === out && out.selectionEnd - out.selectionStart === out.value.length")
    tick(17)
    assert page.run("many.textContent") == "2 rows ticked"
    assert page.run(boxes) == [False, False]
