"""Kept gradients that go down with their node: computed again, and nothing else changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PROGRAM = """
import json, os, sys
import tests.conftest
import ray
from ray.cluster_utils import Cluster
from datainf_ray.config import load_config
from datainf_ray.session.execute import execute
from datainf_ray.request.job import prepare
from datainf_ray.watch.progress import Silent

quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_timeout_ms": 1000,
         "health_check_failure_threshold": 3}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick})
node = cluster.add_node(num_cpus=1, object_store_memory=10**8)
ray.init(address=cluster.address, log_to_driver=False)
config = json.load(open(sys.argv[1]))

class Killer(Silent):
    def begin(self, sweep, rows):
        if sweep == "scores":
            cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(num_cpus=1, object_store_memory=10**8)

execute(prepare(load_config(config, output=config["output"] + "-quiet")), Silent())
execute(prepare(load_config(config)), Killer())
ray.shutdown()
cluster.shutdown()
"""


def test_gradients_lost_with_their_node_are_computed_again(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    tiny.write_rows(tmp_path / "train.jsonl", 400, seed=1)
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", gradients="keep")
    config["cluster"]["chunk_rows"] = 200  # what is smaller than 100 kB Ray sends to the driver, where it stays
    (tmp_path / "config.json").write_text(json.dumps(config))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "config.json")],
        cwd=root, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    runs = [tmp_path / "run-quiet", tmp_path / "run"]
    quiet, killed = (json.loads((run / "run.json").read_text())["sweeps"][-1] for run in runs)
    assert (quiet["source"], quiet["recomputed"]) == ("object-store", 0)
    assert (killed["source"], killed["recomputed"]) == ("object-store", 2)
    tables = [{str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*.parquet"))} for run in runs]
    assert tables[0] == tables[1]
