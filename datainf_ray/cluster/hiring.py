"""Asking Ray for a worker."""

from __future__ import annotations

from ray.actor import ActorHandle

from datainf_ray.cluster.actors import maker
from datainf_ray.cluster.environment import worker_environment
from datainf_ray.cluster.worker import Worker
from datainf_ray.common.redaction import redacted
from datainf_ray.common.words import printable
from datainf_ray.config import ClusterConfig

_NAME = 40  # characters of a run's name
IN_FLIGHT = 2  #: chunks that a worker has at a time: it computes one, and reads or writes the other


def hire(
    config: ClusterConfig,
    gpus_per_worker: int,
    labels: dict[str, str] | None = None,
    *,
    name: str = "",
    memory: int = 0,
) -> ActorHandle[Worker]:
    """A worker that is on its way, without a model yet; `labels` in place of those that are asked for first.

    Ray's dashboard and logs call it by its `name`. It is put on a node that has `memory` bytes left.
    """
    make = maker(
        Worker,
        num_cpus=config.cpus_per_worker,
        num_gpus=gpus_per_worker,
        memory=memory or None,
        label_selector=(config.label_selector if labels is None else labels) or None,
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=IN_FLIGHT,
        runtime_env=worker_environment(),
    )
    return make(name)


def worker_name(output: str, number: str) -> str:
    """What Ray's dashboard and logs call a run's worker: `datainf:RUN:worker-3`, by the last name in the output."""
    last = redacted(output).rstrip("/").rpartition("/")[2]
    return f"datainf:{printable(last, _NAME)}:worker-{number}"
