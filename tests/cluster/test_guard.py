"""A driver whose Ray is killed says so in one line, run.json says interrupted, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from bench.machines import RAY_SETTINGS

from datainf_ray.cluster import guard
from datainf_ray.cluster.guard import Guard
from datainf_ray.cluster.lifelines import Lifelines
from datainf_ray.common.errors import ClusterLostError
from tests import tiny
from tests.cluster.head import free_port, head
from tests.runs_of import COMMAND, tables
from tests.waiting import wait_for

ROWS = 1600  # their scores take longer than the guard waits for a GCS, on a quick machine too


@contextmanager
def listening(server: socket.socket) -> Iterator[socket.socket]:
    """It takes connections and keeps them, as a raylet does, until it ends."""
    held: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                held.append(server.accept()[0])

    server.listen()
    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server
    finally:
        with suppress(OSError):  # it may have ended already
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        for one in held:
            one.close()


def _listener(port: int) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", port))
    return server


def _raylet(folder: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "raylet"))
    return server


@pytest.mark.slow
def test_a_head_may_be_away_for_as_long_as_ray_would_wait_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, told = free_port(), threading.Event()
    lines = Lifelines(str(tmp_path / "raylet"), f"127.0.0.1:{port}", 6.0, str(tmp_path))
    monkeypatch.setattr(guard, "KNOCK", 0.05)
    monkeypatch.setattr(guard, "lifelines", lambda local: lines)
    with listening(_raylet(tmp_path)), Guard(lambda error: told.set()) as watch:
        with listening(_listener(port)):
            watch.begin(local=False)
            assert not told.wait(1)
        assert not told.wait(1)  # away
        with listening(_listener(port)):
            assert not told.wait(6)  # and back
            watch.check()
        assert told.wait(20)
        with pytest.raises(ClusterLostError, match=rf"the head .* at 127.0.0.1:{port} has not answered for 5 s; run "):
            watch.check()


def test_a_ray_that_is_ended_by_us_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[ClusterLostError] = []
    lines = Lifelines(str(tmp_path / "raylet"), "127.0.0.1:1", 60.0, str(tmp_path))
    monkeypatch.setattr(guard, "lifelines", lambda local: lines)
    with listening(_raylet(tmp_path)), Guard(told.append) as watch:
        watch.begin(local=True)
    [thread.join() for thread in threading.enumerate() if thread.name == "guard"]
    assert told == []


class Scene:
    """A configuration whose scores take many seconds, and what an undisturbed run of it gives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tiny.write_rows(folder / "train.jsonl", ROWS, seed=1)
        tiny.write_rows(folder / "queries.jsonl", 4, seed=2)
        config = tiny.configuration(folder, tiny.save_model(folder, "llama"), folder / "run", gradients="recompute")
        config["cluster"] |= {"batch_tokens": 1}
        self.config = folder / "c.yaml"
        self.config.write_text(json.dumps(config))
        quiet = self.begin("quiet")
        assert quiet.wait(200) == 0
        self.quiet = tables(folder / "quiet")

    def begin(self, name: str, address: str | None = None, program: str | None = None) -> subprocess.Popen[bytes]:
        command = COMMAND if program is None else (sys.executable, "-c", program)
        joins = {"RAY_ADDRESS": address} if address else {}
        with (self.folder / f"{name}.err").open("wb") as err, (self.folder / f"{name}.out").open("wb") as out:
            return subprocess.Popen(
                [*command, "run", str(self.config), f"--set=output={self.folder / name}"],
                env=os.environ | RAY_SETTINGS | joins, stdout=out, stderr=err,
            )  # fmt: skip

    def said(self, name: str) -> list[str]:
        return (self.folder / f"{name}.err").read_text().splitlines()

    def until_scores(self, process: subprocess.Popen[bytes], name: str) -> None:
        wait_for(lambda: (self.folder / name / "checkpoints" / "ihvp.json").is_file() or process.poll() is not None)
        assert process.poll() is None, self.said(name)

    def record(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / name / "run.json").read_text())
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("guard"))


def victims(which: str, rays: list[psutil.Process]) -> list[psutil.Process]:
    """Of Ray's processes those that are to be killed."""
    raylets = [p for p in rays if p.name() == "raylet"]
    if which == "agent":
        return [p for r in raylets for p in r.children() if "ashboard" in " ".join(p.cmdline())]
    return {"raylet": raylets, "gcs": [p for p in rays if p.name() == "gcs_server"], "all": rays}[which]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "which", "line"),
    [
        ("local", "raylet", "the local Ray has ended (its raylet is gone; its logs are in "),
        ("local", "agent", "; its logs are in |; Ray's logs are in "),  # whoever is quicker: the guard or the witness
        ("local", "gcs", "the local Ray has ended (its GCS is gone; its logs are in "),
        ("joined", "raylet", "that this process is attached to has ended"),
        ("joined", "agent", "that this process is attached to has ended"),
        ("joined", "gcs", "that this process is attached to has ended"),  # `ray start --block` ends the rest, too
        ("joined", "all", "that this process is attached to has ended"),
    ],
)
def test_a_driver_whose_ray_is_killed_says_so_and_goes_on(scene: Scene, where: str, which: str, line: str) -> None:
    name = f"{where}-{which}"
    with head() if where == "joined" else nullcontext() as there:
        process = scene.begin(name, there.address if there else None)
        try:
            scene.until_scores(process, name)
            if there is None:
                rays = psutil.Process(process.pid).children(recursive=True)
            else:
                marked = (p for p in psutil.process_iter() if str(there.folder) in " ".join(_arguments(p)))
                rays = [p for p in marked if p.pid != process.pid]
            killed = victims(which, rays)
            assert killed
            for one in killed:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            assert process.wait(30) == 1, scene.said(name)
        finally:
            process.kill()
            process.wait()
        wait_for(lambda: scene.said(name)[-1].startswith("failed: "), 10)
    said = scene.said(name)
    assert any(part in said[-1] for part in line.split("|"))
    assert said[-1].endswith("; run the same command again to go on")
    assert "Traceback" not in "".join(said)
    wait_for(lambda: scene.record(name)["state"] == "interrupted", 10)
    assert said[-1] == f"failed: {scene.record(name)['reason']}"
    if there is None:
        _, alive = psutil.wait_procs(rays, timeout=120)  # Ray's agents wait for a GCS for a minute
        assert not alive

    again = scene.begin(name)
    assert again.wait(200) == 0, scene.said(name)
    assert tables(scene.folder / name) == scene.quiet


def _arguments(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


#: A user's own program, which may live on.
NOTEBOOK = """
import sys, datainf_ray
try:
    datainf_ray.attribute(sys.argv[2], output=sys.argv[3].partition("=output=")[2], progress=False)
except datainf_ray.RunFailedError as error:
    print(type(error).__name__, error, flush=True)
print("and so on", flush=True)
"""


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("which", ["raylet", "gcs"])
def test_a_users_program_gets_an_error_and_lives(scene: Scene, which: str) -> None:
    name = f"notebook-{which}"
    process = scene.begin(name, program=NOTEBOOK)
    try:
        scene.until_scores(process, name)
        for one in victims(which, psutil.Process(process.pid).children(recursive=True)):
            one.send_signal(signal.SIGKILL)
        assert process.wait(60) == 0, scene.said(name)
    finally:
        process.kill()
        process.wait()
    assert scene.record(name)["state"] == "interrupted"
    said = (scene.folder / f"{name}.out").read_text()
    assert "ClusterLostError the local Ray has ended (its " in said
    assert said.splitlines()[-1] == "and so on"
