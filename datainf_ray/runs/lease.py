"""Who is at work on a run directory: a small file that the driver renews, so that a second one knows of the first.

It also says how far the run is, and whoever wants the run to stop puts another small file beside it.

A driver that is gone may have left its file behind. On the same machine its process is looked for; elsewhere the file
is watched for a few beats, which needs no two clocks to agree. Only time in which the store answered counts: while it
does not, a driver that lives cannot renew its file either.

At most one driver has the run, although no store can replace a file on the condition that it is still the same. The
first driver creates the file, which one alone can do. Whoever succeeds a driver first creates a marker that bears that
driver's name, which again one alone can do, once and for all; then it replaces the file. So the drivers form a chain,
and its last one has the run. A driver that was taken for dead and lives finds the marker before its next beat, and
before it writes run.json.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from datainf_ray.common.errors import RequestError, RunFailedError, StoppedError, one_line
from datainf_ray.common.storage import patience
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.watch.progress import Progress

DRIVER_FILE = ".driver.json"
STOP = ".stop"
#: The names of all these files, hidden as they are.
OURS = re.compile(r"\.driver\.json|\.stop|\.driver-[0-9A-Za-z-]*\.over")
BEAT = 5.0  #: seconds between two renewals
_PATIENCE = 3  # beats without a sign of life after which a driver is taken for dead
_PROGRESS = TypeAdapter(Progress)
_TRIES = 0.2  # of a beat: how long one is tried again where the store fails; the next one comes soon


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
        self._markers: list[str] = []  # of drivers that this one has succeeded, and that are dead for certain
        self._doubted = False  # it has succeeded one that may be alive, and will look for its marker
        self._over, self._news = False, threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        driver_of(self.directory)  # something else that has the file's name is told of as such
        while not self._taken():
            pass
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
                if self._taken_over() is None:
                    if self._doubted:  # that one may write the file once more, and would seem to be succeeded by us
                        ended = {"owner": f"{self._mine['owner']}-ended", "ended": True}
                        self.directory.commit(_marker(self._mine), json.dumps(ended).encode())
                    for name in (DRIVER_FILE, *self._markers):
                        self.directory.remove(name)
            except Exception as error:  # what ended the run is told, and may be the same; the file is soon out of date
                self._complain(error)

    @property
    def owner(self) -> str:
        """The name that this driver has in the file."""
        return str(self._mine["owner"])

    def check(self) -> None:
        """Raises `RunFailedError` where another driver has taken the run over, as it may when this one has slept, and
        `StoppedError` where somebody wants the run to end (`request_stop`).
        """
        if self.lost is not None:
            raise RunFailedError(self.lost)
        if self.stopped:
            raise StoppedError("stopped on request")

    def write_json(self, name: str, value: Any) -> None:
        """`RunDirectory.write_json` for what only the driver writes: run.json.

        Raises `RunFailedError`, and writes nothing, where another driver has taken the run over.
        """
        self.lost = self.lost or self._taken_over()
        if self.lost is not None:
            raise RunFailedError(self.lost)
        self.directory.write_json(name, value)

    def _taken(self) -> bool:
        """Take the run if nobody has it; False: try again. Raises `RequestError` where another driver is alive."""
        if self.directory.commit(DRIVER_FILE, self._content()):
            return True
        pulse = Pulse(self.directory)
        there = holder_of(self.directory)
        while there is not None and (alive := pulse.alive(there)) is None:
            time.sleep(BEAT / 2)
            if not self._can_write():  # nor can the other driver
                pulse = Pulse(self.directory)
            there = holder_of(self.directory)
        if there is None:  # it has ended meanwhile
            return False
        if alive:
            raise RequestError(
                "output",
                self.directory.url,
                f"a run is at work there (process {there.get('pid')} on {there.get('host')})",
                "wait until it ends, or use another output",
            )
        return self._succeeds(there)

    def _succeeds(self, there: dict[str, Any]) -> bool:
        """Take the run over from a driver that is taken for dead; False where that is not ours to do any more."""
        marker = _marker(there)
        if not self.directory.commit(marker, json.dumps(self._mine).encode()):
            return False  # another driver was quicker
        if self._is_mine(holder_of(self.directory)):
            self.directory.write(DRIVER_FILE, self._content())
        elif (driver_of(self.directory) or {}).get("owner") != there.get("owner"):
            self.directory.remove(marker)  # that driver has ended by itself, and somebody else may have begun
        if self._taken_over() is not None:  # or all this took so long that we were taken for dead
            self._mine["owner"] = uuid.uuid4().hex  # another one: the markers tell of the first for good
            return False
        if not there or there.get("ended") or (there.get("host") == self._mine["host"] and there.get("started")):
            self._markers.append(marker)
        else:
            self._doubted = True
        return True

    def _taken_over(self) -> str | None:
        """Why the run is another driver's; None: it is ours."""
        there = holder_of(self.directory)
        if self._is_mine(there):
            return None
        if there is None:
            return (
                f"{self.directory.url}: {DRIVER_FILE} is gone: another driver has taken the run over, or it was removed"
            )
        return (
            f"{self.directory.url}: another driver (process {there.get('pid')} on {there.get('host')}) "
            "has taken the run over"
        )

    def _is_mine(self, there: dict[str, Any] | None) -> bool:
        return there is not None and there.get("owner") == self._mine["owner"]

    def _can_write(self) -> bool:
        """Whether the store takes a file now."""
        try:
            with patience(0):
                self.directory.check_writable()
        except RequestError:
            return False
        return True

    def _content(self) -> bytes:
        return json.dumps({**self._mine, "beat": self._beats, "progress": self._progress()}).encode()

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
                with patience(_TRIES * BEAT):
                    self.lost = self._taken_over()
                    if self.lost is not None:
                        return
                    self._beats += 1
                    self.directory.write(DRIVER_FILE, self._content())
                    self.stopped = self.stopped or self.directory.exists(STOP)
            except Exception as error:  # a store that is away for a while; the work itself tells if it stays away
                self._complain(error)

    def _complain(self, error: Exception) -> None:
        logging.getLogger(__name__).warning("%s: %s", self.directory.path(DRIVER_FILE), one_line(error))


