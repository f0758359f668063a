"""Joining the cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from typing import Any

import ray

from datainf_ray.cluster.environment import HEAP
from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.config import ClusterConfig

_KNOCK = 20.0  # seconds in which a cluster must answer


def join(config: ClusterConfig) -> bool:
    """Connect this process to the cluster, or start a local one. Returns False if it was connected before.

    Raises `RequestError` if that fails.
    """
    if ray.is_initialized():
        return False
    try:
        _knock(address_of(config))
        _init(address_of(config))
    except (OSError, RuntimeError, ValueError) as error:
        raise RequestError("cluster.address", address_of(config) or "local", one_line(error)[:300]) from None
    return True


def _knock(address: str | None) -> None:
    """Raises `OSError` where nobody listens at an address: Ray would go on trying for many minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


def address_of(config: ClusterConfig) -> str | None:
    """The address of the cluster that is to be joined; None where a local Ray is to be started."""
    return config.address or os.environ.get("RAY_ADDRESS")


def _init(address: str | None) -> None:
    # Workers' output is not repeated here: what goes wrong reaches the driver as an exception, with its reason.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        options["include_dashboard"] = False
        os.environ.update(HEAP | os.environ)  # for the processes that Ray starts here; what was set stays
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", **options)
    except SystemExit:  # Ray's own answer to SIGTERM, which it puts in place of the command's before it is up
        raise KeyboardInterrupt from None
    if callable(terminated) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)  # Ray puts its own in place of the command's
