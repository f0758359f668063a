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

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datainf_ray.common.errors import RequestError, RunFailedError
from datainf_ray.runs import lease
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.lease import DRIVER_FILE, Lease


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.1)


def left_behind(directory: RunDirectory, **keys: Any) -> None:
    directory.write_json(
        DRIVER_FILE, {"owner": "other", "host": "elsewhere", "pid": 1, "started": "x", "beat": 0, **keys}
    )


def test_a_second_driver_is_told_of_the_first(directory: RunDirectory) -> None:
    with (
        Lease(directory),
        pytest.raises(RequestError, match=rf"a run is at work there \(process {os.getpid()} on "),
        Lease(directory),
    ):
        pass
    assert not directory.exists(DRIVER_FILE)
    with Lease(directory):
        assert directory.exists(DRIVER_FILE)
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
    assert (tmp_path / DRIVER_FILE).exists()
    monkeypatch.setattr(lease, "BEAT", 1e6)  # it is not watched
    with Lease(RunDirectory(tmp_path)):
        assert json.loads((tmp_path / DRIVER_FILE).read_text())["pid"] == os.getpid()


def test_a_number_that_another_process_has_by_now_is_no_sign_of_life(directory: RunDirectory) -> None:
    with Lease(directory):
        mine = json.loads(directory.read(DRIVER_FILE))
    left_behind(directory, host=mine["host"], pid=mine["pid"], started=mine["started"] + "0")
    with Lease(directory):
        pass


def test_a_driver_elsewhere_is_watched(directory: RunDirectory) -> None:
    left_behind(directory)
    with Lease(directory) as taken:
        assert json.loads(directory.read(DRIVER_FILE))["owner"] != "other"
        assert taken.lost is None
    stop = threading.Event()

    def beats() -> None:
        beat = 0
        while not stop.wait(0.05):
            left_behind(directory, owner="another", beat=(beat := beat + 1))

    left_behind(directory, owner="another")
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
    assert json.loads(directory.read(DRIVER_FILE))["owner"] == "other"  # it is theirs


def test_it_is_renewed(directory: RunDirectory) -> None:
    with Lease(directory):
        before = json.loads(directory.read(DRIVER_FILE))
        deadline = time.monotonic() + 5
        while json.loads(directory.read(DRIVER_FILE))["beat"] == before["beat"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_nothing_of_it_is_a_secret(tmp_path: Path) -> None:
    with Lease(RunDirectory(tmp_path)):
        assert set(json.loads((tmp_path / DRIVER_FILE).read_text())) == {
            "owner",
            "host",
            "pid",
            "started",
            "beat",
            "progress",
        }


def test_news_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 1e6)
    far = {"sweep": None}
    with Lease(RunDirectory(tmp_path), lambda: dict(far)) as held:
        far["sweep"] = "scores"
        held.tell()
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / DRIVER_FILE).read_text())["progress"] != {"sweep": "scores"}:
            assert time.monotonic() < deadline
            time.sleep(0.01)


class Late(RunDirectory):
    """For a driver that is slow: once it has found a run to be nobody's, it waits for `go` before it does anything."""

    def __init__(self, url: str, go: threading.Event, ready: threading.Event) -> None:
        super().__init__(url)
        self.go, self.ready, self.tried = go, ready, False

    def _act(self, name: str) -> None:
        if self.tried and not name.startswith(".probe"):
            self.ready.set()
            assert self.go.wait(20)
        self.tried = True

    def commit(self, name: str, data: bytes) -> bool:
        self._act(name)
        return super().commit(name, data)

    def write(self, name: str, data: bytes) -> None:
        self._act(name)
        super().write(name, data)

    def remove(self, name: str) -> None:
        self._act(name)
        super().remove(name)


def test_of_two_that_take_over_at_the_same_moment_one_has_the_run(directory: RunDirectory) -> None:
    left_behind(directory)
    go, ready = threading.Event(), threading.Event()
    said: list[str] = []

    def second() -> None:
        try:
            with Lease(Late(directory.url, go, ready)):
                said.append("has it too")
        except RequestError as error:
            said.append(str(error))

    slow = threading.Thread(target=second)
    slow.start()
    assert ready.wait(20)
    with Lease(directory) as first:
        go.set()
        slow.join(20)
        assert "a run is at work there" in said[0]
        first.write_json("run.json", {})
        first.check()


