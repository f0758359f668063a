"""Events are written as they come, read back, and drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from datainf_ray.runs import events
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.events import EVENTS, SCHEMA, Journal, read_events
from datainf_ray.runs.report.drawing import inline_svg
from datainf_ray.runs.report.page import write_report
from datainf_ray.runs.report.timeline import Timeline, draw, timeline

if TYPE_CHECKING:
    from conftest import Made


def test_events_come_back_in_order(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST", 3)
    journal = Journal(directory)
    journal.flush()  # nothing to write
    assert directory.list(EVENTS) == []
    for chunk in range(5):
        journal.log("chunk_done", chunk=chunk, worker="0", detail=None)
        journal.tick()
    assert len(directory.list(EVENTS)) == 1  # the last two wait for their time
    journal.flush()
    found = read_events(directory)
    assert found.schema == SCHEMA
    assert found["chunk"].to_pylist() == [0, 1, 2, 3, 4]
    assert set(found["attempt"].to_pylist()) == {journal.attempt}
    assert found["time"].to_pylist() == sorted(found["time"].to_pylist())
    lines = directory.read(directory.list(EVENTS)[0]).decode().splitlines()
    assert set(json.loads(lines[0])) == {"time", "event", "chunk", "worker"}


def test_events_that_could_not_be_written_are_kept(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(directory)
    journal.log("worker_up", worker="0")
    with monkeypatch.context() as patch:

        def full(name: str, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(directory, "write", full)
        with pytest.raises(OSError, match="No space"):
            journal.flush()
    journal.flush()
    assert read_events(directory)["event"].to_pylist() == ["worker_up"]


def test_what_went_wrong_is_told_without_credentials(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    journal = Journal(directory)
    journal.log("worker_lost", detail="cannot sign with wJalrXUtnFEMI")
    journal.flush()
    assert read_events(directory)["detail"].to_pylist() == ["cannot sign with ***"]


def story(directory: RunDirectory) -> None:
    """Two attempts an hour apart. In the first a worker whose clock is fast is lost; in the second one does all."""

    def write(attempt: str, *told: dict[str, Any]) -> None:
        text = "".join(json.dumps(event) + "\n" for event in told)
        directory.write(f"{EVENTS}{attempt}-00000.jsonl", text.encode())

    def up(time: float, worker: str, host: str) -> dict[str, Any]:
        return {"time": time, "event": "worker_up", "worker": worker, "host": host}

    def chunk(time: float, worker: str, host: str, sweep: str, began: float, waited: float = 0.0) -> dict[str, Any]:
        who = {"worker": worker, "host": host, "sweep": sweep, "chunk": 1}
        return {"time": time, "event": "chunk_done", **who, "began": began, "ended": began + 2, "waited": waited}

    write(
        "20260101T000000Z-aaaa",
        {"time": 1000.0, "event": "run_begun"},
        up(1004.0, "0", "a"),
        up(1004.0, "1", "b"),
        chunk(1006.0, "0", "a", "curvature", 1004.0, 0.5),
        chunk(1007.0, "1", "b", "curvature", 1505.0),
        chunk(1008.0, "0", "a", "curvature", 1006.0),
        {"time": 1009.0, "event": "worker_lost", "worker": "1", "host": "b"},
        {"time": 1009.0, "event": "chunk_lost", "worker": "1", "host": "b", "chunk": 2},
        {"time": 1010.0, "event": "run_interrupted"},
    )
    write(
        "20260101T010000Z-bbbb",
        {"time": 4600.0, "event": "run_begun"},
        up(4604.0, "0", "a"),
        chunk(4608.0, "0", "a", "scores", 4606.0),
        {"time": 4608.0, "event": "run_done"},
    )


def read(directory: RunDirectory) -> Timeline:
    story(directory)
    found = timeline(read_events(directory))
    assert found is not None
    return found


def test_the_timeline_has_every_worker_in_one_clock_and_no_time_between_attempts(directory: RunDirectory) -> None:
    found = read(directory)
    assert [(lane.label, lane.up, lane.down, lane.lost) for lane in found.lanes] == [
        ("a · 0", 4.0, 10.0, False),
        ("b · 1", 4.0, 9.0, True),
        ("a · 0", 14.0, 18.0, False),
    ]
    assert found.attempts == [0.0, 10.0]
    assert found.end == 18.0
    np.testing.assert_allclose(found.lanes[0].busy["curvature"], [[4.0, 8.0]], rtol=1e-9)  # two that touch are one
    np.testing.assert_allclose(found.lanes[1].busy["curvature"], [[5.0, 7.0]], rtol=1e-9)
    np.testing.assert_allclose(found.lanes[2].busy["scores"], [[16.0, 18.0]], rtol=1e-9)
    assert (found.hosts, found.lost_chunks, found.waiting, found.computing) == (2, 1, 0.5, 8.0)
    assert found.share == pytest.approx(8 / 15)
    assert inline_svg(draw(found), "a", "a") == inline_svg(draw(found), "a", "a")


def test_the_report_draws_it(made: Callable[..., Made]) -> None:
    without = made()
    write_report(without.run)
    assert "Who computed what" not in without.run.directory.read("report.html").decode()
    story(without.run.directory)
    write_report(without.run)
    page = " ".join(without.run.directory.read("report.html").decode().split())
    assert "The last of 2 attempts took 10 min 20 s" in page
    assert "3 workers on 2 machines, in 2 attempts" in page
    assert "They computed 53.3 % of the time that they were up, and waited 0.5 s for rows to be read." in page
    assert "1 was lost (×), and 1 chunk with them, which others computed." in page
    assert "var(--series-1)" in page
