"""Whether base and adapter belong together, as far as weights and losses tell."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import datainf_ray
from datainf_ray.common.errors import RunFailedError
from datainf_ray.model.sense import StartLoss, chance, start_loss, weights_digest
from tests import reference, tiny
from tests.model.compare import batch_of, examples_of, rows_for
from tests.runs_of import attribute


def test_the_start_s_losses_are_the_models(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama")
    rows = rows_for(model, tmp_path)
    found = start_loss(tiny.replica(model), batch_of(examples_of(rows), range(len(rows))))
    exact = reference.load(model)
    own = torch.stack([reference.loss(exact, row) for row in rows]).mean()
    with exact.disable_adapter():
        base = torch.stack([reference.loss(exact, row) for row in rows]).mean()
    assert found is not None
    assert found.rows == len(rows)
    assert (found.adapter, found.base) == (pytest.approx(float(own), rel=1e-5), pytest.approx(float(base), rel=1e-5))
    assert found.adapter != found.base


def test_rows_that_the_model_cannot_compute_tell_nothing(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama")
    rows = rows_for(model, tmp_path)
    rows[1]["input_ids"][0] = tiny.VOCABULARY
    assert start_loss(tiny.replica(model), batch_of(examples_of(rows), range(len(rows)))) is None


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (StartLoss(16, 2.0, 3.0), None),
        (StartLoss(16, 2.1, 2.0), None),  # a few rows may be an exception
        (StartLoss(16, 2.3, 2.0), "and without the adapter 2.00"),
        (StartLoss(16, 5.0, 6.0), "and of a model that guesses 4.16"),
    ],
)
def test_what_speaks_against_an_adapter(loss: StartLoss, said: str | None) -> None:
    doubt = loss.doubt(chance(64, None))
    assert (doubt is None) == (said is None)
    assert said is None or said in str(doubt)


def test_chance() -> None:
    assert chance(64, None) == math.log(64)
    assert chance(64, 3) == math.log(3)
    assert chance(64, 1) is None


def test_a_digest_tells_weights_apart(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama")
    first, again = tiny.replica(model), tiny.replica(model)
    assert weights_digest(first.model) == weights_digest(again.model)
    with torch.no_grad():
        next(iter(again.parameters.values()))[0, 0] += 1e-7
    assert weights_digest(first.model) != weights_digest(again.model)
    half = tiny.replica(model | {"dtype": "bfloat16"})
    assert weights_digest(half.model) == weights_digest(tiny.replica(model | {"dtype": "bfloat16"}).model)


def small_run(folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    tiny.write_rows(folder / "train.jsonl", 9, 1)
    tiny.write_rows(folder / "queries.jsonl", 2, 2)
    return tiny.configuration(folder, model, folder / "run")


def untrain(model: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Train the adapter towards a larger loss of the rows."""
    exact = reference.load(model, torch.float32)
    optimizer = torch.optim.Adam([p for p in exact.parameters() if p.requires_grad], 0.1, maximize=True)
    for _ in range(20):
        optimizer.zero_grad()
        torch.stack([reference.loss(exact, row) for row in rows]).mean().backward()
        optimizer.step()
    exact.save_pretrained(model["adapter"])


def test_a_run_says_when_the_adapter_makes_it_worse(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As one does that was trained on another base."""
    model = tiny.save_model(tmp_path, "llama", settings={"initializer_range": 0.5})  # that says more than chance
    config = small_run(tmp_path, model)
    untrain(model, reference.encode(model, str(tmp_path / "train.jsonl")))
    run = datainf_ray.attribute(config, progress="lines")
    loss = run.record.start_loss
    assert loss is not None
    assert loss.adapter > 1.1 * loss.base
    assert f"mean loss is {loss.adapter:.2f}, and without the adapter {loss.base:.2f}" in capfd.readouterr().err


def test_workers_with_other_weights_than_before_end_the_run(tmp_path: Path) -> None:
    config = small_run(tmp_path, tiny.save_model(tmp_path, "llama"))
    run = attribute(config)
    (kind,) = run.record.weights
    assert kind == "cpu, float32"
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    document["weights"] = {kind: "of another draw"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(document))
    shutil.rmtree(tmp_path / "run" / "examples")
    with pytest.raises(RunFailedError, match=r"loaded has other weights .* \(cpu, float32\): .* drawn at random"):
        attribute(config)
