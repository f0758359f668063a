"""`datainf_ray.evaluate` on runs whose numbers are known, against scikit-learn and what is computed by hand."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import average_precision_score, roc_auc_score

import datainf_ray
from datainf_ray.common.errors import RequestError
from datainf_ray.curate.source import source_of
from datainf_ray.evaluation import rankings
from datainf_ray.evaluation.figures import by_chance, interval, resampled_queries
from datainf_ray.evaluation.words import SharedWords, text_of
from tests.evaluation.conftest import ROWS, Evaluated, make, sign, write_corpora


def figures(
    evaluation: datainf_ray.Evaluation, name: str, over: str = "rows", run: str | None = None
) -> dict[str, float]:
    """The values of one line, by the figure's name."""
    rows = evaluation.table().to_pylist()
    found = [r for r in rows if (r["ranking"], r["over"]) == (name, over) and (run is None or r["run"] == run)]
    assert len(found) == len(evaluation.figures)
    return {row["figure"]: row["value"] for row in found}


def recall(scores: np.ndarray, truth: np.ndarray, k: int) -> float:
    return truth[np.argsort(-scores)][:k].sum() / truth.sum()


def column(evaluated: Evaluated, name: str) -> np.ndarray:
    return np.array([row[name] for row in evaluated.rows])


@pytest.mark.parametrize("side", [None, "harmful", "helpful", "largest"])
def test_marked_rows_are_looked_for_from_the_side_that_is_asked_for(evaluated: Evaluated, side: Any) -> None:
    found = datainf_ray.evaluate(evaluated.url, truth="flipped", side=side, bm25=False, resamples=0, k=[5, 12])
    influence, truth = evaluated.made.influence.astype(np.float64), column(evaluated, "flipped")
    turned = {None: lambda x: x, "harmful": lambda x: x, "helpful": lambda x: -x, "largest": np.abs}[side]
    mean = np.nan_to_num(turned(influence.mean(axis=1)), nan=-1e9)
    one = figures(found, "datainf")
    assert one["AUC"] == pytest.approx(roc_auc_score(truth, mean), rel=1e-6)
    assert one["average precision"] == pytest.approx(average_precision_score(truth, mean), rel=1e-6)
    assert one["recall@5"] == pytest.approx(recall(mean, truth, 5))
    assert one["recall@12"] == pytest.approx(recall(mean, truth, 12))
    each = np.nan_to_num(turned(influence), nan=-1e9)
    by_query = figures(found, "datainf", "queries")
    assert by_query["AUC"] == pytest.approx(np.mean([roc_auc_score(truth, q) for q in each.T]), rel=1e-6)
    assert by_query["recall@12"] == pytest.approx(np.mean([recall(q, truth, 12) for q in each.T]))
    assert figures(found, "random order", "chance")["recall@5"] == pytest.approx(5 / ROWS)
    assert (found.rows, found.true, found.side) == (ROWS, 10, side or "harmful")
    assert {row["low"] for row in found.table().to_pylist()} == {None}


def test_loss_norm_and_self_influence_are_compared_in_their_natural_order(tmp_path: Path) -> None:
    evaluated = make(tmp_path, results={"self_influence": True})
    found = datainf_ray.evaluate(evaluated.made.run, truth="flipped", side="helpful", bm25=False)
    table, truth = evaluated.made.run.examples(), column(evaluated, "flipped")
    for name, which, sign_ in (
        ("loss", "loss", 1),
        ("gradient norm", "sqnorm", 1),
        ("datainf, self-influence", "self_influence", -1),
    ):
        scores = np.nan_to_num(sign_ * table[which].to_numpy(zero_copy_only=False), nan=-1e9)
        assert figures(found, name)["AUC"] == pytest.approx(roc_auc_score(truth, scores), rel=1e-12)
    assert found.notes == [f"4 rows (10 %) have no score in {evaluated.url}, and stand last"]


