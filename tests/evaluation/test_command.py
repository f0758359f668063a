"""`datainf evaluate` as a user meets it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

import datainf_ray
from tests import tiny
from tests.evaluation.conftest import Evaluated, make
from tests.runs_of import attribute, scores, status_of


def test_the_figures_come_as_a_table_as_json_and_as_csv(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = ("evaluate", evaluated.url, "--truth", "flipped", "-k", "5", "-k", "20", "--side", "harmful")
    want = datainf_ray.evaluate(evaluated.url, truth="flipped", k=[5, 20])
    assert status_of(monkeypatch, *asked) == 0
    page = capsys.readouterr().out
    assert page.startswith("flipped: 10 of 40 rows (25 %), 4 queries · harmful influences first\n")
    assert f"{want.lines[0].values[0]:.3f}" in page
    assert "second lines: 95 % intervals, by 1,000 resamples of the rows" in " ".join(page.split())
    assert "4 rows (10 %) have no score in" in page
    assert max(map(len, page.splitlines())) <= 80
    assert status_of(monkeypatch, *asked, "--format", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["figures"] == want.table().to_pylist()
    assert (told["truth"], told["rows"], told["true"], told["seed"]) == ("flipped", 40, 10, 0)
    assert status_of(monkeypatch, *asked, "--format", "csv", "--resamples", "0", "--no-bm25") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["figure"] for row in rows} == {"AUC", "average precision", "MRR", "recall@5", "recall@20"}
    assert {row["low"] for row in rows} == {""}
    assert "BM25" not in {row["ranking"] for row in rows}
    assert status_of(monkeypatch, "evaluate", evaluated.url, "--same", "topic") == 0
    assert "rows of the query's own topic" in capsys.readouterr().out


def test_a_figure_is_drawn_where_it_is_asked_for(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make(evaluated.folder, "other", seed=1, method={"name": "hessian-free"})
    for name, asked in (
        ("a.png", ("--truth", "flipped")),
        ("b.svg", ("--same", "topic")),
        ("c.pdf", ("--same", "topic")),
    ):
        path = evaluated.folder / name
        assert status_of(monkeypatch, "evaluate", evaluated.url, other.url, *asked, "--figure", path) == 0
    with Image.open(evaluated.folder / "a.png") as image:
        assert image.width > image.height > 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
    svg = (evaluated.folder / "b.svg").read_text()
    for name in ("datainf", "hessian-free", "gradient norm", "BM25", "recall@class size", "a random order"):
        assert name in svg
    assert (evaluated.folder / "c.pdf").read_bytes().startswith(b"%PDF")
    first = (evaluated.folder / "b.svg").read_bytes()
    again = ("evaluate", evaluated.url, other.url, "--same", "topic", "--figure", evaluated.folder / "b.svg")
    assert status_of(monkeypatch, *again) == 0
    assert (evaluated.folder / "b.svg").read_bytes() == first


WRONG: dict[str, tuple[list[str], str]] = {
    "nothing asked": ([], "evaluate: want one of --truth COLUMN and --same COLUMN"),
    "no such column": (["--truth", "flip"], "has prompt, completion, flipped, topic, bad; did you mean 'flipped'?"),
    "no such run": (["nowhere", "--truth", "flipped"], "is not a run directory"),
    "no figure": (["--truth", "flipped", "--figure", "a.gif"], "a.gif: is no kind of figure; end it in "),
    "no place for a figure": (
        ["--truth", "flipped", "--figure", "/proc/nowhere/a.png"], "--figure: /proc/nowhere/a.png: cannot be written: "
    ),
    "a corpus that is gone": (["--truth", "flipped", "--set", "train.path=gone.jsonl"], "gone.jsonl: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_and_status_2(
    case: str, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said = WRONG[case]
    assert status_of(monkeypatch, "evaluate", evaluated.url, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_whole_runs_are_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with self-influence, and one that answers other queries from its index; rows with ids of their own."""
    for name, count, seed in (("train", 40, 1), ("queries", 6, 2)):
        file = tiny.write_rows(tmp_path / f"{name}.jsonl", count, seed, labels=3)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        marked = [row | {"odd": int(n % 5 == 2)} for n, row in enumerate(rows)]
        file.write_text("".join(json.dumps(row) + "\n" for row in marked))
    config: dict[str, Any] = tiny.configuration(tmp_path, tiny.save_model(tmp_path, "bert"), tmp_path / "run")
    run = attribute(config, index=True, results={"self_influence": True})
    asked = {"path": str(tmp_path / "queries.jsonl"), "id": "name", "group": "label"}
    answers = datainf_ray.query(run.url, queries=asked, output=str(tmp_path / "answers"), progress=False)
    truth = np.array([n % 5 == 2 for n in range(40)])
    arguments = (run.url, answers.url, "--truth", "odd", "--format", "json")
    assert status_of(monkeypatch, "evaluate", *arguments) == 0
    found = json.loads(capsys.readouterr().out)["figures"]
    aucs = {(r["ranking"], r["over"]): r["value"] for r in found if r["figure"] == "AUC"}
    for one, name in ((run, "run"), (answers, "answers")):
        each = scores(one).double().numpy()
        assert aucs[f"datainf ({name})", "rows"] == pytest.approx(roc_auc_score(truth, each.mean(axis=1)), rel=1e-9)
        want = np.mean([roc_auc_score(truth, query) for query in each.T])
        assert aucs[f"datainf ({name})", "queries"] == pytest.approx(want, rel=1e-9)
    own = run.examples()["self_influence"].to_numpy()
    assert aucs["datainf (run), self-influence", "rows"] == pytest.approx(roc_auc_score(truth, -own), rel=1e-9)
    assert ("BM25", "rows") in aucs
    assert status_of(monkeypatch, "evaluate", answers.url, "--same", "label", "--format", "json") == 0
    same = json.loads(capsys.readouterr().out)
    assert same["queries"] == 3
    classes = np.array([n % 3 for n in range(40)])
    each = -scores(answers).double().numpy()
    want = np.mean([roc_auc_score(classes == one, each[:, one]) for one in range(3)])
    assert next(r["value"] for r in same["figures"] if r["figure"] == "AUC") == pytest.approx(want, rel=1e-9)
    assert status_of(monkeypatch, "evaluate", run.url, answers.url, "--same", "label") == 2
    assert "has 6 queries, and " in capsys.readouterr().err
    lines = (tmp_path / "train.jsonl").read_text().replace("row-7", "row-x")
    (tmp_path / "train.jsonl").write_text(lines)
    for one in (run, answers):
        capsys.readouterr()
        assert status_of(monkeypatch, "evaluate", one.url, "--truth", "odd") == 2
        assert "train.path: " in capsys.readouterr().err
