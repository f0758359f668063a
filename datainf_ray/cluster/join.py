"""Joining the cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from datainf_ray.cluster.environment import HEAP
from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.config import ClusterConfig

_TOKEN = "the cluster's token comes from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
_KNOCK = 20.0  # seconds in which a cluster must answer


def join(config: ClusterConfig) -> bool:
    """Connect this process to the cluster, or start a local one. Returns False if it was connected before.

    Raises `RequestError` if that fails.
    """
    if ray.is_initialized():
        return False
    knock(config)
    address = address_of(config)
    try:
        _init(address)
    except AuthenticationError as error:
        raise RequestError(
            "cluster.address", address or "local", f"authentication failed: {error.message}", _TOKEN
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        silent = bool(address) and isinstance(error, ConnectionError)  # so Ray says of a wrong token, too
        raise RequestError(
            "cluster.address",
            address or "local",
            f"{'no Ray answers, or it wants a token: ' if silent else ''}{one_line(error)[:300]}",
            _TOKEN if silent else None,
        ) from None
    return True


def knock(config: ClusterConfig) -> None:
    """Raises `RequestError` where nobody listens at the cluster's address: Ray would go on trying for many minutes.

    Where this process is in a Ray already there is nothing to look for.
    """
    address = address_of(config)
    if ray.is_initialized() or not address or address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    remedy = "give HOST:PORT of a cluster's head that is up, or no address for a local Ray"
    if not host or not port.isdigit():
        raise RequestError("cluster.address", address, "is no address", remedy)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise RequestError("cluster.address", address, f"cannot be reached: {one_line(error)}", remedy) from None


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
