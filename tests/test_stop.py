"""A run that somebody asks to end: it says so in its own words, keeps what it has, and is taken up again."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import datainf_ray
from datainf_ray import RunFailedError, StoppedError
from datainf_ray.cluster.background import LocalDriver
from datainf_ray.config import load_config
from datainf_ray.request.job import prepare
from datainf_ray.runs import lease
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.lease import driver_of
from datainf_ray.session.execute import execute
from datainf_ray.watch.progress import Silent
from tests import tiny

ROWS = 800

#: The command; its lease looks often whether somebody wants it to end.
COMMAND = (
    sys.executable,
    "-c",
    "from datainf_ray.runs import lease; lease.BEAT = 0.1; from datainf_ray.cli import main; main()",
)


@pytest.fixture
def config(tmp_path: Path, tiny_llama: dict[str, Any]) -> dict[str, Any]:
    """A run whose scores take some seconds."""
    tiny.write_rows(tmp_path / "train.jsonl", ROWS, seed=1)
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", gradients="recompute")
    config["cluster"] |= {"batch_tokens": 1}
    return config


@contextmanager
def _stopped(config: dict[str, Any]) -> Iterator[None]:
    """Meanwhile somebody else stops the run, when some rows have their scores."""

    def stop() -> None:
        directory = RunDirectory(config["output"])
        while not over.wait(0.02):
            progress = (driver_of(directory) or {}).get("progress") or {}
            if progress.get("sweep") == "scores" and progress["done"]:
                datainf_ray.open_run(directory.url).stop()
                return

    over = threading.Event()
    somebody = threading.Thread(target=stop)
    somebody.start()
    try:
        yield
    finally:
        over.set()
        somebody.join()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_a_call_that_is_stopped_raises_an_error_of_its_own(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.1)
    with _stopped(config), pytest.raises(StoppedError, match=r"^stopped on request$"):
        datainf_ray.attribute(config, progress=False)
    run = datainf_ray.open_run(config["output"])
    assert (run.state, run.record.reason) == ("interrupted", "stopped on request")
    assert (Path(run.url) / "checkpoints" / "sums" / "scores-1.json").exists()

    said = Said()
    assert execute(prepare(load_config(config)), said).state == "done"
    assert any(line.startswith("scores: ") and line.endswith("taken up from an earlier attempt") for line in said.lines)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_command_that_is_stopped_ends_as_an_interrupted_one(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    with _stopped(config):
        ended = subprocess.run([*COMMAND, "run", str(tmp_path / "c.yaml")], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.splitlines()[-1] == "interrupted; run the same command again to go on"
    assert "Traceback" not in ended.stderr


def test_whoever_waits_for_a_run_in_the_background_is_told_that_it_was_stopped(config: dict[str, Any]) -> None:
    def work() -> None:
        raise StoppedError("stopped on request")

    driver = LocalDriver(load_config(config), work)
    driver.join()
    error = driver.error()
    assert isinstance(error, RunFailedError)
    assert str(error) == "it was stopped; run it again to go on"


class Said(Silent):
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)
