"""A Ray cluster on this machine that grows and shrinks: the autoscaler with Ray's fake node provider."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from bench.machines import RAY_SETTINGS

_HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # the provider knows the head by it
_STARTED = "Ray runtime started"


def scaled_down(cluster: dict[str, Any], nodes: int) -> dict[str, Any]:
    """The GPU nodes of a cluster file for this machine: one CPU each, and at most `nodes` of each kind.

    Their GPUs are numbers here, which Ray counts and nobody computes on. Labels and priorities are the file's.
    """
    return {
        name: kind | {"resources": kind["resources"] | {"CPU": 1}, "max_workers": nodes}
        for name, kind in cluster["available_node_types"].items()
        if name != cluster["head_node_type"]
    }


@contextmanager
def autoscaling(node_types: dict[str, Any], idle_minutes: float = 0.1) -> Iterator[str]:
    """The address of a head without CPUs that starts nodes of these types as they are asked for."""
    folder = Path(tempfile.mkdtemp(prefix="autoscaling-"))
    port = _free_port()
    address = f"127.0.0.1:{port}"
    (folder / "cluster.json").write_text(json.dumps(_configuration(address, node_types, idle_minutes)))
    environment = os.environ | RAY_SETTINGS | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": _HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD,
    }  # fmt: skip
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={port}", "--num-cpus=0", f"--temp-dir={folder}",
        "--include-dashboard=false", "--dashboard-agent-listen-port=0", "--object-store-memory=100000000",
        "--disable-usage-stats", f"--autoscaling-config={folder / 'cluster.json'}",
    ]  # fmt: skip
    log = folder / "head.log"
    with log.open("w") as stream:
        head = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while _STARTED not in log.read_text():
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield address
    finally:
        _end(head, folder)


def _configuration(address: str, node_types: dict[str, Any], idle_minutes: float) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "auth": {}, "docker": {}, "file_mounts": {}, "initialization_commands": [], "setup_commands": [],
        "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
        "worker_start_ray_commands": [], "cluster_synced_files": [], "file_mounts_sync_continuously": False,
        "rsync_exclude": [], "rsync_filter": [],
    }  # fmt: skip
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "gcs_address": address,
        "launch_multiple": True,
        "head_node_id": _HEAD,
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return nothing | {
        "cluster_name": "fake_multinode",
        "max_workers": sum(kind.get("max_workers", 0) for kind in node_types.values()),
        "idle_timeout_minutes": idle_minutes,
        "upscaling_speed": 1.0,
        "provider": provider,
        "available_node_types": {**node_types, "ray.head.default": head},
        "head_node_type": "ray.head.default",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(head: subprocess.Popen[bytes], folder: Path) -> None:
    """End the head and all that it started, and nothing else."""
    ours = {p.pid: p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])}
    for process in list(ours.values()):
        try:
            ours.update({child.pid: child for child in process.children(recursive=True)})
        except psutil.NoSuchProcess:
            continue
    head.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(list(ours.values()), timeout=6)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=5)
    head.wait(10)
    shutil.rmtree(folder, ignore_errors=True)
