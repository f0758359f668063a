"""The queue that the workers share: a chunk that is lost with its worker goes back, a worker that is lost is replaced.

Ray restarts nothing and retries nothing here (`max_restarts=0`): the driver sees each loss once, and decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from datainf_ray.cluster.chunk import ChunkReport
from datainf_ray.cluster.worker import Sweep, Worker, WorkerInfo, WorkerSpec
from datainf_ray.config import one_line
from datainf_ray.corpus.chunks import Chunk
from datainf_ray.errors import RequestError, RunFailedError

IN_FLIGHT = 2  #: chunks that a worker has at a time, so that it need not wait for the driver
ATTEMPTS = 3  #: times that a chunk may lose its worker before the run gives up
_TICK = 0.5  # seconds between looks, so that progress is shown while nothing finishes


@dataclass(eq=False)
class _Member:
    """A worker as the driver sees it."""

    actor: ActorHandle
    ready: Any  # the reference that resolves to its WorkerInfo
    info: WorkerInfo | None = None
    calls: list[Any] = field(default_factory=list)  # references to reports, the oldest first


@dataclass(frozen=True)
class Done:
    """A finished chunk: its report, and references to its statistics."""

    chunk: Chunk
    report: ChunkReport
    states: list[Any]


class Pool:
    """Workers of one run, at most `limit` of them, and never more than there are chunks left.

    `minimum` must be up before a sweep begins.
    """

    def __init__(self, spec: WorkerSpec, limit: int, minimum: int, gpus_per_worker: int) -> None:
        self.spec, self.limit, self.minimum = spec, limit, minimum
        self._actor = ray.remote(
            num_cpus=spec.config.cluster.cpus_per_worker, num_gpus=gpus_per_worker, max_restarts=0, max_task_retries=0
        )(Worker)
        self._shared = ray.put(spec)
        self._members: list[_Member] = []
        self._failures: list[str] = []
        self.infos: list[WorkerInfo] = []  # of every worker that ever came up

    @property
    def ready(self) -> int:
        return sum(m.info is not None for m in self._members)

    def start(self, chunks: int) -> None:
        """Ask for as many workers as `chunks` chunks can occupy; they come up while the driver does other things."""
        while len(self._members) < min(self.limit, max(chunks, self.minimum)):
            actor = self._actor.remote(self._shared)
            self._members.append(_Member(actor, actor.ready.remote()))

    def run(self, sweep: Sweep, chunks: Sequence[Chunk]) -> Iterator[Done | None]:
        """Every chunk's result, in the order of completion; None now and then, when there is none yet.

        Raises `RunFailedError` where a chunk fails, loses its worker `ATTEMPTS` times, or no worker can start.
        """
        queue = deque(chunks)
        left = len(chunks)
        attempts: dict[int, int] = {}
        flying: dict[Any, tuple[_Member, Chunk, list[Any]]] = {}
        while left:
            self.start(left)
            if self.ready >= min(self.minimum, self.limit):
                self._hand_out(sweep, queue, flying)
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
                member, chunk, states = flying[reference]
                try:
                    report = ray.get(reference)
                except RayActorError as error:
                    self._lose(member, error, flying, queue, attempts)
                    continue
                except RayTaskError as error:
                    raise _failure(chunk, error) from None
                del flying[reference]
                member.calls.remove(reference)
                left -= 1
                yield Done(chunk, report, states)

    def close(self) -> None:
        """End the workers."""
        for member in self._members:
            ray.kill(member.actor)
        self._members.clear()

    def _hand_out(self, sweep: Sweep, queue: deque[Chunk], flying: dict[Any, tuple[_Member, Chunk, list[Any]]]) -> None:
        for depth in range(IN_FLIGHT):  # everyone gets a first chunk before anyone gets a second
            for member in self._members:
                if queue and member.info is not None and len(member.calls) == depth:
                    chunk = queue.popleft()
                    call = member.actor.run.options(num_returns=1 + sweep.outputs)
                    report, *states = call.remote(sweep, chunk)
                    member.calls.append(report)
                    flying[report] = (member, chunk, states)

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
        flying: dict[Any, tuple[_Member, Chunk, list[Any]]],
        queue: deque[Chunk],
        attempts: dict[int, int],
    ) -> None:
        """Put a lost worker's chunks back in front, in order; only the one that it was computing counts an attempt."""
        self._members.remove(member)
        chunks = [flying.pop(call)[1] for call in member.calls]
        if chunks and not getattr(error, "preempted", False):
            current = chunks[0]
            attempts[current.number] = attempts.get(current.number, 0) + 1
            if attempts[current.number] >= ATTEMPTS:
                raise RunFailedError(f"{_said(current)} has ended its worker {ATTEMPTS} times: {one_line(error)[:300]}")
        queue.extendleft(reversed(chunks))


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
