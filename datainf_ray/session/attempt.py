"""One attempt at a run: what is called while it works, and how it is told that it went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone

from datainf_ray.common.errors import ClusterLostError, StoppedError, one_line
from datainf_ray.runs.events import Journal
from datainf_ray.runs.lease import Lease
from datainf_ray.runs.record import RUN_FILE, RunRecord
from datainf_ray.watch.progress import Watcher


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run: its watcher, its journal, and the callbacks that are called while it works.

    `keep` writes run.json and the events so far. `pulse` is called often during a sweep; it may raise an error, which
    ends the attempt.
    """

    watcher: Watcher
    journal: Journal
    keep: Callable[[], None]
    pulse: Callable[[], None]
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return round(time.perf_counter() - self.began, 3)


def end_badly(error: BaseException, record: RunRecord, lease: Lease, attempt: Attempt) -> None:
    """run.json and the last events of a run that has gone wrong, if they can be written: that may be what is wrong."""
    if record.reason == one_line(error):  # the guard has told it already, in its own thread
        return
    failed = isinstance(error, Exception) and not isinstance(error, StoppedError | ClusterLostError)
    record.state = "failed" if failed else "interrupted"
    record.reason, record.seconds = one_line(error), attempt.seconds
    attempt.journal.log(f"run_{record.state}", detail=record.reason)
    if lease.lost is not None:  # the run is another driver's by now
        return
    try:
        attempt.keep()
    except Exception as worse:  # every storage library has its own classes
        attempt.watcher.say(f"{lease.directory.path(RUN_FILE)} could not be written: {one_line(worse)}")


def end_well(record: RunRecord, attempt: Attempt) -> None:
    """run.json and the last events of a run that is done."""
    record.state, record.finished, record.seconds = "done", now(), attempt.seconds
    attempt.journal.log("run_done", seconds=record.seconds)
    attempt.journal.flush()  # first: when run.json says so, all is there
    attempt.keep()


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
