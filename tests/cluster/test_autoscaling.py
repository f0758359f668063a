"""A cluster that has no worker, gets two because a run asks for them, and has none again when it is done."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench.machines import Driver, parquet_files

from tests import tiny
from tests.cluster.autoscaling import autoscaling, scaled_down

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CLUSTER = Path(__file__).parents[2] / "cluster.yaml"


def test_nodes_of_our_cluster_come_for_a_run_by_label_and_go_after_it(
    tmp_path: Path, tiny_llama: dict[str, Any]
) -> None:
    """The run asks for spot machines, of which there are none to be had, and gets those that are on demand."""
    kinds = scaled_down(yaml.safe_load(CLUSTER.read_text()), nodes=2)
    kinds["gpu-spot"]["max_workers"] = 0
    spot, demand = ({"ray.io/market-type": market, "datainf/role": "worker"} for market in ("spot", "on-demand"))
    choice = {"label_selector": spot, "fallback_selector": demand, "fallback_after": 8}
    nodes = nodes_of_a_run(kinds, tmp_path, tiny_llama, gpus_per_worker=1, **choice)
    assert len(nodes) == 2
    for labels in nodes:
        assert demand.items() <= labels.items()
    said = (tmp_path / "log").read_text()
    assert "within 8 s; asking for ray.io/market-type=on-demand, datainf/role=worker" in said


def nodes_of_a_run(kinds: dict[str, Any], folder: Path, model: dict[str, Any], **cluster: Any) -> list[dict[str, str]]:
    """The labels of every node that came for a run of two workers, on a cluster without any before and after it."""
    from ray._raylet import GcsClient

    seen: dict[Any, dict[str, str]] = {}

    def workers() -> int:
        nodes = GcsClient(address=address).get_all_node_info()
        alive = {key: node for key, node in nodes.items() if node.state == 0}
        up = {key: dict(node.labels) for key, node in alive.items() if node.resources_total.get("CPU", 0) > 0}
        seen.update(up)
        return len(up)

    tiny.write_rows(folder / "train.jsonl", 400, seed=1)
    config = tiny.configuration(folder, model, folder / "run", gradients="recompute")
    config["cluster"] |= {"batch_tokens": 1, "max_workers": 2, "min_workers": 2, **cluster}
    (folder / "run.yaml").write_text(json.dumps(config))
    with autoscaling(kinds) as address:
        assert workers() == 0
        driver = Driver(folder / "run.yaml", folder / "log", address)
        most = 0
        try:
            deadline = time.monotonic() + 240
            while not driver.over:
                assert time.monotonic() < deadline, driver.output()[-3000:]
                most = max(most, workers())
                time.sleep(0.2)
            assert driver.wait(1) == 0, driver.output()[-3000:]
        finally:
            driver.end()
        assert most == 2
        deadline = time.monotonic() + 60
        while workers():
            assert time.monotonic() < deadline, "the nodes stay up"
            time.sleep(0.5)
    document = json.loads((folder / "run" / "run.json").read_text())
    assert document["sweeps"][-1]["workers"] == 2
    assert {"blocks.parquet", "queries.parquet", "top.parquet"} < parquet_files(folder / "run").keys()
    return list(seen.values())
