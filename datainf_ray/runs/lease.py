"""Who is at work on a run directory: a small file that the driver renews, so that a second one knows of the first.

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
from pathlib import Path
from types import TracebackType
from typing import Any

from datainf_ray.config import one_line
from datainf_ray.errors import RequestError, RunFailedError
from datainf_ray.runs.directory import RunDirectory

FILE = ".driver.json"
BEAT = 5.0  #: seconds between two renewals
_PATIENCE = 3  # beats without a sign of life after which a driver is taken for dead


class Lease:
    """Held while a driver works on a run directory. Entering raises `RequestError` where another driver is alive."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.lost: str | None = None  # why it is not ours any more
        self._mine = {
            "owner": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
        self._beats = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        while not self.directory.commit(FILE, self._content()):
            there = self._there()
            if there is None:
                continue
            if self._alive(there):
                raise RequestError(
                    f"output: {self.directory.url}: a run is at work there (process {there.get('pid')} on "
                    f"{there.get('host')}); wait until it ends, or use another output"
                )
            self.directory.remove(FILE)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self.lost is None:
            self._thread.join()  # else a beat might write the file again
            try:
                self.directory.remove(FILE)
            except Exception as error:  # what ended the run is told, and may be the same; the file is soon out of date
                self._complain(error)

    def check(self) -> None:
        """Raises `RunFailedError` where another driver has taken the run over, as it may when this one has slept."""
        if self.lost is not None:
            raise RunFailedError(self.lost)

    def _content(self) -> bytes:
        return json.dumps({**self._mine, "beat": self._beats}).encode()

    def _there(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.directory.read(FILE))
        except FileNotFoundError:
            return None
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}

    def _alive(self, there: dict[str, Any]) -> bool:
        if there.get("host") == self._mine["host"] and there.get("started"):
            return _started(there.get("pid")) == there["started"]
        for _ in range(2 * _PATIENCE):
            time.sleep(BEAT / 2)
            now = self._there()
            if now != there:
                return now is not None and now.get("owner") == there.get("owner")
        return False

    def _renew(self) -> None:
        while not self._over.wait(BEAT):
            try:
                there = self._there()
                if there is None or there.get("owner") == self._mine["owner"]:
                    self._beats += 1
                    self.directory.write(FILE, self._content())
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


def _started(pid: Any) -> str | None:
    """When a process of this machine was started, in a unit of the system's own; None where that is not known.

    A process is known by its number and this; the number alone may be another's by now.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path(f'/proc/{int(pid)}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, ValueError, TypeError, IndexError):
        return None
