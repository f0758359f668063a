"""The experiments: their common parts against whole runs, and each program on tiny models from its first cell on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from experiments.common import glue
from experiments.common.attribution import Attribution
from experiments.common.cells import Kept, compute
from experiments.common.finetune import Recipe, fine_tune
from experiments.common.statistics import auc, bootstrap, mean_interval, recall
from peft import PeftModel
from transformers import AutoModelForCausalLM

from datainf_ray.influence.register import NAMES
from datainf_ray.runs.directory import RunDirectory
from tests import reference, tiny
from tests.experiments.running import run_experiment
from tests.runs_of import attribute, scores

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


@pytest.mark.parametrize("method", NAMES)
def test_attribution_in_memory_is_that_of_a_whole_run(tmp_path: Path, tiny_llama: dict[str, Any], method: str) -> None:
    request = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", queries={"path": f"{tmp_path}/queries.jsonl"})
    run = attribute({**request, "method": {"name": method}})
    attribution = Attribution(request)
    found = attribution.by(method)
    assert reference.worst(torch.tensor(found.influence), scores(run).double()) < 1e-4
    examples = run.examples()
    np.testing.assert_allclose(attribution.losses, examples["loss"].to_numpy(), rtol=1e-6, atol=0)
    if method == "datainf":
        np.testing.assert_allclose(attribution.norms**2, examples["sqnorm"].to_numpy(), rtol=1e-5, atol=0)


def test_self_influence_in_memory(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    request = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    run = attribute({**request, "results": {"self_influence": True}})
    selves = Attribution(request).by("datainf", self_influence=True).selves
    assert selves is not None
    np.testing.assert_allclose(selves, run.examples()["self_influence"].to_numpy(), rtol=1e-4, atol=0)


def test_a_fine_tune_lowers_the_loss_and_is_taken_up(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    """Its adapters are PEFT's own, the same for the same seed, and none is trained again that is there."""
    request = tiny.configuration(tmp_path, {"base": tiny_llama["base"], "task": "causal-lm"}, tmp_path / "run")
    recipe = Recipe(targets=("q_proj", "v_proj"), epochs=3, batch=8, learning_rate=3e-2)
    first, last = fine_tune(request, recipe, 1, tmp_path / "adapters", [0, 3])
    rows = reference.encode({**tiny_llama, "adapter": str(last)}, str(tmp_path / "train.jsonl"))

    def loss(adapter: Path) -> float:
        peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama["base"]), str(adapter)).eval()
        with torch.no_grad():
            return float(np.mean([float(reference.loss(peft, row)) for row in rows]))

    assert loss(last) < loss(first)
    again = fine_tune(request, recipe, 1, tmp_path / "again", [3])[0]
    weights = "adapter_model.safetensors"
    assert (again / weights).read_bytes() == (last / weights).read_bytes()
    (again / weights).write_bytes(b"kept")
    fine_tune(request, recipe, 1, tmp_path / "again", [3])
    assert (again / weights).read_bytes() == b"kept"


def test_what_a_cell_keeps_is_in_its_next_workspace(tmp_path: Path) -> None:
    kept = Kept(RunDirectory(str(tmp_path / "out")), "one")
    with kept.workspace() as folder:
        (folder / "adapters/epoch-01").mkdir()
        (folder / "adapters/epoch-01/a.safetensors").write_bytes(b"weights")
        (folder / "rows").write_text("not kept")
        kept.keep(folder)
    assert not folder.exists()
    with kept.workspace() as folder:
        assert [p.name for p in folder.rglob("*") if p.is_file()] == ["a.safetensors"]
        assert (folder / "adapters/epoch-01/a.safetensors").read_bytes() == b"weights"


def squared(values: Mapping[str, Any], kept: Kept) -> list[dict[str, Any]]:
    with kept.workspace() as folder:
        found = [path.read_text() for path in (folder / "adapters").iterdir()]
        (folder / "adapters/a.safetensors").write_text(str(values["recipe"]["x"]))
        kept.keep(folder)
    return [{"y": values["recipe"]["x"] ** 2, "found": found}]


