"""Whole runs on a small local Ray, against float64 and plain loops."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import datainf_ray
from datainf_ray.common.errors import RequestError
from datainf_ray.runs.schemas import ACROSS, matrix
from tests import reference, tiny
from tests.interrupting import Interrupter, killing_workers
from tests.runs_of import attribute, scores, tables

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def exact(model: dict[str, Any], folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    peft = reference.load(model)
    rows, queries = (reference.encode(model, str(folder / f"{name}.jsonl")) for name in ("train", "queries"))
    return reference.gradients(peft, rows), reference.gradients(peft, queries)


def test_rows_that_are_put_together_are_the_same_rows(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    """Of a Jinja text, of values within columns and of Hive's folders, as of a file that has it all written out."""
    whole = attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "whole"))
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    parts = []
    for row in rows:
        first, second = row["prompt"].split()
        data = {"answer": row["completion"], "name": row["name"]}
        parts.append({"first": first, "second": second, "data": data})
    for k, of in enumerate((parts[:13], parts[13:])):
        folder = tmp_path / "parts" / f"half={k}"
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(of), folder / "part-0.parquet", row_group_size=5)
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    columns = {"prompt": "{{ first }}{% if second %} {{ second }}{% endif %}", "completion": "data.answer"}
    config["train"] = {"path": str(tmp_path / "parts"), "columns": columns, "id": "data.name"}
    run = attribute(config)
    assert torch.equal(scores(run), scores(whole))
    assert run.examples()["id"].to_pylist() == [row["name"] for row in rows]
    assert run.config["train"]["columns"] == columns
    config["train"]["columns"] = columns | {"prompt": "{{ first }}{{ second }}"}
    with pytest.raises(RequestError, match=r"columns"):  # another run
        attribute(config)


@pytest.mark.parametrize(
    ("arch", "targets", "side", "batch_tokens", "workers"),
    [
        ("llama", None, "right", 1, 1),  # batches of one
        ("llama", "all-linear", "left", 60, 2),  # about three
        ("gpt2", "all-linear", "right", 160, 1),  # about seven
        ("gpt2", None, "left", 60, 2),
        ("bert", None, "right", 60, 1),
        ("bert", "all-linear", "right", 160, 2),
    ],
)
def test_datainf_equals_the_float64_loop(
    tmp_path: Path, arch: str, targets: str | None, side: str, batch_tokens: int, workers: int
) -> None:
    labels = 3 if arch == "bert" else None
    tiny.write_rows(tmp_path / "train.jsonl", 40, 1, labels)
    tiny.write_rows(tmp_path / "queries.jsonl", 4, 2, labels)
    model = tiny.save_model(tmp_path, arch, targets, side=side)
    config = tiny.configuration(tmp_path, model, tmp_path / "run")
    config["cluster"] |= {"batch_tokens": batch_tokens, "max_workers": workers}
    run = attribute(config)
    g, v = exact(model, tmp_path)
    assert reference.worst(scores(run), reference.datainf(g, v)) < 1e-4
    peft = reference.load(model)
    rows = reference.encode(model, str(tmp_path / "train.jsonl"))
    want = [reference.loss(peft, row).item() for row in rows]
    np.testing.assert_allclose(run.examples()["loss"].to_numpy(), want, rtol=1e-5, atol=0)
    total = sum(x.square().sum(1) for x in g.values()).numpy()
    np.testing.assert_allclose(run.examples()["sqnorm"].to_numpy(), total, rtol=1e-4, atol=0)
    lambdas = [0.1 * float(x.square().sum()) / (len(x) * x.shape[1]) for x in g.values()]
    np.testing.assert_allclose(run.blocks()["damping"].to_numpy(), lambdas, rtol=1e-4, atol=0)
    assert run.summary()["status"] == {"ok": 40}


