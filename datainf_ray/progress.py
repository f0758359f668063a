"""Showing a run while it works: bars on a terminal, a line in a notebook, plain lines every few seconds in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Display
from rich.text import Text

from datainf_ray.redaction import redacted

_EVERY = 5.0  # seconds between lines in a log
_SURE = 0.5  # seconds of a sweep after which its speed can be told
_RENEW = 0.5  # seconds between renewals of a line in a notebook


class Watcher(Protocol):
    """What a run tells of itself."""

    def say(self, text: str) -> None:
        """A line for the reader."""

    def begin(self, sweep: str, rows: int) -> None:
        """A sweep over `rows` rows begins."""

    def advance(self, rows: int, tokens: int, workers: int) -> None:
        """So many more rows and tokens are done; `workers` are up. Zero rows: nothing new, but still alive."""

    def end(self) -> None:
        """The sweep is done."""


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None: ...

    def begin(self, sweep: str, rows: int) -> None: ...

    def advance(self, rows: int, tokens: int, workers: int) -> None: ...

    def end(self) -> None: ...


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

    @property
    def tokens_per_second(self) -> float | None:
        """None where it is too early to tell."""
        return self.tokens / self.seconds if self.seconds >= _SURE else None

    @property
    def seconds_left(self) -> float | None:
        """Of this sweep, if the rest goes as what is done; None where it is too early to tell."""
        return (self.rows - self.done) * self.seconds / self.done if self.done and self.seconds >= _SURE else None

    def __str__(self) -> str:
        if self.sweep is None:
            return self.state
        if not self.workers:
            return f"{self.sweep}: waiting for a worker, {_clock(self.seconds)}"
        if not self.done:
            return f"{self.sweep}: {self.rows:,} rows, {_workers(self.workers)}, {_clock(self.seconds)}"
        rate, left = self.tokens_per_second, self.seconds_left
        parts = [f"{self.done:,} of {self.rows:,} rows", _workers(self.workers)]
        if rate is not None:
            parts.insert(1, f"{rate:,.0f} tokens/s")
        if self.done == self.rows:
            parts.append(f"took {self.seconds:.1f} s" if self.seconds < 10 else f"took {_clock(self.seconds)}")
        elif left is not None:
            parts.append(f"{_clock(left)} left")
        return f"{self.sweep}: {', '.join(parts)}"


class Meter:
    """A watcher that tells another one all that it is told, and knows how far the run is.

    `news` is called when a sweep has begun, and when its first rows are done.
    """

    def __init__(self, watcher: Watcher, news: Callable[[], None] = lambda: None) -> None:
        self.watcher, self.news = watcher, news
        self._now = Progress("running")
        self._began = 0.0

    @property
    def progress(self) -> Progress:
        now = self._now
        return now if now.sweep is None else replace(now, seconds=round(time.monotonic() - self._began, 3))

    def say(self, text: str) -> None:
        self.watcher.say(text)

    def begin(self, sweep: str, rows: int) -> None:
        self._began = time.monotonic()
        self._now = Progress("running", sweep, rows)
        self.watcher.begin(sweep, rows)
        self.news()

    def advance(self, rows: int, tokens: int, workers: int) -> None:
        now = self._now
        if now.workers == 0 and workers:
            self._began = time.monotonic()  # a worker's start is not the sweep's speed
        self._now = replace(now, done=now.done + rows, tokens=now.tokens + tokens, workers=workers)
        self.watcher.advance(rows, tokens, workers)
        if rows and not now.done:
            self.news()

    def catch_up(self, now: Progress) -> None:
        """Go on from where another process is."""
        self._now, self._began = now, time.monotonic() - now.seconds

    def end(self) -> None:
        self.watcher.end()
        self._now = Progress("running")


class Lines:
    """Plain lines on standard error: one when a sweep begins and ends, and one every few seconds between."""

    every = _EVERY

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.meter = Meter(Silent())

    def say(self, text: str) -> None:
        self.console.print(redacted(text), markup=False)

    def begin(self, sweep: str, rows: int) -> None:
        self.meter.begin(sweep, rows)
        self.shown = time.monotonic()

    def advance(self, rows: int, tokens: int, workers: int) -> None:
        self.meter.advance(rows, tokens, workers)
        now = self.meter.progress
        if time.monotonic() - self.shown >= self.every and now.done < now.rows:
            self._show()

    def catch_up(self, now: Progress) -> None:
        """The sweep that has begun here is as far as `now`, of another process."""
        self.meter.catch_up(now)
        self.advance(0, 0, now.workers)

    def end(self) -> None:
        self._show()
        self.meter.end()

    def _show(self) -> None:
        self.shown = time.monotonic()
        self.say(str(self.meter.progress))


class Cell(Lines):
    """A line per sweep below a notebook's cell, renewed in place: no widgets are needed, a saved notebook keeps it."""

    every = _RENEW

    def __init__(self) -> None:
        # text on standard output, which becomes one output and not one for every line; and red is for errors
        super().__init__(Console(force_jupyter=False, force_terminal=False, highlight=False, soft_wrap=True))
        self._line: Any = None  # IPython's handle of the line that is renewed

    def begin(self, sweep: str, rows: int) -> None:
        super().begin(sweep, rows)
        self._line = None
        self._show()

    def _show(self) -> None:
        from IPython.display import display  # here: it is there where a notebook is

        self.shown = time.monotonic()
        text = {"text/plain": str(self.meter.progress)}
        if self._line is None:
            self._line = display(text, raw=True, display_id=True)
        else:
            self._line.update(text, raw=True)


