"""A small process that tells of this one's end, where that comes without a word: Ray and the kernel give no warning.

`cluster.guard` is there before Ray in most cases, and not in all: Ray ends a process that asks for an object in the
moment after its raylet has ended. The witness waits at the end of a pipe, which is closed when this process ends in
whatever way. Unless it was dismissed before, it says what has happened, and notes in run.json that the run was
interrupted. It imports nothing until then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import IO, Any

from datainf_ray.cluster.lifelines import AGAIN, Lifelines
from datainf_ray.common.leaving import leaves
from datainf_ray.runs.directory import RunDirectory

#: What it runs, with this process's path of imports: -I, so that nothing is taken from the working directory instead.
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
heard = [json.loads(line) for line in sys.stdin]
if not any("over" in facts for facts in heard):
    from datainf_ray.cluster.witness import tell
    tell(heard)
"""
_SETTLES = 2.0  # seconds in which a raylet that has let us down comes to its end
_WRITES = 30.0  # the most seconds for run.json


class Witness:
    """While it is held, the end of this process does not go unseen. `owner` has the lease on the run in `directory`."""

    def __init__(self, directory: RunDirectory, owner: str) -> None:
        self._facts: dict[str, Any] = {
            "url": directory.url, "options": directory.options, "owner": owner, "pid": os.getpid(), "speaks": leaves(),
        }  # fmt: skip
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Witness:
        from datainf_ray.cluster.private import in_actor  # here, because the witness itself does without Ray

        if in_actor():  # Ray makes that again, and the run goes on
            return self
        command = [sys.executable, "-I", "-c", _PROGRAM, json.dumps(sys.path)]
        with suppress(OSError):  # no room for one more process: the run is worth more
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                start_new_session=True,  # what ends this one, from a terminal or a batch system, spares it
            )  # fmt: skip
        self._send(self._facts)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dismiss()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)

    def knows(self, lines: Lifelines | None) -> None:
        """What this process depends on."""
        if lines is not None:
            self._send({"lines": asdict(lines)})

    def dismiss(self) -> None:
        """Whatever happens from now on, this process has told itself."""
        self._send({"over": True})
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def _send(self, facts: dict[str, Any]) -> None:
        stream: IO[str] | None = None if self._process is None else self._process.stdin
        if stream is None or stream.closed:
            return
        with suppress(OSError):  # it may have been ended; the run is worth more
            stream.write(json.dumps(facts, default=str) + "\n")
            stream.flush()


def tell(heard: list[dict[str, Any]]) -> None:
    """In the witness: say what has happened to the process that it has `heard` of, and note it in the run."""
    facts = {name: value for part in heard for name, value in part.items()}
    why = _why(facts["pid"], Lifelines(**facts["lines"]) if "lines" in facts else None)
    if facts["speaks"]:
        os.write(2, f"failed: {why}\n".encode())
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # whoever reads what the command says need not wait for the store
    limit = threading.Timer(_WRITES, os._exit, (1,))
    limit.daemon = True
    limit.start()
    _note(RunDirectory(facts["url"], options=facts["options"]), facts["owner"], why)


def _why(pid: int, lines: Lifelines | None) -> str:
    """A local Ray ends with its process, so that it cannot be told which of them was the first."""
    if lines is not None and lines.local:
        return (
            f"the run's process {pid} or its local Ray was ended from outside (killed, or out of memory; Ray's logs "
            f"are in {lines.logs}); {AGAIN}"
        )
    deadline = time.monotonic() + _SETTLES
    while lines is not None:
        if lines.raylet_ended():
            return lines.no_raylet()
        if not lines.head_answers():
            return lines.no_head()
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return f"the run's process {pid} was ended from outside (killed, or out of memory); {AGAIN}"


def _note(directory: RunDirectory, owner: str, why: str) -> None:
    """run.json says that the run was interrupted, unless somebody has taken it up meanwhile."""
    from datainf_ray.runs.lease import holder_of
    from datainf_ray.runs.record import read_record, write_record

    record = read_record(directory)
    if record.state in ("starting", "running"):
        record.state, record.reason = "interrupted", why
        if (holder_of(directory) or {}).get("owner") == owner:  # looked at last
            write_record(directory, record)
