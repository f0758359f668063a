"""Queries about one phrase, as whole runs: the gradient of the phrase's tokens alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import datainf_ray
from datainf_ray.common.errors import RequestError
from tests import reference, tiny
from tests.runs_of import attribute, scores, status_of

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_a_querys_gradient_is_that_of_its_phrase(tmp_path: Path, arch: str, monkeypatch, capsys) -> None:
    tiny.write_rows(tmp_path / "train.jsonl", 24, 1)
    model = tiny.save_model(tmp_path, arch)
    #: A completion, its span, and which of its words are targets; the last query is left whole.
    asked = [
        (" w1 w2 w3 w4", "w2 w3", [1, 2]),
        (" w5 w11 w5 w7", "w5", [0, 2]),
        (" w1 w22 w3", [4, 5], [1]),  # the first character of "w22"
        (" w8 w9", None, [0, 1, 2]),
    ]
    rows = [
        {"name": f"q{k}", "prompt": "w1 w2", "completion": completion, "span": span, "phrase": span}
        for k, (completion, span, _) in enumerate(asked)
    ]
    bad = {"name": "q4", "prompt": "w1", "completion": " w2", "span": "w3", "phrase": "w3"}
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, bad]))
    config = tiny.configuration(tmp_path, model, tmp_path / "run")
    config["queries"]["columns"] = {"span": "phrase"}
    with pytest.raises(RequestError, match=r"^train\.columns\.span: phrase: is for queries alone"):
        datainf_ray.plan(config | {"train": config["train"] | {"columns": {"span": "phrase"}}})
    run = attribute(config)

    peft = reference.load(model)
    queries = reference.encode(model, str(tmp_path / "queries.jsonl"))[: len(asked)]
    for query, (_, _, words) in zip(queries, asked, strict=True):
        first = next(k for k, label in enumerate(query["labels"]) if label not in (-100, 1))  # 1 is BOS
        kept = {first + word for word in words}
        if len(words) == len(query["labels"]) - first:  # all, with EOS
            kept |= set(range(len(query["labels"])))
        query["labels"] = [label if k in kept else -100 for k, label in enumerate(query["labels"])]
    g = reference.gradients(peft, reference.encode(model, str(tmp_path / "train.jsonl")))
    v = reference.gradients(peft, queries)
    assert reference.worst(scores(run)[:, : len(asked)], reference.datainf(g, v)) < 1e-4
    statuses = run.queries()["status"].to_pylist()
    assert statuses == ["ok"] * 4 + ["no_target_tokens"]

    path = tmp_path / "attribute.yaml"
    path.write_text(yaml.safe_dump(config))
    assert status_of(monkeypatch, "tokens", path, "--queries", "--row", 1, "--row", 4) == 0
    first, second = (line for line in capsys.readouterr().out.split("\n") if line.startswith("queries row"))
    assert first.endswith(", within “w5”, in 2 places")
    assert second.endswith("no_target_tokens: span “w3” does not occur in the completion")
