"""Ray ends when nothing refers into it any more, however a run ends; and nobody waits for a Ray that never comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.machines import RAY_SETTINGS

from datainf_ray.cluster import ahead
from datainf_ray.config import ClusterConfig
from tests import tiny

#: A run that fails when all has been computed, is taken up and interrupted there, and is taken up again. References lie
#: in cycles; Ray's core worker takes its time between its end and Python's knowing of it, and the collector runs then.
PROGRAM = """
import gc, json, os, signal, sys, time
import ray
from ray._private.worker import global_worker
import datainf_ray
from datainf_ray.session import solve
from datainf_ray.cluster.sweep import ClusterSweeps

sweep, consolidate, shutdown = ClusterSweeps.run, solve.consolidate_parts, ray.shutdown
theirs = []

class Slow:
    def __init__(self, worker):
        self.worker = worker

    def __getattr__(self, name):
        return getattr(self.worker, name)

    def shutdown_driver(self):
        self.worker.shutdown_driver()
        theirs.clear()
        gc.enable()
        time.sleep(2)
        gc.disable()

def run(self, *values, **more):
    state = sweep(self, *values, **more)
    cycle = [*state]
    cycle.append(cycle)
    return state

def end():
    counts = global_worker.core_worker.get_all_reference_counts().values()
    print("references:", sum(count["local"] > 0 for count in counts), flush=True)
    global_worker.core_worker = Slow(global_worker.core_worker)
    shutdown()

def fail(*values):
    raise datainf_ray.RunFailedError("on purpose")

def interrupt(*values):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)

def hold(*values):
    theirs.append(ray.put("a session's own"))
    return consolidate(*values)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
gc.disable()
gc.set_threshold(1)
ClusterSweeps.run, ray.shutdown = run, end
for last in (fail, interrupt, hold):
    solve.consolidate_parts = last
    try:
        print(datainf_ray.attribute(sys.argv[1], progress=False).state, flush=True)
    except (datainf_ray.RunFailedError, KeyboardInterrupt) as error:
        print(type(error).__name__, flush=True)
"""


@pytest.mark.cluster
@pytest.mark.slow
def test_no_reference_lives_when_ray_ends(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps(tiny.configuration(tmp_path, tiny_llama, tmp_path / "run")))
    command = [sys.executable, "-c", PROGRAM, str(config)]
    ended = subprocess.run(command, env=os.environ | RAY_SETTINGS, capture_output=True, text=True, timeout=200)
    said = ["references: 0", "RunFailedError", "references: 0", "KeyboardInterrupt", "references: 1", "done"]
    assert ended.stdout.splitlines() == said, ended.stderr
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [SystemExit("a signal"), KeyboardInterrupt(), MemoryError()])
def test_nobody_waits_for_a_ray_that_never_comes(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def join(config: ClusterConfig) -> bool:
        raise error

    monkeypatch.setattr(ahead, "join", join)
    with ahead.Ahead(ClusterConfig(), "run") as coming:
        coming.wanted = True  # though this process may be in a Ray already
        coming.begin()
        with pytest.raises(type(error)):
            coming.taken()
