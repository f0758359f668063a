"""Nodes where other versions are installed than on the driver: a run ends in one line, whenever they come."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from datainf_ray import cli
from datainf_ray.cluster.failures import classify, final_error
from datainf_ray.cluster.hiring import hire
from datainf_ray.cluster.nodes import unlike
from datainf_ray.cluster.orders import WorkerSpec, worker_spec
from datainf_ray.common import versions
from datainf_ray.common.errors import RunFailedError
from datainf_ray.config import load_config
from datainf_ray.request.job import prepare
from tests import tiny


def test_only_what_differs_is_named() -> None:
    here = {"torch": "2.13.0", "ray": "2.60.0", "python": "3.11.7"}
    assert unlike(here, here) == []
    assert unlike({"torch": "2.12.1", "ray": "2.60.0"}, here) == [
        "torch 2.12.1, here 2.13.0",
        "python None, here 3.11.7",
    ]


@pytest.fixture
def config(tmp_path: Path, tiny_llama: dict[str, Any]) -> dict[str, Any]:
    return tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")


@contextmanager
def worker(spec: WorkerSpec) -> Iterator[Any]:
    actor = hire(spec.config.cluster, 0)
    try:
        yield actor
    finally:
        ray.kill(actor)


@pytest.mark.cluster
@pytest.mark.fresh_workers
@pytest.mark.usefixtures("local_ray")
def test_a_worker_takes_no_order_of_a_driver_with_other_packages(config: dict[str, Any]) -> None:
    spec = worker_spec(prepare(load_config(config), writable=False))
    assert spec.installed == versions.versions()
    torch = spec.installed["torch"]
    with worker(spec) as actor:
        with pytest.raises(ray.exceptions.RayTaskError) as error:
            ray.get(actor.load.remote(replace(spec, installed=spec.installed | {"torch": "2.0.1"}), "0"))
        found = final_error(classify(error.value))
        assert isinstance(found, RunFailedError)
        assert str(found).startswith(f"{socket.gethostname()}: torch {torch}, here 2.0.1; ")
        assert ray.get(actor.load.remote(spec, "0")).device == "cpu"


@pytest.mark.cluster
@pytest.mark.fresh_workers
@pytest.mark.usefixtures("local_ray")
def test_a_run_on_such_nodes_ends_in_one_line(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    there = versions.__version__
    monkeypatch.setattr(versions, "__version__", "9.9")  # here alone: workers have modules of their own
    monkeypatch.setattr("sys.argv", ["datainf", "run", str(tmp_path / "c.yaml")])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    captured = capsys.readouterr().err
    said = f"{socket.gethostname()}: datainf-ray {there}, here 9.9; "
    assert captured.splitlines()[-1].startswith(f"failed: {said}")
    assert "Traceback" not in captured
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["state"] == "failed"
    assert record["reason"].startswith(said)
