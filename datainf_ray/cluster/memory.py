"""What a worker's process has of memory."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path

import torch


def gpu_bytes(device: torch.device) -> int | None:
    """What this process holds of all its GPUs, where `device` is one; None where it computes on a CPU."""
    if device.type != "cuda":
        return None
    return sum(torch.cuda.memory_reserved(number) for number in range(torch.cuda.device_count()))


def peak_bytes(devices: Sequence[torch.device]) -> int:
    """The most that this process has had: of these GPUs, or where they are none of the host's memory."""
    if devices[0].type == "cuda":
        return sum(torch.cuda.max_memory_allocated(device) for device in devices)
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says begins with what the parent process had
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