class Pulse:
    """Finds out whether a driver is alive, from its file as it is read now and again. No two clocks need to agree.

    Between two readings at most half a beat counts as silence: if they are further apart the store did not answer, or
    this process slept, and the other driver may have had the same trouble.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self._seen: dict[str, Any] | None = None
        self._when = self._silence = 0.0  # when the file was read last, and seconds for which it has been as it is

    def alive(self, there: dict[str, Any] | None) -> bool | None:
        """Whether the driver of the file's content `there` lives; None: ask again in a moment."""
        if not there or there.get("ended"):
            return False
        if there.get("host") == socket.gethostname() and there.get("started"):
            return _started(there.get("pid")) == there["started"]
        now = time.monotonic()
        before, self._seen = self._seen, there
        since, self._when = now - self._when, now
        if before is None:
            return None
        if before != there:
            self._silence = 0.0
            return before.get("owner") == there.get("owner") or None
        self._silence += min(since, BEAT / 2)
        return False if self._silence > _PATIENCE * BEAT else None


def driver_of(directory: RunDirectory) -> dict[str, Any] | None:
    """The content of the driver's file; {} where it makes no sense, None where there is none.

    Raises `RequestError` where something else has its name.
    """
    return _said(directory, DRIVER_FILE)


def progress_of(there: dict[str, Any] | None) -> Progress | None:
    """How far the run is, as its driver's file says; None where it does not, or makes no sense."""
    try:
        return _PROGRESS.validate_python((there or {})["progress"])
    except (KeyError, ValidationError):
        return None


def _said(directory: RunDirectory, name: str) -> dict[str, Any] | None:
    """The content of a driver's file or of a marker: as `driver_of` has it."""
    try:
        found = json.loads(directory.read(name))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EISDIR):
            raise
        raise RequestError(directory.key, directory.path(name), "is no file of a run's driver", "remove it") from None
    return found if isinstance(found, dict) else {}


def holder_of(directory: RunDirectory) -> dict[str, Any] | None:
    """Who has the run, None where nobody has: the driver of the file, or who has succeeded it by a marker.

    A driver that has succeeded another writes the file a moment later; and one that was taken for dead may have written
    it once more.
    """
    there = driver_of(directory)
    while there is not None and (successor := _said(directory, _marker(there))) is not None:
        there = successor
    return there


def _marker(there: dict[str, Any]) -> str:
    """The file that says who has succeeded the driver of the file's content `there`."""
    return f".driver-{re.sub(r'[^0-9A-Za-z]', '-', str(there.get('owner', '')))}.over"


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
