"""Plain lines for a log, and a line that renews itself below a notebook's cell."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from datainf_ray.common.redaction import redacted
from datainf_ray.common.words import escaped
from datainf_ray.watch.meter import Meter
from datainf_ray.watch.progress import Progress, Silent

_EVERY = 5.0  # seconds between lines in a log
_RENEW = 0.5  # seconds between renewals of a line in a notebook


class Lines:
    """Plain lines on standard error: one when a sweep begins and ends, and one every few seconds between."""

    every = _EVERY

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.meter = Meter(Silent())

    def say(self, text: str) -> None:
        self.console.print(escaped(redacted(text)), markup=False, emoji=False)

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

    def close(self) -> None:
        """Every line is out already."""

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
