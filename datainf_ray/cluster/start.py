"""Joining the cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray._private.label_utils import validate_label_selector
from ray._private.state import state  # where Ray's own libraries learn of nodes that are being drained

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.config import ClusterConfig
from datainf_ray.planning.room import Room

#: For glibc. It would give each of a worker's threads a heap of its own, with what the other could use: a third more
#: memory. And it would give large tensors back to the kernel, which clears every page before it is had again: a tenth
#: of a CPU's time.
_HEAP = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # the most that it takes
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
_KNOCK = 20.0  # seconds in which a cluster must answer
_LEAVE = 2.0  # seconds that an interrupted command gives a Ray of its own to end
_GLANCE = 0.2  # seconds between looks at whether a Ray is still wanted that waits for another one to end
_UNKNOWN_BYTES = 8 * 2**30  # a worker's memory, where no node is up yet that could hold one

#: A process can be in one Ray at a time. Whoever starts a local one holds this until that is gone: other runs of the
#: process, in a notebook, may neither join it, as it ends with its run, nor start theirs beside it.
_LOCAL = threading.Lock()


@dataclass(frozen=True)
class ClusterFacts:
    """What there is to work with."""

    local: bool  # started by us, on this machine
    room: Room  # as far as it is known before a worker is up
    actors: tuple[Any, ...] = ()  # workers without a model that are on their way already

    def with_device(self, device_bytes: int | None) -> Room:
        """The room, with what a worker says of its GPU."""
        return replace(self.room, device_bytes=device_bytes)


class Ahead:
    """A local Ray, and workers that load their libraries, in the background while the request is being understood.

    Nothing is started where a cluster is to be joined. Ray's processes end with the thread that started them, so that
    thread stays until Ray is not needed any more, and ends it. Runs of one process have their Ray one after another:
    `behind` says that there is another one, which may be about to end.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.behind = not _address(config) and _LOCAL.locked()
        self.wanted = self.behind or not (ray.is_initialized() or _address(config))
        self._thread: threading.Thread | None = None
        self._up, self._over = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._facts: ClusterFacts | None = None

    def begin(self) -> None:
        """Start, and go on at once."""
        if self.wanted and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ray.init", daemon=True)
            self._thread.start()

    def taken(self) -> ClusterFacts | None:
        """Wait for it; None if it was not begun. Raises what went wrong."""
        if self._thread is None:
            return None
        self._up.wait()
        if self._error is not None:
            raise self._error
        return self._facts

    def end(self) -> None:
        """End Ray, and go on at once."""
        self._over.set()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.end()
        if self._thread is not None:  # whoever interrupts us does not wait for long
            self._thread.join(_LEAVE if kind is KeyboardInterrupt else None)

    def _run(self) -> None:
        while not _LOCAL.acquire(timeout=_GLANCE):
            if self._over.is_set():
                self._up.set()
                return
        try:
            self._have()
        finally:
            _LOCAL.release()

    def _have(self) -> None:
        """Start Ray, and end it when it is not needed any more."""
        ours = False
        try:
            ours = join(self.config)
            facts = _facts(self.config, local=True)
            from datainf_ray.cluster.pool import hire  # here, because it loads torch

            count = 0 if self._over.is_set() else facts.room.workers
            actors = tuple(hire(self.config, facts.room.gpus_per_worker) for _ in range(count))
            self._facts = replace(facts, actors=actors)
        except Exception as error:  # told when it is taken, in the thread of the one who takes it
            self._error = error
        self._up.set()
        self._over.wait()
        if ours:  # else the session has started one of its own meanwhile
            ray.shutdown()


