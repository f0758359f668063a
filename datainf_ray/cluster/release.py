"""Ending Ray in this process, after every reference into Ray has been released.

When an object reference or an actor handle is freed, Ray's core worker decrements its count. A core worker that is
shutting down ends the whole process instead, with status 1. So no thread may free a reference while Ray ends: not at
the end of a frame, and not by the garbage collector. Before and after the shutdown it does no harm.
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
    """Clear the frames in the traceback of an error, and those of its causes.

    Frames that are still running are left as they are.
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
    """Run the garbage collector if cycles may hold references into Ray."""
    if reference_count():
        gc.collect()


def end_ray() -> None:
    """End the Ray that this process is in. The caller must hold no reference into Ray."""
    collect_references()
    held = []
    if count := reference_count():  # a session's own: it has used our Ray as if it were its own
        logging.getLogger(__name__).info("Ray ends while %d references into it are held", count)
        held = [thing for thing in gc.get_objects() if issubclass(type(thing), _REFERENCES)]
    ray.shutdown()
    held.clear()  # not before
