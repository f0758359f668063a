"""A real head with the Jobs API: jobs that are submitted, fail, are stopped and go on; runs that nobody waits for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from bench.machines import RAY_SETTINGS

import datainf_ray
from datainf_ray.common.errors import RunFailedError
from tests import tiny
from tests.cluster.head import RAY, Head, head
from tests.runs_of import tables
from tests.waiting import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
ROWS = 800


class Scene:
    """The head, and a configuration whose sweeps take some seconds."""

    def __init__(self, there: Head, folder: Path) -> None:
        self.head, self.folder = there, folder
        tiny.write_rows(folder / "train.jsonl", ROWS, seed=1)
        tiny.write_rows(folder / "queries.jsonl", 4, seed=2)
        config = tiny.configuration(folder, tiny.save_model(folder, "llama"), folder / "run", gradients="recompute")
        config["cluster"] |= {"batch_tokens": 1}
        self.config = folder / "c.yaml"
        self.config.write_text(json.dumps(config))

    def submit(self, name: str, *arguments: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        """As the README has it, from a checkout; the job is called after the run."""
        entry = [sys.executable, "jobs/attribute.py", str(self.config), f"--set=output={self.folder / name}"]
        job = ["job", "submit", "--address", self.head.dashboard, "--working-dir", str(ROOT), f"--submission-id={name}"]
        return self.ray(*job, *([] if wait else ["--no-wait"]), "--", *entry, *arguments)

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RAY, *arguments], env=os.environ | RAY_SETTINGS, capture_output=True, text=True, timeout=200
        )

    def status(self, name: str) -> str:
        said = self.ray("job", "status", name, "--address", self.head.dashboard).stdout
        return re.findall(r"PENDING|RUNNING|SUCCEEDED|FAILED|STOPPED", said.upper())[0]

    def begin(self, name: str) -> subprocess.Popen[bytes]:
        """A session that asks for a run, does not wait for it, and stays."""
        program = (
            "import sys, time, datainf_ray\n"
            "datainf_ray.attribute(sys.argv[1], output=sys.argv[2], block=False)\n"
            "time.sleep(1000)"
        )
        command = [sys.executable, "-c", program, str(self.config), str(self.folder / name)]
        environment = os.environ | RAY_SETTINGS | {"RAY_ADDRESS": self.head.address}
        return subprocess.Popen(command, env=environment, cwd=self.folder)

    def open(self, name: str) -> datainf_ray.Run:
        return datainf_ray.open_run(str(self.folder / name))

    def driver(self, name: str) -> psutil.Process:
        return psutil.Process(json.loads((self.folder / name / ".driver.json").read_text())["pid"])

    def until(self, name: str, moment: str) -> None:
        wait_for(lambda: (self.folder / name / "checkpoints" / f"{moment}.json").is_file())

    def metrics(self) -> dict[str, float]:
        """What the head's Prometheus endpoint has of ours."""
        with urllib.request.urlopen(self.head.metrics, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if line.startswith("ray_datainf_"))
        return {name: float(value) for name, _, value in pairs}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with head() as there:
        yield Scene(there, tmp_path_factory.mktemp("head"))


@pytest.fixture(scope="module")
def quiet(scene: Scene) -> Path:
    """An undisturbed run, by a job."""
    done = scene.submit("quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    assert scene.status("quiet") == "SUCCEEDED"
    said = done.stdout
    assert re.search(
        r"^curvature: 800 of 800 rows, [\d,]+ tokens/s, [12] workers?, took [\d.:]+( s)?$", said, re.MULTILINE
    )
    assert re.search(r"^done in \d+ s: 800 of 800 rows scored$", said, re.MULTILINE)
    assert "\r" not in said
    assert "━" not in said  # no bars in a log
    return scene.folder / "quiet"


def test_a_job_that_was_stopped_is_submitted_again_and_goes_on(scene: Scene, quiet: Path) -> None:
    scene.submit("stopped", wait=False)
    scene.until("stopped", "ihvp")
    began = time.monotonic()
    stopped = scene.ray("job", "stop", "stopped", "--address", scene.head.dashboard)
    assert "was stopped" in stopped.stdout, stopped.stdout + stopped.stderr
    assert time.monotonic() - began < 20
    assert scene.status("stopped") == "STOPPED"
    run = scene.open("stopped")
    assert run.state == "interrupted"
    logs = scene.ray("job", "logs", "stopped", "--address", scene.head.dashboard).stdout
    assert "interrupted; run the same command again to go on" in logs

    again = scene.ray(
        "job", "submit", "--address", scene.head.dashboard, "--working-dir", str(ROOT), "--",
        sys.executable, "jobs/attribute.py", str(scene.config), f"--set=output={run.url}",
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert "taken up from an earlier attempt" in again.stdout
    assert tables(run) == tables(quiet)


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        (
            "wrong",
            "train.path=nowhere.jsonl",
            r"^error: train\.path: nowhere\.jsonl: no such file or directory; it was looked for in /",
        ),
        ("fails", "cluster.start_timeout=1", r"^failed: no worker could be started within 1 s .* takes 64 CPUs, and"),
    ],
)
def test_a_run_that_fails_fails_its_job(scene: Scene, name: str, change: str, line: str) -> None:
    room = ["--set=cluster.cpus_per_worker=64"] if name == "fails" else []
    done = scene.submit(name, f"--set={change}", *room)
    assert done.returncode == 1
    assert scene.status(name) == "FAILED"
    assert re.search(line, done.stdout, re.MULTILINE), done.stdout


