"""What the report says where a result may mislead, and of the rows that it lists; against scipy and plain loops."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr

from datainf_ray.corpus.common_words import Phrases, Rarity
from datainf_ray.corpus.passages import Passage, as_json, from_json, pair
from datainf_ray.runs.record import StartLoss
from datainf_ray.runs.report.doubts import of_first, of_query, of_run, rank_correlation
from datainf_ray.runs.report.listed import Facts, Listed, also, called, facts_of, said, told_of
from datainf_ray.runs.report.page import _BYTES, write_report
from tests.runs_of import write_table

if TYPE_CHECKING:
    from conftest import Made


def test_the_rank_correlation_is_scipys() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, 20, 500).astype(float), draw.normal(size=500)
    for a, b in ((one, other), (one, one + other), (other, -np.exp(other))):
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    holes = np.where(np.arange(500) % 3 == 0, np.nan, one)
    assert rank_correlation(holes, other) == pytest.approx(spearmanr(holes, other, nan_policy="omit").statistic)
    assert rank_correlation(np.ones(500), other) is None
    assert rank_correlation(one[:99], other[:99]) is None


def test_sizes_that_follow_loss_or_norm_are_said() -> None:
    draw = np.random.default_rng(0)
    losses, norms = draw.uniform(size=400), draw.uniform(size=400)
    signs = draw.choice([-1, 1], 400)
    (line,) = of_query(signs * losses**3, losses, norms, "gradient norm")
    assert line.startswith("The size of the influence follows the rows’ loss (rank correlation 1.00)")
    (line,) = of_query(signs * norms, losses, norms, "gradient norm")
    assert "gradient norm" in line
    assert of_query(draw.normal(size=400), losses, norms, "gradient norm") == []


def _listed(labels: list[str], facts: list[Facts]) -> Listed:
    rows = {n: [Passage("label", label), Passage("text", f"row {n}")] for n, label in enumerate(labels)}
    return Listed(dict(enumerate(facts)), rows, {})


def test_what_the_first_rows_share_besides_the_query_is_said() -> None:
    draw = np.random.default_rng(0)
    losses, tokens = draw.uniform(0, 1, 1000), draw.integers(5, 50, 1000)
    first = [{"row": n} for n in range(10)]
    mixed = [Facts(0.5, 10 + n, 0, None, None) for n in range(20)]
    two = ["a", "b"] * 10
    assert of_first(first, _listed(two, mixed), losses, tokens) == []
    assert of_first(first, _listed(["a"] * 10 + ["b"] * 10, mixed), losses, tokens) == [
        "All of the first 10 have the label a."
    ]
    assert of_first(first, _listed(["a"] * 20, mixed), losses, tokens) == []  # there is no other
    same = [Facts(0.5, 31, 0, None, None)] * 20
    (line,) = of_first(first, _listed(two, same), losses, tokens)
    assert line.startswith("All of the first 10 have 31 tokens")
    assert of_first(first, _listed(two, same), losses, np.full(1000, 31)) == []  # all rows have so many
    hard = [Facts(3.0 if n < 8 else 0.5, n, 0, None, None) for n in range(20)]
    (line,) = of_first(first, _listed(two, hard), losses, tokens)
    assert line.startswith("8 of the first 10 are among the 1 % of rows with the highest loss")
    assert of_first(first[:4], _listed(["a"] * 10 + ["b"] * 10, same), losses, tokens) == []


def test_a_fine_tune_that_has_learned_nothing_is_told(made: Callable[..., Made]) -> None:
    record = made().run.record
    listed = _listed(["pos", "neg"] * 5, [])
    losses = np.full(200, 0.69)
    (line,) = of_run(record, listed, losses)
    assert "mean loss is 0.69, and guessing one of 2 classes has 0.69" in line
    assert of_run(record, listed, losses / 2) == []
    start = StartLoss(rows=8, adapter=2.0, base=2.05)
    (line,) = of_run(record.model_copy(update={"start_loss": start}), _listed(["a"], []), losses)
    assert line.startswith("On 8 rows the mean loss is 2.00 with the adapter and 2.05 without")


def test_the_net_of_a_row_is_the_mean_over_queries_in_root_mean_squares(made: Callable[..., Made]) -> None:
    it = made(selves=np.arange(200, dtype=np.float32))
    facts = facts_of(it.run, {3, 9, 50})
    fine = it.influence[~np.isnan(it.influence).any(axis=1)].astype(np.float64)
    table = it.run.examples()
    assert facts.keys() == {3, 9, 50}
    for row in (3, 50):
        want = (it.influence[row] / np.sqrt((fine**2).mean(axis=0))).mean()
        assert facts[row].net == pytest.approx(want, rel=1e-6)
        assert (facts[row].loss, facts[row].own) == (table["loss"][row].as_py(), row)
        assert (facts[row].tokens, facts[row].cut) == (12, 5 if row % 4 == 0 else 0)
    assert facts_of(it.run, set()) == {}


def test_a_row_names_the_other_queries_that_list_it() -> None:
    table = pa.table(
        {"query": [0, 1, 2, 3, *range(4, 11)], "direction": ["harmful", "helpful", "harmful", *["harmful"] * 8],
         "rank": [3, 1, 1, 2, *[9] * 7], "row": [5] * 11}
    )  # fmt: skip
    of = also(table)
    assert told_of(of[5], 0) == "also harmful to 2, 3, 4, 5, 6 and 4 more, helpful to 1"
    assert told_of({"harmful": [3]}, 3) is None


def test_an_id_that_is_not_harmless_to_paste_is_a_number() -> None:
    for name in ("a.jsonl#17", "s3://b/x=1/p@2,3:4+5-6_7"):
        assert called({"id": name, "row": 4}) == name
    for name in ("it's", "a b", "$(x)", "x\ny", "\u202ex", "é", "", "x" * 201):
        assert called({"id": name, "row": 4}) == "4"


def test_words_in_common_are_marked_and_all_else_is_escaped() -> None:
    rarity = Rarity(["the cat", "the dog", "the cow", "the <b> Captain Nemo"])
    html = said(pair("<i>&", "the <b>Captain Nemo</b> the"), 1000, Phrases("Captain Nemo and the"), rarity)
    assert html == (
        "<dt>prompt</dt><dd dir=auto>&lt;i&gt;&amp;</dd>"
        '<dt class="answer">completion</dt><dd dir=auto>the &lt;b&gt;<mark>Captain Nemo</mark>&lt;/b&gt; the</dd>'
    )
    assert said([], 1000, None, rarity) is None
    assert said(pair("a", "b"), 299, None, rarity) is None
    quotes = said([Passage("text", '"' * 10**6)], 1000, None, rarity)
    assert quotes is not None
    assert len(quotes) < 3000


@pytest.mark.parametrize(
    ("are", "loss", "first"),
    [("mistakes", 9.0, "helpful"), ("right", 0.1, "harmful"), (None, 0.1, "helpful"), (None, 9.0, "harmful")],
)
def test_the_side_that_answers_the_question_stands_first(
    made: Callable[..., Made], are: str | None, loss: float, first: str
) -> None:
    run = made(files={}).run
    queries = run.queries()
    losses = pa.array([loss] * 3, pa.float32())
    write_table(run.directory, "queries.parquet", queries.set_column(4, queries.schema.field("loss"), losses))
    document = run.record.model_dump(mode="json")
    document["config"]["queries"]["are"] = are
    run.directory.write_json("run.json", document)
    page = Path(write_report(type(run)(run.directory))).read_text()
    sides = re.findall(r'<div class="half (\w+)">', page[page.index("Query by query") :])
    assert sides == [first, {"helpful": "harmful", "harmful": "helpful"}[first]] * 3
    assert ("(queries.are)" in page) == (are is not None)


def test_a_query_of_many_rows_says_so_and_shows_some(made: Callable[..., Made]) -> None:
    run = made(queries=1, files={}).run
    queries = run.queries()
    counts = pa.array([1234], pa.int64())
    write_table(run.directory, "queries.parquet", queries.set_column(2, queries.schema.field("rows"), counts))
    texts = run.texts()
    more = [dict(one, place=k, text=as_json(pair(f"ask {k}", "x"))) for one in texts.to_pylist()[-1:] for k in range(3)]
    table = pa.concat_tables([texts.slice(0, len(texts) - 1), pa.Table.from_pylist(more, texts.schema)])
    write_table(run.directory, "texts.parquet", table)
    page = Path(write_report(type(run)(run.directory))).read_text()
    assert "it is the mean of 1,234 rows, of which these are the first" in page
    assert all(f"<dd dir=auto>ask {k}</dd>" in page for k in range(3))


def test_however_long_and_hostile_the_rows_are_the_page_stays_below_its_size(made: Callable[..., Made]) -> None:
    it = made(rows=300, queries=25, previews=['"<&' * 2_000 + " ⟶ " + '"' * 5_000] * 300, results={"top_k": 150})
    assert len(from_json(it.run.texts()["text"][0].as_py())[1].text) == 5_000
    page = Path(write_report(it.run)).read_bytes()
    assert len(page) <= _BYTES
    assert page.count(b'<details class="page">') == 20 * 2 * 9
    assert b"Of each query the first 100 rows each way" in page
