"""Several checkpoints in one configuration: a run for each, and the sum of their influences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import datainf_ray
from datainf_ray.common.errors import RequestError
from datainf_ray.config import load_config
from datainf_ray.request.job import complete
from datainf_ray.request.understand import understand_each
from datainf_ray.runs.schemas import matrix
from datainf_ray.session.checkpoints import execute_each, sum_of_jobs
from tests import tiny
from tests.interrupting import Interrupter
from tests.runs_of import attribute, status_of, tables

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]

WEIGHTS = [2e-4, 0.5e-4]


@pytest.fixture
def config(tmp_path: Path, tiny_llama: dict[str, Any]) -> dict[str, Any]:
    """Two checkpoints of an adapter, the second of another rank."""
    tiny.save_model(tmp_path / "later", "llama", seed=5, lora={"r": 2})
    shutil.move(tmp_path / "later" / "adapter", tmp_path / "checkpoint-200")
    shutil.move(tmp_path / "adapter", tmp_path / "checkpoint-100")
    adapters = [str(tmp_path / f"checkpoint-{step}") for step in (100, 200)]
    model = {**tiny_llama, "adapter": adapters, "adapter_weights": WEIGHTS}
    return tiny.configuration(tmp_path, model, tmp_path / "run", results={"self_influence": True, "top_k": 5})


def alone(config: dict[str, Any], number: int, output: Path) -> datainf_ray.Run:
    model = {**config["model"], "adapter": config["model"]["adapter"][number], "adapter_weights": None}
    return attribute({**config, "model": model, "output": str(output)})


def test_a_list_is_a_run_for_each_and_their_sum(tmp_path: Path, config: dict[str, Any]) -> None:
    planned = datainf_ray.plan(config)
    run = attribute(config)
    ones = [alone(config, number, tmp_path / f"alone-{number}") for number in (0, 1)]
    for number, one in enumerate(ones):
        beneath = tmp_path / "run" / "runs" / f"000{number}-checkpoint-{(number + 1) * 100}"
        assert tables(beneath) == tables(one)
    want = sum(w * matrix(one.scores()["influence"]).astype(np.float64) for w, one in zip(WEIGHTS, ones, strict=True))
    np.testing.assert_array_equal(matrix(run.scores()["influence"]), want.astype(np.float32))
    own = sum(
        w * one.examples()["self_influence"].to_numpy().astype(np.float64) for w, one in zip(WEIGHTS, ones, strict=True)
    )
    np.testing.assert_array_equal(run.examples()["self_influence"].to_numpy(), own.astype(np.float32))
    assert planned.sweeps == [sweep["name"] for sweep in run.summary()["sweeps"]]
    assert run.config["model"]["adapter"] == config["model"]["adapter"]
    both = datainf_ray.combine(ones, tmp_path / "both", weights=WEIGHTS, progress=False)
    assert tables(tmp_path / "both") == {k: v for k, v in tables(run).items() if not k.startswith("runs/")}
    assert both.record.fingerprint == run.record.fingerprint
    assert attribute(config).url == run.url  # is done
    shutil.rmtree(tmp_path / "run" / "runs")
    assert attribute(config).state == "done"  # still, and nothing is made again
    assert not (tmp_path / "run" / "runs").exists()
    with pytest.raises(RequestError, match=r"output: .*run: holds another run: it combines several runs"):
        alone(config, 0, tmp_path / "run")
    with pytest.raises(RequestError, match=r"output: .*alone-0: holds another run: it combines none"):
        attribute(config, output=str(tmp_path / "alone-0"))
    with pytest.raises(RequestError, match=r"output: .*run: holds another run: it combines others, or by other"):
        attribute(config, **{"model.adapter_weights": None})
    with pytest.raises(RequestError, match=r"output: .*run: holds another run: method.damping is 0.1 there and 0.2"):
        attribute(config, **{"method.damping": 0.2})


@pytest.mark.slow
def test_one_that_is_cut_off_anywhere_goes_on_with_the_same_bytes(tmp_path: Path, config: dict[str, Any]) -> None:
    quiet = attribute(config, output=str(tmp_path / "quiet"))

    class Nth(Interrupter):
        """Interrupts a sweep of the run at a number."""

        def __init__(self, run: int, sweep: str, chunks: int) -> None:
            super().__init__(sweep, chunks)
            self.run = run

        def begin(self, sweep: str, rows: int) -> None:
            at = sum(line.startswith("adapter ") for line in self.said)
            super().begin(sweep if at == self.run else "", rows)

    def execute(output: str, watcher: Interrupter) -> datainf_ray.Run:
        asked = load_config(config, output=str(tmp_path / output))
        directory, requests = understand_each(asked)
        jobs = [complete(request) for request in requests]
        return execute_each(sum_of_jobs(asked, directory, jobs), jobs, watcher)

    for number, when in enumerate([(1, "scores", 3), (2, "curvature", 2), (2, "combine", 1)]):
        with pytest.raises(KeyboardInterrupt):
            execute(f"cut-{number}", Nth(*when))
        assert datainf_ray.open_run(str(tmp_path / f"cut-{number}")).state == "interrupted"
        watcher = Interrupter()
        run = execute(f"cut-{number}", watcher)
        assert tables(run) == tables(quiet)
        assert sum("already done" in line for line in watcher.said) == number
        assert not (tmp_path / f"cut-{number}" / "checkpoints").exists()


def test_the_command_does_it_and_others_take_the_first(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "attribute.yaml"
    file.write_text(yaml.safe_dump({**config, "index": True, "index_dtype": "float32"}))
    assert status_of(monkeypatch, "plan", file) == 0
    assert "2 adapters, each a run of its own in" in " ".join(capsys.readouterr().out.split())
    assert status_of(monkeypatch, "tokens", file, "--row", 3) == 0
    assert "row-3" in capsys.readouterr().out
    assert status_of(monkeypatch, "check", file, "--json") == 0
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert "the first of 2 adapters" in findings["request"]["detail"]
    assert not (tmp_path / "run").exists()
    assert status_of(monkeypatch, "run", file, "--progress", "none") == 0
    # each run has its index, and the answers can be combined
    urls = sorted(str(path) for path in (tmp_path / "run" / "runs").iterdir())
    queries = {"path": str(tmp_path / "queries.jsonl"), "id": "name"}
    answers = [
        datainf_ray.query(url, queries=queries, output=f"{tmp_path}/answers-{n}", progress=False)
        for n, url in enumerate(urls)
    ]
    both = datainf_ray.combine(answers, tmp_path / "answers", weights=WEIGHTS, progress=False)
    run = datainf_ray.open_run(str(tmp_path / "run"))
    want = torch.from_numpy(matrix(run.scores()["influence"]))
    assert torch.allclose(torch.from_numpy(matrix(both.scores()["influence"])), want, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
@pytest.mark.fresh_workers  # a driver that is elsewhere knows nothing of those that wait here, and needs their CPUs
def test_in_the_background_it_is_one_run_that_can_be_waited_for(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of adapters that are named from here, by a driver that is elsewhere."""
    monkeypatch.chdir(tmp_path)
    model = {**config["model"], "adapter": ["checkpoint-100", "checkpoint-200"]}
    begun = datainf_ray.attribute({**config, "model": model, "output": "far/run"}, block=False)
    assert begun.state in ("starting", "running")
    run = begun.wait(120, progress=False)
    assert run.url == str(tmp_path / "far" / "run")
    assert [Path(one.run).name for one in run.record.combined] == ["0000-checkpoint-100", "0001-checkpoint-200"]


