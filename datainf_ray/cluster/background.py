"""A run in a thread of this process, for a session that goes on meanwhile; on a cluster see `cluster.driver`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from datainf_ray.common.errors import RunFailedError, StoppedError
from datainf_ray.common.redaction import redacted_tree
from datainf_ray.config import RunConfig


class LocalDriver:
    """A `runs.results.Driver` that calls `work` in a thread, which ends with this process."""

    def __init__(self, config: RunConfig, work: Callable[[], Any]) -> None:
        self.config: dict[str, Any] = redacted_tree(config.model_dump(mode="json"))
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="attribution", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    def over(self) -> bool:
        return not self._thread.is_alive()

    def error(self) -> BaseException | None:
        return self._error

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except (KeyboardInterrupt, StoppedError):
            self._error = RunFailedError("it was stopped; run it again to go on")
        except Exception as error:  # told to whoever waits for the run
            self._error = error