def test_cells_that_were_made_for_other_values_are_made_again(tmp_path: Path) -> None:
    """And what they kept is not taken up; those of the same values are not made again."""
    directory = RunDirectory(str(tmp_path / "out"))

    def made(seed: int = 0, **cells: int) -> list[tuple[int, list[str]]]:
        asked = {name: {"recipe": {"x": x}} for name, x in cells.items()}
        return [(r["y"], r["found"]) for r in compute(directory, squared, asked, {"seed": seed}).to_pylist()]

    assert made(a=1, b=2) == [(1, []), (4, [])]
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out/cells").iterdir()}
    assert made(a=1, b=3, c=4) == [(1, []), (9, []), (16, [])]
    assert times["a.parquet"] == (tmp_path / "out/cells/a.parquet").stat().st_mtime_ns
    (tmp_path / "out/cells/b.parquet").unlink()  # cut off behind what it kept
    assert made(b=3) == [(9, ["3"])]
    assert made(1, b=3) == [(9, [])]


def test_flipped_labels_are_other_labels(tmp_path: Path) -> None:
    table = pa.table({"sentence": [f"w{k}" for k in range(60)], "label": [k % 3 for k in range(60)]})
    glue.write(table, tmp_path / "rows.parquet")
    rows = glue.sample(str(tmp_path / "rows.parquet"), 31, 5)
    assert np.bincount(rows["label"].to_numpy()).tolist() == [11, 10, 10]
    flipped = glue.flip(rows, 0.2, 5)
    which, label, true = (flipped[name].to_numpy() for name in ("flipped", "label", "true_label"))
    assert which.sum() == 6
    assert ((label != true) == which).all()
    assert set(label) == {0, 1, 2}
    assert glue.flip(rows, 0.2, 5).equals(flipped)
    assert not glue.flip(rows, 0.2, 6).equals(flipped)


def test_intervals() -> None:
    """Student's, of 1 to 5 by the book; a bootstrap of a mean, near the normal one."""
    mean, half = mean_interval([1, 2, 3, 4, 5])
    assert (mean, round(half, 3)) == (3, 1.963)
    values = np.random.default_rng(0).standard_normal(400)
    middle, low, high = bootstrap(values)
    assert middle == values.mean()
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_rows_that_tie_count_the_same_wherever_they_lie() -> None:
    """As those do that share no word with a query."""
    truth = np.arange(12) < 4
    for order in (slice(None), slice(None, None, -1)):
        scores = np.array([2.0, *[0.0] * 11])[order]
        assert auc(scores, truth[order]) == pytest.approx((1 + 3 * 0.5) / 4)
        assert recall(scores, truth[order]) == pytest.approx((1 + 3 * 3 / 11) / 4)


