"""Bars on a terminal."""

from __future__ import annotations

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

from datainf_ray.common.redaction import redacted
from datainf_ray.common.words import counted, escaped
from datainf_ray.watch.progress import Progress


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
        self.progress.console.print(escaped(redacted(text)), markup=False, highlight=False, emoji=False)

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

    def close(self) -> None:
        """The terminal is given back as it was."""
        self.progress.stop()


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        if not task.fields["workers"]:
            return Text("waiting for a worker")
        speed = task.fields["tokens"] / task.elapsed if task.elapsed else 0
        return Text(f"{speed:,.0f} tokens/s, {counted(task.fields['workers'], 'worker')}", no_wrap=True)