def test_hessian_free_equals_the_dot_product(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", method={"name": "hessian-free"})
    run = attribute(config)
    assert reference.worst(scores(run), reference.hessian_free(*exact(tiny_llama, tmp_path))) < 1e-4
    assert [s["name"] for s in run.summary()["sweeps"]] == ["queries", "scores"]
    assert run.blocks()["damping"].null_count == len(run.blocks())
    assert run.blocks()["mean_sqnorm"].null_count == 0


def test_cosine_equals_the_loop_planned_resumed_and_from_an_index(
    tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method of one file and a line in the register: nothing else knows it by name."""
    settings = {"method": {"name": "cosine"}, "index": True, "index_dtype": "float32", "results": {"blocks": True}}
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", **settings)
    planned = datainf_ray.plan(config)
    run = attribute(config)
    want = reference.cosine(*exact(tiny_llama, tmp_path))
    np.testing.assert_allclose(scores(run), want, rtol=1e-3, atol=0)
    assert reference.worst(scores(run), want) < 1e-5
    assert planned.sweeps == [s["name"] for s in run.summary()["sweeps"]] == ["queries", "scores"]
    assert run.blocks()["damping"].null_count == len(run.blocks())
    two = attribute(config, output=str(tmp_path / "two"), **{"cluster.max_workers": 2, "cluster.min_workers": 2})
    assert tables(two) == tables(run)
    answers = datainf_ray.query(
        run.url, queries={"path": str(tmp_path / "queries.jsonl"), "id": "name"}, output=str(tmp_path / "answers"),
        progress=False,
    )  # fmt: skip
    assert reference.worst(scores(answers), want) < 1e-5


def test_groups_are_means_of_their_rows(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    lines = (tmp_path / "queries.jsonl").read_text().splitlines()
    topics = ["x", "y", "x", "x"]
    rows = [json.loads(line) | {"topic": t} for line, t in zip(lines, topics, strict=True)]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "each")
    each = scores(attribute(config))
    whole = attribute(config, output=str(tmp_path / "all"), **{"queries.group": "all"})
    by_topic = attribute(config, output=str(tmp_path / "topic"), **{"queries.group": "topic"})
    # influence is linear in the query's gradient, so that of a mean is the mean
    assert reference.worst(scores(whole), each.double().mean(1, keepdim=True)) < 1e-4
    want = torch.stack([each[:, [0, 2, 3]].double().mean(1), each[:, 1].double()], 1)
    assert reference.worst(scores(by_topic), want) < 1e-4
    assert by_topic.queries()["id"].to_pylist() == ["x", "y"]
    assert by_topic.queries()["rows"].to_pylist() == [3, 1]
    assert by_topic.top(query="y", k=3).num_rows == 3


def test_sum_loss_is_another_question(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", method={"loss": "sum"})
    peft = reference.load(tiny_llama)
    g, v = (
        reference.gradients(peft, reference.encode(tiny_llama, str(tmp_path / f"{name}.jsonl")), "sum")
        for name in ("train", "queries")
    )
    assert reference.worst(scores(attribute(config)), reference.datainf(g, v)) < 1e-4


def test_one_worker_and_two_write_the_same_bits(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "one", results={"blocks": True, "top_k": 5})
    one = attribute(config, **{"cluster.max_workers": 1})
    two = attribute(config, output=str(tmp_path / "two"), **{"cluster.max_workers": 2, "cluster.min_workers": 2})
    assert tables(one) == tables(two)
    assert two.summary()["sweeps"][-1]["workers"] == 2
    by_block = matrix(one.examples()["block_influence"]).reshape(40, 4, -1)
    np.testing.assert_allclose(by_block.sum(2), scores(one), rtol=1e-3, atol=1e-4 * float(scores(one).abs().max()))


def test_tasks_and_many_shards_write_the_same_bits(
    tmp_path: Path, tiny_llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large states are summed by Ray tasks, shard by shard; small ones in the driver. It is the same arithmetic."""
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "small")
    small = attribute(config)
    monkeypatch.setattr("datainf_ray.cluster.reduce.HERE", -1)
    monkeypatch.setattr("datainf_ray.cluster.states.SHARD_BYTES", 5000)
    large = attribute(config, output=str(tmp_path / "large"))
    assert tables(large) == tables(small)


def test_a_killed_worker_changes_nothing(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    tiny.write_rows(tmp_path / "train.jsonl", 600, seed=1)
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "quiet")
    config["cluster"] |= {"chunk_rows": 20, "batch_tokens": 20, "max_workers": 2}
    quiet = attribute(config)
    with killing_workers():
        disturbed = attribute(config, output=str(tmp_path / "disturbed"))
    assert tables(disturbed) == tables(quiet)


@pytest.mark.parametrize(("sweep", "kept_scores"), [("curvature", True), ("scores", True), ("scores", False)])
def test_an_interrupted_run_is_taken_up(
    tmp_path: Path, tiny_llama: dict[str, Any], sweep: str, kept_scores: bool
) -> None:
    from datainf_ray.config import load_config
    from datainf_ray.request.job import prepare
    from datainf_ray.session.execute import execute

    results = {"scores": kept_scores}
    quiet = attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "quiet", results=results))
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "cut", results=results, gradients="recompute")
    with pytest.raises(KeyboardInterrupt):
        execute(prepare(load_config(config)), Interrupter(sweep, 3))
    cut = datainf_ray.open_run(tmp_path / "cut")
    assert cut.state == "interrupted"
    with pytest.raises(RequestError, match="interrupted"):
        cut.top()
    written = tmp_path / "cut" / "checkpoints" / "scores"
    kept = {p.name: p.stat().st_mtime_ns for p in written.glob("*.parquet")}
    assert bool(kept) == (sweep == "scores")
    after: dict[str, int] = {}

    class Noting(Interrupter):
        def end(self) -> None:
            after.update((p.name, p.stat().st_mtime_ns) for p in written.glob("*.parquet"))

    watcher = Noting("", 0)
    run = execute(prepare(load_config(config)), watcher)
    assert f"{sweep}: 24 rows taken up from an earlier attempt" in watcher.said  # three chunks of eight
    assert len(after) == 5
    assert after.items() >= kept.items()
    # each once: what had been solved was not solved again
    assert [s["name"] for s in run.summary()["sweeps"]] == ["queries", "pilot", "curvature", "scores"]
    assert tables(run) == tables(quiet)
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_a_finished_run_is_not_computed_again_and_another_is_refused(
    tmp_path: Path, tiny_llama: dict[str, Any]
) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    attribute(config)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert attribute(config, **{"cluster.max_workers": 1}).state == "done"
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.parquet")}.items() <= before.items()
    with pytest.raises(RequestError, match=r"method.damping is 0.1 there and 0.3 here"):
        attribute(config, **{"method.damping": 0.3})
    with (tmp_path / "train.jsonl").open("a") as rows:
        rows.write('{"name": "new", "prompt": "w1", "completion": "w2"}\n')
    with pytest.raises(RequestError, match=r"output: .* holds another run: the train's rows are others"):
        attribute(config)


