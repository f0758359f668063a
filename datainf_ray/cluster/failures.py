"""What Ray's errors mean for a run, and what is done about workers that cannot start.

`classify` is the one place that knows Ray's error classes; `Starts` decides about retries and pauses. Chunks that are
lost with their worker are the backlog's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from datainf_ray.common.errors import RequestError, RunFailedError, one_line

STARTS = 3  #: workers that may fail to start, one after another, for every worker that is wanted
_PAUSE = 30.0  # the most seconds between a worker that could not start and the next one
_LONGEST = 500  # characters of a reason

#: What to change where a worker's machine runs out of memory while the worker starts.
_REMEDY = "use fewer workers on a machine (cluster.cpus_per_worker, cluster.max_workers), or machines with more memory"


class Fault(Enum):
    """What an error means."""

    TRANSIENT = "the call did not come through; it can be made again"
    GONE = "the worker, its process or its node, is gone"
    LOST = "an object that was needed is lost"
    PERMANENT = "it would go wrong again: our code or the request is wrong, or the environment"


#: By the name of the class or of one of its bases, because not every version of Ray has all of them.
FAULTS = {
    "RayActorError": Fault.GONE,
    "ActorPlacementGroupRemoved": Fault.GONE,
    "ActorUnschedulableError": Fault.GONE,
    "AsyncioActorExit": Fault.GONE,
    "LocalRayletDiedError": Fault.GONE,
    "NodeDiedError": Fault.GONE,
    "OutOfMemoryError": Fault.GONE,
    "WorkerCrashedError": Fault.GONE,
    "ObjectLostError": Fault.LOST,
    "GetTimeoutError": Fault.TRANSIENT,
    "ObjectStoreFullError": Fault.TRANSIENT,
    "OutOfDiskError": Fault.TRANSIENT,
    "PendingCallsLimitExceeded": Fault.TRANSIENT,
    "PlasmaObjectNotAvailable": Fault.TRANSIENT,
    "RaySystemError": Fault.TRANSIENT,
    "RpcError": Fault.TRANSIENT,
    "TaskCancelledError": Fault.TRANSIENT,
    "TaskPlacementGroupRemoved": Fault.TRANSIENT,
    "TaskUnschedulableError": Fault.TRANSIENT,
    "ActorAlreadyExistsError": Fault.PERMANENT,
    "ActorHandleNotFoundError": Fault.PERMANENT,
    "AuthenticationError": Fault.PERMANENT,
    "CrossLanguageError": Fault.PERMANENT,
    "ObjectRefStreamEndOfStreamError": Fault.PERMANENT,
    "OufOfBandObjectRefSerializationException": Fault.PERMANENT,
    "RayTaskError": Fault.PERMANENT,
    "RuntimeEnvSetupError": Fault.PERMANENT,
    "UnserializableException": Fault.PERMANENT,
    "UserCodeException": Fault.PERMANENT,
}
_UNKNOWN = Fault.TRANSIENT  # of a class that is newer than this table: repeats are counted, so it costs little

#: In what Ray's memory monitor says; 2.44 words the first one a little differently from 2.60.
_USED = re.compile(r"\(IP: ([^,)]+).*? was ([\d.]+)GB(?: used)? / ([\d.]+)GB", re.DOTALL)
_LARGEST = re.compile(r"PID\s+MEM\(GB\)\s+COMMAND\s+\d+\s+([\d.]+)")


@dataclass(frozen=True)
class Failure:
    """An error of Ray's, understood. `reason` is one line of ours."""

    fault: Fault
    reason: str
    cause: Exception | None = None  # what our code raised, under what Ray puts around it
    inside: bool = False  # what is lost or did not come through was something that the code asked for
    preempted: bool = False  # the node was taken away
    memory: bool = False  # its machine ran out of memory
    address: str | None = None  # of that machine


def classify(error: RayError) -> Failure:
    """What an error that `ray.get` raised means, and why it happened."""
    if isinstance(error, RayTaskError):
        return _raised(error)
    fault = next((FAULTS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in FAULTS), _UNKNOWN)
    if isinstance(error, OutOfMemoryError):
        return _out_of_memory(str(error))
    if isinstance(error, RayActorError):
        cause = _raised_in_constructor(str(error))
        if cause is not None:
            return Failure(Fault.PERMANENT, str(cause), cause)
        if error.actor_init_failed:
            return Failure(fault, _last_line(error))
        return Failure(fault, one_line(error)[:_LONGEST], preempted=error.preempted)
    return Failure(fault, one_line(error)[:_LONGEST])


