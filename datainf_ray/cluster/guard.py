"""Notices that the Ray which this process is in is gone, and acts before Ray ends the process.

A process in Ray depends on two others: its raylet, on the same machine, and the head's GCS. Where one of them is gone
for long, Ray's core worker writes lines of its own and ends the process on the spot, with status 1. Python gets no
chance: no `except`, no `finally`. Seen with Ray 2.60: 15 s after the end of the raylet, whatever ended that (the loss
of its dashboard agent does), but at once where an object is put or read then; and 60 s after the end of the GCS.

So a thread keeps a connection to the raylet, which breaks at the moment that the raylet ends, and knocks at the GCS now
and then. A GCS that we have started ourselves never comes back. That of a cluster may (KubeRay starts it again), so it
gets nearly as long as Ray itself would wait for it. Where Ray is quicker, see `cluster.witness`.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

from datainf_ray.cluster.lifelines import KNOCK, SHARE, Lifelines
from datainf_ray.cluster.private import lifelines
from datainf_ray.common.errors import ClusterLostError, one_line
from datainf_ray.common.leaving import leave

_OURS = 3.0  # seconds without an answer after which a GCS of our own is gone
_WORDS = 10.0  # the most seconds for what is to be written: storage may be away, too


class Guard:
    """While it is held, `lost` is called when Ray is gone, in another thread; then the command, if we are one, ends.

    In a user's program `check` raises the `ClusterLostError` from then on. The process may be gone before.
    """

    def __init__(self, lost: Callable[[ClusterLostError], None] = lambda error: None) -> None:
        self.error: ClusterLostError | None = None
        self.lines: Lifelines | None = None  # what is watched
        self._lost = lost
        self._over, self._acting = False, threading.Lock()

    def begin(self, local: bool) -> None:
        """Watch the Ray that this process is in; a `local` one was started by us. Does nothing for Ray Client."""
        self.lines = lifelines(local)
        if self.lines is not None:
            threading.Thread(target=self._watch, args=(self.lines,), name="guard", daemon=True).start()

    def check(self) -> None:
        """Raises `ClusterLostError` where Ray is gone."""
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Watch no longer: Ray may end. Waits until all is written, if Ray is gone already."""
        self._over = True
        with self._acting:
            pass

    def _watch(self, lines: Lifelines) -> None:
        limit = _OURS if lines.local else SHARE * lines.patience
        answered = time.monotonic()
        try:
            with socket.socket(socket.AF_UNIX) as raylet:
                raylet.connect(lines.raylet)
                raylet.settimeout(KNOCK)
                while not self._over and not _ended(raylet):
                    if lines.head_answers():
                        answered = time.monotonic()
                    elif time.monotonic() - answered > limit:
                        return self._act(lines.no_head())
        except OSError:  # it was gone before
            pass
        self._act(lines.no_raylet())

    def _act(self, why: str) -> None:
        with self._acting:
            if self._over:
                return
            self.error = ClusterLostError(why)
            last = threading.Thread(target=self._tell, args=(self.error,), name="last words", daemon=True)
            last.start()
            last.join(_WORDS)
            leave(f"failed: {why}")

    def _tell(self, error: ClusterLostError) -> None:
        try:
            self._lost(error)
        except Exception as worse:  # the line that the command ends with is what counts
            logging.getLogger(__name__).warning("when Ray was gone: %s", one_line(worse))


def _ended(raylet: socket.socket) -> bool:
    """Whether the other end is gone; this takes a moment if it is not. A raylet never sends what nobody asked for."""
    try:
        return not raylet.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True
