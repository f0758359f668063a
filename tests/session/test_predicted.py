"""What the model predicts for each row, through whole runs: transformers' own classes by their names, and kept."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import datainf_ray
from datainf_ray.common.words import escaped
from datainf_ray.config import load_config
from datainf_ray.corpus.passages import from_json
from datainf_ray.request.job import prepare
from datainf_ray.session.execute import execute
from tests import reference, tiny
from tests.interrupting import Interrupter
from tests.runs_of import attribute, scores, status_of, tables

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]

NAMES = ["awful", "bad", "fair", "good", "<b>great\u202e"]
NAMED = {
    "initializer_range": 0.5,  # else a small random model says the same of all rows
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: k for k, name in enumerate(NAMES)},
}
BAD = {4: {"text": ""}, 9: {"label": -1}}  # rows without a score


def rows_for(folder: Path, labels: int) -> list[dict[str, Any]]:
    """The training rows that can be used, as the tokenizer has them; None in place of one that cannot."""
    tiny.write_rows(folder / "train.jsonl", 26, 1, labels)
    tiny.write_rows(folder / "queries.jsonl", 3, 2, labels)
    lines = (folder / "train.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), **BAD.get(k, {})} for k, line in enumerate(lines)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@torch.no_grad()
def logits(model: dict[str, Any], folder: Path) -> list[torch.Tensor | None]:
    """Of each bare row, as users of the model call it, in float64."""
    peft, found = reference.load(model), list[torch.Tensor | None]()
    for k, row in enumerate(reference.encode(model, str(folder / "train.jsonl"))):
        found.append(None if k in BAD else peft(input_ids=torch.tensor([row["input_ids"]])).logits[0])
    return found


def test_classes_by_their_names_whatever_the_gradients_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_for(tmp_path, 5)
    model = tiny.save_model(tmp_path, "bert", labels=5, seed=4, settings=NAMED)
    want = [None if one is None else NAMES[int(one.argmax())] for one in logits(model, tmp_path)]
    assert len({*want} - {None}) > 2
    assert any(a not in (None, NAMES[row["label"]]) for a, row in zip(want, rows, strict=True))
    config = tiny.configuration(tmp_path, model, tmp_path / "run", index=True, index_dtype="float32")
    run = attribute(config)
    examples = run.examples()
    assert examples["predicted"].to_pylist() == want
    assert examples["predicted"].null_count == len(BAD) == examples["loss"].null_count
    for row in run.texts().to_pylist():  # the label that was given is in the same words
        if row["kind"] == "row":
            label = next(one.text for one in from_json(row["text"]) if one.role == "label")
            assert label == NAMES[rows[row["number"]]["label"]]
    asked = {"path": str(tmp_path / "queries.jsonl"), "id": "name"}
    answers = datainf_ray.query(run.url, queries=asked, output=str(tmp_path / "answers"), progress=False)
    assert answers.examples()["predicted"].to_pylist() == want
    again = attribute(
        config, output=str(tmp_path / "again"), index=None, gradients="recompute", **{"cluster.max_workers": 2}
    )
    assert again.examples()["predicted"].to_pylist() == want
    bare = attribute(config, output=str(tmp_path / "bare"), index=None, **{"results.scores": False})
    assert bare.examples()["predicted"].to_pylist() == want
    both = datainf_ray.combine([run, again], str(tmp_path / "sum"), progress=False)
    assert both.examples()["predicted"].to_pylist() == want
    listed = run.top(0, 1)["row"][0].as_py()
    assert status_of(monkeypatch, "show", run.url, listed, "--no-neighbours") == 0
    shown = capsys.readouterr().out
    said = [escaped(name, 300) for name in (want[listed], NAMES[rows[listed]["label"]])]
    assert f", predicted {said[0]}, given {said[1]}\n" in shown
    assert "\u202e" not in shown
    cell = run._repr_html_()
    helpful = cell.partition("Most helpful")[2].partition("Most harmful")[0]
    for row in run.top(0, 5).to_pylist():
        given, predicted = NAMES[rows[row["row"]]["label"]], want[row["row"]]
        near = html.unescape(re.sub(r"<[^>]*>", "", helpful.partition(f">{row['id']}<")[2].partition("</td>")[0]))
        text = f"label {given}, as predicted" if given == predicted else f"given: {given}, predicted: {predicted}"
        assert text.replace("\u202e", "") in " ".join(near.split())
    page = (Path(run.url) / "report.html").read_text(encoding="utf-8")
    assert "given: <bdi>" in page
    assert '<select id="label">' in page
    assert "<b>great" not in page + cell
    to = tmp_path / "annotated.jsonl"
    run.curate(to=str(to), annotate=True)
    lines = [json.loads(line) for line in to.read_text(encoding="utf-8").splitlines()]
    assert [line["predicted"] for line in lines] == want
    assert [line["label"] for line in lines] == [row["label"] for row in rows]


@pytest.mark.slow
def test_a_run_that_is_cut_off_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    rows_for(tmp_path, 5)
    model = tiny.save_model(tmp_path, "bert", labels=5, seed=4, settings=NAMED)
    quiet = attribute(tiny.configuration(tmp_path, model, tmp_path / "quiet"))
    config = load_config(tiny.configuration(tmp_path, model, tmp_path / "cut"))
    with pytest.raises(KeyboardInterrupt):
        execute(prepare(config), Interrupter("scores", 2))
    went_on = execute(prepare(config), Interrupter())
    assert tables(Path(went_on.url)) == tables(quiet)
    assert len({*quiet.examples()["predicted"].to_pylist()}) > 2


def test_the_number_of_a_regression_beside_the_one_that_was_given(tmp_path: Path) -> None:
    rows = rows_for(tmp_path, 3)
    lines = [{**row, "label": row["label"] / 2 if row["label"] >= 0 else None} for row in rows]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = tiny.save_model(tmp_path, "bert", labels=1, settings={"initializer_range": 0.5})
    run = attribute(tiny.configuration(tmp_path, model, tmp_path / "run"))
    examples = run.examples()
    there = [one for one in logits(model, tmp_path) if one is not None]
    said = [one for one in examples["predicted"].to_pylist() if one is not None]
    np.testing.assert_allclose([float(one) for one in said], torch.stack(there)[:, 0], rtol=1e-4, atol=0)
    given = np.array([row["label"] / 2 for k, row in enumerate(rows) if k not in BAD])
    losses = examples["loss"].drop_null().to_numpy()
    np.testing.assert_allclose(losses, (np.array([float(one) for one in said]) - given) ** 2, rtol=1e-5, atol=0)
    labels = {
        one.text
        for row in run.texts().to_pylist()
        for one in from_json(row["text"])
        if (row["kind"], one.role) == ("row", "label")
    }
    assert labels == {"0.0", "0.5", "1.0"}


def test_of_a_language_model_nothing_is_predicted(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    run = attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run"))
    assert run.examples()["predicted"].null_count == len(run.examples())
    assert scores(run).isfinite().all()
