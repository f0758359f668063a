"""Two drivers on one run directory: the second is told of the first, unless the first is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.runs import lease
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.lease import FILE, Lease


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.1)


def left_behind(directory: RunDirectory, **keys: Any) -> None:
    directory.write_json(FILE, {"owner": "other", "host": "elsewhere", "pid": 1, "started": "x", "beat": 0, **keys})


def test_a_second_driver_is_told_of_the_first(directory: RunDirectory) -> None:
    with (
        Lease(directory),
        pytest.raises(RequestError, match=rf"a run is at work there \(process {os.getpid()} on "),
        Lease(directory),
    ):
        pass
    assert not directory.exists(FILE)
    with Lease(directory):
        assert directory.exists(FILE)
        assert directory.list() == []  # it is no file of the run


PROGRAM = """
import os, sys
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.lease import Lease
Lease(RunDirectory(sys.argv[1])).__enter__()
os._exit(0)
"""


def test_a_driver_of_this_machine_that_is_gone_is_taken_for_gone_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=True)
    assert (tmp_path / FILE).exists()
    monkeypatch.setattr(lease, "BEAT", 1e6)  # it is not watched
    with Lease(RunDirectory(tmp_path)):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


def test_a_number_that_another_process_has_by_now_is_no_sign_of_life(directory: RunDirectory) -> None:
    with Lease(directory):
        mine = json.loads(directory.read(FILE))
    left_behind(directory, host=mine["host"], pid=mine["pid"], started=mine["started"] + "0")
    with Lease(directory):
        pass


def test_a_driver_elsewhere_is_watched(directory: RunDirectory) -> None:
    left_behind(directory)
    with Lease(directory) as taken:
        assert json.loads(directory.read(FILE))["owner"] != "other"
        assert taken.lost is None
    stop = threading.Event()

    def beats() -> None:
        beat = 0
        while not stop.wait(0.05):
            left_behind(directory, beat=(beat := beat + 1))

    left_behind(directory)
    other = threading.Thread(target=beats)
    other.start()
    try:
        with pytest.raises(RequestError, match=r"process 1 on elsewhere"), Lease(directory):
            pass
    finally:
        stop.set()
        other.join()


def test_a_driver_that_slept_too_long_stops(directory: RunDirectory) -> None:
    with Lease(directory) as sleeper:
        sleeper.check()
        left_behind(directory)
        deadline = time.monotonic() + 5
        while sleeper.lost is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(RunFailedError, match="has taken the run over"):
            sleeper.check()
    assert json.loads(directory.read(FILE))["owner"] == "other"  # it is theirs


def test_it_is_renewed(directory: RunDirectory) -> None:
    with Lease(directory):
        before = json.loads(directory.read(FILE))
        deadline = time.monotonic() + 5
        while json.loads(directory.read(FILE))["beat"] == before["beat"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_nothing_of_it_is_a_secret(tmp_path: Path) -> None:
    with Lease(RunDirectory(tmp_path)):
        assert set(json.loads((tmp_path / FILE).read_text())) == {"owner", "host", "pid", "started", "beat", "progress"}


def test_news_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 1e6)
    far = {"sweep": None}
    with Lease(RunDirectory(tmp_path), lambda: dict(far)) as held:
        far["sweep"] = "scores"
        held.tell()
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / FILE).read_text())["progress"] != {"sweep": "scores"}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
