"""Asking Ray for a worker."""

from __future__ import annotations

from ray.actor import ActorHandle

from datainf_ray.cluster.actors import maker
from datainf_ray.cluster.environment import worker_environment
from datainf_ray.cluster.worker import Worker
from datainf_ray.config import ClusterConfig

IN_FLIGHT = 2  #: chunks that a worker has at a time: it computes one, and reads or writes the other


def hire(config: ClusterConfig, gpus_per_worker: int, labels: dict[str, str] | None = None) -> ActorHandle[Worker]:
    """A worker that is on its way, without a model yet; `labels` in place of those that are asked for first."""
    make = maker(
        Worker,
        num_cpus=config.cpus_per_worker,
        num_gpus=gpus_per_worker,
        label_selector=(config.label_selector if labels is None else labels) or None,
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=IN_FLIGHT,
        runtime_env=worker_environment(),
    )
    return make()
