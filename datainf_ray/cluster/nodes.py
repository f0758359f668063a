"""What is installed on the cluster's nodes."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datainf_ray.cluster.facts import describe_resources
from datainf_ray.cluster.failures import classify
from datainf_ray.common.errors import RunFailedError
from datainf_ray.common.versions import versions

_WAIT = 120.0  # seconds for a node to start a process and import what it needs


def differences() -> list[str]:
    """In what the nodes that are up differ from this process: "HOST: torch 2.12.1, here 2.13.0". [] is right."""
    here = versions()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = {
        ray.remote(versions)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(): node["NodeManagerHostname"]
        for node in nodes
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_WAIT)
    found = [f"{asked[reference]}: no answer within {_WAIT:g} s" for reference in silent]
    for reference in answered:
        try:
            there = ray.get(reference)
        except RayError as error:  # a package is missing, above all this one
            found.append(f"{asked[reference]}: {classify(error).reason[:300]}")
            continue
        found += [f"{asked[reference]}: {difference}" for difference in unlike(there, here)]
    return sorted(set(found))


def unlike(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """In what the versions of another process differ from those here: "torch 2.12.1, here 2.13.0"."""
    return [f"{name} {there.get(name)}, here {version}" for name, version in here.items() if there.get(name) != version]


def require_same(there: Mapping[str, str]) -> None:
    """Raises `RunFailedError` where the versions of this process are not the driver's, which are given."""
    if found := unlike(versions(), there):
        what = "results would depend on which node computes them"
        raise RunFailedError(f"{socket.gethostname()}: {'; '.join(found)}; {what}")


def describe_nodes() -> str:
    """How many nodes are up, and what they have, in words."""
    count = sum(node["Alive"] for node in ray.nodes())
    return f"{count} node{'s' * (count != 1)}, {describe_resources()}"
