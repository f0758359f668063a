"""Whole runs over pictures against a float64 loop, with one worker and with two; and what the plan says of draws."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import Tensor

import datainf_ray
from datainf_ray.common.errors import RequestError
from datainf_ray.config import load_config
from datainf_ray.planning.sizing import choose_chunk_rows
from datainf_ray.request.job import prepare
from tests import reference
from tests.diffusion import pipelines
from tests.diffusion.pipelines import TIMESTEPS
from tests.runs_of import attribute, scores, status_of, tables

BAD = 2  #: a training row whose picture cannot be decoded
ROWS, QUERIES = 7, 2
PRIOR = (1, 4)  #: training rows that are pictures of the class, where these have a weight


def prepared(folder: Path, family: str, **diffusion: Any) -> dict[str, Any]:
    model = pipelines.make(folder, family)
    for name, count, seed in (("train", ROWS, 1), ("queries", QUERIES, 2)):
        pipelines.write_rows(folder / f"{name}.parquet", count, seed)
    table = pq.read_table(folder / "train.parquet")
    images = table["image"].to_pylist()
    images[BAD]["bytes"] = images[BAD]["bytes"][:200]
    table = table.set_column(2, "image", pa.array(images))
    if "prior_loss_weight" in diffusion:
        table = table.append_column("prior", pa.array([k in PRIOR for k in range(ROWS)]))
    pq.write_table(table, folder / "train.parquet")
    return {
        "model": model, "output": str(folder / "run"), "cluster": {"max_workers": 1, "chunk_rows": 3},
        "train": {"path": str(folder / "train.parquet"), "id": "name"},
        "queries": {"path": str(folder / "queries.parquet"), "id": "name"},
        "diffusion": {"timesteps": TIMESTEPS, "resolution": pipelines.SIDE} | diffusion,
    }  # fmt: skip


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(path).to_pylist()
    return [row | {"image": row["image"]["bytes"]} for row in rows]


def how_of(config: dict[str, Any]) -> dict[str, Any]:
    """What the trainer is asked."""
    return {"gamma": config["diffusion"].get("min_snr_gamma"), "offset": config["diffusion"].get("noise_offset")}


def by_hand(config: dict[str, Any], family: str, c: float = 0.1) -> Tensor:
    """Rows × queries in float64, without the bad row: draws are blocks of their own, λ is the mean over a tensor's."""
    trainer = pipelines.Trainer(config["model"], family)
    train = [row for k, row in enumerate(rows_of(Path(config["train"]["path"]))) if k != BAD]
    g, v = (trainer.gradients(rows, **how_of(config)) for rows in (train, rows_of(Path(config["queries"]["path"]))))
    if (weight := config["diffusion"].get("prior_loss_weight")) is not None:
        weights = torch.tensor([weight if k in PRIOR else 1.0 for k in range(ROWS) if k != BAD], dtype=torch.float64)
        g = {name: x * weights[:, None, None] for name, x in g.items()}
    if config["diffusion"].get("combine") == "mean":
        return reference.datainf({n: x.mean(1) for n, x in g.items()}, {n: x.mean(1) for n, x in v.items()}, c)
    found = torch.zeros(len(train), QUERIES, dtype=torch.float64)
    for name, of_tensor in g.items():
        n, draws, d = of_tensor.shape
        lam = (
            c * sum(float(of_tensor[i, t] @ of_tensor[i, t]) for i in range(n) for t in range(draws)) / (n * draws * d)
        )
        for t in range(draws):
            for q in range(QUERIES):
                x, query = of_tensor[:, t], v[name][q, t]
                h = sum((query @ x[i]) / (lam + x[i] @ x[i]) * x[i] for i in range(n)) / n
                found[:, q] -= x @ ((query - h) / lam)
    return found


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("family", "combine"), [("sd", "paired"), ("flux", "mean"), ("sdxl", "mean")])
def test_a_run_is_the_float64_loop(
    family: str,
    combine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained = {"min_snr_gamma": 5.0, "noise_offset": 0.1, "prior_loss_weight": 0.5} if family == "sdxl" else {}
    config = prepared(tmp_path, family, combine=combine, **trained)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert status_of(monkeypatch, "run", tmp_path / "run.yaml") == 0
    run = datainf_ray.open_run(str(tmp_path / "run"))
    usable = [k for k in range(ROWS) if k != BAD]
    assert reference.worst(scores(run)[usable], by_hand(config, family)) < 1e-4
    rows = run.examples().to_pylist()
    assert [row["status"] for row in rows] == ["unreadable" if k == BAD else "ok" for k in range(ROWS)]
    assert [problem.detail for problem in run.record.problems] == ["image cannot be decoded: image file is truncated"]
    trainer = pipelines.Trainer(config["model"], family)
    first = rows_of(tmp_path / "train.parquet")[0]
    mean = sum(trainer.loss(first, t, **how_of(config)).item() for t in TIMESTEPS) / len(TIMESTEPS)
    assert rows[0]["loss"] == pytest.approx(mean, rel=1e-5)
    names = run.blocks()["block"].to_pylist()
    dampings = run.blocks()["damping"].to_pylist()
    assert len(names) == len(trainer.named) * (len(TIMESTEPS) if combine == "paired" else 1)
    if combine == "paired":
        assert [name.partition("/")[0] for name in names[:: len(trainer.named)]] == [f"t{t}" for t in TIMESTEPS]
        assert dampings[: len(trainer.named)] == dampings[-len(trainer.named) :]
    assert run.record.capture.path == "hooks"
    two = attribute(config | {"output": str(tmp_path / "two"), "cluster": {"max_workers": 2, "chunk_rows": 3}})
    assert tables(two) == tables(run)
    _is_read(run, monkeypatch, capsys)


def _is_read(run: datainf_ray.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands that show rows say how large a picture is, and none of its bytes."""
    for words in (["show", run.url, 1], ["show", run.url, 1, "--format", "json"], ["top", run.url, "--text", "full"]):
        capsys.readouterr()
        assert status_of(monkeypatch, *words) == 0
        told = capsys.readouterr().out
        assert re.search(r"\d\.png, [\d.]+ kB", told)
        assert "a dog no 1" in told or words[0] == "top"
        assert "PNG" not in told
    asked = ["curate", run.url, "--because", "helpful", "--drop", 1, "--dry-run"]
    assert status_of(monkeypatch, *asked, "--near-duplicates") == 2
    said = capsys.readouterr().err
    assert "--near-duplicates: compares texts, and pictures of the same caption need not be alike" in said
    assert status_of(monkeypatch, *asked) == 0


def test_the_plan_counts_draws(tmp_path: Path) -> None:
    config = prepared(tmp_path, "sd")
    plans = [datainf_ray.plan(config, **{"diffusion.timesteps": count}) for count in (1, 4)]
    assert plans[1].tokens == 4 * plans[0].tokens
    assert plans[1].blocks == 4 * plans[0].blocks
    assert plans[1].flops > 3 * plans[0].flops


def test_the_plan_reckons_with_pictures_in_memory(tmp_path: Path) -> None:
    config = prepared(tmp_path, "sd")
    config["cluster"] = {"max_workers": 1, "chunk_rows": ROWS}
    small, large = (datainf_ray.plan(config, **{"diffusion.resolution": side}) for side in (16, 2048))
    assert large.worker_bytes - small.worker_bytes > 2 * ROWS * 3 * (2048**2 - 16**2)
    job = prepare(load_config(config, **{"diffusion.resolution": 2048, "cluster.chunk_rows": "auto"}))
    many = {"train": replace(job.corpora["train"], rows=10**6), "queries": job.corpora["queries"]}
    assert choose_chunk_rows(replace(job, corpora=many), 1, 32768) == 256 * 10**6 // (3 * 2048**2)


VAIN = {
    "diffusion.resolution": (17, "17: Stable Diffusion 1.x and 2.x takes multiples of 2; use 16"),
    "diffusion.min_snr_gamma": (5.0, "5.0: Stable Diffusion 3 is trained by flow matching, which has none; use null"),
    "diffusion.noise_offset": (0.1, "0.1: Stable Diffusion 3 is trained by flow matching, which has none; use null"),
    "diffusion.timesteps": ([25, 1000], "[25, 1000]: has 1000, and the training of "),
    "method.name": ("representation", "representation: takes a hidden state at a row's last token, and text-to-image"),
    "train.max_length": (20, "20: has no effect: a prompt has the tokens that the pipeline gives it; use null"),
    "train.targets": ("completion", "completion: "),
    "model.quantization": ("8bit", "8bit: "),
    "train.columns": ({"prompt": "nowhere"}, "nowhere: no such column"),
}


@pytest.mark.parametrize("key", VAIN)
def test_what_is_asked_for_in_vain_is_one_line(tmp_path: Path, key: str) -> None:
    value, said = VAIN[key]
    config = prepared(tmp_path, "sd3" if "Diffusion 3" in said else "sd")
    with pytest.raises(RequestError) as caught:
        datainf_ray.plan(config, **{key: value})
    line = str(caught.value)
    assert line.startswith(key)
    assert said in line
    assert "\n" not in line


def test_without_the_extra_it_says_how_to_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    config, find = prepared(tmp_path, "sd"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "PIL" else find(name, *more))
    with pytest.raises(RequestError) as caught:
        datainf_ray.plan(config)
    remedy = "pip install 'datainf-ray[diffusion]'"
    assert str(caught.value) == f"model.task: text-to-image: needs pillow, not installed here; {remedy}"


def test_a_folder_of_pictures_is_seen(tmp_path: Path) -> None:
    config = prepared(tmp_path, "sdxl")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, row in enumerate(rows_of(tmp_path / "queries.parquet")):
        (folder / f"{k}.png").write_bytes(row["image"])
        (folder / f"{k}.txt").write_text(row["prompt"])
    config["train"] = {"path": str(folder)}
    seen = datainf_ray.tokens(config)
    assert [(row.id, row.status) for row in seen] == [("0.png", "ok"), ("1.png", "ok")]
    assert "".join(run.text for run in seen[0].sequences[0].runs) == "<|startoftext|>a dog no 0 of 2 <|endoftext|>"
