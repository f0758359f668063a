"""What makes a run this run: the content of its model, wherever it lies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from datainf_ray.config import load_config
from datainf_ray.job import Job, prepare
from tests import tiny


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("part", ["base/model.safetensors", "adapter/adapter_model.safetensors"])
def test_other_weights_of_the_same_shape_are_another_model(
    tmp_path: Path, tiny_llama: dict[str, Any], part: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:  # known by samples
        monkeypatch.setattr("datainf_ray.job._HASHED", 0)
        monkeypatch.setattr("datainf_ray.job._PIECE", 64)
    before = prepared(tmp_path, tiny_llama)
    file = tmp_path / part
    weights = load_file(file)
    save_file({k: v + 0.01 * torch.randn_like(v) for k, v in weights.items()}, file, {"format": "pt"})
    after = prepared(tmp_path, tiny_llama)
    assert [k for k in after.identity if after.identity[k] != before.identity[k]] == [part.split("/")[0]]
    assert after.fingerprint != before.fingerprint


def test_a_model_and_rows_that_were_moved_are_the_same(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    before = prepared(tmp_path, tiny_llama).fingerprint
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("base", "adapter", "train.jsonl", "queries.jsonl"):
        shutil.move(tmp_path / name, moved / name)
    model = tiny_llama | {"base": str(moved / "base"), "adapter": str(moved / "adapter")}
    assert prepared(moved, model).fingerprint == before


def prepared(folder: Path, model: dict[str, Any]) -> Job:
    job = prepare(load_config(tiny.configuration(folder, model, folder / "run")), writable=False)
    assert job.identity  # made when it is first asked for: now, as a run does
    return job
