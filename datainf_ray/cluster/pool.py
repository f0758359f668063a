"""The pool: it sends a sweep's chunks to the workers of a run, and receives the results."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from datainf_ray.cluster.actors import method
from datainf_ray.cluster.backlog import HALVINGS, Backlog, Work, describe_chunk
from datainf_ray.cluster.chunk import ChunkReport
from datainf_ray.cluster.failures import STARTS, Failure, Fault, Starts, classify, final_error
from datainf_ray.cluster.hiring import IN_FLIGHT, hire, worker_name
from datainf_ray.cluster.members import Member, Members, who
from datainf_ray.cluster.metrics import DONE, FAILED, RETRIED, DriverMetrics
from datainf_ray.cluster.orders import Order, Sweep, WorkerInfo, WorkerSpec
from datainf_ray.cluster.reduce import StateLostError
from datainf_ray.cluster.worker import Worker
from datainf_ray.common.redaction import redacted
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.runs.events import Log, forget

_TICK = 0.5  # seconds between looks, so that progress is shown while nothing finishes
_SILENCE = 10.0  # seconds of waiting for the first worker between two lines about it
_NAMED = 3  # chunks that are named when none has come back for long


@dataclass(frozen=True)
class Done:
    """A finished chunk: its report, references to all else that `Worker.run` gave, and the node that it lies on."""

    chunk: Chunk
    report: ChunkReport
    results: list[Any]
    node: str


@dataclass(frozen=True)
class _Turn:
    """One sweep over some chunks: what is left of it, and what is sent to workers."""

    sweep: Sweep
    backlog: Backlog
    order: Callable[[Chunk], Order]
    crashed: list[int]  # the rows of its corpus that are known to end their workers
    shared: list[Any] = field(default_factory=list)  # the reference to the sweep


@dataclass(frozen=True)
class _Call:
    """A chunk on its way."""

    member: Member
    turn: _Turn  # which may be over
    work: Work
    results: list[Any]


class Pool:
    """Workers of one run, at most `limit` of them, and never more than there are chunks left.

    `minimum` must be up before a sweep begins, and that many are kept when there is nothing to do. `actors` are workers
    that are on their way already, and are taken from there; with `grows` false none can come up later that cannot come
    up now. A new one is put on a node that has `memory` bytes left. `say` receives one line per non-fatal problem,
    `log` every event. `crashed` has the rows, by corpus, that crash their workers. Rows that are found are added to it,
    and `found` is called. So are digests of the workers' weights, by device and dtype, to `weights`: they must be the
    same.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        limit: int,
        minimum: int,
        gpus_per_worker: int,
        actors: deque[ActorHandle[Worker]] | None = None,
        *,
        grows: bool = True,
        memory: int = 0,
        say: Callable[[str], None] = lambda text: None,
        crashed: dict[str, list[int]] | None = None,
        found: Callable[[], None] = lambda: None,
        log: Log = forget,
        weights: dict[str, str] | None = None,
    ) -> None:
        self.spec, self.limit, self.minimum = spec, limit, minimum
        self.say, self.found, self.log = say, found, log
        self.metrics = DriverMetrics(redacted(spec.directory.url))
        self.crashed = crashed if crashed is not None else {}
        self.numbers = itertools.count()  # of sweeps; workers know them by it
        self.begun: list[float] = []  # when each sweep's first chunk was handed out, by time.perf_counter
        self._flying: dict[Any, _Call] = {}  # second starts may be in flight when their sweep is over
        self._members = Members(
            spec,
            limit,
            minimum,
            gpus_per_worker,
            memory,
            deque() if actors is None else actors,
            lambda name, labels: hire(
                spec.config.cluster,
                gpus_per_worker,
                labels,
                name=worker_name(spec.config.output, name),
                memory=memory,
            ),
            Starts(STARTS * (limit if grows else 1)),
            say,
            log,
            self.metrics,
            {} if weights is None else weights,
        )

    @property
    def ready(self) -> int:
        """How many workers are up."""
        return self._members.ready

    @property
    def infos(self) -> list[WorkerInfo]:
        """Of every worker that ever came up."""
        return self._members.infos

    def start(self, chunks: int) -> None:
        """Ask for as many workers as `chunks` chunks can occupy; they come up while the driver does other things."""
        self._members.start(chunks)

    def first(self, method: str, *values: Any) -> Any:
        """Call a method of the first worker that is up, and return its result."""
        members = self._members
        began = told = time.monotonic()
        members.awake()
        while True:
            members.start(1)
            members.greet()
            member = next((m for m in members.all if m.info is not None and not members.leaves(m)), None)
            if member is None:
                self._wait(_TICK)
                if time.monotonic() - told > _SILENCE:
                    told = time.monotonic()
                    self.say(f"waiting for a worker of {members.wanted}, for {told - began:.0f} s")
                continue
            try:
                return ray.get(getattr(member.actor, method).remote(*values))
            except RayError as error:
                failure = classify(error)
                if failure.fault is Fault.PERMANENT:
                    raise final_error(failure, f"{method}: ") from None
                members.lost(member, failure)  # well perhaps, but of no use here: another one tries
                members.cannot_start(replace(failure, reason=f"{method}: {failure.reason}"))

    def run(
        self,
        sweep: Sweep,
        chunks: Sequence[Chunk],
        order: Callable[[Chunk], Order] = Order,
        where: Callable[[Chunk], str | None] = lambda chunk: None,
    ) -> Iterator[Done | None]:
        """Every chunk's result, in the order of completion; None now and then, when there is none yet.

        `order` gives what a worker receives for a chunk, and `where` the node that is best for it, if there is one.
        Nothing more is handed out while the caller is busy with a result. Raises `RunFailedError` where a chunk fails
        or goes on ending its workers, or no worker can start; `StateLostError` where the sweep's inputs are lost.
        """
        members = self._members
        corpus = self.spec.corpora.get(sweep.corpus) if sweep.source == "backward" else None
        numbers = None if corpus is None else lambda chunk: corpus.number_of(chunk.segments[0])
        halvings = HALVINGS if sweep.source == "backward" else 0  # an index is not read in batches
        backlog = Backlog(chunks, where, numbers, halvings)
        turn = _Turn(sweep, backlog, order, self.crashed.setdefault(sweep.corpus, []), [ray.put(sweep)])
        sweeps = len(self.begun)
        members.awake()
        try:
            while backlog.left:
                members.look()
                members.start(backlog.waiting + sum(bool(m.calls) for m in members.all))
                members.greet()
                if self.ready >= min(self.minimum, self.limit):
                    if self.ready and len(self.begun) == sweeps:
                        self.begun.append(time.perf_counter())
                    self._hand_out(turn)
                finished = self._wait(_TICK)
                members.let_go(backlog.waiting)
                if not finished:
                    self._tell_of_silence(turn)
                    yield None
                for reference in finished:
                    call = self._flying.get(reference)
                    if call is None:  # a worker is up, and greeted above; or was lost a moment ago
                        continue
                    report = self._report(reference, call, turn)
                    if report is None:
                        continue
                    first = call.turn.backlog.finish(call.work, time.monotonic())
                    self._finished(call, report, first)
                    self._hand_out(turn)  # before the result is dealt with: the worker need not wait for that
                    if first:
                        assert call.member.info is not None
                        yield Done(call.work.chunk, report, call.results, call.member.info.node)
        finally:
            members.rest()

    def close(self) -> None:
        """End the workers, and release every reference into Ray."""
        self._members.close()
        self._flying.clear()

    def _hand_out(self, turn: _Turn) -> None:
        """Give every worker that has room for one a chunk, if there is one for it."""
        backlog, sweep, members = turn.backlog, turn.sweep, self._members
        if new := sorted(backlog.crashed.difference(turn.crashed)):
            turn.crashed.extend(new)
            rows = f"row{'s' if len(new) > 1 else ''} {', '.join(map(str, new))}"
            self.say(f"{sweep.name}: {rows} of {sweep.corpus} ended every worker; left out with the status crashed")
            self.found()
            for row in new:
                self.log("row_crashed", sweep=sweep.name, detail=f"row {row} of {sweep.corpus}")
        now = time.monotonic()
        for depth in range(IN_FLIGHT):  # everyone gets a first chunk before anyone gets a second
            for member in members.all:
                if member.info is None or len(member.calls) != depth or members.leaves(member):
                    continue
                if depth and (backlog.waiting < len(members.all) or self._alone(member)):
                    continue  # the last chunks are for whoever is free first, or comes up meanwhile
                work = backlog.take(member.info.node, now, alone=not depth) or (None if depth else backlog.late(now))
                if work is not None:
                    self._give(member, turn, work)
                    if work.runners > 1:
                        self.log("chunk_started_again", **who(member), sweep=sweep.name, chunk=work.chunk.number)

    def _give(self, member: Member, turn: _Turn, work: Work) -> None:
        sweep, order = turn.sweep, replace(turn.order(work.chunk), crashed=(*turn.crashed,))
        if work.search is not None:
            order = replace(order, kept=(), trial=True)
        if work.halvings:  # gradients that were kept would be replayed as they came: too much at a time
            order = replace(order, kept=(), batch_tokens=max(1, sweep.batch_tokens >> work.halvings))
        call = method(member.actor, Worker.run, num_returns=1 + sweep.outputs)
        report, *results = call(sweep.number, turn.shared, order)
        member.calls.append(report)
        self._flying[report] = _Call(member, turn, work, results)

    def _report(self, reference: Any, call: _Call, turn: _Turn) -> ChunkReport | None:
        """What a call that has come to an end gave; None where the chunk goes back, or nobody waits for it any more.

        Raises what ends the run, and `StateLostError` where the sweep's inputs are lost.
        """
        try:
            report: ChunkReport = ray.get(reference)
        except RayError as error:
            failure = classify(error)
        else:
            self._end(reference, call)
            return report
        if failure.fault is Fault.GONE:
            self._lose(call.member, failure)
            return None
        self._end(reference, call)
        if call.work.done or call.turn is not turn:  # nobody waits for it any more
            return None
        if failure.fault is Fault.LOST and failure.inside:
            self._failed(call, failure)
            raise StateLostError(failure.reason)
        if failure.fault is Fault.PERMANENT:
            self._failed(call, failure)
            raise final_error(failure, f"{describe_chunk(call.work.chunk)}: ")
        self.metrics.chunk(RETRIED)
        self.log("chunk_lost", **who(call.member), **_what(call), detail=failure.reason)
        turn.backlog.again(call.work, time.monotonic(), failure.reason)
        return None

    def _failed(self, call: _Call, failure: Failure) -> None:
        self.metrics.chunk(FAILED)
        self.log("chunk_failed", **who(call.member), **_what(call), detail=failure.reason)

    def _finished(self, call: _Call, report: ChunkReport, first: bool) -> None:
        """Tell that a chunk is done; `first`: it is a chunk's result, and the first one."""
        timing = report.timing
        self.log(
            "chunk_done" if first else "chunk_done_again" if call.work.search is None else "rows_tried",
            **who(call.member),
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

    def _alone(self, member: Member) -> bool:
        """Whether what a worker has is to be computed by itself."""
        return any(self._flying[call].work.alone for call in member.calls)

    def _wait(self, seconds: float) -> list[Any]:
        """What has come to an end: calls, and the starts of workers."""
        starting = [m.ready for m in self._members.all if m.info is None]
        if not self._flying and not starting:
            time.sleep(seconds)
            return []
        finished, _ = ray.wait([*self._flying, *starting], num_returns=1, timeout=seconds)
        return finished

    def _lose(self, member: Member, failure: Failure) -> None:
        """A worker is gone: what it had goes back, in order; only what it had alone is held against it."""
        lost = [self._flying.pop(call) for call in member.calls]
        self._members.lost(member, failure)
        for call in lost:
            self.metrics.chunk(RETRIED)
            self.log("chunk_lost", **who(member), **_what(call))
        if failure.memory:
            assert member.info is not None
            what = "chunk is" if len(lost) == 1 else "chunks are"
            self.say(f"a worker on {member.info.host} was ended because {failure.reason}; its {what} computed again")
        for call in reversed(lost):
            work, before = call.work, call.work.halvings
            call.turn.backlog.lose(work, len(lost) == 1, failure.preempted, failure.reason, failure.memory)
            if work.halvings > before:
                tokens = max(1, call.turn.sweep.batch_tokens >> work.halvings)
                chunk = describe_chunk(work.chunk)
                told = f"{chunk} took too much memory; it is computed again in batches of {tokens:,} tokens"
                self.say(f"{call.turn.sweep.name}: {told}")
                self.log("smaller_batches", **_what(call), tokens=tokens, detail=told)

    def _tell_of_silence(self, turn: _Turn) -> None:
        """Workers that have chunks, and give none back for long, may hang; or the chunks are slow. It is waited for."""
        seconds = turn.backlog.silence(time.monotonic())
        if seconds is None:
            return
        calls = [call for call in self._flying.values() if call.turn is turn]
        named = [
            f"{describe_chunk(c.work.chunk)} on {c.member.info.host}"
            for c in calls[:_NAMED]
            if c.member.info is not None
        ]
        more = [f"{len(calls) - len(named)} more"] if len(calls) > len(named) else []
        told = f"no chunk has come back for {seconds:.0f} s; still waiting for {', '.join([*named, *more])}"
        self.say(f"{turn.sweep.name}: {told}")
        self.log("silence", sweep=turn.sweep.name, seconds=round(seconds, 3), detail=told)


def _what(call: _Call) -> dict[str, Any]:
    """A chunk, for an event."""
    return {"sweep": call.turn.sweep.name, "chunk": call.work.chunk.number}
