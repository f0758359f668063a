"""A run's driver on the cluster: it continues when the session that started the run has ended.

It is a detached actor on the head node, where Ray's own bookkeeping is, so that workers' nodes may come and go. If its
process dies, Ray starts it again, and it continues the run.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from datainf_ray.cluster.actors import maker, method
from datainf_ray.cluster.background import LocalDriver
from datainf_ray.cluster.environment import worker_environment
from datainf_ray.cluster.failures import Fault, classify, final_error
from datainf_ray.cluster.join import join
from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.common.redaction import redacted_tree
from datainf_ray.config import RunConfig
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.tasks.own import TaskCode, unpack
from datainf_ray.tasks.register import own_code

NAMESPACE = "datainf"
RESTARTS = 3  #: times that the driver is made again when its process dies
LINGER = 30.0  #: seconds for which a driver that is done can be asked how it went
_HEAD = "node:__internal_head__"  # a resource that Ray gives to the head node alone


class Attribution:
    """Does one run by `work`, in the background, as soon as it is made."""

    def __init__(self, config: RunConfig, work: Callable[[RunConfig], Any], task_code: TaskCode | None) -> None:
        if task_code is not None:
            unpack(task_code)
        self._driver = LocalDriver(config, lambda: _work_and_linger(config, work))

    def result(self) -> None:
        """Wait until the run is over. Raises the error that the run ended with, if there was one."""
        self._driver.join()
        if (error := self._driver.error()) is not None:
            raise error


def _work_and_linger(config: RunConfig, work: Callable[[RunConfig], Any]) -> None:
    try:
        work(config)
    finally:
        me = ray.get_runtime_context().current_actor
        threading.Timer(LINGER, lambda: ray.kill(me, no_restart=True)).start()


class ClusterDriver:
    """`runs.results.Driver`: such an actor, seen from the session that asked for it."""

    def __init__(self, config: RunConfig, actor: ActorHandle[Attribution]) -> None:
        self.config: dict[str, Any] = redacted_tree(config.model_dump(mode="json"))
        self._actor = actor
        self._result = method(actor, Attribution.result)()
        self._ended: BaseException | bool = False

    def over(self) -> bool:
        if self._ended is False and ray.wait([self._result], timeout=0)[0]:
            self._ended = self._outcome()
        return self._ended is not False

    def error(self) -> BaseException | None:
        return self._ended if isinstance(self._ended, BaseException) else None

    def _outcome(self) -> BaseException | bool:
        """What the run ended with; False where it goes on, by a driver that was made again."""
        try:
            ray.get(self._result)
            return True
        except RayError as error:
            failure = classify(error)
        if failure.fault is Fault.PERMANENT:
            return final_error(failure)
        self._result = method(self._actor, Attribution.result)()
        _, lost = ray.wait([self._result], timeout=1)
        return False if lost else RunFailedError(f"its driver is gone: {failure.reason}")


def drive(config: RunConfig, work: Callable[[RunConfig], Any]) -> ClusterDriver:
    """Start the driver of a run on the cluster that this session is in, or that `config` names, and return at once.

    `work` does the run there: a function that can be pickled. The session is in the cluster afterwards. Raises
    `RequestError` if the cluster cannot be reached, or if this output has a driver already.
    """
    join(config.cluster)
    directory = RunDirectory(config.output, options=config.storage_options)
    name = f"datainf-{hashlib.sha256(directory.url.encode()).hexdigest()[:16]}"
    options: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": RESTARTS,
        "max_concurrency": 4,
        "resources": {_HEAD: 0.001},
        "runtime_env": worker_environment(),
    }
    make, source = maker(Attribution, **options), own_code(config.model)
    try:
        actor = make(config, work, source)
    except ValueError:  # Ray's, for a name that is in use
        _take_leave(name, directory.url)
        actor = make(config, work, source)
    return ClusterDriver(config, actor)


def _take_leave(name: str, url: str) -> None:
    """End the driver of this name, if its run is over. Raises `RequestError` where it is not."""
    earlier = ray.get_actor(name, NAMESPACE)
    over, _ = ray.wait([method(earlier, Attribution.result)()], timeout=2)
    if not over:
        raise RequestError(
            "output", url, "a run is at work there", "wait until it ends, stop it, or use another output"
        )
    ray.kill(earlier, no_restart=True)
    while name in (found["name"] for found in ray.util.list_named_actors(all_namespaces=True)):
        time.sleep(0.1)
