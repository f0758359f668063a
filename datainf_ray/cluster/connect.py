"""Ray for as long as it is needed: the session's own, the cluster's, or a local one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import RayError

from datainf_ray.cluster.ahead import Ahead
from datainf_ray.cluster.facts import ClusterFacts, cluster_facts
from datainf_ray.cluster.failures import classify, final_error
from datainf_ray.cluster.guard import Guard
from datainf_ray.cluster.join import address_of, join
from datainf_ray.cluster.release import collect_references, end_ray, forget_frames, remove_session
from datainf_ray.common.errors import RequestError
from datainf_ray.config import ClusterConfig


@contextmanager
def connected(
    config: ClusterConfig, output: str, ahead: Ahead | None = None, guard: Guard | None = None
) -> Iterator[ClusterFacts]:
    """Inside, Ray is up: the session's own, the cluster's, or one that is started here and ended on leaving.

    No reference into Ray may be held by the block when that is left: not by its own frame either, if Ray is ended. So
    it closes what it has opened, and leaves all else to functions. An error that it raises loses what its frames hold;
    one of Ray's becomes one of ours, of one line.

    A Ray that was started `ahead` is ended in the background; the exit of `ahead` waits for it. `guard` notices that
    Ray is gone; an error that the block raises then becomes a `ClusterLostError`. Raises `RequestError` if the cluster
    cannot be reached, if it is too small, or if its workers cannot reach `output`.
    """
    if ahead is not None:
        ahead.begin()  # if it has not been yet
    facts = ahead.taken() if ahead is not None else None
    ours = facts is None and join(config)
    ends = ours or facts is not None
    guard, well = guard or Guard(), False
    try:
        with guard:
            guard.begin(local=ends and not address_of(config))
            if facts is None:
                facts = cluster_facts(config, local=ours and not address_of(config))
                if not facts.local:
                    _check_reach(output)
            try:
                yield facts
            except RayError as error:  # that nobody further down knew what to do about
                raise final_error(classify(error)) from error
        well = True
    except BaseException as error:
        if ends:
            forget_frames(error)
        if isinstance(error, Exception):
            guard.check()
        raise
    finally:
        if ends:
            collect_references()
        if ours:
            left = end_ray()
            if well:
                remove_session(left)
        elif ahead is not None:
            ahead.end()


def _check_reach(output: str) -> None:
    """A path is a place on one machine: where there are several, results would be strewn over them."""
    hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(hosts) > 1 and "://" not in output:
        raise RequestError(
            "output",
            output,
            f"is a path on one machine, and the cluster has {len(hosts)}",
            "use a URL that all of them reach, or file:// with a path that they share",
        )
