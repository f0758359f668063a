"""Rows and queries that cannot be used keep their place, are named, and change no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.runs.schemas import ACROSS
from tests import reference, tiny
from tests.runs_of import attribute, scores

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


BAD = [
    b'{"name": "null", "prompt": null, "completion": "w1"}\n',
    b'{"name": "cut off", "prompt": "' + b"w1 " * 80 + b'", "completion": "w2"}\n',  # longer than the model takes
    b'{"name": "bytes", "prompt": "w1", "completion": "\xff\xfe w2"}\n',
    b'{"name": "broken", "prompt": "w1", \n',
    b'{"name": "missing", "prompt": "w1"}\n',
    b'{"name": "list", "prompt": ["w1"], "completion": "w2"}\n',
]


def test_bad_rows_keep_their_place_and_change_no_other(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    good = (tmp_path / "train.jsonl").read_bytes().splitlines(keepends=True)
    clean = attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "clean"))
    mixed = [line for k, line in enumerate(good) for line in ([BAD[k // 7], line] if k % 7 == 0 else [line])]
    (tmp_path / "train.jsonl").write_bytes(b"".join(mixed))
    run = attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "mixed"))
    examples = run.examples()
    assert examples["row"].to_pylist() == list(range(len(mixed)))
    status = dict(zip(examples["id"].to_pylist(), examples["status"].to_pylist(), strict=True))
    bad = [k for k, s in enumerate(examples["status"].to_pylist()) if s != "ok"]
    assert len(bad) == len(BAD)
    assert status["cut off"] == "no_target_tokens"
    assert status["null"] == status["missing"] == "unreadable"
    assert all(examples["influence"][k].as_py() is None and examples["loss"][k].as_py() is None for k in bad)
    detail = dict(zip(examples["id"].to_pylist(), examples["detail"].to_pylist(), strict=True))
    assert (detail["null"], detail["missing"]) == ("prompt is null", "row has no column 'completion'")
    assert all((detail is None) == (row not in bad) for row, detail in enumerate(examples["detail"].to_pylist()))
    assert all(examples[name].is_null().to_pylist() == examples["loss"].is_null().to_pylist() for name in ACROSS)
    assert {(p.id, p.detail) for p in run.record.problems} <= set(detail.items())
    counts = run.summary()["status"]
    assert counts["ok"] == 40
    assert sum(counts.values()) == len(mixed)
    rest = scores(run)[[k for k in range(len(mixed)) if k not in bad]]
    assert reference.worst(rest, scores(clean).double()) < 1e-5  # the chunks differ, so the rounding does


def test_a_corpus_of_bad_rows_alone_is_told_as_such(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    (tmp_path / "train.jsonl").write_bytes(b"".join(BAD[:1] * 9))
    with pytest.raises(RequestError, match=r"^train.path: .*none of its 9 rows can be used; the first is "):
        attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_rows_of_the_same_length_share_a_batch_where_padding_leaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ConvBERT's convolution sees what stands behind a row."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.ConvBertConfig(vocab_size=tiny.VOCABULARY, embedding_size=16, pad_token_id=0, **sizes)
    monkeypatch.setitem(tiny.CONFIGS, "convbert", lambda: config)
    model = tiny.save_model(tmp_path, "convbert-classifier", ["query", "value"])
    for name, count, seed in (("train", 24, 1), ("queries", 3, 2)):
        tiny.write_rows(tmp_path / f"{name}.jsonl", count, seed, labels=3, longest=9)
    run = attribute(tiny.configuration(tmp_path, model, tmp_path / "run"))
    assert (run.record.capture.path, run.record.capture.reason) == ("hooks", None)
    assert "differ" in str(run.record.capture.lengths_reason)
    exact = reference.load(model)
    g, v = (
        reference.gradients(exact, reference.encode(model, str(tmp_path / f"{name}.jsonl")))
        for name in ("train", "queries")
    )
    assert reference.worst(scores(run), reference.datainf(g, v)) < 1e-4


_OWN = """
from dataclasses import replace
from datainf_ray.tasks.causal_lm import TASK as GIVEN

def losses(model, values, reduction):
    if bool((values["input_ids"] == 3).any()):  # <unk>
        raise IndexError("no expert for that")
    return GIVEN.losses(model, values, reduction)

TASK = replace(GIVEN, name="mine", losses=losses, shortcut=None)
"""


def test_a_row_that_the_model_cannot_compute_is_left_out_and_named(
    tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "clean"))
    (tmp_path / "refusing.py").write_text(_OWN)
    monkeypatch.chdir(tmp_path)
    model = tiny_llama | {"task": "refusing:TASK", "trust_remote_code": True}
    with (tmp_path / "train.jsonl").open("a") as rows:
        rows.write('{"name": "refused", "prompt": "w1", "completion": " strange"}\n')  # the shortest: the check has it
    run = attribute(tiny.configuration(tmp_path, model, tmp_path / "run"))
    assert run.examples()["status"].to_pylist() == ["ok"] * 40 + ["failed"]
    assert run.examples()["influence"][40].as_py() is None
    assert reference.worst(scores(run)[:40], scores(clean).double()) < 1e-5
    (problem,) = run.record.problems
    assert (problem.id, problem.status, problem.detail) == ("refused", "failed", "IndexError: no expert for that")

    names = [f'{{"name": "{k}", "prompt": "w1", "completion": " strange w{k}"}}\n' for k in range(9)]
    (tmp_path / "train.jsonl").write_text("".join(names))
    (tmp_path / "queries.jsonl").write_text(names[0])
    with pytest.raises(
        RunFailedError, match=r"^the model cannot compute any of \d rows; the first is \d: IndexError: no"
    ):
        attribute(tiny.configuration(tmp_path, model, tmp_path / "none"))


def test_a_row_that_is_not_finite_is_left_out_and_named(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    from safetensors.torch import load_file, save_file

    clean = attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "clean"))
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][3] = torch.nan  # <unk>, which no other row has
    save_file(weights, file, {"format": "pt"})
    with (tmp_path / "train.jsonl").open("a") as rows:
        rows.write('{"name": "poison", "prompt": "w1", "completion": "w2 strange w3"}\n')
    run = attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run"))
    assert run.examples()["status"].to_pylist() == ["ok"] * 40 + ["nonfinite"]
    assert run.examples()["influence"][40].as_py() is None
    assert reference.worst(scores(run)[:40], scores(clean).double()) < 1e-5
    assert run.record.problems[0].id == "poison"


def test_a_query_that_cannot_be_used_is_named_and_the_others_are_answered(
    tmp_path: Path, tiny_llama: dict[str, Any]
) -> None:
    clean = attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "clean"))
    lines = (tmp_path / "queries.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "queries.jsonl").write_bytes(b"".join([lines[0], BAD[1], *lines[1:]]))
    run = attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run"))
    assert run.queries()["status"].to_pylist() == ["ok", "no_target_tokens", "ok", "ok", "ok"]
    assert run.queries()["loss"].to_pylist()[1] is None
    assert scores(run)[:, 1].isnan().all()
    asked = scores(run)[:, [0, 2, 3, 4]]
    assert reference.worst(asked, scores(clean).double()) < 1e-5
    lowest, highest = (run.examples([name])[name].to_pylist() for name in ACROSS[1:])
    assert (lowest, highest) == (asked.amin(1).tolist(), asked.amax(1).tolist())
    with pytest.raises(RequestError, match="has no scores: no_target_tokens"):
        run.top(query=1)
