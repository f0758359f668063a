"""Architectures by adapters: run each on a small random model, and compare with a float64 loop over its bare rows.

    python jobs/adapters.py [--only WORDS ...] [--table FILE]

Every case is a whole run: a base and an adapter as transformers and PEFT save them, 24 rows and 3 queries of different
lengths. Runs share a Ray that is started here, and its workers; some are the `datainf` command, with a Ray of its own.
`--only` takes the cases whose name has one of the words ("Llama / q,v", "DoRA").

Prints a Markdown table: the path of the gradients, the largest relative error of a query's influences, and the lowest
rank correlation. Status 1 if an error is above 1e-4 (and above twice that of the same loop in float32), if blocks are
missing, or if a case is refused that should not be, or the reverse.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # tests.warm, which lends a run's workers to the next
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import pyarrow.parquet as pq
import torch
from bench.commands import CommandFailedError, run_datainf
from zoo.cases import CASES, Case
from zoo.exact import Exact
from zoo.make import save

from datainf_ray.model.quiet import quiet

REFUSED = "refused: "
MOST = 1e-4  # of the relative error
PATHS = {
    "hooks": "by hooks",
    "equal": "by hooks, rows of equal length together",
    "vmap": "by vmap, rows of equal length together",
    "one by one": "one row at a time",
}


@dataclass(frozen=True)
class Told:
    """What came of a case. `wrong` says why it is no right result."""

    case: Case
    path: str = ""
    error: float | None = None
    ranks: float | None = None
    left_out: int = 0
    reason: str = ""  #: why the rows do not share batches as they come
    wrong: str = ""

    def line(self) -> str:
        error = "" if self.error is None else f"{self.error:.1e}"
        ranks = "" if self.ranks is None else f"{self.ranks:.4f}"
        note = f"; {self.left_out} blocks of rounding left out" if self.left_out else ""
        wrong = f"; WRONG: {self.wrong}" if self.wrong else ""
        cells = (self.case.architecture, self.case.name, self.case.model.task, self.path + note + wrong, error, ranks)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(arguments: list[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    cases = [case for case in CASES if not asked.only or any(word in str(case) for word in asked.only)]
    if not cases:
        print("no case has such a name", file=sys.stderr)
        return 2
    heading = "| architecture | adapter | task | path | error | rank correlation |\n|---|---|---|---|---|---|"
    print(heading)
    told: list[Told] = []
    with tempfile.TemporaryDirectory(prefix="adapters-") as folder:
        for one in _all(cases, Path(folder)):
            told.append(one)
            print(one.line(), flush=True)
    if asked.table:
        Path(asked.table).write_text("\n".join((heading, *(one.line() for one in told))) + "\n")
    for reason, names in _reasons(told).items():
        print(f"- {reason}: {', '.join(names)}")
    print(_summary(told))
    return 1 if any(one.wrong for one in told) else 0


def _all(cases: list[Case], folder: Path) -> Iterator[Told]:
    """What comes of the cases: first those that share a Ray."""
    shared = [case for case in cases if not case.command]
    if shared:
        with _ray():
            for k, case in enumerate(shared):
                yield told(case, folder / f"shared-{k}")
    for k, case in enumerate(case for case in cases if case.command):
        yield told(case, folder / f"command-{k}")


def told(case: Case, folder: Path) -> Told:
    """Make a case in a folder, run it and compare."""
    from datainf_ray import RequestError, RunFailedError

    folder.mkdir()
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")  # PEFT's, about what a user would do next
        config = save(case, folder)
        try:
            found = _by_command(config, folder) if case.command else _shared(config)
        except (RequestError, RunFailedError, CommandFailedError) as error:
            line = " ".join(str(error).replace(str(folder), "…").split())[:300]
            expected = isinstance(error, RequestError) and case.refused and case.refused in line
            return Told(case, REFUSED + case.refused) if expected else Told(case, wrong=line)
        if case.refused:
            return Told(case, wrong="it is not refused")
        return compared(case, config, found)


def _shared(config: dict[str, Any]) -> Mapping[str, Any]:
    import datainf_ray

    run = datainf_ray.attribute(config, progress=False)
    return run.record.model_dump(mode="json")


def _by_command(config: dict[str, Any], folder: Path) -> Mapping[str, Any]:
    return run_datainf(config, folder).document


def compared(case: Case, config: Mapping[str, Any], record: Mapping[str, Any]) -> Told:
    """Influences of a finished run, of which `record` is the run.json, beside the exact ones."""
    exact, output = Exact(case, config), Path(config["output"])
    capture, left_out = record["capture"], record["left_out"]
    equal = capture["path"] == "hooks" and capture["lengths_reason"] is not None
    path = PATHS["equal" if equal else capture["path"]]
    reason = capture["reason"] or capture["lengths_reason"] or ""
    blocks = set(pq.read_table(output / "blocks.parquet")["block"].to_pylist())
    if blocks != set(exact.train):
        odd = sorted(blocks ^ set(exact.train))
        return Told(case, path, wrong=f"{len(odd)} blocks are in one of the two alone, as {odd[0]}")
    rows = pq.read_table(output / "examples").sort_by("row")
    statuses = Counter(rows["status"].to_pylist())
    if set(statuses) != {"ok"}:
        return Told(case, path, wrong=f"rows have {dict(statuses)}")
    got, want = np.array(rows["influence"].to_pylist(), dtype=np.float64), exact.influence(left_out)
    error, note = _error(got, want), ""
    ranks = min(_rank_correlation(a, b) for a, b in zip(got.T, want.T, strict=True))
    if not error <= MOST:  # or not a number
        single = _error(Exact(case, config, torch.float32).influence(left_out), want)
        note = f"; the loop itself in float32 {single:.1e}"
    wrong = "" if error <= MOST or error <= 2 * single else "its influences are others"
    return Told(case, path + note, error, ranks, len(left_out), reason, wrong)


def _error(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float:
    """The largest of the queries' relative errors."""
    return float((np.linalg.norm(got - want, axis=0) / np.linalg.norm(want, axis=0)).max())


def _rank_correlation(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Spearman's; no two values are alike."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


@contextmanager
def _ray() -> Iterator[None]:
    """A Ray on this machine, whose workers outlive their runs."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    import ray

    from tests import warm

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2 * 10**8)
    try:
        with warm.workers():
            yield
    finally:
        ray.shutdown()


def _reasons(told: list[Told]) -> dict[str, list[str]]:
    """Why rows go in rows of equal length or one at a time, and in which cases."""
    found: dict[str, list[str]] = {}
    for one in told:
        if one.reason:
            found.setdefault(one.reason, []).append(str(one.case))
    return found


def _summary(told: list[Told]) -> str:
    right = [one.path for one in told if not one.wrong]
    counts = ", ".join(
        f"{n} {path}" for path in PATHS.values() if (n := sum(p.partition(";")[0] == path for p in right))
    )
    counts += f"; {sum(path.startswith(REFUSED) for path in right)} refused as they should be"
    worst = max((one.error for one in told if one.error is not None), default=0.0)
    return (
        f"{len(told)} cases: {counts}; {sum(bool(one.wrong) for one in told)} wrong; the largest error is {worst:.1e}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run architectures by adapters, and compare with a float64 loop.")
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="of the names of cases; without: all")
    parser.add_argument("--table", help="write the Markdown table there, too")
    return parser


if __name__ == "__main__":
    began = time.perf_counter()
    try:
        sys.exit(main())
    finally:
        print(f"{time.perf_counter() - began:.0f} s")
