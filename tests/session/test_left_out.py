"""Key biases: softmax does not see what is added to all keys, so their gradient is zero, and in float32 rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import datainf_ray
from datainf_ray.runs.checksums import stored
from datainf_ray.runs.schemas import blocks_schema, left_out, read_parquet, table_bytes
from datainf_ray.session.outcome import findings
from tests import reference, tiny
from tests.runs_of import attribute, scores

BIASES = [f"bert.encoder.layer.{k}.attention.self.key.base_layer.bias" for k in range(2)]
TARGETS = ["query", "key", "value"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    tiny.write_rows(folder / "train.jsonl", 24, seed=1, labels=3)
    tiny.write_rows(folder / "queries.jsonl", 3, seed=2, labels=3)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> dict[str, Any]:
    return tiny.save_model(folder, "bert", TARGETS, lora={"bias": "lora_only"})


@pytest.fixture(scope="module")
def exact(folder: Path, model: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The gradients of rows and queries in float64, without the key biases'."""
    peft = reference.load(model)

    def gradients(name: str) -> dict[str, torch.Tensor]:
        found = reference.gradients(peft, reference.encode(model, str(folder / f"{name}.jsonl")))
        return {block: g for block, g in found.items() if not block.endswith("key.base_layer.bias")}

    return gradients("train"), gradients("queries")


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_key_biases_are_left_out_and_named_and_so_they_are_for_later_queries(
    folder: Path, model: dict[str, Any], exact: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
) -> None:
    g, v = exact
    config = tiny.configuration(folder, model, folder / "run", index=True, index_dtype="float32")
    assert datainf_ray.plan(config).left_out == BIASES
    run = attribute(config, **{"results.blocks": True})
    assert reference.worst(scores(run), reference.datainf(g, v)) < 1e-4
    assert run.record.left_out == run.summary()["left_out"] == BIASES
    gone = dict(zip(run.blocks()["block"].to_pylist(), run.blocks()["left_out"].to_pylist(), strict=True))
    assert [block for block, out in gone.items() if out] == BIASES
    assert len(gone) == len(g) + len(BIASES)
    trainable = run.record.trainable
    assert trainable is not None
    assert trainable.total - trainable.attributed == 2 * 32
    by_block = torch.from_numpy(run.examples()["block_influence"].combine_chunks().flatten().to_numpy())
    assert (by_block.view(24, 3, len(gone))[:, :, list(gone.values())] == 0).all()
    told = f"2 of 20 blocks are left out: their gradients are zero but for rounding ({', '.join(BIASES)})"
    assert told in findings(run)
    assert told in run.directory.read("report.html").decode()

    queries = str(folder / "queries.jsonl")
    asked = datainf_ray.query(run.url, queries=queries, output=str(folder / "asked"), progress=False)
    torch.testing.assert_close(scores(asked), scores(run), rtol=1e-5, atol=1e-9)
    assert asked.record.left_out == BIASES
    assert told in findings(asked)

    _make_earlier(Path(run.url))
    asked = datainf_ray.query(run.url, queries=queries, output=str(folder / "later"), progress=False)
    torch.testing.assert_close(scores(asked), scores(run), rtol=1e-5, atol=1e-9)
    assert asked.record.left_out == BIASES
    assert asked.blocks()["left_out"].to_pylist() == list(gone.values())


def _make_earlier(run: Path) -> None:
    """Make a run like one of a version that knew nothing of blocks to leave out: each has the damping of its sizes."""
    blocks = read_parquet((run / "blocks.parquet").read_bytes()).drop_columns("left_out")
    lambdas = {b["block"]: 0.1 * b["mean_sqnorm"] / b["size"] for b in blocks.to_pylist()}
    blocks = blocks.set_column(4, blocks.schema.field("damping"), [list(lambdas.values())])
    (run / "blocks.parquet").write_bytes(data := table_bytes(blocks))
    record = json.loads((run / "run.json").read_text())
    del record["left_out"]
    record["files"]["blocks.parquet"] = stored(data).model_dump()
    (run / "run.json").write_text(json.dumps(record))
    index = json.loads((run / "index" / "index.json").read_text())
    assert all(index["damping"][block] == 0 for block in BIASES)
    (run / "index" / "index.json").write_text(json.dumps(index | {"damping": lambdas}))


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_they_are_left_out_by_a_sample_and_not_where_there_is_no_damping(
    folder: Path, model: dict[str, Any], exact: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
) -> None:
    sampled = attribute(tiny.configuration(folder, model, folder / "some"), **{"method.curvature_rows": 16})
    assert sampled.record.left_out == BIASES
    plain = attribute(tiny.configuration(folder, model, folder / "plain", method={"name": "hessian-free"}))
    assert reference.worst(scores(plain), reference.hessian_free(*exact)) < 1e-4  # rounding adds rounding there
    assert plain.record.left_out == []
    assert plain.blocks()["left_out"].null_count == len(plain.blocks())
    assert not any("left out" in line for line in findings(plain))


def test_blocks_of_an_earlier_version_can_be_read() -> None:
    """Its blocks.parquet has no such column."""
    schema = blocks_schema()
    row = {"block": "a", "kind": "bias", "shape": [2], "size": 2, "damping": 1e-20, "mean_sqnorm": 1e-19}
    table = pa.Table.from_pylist([row], schema=schema).drop_columns("left_out")
    read = read_parquet(table_bytes(table), schema)
    assert read["left_out"].to_pylist() == [None]
    assert left_out(read) == []
