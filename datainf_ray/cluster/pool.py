"""The workers that share a sweep's chunks: they come as the cluster has room, go when there is nothing left for them.

Ray restarts nothing and retries nothing here (`max_restarts=0`): the driver sees each loss once, and decides.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from datainf_ray.cluster.backlog import Backlog, Work, said
from datainf_ray.cluster.chunk import ChunkReport
from datainf_ray.cluster.facts import resources_said, said_labels, wants
from datainf_ray.cluster.hiring import IN_FLIGHT, hire
from datainf_ray.cluster.metrics import DONE, FAILED, RETRIED, DriverMetrics
from datainf_ray.cluster.orders import Order, Sweep, WorkerInfo, WorkerSpec
from datainf_ray.cluster.private import draining_nodes
from datainf_ray.cluster.reduce import StateLostError, is_lost
from datainf_ray.common.errors import RequestError, RunFailedError, one_line
from datainf_ray.common.redaction import redacted
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.runs.events import Note, forget

STARTS = 3  #: workers that may fail to start, one after another, for every worker that is wanted
IDLE = 60.0  #: seconds after which a worker that has nothing to do is let go
_TICK = 0.5  # seconds between looks, so that progress is shown while nothing finishes
_SILENCE = 10.0  # seconds of waiting for the first worker between two lines about it
_LOOK = 3.0  # seconds between looks at which nodes are being drained
_PAUSE = 30.0  # the most seconds between a worker that could not start and the next one


@dataclass(eq=False)
class _Member:
    """A worker as the driver sees it."""

    actor: ActorHandle
    name: str
    ready: Any  # the reference that resolves to its WorkerInfo
    placed: Any  # one that resolves once it is on a node
    asked: float  # when it was asked for
    first_choice: bool = True  # by the labels that are asked for first
    info: WorkerInfo | None = None
    calls: list[Any] = field(default_factory=list)  # references to reports, the oldest first
    idle: float = 0.0  # since when it has nothing to do


@dataclass(frozen=True)
class Done:
    """A finished chunk: its report, references to all else that `Worker.run` gave, and the node that it lies on."""

    chunk: Chunk
    report: ChunkReport
    results: list[Any]
    node: str


@dataclass(frozen=True)
class _Call:
    """A chunk on its way."""

    member: _Member
    backlog: Backlog  # of the sweep that it belongs to, which may be over
    work: Work
    results: list[Any]
    sweep: str  # its name


class Pool:
    """Workers of one run, at most `limit` of them, and never more than there are chunks left.

    `minimum` must be up before a sweep begins, and that many are kept when there is nothing to do. `actors` are workers
    that are on their way already, and are taken from there; with `grows` false none can come up later that cannot come
    up now. `say` is told in a line of what goes wrong and is borne, `note` of everything that happens. `crashed` are
    the rows, by corpus, that end their workers: those that are known, and those that are found, which `found` is called
    for.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        limit: int,
        minimum: int,
        gpus_per_worker: int,
        actors: deque[ActorHandle] | None = None,
        *,
        grows: bool = True,
        say: Callable[[str], None] = lambda text: None,
        crashed: dict[str, list[int]] | None = None,
        found: Callable[[], None] = lambda: None,
        note: Note = forget,
    ) -> None:
        self.spec, self.limit, self.minimum, self.gpus_per_worker = spec, limit, minimum, gpus_per_worker
        self.say, self.found, self.note = say, found, note
        self.metrics = DriverMetrics(redacted(spec.directory.url))
        self.crashed = crashed if crashed is not None else {}
        self.infos: list[WorkerInfo] = []  # of every worker that ever came up
        self.numbers = itertools.count()  # of sweeps; workers know them by it
        self.begun: list[float] = []  # when each sweep's first chunk was handed out, by time.perf_counter
        self._hired = deque() if actors is None else actors
        self._names = itertools.count()
        self._shared: Any = ray.put(spec)
        self._members: list[_Member] = []
        self._flying: dict[Any, _Call] = {}  # second starts may be in flight when their sweep is over
        self._patience = STARTS * (limit if grows else 1)
        self._reasons: list[str] = []  # why workers could not start, since one last could
        self._told: set[str] = set()
        self._not_before = 0.0  # when the next worker may be asked for
        self._stranded: float | None = None  # since when there is something to do, and no worker
        self._draining: frozenset[str] = frozenset()
        self._looked = 0.0
        self._timer: threading.Timer | None = None

    @property
    def ready(self) -> int:
        return sum(m.info is not None for m in self._members)

    def start(self, chunks: int) -> None:
        """Ask for as many workers as `chunks` chunks can occupy; they come up while the driver does other things."""
        staying = sum(not self._leaves(member) for member in self._members)
        for _ in range(min(self.limit, max(chunks, self.minimum)) - staying):
            if self._hired:
                actor = self._hired.popleft()
            elif time.monotonic() < self._not_before:
                break
            else:
                actor = hire(self.spec.config.cluster, self.gpus_per_worker)
            self._members.append(self._member(actor))

    def _member(self, actor: ActorHandle) -> _Member:
        name = str(next(self._names))
        return _Member(actor, name, actor.load.remote(self._shared, name), actor.here.remote(), asked=time.monotonic())

    def _fall_back(self) -> None:
        """Workers for which no node came in time are asked for again, with the other labels."""
        config = self.spec.config.cluster
        if config.fallback_selector is None:
            return
        for place, member in enumerate(self._members):
            late = time.monotonic() - member.asked > config.fallback_after
            if member.info is None and member.first_choice and late and not ray.wait([member.placed], timeout=0)[0]:
                ray.kill(member.actor)
                other = self._member(hire(config, self.gpus_per_worker, config.fallback_selector))
                other.first_choice = False
                self._members[place] = other
                said = (
                    f"no node with {said_labels(config.label_selector)} within {config.fallback_after:g} s; "
                    f"asking for {said_labels(config.fallback_selector)}"
                )
                self.note("worker_falls_back", worker=other.name, detail=said)
                if said not in self._told:
                    self._told.add(said)
                    self.say(said)

    def first(self, method: str, *values: Any) -> Any:
        """What one worker's method gives, of the first that is up."""
        began = told = time.monotonic()
        while True:
            self._awake()
            self.start(1)
            self._greet_all()
            member = next((m for m in self._members if m.info is not None and not self._leaves(m)), None)
            if member is None:
                self._wait(_TICK)
                if time.monotonic() - told > _SILENCE:
                    told = time.monotonic()
                    wanted = wants(self.spec.config.cluster, self.gpus_per_worker)
                    self.say(f"waiting for a worker of {wanted}, for {told - began:.0f} s")
                continue
            try:
                return ray.get(getattr(member.actor, method).remote(*values))
            except RayActorError as error:
                self._members.remove(member)
                self.note("worker_lost", **_who(member), detail=one_line(error))
                self._cannot_start(f"{method}: {one_line(_cause(error))[:500]}")
            except RayTaskError as error:
                cause = _cause(error)
                if isinstance(cause, RequestError | RunFailedError):
                    raise cause from None
                raise RunFailedError(f"{method}: {one_line(cause)[:500]}") from None

    def run(
        self,
        sweep: Sweep,
        chunks: Sequence[Chunk],
        order: Callable[[Chunk], Order] = Order,
        where: Callable[[Chunk], str | None] = lambda chunk: None,
    ) -> Iterator[Done | None]:
        """Every chunk's result, in the order of completion; None now and then, when there is none yet.

        `order` says what a worker is told of a chunk, and `where` the node on which it is best done, if there is one.
        Nothing more is handed out while the caller is busy with a result. Raises `RunFailedError` where a chunk fails
        or goes on ending its workers, or no worker can start; `StateLostError` where the sweep's inputs are lost.
        """
        shared = [ray.put(sweep)]
        corpus = self.spec.corpora.get(sweep.corpus) if sweep.source == "backward" else None
        numbers = None if corpus is None else lambda chunk: corpus.number_of(chunk.segments[0])
        backlog = Backlog(chunks, where, numbers)
        known = self.crashed.setdefault(sweep.corpus, [])
        sweeps = len(self.begun)

        def hand_out() -> None:
            if new := sorted(backlog.crashed.difference(known)):
                known.extend(new)
                rows = f"row{'s' if len(new) > 1 else ''} {', '.join(map(str, new))}"
                self.say(f"{sweep.name}: {rows} of {sweep.corpus} ended every worker; left out with the status crashed")
                self.found()
                for row in new:
                    self.note("row_crashed", sweep=sweep.name, detail=f"row {row} of {sweep.corpus}")
            if self.ready and len(self.begun) == sweeps:
                self.begun.append(time.perf_counter())
            now = time.monotonic()
            for depth in range(IN_FLIGHT):  # everyone gets a first chunk before anyone gets a second
                for member in self._members:
                    if member.info is None or len(member.calls) != depth or self._leaves(member):
                        continue
                    if depth and (backlog.waiting < len(self._members) or self._alone(member)):
                        continue  # the last chunks are for whoever is free first, or comes up meanwhile
                    work = backlog.take(member.info.node, now, alone=not depth) or (
                        None if depth else backlog.late(now)
                    )
                    if work is not None:
                        self._give(member, backlog, work, sweep, shared, replace(order(work.chunk), crashed=(*known,)))
                        if work.runners > 1:
                            self.note("chunk_started_again", **_who(member), sweep=sweep.name, chunk=work.chunk.number)

        self._awake()
        try:
            while backlog.left:
                self._look()
                self.start(backlog.waiting + sum(bool(m.calls) for m in self._members))
                self._greet_all()
                if self.ready >= min(self.minimum, self.limit):
                    hand_out()
                finished = self._wait(_TICK)
                self._let_go(backlog.waiting)
                if not finished:
                    yield None
                for reference in finished:
                    call = self._flying.get(reference)
                    if call is None:  # a worker is up, and greeted above; or was lost a moment ago
                        continue
                    try:
                        report = ray.get(reference)
                    except RayActorError as error:
                        self._lose(call.member, error)
                        continue
                    except RayTaskError as error:
                        if call.work.done or call.backlog is not backlog:  # nobody waits for it any more
                            self._end(reference, call)
                            continue
                        failure = _failure(call.work.chunk, error)
                        self.metrics.chunk(FAILED)
                        self.note("chunk_failed", **_who(call.member), **_what(call), detail=one_line(failure))
                        raise failure from None
                    self._end(reference, call)
                    first = call.backlog.finish(call.work, time.monotonic())
                    self._finished(call, report, first)
                    hand_out()  # before the result is dealt with: the worker need not wait for that
                    if first:
                        assert call.member.info is not None
                        yield Done(call.work.chunk, report, call.results, call.member.info.node)
        finally:
            self._rest()

    def close(self) -> None:
        """End the workers, and let go of every reference into Ray."""
        self._awake()
        for actor in [*(member.actor for member in self._members), *self._hired]:
            ray.kill(actor)
        self._members.clear()
        self._hired.clear()
        self._flying.clear()
        self._shared = None

    def _give(
        self, member: _Member, backlog: Backlog, work: Work, sweep: Sweep, shared: list[Any], order: Order
    ) -> None:
        if work.search is not None:
            order = replace(order, kept=(), trial=True)
        call = member.actor.run.options(num_returns=1 + sweep.outputs)
        report, *results = call.remote(sweep.number, shared, order)
        member.calls.append(report)
        self._flying[report] = _Call(member, backlog, work, results, sweep.name)

    def _finished(self, call: _Call, report: ChunkReport, first: bool) -> None:
        """Tell that a chunk is done; `first`: it is a chunk's result, and the first one."""
        timing = report.timing
        self.note(
            "chunk_done" if first else "chunk_done_again" if call.work.search is None else "rows_tried",
            **_who(call.member),
            **_what(call),
            rows=report.rows,
            tokens=report.tokens,
            began=round(timing.began, 3),
            ended=round(timing.ended, 3),
            waited=round(max(timing.waited, 0.0), 3),
        )
        if first:
            self.metrics.chunk(DONE)

    def _end(self, reference: Any, call: _Call) -> None:
        del self._flying[reference]
        call.member.calls.remove(reference)
        call.member.idle = time.monotonic()

    def _alone(self, member: _Member) -> bool:
        """Whether what a worker has is to be computed by itself."""
        return any(self._flying[call].work.alone for call in member.calls)

    def _wait(self, seconds: float) -> list[Any]:
        """What has come to an end: calls, and the starts of workers."""
        starting = [m.ready for m in self._members if m.info is None]
        if not self._flying and not starting:
            time.sleep(seconds)
            return []
        finished, _ = ray.wait([*self._flying, *starting], num_returns=1, timeout=seconds)
        return finished

    def _greet_all(self) -> None:
        """Note which workers have come up, and which could not; raises where there is no hope for any."""
        self._fall_back()
        for member in [m for m in self._members if m.info is None and ray.wait([m.ready], timeout=0)[0]]:
            try:
                member.info = ray.get(member.ready)
            except (RayTaskError, RayActorError) as error:
                self._members.remove(member)
                ray.kill(member.actor)
                cause = _cause(error)
                if isinstance(cause, RequestError | RunFailedError):  # a wrong request is wrong for all
                    raise cause from None
                if not getattr(error, "preempted", False):
                    self._cannot_start(one_line(cause)[-500:])
            else:
                member.idle = time.monotonic()
                self._reasons.clear()
                self._tell_of(member.info)
                self.infos.append(member.info)
                self.note("worker_up", **_who(member), device=member.info.device, seconds=round(member.info.seconds, 3))
                self.metrics.workers(self.ready)
        limit = self.spec.config.cluster.start_timeout
        if self.ready:
            self._stranded = None
        elif self._stranded is None:
            self._stranded = time.monotonic()
        elif limit is not None and time.monotonic() - self._stranded > limit:
            why = f": {self._reasons[-1]}" if self._reasons else ""
            raise RunFailedError(
                f"no worker could be started within {limit:g} s (cluster.start_timeout){why}; "
                f"a worker takes {wants(self.spec.config.cluster, self.gpus_per_worker)}, "
                f"and the cluster has {resources_said()}"
            )

    def _tell_of(self, info: WorkerInfo) -> None:
        """What the first worker's start took; the others' is in the events."""
        if not self.infos:
            self.say(
                f"a worker is up on {info.host} ({info.device}, {info.dtype}): model fetched in {info.fetched:.1f} s, "
                f"loaded and checked in {info.seconds - info.fetched:.1f} s"
            )

    def _cannot_start(self, reason: str) -> None:
        """A worker that could not start. The reason is told once; the next one is asked for a while later."""
        self._reasons.append(reason)
        self.note("worker_cannot_start", detail=reason)
        self._not_before = time.monotonic() + min(_PAUSE, 2.0 ** (len(self._reasons) - 2))
        if reason not in self._told:
            self._told.add(reason)
            self.say(f"a worker could not start: {reason}")
        if self.ready == 0 and len(self._reasons) >= self._patience:
            raise RunFailedError(f"no worker can start: {reason}")

    def _look(self) -> None:
        """See now and then which nodes are being drained: their workers finish what they have, and go."""
        if time.monotonic() - self._looked > _LOOK:
            self._looked = time.monotonic()
            self._draining = draining_nodes()

    def _leaves(self, member: _Member) -> bool:
        return member.info is not None and member.info.node in self._draining

    def _let_go(self, waiting: int) -> None:
        """Let workers go that have had nothing to do for a while, or that are leaving and have done what they had."""
        spare = len(self._members) - self.minimum
        for member in [m for m in self._members if m.info is not None and not m.calls]:
            bored = not waiting and spare > 0 and time.monotonic() - member.idle > IDLE
            if bored or self._leaves(member):
                spare -= 1
                self._members.remove(member)
                ray.kill(member.actor)
                self.note("worker_released", **_who(member), detail="idle" if bored else "its node is drained")
                self.metrics.workers(self.ready)

    def _rest(self) -> None:
        """Between sweeps workers wait for the next one, for a while."""
        now = time.monotonic()
        for member in self._members:
            member.idle = now
        self._timer = threading.Timer(IDLE + 1, self._let_go, [0])
        self._timer.daemon = True
        self._timer.start()

    def _awake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()  # if it is at work already, it comes to its end
            self._timer = None

    def _lose(self, member: _Member, error: RayActorError) -> None:
        """A worker is gone: what it had goes back, in order; only what it had alone is held against it."""
        self._members.remove(member)
        ray.kill(member.actor)  # it may be out of reach only, and would keep its GPU
        lost = [self._flying.pop(call) for call in member.calls]
        preempted = bool(getattr(error, "preempted", False))
        self.note("worker_lost", **_who(member), detail=("preempted: " if preempted else "") + one_line(error))
        self.metrics.workers(self.ready)
        for call in lost:
            self.metrics.chunk(RETRIED)
            self.note("chunk_lost", **_who(member), **_what(call))
        for call in reversed(lost):
            call.backlog.lose(call.work, len(lost) == 1, preempted, one_line(error))