@pytest.mark.parametrize("side", [None, "largest"])
def test_each_query_looks_for_the_rows_of_its_own_class(evaluated: Evaluated, side: Any) -> None:
    found = datainf_ray.evaluate(evaluated.url, same="topic", side=side, bm25=False)
    influence, topics = evaluated.made.influence.astype(np.float64), column(evaluated, "topic")
    scores = np.nan_to_num(np.abs(influence) if side else -influence, nan=-1e9)
    truths = [topics == query["topic"] for query in evaluated.queries]
    want = np.array([[roc_auc_score(t, q), recall(q, t, t.sum())] for t, q in zip(truths, scores.T, strict=True)])
    one = figures(found, "datainf", "queries")
    assert [one["AUC"], one["recall@class size"]] == pytest.approx(want.mean(axis=0), rel=1e-6)
    low, high = interval(resampled_queries(want, 1000, seed=0))[0]
    bounds = next(r for r in found.table().to_pylist() if r["ranking"] == "datainf" and r["figure"] == "AUC")
    assert (bounds["low"], bounds["high"]) == pytest.approx((low, high), rel=1e-6)
    each = [r["value"] for r in found.by_query().to_pylist() if r["ranking"] == "datainf" and r["figure"] == "AUC"]
    assert each == pytest.approx(want[:, 0], rel=1e-6)
    loss = np.nan_to_num(evaluated.made.run.examples()["loss"].to_numpy(zero_copy_only=False), nan=-1e9)
    assert figures(found, "loss", "queries")["AUC"] == pytest.approx(np.mean([roc_auc_score(t, loss) for t in truths]))
    chance = [by_chance(ROWS, int(t.sum()), [int(t.sum())]) for t in truths]
    assert list(figures(found, "random order", "chance").values()) == pytest.approx(np.mean(chance, axis=0))
    assert not [line for line in found.lines if line.over == "rows"]


def test_bm25_is_what_the_words_in_common_say(evaluated: Evaluated) -> None:
    """The formula (k1 1.5, b 0.75, Lucene's idf) on words counted by hand; then as one of the orders."""
    source = source_of(evaluated.made.run)
    groups = np.array([0, 1, 2, 2])  # the last two rows are one query
    words = SharedWords(source.corpus("train"), source.corpus("queries"), groups)
    docs = [re.findall(r"\w\w+", f"{r['prompt']} {r['completion']}") for r in evaluated.rows]
    lengths = np.array([len(doc) for doc in docs])
    want = np.zeros((3, ROWS))
    for group, query in zip(groups, evaluated.queries, strict=True):
        for word in re.findall(r"\w\w+", f"{query['prompt']} {query['completion']}"):
            count = np.array([doc.count(word) for doc in docs])
            having = np.sum(count > 0)
            idf = np.log(1 + (ROWS - having + 0.5) / (having + 0.5))
            want[group] += idf * count / (count + 1.5 * (0.25 + 0.75 * lengths / lengths.mean()))
    np.testing.assert_allclose(list(words.scores([2, 0, 1])), want[[2, 0, 1]], rtol=1e-5)
    found = datainf_ray.evaluate(evaluated.url, truth="flipped", resamples=0)
    assert [line.over for line in found.lines if line.name == "BM25"] == ["rows", "queries"]
    each = list(SharedWords(source.corpus("train"), source.corpus("queries"), np.arange(4)).scores(range(4)))
    auc = roc_auc_score(column(evaluated, "flipped"), np.sum(each, axis=0, dtype=np.float64))
    assert figures(found, "BM25")["AUC"] == pytest.approx(auc, rel=1e-9)


def test_without_any_word_bm25_is_left_out(tmp_path: Path) -> None:
    """A word has two characters, so that texts of signs and of single letters have none."""
    evaluated = make(tmp_path)
    rows = [row | {"prompt": "a ? b", "completion": "!"} for row in evaluated.rows]
    write_corpora(tmp_path, rows, evaluated.queries)
    sign(evaluated.made)
    found = datainf_ray.evaluate(evaluated.url, truth="flipped", resamples=0)
    assert "BM25 is left out: the rows have no words" in found.notes
    assert not [line for line in found.lines if line.name == "BM25"]


def test_all_words_of_a_row_count_and_a_label_does_not() -> None:
    talk = [{"role": "user", "content": "hello " * 200 + "there"}, {"role": "assistant", "content": "so long"}]
    row = datainf_ray.evaluation.words.Row(0, "a", {"messages": talk, "system": "be kind"}, None, None)
    assert text_of(row).split() == ["hello"] * 200 + ["there", "so", "long", "be", "kind"]
    assert text_of(replace(row, fields={"text": "a film", "text_pair": "b", "label": "good"})) == "a film\nb"
    assert text_of(replace(row, fields={"input_ids": [5, 17], "labels": [5, 17]})) == "id5 id17"


def test_other_runs_on_the_same_rows_stand_in_the_same_table(evaluated: Evaluated) -> None:
    other = make(evaluated.folder, "other", seed=1, method={"name": "hessian-free"})
    again = make(evaluated.folder, "again", seed=2)
    found = datainf_ray.evaluate(evaluated.url, other.url, again.url, truth="flipped", bm25=False, resamples=0)
    truth = column(evaluated, "flipped")
    for run, name in ((evaluated, "datainf (run)"), (other, "hessian-free"), (again, "datainf (again)")):
        mean = np.nan_to_num(run.made.influence.astype(np.float64).mean(axis=1), nan=-1e9)
        assert figures(found, name, run=run.url)["AUC"] == pytest.approx(roc_auc_score(truth, mean), rel=1e-6)
    assert [line.name for line in found.lines].count("loss") == 1


