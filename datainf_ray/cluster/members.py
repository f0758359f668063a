"""The workers of a run: they start when the cluster has room, and end when no work is left for them.

Ray restarts nothing and retries nothing here (`max_restarts=0`): the driver sees each loss once, and decides.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from datainf_ray.cluster.actors import method
from datainf_ray.cluster.facts import describe_labels, describe_resources, wants
from datainf_ray.cluster.failures import Failure, Starts, classify
from datainf_ray.cluster.metrics import DriverMetrics
from datainf_ray.cluster.orders import WorkerInfo, WorkerSpec
from datainf_ray.cluster.private import draining_nodes, lifelines
from datainf_ray.cluster.worker import Worker
from datainf_ray.common.errors import RunFailedError
from datainf_ray.runs.events import Log

IDLE = 60.0  #: seconds after which a worker that has nothing to do is let go
_LOOK = 3.0  # seconds between looks at which nodes are being drained

#: Asks for a worker of this name, on a node with these labels; None: with those that are asked for first.
Hire = Callable[[str, dict[str, str] | None], "ActorHandle[Worker]"]


@dataclass(eq=False)
class Member:
    """A worker as the driver sees it."""

    actor: ActorHandle[Worker]
    name: str
    ready: Any  # the reference that resolves to its WorkerInfo
    placed: Any  # one that resolves once it is on a node
    asked: float  # when it was asked for
    first_choice: bool = True  # by the labels that are asked for first
    info: WorkerInfo | None = None
    calls: list[Any] = field(default_factory=list)  # references to reports, the oldest first
    idle: float = 0.0  # since when it has nothing to do


class Members:
    """Workers of one run, at most `limit` of them; `minimum` are kept when there is nothing to do.

    `actors` are workers that are on their way already, others are asked for by `hire`. `starts` decides about those
    that cannot start. `say` receives one line per non-fatal problem, `log` every event.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        limit: int,
        minimum: int,
        gpus_per_worker: int,
        memory: int,
        actors: deque[ActorHandle[Worker]],
        hire: Hire,
        starts: Starts,
        say: Callable[[str], None],
        log: Log,
        metrics: DriverMetrics,
        weights: dict[str, str],
    ) -> None:
        self.spec, self.limit, self.minimum = spec, limit, minimum
        self.gpus_per_worker, self.memory = gpus_per_worker, memory
        self.hire, self.starts, self.say, self.log, self.metrics = hire, starts, say, log, metrics
        self.weights = weights  # digests by device and dtype
        self.all: list[Member] = []
        self.infos: list[WorkerInfo] = []  # of every worker that ever came up
        self._hired = actors
        self._names = itertools.count()
        self._shared: Any = ray.put(spec)
        self._told: set[str] = set()
        self._stranded: float | None = None  # since when there is something to do, and no worker
        self._draining: frozenset[str] = frozenset()
        self._looked = 0.0
        self._lines = lifelines(local=False)
        self._timer: threading.Timer | None = None

    @property
    def ready(self) -> int:
        """How many are up."""
        return sum(m.info is not None for m in self.all)

    @property
    def wanted(self) -> str:
        """What is asked for now, in words."""
        config = self.spec.config.cluster
        first = all(member.first_choice for member in self.all if member.info is None)
        return wants(config, self.gpus_per_worker, self.memory, None if first else config.fallback_selector)

    def start(self, chunks: int) -> None:
        """Ask for as many workers as `chunks` chunks can occupy; they come up while the driver does other things."""
        staying = sum(not self.leaves(member) for member in self.all)
        for _ in range(min(self.limit, max(chunks, self.minimum)) - staying):
            actor: ActorHandle[Worker] | None
            if self._hired:
                actor = self._hired.popleft()
            elif not self.starts.may_ask(time.monotonic()):
                break
            else:
                actor = None
            self.all.append(self._member(actor))

    def greet(self) -> None:
        """Take in workers that are up or could not start. Raises if no worker can be expected to start."""
        self._fall_back()
        for member in [m for m in self.all if m.info is None and ray.wait([m.ready], timeout=0)[0]]:
            try:
                member.info = ray.get(member.ready)
            except RayError as error:
                self._remove(member)
                self.cannot_start(classify(error))
            else:
                member.idle = time.monotonic()
                self.starts.succeeded()
                self._tell_of(member.info)
                require_alike(member.info, self.weights)
                self.infos.append(member.info)
                self.log("worker_up", **who(member), device=member.info.device, seconds=round(member.info.seconds, 3))
                self.metrics.workers(self.ready)
        limit = self.spec.config.cluster.start_timeout
        if self.ready:
            self._stranded = None
        elif self._stranded is None:
            self._stranded = time.monotonic()
        elif limit is not None and time.monotonic() - self._stranded > limit:
            why = f": {self.starts.reason}" if self.starts.reason else ""
            raise RunFailedError(
                f"no worker could be started within {limit:g} s (cluster.start_timeout){why}; "
                f"a worker takes {self.wanted}, "
                f"and the cluster has {describe_resources()}"
            )

    def cannot_start(self, failure: Failure) -> None:
        """A worker could not start. Raises if no worker can be expected to start."""
        if not failure.preempted:
            self.log("worker_cannot_start", detail=failure.reason)
        said = self.starts.failed(failure, self.ready, time.monotonic())
        if said is not None:
            self.say(said)

    def lost(self, member: Member, failure: Failure) -> None:
        """A worker that was up is gone."""
        self._remove(member)
        self.log("worker_lost", **who(member), detail=("preempted: " if failure.preempted else "") + failure.reason)
        self.metrics.workers(self.ready)

    def look(self) -> None:
        """See now and then which nodes are being drained: their workers finish what they have, and go.

        The GCS knows. One that is away is not asked: the call would wait for it until Ray ends this process.
        """
        if time.monotonic() - self._looked > _LOOK:
            self._looked = time.monotonic()
            if self._lines is None or self._lines.head_answers():
                self._draining = draining_nodes()

    def leaves(self, member: Member) -> bool:
        """Whether its node is about to be taken away."""
        return member.info is not None and member.info.node in self._draining

    def let_go(self, waiting: int) -> None:
        """End workers that have been idle for a while, and workers on drained nodes that have finished their chunks."""
        spare = len(self.all) - self.minimum
        for member in [m for m in self.all if m.info is not None and not m.calls]:
            bored = not waiting and spare > 0 and time.monotonic() - member.idle > IDLE
            if bored or self.leaves(member):
                spare -= 1
                self._remove(member)
                self.log("worker_released", **who(member), detail="idle" if bored else "its node is drained")
                self.metrics.workers(self.ready)

    def rest(self) -> None:
        """Between sweeps workers wait for the next one, for a while."""
        now = time.monotonic()
        for member in self.all:
            member.idle = now
        self._timer = threading.Timer(IDLE + 1, self.let_go, [0])
        self._timer.daemon = True
        self._timer.start()

    def awake(self) -> None:
        """There is something to do again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()  # if it is at work already, it comes to its end
            self._timer = None

    def close(self) -> None:
        """End the workers, and release every reference into Ray."""
        self.awake()
        for actor in [*(member.actor for member in self.all), *self._hired]:
            ray.kill(actor)
        self.all.clear()
        self._hired.clear()
        self._shared = None

    def _member(self, actor: ActorHandle[Worker] | None, labels: dict[str, str] | None = None) -> Member:
        """A worker of the run: `actor`, or one that is asked for, on a node with `labels`."""
        name = str(next(self._names))
        if actor is None:
            actor = self.hire(name, labels)
        ready, placed = method(actor, Worker.load)(self._shared, name), method(actor, Worker.here)()
        return Member(actor, name, ready, placed, asked=time.monotonic())

    def _remove(self, member: Member) -> None:
        self.all.remove(member)
        ray.kill(member.actor)  # it may be out of reach only, and would keep its GPU

    def _fall_back(self) -> None:
        """Workers for which no node came in time are asked for again, with the other labels."""
        config = self.spec.config.cluster
        if config.fallback_selector is None:
            return
        for place, member in enumerate(self.all):
            late = time.monotonic() - member.asked > config.fallback_after
            if member.info is None and member.first_choice and late and not ray.wait([member.placed], timeout=0)[0]:
                ray.kill(member.actor)
                other = self._member(None, config.fallback_selector)
                other.first_choice = False
                self.all[place] = other
                said = (
                    f"no node with {describe_labels(config.label_selector)} within {config.fallback_after:g} s; "
                    f"asking for {describe_labels(config.fallback_selector)}"
                )
                self.log("worker_falls_back", worker=other.name, detail=said)
                if said not in self._told:
                    self._told.add(said)
                    self.say(said)

    def _tell_of(self, info: WorkerInfo) -> None:
        """What the first worker's start took; the others' is in the events."""
        if not self.infos:
            self.say(
                f"a worker is up on {info.host} ({info.device}, {info.dtype}): model fetched in {info.fetched:.1f} s, "
                f"loaded and checked in {info.seconds - info.fetched:.1f} s"
            )


def who(member: Member) -> dict[str, str | None]:
    """A worker, for an event."""
    info = member.info
    return {"worker": member.name, "node": info.node if info else None, "host": info.host if info else None}


def require_alike(info: WorkerInfo, weights: dict[str, str]) -> None:
    """The same files must give the same weights as on the workers before, of this attempt and earlier ones.

    `weights` has their digests by device and dtype, for where those differ so may what is computed while a model is
    loaded; that of the first of a kind is added. Raises `RunFailedError`.
    """
    kind = f"{info.device}, {info.dtype}"
    if weights.setdefault(kind, info.weights) != info.weights:
        raise RunFailedError(
            f"the model that {info.host} loaded has other weights than the workers before it, on the same device "
            f"({kind}): something in base or adapter is drawn at random when it is loaded"
        )