def _who(member: _Member) -> dict[str, str | None]:
    """A worker, for an event."""
    info = member.info
    return {"worker": member.name, "node": info and info.node, "host": info and info.host}


def _what(call: _Call) -> dict[str, Any]:
    """A chunk, for an event."""
    return {"sweep": call.sweep, "chunk": call.work.chunk.number}


def _cause(error: Exception) -> Exception | str:
    """What was raised in the worker, under the layers that Ray puts around it."""
    cause = getattr(error, "cause", None)
    if isinstance(error, RayTaskError) and cause is not None:
        return cause
    text = str(error)
    for kind in (RequestError, RunFailedError):  # raised in a constructor: Ray keeps the traceback, not the exception
        marker = f"{kind.__module__}.{kind.__name__}: "
        if marker in text:
            return kind(text.rsplit(marker, 1)[1].strip().splitlines()[0])
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _failure(chunk: Chunk, error: RayTaskError) -> Exception:
    cause = _cause(error)
    if isinstance(cause, RequestError | RunFailedError):
        return cause
    if is_lost(error):
        return StateLostError(one_line(cause)[:300])
    name = f"{type(cause).__name__}: " if isinstance(cause, Exception) else ""
    return RunFailedError(f"{said(chunk)}: {name}{one_line(cause)[:500]}")
