"""Machines that run out of memory: Ray's memory monitor ends workers, and the run goes on, or says what to change."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

import datainf_ray
from tests import tiny
from tests.faults import set_hunger
from tests.runs_of import COMMAND, tables

pytestmark = pytest.mark.cluster

GB = 2**30
ROOM = 3 * GB  # for Ray, a driver and a worker, which take half of it


def done(folder: Path, config: dict[str, Any], threshold: float) -> subprocess.CompletedProcess[str]:
    """`datainf run` on a machine whose memory is short above a share of it."""
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return subprocess.run(
        [*COMMAND, "run", str(folder / "c.yaml")],
        env=os.environ | {"RAY_memory_usage_threshold": str(threshold), "HF_MODULES_CACHE": str(folder / "modules")},
        capture_output=True,
        text=True,
        timeout=280,
    )


def told(output: str) -> list[str]:
    """What a command says, but for Python's own warnings."""
    return [line for line in output.splitlines() if line.strip() and "Warning" not in line and "warn(" not in line]


@pytest.fixture
def hungry(tmp_path: Path) -> dict[str, Any]:
    """A run of 16 rows of 13 tokens, in batches of four of them."""
    for name, count in (("train", 16), ("queries", 1)):
        rows = [
            {"name": f"row-{k}", "prompt": "w1 w2", "completion": " " + " ".join(f"w{(k * j) % 60}" for j in range(10))}
            for k in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny.save_model(tmp_path, "llama") | {"trust_remote_code": True}
    return tiny.configuration(tmp_path, model, tmp_path / "run", method={"name": "hessian-free"})


def threshold() -> float:
    memory = psutil.virtual_memory()
    share = (memory.total - memory.available + ROOM) / memory.total
    if share > 0.9:
        pytest.skip("too little memory is free for this machine to run out of it only when it is to")
    return share


@pytest.mark.slow
def test_a_machine_that_has_no_room_for_a_worker_ends_the_run_with_what_to_change(
    tmp_path: Path, tiny_llama: dict[str, Any]
) -> None:
    run = done(tmp_path, tiny.configuration(tmp_path, tiny_llama, tmp_path / "run"), threshold=0.001)
    assert run.returncode == 1, run.stderr[-3000:]
    assert "Traceback" not in run.stderr
    *_, last = told(run.stderr)
    assert last.startswith("failed: no worker can start: the machine at 127.0.0.1 ran out of memory (")
    assert " GB; the largest process has " in last
    assert last.endswith("; use fewer workers on a machine (cluster.cpus_per_worker, cluster.max_workers), or machines "
                         "with more memory")  # fmt: skip
    assert (
        len([line for line in told(run.stderr) if "ran out of memory" in line]) == 2
    )  # the first time, and at the end
    document = json.loads((tmp_path / "run/run.json").read_text())
    assert document["state"] == "failed"
    assert f"failed: {document['reason']}" == last
    details = [e["detail"] or "" for e in datainf_ray.open_run(tmp_path / "run").events().to_pylist()]
    assert sum("ran out of memory" in detail for detail in details) == 4  # three workers, and the end
    assert all(len(detail.splitlines()) <= 1 and len(detail) < 500 for detail in details)


@pytest.mark.slow
def test_memory_that_is_short_once_costs_a_worker_and_nothing_else(tmp_path: Path, hungry: dict[str, Any]) -> None:
    set_hunger(tmp_path / "base", most_tokens=40, once=tmp_path / "eaten")
    (tmp_path / "eaten").touch()
    assert done(tmp_path, hungry | {"output": str(tmp_path / "quiet")}, 1.0).returncode == 0
    (tmp_path / "eaten").unlink()
    run = done(tmp_path, hungry, threshold())
    assert run.returncode == 0, run.stderr[-3000:]
    (line,) = [line for line in told(run.stderr) if "memory" in line and "was ended" in line]
    assert line.startswith("a worker on ")
    assert " was ended because its machine ran out of memory (" in line
    assert line.endswith("; its chunks are computed again")
    there = datainf_ray.open_run(tmp_path / "run")
    assert not any(sweep.smaller_batches for sweep in there.record.sweeps)
    assert tables(tmp_path / "run") == tables(tmp_path / "quiet")


@pytest.mark.slow
def test_batches_that_take_too_much_memory_are_made_smaller(tmp_path: Path, hungry: dict[str, Any]) -> None:
    set_hunger(tmp_path / "base", most_tokens=40)
    run = done(tmp_path, hungry, threshold())
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Traceback" not in run.stderr
    said = "scores: chunk 0 (rows 0 to 7) took too much memory; it is computed again in batches of 30 tokens"
    assert told(run.stderr).count(said) == 1
    there = datainf_ray.open_run(tmp_path / "run")
    assert there.record.sweeps[-1].smaller_batches == {0: 30, 1: 30}
    assert there.examples()["status"].to_pylist() == ["ok"] * 16
    lost = [event for event in there.events().to_pylist() if event["event"] == "worker_lost"]
    assert len(lost) == 3  # with both chunks, and twice with one alone
