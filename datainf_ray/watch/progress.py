"""How far a run is, and what it reports while it works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from datainf_ray.common.words import clock, counted

_SURE = 0.5  # seconds of a sweep after which its speed can be told


@dataclass(frozen=True)
class Progress:
    """How far a run is: the sweep that goes on, and how fast. `str` is a line of it."""

    state: str  # starting, running, done, failed or interrupted
    sweep: str | None = None  # None: between sweeps, or before the first
    rows: int = 0  # of the sweep
    done: int = 0
    tokens: int = 0  # of the rows that are done, without padding
    seconds: float = 0.0  # since the sweep began, or since its first worker was up
    workers: int = 0
    measured: float | None = None  # `seconds` as they were when the last rows were done
    free: int = 0  # rows of those done that took no time here: an earlier attempt's, and those without a token

    @property
    def tokens_per_second(self) -> float | None:
        """None where it is too early to tell."""
        return self.tokens / self.seconds if self.seconds >= _SURE else None

    @property
    def seconds_left(self) -> float | None:
        """Of this sweep, if the rest goes as what is done; None where it is too early to tell.

        Rows come in chunks. While one is open, the time that it takes is part of what was left, and is taken off.
        """
        timed = self.done - self.free
        if timed <= 0 or self.seconds < _SURE:
            return None
        took = self.seconds if self.measured is None else self.measured
        return max((self.rows - self.done) * took / timed - (self.seconds - took), 0.0)

    def __str__(self) -> str:
        if self.sweep is None:
            return self.state
        if not self.workers:
            return f"{self.sweep}: waiting for a worker, {clock(self.seconds)}"
        if not self.done:
            return f"{self.sweep}: {self.rows:,} rows, {counted(self.workers, 'worker')}, {clock(self.seconds)}"
        rate, left = self.tokens_per_second, self.seconds_left
        parts = [f"{self.done:,} of {self.rows:,} rows", counted(self.workers, "worker")]
        if rate is not None:
            parts.insert(1, f"{rate:,.0f} tokens/s")
        if self.done == self.rows:
            parts.append(f"took {self.seconds:.1f} s" if self.seconds < 10 else f"took {clock(self.seconds)}")
        elif left is not None:
            parts.append(f"{clock(left)} left")
        return f"{self.sweep}: {', '.join(parts)}"


class Watcher(Protocol):
    """Receives what a run reports while it works."""

    def say(self, text: str) -> None:
        """A line for the reader."""

    def begin(self, sweep: str, rows: int) -> None:
        """A sweep over `rows` rows begins."""

    def advance(self, rows: int, tokens: int, workers: int) -> None:
        """So many more rows and tokens are done; `workers` are up. Zero rows: nothing new, but still alive."""

    def catch_up(self, now: Progress) -> None:
        """The sweep that has begun here is as far as `now`, which another process reports."""

    def end(self) -> None:
        """The sweep is done."""

    def close(self) -> None:
        """Nothing more comes, whether all went well or not."""


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None: ...

    def begin(self, sweep: str, rows: int) -> None: ...

    def advance(self, rows: int, tokens: int, workers: int) -> None: ...

    def catch_up(self, now: Progress) -> None: ...

    def end(self) -> None: ...

    def close(self) -> None: ...
