"""What disturbs a run: a watcher that ends it at a moment of a sweep, as Ctrl-C does; and workers that are killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

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


@contextmanager
def killing_workers(most: int = 2) -> Iterator[None]:
    """Inside, workers of this process' Ray are killed at work, one after the other; at least one must be caught."""
    killed: list[int] = []
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.05):
            busy = [p for p in psutil.Process().children(recursive=True) if "Worker.run" in " ".join(_cmdline(p))]
            if busy and len(killed) < most:
                busy[0].kill()
                killed.append(busy[0].pid)
                time.sleep(3)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        stop.set()
        killer.join()
    assert killed, "no worker was caught at work"


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
