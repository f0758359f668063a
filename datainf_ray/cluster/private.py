"""All that is used of Ray's private modules, and why: a new version of Ray may change it without a word."""

from __future__ import annotations

import os

from ray._private.label_utils import validate_label_selector
from ray._private.node import Node
from ray._private.state import state
from ray._private.worker import WORKER_MODE, global_worker

from datainf_ray.cluster.lifelines import Lifelines


def wrong_selector(selector: dict[str, str] | None) -> str | None:
    """What is wrong with a label selector; None where it is right.

    Ray itself checks selectors only when a worker is asked for, and raises its own error then: too late for a request.
    """
    return validate_label_selector(selector)


def in_actor() -> bool:
    """Whether this process is an actor's, which Ray has started."""
    return global_worker.mode == WORKER_MODE


def lifelines(local: bool) -> Lifelines | None:
    """What this process depends on in Ray; None where it is in no Ray, or by Ray Client.

    Parts of it are in `ray.init`'s answer, but not for a process that Ray has started, or that a session has connected.
    """
    node = getattr(global_worker, "node", None)
    if node is None:
        return None
    patience = float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s") or 60)  # noqa: SIM112 - Ray's name
    return Lifelines(node.raylet_socket_name, node.gcs_address, patience, node.get_logs_dir_path(), local)


def draining_nodes() -> frozenset[str]:
    """The ids of nodes that are about to be taken away, and are to get no new work.

    `ray.nodes()` does not tell of them. Ray's own libraries (Train, Serve) learn of them here.
    """
    return frozenset(state.get_draining_nodes())


def own_session() -> Node | None:
    """The Ray that this process has started, for the folder of its files and for its processes; None for any other.

    `ray.init` returns the folder, and nothing tells afterwards whether it is ours.
    """
    node: Node | None = getattr(global_worker, "node", None)
    return node if node is not None and node.is_head() and node.all_processes else None


def reference_count() -> int:
    """How many objects and actors this process holds references to; 0 where it is in no Ray.

    Ray offers it to nobody, though it is what decides whether Ray can be ended (see `cluster.release`).
    """
    core_worker = getattr(global_worker, "core_worker", None)
    counts = {} if core_worker is None else core_worker.get_all_reference_counts()
    return sum(count["local"] > 0 for count in counts.values())