@pytest.mark.parametrize("asked", [{"truth": "flipped"}, {"same": "topic"}], ids=["truth", "same"])
def test_a_query_that_another_run_could_not_use_is_mixed_up_with_no_other(
    evaluated: Evaluated, asked: dict[str, Any]
) -> None:
    """Its figures are told under the numbers of the queries that they are of; and classes are met by the same ones."""
    statuses = ["nonfinite", "ok", "ok", "ok"]
    other = make(evaluated.folder, "second", seed=1, query_status=statuses)
    found = datainf_ray.evaluate(evaluated.url, other.url, **asked, bm25=False, resamples=0)
    numbers: dict[str, list[int]] = {}
    for row in found.by_query().to_pylist():
        if row["figure"] != "AUC" or not row["ranking"].startswith("datainf"):
            continue
        query = row["query"]
        numbers.setdefault(row["run"], []).append(query)
        made = evaluated.made if row["run"] == evaluated.url else other.made
        if "same" in asked:
            scores = -made.influence[:, query]
            true = column(evaluated, "topic") == evaluated.queries[query]["topic"]
        else:
            scores, true = made.influence[:, query], column(evaluated, "flipped")
        known = np.where(np.isnan(scores), -1e9, scores)
        assert row["value"] == pytest.approx(roc_auc_score(true, known), rel=1e-12)
    assert numbers[other.url] == [1, 2, 3]
    assert numbers[evaluated.url] == ([1, 2, 3] if "same" in asked else [0, 1, 2, 3])
    if "same" in asked:
        assert found.queries == [1, 2, 3]
        assert "1 query of 4 left out: no score, or no row that is to be found" in found.notes


