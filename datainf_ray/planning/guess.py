"""What can be guessed of the room that a run will have, before a cluster is there."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from datainf_ray.common.words import byte_size
from datainf_ray.planning.room import Room
from datainf_ray.request.job import Job

_STORE_SHARE, _STORE_MOST = 0.3, 200e9  # what Ray's object store takes of a node's memory
_GPU_BYTES, _HOST_BYTES, _WORKERS = 80 * 10**9, 64 * 10**9, 8  # assumed of a cluster that is not asked


def guess_room(job: Job) -> tuple[Room, str]:
    """What this machine has, or what is assumed of a cluster that is not asked, which is then said."""
    cluster = job.config.cluster
    if cluster.address or os.environ.get("RAY_ADDRESS"):
        workers = cluster.max_workers or _WORKERS
        gpus = 1 if cluster.gpus_per_worker is None else cluster.gpus_per_worker
        store = int(_STORE_SHARE * workers * _HOST_BYTES)
        if job.config.gradients == "keep":  # whether it fits is for the cluster to say
            store = max(store, 2 * 4 * job.facts.parameters * (job.rows + 4 * job.queries))
        said = f"; {workers} workers with {byte_size(_HOST_BYTES)} of memory each"
        said += f" and GPUs of {byte_size(_GPU_BYTES)}" if gpus else ""
        room = Room(workers, gpus, store, int((1 - _STORE_SHARE) * _HOST_BYTES), _GPU_BYTES if gpus else None)
        return room, f"{said} are assumed of the cluster"
    devices = torch.cuda.device_count()  # by the driver's list: no GPU is touched
    gpus = (1 if devices else 0) if cluster.gpus_per_worker is None else cluster.gpus_per_worker
    fit = max((os.cpu_count() or 1) // cluster.cpus_per_worker, 1)
    if gpus:
        fit = max(min(fit, devices // gpus), 1)
    workers = cluster.max_workers or fit
    memory = _memory_bytes()
    store = int(min(_STORE_SHARE * memory, _STORE_MOST))
    room = Room(workers, gpus, store, (memory - store) // workers, _GPU_BYTES if gpus else None)
    return room, f"; GPUs of {byte_size(_GPU_BYTES)} are assumed" if gpus else ""


def _memory_bytes() -> int:
    """This machine's memory, or what its container may use of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / file
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)
