"""Labels given and predicted, near-duplicates, and what rows can be chosen by: on the page, and in a real Chromium."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from datainf_ray.corpus.passages import Passage
from datainf_ray.runs.by import BY_FILE, BY_ROWS_FILE, by_rows_schema, by_schema
from datainf_ray.runs.report.choices import choices
from datainf_ray.runs.report.doubts import of_first
from datainf_ray.runs.report.listed import Facts, Listed
from datainf_ray.runs.report.near import near_among
from datainf_ray.runs.report.page import write_report
from tests.browser import Page, browsing
from tests.runs.conftest import Made, make_run
from tests.runs.report.test_by_column import one
from tests.runs_of import write_table

ROWS = 200
TEXT = "the {} film of the year had {} scenes that nobody in the audience of {} people will ever forget again"
HOSTILE = "<b>web\u202e\"'"
LABELS = ["negative", "positive"]
#: Rows 10, 11 and 12 say the same, and so do 13 and 150.
ALIKE = {11: 10, 12: 10, 150: 13}
WRONG = {10, 20, 21, 22, 23, 24, 25, 26, 27, 28}  # their labels are the opposite of what the model predicts


def text_of(row: int) -> str:
    return TEXT.format(*(f"w{row * k}x{k}" for k in (1, 3, 7))) + f" {row} " + "and so it went on " * 4 + f"v{row}"


def run_of(folder: Path, **more: Any) -> Made:
    """Two queries; the rows of `WRONG` are the most harmful to query 0."""
    influence = (np.random.default_rng(0).normal(size=(ROWS, 2)) * 1e-5).astype(np.float32)
    influence[sorted(WRONG), 0] = np.linspace(0.004, 0.005, len(WRONG))
    influence[[11, 12, 13, 150], 0] = -0.004, -0.0039, -0.005, -0.0045
    predicted = [LABELS[row % 2] for row in range(ROWS)]
    given = [LABELS[(row + (row in WRONG)) % 2] for row in range(ROWS)]
    texts = [text_of(ALIKE.get(row, row)) for row in range(ROWS)]
    made = make_run(
        str(folder / "run"), ROWS, 2, influence=influence, missing=np.zeros(ROWS, bool),
        previews=[f"{label} | {text}" for label, text in zip(given, texts, strict=True)],
        **{
            "passages": [[Passage("label", a), Passage("text", b)] for a, b in zip(given, texts, strict=True)],
            "predicted": predicted, "results": {"top_k": 20, "by": "source"}, "queries_are": "right",
        } | more,
    )  # fmt: skip
    sums = [one(query, value, -1.0) for query in (None, 0, 1) for value in ("a", None)]
    write_table(made.run.directory, BY_FILE, pa.Table.from_pylist(sums, by_schema()))
    listed = sorted({*made.run.tops()["row"].to_pylist()})
    values = {"row": listed, "value": [source_of(row) for row in listed]}
    write_table(made.run.directory, BY_ROWS_FILE, pa.table(values, schema=by_rows_schema()))
    return made


def source_of(row: int) -> str | None:
    return None if row in (20, 21) else HOSTILE if row in WRONG else "forum"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return run_of(tmp_path_factory.mktemp("beside"))


@pytest.fixture(scope="module")
def written(made: Made) -> str:
    return Path(write_report(made.run)).read_text(encoding="utf-8")


def entry(page: str, row: int) -> str:
    """What the page says of a row in the first place that lists it, without tags."""
    found = re.search(rf'<tr id="row-{row}".*?</tr>', page, re.DOTALL)
    assert found is not None
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", found[0])).split())


def test_labels_stand_beside_the_loss(made: Made, written: str) -> None:
    loss = made.run.examples()["loss"][20].as_py()
    assert f"loss {loss:.3g}" in entry(written, 20)
    assert "given: positive, predicted: negative" in entry(written, 20)
    assert "label negative" not in entry(written, 20)
    assert "label positive, as predicted" in entry(written, 11)
    assert "source forum" in entry(written, 11)
    assert "source (null)" in entry(written, 20)
    assert f"source {HOSTILE.replace(chr(0x202E), '')}" in entry(written, 22)
    assert HOSTILE not in written
    assert "<b>web" not in written
    first = written.partition('id="verdict"')[2].partition("</section>")[0]
    assert first.count('<b class="differs">given: ') == 5


def test_the_first_rows_having_other_labels_than_the_model_predicts_is_said(written: str) -> None:
    told = re.findall(r'<p class="doubt">(.*?)</p>', written)
    assert any(
        re.fullmatch(r"Most harmful: 10 of the first 10 have another label than .* learned\.", one) for one in told
    )
    assert sum("another label than the model predicts" in one for one in told) == 1  # and of no other list


def listed(given: list[str], predicted: list[str | None]) -> Listed:
    said = {row: [Passage("label", label), Passage("text", "x")] for row, label in enumerate(given)}
    facts = {row: Facts(0.5, 9, 0, None, None, label) for row, label in enumerate(predicted)}
    return Listed(facts, said, {})


def test_labels_that_usually_differ_are_no_news_and_numbers_are_no_classes() -> None:
    rows, none = [{"row": row} for row in range(10)], np.empty(0)
    wrong = ["a"] * 10, ["b"] * 10
    rest = ["a"] * 20, ["a"] * 20
    (line,) = of_first(rows, listed(wrong[0] + rest[0], wrong[1] + rest[1]), none, none)
    assert line.startswith("10 of the first 10 have another label than the model predicts")
    assert of_first(rows, listed(wrong[0] + ["b"] * 9, wrong[1] + ["a"] * 9), none, none) == [
        "All of the first 10 have the label a."
    ]
    assert of_first(rows, listed(wrong[0] + rest[0], ["b"] * 7 + ["a"] * 3 + rest[1]), none, none) == []
    some = listed(wrong[0] + rest[0], [None, *wrong[1][1:], *rest[1]])
    assert of_first(rows, some, none, none) == []
    numbers = listed(["3.5", "1.0"], ["3.4718", "1.0021"])
    assert (numbers.labels.numbers, numbers.labels.differs(0)) == (True, None)
    assert numbers.labels.of(0) == {"given": "3.5", "predicted": "3.4718", "differs": None}
    for given, predicted in (
        (["1.0", "2.0"], ["2.0", "2.0"]),
        (["1", "2"], ["2", "3"]),
        (["v1.0", "2.5"], ["2.5", "1.5"]),
    ):
        assert listed(given, [*predicted]).labels.differs(0) is True


def test_near_duplicates_are_named_linked_and_told_apart_by_their_labels(made: Made, written: str) -> None:
    ids = made.ids
    shown = {int(row) for row in re.findall(r'<tr id="row-(\d+)"', written)}
    assert {10, 11, 12, 13} <= shown
    assert shown == {*made.run.tops()["row"].to_pylist()}
    assert len(re.findall(r'<tr id="row-', written)) == len(shown)  # every anchor once
    assert f"nearly the same text: {ids[11]}, {ids[12]} (given: negative)" in entry(written, 10)
    assert f"nearly the same text: {ids[10]} (given: positive), {ids[11]} (given: positive)" in entry(written, 12)
    assert entry(written, 13).endswith(f"nearly the same text: {ids[150]} (given: negative)")
    assert '<a href="#row-11">' in written
    assert "nearly the same" not in entry(written, 20)
    assert written.count("nearly the same text") == sum(
        row in (10, 11, 12, 13, 150) for row in made.run.tops()["row"].to_pylist()
    )


def test_one_that_is_not_on_the_page_is_named_without_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datainf_ray.runs.report.page._MOST", 1)
    it = run_of(tmp_path)
    page = Path(write_report(it.run)).read_text(encoding="utf-8")
    assert entry(page, 13).endswith(f"nearly the same text: {it.ids[150]} (given: negative)")
    assert 'id="row-150"' not in page
    assert "#row-150" not in page


def test_near_duplicates_are_those_that_curate_and_show_take(tmp_path: Path) -> None:
    """The share of word triples in common, computed as it is defined."""
    draw = np.random.default_rng(5)
    words = [f"w{n}" for n in range(2000)]
    base = [list(draw.choice(words, 60)) for _ in range(12)]
    texts = {}
    for n, one_of in enumerate(base):
        for k, changed in enumerate((0, 1, 2, 5, 20)):
            copy = list(one_of)
            copy[:changed] = list(draw.choice(words, changed))
            texts[10 * n + k] = " ".join(copy)
    said = {row: [Passage("label", str(row)), Passage("text", text)] for row, text in texts.items()}
    found = near_among(said, list(texts)[::2], {"model": {"task": "x"}}).rows

    def triples(text: str) -> set[tuple[str, ...]]:
        parts = text.split()
        return {tuple(parts[at : at + 3]) for at in range(len(parts) - 2)}

    pairs = 0
    for row in list(texts)[::2]:
        for other in texts:
            a, b = triples(texts[row]), triples(texts[other])
            share = len(a & b) / len(a | b)
            if other == row or 0.7 < share < 0.9:  # minhash estimates it
                continue
            pairs += share >= 0.9
            assert (other in found.get(row, [])) == (share >= 0.9), (row, other, share)
    assert pairs > 20
    assert not set(found) - set(list(texts)[::2])
    assert near_among(said, [0], {"model": {"task": "text-to-image"}}).rows == {}  # captions


def test_rows_of_one_text_and_other_labels_are_near_duplicates() -> None:
    said = {row: [Passage("label", str(row)), Passage("text", "A fine film!")] for row in range(3)}
    assert near_among(said, [1], {"model": {"task": "x"}}).rows == {1: [0, 2]}


def test_very_many_near_duplicates_and_long_texts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {row: [Passage("text", "one two three four five six")] for row in range(1000)}
    found = near_among(same, range(1000), {"model": {"task": "x"}})
    assert {len(like) for like in found.rows.values()} == {199, 200}
    monkeypatch.setattr("datainf_ray.runs.report.near._BYTES", 2 * 1000)
    ends = " ".join(f"begin{n}" for n in range(100)), " ".join(f"end{n}" for n in range(100))
    middles = [" ".join(f"m{row}-{n}" for n in range(999)) for row in (0, 1)]
    long = {row: [Passage("text", f"{ends[0]} {middle} {ends[1]}")] for row, middle in enumerate(middles)}
    assert near_among(long, [0], {"model": {"task": "x"}}).rows == {0: [1]}  # both ends of each were compared


def test_without_the_library_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    page = Path(write_report(run_of(tmp_path).run)).read_text(encoding="utf-8")
    assert "Near-duplicates are not looked for: that needs a package" in page
    assert "datainf-ray[curate]" in page
    assert "nearly the same text" not in page


def test_of_many_values_those_of_the_most_rows_can_be_chosen() -> None:
    values: dict[int, str | None] = {row: f"v{row // 2}" for row in range(0, 600)}
    values |= dict.fromkeys(range(600, 650), None)
    made = choices("source", values, range(700))
    assert made is not None
    assert (len(made.values), made.more) == (100, 201)
    assert (made.values[0].text, made.values[0].rows, made.of(600)) == ("(null)", 50, 0)
    assert made.of(699) is None
    assert made.text(699) is None
    assert choices("source", {1: "a", 2: "a", 3: "b"}, [1, 2]) is None


def test_a_run_without_labels_has_no_such_filters(tmp_path: Path) -> None:
    it = make_run(str(tmp_path / "plain"), 60, 2)
    page = Path(write_report(it.run)).read_text(encoding="utf-8")
    assert 'id="query"' in page
    assert 'id="label"' not in page
    assert 'id="value"' not in page
    assert "given:" not in page


def test_values_that_are_damaged_are_told(tmp_path: Path) -> None:
    it = run_of(tmp_path)
    it.run.directory.write(BY_ROWS_FILE, b"nothing")
    page = Path(write_report(it.run)).read_text(encoding="utf-8")
    assert 'id="value"' not in page
    assert re.search(r"Rows cannot be chosen by it: .*by_rows\.parquet: cannot be read as Parquet", page)


@pytest.fixture(scope="module")
def page(made: Made, written: str) -> Iterator[Page]:
    with browsing(Path(made.run.url) / "report.html") as page:
        yield page


def rows_shown(page: Page) -> set[int]:
    shown = "Array.from(document.querySelectorAll('tr[data-row]')).filter(r => r.checkVisibility())"
    return {int(row) for row in page.run(f"{shown}.map(r => r.dataset.row)")}


def choose(page: Page, **boxes: str) -> set[int]:
    """The rows that are seen when options with these texts are chosen."""
    for name, text in boxes.items():
        page.run(f"""{{ const box = document.getElementById({name!r});
            box.value = Array.from(box.options).find(one => one.textContent.startsWith({text!r})).value;
            box.dispatchEvent(new Event('change')) }}""")
    page.run("document.querySelectorAll('details.query').forEach(one => { one.open = true })")
    return rows_shown(page)


def test_rows_are_chosen_by_label_source_and_both(page: Page, made: Made) -> None:
    page.looks(1280, "light")
    all_of = {*made.run.tops()["row"].to_pylist()}
    given = {row: LABELS[(row + (row in WRONG)) % 2] for row in all_of}
    assert choose(page, label="positive") == {row for row in all_of if given[row] == "positive"}
    assert choose(page, label="other than predicted (10)") == WRONG
    count = page.run("document.getElementById('count').textContent")
    assert count == f"{sum(row in WRONG for row in made.run.tops()['row'].to_pylist())} rows"
    assert choose(page, label="other than predicted", value="(null)") == {20, 21}
    assert choose(page, label="all", value="<b>web") == WRONG - {20, 21}
    assert choose(page, label="negative", value="forum") == {row for row in all_of - WRONG if given[row] == "negative"}
    row = next(row for row in sorted(all_of) if 30 <= row < 64 and given[row] == "positive")
    page.run(f"words.value = {made.ids[row]!r}; words.dispatchEvent(new Event('input'))")
    assert rows_shown(page) == set()  # it is another label's
    assert choose(page, label="positive") == {row}
    page.run("words.value = ''; words.dispatchEvent(new Event('input'))")
    assert choose(page, label="all", value="all") > WRONG
    assert page.run("document.getElementById('count').textContent") == ""


@pytest.mark.parametrize("width", [1280, 390])
def test_a_link_leads_to_its_row_whatever_is_folded_or_filtered(page: Page, width: int) -> None:
    page.looks(width, "light")
    page.run("location.hash = ''; scrollTo(0, 0)")
    page.run("document.querySelectorAll('details').forEach(one => { one.open = false })")
    page.run("document.querySelector('#row-10').closest('details').open = true")
    choose(page, label="other than predicted")
    assert 11 not in rows_shown(page)
    page.run("document.querySelector('#row-10 a[href=\"#row-11\"]').click()")
    assert page.run("location.hash") == "#row-11"
    assert 11 in rows_shown(page)
    top = page.run("document.querySelector('#row-11').getBoundingClientRect().top")
    tools = page.run("document.querySelector('#tools').getBoundingClientRect().bottom")
    assert tools - 2 <= top < 600  # not behind the tools
    assert page.told("Runtime.exceptionThrown", "Log.entryAdded") == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_tools_fit(page: Page, width: int) -> None:
    page.looks(width, "dark")
    page.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.run("document.documentElement.scrollWidth") <= width
    height = page.run("document.querySelector('#tools').getBoundingClientRect().height")
    assert height < (60 if width == 1280 else 120)
