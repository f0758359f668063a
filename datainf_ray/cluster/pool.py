"""The queue that the workers share: a chunk that is lost with its worker goes back, a worker that is lost is replaced.

Ray restarts nothing and retries nothing here (`max_restarts=0`): the driver sees each loss once, and decides.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from datainf_ray.cluster.chunk import ChunkReport
from datainf_ray.cluster.orders import Order, Sweep, WorkerInfo, WorkerSpec
from datainf_ray.cluster.start import worker_environment
from datainf_ray.cluster.worker import Worker
from datainf_ray.config import one_line
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.errors import RequestError, RunFailedError

IN_FLIGHT = 2  #: chunks that a worker has at a time: it computes one, and reads or writes the other
ATTEMPTS = 3  #: times that a chunk may lose its worker before the run gives up
_TICK = 0.5  # seconds between looks, so that progress is shown while nothing finishes
_AHEAD = 32  # chunks at the head of the queue among which a worker is given one whose gradients lie on its node


@dataclass(eq=False)
class _Member:
    """A worker as the driver sees it."""

    actor: ActorHandle
    ready: Any  # the reference that resolves to its WorkerInfo
    info: WorkerInfo | None = None
    calls: list[Any] = field(default_factory=list)  # references to reports, the oldest first


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
    chunk: Chunk
    results: list[Any]


class Pool:
    """Workers of one run, at most `limit` of them, and never more than there are chunks left.

    `minimum` must be up before a sweep begins.
    """

    def __init__(self, spec: WorkerSpec, limit: int, minimum: int, gpus_per_worker: int) -> None:
        self.spec, self.limit, self.minimum = spec, limit, minimum
        self._actor = ray.remote(
            num_cpus=spec.config.cluster.cpus_per_worker,
            num_gpus=gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=IN_FLIGHT,
            runtime_env=worker_environment(),
        )(Worker)
        self._shared = ray.put(spec)
        self._members: list[_Member] = []
        self._failures: list[str] = []
        self.infos: list[WorkerInfo] = []  # of every worker that ever came up
        self.begun: list[float] = []  # when each sweep's first chunk was handed out, by time.perf_counter

    @property
    def ready(self) -> int:
        return sum(m.info is not None for m in self._members)

    def start(self, chunks: int) -> None:
        """Ask for as many workers as `chunks` chunks can occupy; they come up while the driver does other things."""
        while len(self._members) < min(self.limit, max(chunks, self.minimum)):
            actor = self._actor.remote(self._shared)
            self._members.append(_Member(actor, actor.ready.remote()))

    def first(self, method: str, *values: Any) -> Any:
        """What one worker's method gives, of the first that is up."""
        self.start(1)
        while not self.ready:
            starting = {m.ready: m for m in self._members}
            for reference in ray.wait(list(starting), num_returns=1, timeout=_TICK)[0]:
                self._greet(starting[reference])
            self.start(1)
        member = next(m for m in self._members if m.info is not None)
        try:
            return ray.get(getattr(member.actor, method).remote(*values))
        except (RayTaskError, RayActorError) as error:
            raise RunFailedError(f"{method}: {one_line(_cause(error))[:500]}") from None

    def run(
        self,
        sweep: Sweep,
        chunks: Sequence[Chunk],
        order: Callable[[Chunk], Order] = Order,
        where: Callable[[Chunk], str | None] = lambda chunk: None,
    ) -> Iterator[Done | None]:
        """Every chunk's result, in the order of completion; None now and then, when there is none yet.

        `order` says what a worker is told of a chunk, and `where` the node on which it is best done, if there is one.
        Raises `RunFailedError` where a chunk fails, loses its worker `ATTEMPTS` times, or no worker can start.
        """
        shared = [ray.put(sweep)]
        queue = deque(chunks)
        left = len(chunks)
        attempts: dict[int, int] = {}
        flying: dict[Any, _Call] = {}
        sweeps = len(self.begun)

        def hand_out() -> None:
            if self.ready and len(self.begun) == sweeps:
                self.begun.append(time.perf_counter())
            for depth in range(IN_FLIGHT):  # everyone gets a first chunk before anyone gets a second
                for member in self._members:
                    if queue and member.info is not None and len(member.calls) == depth:
                        chunk = _taken(queue, member.info.node, where)
                        call = member.actor.run.options(num_returns=1 + sweep.outputs)
                        report, *results = call.remote(sweep.number, shared, order(chunk))
                        member.calls.append(report)
                        flying[report] = _Call(member, chunk, results)

        while left:
            self.start(left)
            if self.ready >= min(self.minimum, self.limit):
                hand_out()
            starting = {m.ready: m for m in self._members if m.info is None}
            finished, _ = ray.wait([*flying, *starting], num_returns=1, timeout=_TICK)
            if not finished:
                yield None
            for reference in finished:
                if reference in starting:
                    self._greet(starting[reference])
                    continue
                if reference not in flying:  # its worker was lost a moment ago
                    continue
                call = flying[reference]
                try:
                    report = ray.get(reference)
                except RayActorError as error:
                    self._lose(call.member, error, flying, queue, attempts)
                    continue
                except RayTaskError as error:
                    raise _failure(call.chunk, error) from None
                del flying[reference]
                call.member.calls.remove(reference)
                left -= 1
                assert call.member.info is not None
                hand_out()  # before the result is dealt with: the worker need not wait for that
                yield Done(call.chunk, report, call.results, call.member.info.node)

    def close(self) -> None:
        """End the workers."""
        for member in self._members:
            ray.kill(member.actor)
        self._members.clear()

    def _greet(self, member: _Member) -> None:
        try:
            member.info = ray.get(member.ready)
        except (RayTaskError, RayActorError) as error:
            self._dismiss(member, _cause(error))
        else:
            self._failures.clear()
            self.infos.append(member.info)

    def _dismiss(self, member: _Member, reason: Exception | str) -> None:
        """A worker that could not start. A wrong request is wrong for all; of other reasons a few are let pass."""
        self._members.remove(member)
        if isinstance(reason, RequestError | RunFailedError):
            raise reason
        self._failures.append(one_line(reason)[-500:])
        if self.ready == 0 and len(self._failures) >= ATTEMPTS:
            raise RunFailedError(f"no worker can start: {self._failures[-1]}")

    def _lose(
        self,
        member: _Member,
        error: RayActorError,
        flying: dict[Any, _Call],
        queue: deque[Chunk],
        attempts: dict[int, int],
    ) -> None:
        """Put a lost worker's chunks back in front, in order; only the one that it was computing counts an attempt."""
        self._members.remove(member)
        chunks = [flying.pop(call).chunk for call in member.calls]
        if chunks and not getattr(error, "preempted", False):
            current = chunks[0]
            attempts[current.number] = attempts.get(current.number, 0) + 1
            if attempts[current.number] >= ATTEMPTS:
                raise RunFailedError(f"{_said(current)} has ended its worker {ATTEMPTS} times: {one_line(error)[:300]}")
        queue.extendleft(reversed(chunks))


def _taken(queue: deque[Chunk], node: str, where: Callable[[Chunk], str | None]) -> Chunk:
    """The first chunk in the queue that is best done on this node, else the first."""
    for place, chunk in enumerate(islice(queue, _AHEAD)):
        if where(chunk) == node:
            del queue[place]
            return chunk
    return queue.popleft()


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
    name = f"{type(cause).__name__}: " if isinstance(cause, Exception) else ""
    return RunFailedError(f"{_said(chunk)}: {name}{one_line(cause)[:500]}")


def _said(chunk: Chunk) -> str:
    return f"chunk {chunk.number} (rows {chunk.first} to {chunk.first + chunk.rows - 1})"
