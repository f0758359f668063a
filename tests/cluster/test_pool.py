"""Workers that come, go, do not start, or are waited for."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from datainf_ray.cluster import backlog, hiring, members, pool
from datainf_ray.cluster.worker import Worker
from datainf_ray.common.errors import RunFailedError
from datainf_ray.config import load_config
from datainf_ray.request.job import prepare
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.record import write_record
from datainf_ray.session.execute import _begun, execute
from datainf_ray.watch.progress import Silent
from tests import tiny
from tests.runs_of import attribute, tables

pytestmark = [pytest.mark.cluster, pytest.mark.fresh_workers, pytest.mark.usefixtures("local_ray")]


class Said(Silent):
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def config(tmp_path: Path, tiny_llama: dict[str, Any]) -> dict[str, Any]:
    return tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")


def test_a_run_waits_for_a_worker_only_so_long(config: dict[str, Any]) -> None:
    config["cluster"] |= {"cpus_per_worker": 10**6, "start_timeout": 1}
    want = r"no worker could be started within 1 s .*a worker takes 1,000,000 CPUs, and the cluster has 2 CPUs, 0 GPUs"
    with pytest.raises(RunFailedError, match=want):
        attribute(config)


@pytest.mark.slow
def test_where_no_node_comes_in_time_other_labels_are_asked_for(config: dict[str, Any]) -> None:
    # both must be up before the first sweep: the run is so short that one alone might do it
    config["cluster"] |= {
        "label_selector": {"market": "spot"},
        "max_workers": 2,
        "min_workers": 2,
        "start_timeout": 200,
    }
    config["cluster"] |= {"fallback_selector": {"market": "!spot"}, "fallback_after": 1}
    watcher = Said()
    run = execute(prepare(load_config(config)), watcher)
    told = "no node with market=spot within 1 s; asking for market=!spot"
    assert watcher.lines.count(told) == 1
    assert run.state == "done"
    assert run.record.sweeps[-1].workers == 2
    falls = [e for e in run.events().to_pylist() if e["event"] == "worker_falls_back"]
    assert [e["detail"] for e in falls] == [told] * 2


@pytest.mark.slow
def test_a_reason_for_not_starting_is_told_once(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class NoKernel(Worker):
        def load(self, spec: Any, name: str) -> Any:
            raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(hiring, "Worker", NoKernel)
    watcher = Said()
    with pytest.raises(RunFailedError, match="no worker can start: no kernel image is available"):
        execute(prepare(load_config(config)), watcher)
    assert len([line for line in watcher.lines if "no kernel image" in line]) == 1


@pytest.mark.slow
def test_idle_workers_are_let_go_and_come_again(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = attribute(config, output=config["output"] + "-quiet")
    monkeypatch.setattr(members, "IDLE", 0.2)
    hired = []
    hire = pool.hire
    monkeypatch.setattr(pool, "hire", lambda *values, **more: hired.append(1) or hire(*values, **more))

    class Slow(Silent):
        """A driver that is busy for a while after the curvature's sweep."""

        def begin(self, sweep: str, rows: int) -> None:
            if sweep == "scores":
                time.sleep(3)

    run = execute(prepare(load_config(config)), Slow())
    assert len(hired) == 2
    assert tables(run) == tables(quiet)


@pytest.mark.slow
def test_workers_do_not_run_ahead_of_a_driver_that_falls_behind(tmp_path: Path, config: dict[str, Any]) -> None:
    config["cluster"] |= {"chunk_rows": 1}
    config["gradients"] = "recompute"
    written: list[int] = []

    class Busy(Silent):
        def begin(self, sweep: str, rows: int) -> None:
            self.sweep = sweep

        def advance(self, rows: int, tokens: int, workers: int) -> None:
            if self.sweep == "scores" and rows and not written:
                time.sleep(3)
                written.append(len(list((tmp_path / "run/checkpoints/scores").glob("*.parquet"))))

    execute(prepare(load_config(config)), Busy())
    assert 1 <= written[0] <= 1 + pool.IN_FLIGHT  # of 40: the one that is dealt with, and those on their way


@pytest.mark.slow
@pytest.mark.parametrize("here", [True, False])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_the_reason(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    """In the driver, and in a task of Ray's."""
    config["cluster"] |= {"checkpoint_seconds": 0}
    output = Path(config["output"])
    write_record(RunDirectory(output), _begun(prepare(load_config(config))))
    (output / "checkpoints").mkdir()
    (output / "checkpoints" / "sums").touch()  # a file where a folder should be
    if not here:
        monkeypatch.setattr("datainf_ray.cluster.reduce.HERE", -1)
    with pytest.raises(RunFailedError, match=r"^(FileExistsError|NotADirectoryError): .*checkpoints/sums"):
        attribute(config)
    assert "checkpoints/sums" in json.loads((output / "run.json").read_text())["reason"]
    (output / "checkpoints" / "sums").unlink()
    assert attribute(config).state == "done"


@pytest.mark.slow
def test_a_worker_that_hangs_is_mentioned_and_waited_for(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = attribute(config, output=config["output"] + "-quiet")
    monkeypatch.setattr(backlog, "SILENT", 1.0)
    stopped: list[psutil.Process] = []

    class Hangs(Said):
        """The only worker is stopped when the scoring sweep begins, until the user hears of it."""

        def begin(self, sweep: str, rows: int) -> None:
            if sweep == "scores":
                below = psutil.Process().children(recursive=True)
                stopped.extend(p for p in below if " ".join(p.cmdline()).startswith("ray::Worker"))
                for process in stopped:
                    process.suspend()

        def say(self, text: str) -> None:
            super().say(text)
            if "no chunk has come back" in text:
                self.resume()

        def resume(self) -> None:
            for process in stopped:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    watcher = Hangs()
    try:
        run = execute(prepare(load_config(config)), watcher)
    finally:
        watcher.resume()
    assert stopped
    (line, *_) = [line for line in watcher.lines if "no chunk has come back" in line]
    assert line.startswith("scores: no chunk has come back for ")
    assert " s; still waiting for chunk 0 (rows 0 to 7) on " in line
    (event, *_) = [event for event in run.events().to_pylist() if event["event"] == "silence"]
    assert event["sweep"] == "scores"
    assert event["seconds"] >= 1
    assert tables(run) == tables(quiet)
