"""The end of a driver's process does not go unseen, whatever ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from datainf_ray.runs.lease import DRIVER_FILE
from datainf_ray.runs.record import RUN_FILE

#: A driver that has the lease and writes run.json, and ends as it is told.
PROGRAM = """
import os, signal, sys
from datainf_ray.cluster.lifelines import Lifelines
from datainf_ray.cluster.witness import Witness
from datainf_ray.common.leaving import leaving_by
from datainf_ray.config import load_config
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.lease import Lease
from datainf_ray.runs.record import RunRecord, write_record

directory = RunDirectory(sys.argv[1])
lease = Lease(directory)
with leaving_by(print), lease:
    asked = {"model": {"base": "b", "adapter": "a"}, "train": {"path": "t"}, "queries": {"path": "q"}, "output": "o"}
    write_record(lease, RunRecord(state="running", config=load_config(asked).model_dump(mode="json")))
    with Witness(directory, lease.owner) as witness:
        print("at work", file=sys.stderr, flush=True)
        %s
"""


def driver(run: Path, end: str) -> tuple[int, list[str], dict[str, Any]]:
    """Its status, what is said on standard error, and run.json."""
    command = [sys.executable, "-c", PROGRAM % end, str(run)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    state = json.loads((run / RUN_FILE).read_text())
    return ended.returncode, ended.stderr.splitlines(), state


@pytest.mark.parametrize(
    ("end", "status", "line"),
    [
        ("os._exit(1)", 1, "was ended from outside (killed, or out of memory); run the same command again to go on"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, "was ended from outside"),
        (
            "witness.knows(Lifelines('/nowhere/raylet', '127.0.0.1:1', 60.0, '/logs', True)); os._exit(1)",
            1,
            "or its local Ray was ended from outside (killed, or out of memory; Ray's logs are in /logs); run the ",
        ),
        (
            "witness.knows(Lifelines('/nowhere/raylet', '127.0.0.1:1', 60.0, '/logs')); os._exit(1)",
            1,
            "that this process is attached to has ended; run the same command again to go on",
        ),
    ],
)
def test_an_end_without_a_word_is_told(tmp_path: Path, end: str, status: int, line: str) -> None:
    ended, said, document = driver(tmp_path, end)
    assert ended == status, said
    assert [text for text in said if text.startswith("failed: ")] == [said[-1]]
    assert line in said[-1]
    deadline = time.monotonic() + 60
    while document["state"] != "interrupted":  # it says so at first, and nobody waits for what it writes
        assert time.monotonic() < deadline
        time.sleep(0.05)
        document = json.loads((tmp_path / RUN_FILE).read_text())
    assert said[-1] == f"failed: {document['reason']}"


def test_who_ends_with_a_word_has_no_witness(tmp_path: Path) -> None:
    ended, said, document = driver(tmp_path, "pass")
    assert (ended, said, document["state"]) == (0, ["at work"], "running")


def test_what_another_driver_has_taken_up_is_left_to_that(tmp_path: Path) -> None:
    driver(tmp_path, "pass")
    (tmp_path / DRIVER_FILE).write_text('{"owner": "another"}')
    heard = [{"url": str(tmp_path), "options": {}, "owner": "the first", "pid": 1, "speaks": True}]
    program = "import json, sys; from datainf_ray.cluster.witness import tell; tell(json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", program, json.dumps(heard)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ended.stderr.startswith("failed: "), ended.stderr
    assert json.loads((tmp_path / RUN_FILE).read_text())["state"] == "running"
    (tmp_path / DRIVER_FILE).write_text('{"owner": "the first"}')
    subprocess.run(command, timeout=100, check=True)
    assert json.loads((tmp_path / RUN_FILE).read_text())["state"] == "interrupted"
