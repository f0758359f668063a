"""Stopping the command: it says so, the run can be taken up, and nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests import tiny
from tests.runs_of import COMMAND

pytestmark = pytest.mark.cluster


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_stopped_command_ends_with_130_and_goes_on(
    tmp_path: Path, tiny_llama: dict[str, Any], number: signal.Signals
) -> None:
    tiny.write_rows(tmp_path / "train.jsonl", 200, seed=1)
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")
    config["cluster"] |= {"batch_tokens": 1}
    config["gradients"] = "recompute"  # kept ones would be scored before the signal is there
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    command = [*COMMAND, "run", str(tmp_path / "c.yaml")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "run").glob("checkpoints/ihvp.json")):  # then the scoring sweep begins
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(60) == 130, (tmp_path / "log").read_text()
        assert time.monotonic() - began < 5  # with a Ray of its own to end; test_faults has the 3 s of `ray job stop`
    finally:
        process.kill()
    assert "interrupted; run the same command again to go on" in (tmp_path / "log").read_text()
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    assert document["state"] == "interrupted"
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive

    done = subprocess.run([*command, "--set", "cluster.max_workers=2"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "200 rows scored" in done.stderr
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [s["name"] for s in document["sweeps"]] == ["queries", "pilot", "curvature", "scores"]  # each once
