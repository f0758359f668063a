"""`datainf run` as its users start it: a process of its own, with a Ray of its own, watched from outside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LOOK = 0.05  # seconds between two looks at the processes' memory
_LIST = 0.5  # between two searches for new processes, which cost more


class CommandFailedError(Exception):
    """A command ended with another status than 0; the message is the last thing it said."""


@dataclass
class Ran:
    """A run that is done: `seconds` of the whole command, the driver's own CPU time, and bytes by kind of process."""

    seconds: float
    driver_cpu: float
    document: dict[str, Any]  # run.json
    output: Path
    peaks: dict[str, int] = field(default_factory=dict)  # resident; of workers and tasks the largest
    private: dict[str, int] = field(default_factory=dict)  # of that what is not shared, as the object store is

    @property
    def sweeps(self) -> list[dict[str, Any]]:
        return self.document["sweeps"]

    @property
    def inside(self) -> float:
        """Seconds inside the sweeps, that over the queries included."""
        return sum(sweep["seconds"] for sweep in self.sweeps)

    @property
    def startup(self) -> float:
        """Seconds until there was a worker to compute with: Ray's start, imports, the model."""
        return self.document.get("startup", 0.0)

    @property
    def rate(self) -> float:
        """Tokens per second of the sweeps over all training rows that made gradients."""
        made = [s for s in self.sweeps if s["source"] == "backward" and s["name"] not in ("queries", "pilot")]
        return sum(s["tokens"] for s in made) / sum(s["seconds"] for s in made)


def run_datainf(config: Mapping[str, Any], scratch: Path, watch: bool = False) -> Ran:
    """Do a run from nothing and throw its results away but for run.json. Raises `CommandFailedError`.

    With `watch` the peaks of memory are taken, which costs the machine a little.
    """
    output = scratch / "run"
    shutil.rmtree(output, ignore_errors=True)
    file = scratch / "run.yaml"
    file.write_text(json.dumps({**config, "output": str(output)}))  # YAML too
    command = [sys.executable, "-c", "from datainf_ray.cli import main; main()", "run", str(file)]
    with (scratch / "run.log").open("w+b") as log:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)
        watcher = _Watcher(process.pid) if watch else None
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - began
        cpu = _cpu_seconds(process.pid)  # there to be read until the process is waited for
        status = process.wait()
        if watcher:
            watcher.stop()
        if status:
            log.seek(0)
            raise CommandFailedError(_last(log.read().decode(errors="replace")))
    document = json.loads((output / "run.json").read_text())
    peaks, private = (watcher.peaks, watcher.private) if watcher else ({}, {})
    return Ran(seconds, cpu, document, output, peaks, private)


def run_lines(command: Sequence[str | Path], threads: int) -> list[dict[str, Any]]:
    """What a command prints, of which every line that is JSON. Raises `CommandFailedError`."""
    done = subprocess.run(
        [str(part) for part in command],
        env=environment() | {"OMP_NUM_THREADS": str(threads), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise CommandFailedError(_last(done.stderr or done.stdout))
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]


def environment() -> dict[str, str]:
    """Ours, without a cluster to join and without the network."""
    ours = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return ours | {"RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _cpu_seconds(pid: int) -> float:
    import psutil

    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


class _Watcher:
    """Looks at a driver and all that it started, from a thread, until the driver ends."""

    def __init__(self, pid: int) -> None:
        self.peaks: dict[str, int] = {}
        self.private: dict[str, int] = {}
        self._pid, self._stop = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        driver = psutil.Process(self._pid)
        known: list[psutil.Process] = []
        listed = 0.0
        while not self._stop.wait(_LOOK):
            try:
                if time.perf_counter() - listed > _LIST:
                    known, listed = driver.children(recursive=True), time.perf_counter()
                self._note("driver", driver)
            except psutil.Error:  # it has ended
                return
            for process in known:
                try:
                    title = (process.cmdline() or [""])[0]
                    if title.startswith("ray::") and "IDLE" not in title:
                        self._note("worker" if "Worker" in title else "task", process)
                except psutil.Error:  # ended since it was listed
                    continue

    def _note(self, kind: str, process: Any) -> None:
        info = process.memory_info()
        self.peaks[kind] = max(self.peaks.get(kind, 0), info.rss)
        self.private[kind] = max(self.private.get(kind, 0), info.rss - getattr(info, "shared", 0))
