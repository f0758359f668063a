"""A whole run with everything in a bucket: configuration, base, adapter, rows and output; and a bucket out of reach."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs
import torch
import yaml

import datainf_ray
from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import patience
from datainf_ray.request.understand import begun
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import matrix
from tests import reference, tiny
from tests.runs_of import COMMAND

pytestmark = pytest.mark.cluster


@pytest.mark.slow
def test_a_run_from_bucket_to_bucket(tmp_path: Path, tiny_llama: dict[str, Any], bucket: str) -> None:
    fs, _ = fsspec.url_to_fs(bucket)
    for folder in ("base", "adapter"):
        fs.put(str(tmp_path / folder), f"{bucket}/model/{folder}", recursive=True)
    lines = (tmp_path / "train.jsonl").read_bytes().splitlines(keepends=True)
    fs.pipe_file(f"{bucket}/rows/a.jsonl", b"".join(lines[:13]))
    fs.pipe_file(f"{bucket}/rows/b.jsonl", b"".join(lines[13:]))
    fs.put_file(str(tmp_path / "queries.jsonl"), f"{bucket}/queries.jsonl")
    config = tiny.configuration(tmp_path, tiny_llama, f"{bucket}/out/run")
    config["model"] = tiny_llama | {"base": f"{bucket}/model/base", "adapter": f"{bucket}/model/adapter"}
    config["train"]["path"] = f"{bucket}/rows/*.jsonl"
    config["queries"]["path"] = f"{bucket}/queries.jsonl"
    fs.pipe_file(f"{bucket}/run.yaml", yaml.safe_dump(config).encode())

    command = [*COMMAND, "run", f"{bucket}/run.yaml"]
    cache = {"DATAINF_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **cache}, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "40 rows scored" in done.stderr
    assert "testing" not in done.stderr  # the secret key

    fs.invalidate_cache()
    run = datainf_ray.open_run(f"{bucket}/out/run")
    peft = reference.load(tiny_llama)
    g, v = (
        reference.gradients(peft, reference.encode(tiny_llama, str(tmp_path / f"{name}.jsonl")))
        for name in ("train", "queries")
    )
    assert reference.worst(torch.from_numpy(matrix(run.scores()["influence"])), reference.datainf(g, v)) < 1e-4
    assert sorted(p.rsplit("/", 1)[1] for p in fs.ls(f"{bucket}/out/run")) == [
        "blocks.parquet", "events", "examples", "queries.parquet", "report.html", "run.json", "texts.parquet",
        "top.parquet",
    ]  # fmt: skip
    models = [p for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()]
    assert len(models) == 3  # base, base without its weights, adapter


def test_memory_cannot_be_shared_with_workers(tmp_path: Path, tiny_llama: dict[str, Any], local_ray: None) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, "memory://run")
    with pytest.raises(datainf_ray.RequestError, match="lies in the memory of one process"):
        datainf_ray.attribute(config, progress=False)


@pytest.mark.slow
def test_a_store_that_is_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    with patience(0.1), pytest.raises(RequestError, match=r"^output: s3://b/run: cannot be reached: .*127.0.0.1:9"):
        begun(RunDirectory("s3://b/run"))
    s3fs.S3FileSystem.clear_instance_cache()
