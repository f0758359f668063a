"""The chunks of a sweep that are not computed yet, and what is done about a chunk whose worker was lost.

A chunk that was lost with its worker returns to the front of the queue. From then on a worker computes it alone, so the
cause of the next loss is known. A chunk whose workers crash again and again is tried in halves, and those in halves,
until the rows that cause it are found: they are left out, with the status `crashed`. If the workers run out of memory
instead, the chunk is computed in smaller batches. This module does not use Ray: the pool calls it.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from datainf_ray.common.errors import RunFailedError
from datainf_ray.corpus.chunks import Chunk

ATTEMPTS = 2  #: workers that a chunk may end, each computing nothing else, before its rows are tried
SEARCHES = 3  #: for rows of one chunk, before the run ends: that it goes on may be chance
CERTAIN = 2  #: workers that a single row must end before it is left out: one may have ended by chance
LATE = 2.0  #: a chunk that takes so many times the median is started a second time, where a worker is idle
FAILURES = 6  #: times that a chunk's call may fail to come through, before the run ends
HALVINGS = 4  #: of the batches of a chunk that takes too much memory, before the run ends
SILENT = 60.0  #: seconds in which no chunk comes back, before the user hears of it
SLOW = 4.0  #: times the median chunk that must have passed, too
_PAUSE = 30.0  # the most seconds between two calls for a chunk
_REMEDY = (
    "use fewer tokens in a batch (cluster.batch_tokens), shorter rows (max_length), fewer workers on a machine "
    "(cluster.cpus_per_worker, cluster.max_workers), fewer queries in a run, or machines with more memory"
)
_AHEAD = 32  # chunks at the head of the queue among which a worker is given one whose gradients lie on its node


@dataclass(eq=False)
class Work:
    """A chunk to be computed; or some of its rows, to see whether a worker survives them."""

    chunk: Chunk
    search: Search | None = None  # whose trial it is
    alone: bool = False  # to be computed by a worker that has nothing else to do
    deaths: int = 0  # of workers that had nothing else to do
    starved: int = 0  # of those whose machine ran out of memory; they are no deaths
    halvings: int = 0  # of its batches
    failures: int = 0  # of calls that did not come through
    not_before: float = 0.0  # when it may be given to a worker
    runners: int = 0  # workers that have it
    since: float = 0.0  # when it was given to the first of them
    done: bool = False


@dataclass(eq=False)
class Search:
    """The search for the rows of a chunk that crash their worker."""

    work: Work
    open: int = 0  # trials that have no outcome yet
    rows: list[int] = field(default_factory=list)  # found: their numbers in the corpus


class Backlog:
    """The chunks of one sweep. `where` says on which node a chunk is best done, if on one.

    `number_of` gives the number in the corpus of a chunk's first row; without it no rows are looked for, and a chunk
    that goes on ending its workers ends the run. `crashed` has the rows that were found. Batches may be halved
    `halvings` times where a chunk takes too much memory.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        where: Callable[[Chunk], str | None] = lambda chunk: None,
        number_of: Callable[[Chunk], int] | None = None,
        halvings: int = HALVINGS,
    ) -> None:
        self._queue = deque(Work(chunk) for chunk in chunks)
        self._where, self._number_of = where, number_of
        self._flying: list[Work] = []
        self._took: list[float] = []
        self._searched: Counter[int] = Counter()
        self._most_halvings, self._halvings = halvings, 0  # as many as the last chunk took
        self._heard: float | None = None  # when something last came back, or was given to a worker after a pause
        self._tell_after = 0.0  # seconds of silence
        self.crashed: set[int] = set()

    @property
    def left(self) -> bool:
        return bool(self._queue or self._flying)

    @property
    def waiting(self) -> int:
        """The number of chunks that no worker has."""
        return len(self._queue)

    def take(self, node: str, now: float, alone: bool) -> Work | None:
        """What a worker on `node` should do next; `alone`: it has nothing else to do."""
        best = None
        for place, work in enumerate(islice(self._queue, _AHEAD)):
            if (work.alone and not alone) or work.not_before > now:
                continue
            if best is None:
                best = place
            if self._where(work.chunk) == node:
                best = place
                break
        if best is None:
            return None
        work = self._queue[best]
        del self._queue[best]
        work.since, work.runners = now, 1
        work.halvings = max(work.halvings, self._halvings)
        if not self._flying:
            self._hear(now)
        self._flying.append(work)
        return work

    def late(self, now: float) -> Work | None:
        """A chunk that one worker has had for so long that an idle one may well be faster."""
        if self._queue or not self._took:
            return None
        limit = LATE * statistics.median(self._took)
        candidates = [w for w in self._flying if w.runners == 1 and not w.alone and now - w.since > limit]
        if not candidates:
            return None
        work = min(candidates, key=lambda w: w.since)
        work.runners += 1
        return work

    def finish(self, work: Work, now: float) -> bool:
        """A worker is done with it. True if this is the result of a chunk, and the first one."""
        work.runners -= 1
        self._hear(now)
        if work.done:
            return False
        work.done = True
        self._flying.remove(work)
        if work.search is not None:
            self._close(work.search)
            return False
        self._took.append(now - work.since)
        self._halvings = max(self._halvings, work.halvings)  # each worker that dies of it costs a start
        return True

    def silence(self, now: float) -> float | None:
        """The seconds since a chunk came back, if they are to be reported now (at growing intervals); else None."""
        if self._heard is None or not self._flying:
            return None
        passed = now - self._heard
        usual = SLOW * statistics.median(self._took) if self._took else 0.0
        if passed < max(self._tell_after, usual):
            return None
        self._tell_after = 2 * passed
        return passed

    def again(self, work: Work, now: float, reason: str) -> None:
        """A transient error of a worker that is up: the chunk goes to the end of the queue, and waits for a moment.

        Raises `RunFailedError` after `FAILURES` attempts.
        """
        work.runners -= 1
        self._hear(now)
        if work.done:
            return
        work.failures += 1
        if work.failures == FAILURES:
            raise RunFailedError(f"{describe_chunk(work.chunk)} could not be computed in {FAILURES} attempts: {reason}")
        if work.runners:
            return  # another has it
        work.not_before = now + min(_PAUSE, 2.0 ** (work.failures - 1))
        self._flying.remove(work)
        self._queue.append(work)

    def lose(self, work: Work, alone: bool, preempted: bool, reason: str, memory: bool = False) -> None:
        """A worker is gone; `alone`: it was computing this and nothing else; `preempted`: its node was taken away;
        `memory`: its machine ran out of it.

        Raises `RunFailedError` if a chunk crashes its workers again and again and no single row does, or if it takes
        too much memory even in the smallest batches.
        """
        work.runners -= 1
        if work.done:
            return
        if not preempted:
            work.alone = True
            if memory:
                work.starved += alone
            else:
                work.deaths += alone
        if work.runners:
            return  # another has it
        self._flying.remove(work)
        rows = work.chunk.rows
        if memory:
            if alone and work.starved >= ATTEMPTS:
                self._halve(work, reason)
            self._queue.appendleft(work)
            return
        if work.search is None:
            if work.deaths >= ATTEMPTS:
                self._begin(work, reason)
            else:
                self._queue.appendleft(work)
        elif rows > 1 and work.deaths:
            self._split(work.search, work.chunk)
        elif work.deaths >= CERTAIN:
            assert self._number_of is not None
            work.search.rows.append(self._number_of(work.chunk))
            self._close(work.search)
        else:
            self._queue.appendleft(work)

    def _halve(self, work: Work, reason: str) -> None:
        if work.halvings == self._most_halvings:
            smaller = f", in batches of 1/{2**work.halvings} of the size too" if work.halvings else ""
            raise RunFailedError(f"{describe_chunk(work.chunk)} takes too much memory{smaller}: {reason}; {_REMEDY}")
        work.halvings += 1

    def _hear(self, now: float) -> None:
        self._heard, self._tell_after = now, SILENT

    def _begin(self, work: Work, reason: str) -> None:
        chunk = work.chunk
        if self._number_of is None or self._searched[chunk.number] == SEARCHES:
            alone = "" if self._number_of is None else ", though none of its rows does so by itself"
            raise RunFailedError(f"{describe_chunk(chunk)} goes on ending its worker{alone}: {reason[:300]}")
        self._searched[chunk.number] += 1
        work.deaths = 0
        search = Search(work, open=1)
        if chunk.rows > 1:
            self._split(search, chunk)
        else:
            self._queue.appendleft(Work(chunk, search, alone=True))

    def _split(self, search: Search, chunk: Chunk) -> None:
        search.open += 1
        self._queue.extendleft(Work(half, search, alone=True) for half in reversed(chunk.halves()))

    def _close(self, search: Search) -> None:
        """A trial has its outcome. After the last one the chunk is computed without the rows that were found."""
        search.open -= 1
        if search.open == 0:
            self.crashed.update(search.rows)
            self._queue.appendleft(search.work)


def describe_chunk(chunk: Chunk) -> str:
    return f"chunk {chunk.number} (rows {chunk.first} to {chunk.first + chunk.rows - 1})"
