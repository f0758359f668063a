"""What makes a run this run: the content of its model, wherever it lies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from datainf_ray.config import load_config
from datainf_ray.request.job import Job, prepare
from tests import tiny


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("part", ["base/model.safetensors", "adapter/adapter_model.safetensors"])
def test_other_weights_of_the_same_shape_are_another_model(
    tmp_path: Path, tiny_llama: dict[str, Any], part: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:  # known by samples
        monkeypatch.setattr("datainf_ray.request.identity._HASHED", 0)
        monkeypatch.setattr("datainf_ray.request.identity._PIECE", 64)
    before = prepared(tmp_path, tiny_llama)
    file = tmp_path / part
    weights = load_file(file)
    save_file({k: v + 0.01 * torch.randn_like(v) for k, v in weights.items()}, file, {"format": "pt"})
    after = prepared(tmp_path, tiny_llama)
    assert [k for k in after.identity if after.identity[k] != before.identity[k]] == [part.split("/")[0]]
    assert after.fingerprint != before.fingerprint


@pytest.mark.cluster
def test_a_base_in_a_bucket_is_known_by_its_weights_too(
    tmp_path: Path, tiny_llama: dict[str, Any], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAINF_CACHE", str(tmp_path / "cache"))
    fs, _ = fsspec.url_to_fs(bucket)
    fs.put(str(tmp_path / "base"), f"{bucket}/base", recursive=True)
    model = tiny_llama | {"base": f"{bucket}/base"}
    before = prepared(tmp_path, model).fingerprint
    assert prepared(tmp_path, model).fingerprint == before
    file = f"{bucket}/base/model.safetensors"
    fs.pipe_file(file, fs.cat_file(file)[:-1] + b"x")
    fs.invalidate_cache()
    assert prepared(tmp_path, model).fingerprint != before


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