@contextmanager
def connected(config: ClusterConfig, output: str, ahead: Ahead | None = None) -> Iterator[ClusterFacts]:
    """Inside, Ray is up: the session's own, the cluster's, or one that is started here and ended on leaving.

    What was started `ahead` is ended in the background, which whoever leaves `ahead` waits for. Raises `RequestError`
    where the cluster cannot be reached, is too small, or where its workers cannot reach `output`.
    """
    if output.startswith("memory://"):
        raise RequestError(
            f"output: {output} lies in the memory of one process, and workers are others; use a path or a store's URL"
        )
    if ahead is not None:
        ahead.begin()  # if it has not been yet
    facts = ahead.taken() if ahead is not None else None
    ours = facts is None and join(config)
    try:
        if facts is None:
            facts = _facts(config, local=ours and not _address(config))
            if not facts.local:
                _check_reach(output)
        yield facts
    finally:
        if ours:
            ray.shutdown()
        elif ahead is not None:
            ahead.end()


def join(config: ClusterConfig) -> bool:
    """Have this process in the cluster, or in a local one that is started; whether it was not in one before.

    Raises `RequestError` where that cannot be.
    """
    if ray.is_initialized():
        return False
    try:
        _knock(_address(config))
        _init(_address(config))
    except (OSError, RuntimeError, ValueError) as error:
        raise RequestError(f"cluster.address: {_address(config) or 'local'}: {one_line(error)[:300]}") from None
    return True


def _knock(address: str | None) -> None:
    """Raises `OSError` where nobody listens at an address: Ray would go on trying for many minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


def _address(config: ClusterConfig) -> str | None:
    return config.address or os.environ.get("RAY_ADDRESS")


def worker_environment() -> dict[str, Any]:
    """The runtime environment of workers, which costs a second of their start; none where all is set already."""
    missing = {name: value for name, value in _HEAP.items() if name not in os.environ}
    return {"env_vars": missing} if missing else {}


def _init(address: str | None) -> None:
    # Workers' output is not repeated here: what goes wrong reaches the driver as an exception, with its reason.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        options["include_dashboard"] = False
        os.environ.update(_HEAP | os.environ)  # for the processes that Ray starts here; what was set stays
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", **options)
    except SystemExit:  # Ray's own answer to SIGTERM, which it puts in place of the command's before it is up
        raise KeyboardInterrupt from None
    if callable(terminated) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)  # Ray puts its own in place of the command's


def _check_reach(output: str) -> None:
    """A path is a place on one machine: where there are several, results would be strewn over them."""
    hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(hosts) > 1 and "://" not in output:
        raise RequestError(
            f"output: {output} is a path on one machine, and the cluster has {len(hosts)}; use a URL that all of "
            "them reach, or file:// with a path that they share"
        )


def _facts(config: ClusterConfig, local: bool) -> ClusterFacts:
    for key in ("label_selector", "fallback_selector"):
        if wrong := validate_label_selector(getattr(config, key)):
            raise RequestError(f"cluster.{key}: {one_line(wrong)}")
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
            f"cluster: no node has room for a worker of {wants(config, gpus)}; the cluster has {_said(total)}{grow}"
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
        Room(
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


def wants(config: ClusterConfig, gpus_per_worker: int) -> str:
    """What a worker takes, in words."""
    labels = said_labels(config.label_selector)
    cpus = config.cpus_per_worker
    return (
        f"{cpus} CPU{'s' * (cpus != 1)}"
        + (f" and {gpus_per_worker} GPU{'s' * (gpus_per_worker != 1)}" if gpus_per_worker else "")
        + (f" on a node with {labels}" if config.label_selector else "")
    )


def said_labels(selector: dict[str, str]) -> str:
    """A selector, in words."""
    return ", ".join(f"{key}={value}" for key, value in selector.items()) or "any labels"


def draining_nodes() -> frozenset[str]:
    """The ids of nodes that are about to be taken away, and are to get no new work."""
    return frozenset(state.get_draining_nodes())


def resources_said() -> str:
    """What the cluster has now, in words."""
    return _said(ray.cluster_resources())


def _said(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(k, 0):g} {k}s" for k in ("CPU", "GPU"))