def test_a_list_of_one_is_a_plain_run(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", method={"name": "hessian-free"})
    plain = attribute(config)
    assert attribute(config, **{"model.adapter": [tiny_llama["adapter"]]}).url == plain.url
    assert plain.record.combined is None


def test_what_is_wrong_is_told_before_anything_is_written(tmp_path: Path, config: dict[str, Any]) -> None:
    first, second = config["model"]["adapter"]
    (tmp_path / "latest").symlink_to(first)
    wrong = {
        "model.adapter: .*latest: is the same adapter as .*checkpoint-100: a link": {
            "model.adapter": [first, str(tmp_path / "latest")]
        },
        "model.adapter: .*: name an adapter, or several": {"model.adapter": []},
        "model.adapter: .*: names .*checkpoint-100 twice": {"model.adapter": [first, first]},
        r"model.adapter_weights: \[0.0002, 5e-05\]: has 2 for 3 adapters": {"model.adapter": [first, second, "x"]},
        "model.adapter_weights: .*: has no effect on one adapter": {"model.adapter": first},
        r"model.adapter_weights.1: -1: a number from 1e-30 to 1e\+30": {"model.adapter_weights": [1, -1]},
        "model.adapter: .*nowhere: no such directory": {"model.adapter": [first, str(tmp_path / "nowhere")]},
        "results.scores: false: leaves nothing of several adapters": {"results.scores": False},
        "index: x: is one place for several runs; use index: true": {"index": "x"},
        "output: .*checkpoint-200: is what the request reads as model.adapter": {"output": second},
    }
    for said, changes in wrong.items():
        with pytest.raises(RequestError, match=said):
            attribute(config, **changes)
    weights = load_file(Path(second) / "adapter_model.safetensors")
    weights.popitem()
    save_file(weights, Path(second) / "adapter_model.safetensors")
    with pytest.raises(RequestError, match=r"model.adapter: .*checkpoint-200"):
        attribute(config)
    assert not (tmp_path / "run").exists()
