"""Workers that outlive their run, and are lent to the next: a new one imports torch and transformers for seconds.

Only workers that a pool closes while they are up and have nothing to do. What a worker had of one run must not show in
the next: tests/cluster/test_reloaded.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle

from datainf_ray.cluster import members, pool
from datainf_ray.config import ClusterConfig

MOST = 2  # CPUs of the tests' Ray
LOADS = 30  # runs of one worker: its memory is not given back to the system

_idle: list[tuple[Any, ActorHandle]] = []  # with the terms that each was hired on
_hired: dict[ActorHandle, tuple[Any, int]] = {}  # the same of those at work, and how many runs they have seen
_lends = True


def _terms(config: ClusterConfig, gpus: float, labels: dict[str, str] | None) -> Any:
    return config.cpus_per_worker, gpus, config.label_selector if labels is None else labels


def _dismiss_idle() -> None:
    for _, actor in _idle:
        _hired.pop(actor, None)
        ray.kill(actor)
    _idle.clear()


@contextmanager
def none() -> Iterator[None]:
    """Inside, no worker is lent."""
    global _lends
    _dismiss_idle()
    before, _lends = _lends, False
    try:
        yield
    finally:
        _lends = before


@contextmanager
def workers() -> Iterator[None]:
    """Inside, workers are lent."""
    hire, close = pool.hire, members.Members.close

    def lend(config: ClusterConfig, gpus: float, labels: dict[str, str] | None = None, **more: Any) -> ActorHandle:
        if not _lends:
            return hire(config, gpus, labels, **more)
        terms = _terms(config, gpus, labels)
        for place, (had, actor) in enumerate(_idle):
            if had == terms:
                del _idle[place]
                return actor
        if len(_idle) == MOST or any(had != terms for had, _ in _idle):
            _dismiss_idle()  # they take the CPUs that the new one needs
        actor = hire(config, gpus, labels, **more)
        _hired[actor] = terms, 0
        return actor

    def keep(self: members.Members) -> None:
        if _lends:
            for member in [m for m in self.all if m.info is not None and not m.calls and m.actor in _hired]:
                terms, runs = _hired[member.actor]
                if runs < LOADS and len(_idle) < MOST:
                    _hired[member.actor] = terms, runs + 1
                    _idle.append((terms, member.actor))
                    self.all.remove(member)
        close(self)

    pool.hire, members.Members.close = lend, keep
    try:
        yield
    finally:
        _dismiss_idle()
        pool.hire, members.Members.close = hire, close
