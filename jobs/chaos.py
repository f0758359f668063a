"""Kill things at random while runs go on, and see that every bit of the result is what an undisturbed run gives.

    python jobs/chaos.py [CONFIG] [--kills 50] [--seed 0] [--nodes 2] [--every 8] [--scratch DIR]

On a Ray cluster of several nodes on this machine: SIGKILL of a worker, of a whole node (another one comes up a while
later), of a node that was drained before, and of the driver, which is started again; SIGTERM to the driver, which must
end with status 130 within 3 seconds, and is started again. What is killed, and when, follows from the seed; what it
hits depends on the machine. When a run is done its Parquet files are compared, and the next one begins, until there
were so many kills. CONFIG is a run of yours, with its output replaced; without it a small random model is made. Ends
with status 1 if any bit differs. Needs `pip install -e ".[test]"`.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from bench.machines import RAY_SETTINGS, Driver, Machines, forget, machines, parquet_files, stage
from bench.measure import say
from bench.models import TARGETS, Shape, lengths, save, token_rows, write_text

KINDS = {"worker": 5, "node": 2, "drained node": 1, "driver": 2, "SIGTERM": 1}  #: and how often, against each other
_LONGEST = 900.0  # seconds that a run may take from one kill to the next, or to its end
_GRACE = 3.0  # seconds that `ray job stop` gives


def main() -> None:
    asked = _parser().parse_args()
    os.environ.update(RAY_SETTINGS)
    os.environ.pop("RAY_ADDRESS", None)
    scratch = Path(tempfile.mkdtemp(prefix="chaos-", dir=asked.scratch))
    config = configuration(scratch, asked.config)
    chance = random.Random(asked.seed)
    killed: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    wrong: list[str] = []
    runs = 0
    with machines(asked.nodes) as cluster:
        quiet = _run(cluster, config, scratch, "quiet")
        want = parquet_files(quiet)
        say(f"undisturbed: {len(want)} Parquet files, {sum(map(len, want.values())):,} bytes")
        while sum(killed.values()) < asked.kills:
            runs += 1
            left = asked.kills - sum(killed.values())
            run = _disturbed(cluster, config, scratch, chance, asked, left, killed, stages, wrong)
            have = parquet_files(run)
            different = [name for name in sorted(want.keys() | have.keys()) if want.get(name) != have.get(name)]
            say(f"run {runs}: done; {'the same bits' if not different else 'DIFFERENT: ' + ', '.join(different)}")
            wrong += [f"run {runs}: {name}" for name in different]
            forget(run)
    forget(scratch)
    say(f"{sum(killed.values())} kills in {runs} runs: " + ", ".join(f"{n} {kind}" for kind, n in killed.most_common()))
    say("during " + ", ".join(f"{name} {n}" for name, n in stages.most_common()))
    if wrong:
        say("WRONG: " + "; ".join(wrong))
        sys.exit(1)
    say("every Parquet file of every run is the undisturbed run's, bit for bit")


def _disturbed(
    cluster: Machines,
    config: Path,
    scratch: Path,
    chance: random.Random,
    asked: argparse.Namespace,
    left: int,
    killed: Counter[str],
    stages: Counter[str],
    wrong: list[str],
) -> Path:
    """One run from nothing to its end, with at most `left` kills on the way."""
    run, log = scratch / "run", scratch / "log"
    log.unlink(missing_ok=True)
    driver = Driver(config, log, cluster.address, [f"--set=output={run}"])
    deadline = time.monotonic() + _LONGEST
    due = time.monotonic() + chance.expovariate(1 / asked.every)
    before = ""  # what had been said when this driver was started
    comes: list[float] = []  # when nodes come up in place of those that were killed
    draining: list[tuple[float, Any]] = []  # nodes that were announced to go, and when they do
    try:
        while not driver.over:
            time.sleep(0.05)
            now = time.monotonic()
            if now > deadline:
                raise TimeoutError(f"nothing happens any more; the driver said:\n{driver.output()[-3000:]}")
            while comes and comes[0] < now:
                comes.pop(0)
                cluster.add()
            if draining and draining[0][0] < now:
                node = draining.pop(0)[1]
                cluster.kill(cluster.nodes.index(node))
                comes.append(now + 1)
            if not left or now < due or stage(run) == "done":
                continue
            due = now + chance.expovariate(1 / asked.every)
            kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
            free = [n for n in cluster.nodes if all(n is not d for _, d in draining)]
            at = stage(run)
            if kind == "worker":
                workers = cluster.workers()
                if not workers:
                    continue
                chance.choice(workers).kill()
            elif kind in ("node", "drained node"):
                if len(free) < 2:
                    continue  # one stays, so that there is somebody to go on
                node = chance.randrange(len(cluster.nodes))
                if all(cluster.nodes[node] is not n for n in free):
                    continue
                if kind == "node":
                    cluster.kill(node)
                    comes.append(now + 2)
                else:
                    cluster.drain(node)
                    draining.append((now + 3, cluster.nodes[node]))
            else:
                heard = driver.output() != before  # else it has hardly begun, and nobody listens to signals yet
                driver.send(signal.SIGKILL if kind == "driver" else signal.SIGTERM)
                began = time.monotonic()
                status = driver.wait(60)
                took = time.monotonic() - began
                if status == 0:
                    break  # it was done a moment before
                if kind == "SIGTERM" and heard and (status != 130 or took > _GRACE):
                    wrong.append(f"SIGTERM during {at}: status {status} after {took:.1f} s")
                    say(driver.output()[len(before) :][-2000:])
                before = driver.output()
                driver = Driver(config, log, cluster.address, [f"--set=output={run}"])
            killed[kind] += 1
            stages[at] += 1
            left -= 1
            deadline = time.monotonic() + _LONGEST
            say(f"  {kind} during {at}")
        status = driver.wait(60)
        if status:
            raise RuntimeError(f"the driver ended with status {status}:\n{driver.output()[-3000:]}")
    finally:
        driver.end()
    for _, node in draining:
        cluster.kill(cluster.nodes.index(node))
    while len(cluster.nodes) < asked.nodes:
        cluster.add()
    return run


def _run(cluster: Machines, config: Path, scratch: Path, name: str) -> Path:
    run = scratch / name
    driver = Driver(config, scratch / "log", cluster.address, [f"--set=output={run}"])
    try:
        if driver.wait(_LONGEST):
            raise RuntimeError(f"the undisturbed run failed:\n{driver.output()[-3000:]}")
    finally:
        driver.end()
    return run


def configuration(scratch: Path, given: Path | None) -> Path:
    """The user's run, or one whose sweeps take some seconds each: batches of one, and many chunks."""
    if given is not None:
        return given.resolve()
    shape, rows = Shape(64, 2, vocabulary=256), 1500
    write_text(scratch / "train.jsonl", token_rows(lengths(rows, 1), shape.vocabulary, 2))
    write_text(scratch / "queries.jsonl", token_rows(lengths(8, 3), shape.vocabulary, 4))
    config = {
        "model": save(scratch, shape, TARGETS["q,v"]),
        "train": {"path": str(scratch / "train.jsonl"), "id": "name"},
        "queries": {"path": str(scratch / "queries.jsonl"), "id": "name"},
        "cluster": {"chunk_rows": 25, "batch_tokens": 1, "max_workers": 2, "checkpoint_seconds": 1},
        "gradients": "recompute",
        "results": {"blocks": True},
        "output": str(scratch / "run"),
    }
    path = scratch / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", nargs="?", type=Path, help="a run of yours; default: a small random model")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=2, help="of one CPU each")
    parser.add_argument("--every", type=float, default=8.0, help="seconds from one kill to the next, on average")
    parser.add_argument("--scratch", type=Path, help="where files are put meanwhile; default: the system's place")
    return parser


if __name__ == "__main__":
    main()