def final_error(failure: Failure, where: str = "") -> Exception:
    """The error that ends a run after a permanent failure: ours as it is, else a `RunFailedError` of one line."""
    if isinstance(failure.cause, RequestError | RunFailedError):
        return failure.cause
    name = "" if failure.cause is None else f"{type(failure.cause).__name__}: "
    return RunFailedError(f"{where}{name}{failure.reason}")


def _raised(error: RayTaskError) -> Failure:
    """A task or a method has raised something: our code did, or Ray where that asked for an object."""
    cause = error.cause
    if isinstance(cause, RayError) and type(cause) is not RayError:  # that stands for what cannot be pickled
        inner = classify(cause)
        # Whose worker is gone there was making that object. The one that asked for it is well.
        fault = Fault.LOST if inner.fault is Fault.GONE else inner.fault
        return Failure(fault, inner.reason, inner.cause, inside=True)
    if isinstance(cause, Exception):
        return Failure(Fault.PERMANENT, one_line(cause)[:_LONGEST], cause)
    return Failure(Fault.PERMANENT, _last_line(error))


def _raised_in_constructor(text: str) -> Exception | None:
    """Our own error, where an actor's constructor raised it: Ray keeps the traceback, and not the exception."""
    for kind, made in ((RequestError, RequestError.of_line), (RunFailedError, RunFailedError)):
        marker = f"{kind.__module__}.{kind.__name__}: "
        if marker in text:
            return made(text.rsplit(marker, 1)[1].strip().splitlines()[0])
    return None


def _last_line(error: Exception) -> str:
    """The end of a traceback, which says what was raised."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1])[:_LONGEST] if lines else type(error).__name__


def _out_of_memory(text: str) -> Failure:
    """Ray's memory monitor has ended a worker, and says so in some fifty lines."""
    used, largest = _USED.search(text), _LARGEST.search(text)
    figures, address = [], None
    if used is not None:
        address = used[1]
        figures.append(f"{float(used[2]):.1f} of {float(used[3]):.1f} GB")
    if largest is not None:
        figures.append(f"the largest process has {float(largest[1]):.1f} GB")
    said = f" ({'; '.join(figures)})" if figures else ""
    return Failure(Fault.GONE, f"its machine ran out of memory{said}", memory=True, address=address)


class Starts:
    """What to do when workers cannot start: which errors end the run, and when the next worker may be asked for.

    `patience` is how many may fail, one after another, before the run ends. It never ends while a worker is up.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self._reasons: list[str] = []  # since one last could start
        self._told: set[str] = set()
        self._not_before = 0.0

    @property
    def reason(self) -> str | None:
        """Why the last one could not start; None where it could."""
        return self._reasons[-1] if self._reasons else None

    def may_ask(self, now: float) -> bool:
        """Whether the next worker may be asked for."""
        return now >= self._not_before

    def succeeded(self) -> None:
        """A worker is up."""
        self._reasons.clear()

    def failed(self, failure: Failure, up: int, now: float) -> str | None:
        """A worker could not start while `up` others are up: a line for the user, if the reason is new.

        Raises our own error as it is, because a wrong request is wrong for every worker; and `RunFailedError` if no
        worker can be expected to start.
        """
        if isinstance(failure.cause, RequestError | RunFailedError):
            raise failure.cause from None
        if failure.preempted:  # its node was taken away, which is nobody's fault
            return None
        reason = failure.reason
        if failure.memory and failure.address is not None:
            reason = reason.replace("its machine", f"the machine at {failure.address}", 1)
        self._reasons.append(reason)
        self._not_before = now + min(_PAUSE, 2.0 ** (len(self._reasons) - 2))
        certain = failure.fault is Fault.PERMANENT and failure.cause is None  # Ray's word, and no worker's
        if up == 0 and (certain or len(self._reasons) >= self.patience):
            raise RunFailedError(f"no worker can start: {reason}{f'; {_REMEDY}' if failure.memory else ''}")
        alike = re.sub(r"\d[\d.]*", "#", reason)  # other figures make no new reason
        if alike in self._told:
            return None
        self._told.add(alike)
        return f"a worker could not start: {reason}"
