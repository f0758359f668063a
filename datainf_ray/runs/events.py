"""Who did what and when: the events of a run, in files of JSON lines under events/.

Stores cannot be appended to, so there is a file for every sweep, and every half minute of it in which something
happened, named by the attempt and a number. A driver that is killed takes the last half minute's events with it.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from datetime import datetime, timezone
from typing import Annotated, Any, Protocol

import pyarrow as pa
from pydantic import ConfigDict, Field, ValidationError, create_model

from datainf_ray.common.redaction import redacted_tree
from datainf_ray.runs.directory import RunDirectory

EVENTS = "events/"
EVERY = 30.0  #: seconds between two files
MOST = 10_000  #: events in a file

SCHEMA = pa.schema(
    [
        pa.field("time", pa.float64(), nullable=False),  # seconds since 1970, by the driver's clock
        pa.field("event", pa.string(), nullable=False),
        pa.field("attempt", pa.string(), nullable=False),  # one for every time that the run was started
        pa.field("sweep", pa.string()),
        pa.field("chunk", pa.int64()),
        pa.field("rows", pa.int64()),
        pa.field("tokens", pa.int64()),
        pa.field("worker", pa.string()),  # a number within the attempt
        pa.field("node", pa.string()),
        pa.field("host", pa.string()),
        pa.field("device", pa.string()),
        pa.field("began", pa.float64()),  # of a chunk's computing, by the worker's clock
        pa.field("ended", pa.float64()),
        pa.field("waited", pa.float64()),  # seconds that the worker was idle, because rows were still being read
        pa.field("seconds", pa.float64()),
        pa.field("detail", pa.string()),
    ]
)


_TYPES: dict[pa.DataType, Any] = {
    pa.float64(): Annotated[float, Field(ge=0, le=1e11)],  # seconds: the year 5138
    pa.int64(): Annotated[int, Field(ge=0, lt=2**63)],
    pa.string(): str,
}
_FIELDS: dict[str, Any] = {
    field.name: (_TYPES[field.type], ...) if field.name in ("time", "event") else (_TYPES[field.type] | None, None)
    for field in SCHEMA
    if field.name != "attempt"  # which the file's name has
}
#: What a line holds: the columns of `SCHEMA`. What else there is in it is left out.
_Event = create_model("_Event", __config__=ConfigDict(strict=True, allow_inf_nan=False), **_FIELDS)


class Log(Protocol):
    """Logs an event; `fields` are those of `SCHEMA`."""

    def __call__(self, event: str, **fields: Any) -> None: ...


def forget(event: str, **fields: Any) -> None:
    """A `Log` that keeps nothing."""


class Journal:
    """The events of one attempt. `tick` is to be called often: it writes a file when one is due."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.attempt = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:4]}"
        self._events: list[dict[str, Any]] = []
        self._files, self._due = 0, time.monotonic() + EVERY
        self._lock = threading.Lock()  # a worker may be let go by another thread

    def log(self, event: str, **fields: Any) -> None:
        stamped = {"time": round(time.time(), 3), "event": event, **{k: v for k, v in fields.items() if v is not None}}
        with self._lock:
            self._events.append(redacted_tree(stamped) if "detail" in fields else stamped)

    def tick(self) -> None:
        if time.monotonic() >= self._due or len(self._events) >= MOST:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet. Raises what the storage does, and the events are kept for the next time."""
        self._due = time.monotonic() + EVERY
        with self._lock:
            events = self._events
            if not events:
                return
            text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
            self.directory.write(f"{EVENTS}{self.attempt}-{self._files:05d}.jsonl", text.encode())
            self._events, self._files = [], self._files + 1


def read_events(directory: RunDirectory) -> pa.Table:
    """All events of a run, as `SCHEMA` has them, attempt by attempt in the order in which they were logged."""
    rows = []
    for name in directory.list(EVENTS):
        attempt = name.removeprefix(EVENTS).rpartition("-")[0]
        for line in directory.read(name).splitlines():
            if (event := _event(line)) is not None:
                rows.append({"attempt": attempt, **event})
    return pa.Table.from_pylist(rows, SCHEMA)


def _event(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None where the line is none: damaged, or of another origin. It costs only itself."""
    try:
        return _Event.model_validate_json(line).model_dump()
    except ValidationError:
        return None
