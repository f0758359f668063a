"""A watcher that ends a run at a moment of a sweep, as Ctrl-C does."""

from __future__ import annotations

from datainf_ray.watch.progress import Silent


class Interrupter(Silent):
    """Interrupts the run behind so many chunks of a sweep; with none it only listens."""

    def __init__(self, sweep: str = "", chunks: int = 0) -> None:
        self.when, self.left, self.now = sweep, chunks, ""
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def begin(self, sweep: str, rows: int) -> None:
        self.now = sweep

    def advance(self, rows: int, tokens: int, workers: int) -> None:
        if self.now == self.when and rows:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
