"""A local Ray that comes up while the request is being understood."""

from __future__ import annotations

import threading
from pathlib import Path

import ray

from datainf_ray.cluster.facts import ClusterFacts, cluster_facts
from datainf_ray.cluster.join import address_of, join
from datainf_ray.cluster.release import end_ray, forget_frames, remove_session
from datainf_ray.config import ClusterConfig

_LEAVE = 2.0  # seconds that an interrupted command gives a Ray of its own to end
_GLANCE = 0.2  # seconds between looks at whether a Ray is still wanted that waits for another one to end

#: A process can be in one Ray at a time. Whoever starts a local one holds this until that is gone: other runs of the
#: process, in a notebook, may neither join it, as it ends with its run, nor start theirs beside it.
_LOCAL = threading.Lock()


class Ahead:
    """A local Ray, and workers that load their libraries, in the background while the request is being understood.

    Nothing is started if a cluster is to be joined. Ray's processes end with the thread that started them, so this
    thread waits until Ray is not needed any more, and then ends it. Two runs of one process cannot have a Ray at the
    same time: `behind` is the other run's, which may be about to end. One that is `lasting` is there for several runs,
    one after the other, and is ended when it is left. `output` is the run's place.
    """

    def __init__(self, config: ClusterConfig, output: str, lasting: bool = False) -> None:
        self.config, self._output = config, output
        self._lasting = lasting
        self.behind = not address_of(config) and _LOCAL.locked()
        self.wanted = self.behind or not (ray.is_initialized() or address_of(config))
        self._thread: threading.Thread | None = None
        self._up, self._over, self._right = threading.Event(), threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._facts: ClusterFacts | None = None
        self._left: Path | None = None  # the folder of Ray's files, when it has ended

    def begin(self) -> None:
        """Start Ray, and go on at once. No GPU is asked for before the request is known to be right (`hire`)."""
        if self.wanted and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ray.init", daemon=True)
            self._thread.start()

    def hire(self) -> None:
        """The request is right: ask for workers with GPUs too, if the others are not on their way anyhow."""
        self._right.set()

    def taken(self) -> ClusterFacts | None:
        """Wait for it; None if it was not begun. Raises the error that it failed with."""
        if self._thread is None:
            return None
        self.hire()
        self._up.wait()
        if self._error is not None:
            raise self._error
        return self._facts

    def end(self) -> None:
        """End Ray in the background, and return at once. The caller must hold no reference into Ray."""
        if not self._lasting:
            self._over.set()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._over.set()
        if self._thread is not None:  # whoever interrupts us does not wait for long
            self._thread.join(_LEAVE if kind is KeyboardInterrupt else None)
        if kind is None:
            remove_session(self._left)

    def _run(self) -> None:
        try:
            while not _LOCAL.acquire(timeout=_GLANCE):
                if self._over.is_set():
                    return
            try:
                self._have()
            finally:
                _LOCAL.release()
        finally:
            self._up.set()  # whatever has happened, nobody waits for a thread that is gone

    def _have(self) -> None:
        """Start Ray, and end it when it is not needed any more."""
        ours = False
        try:
            ours = join(self.config)
            self._facts = cluster_facts(self.config, local=True)
            if self._facts.room.gpus_per_worker:  # whose time may cost money
                while not self._right.wait(_GLANCE) and not self._over.is_set():
                    pass
            self._hire(self._facts)
        except BaseException as error:  # raised when it is taken, in the thread of the one who takes it
            forget_frames(error)
            self._error = error
        self._up.set()
        self._over.wait()
        if self._facts is not None:
            self._facts.actors.clear()  # those that nobody has taken
        if ours:  # else the session has started one of its own meanwhile
            self._left = end_ray()

    def _hire(self, facts: ClusterFacts) -> None:
        from datainf_ray.cluster.hiring import hire, worker_name  # here, because it loads torch

        while len(facts.actors) < facts.room.workers and not self._over.is_set():
            name = worker_name(self._output, str(len(facts.actors)))
            facts.actors.append(hire(self.config, facts.room.gpus_per_worker, name=name))
