"""`datainf plan`: an estimate of what a run would take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datainf_ray.config import RunConfig, load_config
from datainf_ray.planning.calibration import Calibration
from datainf_ray.planning.forecast import Plan, forecast
from datainf_ray.planning.room import Room
from datainf_ray.planning.several import together
from datainf_ray.request.checkpoints import several
from datainf_ray.request.job import complete
from datainf_ray.request.understand import understand, understand_each
from datainf_ray.runs.directory import RunDirectory


def plan(config: str | Path | dict[str, Any] | RunConfig, calibrate: bool = False, **overrides: Any) -> Plan:
    """What a run of this configuration would take. Reads metadata and a few rows; touches no GPU and starts nothing.

    Of several adapters it is what their runs and the sum take together, one after the other.

    With `calibrate` a worker is started, on the cluster that the run would use, and timed on a few rows. Raises
    `RequestError` for each request that `attribute` refuses before it starts a worker.
    """
    asked = load_config(config, **overrides)
    requests = understand_each(asked)[1] if several(asked) else [understand(asked)]
    jobs = [complete(request, writable=False) for request in requests]
    measured: tuple[Calibration, Room] | tuple[()] = ()
    if calibrate:
        from datainf_ray.cluster.calibrate import measure  # only here: a plan needs no Ray

        measured = measure(jobs[0])
    plans = [forecast(job, *measured) for job in jobs]
    if not several(asked):
        return plans[0]
    return together(plans, jobs[-1], RunDirectory(asked.output, options=asked.storage_options).url)
