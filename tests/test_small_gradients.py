"""A model whose gradients are so small that their squares are beyond float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import reference, tiny
from tests.runs_of import attribute, scores

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def test_influence_is_right_at_gradients_of_1e_minus_22(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "train.jsonl", 24, seed=1)
    tiny.write_rows(tmp_path / "queries.jsonl", 3, seed=2)
    model = tiny.save_model(tmp_path, "llama", lora={"lora_alpha": 1e-20})  # which every gradient is a multiple of
    peft = reference.load(model)
    g, v = (
        reference.gradients(peft, reference.encode(model, str(tmp_path / f"{name}.jsonl")))
        for name in ("train", "queries")
    )
    assert max(float(x.abs().max()) for x in g.values()) < 1e-20
    for how in ("recompute", "keep"):
        run = attribute(tiny.configuration(tmp_path, model, tmp_path / how, gradients=how))
        assert run.summary()["status"] == {"ok": 24}
        assert reference.worst(scores(run), reference.datainf(g, v)) < 1e-4
