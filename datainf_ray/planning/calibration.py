"""A measurement that a forecast can rest on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """What a worker was seen to do with a few random rows of the corpus."""

    tokens_per_second: float  # of one worker in a curvature sweep at two nodes, with reading and tokenising
    worker_bytes: int  # its peak memory then, all queries and their sums included: the GPU's on a GPU, else the host's
    start_seconds: float  # from asking for it until it was ready
    device: str  # a GPU's name, or cpu
    tokens_per_row: float | None = None  # of those rows; None: as the first rows have it
