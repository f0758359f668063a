"""What a worker and the cluster have to work with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """What a worker and the cluster have, in bytes."""

    workers: int
    gpus_per_worker: int
    store_bytes: int  # of the whole cluster's object store
    worker_bytes: int  # host memory that a worker may use: its share of its node's
    device_bytes: int | None  # one GPU's memory; None on a CPU