def test_a_run_goes_on_without_the_session_that_asked_for_it(scene: Scene, quiet: Path) -> None:
    """The session is killed, then the driver's process; Ray makes the driver again. Metrics tell of all of it."""
    session = scene.begin("background")
    scene.until("background", "queries")
    session.kill()
    session.wait()
    run = scene.open("background")
    driver = scene.driver("background")
    seen = scene.metrics()
    scene.until("background", "ihvp")
    driver.kill()
    heard = []
    while run.state != "done":
        seen |= scene.metrics()
        heard.append(run.progress())
        time.sleep(0.3)
        assert run.state in ("running", "done")
    run.wait(60)
    assert any(now.sweep == "scores" and now.workers and 0 < now.done <= ROWS for now in heard)
    assert tables(run) == tables(quiet)

    events = run.events().to_pylist()
    assert [e["event"] for e in events if e["event"].startswith("run_")] == ["run_begun", "run_begun", "run_done"]
    done = [e for e in events if e["event"] == "chunk_done" and e["sweep"] == "scores"]
    assert {e["chunk"] for e in done} <= set(range(ROWS // 8))
    assert all(e["began"] <= e["ended"] for e in done)
    swept = [value for name, value in seen.items() if name.startswith("ray_datainf_rows_total") and run.url in name]
    assert swept
    assert max(swept) <= ROWS
    kinds = {name.partition("{")[0].removeprefix("ray_datainf_") for name in seen if f'run="{run.url}"' in name}
    assert kinds >= {"rows_total", "tokens_total", "chunks_total", "workers", "tokens_per_second"}
    assert all('worker="' in name for name in seen if "rows_total" in name or "tokens_per_second" in name)
    assert any('outcome="done"' in name for name in seen)


def test_a_run_on_a_cluster_is_stopped_from_anywhere_and_there_is_one_at_a_time(scene: Scene, quiet: Path) -> None:
    session = scene.begin("asked")
    try:
        scene.until("asked", "queries")
        driver = scene.driver("asked")
        driver.suspend()  # else it may be done before the second one has asked
        second = subprocess.run(
            [sys.executable, "-c", SECOND, str(scene.config), str(scene.folder / "asked")],
            env=os.environ | RAY_SETTINGS | {"RAY_ADDRESS": scene.head.address},
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert "a run is at work there" in second.stdout, second.stdout + second.stderr
        run = scene.open("asked")
        run.stop()
        driver.resume()
        with pytest.raises(RunFailedError, match="interrupted: stopped on request; run it again to go on"):
            run.wait(60)
    finally:
        session.kill()
        session.wait()
    with pytest.raises(datainf_ray.RequestError, match="nobody is at work on it"):
        run.stop()
    again = scene.begin("asked")  # its driver is there still, and can be asked how it went
    try:
        wait_for(lambda: run.state == "running")
        assert tables(run.wait(100)) == tables(quiet)
    finally:
        again.kill()
        again.wait()


SECOND = """
import sys, datainf_ray
try:
    datainf_ray.attribute(sys.argv[1], output=sys.argv[2], block=False).wait()
except datainf_ray.RequestError as error:
    print(error)
"""


def test_what_is_wrong_with_a_request_is_told_by_wait(scene: Scene) -> None:
    """What takes a look at the model, which the driver on the cluster takes."""
    wrong = json.loads(scene.config.read_text()) | {"output": str(scene.folder / "misfit")}
    config: dict[str, Any] = wrong | {"model": wrong["model"] | {"base": wrong["model"]["adapter"]}}
    path = scene.folder / "misfit.yaml"
    path.write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", SECOND, str(path), config["output"]],
        env=os.environ | RAY_SETTINGS | {"RAY_ADDRESS": scene.head.address},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout.startswith("model.base: "), done.stdout + done.stderr
