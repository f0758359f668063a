"""Figures, how they are timed, and on what machine."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

T = TypeVar("T")

#: "at least" or "at most" a number.
Aim = tuple[Literal["≥", "≤"], float]


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line. `small` makes every table as small as it can be: for tests."""

    scratch: Path  # a folder of this run's own
    repeats: int = 3
    threads: int | None = None  # None: what suits the table
    queries: int = 50
    small: bool = False
    size: str = "1B"
    peers: Path | None = None
    work: Path | None = None
    bergson: Path | None = None


@dataclass(frozen=True)
class Figure:
    """One line of the table. `value` is None where it could not be measured; `note` says why, or what it is made of."""

    table: str
    case: str
    name: str
    value: float | None
    unit: str = ""
    aim: Aim | None = None
    note: str = ""
    runs: Mapping[str, Sequence[float]] = field(default_factory=dict)  # what was measured, in the order it was

    @property
    def met(self) -> bool | None:
        if self.aim is None or self.value is None:
            return None
        sign, bound = self.aim
        return self.value >= bound if sign == "≥" else self.value <= bound


def interleaved(things: Mapping[str, Callable[[], T]], repeats: int, warm: bool = True) -> dict[str, list[T]]:
    """What each thing returns, `repeats` times: the things take turns, and a first round of turns is thrown away.

    So what the machine does meanwhile falls on all of them alike.
    """
    if warm:
        for thing in things.values():
            thing()
    found: dict[str, list[T]] = {name: [] for name in things}
    for _ in range(repeats):
        for name, thing in things.items():
            found[name].append(thing())
    return found


def clock(work: Callable[[], object], device: torch.device | None = None) -> Callable[[], float]:
    """`work` as something that returns the seconds it took, on a GPU to the end of what it began there."""

    def timed() -> float:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    return timed


median = statistics.median


def spread(above: Sequence[float], below: Sequence[float]) -> str:
    """The lowest and the highest ratio of a round, for a note."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return f"rounds {min(ratios):.2f} to {max(ratios):.2f}"


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    cpu = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "load": [round(x, 2) for x in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(("torch", "transformers", "peft", "ray", "datainf-ray")),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _versions(packages: Iterable[str]) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _commit() -> str | None:
    """The commit that is measured, with a + where files were changed since; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def say(text: str) -> None:
    """What is going on, beside the table."""
    print(text, file=sys.stderr, flush=True)
