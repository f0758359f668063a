"""Progress for programs: a JSON object a line on standard output.

    {"event": "said", "text": "a worker is up on ..."}
    {"event": "sweep_begun", "sweep": "scores", "rows": 1000, "done": 0, ...}
    {"event": "progress", "sweep": "scores", "rows": 1000, "done": 400, "tokens": 51200, "seconds": 3.1, "workers": 2,
     "tokens_per_second": 16516.1, "seconds_left": 4.65}
    {"event": "sweep_done", "sweep": "scores", "rows": 1000, "done": 1000, ...}

A figure that is not known yet is null. `done` counts rows that an earlier attempt did, too, and falls where sums were
lost with a machine. A sweep that was not finished has no `sweep_done`; a sweep of another process that stops
reporting has a `sweep_unfinished`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TextIO

from datainf_ray.common.redaction import redacted_tree
from datainf_ray.watch.meter import Meter
from datainf_ray.watch.progress import Progress, Silent

_EVERY = 1.0  # seconds between two lines of a sweep


class JsonLines:
    """Writes to `stream`, standard output where it is None."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._meter = Meter(Silent())
        self._written = 0.0

    def say(self, text: str) -> None:
        self._write("said", text=text)

    def begin(self, sweep: str, rows: int) -> None:
        self._meter.begin(sweep, rows)
        self._tell("sweep_begun")

    def advance(self, rows: int, tokens: int, workers: int) -> None:
        self._meter.advance(rows, tokens, workers)
        if time.monotonic() - self._written >= _EVERY:
            self._tell("progress")

    def catch_up(self, now: Progress) -> None:
        self._meter.catch_up(now)
        self._tell("progress")

    def end(self) -> None:
        now = self._meter.progress
        self._tell("sweep_done" if now.done == now.rows else "sweep_unfinished")
        self._meter.end()

    def close(self) -> None:
        """Every line is out already."""

    def _tell(self, event: str) -> None:
        self._written = time.monotonic()
        now = self._meter.progress
        figures = {name: getattr(now, name) for name in ("sweep", "rows", "done", "tokens", "seconds", "workers")}
        self._write(event, **figures, tokens_per_second=now.tokens_per_second, seconds_left=now.seconds_left)

    def _write(self, event: str, **fields: Any) -> None:
        line = json.dumps(redacted_tree({"event": event, **fields}))
        print(line, file=self._stream or sys.stdout, flush=True)
