"""What a whole run keeps of its rows' texts, and the previews of its best rows: as the corpus has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import datainf_ray
from datainf_ray.corpus.passages import pair
from datainf_ray.runs.texts import QUERY, ROW, said_by
from tests import tiny
from tests.runs_of import attribute, tables

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]

QUIET = "w1 w2 w3 w4 " * 40  # longer than any preview, and cut at 64 tokens


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_texts_are_the_corpus_own_and_stay_when_it_is_gone(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    rows, asked = _lines(tmp_path / "train.jsonl"), _lines(tmp_path / "queries.jsonl")
    rows[3]["completion"] = f"w1 {QUIET} Sherlock Holmes {QUIET} w9"
    asked[1]["prompt"] = "w5 who is Sherlock Holmes ?"
    for name, lines in (("train", rows), ("queries", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", index=True)
    run = attribute(config)
    said = said_by(run.texts(), ROW)
    assert set(run.tops()["row"].to_pylist()) == said.keys() == set(range(40))
    assert said == {n: pair(row["prompt"], row["completion"]) for n, row in enumerate(rows)}
    assert said_by(run.texts(), QUERY) == {n: pair(row["prompt"], row["completion"]) for n, row in enumerate(asked)}
    assert [one["id"] for one in run.texts().to_pylist()] == [line["name"] for line in [*rows, *asked]]
    shown = {(one["query"], one["row"]): one["preview"] for one in run.tops().to_pylist()}
    assert "Sherlock Holmes" in shown[1, 3]
    assert "Sherlock Holmes" not in shown[0, 3]
    assert shown[0, 3].endswith("w4 w9")

    (tmp_path / "train.jsonl").unlink()
    asked[0]["prompt"] = f"w7 {asked[1]['prompt']}"
    queries = tmp_path / "more.jsonl"
    queries.write_text("".join(json.dumps(line) + "\n" for line in asked))
    answers = datainf_ray.query(
        run.url, queries={"path": str(queries), "id": "name"}, output=str(tmp_path / "answers"), progress=False
    )
    assert said_by(answers.texts(), ROW) == said
    assert said_by(answers.texts(), QUERY)[0] == pair(asked[0]["prompt"], asked[0]["completion"])
    shown = {(one["query"], one["row"]): one["preview"] for one in answers.tops().to_pylist()}
    assert "Sherlock Holmes" in shown[0, 3]


def test_a_query_of_many_rows_shows_its_first_usable_ones(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    asked = _lines(tmp_path / "queries.jsonl")
    asked[0]["prompt"] = None
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*asked, *asked]))
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", results={"top_k": 2})
    run = attribute(config, **{"queries.group": "all"})
    texts = [one for one in run.texts().to_pylist() if one["kind"] == QUERY]
    assert [(one["number"], one["place"], one["id"]) for one in texts] == [
        (0, place, line["name"]) for place, line in enumerate(asked[1:4])
    ]
    assert len(said_by(run.texts(), ROW)) <= 4
    two = attribute(config, output=str(tmp_path / "two"), **{"queries.group": "all", "cluster.max_workers": 2})
    assert tables(two) == tables(run)
