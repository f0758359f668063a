"""A cluster that has no worker, gets two because a run asks for them, and has none again when it is done."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from bench.machines import Driver, parquet_files

from tests import tiny
from tests.cluster.autoscaling import autoscaling

pytestmark = pytest.mark.cluster


def test_nodes_come_for_a_run_and_go_after_it(tmp_path: Path, tiny_llama: dict[str, Any]) -> None:
    from ray._raylet import GcsClient

    def workers() -> int:
        nodes = GcsClient(address=address).get_all_node_info().values()
        return sum(node.state == 0 and node.resources_total.get("CPU", 0) > 0 for node in nodes)  # 0: alive

    tiny.write_rows(tmp_path / "train.jsonl", 400, seed=1)
    config = tiny.configuration(tmp_path, tiny_llama, tmp_path / "run", gradients="recompute")
    config["cluster"] |= {"batch_tokens": 1, "max_workers": 2, "min_workers": 2}
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    kinds = {"spot": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}}
    with autoscaling(kinds) as address:
        assert workers() == 0
        driver = Driver(tmp_path / "run.yaml", tmp_path / "log", address)
        most = 0
        try:
            deadline = time.monotonic() + 240
            while not driver.over:
                assert time.monotonic() < deadline, driver.said()[-3000:]
                most = max(most, workers())
                time.sleep(0.2)
            assert driver.wait(1) == 0, driver.said()[-3000:]
        finally:
            driver.end()
        assert most == 2
        assert "waiting for a worker" in driver.said()
        deadline = time.monotonic() + 60
        while workers():
            assert time.monotonic() < deadline, "the nodes stay up"
            time.sleep(0.5)
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    assert document["sweeps"][-1]["workers"] == 2
    assert len(parquet_files(tmp_path / "run")) == 4
