"""The environment of processes that Ray starts for us."""

from __future__ import annotations

import os
from typing import Any

#: For glibc. It would give each of a worker's threads a heap of its own, with what the other could use: a third more
#: memory. And it would give large tensors back to the kernel, which clears every page before it is had again: a tenth
#: of a CPU's time.
HEAP = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # the most that it takes
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


def worker_environment() -> dict[str, Any]:
    """The runtime environment of workers, which costs a second of their start; none where all is set already."""
    missing = {name: value for name, value in HEAP.items() if name not in os.environ}
    return {"env_vars": missing} if missing else {}
