"""Ending Ray in this process, after all that refers into it has been let go.

When an object reference or the handle of an actor is freed it asks Ray's core worker to count it down. A core worker
that is going answers by ending the process at once, with status 1 and whatever that was doing. So nothing may be freed
while Ray ends, in no thread: neither as a frame ends nor by the collector. Before it and after it that does no harm.
"""

from __future__ import annotations

import gc
import logging
import traceback

import ray
from ray.actor import ActorHandle

from datainf_ray.cluster.private import reference_count

_REFERENCES = (ray.ObjectRef, ActorHandle)


def forget_frames(error: BaseException) -> None:
    """Let go of what the frames hold that an error has passed through, and the errors that it came from.

    Frames that are still at work keep what they have.
    """
    seen: set[int] = set()
    found: list[BaseException | None] = [error]
    while found:
        one = found.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            found += [one.__cause__, one.__context__]


def collect_references() -> None:
    """Collect what is held by nothing but itself, where that includes references into Ray."""
    if reference_count():
        gc.collect()


def end_ray() -> None:
    """End the Ray that this process is in. Whoever calls it has let go of every reference."""
    collect_references()
    held = []
    if count := reference_count():  # a session's own: it has used our Ray as if it were its own
        logging.getLogger(__name__).info("Ray ends while %d references into it are held", count)
        held = [thing for thing in gc.get_objects() if issubclass(type(thing), _REFERENCES)]
    ray.shutdown()
    held.clear()  # not before
