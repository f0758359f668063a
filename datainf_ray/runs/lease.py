"""Who is at work on a run directory: a small file that the driver renews, so that a second one knows of the first.

It also says how far the run is, and whoever wants the run to stop puts another small file beside it.

A driver that is gone may have left its file behind. On the same machine its process is looked for; elsewhere the file
is watched for a few beats, which needs no two clocks to agree.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from datainf_ray.common.errors import RequestError, RunFailedError, one_line
from datainf_ray.runs.directory import RunDirectory

FILE = ".driver.json"
STOP = ".stop"
BEAT = 5.0  #: seconds between two renewals
_PATIENCE = 3  # beats without a sign of life after which a driver is taken for dead


class Lease:
    """Held while a driver works on a run directory. Entering raises `RequestError` where another driver is alive.

    `progress` says how far the run is, as JSON-like values, whenever the file is written.
    """

    def __init__(self, directory: RunDirectory, progress: Callable[[], dict[str, Any]] = dict) -> None:
        self.directory = directory
        self.lost: str | None = None  # why it is not ours any more
        self.stopped = False  # somebody wants the run to end
        self._progress = progress
        self._mine = {
            "owner": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
        self._beats = 0
        self._over, self._news = False, threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        while not self.directory.commit(FILE, self._content()):
            there = driver_of(self.directory)
            if there is None:
                continue
            if self._alive(there):
                raise RequestError(
                    f"output: {self.directory.url}: a run is at work there (process {there.get('pid')} on "
                    f"{there.get('host')}); wait until it ends, or use another output"
                )
            self.directory.remove(FILE)
        self.directory.remove(STOP)  # meant for an earlier driver
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._news.set()
        if self.lost is None:
            self._thread.join()  # else a beat might write the file again
            try:
                self.directory.remove(FILE)
            except Exception as error:  # what ended the run is told, and may be the same; the file is soon out of date
                self._complain(error)

    def check(self) -> None:
        """Raises `RunFailedError` where another driver has taken the run over, as it may when this one has slept, and
        `KeyboardInterrupt` where somebody wants the run to end (`request_stop`).
        """
        if self.lost is not None:
            raise RunFailedError(self.lost)
        if self.stopped:
            raise KeyboardInterrupt("stopped on request")

    def _content(self) -> bytes:
        return json.dumps({**self._mine, "beat": self._beats, "progress": self._progress()}).encode()

    def _alive(self, there: dict[str, Any]) -> bool:
        pulse = Pulse(self.directory)
        while (alive := pulse.alive(there)) is None:
            time.sleep(BEAT / 2)
            there = driver_of(self.directory) or {}
        return alive

    def tell(self) -> None:
        """There is news of the progress: the file is written now, not at the next beat."""
        self._news.set()

    def _renew(self) -> None:
        while True:
            self._news.wait(BEAT)
            self._news.clear()
            if self._over:
                return
            try:
                there = driver_of(self.directory)
                if there is None or there.get("owner") == self._mine["owner"]:
                    self._beats += 1
                    self.directory.write(FILE, self._content())
                    self.stopped = self.stopped or self.directory.exists(STOP)
                else:
                    self.lost = (
                        f"{self.directory.url}: another driver (process {there.get('pid')} on {there.get('host')}) "
                        "has taken the run over"
                    )
                    return
            except Exception as error:  # a store that is away for a while; the work itself tells if it stays away
                self._complain(error)

    def _complain(self, error: Exception) -> None:
        logging.getLogger(__name__).warning("%s: %s", self.directory.path(FILE), one_line(error))


class Pulse:
    """Finds out whether a driver is alive, from its file as it is read now and again. No two clocks need to agree."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self._seen: dict[str, Any] | None = None
        self._since = 0.0  # when the file was first seen as it is

    def alive(self, there: dict[str, Any] | None) -> bool | None:
        """Whether the driver of the file's content `there` lives; None: ask again in a moment."""
        if not there:
            return False
        if there.get("host") == socket.gethostname() and there.get("started"):
            return _started(there.get("pid")) == there["started"]
        now = time.monotonic()
        before, self._seen = self._seen, there
        if before is None:
            self._since = now
        elif before != there:
            self._since = now
            return before.get("owner") == there.get("owner") or None
        return False if now - self._since > _PATIENCE * BEAT else None


def driver_of(directory: RunDirectory) -> dict[str, Any] | None:
    """The content of the driver's file; {} where it makes no sense, None where there is none."""
    try:
        found = json.loads(directory.read(FILE))
    except FileNotFoundError:
        return None
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def request_stop(directory: RunDirectory) -> None:
    """Ask whatever driver is at work to end within seconds, in a way that the run can be taken up again."""
    directory.write(STOP, b"")


def _started(pid: Any) -> str | None:
    """When a process of this machine was started, in a unit of the system's own; None where that is not known.

    A process is known by its number and this; the number alone may be another's by now.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path(f'/proc/{int(pid)}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, ValueError, TypeError, IndexError):
        return None
