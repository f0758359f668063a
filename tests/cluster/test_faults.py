"""Workers, nodes and drivers that are killed at named moments of a run on a cluster of several nodes.

The result is that of an undisturbed run, bit for bit. jobs/chaos.py does the same at random moments.
"""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from bench.machines import Driver, Machines, machines, parquet_files
from chaos import configuration

import datainf_ray
from datainf_ray.runs.lease import DRIVER_FILE

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

#: As if every state were large: held in the object store, and joined by Ray's tasks.
LARGE = "import datainf_ray.cluster.reduce as reduce; reduce.HERE = -1"


class Scene:
    """The cluster, a configuration, and what an undisturbed run of it gives."""

    def __init__(self, cluster: Machines, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.config = configuration(folder, None)
        config = yaml.safe_load(self.config.read_text())
        config["cluster"]["checkpoint_seconds"] = 0.3
        self.config.write_text(yaml.safe_dump(config))
        self.quiet = parquet_files(self.done(self.start("quiet"), "quiet"))

    def start(self, name: str, before: str = "") -> Driver:
        log = self.folder / f"{name}.log"
        return Driver(self.config, log, self.cluster.address, [f"--set=output={self.folder / name}"], before)

    def done(self, driver: Driver, name: str) -> Path:
        try:
            assert driver.wait(250) == 0, driver.output()[-3000:]
        finally:
            driver.end()
        return self.folder / name

    def until(self, driver: Driver, name: str, moment: str) -> None:
        """Wait until this driver is at work, and the curvature has a checkpoint, or the first scores are written."""
        run = self.folder / name

        def at_work() -> bool:
            try:
                return bool(json.loads((run / DRIVER_FILE).read_text())["pid"] == driver.process.pid)
            except FileNotFoundError:
                return False

        there: dict[str, Callable[[], bool]] = {
            "curvature": lambda: (run / "checkpoints/sums/curvature-1.json").is_file(),
            "scores": lambda: any((run / "checkpoints/scores").glob("chunk-*.parquet")),
        }
        deadline = time.monotonic() + 200
        while not (at_work() and there[moment]()):
            assert not driver.over, driver.output()[-3000:]
            assert time.monotonic() < deadline, driver.output()[-3000:]
            time.sleep(0.02)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with machines(2) as cluster:
        yield Scene(cluster, tmp_path_factory.mktemp("faults"))


def test_workers_and_nodes_may_be_killed_and_workers_may_hang(scene: Scene) -> None:
    driver = scene.start("nodes")
    scene.until(driver, "nodes", "curvature")
    scene.cluster.workers(1)[0].kill()
    time.sleep(1)
    scene.cluster.kill(0)  # the other node, with the other worker
    scene.cluster.add()
    scene.until(driver, "nodes", "scores")
    scene.cluster.drain(0)
    time.sleep(1)
    scene.cluster.kill(0)
    scene.cluster.add()
    hangs = scene.cluster.workers()[0]
    hangs.suspend()  # what it has is started a second time, and the first result counts
    try:
        run = scene.done(driver, "nodes")
        assert parquet_files(run) == scene.quiet
    finally:
        hangs.kill()
    told = Counter(datainf_ray.open_run(str(run)).events()["event"].to_pylist())
    assert told["worker_lost"] >= 1
    assert told["worker_lost"] + told["worker_cannot_start"] >= 2  # the other one may have been about to start
    assert told["chunk_lost"] >= told["worker_lost"]
    assert told["chunk_started_again"] >= 1


def test_sums_in_the_object_store_may_go_down_with_their_node(scene: Scene) -> None:
    driver = scene.start("large", LARGE)
    scene.until(driver, "large", "curvature")
    scene.cluster.kill(0)
    scene.cluster.add()
    scene.until(driver, "large", "scores")
    scene.cluster.kill(0)
    scene.cluster.add()
    assert parquet_files(scene.done(driver, "large")) == scene.quiet
    assert "were lost with" in driver.output()


def test_drivers_may_be_killed_and_there_is_one_at_a_time(scene: Scene) -> None:
    for moment, number in (
        ("curvature", signal.SIGKILL),
        ("curvature", signal.SIGTERM),
        ("scores", signal.SIGKILL),
    ):
        driver = scene.start("drivers")
        scene.until(driver, "drivers", moment)
        if number is signal.SIGTERM:
            driver.send(signal.SIGSTOP)  # else it may be done before the second one has read its configuration
            second = scene.start("drivers")
            assert second.wait(100) == 2
            assert f"a run is at work there (process {driver.process.pid} on " in second.output()
            driver.send(signal.SIGCONT)
        began = time.monotonic()
        driver.send(number)
        assert driver.wait(10) == (-9 if number is signal.SIGKILL else 130)
        assert time.monotonic() - began < 3  # which is all that `ray job stop` gives
    driver = scene.start("drivers")
    run = scene.done(driver, "drivers")
    assert parquet_files(run) == scene.quiet
    said = driver.output()
    assert "curvature: " in said
    assert "rows taken up from an earlier attempt" in said
    sweeps = [sweep["name"] for sweep in json.loads((run / "run.json").read_text())["sweeps"]]
    assert sweeps == ["queries", "pilot", "curvature", "scores"]  # each once
