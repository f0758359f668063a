"""The command as a user meets it: one line for what is wrong, and the status."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from datainf_ray.planning.room import Room
from tests import tiny
from tests.runs_of import COMMAND, status_of


@pytest.fixture
def config(tmp_path: Path, tiny_llama: dict[str, Any]) -> Path:
    path = tmp_path / "attribute.yaml"
    path.write_text(yaml.safe_dump(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")))
    return path


def change_adapter(folder: Path, **keys: Any) -> None:
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def drop_tensor(folder: Path) -> None:
    file = folder / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    weights.pop(sorted(weights)[0])
    save_file(weights, file)


def reshape_base(folder: Path) -> None:
    tiny.save_model(folder / "other", "llama", settings={"hidden_size": 64})
    (folder / "base").rename(folder / "old")
    (folder / "other" / "base").rename(folder / "base")


def shorten_base(folder: Path) -> None:
    file = folder / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 1}))


def pickle_adapter(folder: Path) -> None:
    (folder / "adapter" / "adapter_model.safetensors").rename(folder / "adapter" / "adapter_model.bin")


WRONG: dict[str, tuple[list[str], Any, str]] = {
    "unknown key": (["train.pth=x"], None, "train.pth: unknown key; did you mean 'path'?"),
    "wrong type": (["cluster.max_workers=many"], None, "max_workers: 'many': a whole number of at least 1, or null"),
    "no number": (["method.damping=.nan"], None, "method.damping: nan: a number from 1e-12 to 1e+12"),
    "unknown method": (["method.name=lisa"], None, "method.name: lisa: unknown method; did you mean"),
    "missing file": (["train.path=nowhere.jsonl"], None, "train.path: "),
    "unknown store": (["train.path=nope://x/y.jsonl"], None, "train.path: "),
    "empty corpus": ([], lambda f: (f / "train.jsonl").write_text(""), "train.path: "),
    "absent column": (["train.columns={text: prmpt}"], None, "did you mean 'prompt'"),
    "absent id": (["queries.id=nam"], None, "queries.id: "),
    "absent group": (["queries.group=topic"], None, "queries.group: "),
    "absent column to sum by": (["results.by=topic"], None, "results.by: topic: no such column"),
    "sums of no scores": (["results={by: file, scores: false}"], None, "results.by: file: needs the rows' influences"),
    "no base": (["model.base=/nowhere/at/all"], None, "model.base: /nowhere/at/all: no such directory"),
    "adapter nowhere": (["model.adapter=/nowhere/at/all"], None, "model.adapter: /nowhere/at/all: no such directory"),
    "base as adapter": ([], lambda f: change_adapter(f, peft_type="IA3"), "model.adapter: "),
    "prompts": ([], lambda f: change_adapter(f, peft_type="PROMPT_TUNING"), "PROMPT_TUNING: it puts prompts before"),
    "no adapter": (["model.adapter=null"], None, "model.adapter: null: needs model.blocks; give a PEFT adapter"),
    "no such block": (["model.blocks=[x]"], None, "model.blocks: x: fits no block; the blocks are model.layers.0"),
    "no block left": (["model.blocks=['!*']"], None, "model.blocks: ['!*']: leaves no block"),
    "absent module": ([], lambda f: change_adapter(f, target_modules=["nothing"]), "does not fit the base"),
    "absent tensor": ([], drop_tensor, "its file has no base_model"),
    "other rank": ([], lambda f: change_adapter(f, r=2), "is 4×32 in the adapter and 2×32 in the base"),
    "unknown start": ([], lambda f: change_adapter(f, init_lora_weights="x"), "init_lora_weights is x: Unknown"),
    "quantized, without an adapter": (
        ["model.adapter=null", "model.blocks=['*']", "model.quantization=4bit"],
        None,
        "model.quantization: 4bit: no weights of a quantized model are trained",
    ),
    "a base of fewer layers": ([], shorten_base, "the base has no place for base_model.model.model.layers.1."),
    "other base": ([], reshape_base, "does not fit the base"),
    "pickled adapter": ([], pickle_adapter, "is a pickle of more than tensors, and none of it was run"),
    "no trainable block": ([], lambda f: change_adapter(f, r=0), "model.adapter: "),
    "unwritable output": (["output=/proc/nothing/run"], None, "output: /proc/nothing/run: cannot be written"),
    "broken template": ([], lambda f: (f / "base" / "tokenizer.json").write_text("{"), "no tokenizer can be loaded"),
    "not a run of ours": ([], lambda f: ((f / "run").mkdir(), (f / "run" / "run.json").write_text("x")), "output: "),
    "set without value": (["seed"], None, "--set: seed: is not KEY=VALUE; an example is --set cluster.max_workers=2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_one_line_before_anything_starts(
    case: str, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assignments, spoil, said = WRONG[case]
    if spoil is not None:
        spoil(config.parent)
    monkeypatch.setattr("datainf_ray.session.execute.connected", lambda *a: pytest.fail("the cluster was asked for"))
    status = status_of(monkeypatch, "run", config, *(f"--set={a}" for a in assignments))
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()
    assert status == 2, captured.err
    assert said in last[-1]
    assert last[-1].startswith("error: ")
    assert "Traceback" not in captured.err
    assert len([line for line in last if not line.startswith(("Writing model", "Loading weights"))]) == 1, last


def test_a_label_out_of_range_is_a_wrong_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save_model(tmp_path, "bert", labels=3)
    tiny.write_rows(tmp_path / "train.jsonl", 9, 1, labels=4)
    tiny.write_rows(tmp_path / "queries.jsonl", 3, 2, labels=3)
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tiny.configuration(tmp_path, model, tmp_path / "run")))
    assert status_of(monkeypatch, "run", path) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "train.columns.label" in error
    assert "label 3 is not in 0..2" in error
    assert error.endswith("takes a name in its label2id or 0 to 2; one that writes its answers is model.task causal-lm")


def test_no_configuration_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(monkeypatch, "run", tmp_path / "none.yaml") == 2
    assert "no such configuration file" in capsys.readouterr().err


def test_plan_counts_and_starts_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(monkeypatch, "plan", config, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["rows"], plan["queries"], plan["chunks"], plan["blocks"]) == (40, 4, 5, 8)
    assert plan["sweeps"] == ["queries", "pilot", "curvature", "scores"]
    assert plan["parameters"] == 2 * (4 * 32 + 32 * 4) + 2 * (4 * 32 + 16 * 4)
    assert plan["tokens"] > 40 * 4
    assert plan["worker_bytes"] > 4 * plan["base_parameters"]
    assert not (config.parent / "run").exists()
    assert status_of(monkeypatch, "plan", config) == 0
    assert "40, about" in capsys.readouterr().out


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_run_top_and_report(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    where = config.parent / "run"
    assert status_of(monkeypatch, "run", config) == 0
    said = capsys.readouterr().err
    assert "40 rows scored" in said
    assert "most harmful to query row-0" in said
    assert status_of(monkeypatch, "run", config, "--set", "cluster.max_workers=2") == 0
    assert "already done" in capsys.readouterr().err
    assert status_of(monkeypatch, "run", config, "--set", "seed=1") == 2
    assert "seed is 0 there and 1 here" in capsys.readouterr().err
    assert status_of(monkeypatch, "top", where, "--query", "row-1", "-k", "3", "--harmful", "--format", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["rank"] for r in rows] == [1, 2, 3]
    assert rows[0]["influence"] >= rows[1]["influence"] > 0
    assert status_of(monkeypatch, "top", where, "--format", "csv") == 0
    assert capsys.readouterr().out.splitlines()[0] == "query,direction,rank,row,id,influence,preview"
    assert status_of(monkeypatch, "top", where) == 0
    assert "lowers the query's loss" in " ".join(capsys.readouterr().out.split())
    assert status_of(monkeypatch, "top", where, "--query", "nobody") == 2
    (where / "report.html").unlink()
    assert status_of(monkeypatch, "report", where) == 0
    assert (where / "report.html").is_file()
    assert status_of(monkeypatch, "top", config.parent) == 2
    assert "not a run directory" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.cluster
def test_a_machine_without_room_for_a_worker_says_what_it_has(config: Path) -> None:
    """In a process of its own: here the command would join the tests' Ray, which may grow for all that it knows."""
    command = [*COMMAND, "run", str(config), "--set=cluster.cpus_per_worker=1000000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: cluster: no node has room for a worker of 1,000,000 CPUs; the cluster has ")


