"""`datainf plan`: an estimate of what a run would take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datainf_ray.config import RunConfig, load_config
from datainf_ray.planning.forecast import Plan, forecast
from datainf_ray.request.job import prepare


def plan(config: str | Path | dict[str, Any] | RunConfig, calibrate: bool = False, **overrides: Any) -> Plan:
    """What a run of this configuration would take. Reads metadata and a few rows; touches no GPU and starts nothing.

    With `calibrate` a worker is started, on the cluster that the run would use, and timed on a few rows. Raises
    `RequestError` for each request that `attribute` refuses before it starts a worker.
    """
    job = prepare(load_config(config, **overrides), writable=False)
    if not calibrate:
        return forecast(job)
    from datainf_ray.cluster.calibrate import measure  # only here: a plan needs no Ray

    return forecast(job, *measure(job))
