"""What the runs of several adapters and the sum of their influences take, together."""

from __future__ import annotations

from collections.abc import Sequence

from datainf_ray.planning.forecast import START_SECONDS, Plan
from datainf_ray.request.job import Job
from datainf_ray.runs.combine import SWEEP, parts_of
from datainf_ray.runs.parts import row_bytes

_RATE = 40e6  # bytes/s of rows that are read, added and written, on one core


def together(plans: Sequence[Plan], job: Job, output: str) -> Plan:
    """The plan of the whole, of the plans of the runs; `job` is one of these. They come one after the other."""
    selves = job.config.results.self_influence
    rows_bytes = job.rows * row_bytes(job.queries, selves=selves)
    tables = (
        rows_bytes
        + plans[-1].output_bytes
        - job.rows * row_bytes(job.queries, True, plans[-1].blocks if job.config.results.blocks else 0, selves)
    )
    finished = [sum(plan.output_bytes for plan in plans[:number]) for number in range(len(plans) + 1)]
    peaks = [before + plan.peak_output_bytes for before, plan in zip(finished, plans, strict=False)]
    devices = [plan.device_bytes for plan in plans if plan.device_bytes is not None]
    adding = (len(plans) + 1) * rows_bytes / _RATE
    return plans[-1].model_copy(
        update={
            "adapters": len(plans),
            "notes": tuple(dict.fromkeys(note for plan in plans for note in plan.notes)),
            "sweeps": [*(name for plan in plans for name in plan.sweeps), SWEEP],
            "sweeps_guessed": any(plan.sweeps_guessed for plan in plans),
            "worker_bytes": max(plan.worker_bytes for plan in plans),
            "device_bytes": max(devices, default=None),
            "driver_bytes": max(plan.driver_bytes for plan in plans),
            "store_bytes": max(plan.store_bytes for plan in plans),
            "output_bytes": finished[-1] + tables,
            "peak_output_bytes": max(*peaks, finished[-1] + tables),
            "output_parts": sum(plan.output_parts for plan in plans) + len(parts_of(job.rows, job.queries, selves)),
            "index_bytes": sum(plan.index_bytes for plan in plans),
            "flops": sum(plan.flops for plan in plans),
            "seconds": sum(plan.seconds for plan in plans) + adding - (len(plans) - 1) * START_SECONDS,
            "problem": next((plan.problem for plan in plans if plan.problem is not None), None),
            "output": output,
        }
    )
