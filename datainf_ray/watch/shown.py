"""A run that goes on elsewhere, shown here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from datainf_ray.watch.progress import Progress, Watcher


class Shown:
    """Shows a run of another process, whose progress is read now and then.

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
            self.watcher.catch_up(now)
        self._last = now

    def end(self) -> None:
        """The last known sweep has ended, done or not."""
        if self._last.sweep is not None:
            done = self.finished(self._last.sweep)
            if done is not None:
                self.watcher.catch_up(replace(done, rows=self._last.rows, done=self._last.rows))
            self.watcher.end()
        self._last = Progress(self._last.state)