class Bars:
    """One bar per sweep, on a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.progress = Display(
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("rows"),
            _Speed(),
            TimeRemainingColumn(elapsed_when_finished=True, compact=True),
            console=console or Console(stderr=True),
        )

    def say(self, text: str) -> None:
        self.progress.console.print(redacted(text), markup=False, highlight=False)

    def begin(self, sweep: str, rows: int) -> None:
        self.progress.start()
        self.task = self.progress.add_task(sweep, total=rows, tokens=0, workers=0)

    def advance(self, rows: int, tokens: int, workers: int) -> None:
        task = self.progress.tasks[self.task]
        if task.fields["workers"] == 0 and workers:
            self.progress.reset(self.task)  # a worker's start is not the sweep's speed
        self.progress.update(self.task, advance=rows, tokens=task.fields["tokens"] + tokens, workers=workers)

    def catch_up(self, now: Progress) -> None:
        """The sweep that has begun here is as far as `now`, of another process."""
        self.progress.tasks[self.task].start_time = self.progress.get_time() - now.seconds
        self.progress.update(self.task, completed=now.done, tokens=now.tokens, workers=now.workers)

    def end(self) -> None:
        self.progress.stop()
        self.progress.update(self.task, visible=False)


class Shown:
    """Shows a run that goes on elsewhere, of which one learns now and then how far it is.

    `finished` gives what a sweep took once it is done, by its name; None where that is not known.
    """

    def __init__(self, watcher: Watcher, finished: Callable[[str], Progress | None] = lambda sweep: None) -> None:
        self.watcher, self.finished = watcher, finished
        self._last = Progress("starting")

    def show(self, now: Progress) -> None:
        if now == self._last:  # its driver has not said more since
            return
        if now.sweep != self._last.sweep or now.done < self._last.done:
            self.end()
            if now.sweep is not None:
                self.watcher.begin(now.sweep, now.rows)
        if now.sweep is not None:
            self._catch_up(now)
        self._last = now

    def end(self) -> None:
        """The sweep that was last heard of is over, done or not."""
        if self._last.sweep is not None:
            done = self.finished(self._last.sweep)
            if done is not None:
                self._catch_up(replace(done, rows=self._last.rows, done=self._last.rows))
            self.watcher.end()
        self._last = Progress(self._last.state)

    def _catch_up(self, now: Progress) -> None:
        if isinstance(self.watcher, Lines | Bars):
            self.watcher.catch_up(now)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        if not task.fields["workers"]:
            return Text("waiting for a worker")
        speed = task.fields["tokens"] / task.elapsed if task.elapsed else 0
        return Text(f"{speed:,.0f} tokens/s, {_workers(task.fields['workers'])}", no_wrap=True)


class watching(AbstractContextManager["Watcher"]):
    """A watcher that fits where we are, put away properly whatever happens inside."""

    def __init__(self, show: bool = True) -> None:
        self.watcher: Watcher = _fitting() if show else Silent()

    def __enter__(self) -> Watcher:
        return self.watcher

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self.watcher, Bars):
            self.watcher.progress.stop()


def _fitting() -> Watcher:
    console = Console(stderr=True)
    return Cell() if console.is_jupyter else Bars(console) if console.is_terminal else Lines()


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count != 1 else ''}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
