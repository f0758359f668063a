"""A Ray cluster on this machine that grows and shrinks: the autoscaler with Ray's fake node provider."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.head import free_port, started

_HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # the provider knows the head by it


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
    port = free_port()
    address = f"127.0.0.1:{port}"
    (folder / "cluster.json").write_text(json.dumps(_configuration(address, node_types, idle_minutes)))
    options = [
        f"--port={port}", "--num-cpus=0", "--include-dashboard=false",
        f"--autoscaling-config={folder / 'cluster.json'}",
    ]  # fmt: skip
    environment = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": _HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD,
    }
    with started(folder, options, environment):
        yield address


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
