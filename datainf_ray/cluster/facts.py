"""What a cluster has, and what of it can hold a worker."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.actor import ActorHandle

from datainf_ray.cluster.private import wrong_selector
from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.words import byte_size, counted
from datainf_ray.config import ClusterConfig
from datainf_ray.planning.room import Room

_UNKNOWN_BYTES = 8 * 2**30  # a worker's memory, where no node is up yet that could hold one


@dataclass(frozen=True)
class ClusterFacts:
    """What there is to work with."""

    local: bool  # started by us, on this machine
    room: Room  # as far as it is known before a worker is up
    grows: bool = False  # nodes must come before all workers have room
    # workers without a model, on their way; taken from here
    actors: deque[ActorHandle[Any]] = field(default_factory=deque)

    def with_device(self, device_bytes: int | None) -> Room:
        """The room, with what a worker says of its GPU."""
        return replace(self.room, device_bytes=device_bytes)


def cluster_facts(config: ClusterConfig, local: bool) -> ClusterFacts:
    """What there is for workers as `config` wants them, on the cluster that this process is in.

    `local`: we have started it, on this machine. Raises `RequestError` where a selector is wrong or no worker fits.
    """
    for key in ("label_selector", "fallback_selector"):
        if wrong := wrong_selector(getattr(config, key)):
            raise RequestError(f"cluster.{key}", None, one_line(wrong))
    selectors = [s for s in (config.label_selector, config.fallback_selector) if s is not None]
    nodes = [node for node in ray.nodes() if node["Alive"] and any(has_labels(node["Labels"], s) for s in selectors)]
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
    if fit == 0 and (local or config.max_workers is None):  # a local Ray does not grow
        grow = "" if local else "; if it can grow, say how far by cluster.max_workers"
        raise RequestError(
            "cluster",
            None,
            f"no node has room for a worker of {wants(config, gpus)}",
            f"the cluster has {_describe(total)}{grow}",
        )
    workers = config.max_workers or fit
    # Ray's `memory` is a node's, less its object store. Workers share their node's, or all of it where they are few.
    shares = [
        int(node["Resources"].get("memory", 0)) // min(count, workers)
        for node, count in zip(nodes, room, strict=True)
        if count
    ]
    return ClusterFacts(
        local,
        grows=fit < workers,
        room=Room(
            workers=workers,
            gpus_per_worker=gpus,
            store_bytes=int(total.get("object_store_memory", 0)),
            worker_bytes=min(shares, default=_UNKNOWN_BYTES),
            device_bytes=None,
        ),
    )


def has_labels(labels: dict[str, str], selector: dict[str, str]) -> bool:
    """Whether a node's labels are what a selector asks for: a value, in(a, b), or ! before either of them."""

    def fits(key: str, wanted: str) -> bool:
        values = wanted.removeprefix("!")
        if values.startswith("in("):
            values = values[len("in(") : -1]
        return (labels.get(key) in [value.strip() for value in values.split(",")]) is not wanted.startswith("!")

    return all(fits(key, wanted) for key, wanted in selector.items())


def wants(config: ClusterConfig, gpus_per_worker: int, memory: int = 0, labels: dict[str, str] | None = None) -> str:
    """What a worker takes, in words; `labels` in place of those that are asked for first."""
    labels = config.label_selector if labels is None else labels
    cpus = config.cpus_per_worker
    parts = [counted(cpus, "CPU")]
    if gpus_per_worker:
        parts.append(counted(gpus_per_worker, "GPU"))
    if memory:
        parts.append(f"{byte_size(memory)} of memory")
    return " and ".join(parts) + (f" on a node with {describe_labels(labels)}" if labels else "")


def describe_labels(selector: dict[str, str]) -> str:
    """A selector, in words."""
    return ", ".join(f"{key}={value}" for key, value in selector.items()) or "any labels"


def describe_resources() -> str:
    """What the cluster has now, in words."""
    return _describe(ray.cluster_resources())


def _describe(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(k, 0):g} {k}s" for k in ("CPU", "GPU"))
