"""A Ray head as `ray start --head` makes it, with dashboard, Jobs API and metrics, on 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from bench.machines import RAY_SETTINGS

RAY = str(Path(sys.executable).with_name("ray"))
_STARTED = "Ray runtime started"


@dataclass(frozen=True)
class Head:
    address: str  # for RAY_ADDRESS
    dashboard: str  # for `ray job submit --address`
    metrics: str  # where Prometheus would ask this node
    folder: Path  # for all that Ray writes

    @property
    def logs(self) -> Path:
        return self.folder / "session_latest" / "logs"


@contextmanager
def head(cpus: int = 2, environment: Mapping[str, str] | None = None) -> Iterator[Head]:
    """A head with so many CPUs that is gone afterwards. Only Ray's metrics are hurried."""
    folder = Path(tempfile.mkdtemp(prefix="head-"))
    port, dashboard, metrics = free_port(), free_port(), free_port()
    options = [
        f"--port={port}", f"--num-cpus={cpus}", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}",
    ]  # fmt: skip
    hurried = {"RAY_metrics_report_interval_ms": "1000", **(environment or {})}
    with started(folder, options, hurried):
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics", folder)


@contextmanager
def started(folder: Path, options: Sequence[str], environment: Mapping[str, str]) -> Iterator[None]:
    """`ray start --head` with these options, with all that it writes in `folder`, which is removed afterwards."""
    command = [
        RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}",
        "--dashboard-agent-listen-port=0", "--object-store-memory=100000000", "--disable-usage-stats", *options,
    ]  # fmt: skip
    log = folder / "head.log"
    everything = os.environ | RAY_SETTINGS | environment
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=everything, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while _STARTED not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        _end(process, folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End the head and all that it started, and nothing else."""
    ours = {p.pid: p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])}
    for one in list(ours.values()):
        try:
            ours.update({child.pid: child for child in one.children(recursive=True)})
        except psutil.NoSuchProcess:
            continue
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(list(ours.values()), timeout=6)
    for one in alive:
        with suppress(psutil.NoSuchProcess):  # it was just about to end
            one.kill()
    psutil.wait_procs(alive, timeout=5)
    process.wait(10)
    shutil.rmtree(folder, ignore_errors=True)
