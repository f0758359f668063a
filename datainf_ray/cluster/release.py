"""Ending Ray in this process, after every reference into Ray has been released.

When an object reference or an actor handle is freed, Ray's core worker decrements its count. A core worker that is
shutting down ends the whole process instead, with status 1. So no thread may free a reference while Ray ends: not at
the end of a frame, and not by the garbage collector. Before and after the shutdown it does no harm.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import time
import traceback
from contextlib import suppress
from pathlib import Path

import ray
from ray.actor import ActorHandle

from datainf_ray.cluster.private import own_session, reference_count

_REFERENCES = (ray.ObjectRef, ActorHandle)
_ENDS = 2.0  # seconds for Ray's processes, which have been told to end and then been killed


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


def end_ray() -> Path | None:
    """End the Ray that this process is in. The caller must hold no reference into Ray.

    Returns the folder of its files (see `remove_session`) if it was this process's own and its processes have ended.
    """
    collect_references()
    held = []
    if count := reference_count():  # a session's own: it has used our Ray as if it were its own
        logging.getLogger(__name__).info("Ray ends while %d references into it are held", count)
        held = [thing for thing in gc.get_objects() if issubclass(type(thing), _REFERENCES)]
    session = own_session()
    ray.shutdown()
    held.clear()  # not before
    deadline = time.monotonic() + _ENDS
    while session is not None and session.live_processes() and time.monotonic() < deadline:
        time.sleep(0.01)
    return None if session is None or session.live_processes() else Path(session.get_session_dir_path())


def remove_session(folder: Path | None) -> None:
    """Remove the files of a Ray that was ours and has ended: megabytes, mostly logs, that nobody else removes.

    Only where all went well. If not, the logs may say why.
    """
    if folder is None:
        return
    latest = folder.parent / "session_latest"  # Ray's name for a link to the last one
    with suppress(OSError):
        if latest.is_symlink() and Path(os.readlink(latest)) == folder:
            latest.unlink()
    shutil.rmtree(folder, ignore_errors=True)  # what cannot be removed does no harm to a run that is done
