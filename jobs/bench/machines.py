"""Machines that can be killed: a Ray cluster of several nodes here, each with its own processes, and drivers on it.

Set `RAY_SETTINGS` in the environment before ray is imported.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

#: What keeps Ray to this machine, and its start short.
RAY_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # misnamed: on Linux it keeps every Ray port on 127.0.0.1
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
#: A node that is gone is noticed within a second or two; and processes for tasks stay, as on nodes with more CPUs.
_QUICK = {
    "num_workers_soft_limit": 4,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
_STORE = 10**8  # bytes of a node's object store


class Machines:
    """A head without CPUs, where drivers live, and nodes of one CPU each, where workers live."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": _STORE, "_system_config": _QUICK}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self.nodes: list[Any] = []
        for _ in range(nodes):
            self.add()

    def add(self) -> None:
        """One more node."""
        self.nodes.append(self._cluster.add_node(num_cpus=1, object_store_memory=_STORE))

    def kill(self, node: int) -> None:
        """SIGKILL to all of a node's processes."""
        self._cluster.remove_node(self.nodes.pop(node), allow_graceful=False)

    def drain(self, node: int) -> None:
        """Announce that a node will be taken away, as a cloud does with a spot machine."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Ray's own stub leaves it out
        from ray.core.generated import autoscaler_pb2

        drain_reason = autoscaler_pb2.DrainNodeReason  # type: ignore[attr-defined]  # made by protobuf at import
        reason = drain_reason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = time.time_ns() // 1_000_000 + 60_000
        accepted, why = GcsClient(address=self.address).drain_node(self.nodes[node].node_id, reason, "spot", deadline)
        assert accepted, why

    def workers(self, node: int | None = None) -> list[psutil.Process]:
        """The processes of all nodes or of one that hold a replica, or are about to, as they were started."""
        found = []
        for machine in self.nodes if node is None else [self.nodes[node]]:
            for info in machine.all_processes.get("raylet", []):
                found += [p for p in _children(info.process.pid) if _title(p).startswith("ray::Worker")]
        return sorted(found, key=lambda p: p.pid)

    def close(self) -> None:
        self._cluster.shutdown()


@contextmanager
def machines(nodes: int) -> Iterator[Machines]:
    """Machines that are gone afterwards."""
    there = Machines(nodes)
    try:
        yield there
    finally:
        there.close()


class Driver:
    """`datainf run` in a process of its own; what it says goes to `log`."""

    def __init__(self, config: Path, log: Path, address: str, arguments: Sequence[str] = (), before: str = "") -> None:
        program = f"{before}\nfrom datainf_ray.cli import main; main()"
        command = [sys.executable, "-c", program, "run", str(config), *arguments]
        environment = os.environ | RAY_SETTINGS | {"RAY_ADDRESS": address, "HF_HUB_OFFLINE": "1"}
        self.log = log
        with log.open("a") as stream:
            self.process = subprocess.Popen(command, env=environment, stderr=stream, stdout=stream)

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float) -> int:
        """Its exit status. Raises `subprocess.TimeoutExpired`."""
        return self.process.wait(seconds)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        if not self.over:
            self.process.kill()
            self.process.wait()

    def output(self) -> str:
        return self.log.read_text()


def stage(run: Path) -> str:
    """What a run is about to do, by the files that it has: queries, pilot, curvature, scores, gathering or done."""
    checkpoints = run / "checkpoints"
    if (run / "report.html").is_file() and not checkpoints.is_dir():
        return "done"
    if (run / "top.parquet").is_file():
        return "gathering"
    for file, after in (("ihvp", "scores"), ("nodes", "curvature"), ("queries", "pilot")):
        if (checkpoints / f"{file}.json").is_file():
            return after
    return "queries"


def parquet_files(run: Path) -> dict[str, bytes]:
    """Every Parquet file of a run, by its name."""
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*.parquet"))}


def forget(run: Path) -> None:
    """Remove a run directory."""
    shutil.rmtree(run, ignore_errors=True)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
