"""A whole run on prompts and completions gives the influences of what TRL would have trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datainf_ray.runs.schemas import matrix
from datainf_ray.session.outcome import findings
from tests import tiny
from tests.runs_of import attribute
from tests.styles import by_trl, style

LONGEST = 24  # tokens
PEOPLE, DONE = ("Once there was a", "The quick brown", "What is the"), ("dog", "fox jumps", "capital of France?")
MARK = "<|im_start|>"  # of the tokenizer, and none of the model's


def pairs(count: int) -> list[dict[str, Any]]:
    """Every other prompt ends in a space, and every third completion is longer than the model takes."""
    return [
        {
            "prompt": PEOPLE[k % 3] + " " * (k % 2),
            "completion": " " * (1 - k % 2) + DONE[k // 3 % 3] + f" {k} over the lazy" * (1 + 3 * (k % 3 == 2)),
        }
        for k in range(count)
    ]


def padded(rows: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    """As other trainings have them: padded to one length, on either side, pads counted among the labels or not."""
    out = []
    for k, row in enumerate(rows):
        fill = LONGEST - len(row["input_ids"])
        beside = {**row, "attention_mask": [1] * len(row["input_ids"])}
        pads = {"input_ids": 2, "labels": 2 if k % 3 else -100, "attention_mask": 0}
        sides = {role: [pads[role]] * fill for role in beside}
        out.append({role: sides[role] + line if k % 2 else line + sides[role] for role, line in beside.items()})
    return out


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_influences_are_those_of_what_trl_trains_on(tmp_path: Path) -> None:
    tokenizer = style("llama2")
    size = len(tokenizer)
    model = tiny.save_model(tmp_path, "llama", settings={"vocab_size": size})
    tokenizer.save_pretrained(tmp_path / "base")
    rows, questions = pairs(65), pairs(9)[::4]
    for form in ("text", "trl"):
        (tmp_path / form).mkdir()
        for name, found in (("train", rows), ("queries", questions)):
            lines: list[dict[str, Any]] = [*found]
            if form == "trl":
                made = by_trl(tokenizer, found, max_length=LONGEST)
                assert len(made) == len(found)  # TRL drops a row of which nothing is left to learn
                lines = padded(made)
            if name == "train":  # behind the rows that are looked at before anything starts
                lines.append({"prompt": "a", "completion": MARK} if form == "text" else {**lines[0], "labels": [1]})
            (tmp_path / form / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = type(tokenizer).from_pretrained(tmp_path / "base")
    tokenizer.add_tokens([MARK], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "base")
    runs = {}
    for form in ("text", "trl"):
        config = tiny.configuration(tmp_path / form, model, tmp_path / form / "run")
        limits = {f"{name}.max_length": LONGEST for name in ("train", "queries")}
        runs[form] = attribute(config, **{"train.id": None, "queries.id": None}, **limits)
    text, trl = runs["text"], runs["trl"]
    status = ["ok"] * 65 + ["unreadable"]
    assert text.examples()["status"].to_pylist() == trl.examples()["status"].to_pylist() == status
    told = f"input_ids holds token {size} ('{MARK}') of the tokenizer, and the model's vocabulary has {size} tokens"
    assert told in text.record.problems[0].detail
    influences = [matrix(run.examples()["influence"])[:65] for run in (text, trl)]
    np.testing.assert_allclose(*influences, rtol=1e-5, atol=0)
    # what TRL has cut, ours counts
    whole = [len(row["input_ids"]) for row in by_trl(tokenizer, rows)]
    cut = [max(tokens - LONGEST, 0) for tokens in whole]
    assert text.examples()["tokens_cut"].to_pylist() == [*cut, 0]
    number = sum(tokens > 0 for tokens in cut)
    assert text.summary()["rows_cut"] == number > 10
    assert f"{number} of 66 rows had more tokens than max_length, and were cut" in "\n".join(findings(text))
    assert (trl.summary()["rows_cut"], "more tokens" in "\n".join(findings(trl))) == (0, False)