def test_few_influences_at_a_time_give_the_same(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = datainf_ray.evaluate(evaluated.url, truth="flipped", bm25=False)
    monkeypatch.setattr(rankings, "_AT_ONCE", 2 * ROWS + 1)
    assert datainf_ray.evaluate(evaluated.url, truth="flipped", bm25=False).table() == whole.table()


def test_queries_without_scores_or_without_rows_to_find_are_left_out_and_told(tmp_path: Path) -> None:
    evaluated = make(tmp_path, query_status=["ok", "no_target_tokens", "ok", "ok"])
    evaluated.queries[2]["topic"] = "unheard of"
    write_corpora(tmp_path, evaluated.rows, evaluated.queries)
    sign(evaluated.made)
    found = datainf_ray.evaluate(evaluated.url, same="topic", bm25=False, resamples=0)
    assert found.queries == [0, 3]
    assert found.notes[-1] == "2 queries of 4 left out: no score, or no row that is to be found"
    marked = datainf_ray.evaluate(evaluated.url, truth="flipped", bm25=False, resamples=0)
    assert marked.queries == [0, 2, 3]
    mean = np.nan_to_num(evaluated.made.influence[:, [0, 2, 3]].astype(np.float64).mean(axis=1), nan=-1e9)
    assert figures(marked, "datainf")["AUC"] == pytest.approx(roc_auc_score(column(evaluated, "flipped"), mean))


def test_a_run_without_scores_is_told_by_what_it_has(tmp_path: Path) -> None:
    evaluated = make(tmp_path, results={"scores": False, "self_influence": True})
    found = datainf_ray.evaluate(evaluated.url, truth="flipped", bm25=False, resamples=0)
    assert {line.name for line in found.lines} == {"datainf, self-influence", "loss", "gradient norm", "random order"}
    assert found.notes[0] == f"{evaluated.url} stored no scores (results.scores: false): its influence is left out"


#: A column's values in the corpus, what is asked of it, and the row numbers that are then true.
SAID: dict[str, tuple[list[Any], str, set[int]]] = {
    "booleans": ([True, False, False], "c", {0}),
    "numbers": ([0, 1, 1], "c", {1, 2}),
    "floats": ([0.0, 1.0, 0.0], "c", {1}),
    "texts": (["True", "false", " 1 "], "c", {0, 2}),
    "a value": (["web", "book", "web"], "c=web", {0, 2}),
    "a number": ([3, 4, 3], "c=4", {1}),
    "a float": ([3.0, 4.5, 3.0], "c=3", {0, 2}),
    "a boolean": ([True, False, None], "c=true", {0}),
    "a sign in the value": (["a=b", "b", ""], "c=a=b", {0}),
}


@pytest.mark.parametrize("case", SAID)
def test_what_a_column_says(case: str, tmp_path: Path) -> None:
    values, asked, true = SAID[case]
    evaluated = make(tmp_path)
    rows = [row | {"c": value} for row, value in zip(evaluated.rows[:3], values, strict=True)]
    evaluated.rows = [*rows, *(row | {"c": values[-1]} for row in evaluated.rows[3:])]
    write_corpora(tmp_path, evaluated.rows, evaluated.queries)
    sign(evaluated.made)
    found = datainf_ray.evaluate(evaluated.url, truth=asked, bm25=False, resamples=0)
    assert found.true == len(true) + (ROWS - 3) * (2 in true)


def test_a_column_within_another_and_one_with_a_sign_in_its_name(evaluated: Evaluated) -> None:
    rows = [row | {"facts": {"bad": n < 9}, "a=b": n < 4} for n, row in enumerate(evaluated.rows)]
    write_corpora(evaluated.folder, rows, evaluated.queries)
    sign(evaluated.made)
    for asked, true in (("facts.bad", 9), ("a=b", 4)):
        assert datainf_ray.evaluate(evaluated.url, truth=asked, bm25=False, resamples=0).true == true


def test_every_order_has_a_name_of_its_own(evaluated: Evaluated) -> None:
    """By as much of the place as is needed, and no run twice."""
    for folder in ("a", "b"):
        (evaluated.folder / folder).mkdir()
    others = [make(evaluated.folder, f"{folder}/run", seed=1).url for folder in ("a", "b")]
    hessian_free = make(evaluated.folder, "a/free", method={"name": "hessian-free"}).url
    found = datainf_ray.evaluate(evaluated.url, *others, hessian_free, truth="flipped", bm25=False)
    names = list(dict.fromkeys(line.name for line in found.lines if line.run and line.name.startswith(("d", "h"))))
    place = f"{evaluated.folder.name}/run"
    assert names == [f"datainf ({place})", "datainf (a/run)", "datainf (b/run)", "hessian-free"]
    with pytest.raises(RequestError, match=rf"^run: {others[0]}: is named twice; name each once$"):
        datainf_ray.evaluate(*others, f"{others[0]}/", truth="flipped", bm25=False)


def test_a_corpus_that_was_moved_is_found_where_it_is_said_to_be(evaluated: Evaluated, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for file in tmp_path.glob("sft-*.parquet"):
        file.rename(tmp_path / "new" / file.name)
    moved = {"train.path": str(tmp_path / "new")}
    assert datainf_ray.evaluate(evaluated.url, truth="flipped", bm25=False, resamples=0, **moved).true == 10


def test_a_row_that_cannot_be_read_is_not_true_and_stops_nothing(tmp_path: Path) -> None:
    evaluated = make(tmp_path)
    lines = [json.dumps(row) for row in evaluated.rows]
    lines[1] = "{broken"
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    ids = [f"rows.jsonl#{n}" for n in range(ROWS)]
    evaluated.made.ids[:] = ids
    config = evaluated.made.run.config | {"train": {"path": str(tmp_path / "rows.jsonl")}}
    run = tmp_path / "run" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"config": config}))
    sign(replace(evaluated.made, run=datainf_ray.open_run(evaluated.url)))
    assert datainf_ray.evaluate(evaluated.url, truth="flipped", resamples=0).true == 9


def test_without_the_library_one_line_names_the_extra(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(RequestError, match=r'bm25s is not installed; pip install "datainf-ray\[evaluate\]"'):
        datainf_ray.evaluate(evaluated.url, truth="flipped")
    datainf_ray.evaluate(evaluated.url, truth="flipped", bm25=False, resamples=0)


def test_hostile_names_are_printed_without_what_moves_a_terminal(tmp_path: Path) -> None:
    evaluated = make(tmp_path)
    name = "x\x1b[31m\u202e[bold]$\\alpha$"
    rows = [row | {name: row["flipped"]} for row in evaluated.rows]
    write_corpora(tmp_path, rows, evaluated.queries)
    sign(evaluated.made)
    found = datainf_ray.evaluate(evaluated.url, truth=name, bm25=False, resamples=0)
    page = io.StringIO()
    found.show(Console(file=page, width=120))
    assert page.getvalue() == page.getvalue().replace("\x1b", "").replace("\u202e", "")
    assert "x[31m[bold]$\\alpha$: 10 of 40 rows" in page.getvalue()
    svg = io.StringIO()
    found.draw().savefig(svg, format="svg")
    assert "x[31m[bold]$\\alpha$: 10 of 40 rows" in svg.getvalue()
    assert json.loads(found.json())["truth"] == name