def test_of_many_one_has_the_run(tmp_path: Path) -> None:
    for _ in range(5):
        left_behind(RunDirectory(tmp_path))
        holders: list[Lease] = []
        refused: list[str] = []
        over, begin = threading.Barrier(7), threading.Barrier(6)

        def driver(
            holders: list[Lease] = holders,
            refused: list[str] = refused,
            over: threading.Barrier = over,
            begin: threading.Barrier = begin,
        ) -> None:
            begin.wait(20)
            try:
                with Lease(RunDirectory(tmp_path)) as held:
                    holders.append(held)
                    over.wait(20)
            except RequestError as error:
                refused.append(str(error))
                over.wait(20)

        threads = [threading.Thread(target=driver) for _ in range(6)]
        for thread in threads:
            thread.start()
        over.wait(20)
        for thread in threads:
            thread.join()
        assert (len(holders), len(refused)) == (1, 5)
        assert holders[0].lost is None
        assert not (tmp_path / DRIVER_FILE).exists()


def test_a_driver_that_was_succeeded_writes_nothing_more(directory: RunDirectory) -> None:
    """It slept, and its next beat is far: what it is about to write is what it knew before."""
    sleeper = Lease(directory)
    sleeper._mine["host"] = "elsewhere"
    with sleeper:
        sleeper._over = True  # no more beats
        with Lease(directory) as successor:
            successor.write_json("run.json", {"state": "done"})
            with pytest.raises(RunFailedError, match="has taken the run over"):
                sleeper.write_json("run.json", {"state": "running"})
            successor.check()
    assert directory.read_json("run.json") == {"state": "done"}


def test_a_beat_that_comes_after_all_gives_the_run_to_nobody(directory: RunDirectory) -> None:
    left_behind(directory)
    with Lease(directory) as successor:
        left_behind(directory, beat=1)  # its last one, begun before it slept
        successor.write_json("run.json", {})
        beat = directory.read(DRIVER_FILE)
        deadline = time.monotonic() + 10
        while b"elsewhere" in directory.read(DRIVER_FILE):
            assert time.monotonic() < deadline, beat
            time.sleep(0.01)
    left_behind(directory, beat=2)
    with Lease(directory) as third:
        third.check()


class Unwell(MemoryFileSystem):
    """A store that does not answer at times: nothing at all, or no writes."""

    protocol = "unwell"
    store: dict[str, Any] = {}  # noqa: RUF012 - fsspec's own is the class's, too
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = False
    away, then = "", ""  # what does not work, and what will not once the watcher has looked for the first time
    failed: dict[str, int] = {}  # noqa: RUF012 - by thread

    def _answers(self, writes: bool) -> None:
        if Unwell.away == "all" or (Unwell.away and writes):
            name = threading.current_thread().name
            Unwell.failed[name] = Unwell.failed.get(name, 0) + 1
            raise ConnectionResetError("made to be away")

    def cat_file(self, *args: Any, **kwargs: Any) -> bytes:
        self._answers(False)
        found = super().cat_file(*args, **kwargs)
        if threading.current_thread().name == "watcher":
            Unwell.away, Unwell.then = Unwell.away or Unwell.then, ""
        return found

    def info(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self._answers(False)
        return super().info(*args, **kwargs)

    def pipe_file(self, *args: Any, **kwargs: Any) -> None:
        self._answers(True)
        super().pipe_file(*args, **kwargs)


@pytest.mark.parametrize("away", ["all", "writes"])
def test_a_store_that_is_away_for_a_while_hands_no_run_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, away: str
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.5)
    fsspec.register_implementation("unwell", Unwell, clobber=True)
    Unwell.store.clear()
    Unwell.failed.clear()
    said: list[str] = []
    holder = Lease(RunDirectory("unwell://a/run"))
    holder._mine["host"] = "elsewhere"  # a driver of this machine is not watched

    def watch() -> None:
        try:
            with Lease(RunDirectory("unwell://a/run")):
                said.append("has taken it over")
        except RequestError as error:
            said.append(str(error))

    watcher = threading.Thread(target=watch, name="watcher")
    with holder:
        monkeypatch.setattr(Unwell, "away", "")
        monkeypatch.setattr(Unwell, "then", away)
        watcher.start()
        deadline = time.monotonic() + 60
        while not {"lease", "watcher"} <= Unwell.failed.keys():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        began = time.monotonic()
        while time.monotonic() - began < 2 * 3 * lease.BEAT:  # twice what a silent driver is given
            assert watcher.is_alive(), said
            time.sleep(0.05)
        Unwell.away = ""
        watcher.join(30)
        holder.check()
        assert len(said) == 1
        assert "a run is at work there" in said[0]
    assert "made to be away" in caplog.text
