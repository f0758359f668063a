"""Whole runs of `representation`, against transformers' own hidden states of single rows in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import datainf_ray
from tests import reference, tiny
from tests.runs_of import attribute, scores, status_of, tables

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def rows_for(folder: Path, arch: str) -> dict[str, Any]:
    labels = 3 if tiny.task_name(arch) == "sequence-classification" else None
    tiny.write_rows(folder / "train.jsonl", 30, 1, labels)
    tiny.write_rows(folder / "queries.jsonl", 4, 2, labels)
    return tiny.save_model(folder, arch)


@torch.no_grad()
def states(model: dict[str, Any], path: Path, at: int) -> tuple[torch.Tensor, list[float]]:
    """The last hidden state of every row alone, at its token `at`, and its loss."""
    peft, found, losses = reference.load(model), [], []
    for row in reference.encode(model, str(path)):
        seq2seq = peft.config.is_encoder_decoder
        labels = {"labels": torch.tensor([row["labels"]])} if seq2seq else {}
        out = peft(input_ids=torch.tensor([row["input_ids"]]), output_hidden_states=True, **labels)
        layers = out.decoder_hidden_states if seq2seq else out.hidden_states
        found.append(layers[-1][0, at])
        losses.append(float(reference.loss(peft, row)))
    return torch.stack(found), losses


@pytest.mark.parametrize(
    ("arch", "at"), [("llama", -1), ("gpt2", -1), ("llama-classifier", -1), ("bert", 0), ("t5", -1), ("bart", -1)]
)
def test_influence_is_the_cosine_of_the_states_of_bare_rows(tmp_path: Path, arch: str, at: int) -> None:
    model = rows_for(tmp_path, arch)
    config = tiny.configuration(tmp_path, model, tmp_path / "run", method={"name": "representation"})
    planned = datainf_ray.plan(config)
    run = attribute(config)
    (train, losses), (queries, _) = (states(model, tmp_path / f"{name}.jsonl", at) for name in ("train", "queries"))
    want = -torch.nn.functional.normalize(train) @ torch.nn.functional.normalize(queries).T
    assert reference.worst(scores(run), want) < 1e-5
    examples = run.examples()
    np.testing.assert_allclose(examples["loss"].to_numpy(), losses, rtol=1e-5, atol=0)
    scale = 32**-0.5 if arch == "t5" else 1.0  # which T5 multiplies its states with, in front of the head
    np.testing.assert_allclose(examples["sqnorm"].to_numpy(), (scale * train).square().sum(1), rtol=1e-5, atol=0)
    assert planned.sweeps == [s["name"] for s in run.summary()["sweeps"]] == ["queries", "scores"]
    assert planned.states
    assert [(b["kind"], b["size"]) for b in run.blocks().to_pylist()] == [("hidden state", 32)]
    capture = run.record.capture
    assert capture is not None
    assert (capture.reason, capture.lengths_reason) == (None, None)


def test_the_bits_are_the_same_for_any_number_of_workers_and_an_index_answers(
    tmp_path: Path, tiny_llama: dict[str, Any]
) -> None:
    method = {"name": "representation"}
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "one", method=method)
    config |= {"index": True, "index_dtype": "float32"}
    one = attribute(config)
    two = attribute(config, output=str(tmp_path / "two"), **{"cluster.max_workers": 2})
    assert tables(one) == tables(two)
    asked = {"path": str(tmp_path / "queries.jsonl"), "id": "name"}
    answers = datainf_ray.query(one.url, queries=asked, output=str(tmp_path / "answers"), progress=False)
    assert reference.worst(scores(answers), scores(one).double()) < 1e-5
    truth = f"name={one.examples()['id'][0]}"
    found = datainf_ray.evaluate(one.url, truth=truth, bm25=False, resamples=0)
    assert {line.name for line in found.lines} == {"representation", "loss", "hidden state’s norm", "random order"}
    with pytest.raises(datainf_ray.RequestError, match=r"the index of .* holds hidden states, of representation"):
        datainf_ray.query(
            one.url, queries=asked, output=str(tmp_path / "no"), progress=False, method={"name": "cosine"}
        )


def test_what_has_no_effect_is_refused(
    tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", method={"name": "representation"})
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    for key, value in (
        ("model.blocks", "[q_proj]"),
        ("method.curvature_rows", "9"),
        ("results.self_influence", "true"),
    ):
        assert status_of(monkeypatch, "run", path, "--set", f"{key}={value}") == 2
        assert key in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
