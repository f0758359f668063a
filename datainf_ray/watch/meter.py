"""A watcher that knows how far the run is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from datainf_ray.watch.progress import Progress, Watcher


class Meter:
    """A watcher that passes every call on to another one, and keeps how far the run is.

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
        if rows > 0:
            free = now.free + (0 if tokens else rows)
            self._now = replace(self._now, measured=self.progress.seconds, free=free)
        self.watcher.advance(rows, tokens, workers)
        if rows and not now.done:
            self.news()

    def catch_up(self, now: Progress) -> None:
        """Go on from where another process is."""
        self._now, self._began = now, time.monotonic() - now.seconds

    def end(self) -> None:
        self.watcher.end()
        self._now = Progress("running")

    def close(self) -> None:
        self.watcher.close()
