"""Showing a run while it works: bars on a terminal and in a notebook, plain lines every few seconds in a log."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from datainf_ray.redaction import redacted

_EVERY = 5.0  # seconds between lines in a log


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


class Lines:
    """Plain lines on standard error: one when a sweep begins and ends, and one every few seconds between."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self.console.print(redacted(text), markup=False)

    def begin(self, sweep: str, rows: int) -> None:
        self.sweep, self.rows = sweep, rows
        self.done = self.tokens = self.workers = 0
        self.began = self.shown = time.monotonic()

    def advance(self, rows: int, tokens: int, workers: int) -> None:
        if self.workers == 0 and workers:
            self.began = time.monotonic()  # a worker's start is not the sweep's speed
        self.done, self.tokens, self.workers = self.done + rows, self.tokens + tokens, workers
        if time.monotonic() - self.shown >= _EVERY and self.done < self.rows:
            self._show()

    def end(self) -> None:
        self._show()

    def _show(self) -> None:
        self.shown = time.monotonic()
        seconds = max(self.shown - self.began, 1e-9)
        if not self.workers:
            self.say(f"{self.sweep}: waiting for a worker, {_clock(seconds)}")
        elif not self.done:
            self.say(f"{self.sweep}: {self.rows:,} rows, {_workers(self.workers)}, {_clock(seconds)}")
        else:
            self.say(f"{self.sweep}: {self._state(seconds)}")

    def _state(self, seconds: float) -> str:
        left = (self.rows - self.done) * seconds / self.done
        rest = f"{_clock(left)} left" if self.done < self.rows else f"took {_clock(seconds)}"
        return (
            f"{self.done:,} of {self.rows:,} rows, {self.tokens / seconds:,.0f} tokens/s, "
            f"{_workers(self.workers)}, {rest}"
        )


class Bars:
    """One bar per sweep, on a terminal or in a notebook."""

    def __init__(self, console: Console | None = None) -> None:
        self.progress = Progress(
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

    def end(self) -> None:
        self.progress.stop()
        self.progress.update(self.task, visible=False)


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
    return Bars(console) if console.is_terminal or console.is_jupyter else Lines()


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count != 1 else ''}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