def test_a_base_that_lacks_weights_says_so_before_there_is_a_run(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    from safetensors.torch import load_file, save_file

    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(RequestError, match=r"model.base: .* its checkpoint has no model.norm.weight"):
        attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_scores_may_be_left_out(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "with", results={"top_k": 3})
    with_scores = attribute(config)
    without = attribute(config, output=str(tmp_path / "without"), **{"results.scores": False})
    assert "influence" not in pq.read_schema(tmp_path / "without" / "examples" / "part-000000.parquet").names
    assert tables(without)["top.parquet"] == tables(with_scores)["top.parquet"]
    assert without.examples([*ACROSS]).equals(with_scores.examples([*ACROSS]))
    mean = without.examples(["influence_mean"])["influence_mean"].to_numpy()
    np.testing.assert_allclose(mean, scores(with_scores).double().mean(1).numpy(), rtol=1e-6, atol=0)
    values = scores(with_scores)[:, 2]
    top = without.top(query=2, k=3, harmful=True)
    assert top["row"].to_pylist() == values.argsort(descending=True)[:3].tolist()


def test_the_run_says_what_it_was(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    run = attribute(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run"))
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    assert document["state"] == "done"
    assert document["sign"].startswith("positive influence: upweighting the row raises the query's loss (harmful)")
    assert document["counts"]["parameters"] == sum(run.blocks()["size"].to_pylist())
    assert [s["name"] for s in document["sweeps"]] == ["queries", "pilot", "curvature", "scores"]
    assert [s["examples"] for s in document["sweeps"]] == [4, 16, 40, 40]
    assert [s["source"] for s in document["sweeps"]] == ["backward"] * 3 + ["object-store"]
    assert all(s["tokens"] > 0 and s["seconds"] > 0 for s in document["sweeps"])
    assert document["sizes"]["gradients"] == "keep"
    assert 0 < document["curvature"]["bound"] < 1e-6
    assert document["capture"]["path"] == "hooks"
    assert document["capture"]["cosine"] > 0.9999
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000
    assert not any(p.name.startswith(".") for p in (tmp_path / "run").rglob("*"))
    assert set(os.listdir(tmp_path / "run")) == {
        "run.json", "blocks.parquet", "queries.parquet", "top.parquet", "texts.parquet", "events", "examples",
        "report.html",
    }  # fmt: skip