def test_plan_says_what_cannot_run(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Room(workers=1, gpus_per_worker=0, store_bytes=10**9, worker_bytes=10**5, device_bytes=None)
    monkeypatch.setattr("datainf_ray.planning.forecast.guess_room", lambda job: (small, ""))
    assert status_of(monkeypatch, "plan", config) == 2
    assert "cannot run    a worker's memory must be " in capsys.readouterr().out
    assert status_of(monkeypatch, "plan", config, "--json") == 2
    assert json.loads(capsys.readouterr().out)["problem"].startswith("a worker's memory must be ")


def test_a_run_that_cannot_fit_ends_before_a_worker_starts(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datainf_ray.planning.fits._least", lambda job, on_gpu: (10**15, 1, 1))
    monkeypatch.setattr("datainf_ray.cluster.pool.Pool.start", lambda *a: pytest.fail("a worker was asked for"))
    assert status_of(monkeypatch, "run", config) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: model: cannot run: a worker's memory must be 1,000.0 TB at least, and is ")


def test_code_beside_a_base_is_not_run_by_any_command(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = config.parent / "base"
    written = config.parent / "written"
    (folder / "modeling_theirs.py").write_text(
        f"open({str(written)!r}, 'w')\nfrom transformers import LlamaForCausalLM\nTheirs = LlamaForCausalLM\n"
    )
    theirs = {"auto_map": {"AutoModelForCausalLM": "modeling_theirs.Theirs"}}
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | theirs))
    for command in ("plan", "tokens"):
        assert status_of(monkeypatch, command, config) == 0
    assert not written.exists()
