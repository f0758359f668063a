"""Joining the cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray

from datainf_ray.config import ClusterConfig, one_line
from datainf_ray.errors import RequestError
from datainf_ray.room import Room

_HEAPS = "MALLOC_ARENA_MAX"
_UNKNOWN_BYTES = 8 * 2**30  # a worker's memory, where no node is up yet that could hold one


@dataclass(frozen=True)
class ClusterFacts:
    """What there is to work with."""

    local: bool  # started by us, on this machine
    room: Room  # as far as it is known before a worker is up

    def with_device(self, device_bytes: int | None) -> Room:
        """The room, with what a worker says of its GPU."""
        return replace(self.room, device_bytes=device_bytes)


class Ahead:
    """A local Ray that comes up in the background, while the request is still being understood.

    Nothing is started where a cluster is to be joined. What came up and was not taken is ended on leaving.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self.wanted = not (ray.is_initialized() or config.address or os.environ.get("RAY_ADDRESS"))
        self._thread: threading.Thread | None = None
        self._up, self._over = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._taken = False

    def begin(self) -> None:
        """Start, and go on at once."""
        if self.wanted and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ray.init", daemon=True)
            self._thread.start()

    def taken(self) -> bool:
        """Wait for it, and hand it over; False if it was not begun. Raises what went wrong."""
        if self._thread is None or self._taken:
            return False
        self._up.wait()
        if self._error is not None:
            raise self._error
        self._taken = True
        return True

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is not None and not self._taken:
            self._up.wait()
            ray.shutdown()
        self._over.set()

    def _run(self) -> None:
        try:
            _init(None)
        except Exception as error:  # told when it is taken, in the thread of the one who takes it
            self._error = error
        self._up.set()
        self._over.wait()  # Ray's processes end with the thread that started them


@contextmanager
def connected(config: ClusterConfig, output: str, ahead: Ahead | None = None) -> Iterator[ClusterFacts]:
    """Inside, Ray is up: the session's own, the cluster's, or one that is started here and ended on leaving.

    Raises `RequestError` where the cluster cannot be reached, is too small, or where its workers cannot reach `output`.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    ours = True
    try:
        if ahead is None or not ahead.taken():
            ours = not ray.is_initialized()
            if ours:
                _init(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RequestError(f"cluster.address: {address or 'local'}: {one_line(error)[:300]}") from None
    try:
        yield _facts(config, output, local=ours and not address)
    finally:
        if ours:
            ray.shutdown()


def worker_environment() -> dict[str, Any]:
    """The runtime environment of workers, which costs a second of their start; none where theirs is right already.

    glibc would give each of a worker's threads a heap of its own, with what the other could use: a third more memory.
    """
    return {} if _HEAPS in os.environ else {"env_vars": {_HEAPS: "1"}}


def _init(address: str | None) -> None:
    # Workers' output is not repeated here: what goes wrong reaches the driver as an exception, with its reason.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        options["include_dashboard"] = False
        os.environ.setdefault(_HEAPS, "1")  # for the processes that Ray starts here
    terminated = signal.getsignal(signal.SIGTERM)
    ray.init(address=address or "local", **options)
    if callable(terminated) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)  # Ray puts its own in place of the command's


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
    workers = config.max_workers or fit
    # Ray's `memory` is a node's, less its object store. Workers share their node's, or all of it where they are few.
    shares = [
        int(node["Resources"].get("memory", 0)) // min(count, workers)
        for node, count in zip(nodes, room, strict=True)
        if count
    ]
    return ClusterFacts(
        local,
        Room(
            workers=workers,
            gpus_per_worker=gpus,
            store_bytes=int(total.get("object_store_memory", 0)),
            worker_bytes=min(shares, default=_UNKNOWN_BYTES),
            device_bytes=None,
        ),
    )


def _said(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(k, 0):g} {k}s" for k in ("CPU", "GPU"))