def glue_rows(folder: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    for name, count in (("train", 40), ("validation", 20)):
        lines = [tiny.words(draw, 5) for _ in range(count)]
        table = pa.table({"sentence": lines, "label": [k % 2 for k in range(count)]})
        for shard, some in enumerate((table[:7], table[7:])):  # as a hub has them
            glue.write(some, folder / f"sst2/{name}-0000{shard}-of-00002.parquet")


def language_rows(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    for name, each in (("train", 4), ("test", 1)):
        rows = [{"prompt": tiny.words(draw, 3), "variation": f"class {k % 10}"} for k in range(10 * each)]
        for row in rows:
            row["text"] = f"{row['prompt']} {tiny.words(draw, 3)}</s>"
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


@pytest.mark.slow
def test_the_approximation_error(tmp_path: Path) -> None:
    glue_rows(tmp_path)
    model = tiny.save_model(tmp_path, "bert", labels=2)["base"]
    recipe = {"targets": ["query", "value"], "epochs": 1}
    small = {"data": str(tmp_path), "model": model, "tasks": ["sst2"], "rows": 20, "validation_rows": 10}
    few = {"ranks": [1, 2], "seeds": 2, "noise": [0.2], "recipe": recipe}
    found = run_experiment("approximation", tmp_path / "out", **small, **few)["results"]
    assert len(found) == 2 * 2 * 4
    assert set(found["method"].to_pylist()) == {"datainf", "lissa", "lissa, scale 1", "hessian-free"}
    for row in found.to_pylist():
        assert row["pearson"] is None or -1 <= row["pearson"] <= 1
    by = {
        m: np.mean([r["pearson"] for r in found.to_pylist() if r["method"] == m]) for m in ("datainf", "hessian-free")
    }
    assert by["datainf"] > by["hessian-free"]
    assert "| sst2 | 20% | 1 |" in (tmp_path / "out/table.md").read_text()
    assert (tmp_path / "out/figure.svg").read_bytes().startswith(b"<?xml")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/cells").iterdir()}
    run_experiment("approximation", tmp_path / "out", **small, **few)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out/cells").iterdir()}


@pytest.mark.slow
def test_mislabelled_rows(tmp_path: Path) -> None:
    glue_rows(tmp_path)
    model = tiny.save_model(tmp_path, "bert", labels=2)["base"]
    recipe = {"targets": ["query", "value"], "epochs": 2}
    small = {"data": str(tmp_path), "model": model, "tasks": ["sst2"], "rows": 20, "validation_rows": 10}
    found = run_experiment("mislabelled", tmp_path / "out", **small, seeds=1, recipe=recipe, epochs=[1, 2])["results"]
    assert len(found) == 2 * 10
    assert {r["epoch"] for r in found.to_pylist()} == {1, 2}
    assert all(0 <= r["auc"] <= 1 for r in found.to_pylist())
    assert len(list((tmp_path / "out/adapters").rglob("*.safetensors"))) == 2


@pytest.mark.slow
def test_influential_rows(tmp_path: Path) -> None:
    language_rows(tmp_path / "sentences")
    base = tiny.save_model(tmp_path, "llama")["base"]
    models = {"tiny": {"base": base, "recipe": {"targets": ["q_proj"], "epochs": 1}}}
    small = {"data": str(tmp_path), "models": models, "rows": ["sentences"], "targets": ["completion"]}
    found = run_experiment("influential", tmp_path / "out", **small, each=4, queries_each=1, epochs=[0, 1])["results"]
    assert len(found) == 2 * 6 * 10
    assert all(0 <= r["auc"] <= 1 and 0 <= r["recall"] <= 1 for r in found.to_pylist())


@pytest.mark.slow
def test_a_bank_of_retrains(tmp_path: Path) -> None:
    """Its subsets are as they are said to be, a model of all rows stands beside them, every method has every answer."""
    language_rows(tmp_path)
    base = tiny.save_model(tmp_path, "llama")["base"]
    recipe = {"targets": ["q_proj", "v_proj"], "epochs": 2, "batch": 8, "learning_rate": 1e-2}
    small = {"data": str(tmp_path), "model": base, "each": 4, "queries_each": 1, "recipe": recipe}
    found = run_experiment("retrain", tmp_path / "out", **small, half=4, most=3, removal_queries=2)
    subsets = json.loads((tmp_path / "out/bank/subsets.json").read_text())
    assert [len(rows) for name, rows in subsets.items() if name.startswith("half")] == [20] * 4
    assert [len(rows) for name, rows in subsets.items() if name.startswith("most")] == [39] * 3
    questions = {r["question"] for r in found["results"].to_pylist()}
    assert len(questions) == 4
    assert len(found["results"]) == 4 * 9
    patch = {r["method"]: r["mean"] for r in found["results"].to_pylist() if r["question"] == "loss fall by one step"}
    assert patch["hessian-free"] > patch["random"]
    losses = {r["subset"]: r["losses"] for r in found["losses"].to_pylist()}
    assert all(len(each) == 10 for each in losses.values())
