"""Joining the cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from datainf_ray.config import ClusterConfig, one_line
from datainf_ray.errors import RequestError


@dataclass(frozen=True)
class ClusterFacts:
    """What there is to work with."""

    local: bool  # started by us, on this machine
    workers: int  # how many can run at once
    gpus_per_worker: int


@contextmanager
def connected(config: ClusterConfig, output: str) -> Iterator[ClusterFacts]:
    """Inside, Ray is up: the session's own, the cluster's, or one that is started here and ended on leaving.

    Raises `RequestError` where the cluster cannot be reached, is too small, or where its workers cannot reach `output`.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    ours = not ray.is_initialized()
    if ours:
        # Workers' output is not repeated here: what goes wrong reaches the driver as an exception, with its reason.
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not address:
            options["include_dashboard"] = False
        terminated = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address or "local", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RequestError(f"cluster.address: {address or 'local'}: {one_line(error)[:300]}") from None
        if callable(terminated) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray puts its own in place of the command's
    try:
        yield _facts(config, output, local=ours and not address)
    finally:
        if ours:
            ray.shutdown()


def _facts(config: ClusterConfig, output: str, local: bool) -> ClusterFacts:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if output.startswith("memory://"):
        raise RequestError(
            f"output: {output} lies in the memory of one process, and workers are others; use a path or a store's URL"
        )
    if len(nodes) > 1 and "://" not in output and not local:
        hosts = {node["NodeManagerHostname"] for node in nodes}
        if len(hosts) > 1:
            raise RequestError(
                f"output: {output} is a path on one machine, and the cluster has {len(hosts)}; use a URL that all of "
                "them reach, or file:// with a path that they share"
            )
    total = ray.cluster_resources()
    gpus = config.gpus_per_worker
    if gpus is None:
        gpus = 1 if total.get("GPU", 0) >= 1 else 0
    room = [
        min(
            int(node["Resources"].get("CPU", 0)) // config.cpus_per_worker,
            int(node["Resources"].get("GPU", 0)) // gpus if gpus else 10**9,
        )
        for node in nodes
    ]
    fit = sum(room)
    if fit == 0 and config.max_workers is None:
        wants = f"{config.cpus_per_worker} CPUs" + (f" and {gpus} GPUs" if gpus else "")
        raise RequestError(f"cluster: no node has room for a worker of {wants}; the cluster has {_said(total)}")
    return ClusterFacts(local=local, workers=config.max_workers or fit, gpus_per_worker=gpus)


def _said(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(k, 0):g} {k}s" for k in ("CPU", "GPU"))
