"""The peers' fixed workload: the limit of DataInf's work on it, bergson's commands, and ours, in the same rounds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.commands import CommandFailedError, Ran, run_datainf, run_lines
from bench.measure import Figure, Options, interleaved, median, say, spread
from datainf_ray.model.quiet import quiet

THREADS = 2  #: of the limit, of bergson and of all our workers together
#: How our two threads are spread: workers × CPUs of each.
LAYOUTS = {"1 worker × 2": (1, 2), "2 workers × 1": (2, 1)}
#: What may be kept, and how many times the limit the sweeps may take.
MODES = {"keep": 1.15, "recompute": 2.2}


def peers(options: Options) -> Iterator[Figure]:
    """Ours inside the sweeps over the limit, and the whole command over bergson's; the scores against float64."""
    assert options.peers is not None
    folder, work = options.peers, options.work or options.scratch / "W"
    _prepare(options, folder, work)
    say("peers: the limit, bergson and datainf run, in turn")
    repeats = options.repeats
    layouts = dict(list(LAYOUTS.items())[:1]) if options.small else LAYOUTS

    def measured(script: str, *arguments: str, python: str | Path = sys.executable) -> Callable[[], dict[str, float]]:
        def command() -> dict[str, float]:
            lines = run_lines([python, folder / script, work, *arguments, "--repeats", "1"], THREADS)
            return {line["what"]: line["median_s"] for line in lines}

        return command

    things: dict[str, Callable[[], Any]] = {
        "epoch": measured("floor.py", "epoch"),
        "hooks": measured("floor.py", "hooks"),
        "algebra": measured("floor.py", "algebra"),
    }
    if options.bergson:
        scratch = options.scratch / "bergson"
        scratch.mkdir()
        things["bergson"] = measured("bergson_peer.py", str(scratch), "command", python=options.bergson)
    failed: dict[str, str] = {}
    for mode in MODES:
        for layout, (workers, cpus) in layouts.items():
            name = f"{mode}, {layout}"
            things[name] = _ours(options.scratch, work, mode, workers, cpus, name, failed)
    runs = interleaved(things, repeats, warm=False)

    hooks = [sum(v for what, v in r.items() if what.startswith("hook gradients")) for r in runs["hooks"]]
    algebra = [r["datainf in memory"] for r in runs["algebra"]]
    limits = [a + b for a, b in zip(hooks, algebra, strict=True)]
    limit = median(limits)
    epoch = median([r["training epoch, rows"] for r in runs["epoch"]])
    case = "the peers' workload"
    yield Figure("peers", case, "a LoRA epoch", epoch, "s")
    yield Figure(
        "peers",
        case,
        "limit of DataInf's work",
        limit,
        "s",
        None,
        f"gradients {median(hooks):.3g} s + algebra {median(algebra):.2g} s",
        {"limit": limits},
    )
    commands: float | None = None
    if options.bergson:
        rounds = [_bergson(r) for r in runs["bergson"]]
        commands = median(rounds)
        yield Figure(
            "peers", case, "bergson's commands", commands, "s", None, "the shorter of its two ways", {"bergson": rounds}
        )
    wanted = _in_float64(folder, work)
    for mode, aim in MODES.items():
        for layout in layouts:
            name = f"{mode}, {layout}"
            if name in failed:
                yield Figure("peers", name, "failed", None, note=failed[name])
                continue
            done: list[Ran] = runs[name]
            inside = [run.inside for run in done]
            yield Figure(
                "peers",
                name,
                "inside the sweeps / limit",
                median(inside) / limit,
                "×",
                ("≤", aim),
                f"{median(inside):.3g} s over {limit:.3g} s; {spread(inside, limits)}; {_parts(done)}",
                {"inside": inside, "limit": limits},
            )
            wall = [run.seconds for run in done]
            yield Figure(
                "peers",
                name,
                "whole command / bergson's commands",
                median(wall) / commands if commands else None,
                "×",
                ("≤", 1.0),
                f"{median(wall):.3g} s" + (f" over {commands:.3g} s" if commands else "; bergson was not run"),
                {"whole": wall},
            )
            yield Figure(
                "peers",
                name,
                "difference from the formula in float64",
                _difference(options.scratch / name.replace(" ", "-") / "run", wanted),
                "",
                ("≤", 1e-4),
                "relative, in the Frobenius norm",
            )


def _prepare(options: Options, folder: Path, work: Path) -> None:
    """The workload's files, and bergson's copies of the rows, where they are not there yet."""
    if not (work / "workload.json").exists():
        size = ["--rows", "24", "--queries", "3"] if options.small else []
        run_lines([sys.executable, folder / "workload.py", work, *size], THREADS)
    if options.bergson and not (work / "train.hf").exists():
        run_lines([options.bergson, folder / "workload.py", work, "--datasets"], THREADS)


def _ours(
    scratch: Path, work: Path, mode: str, workers: int, cpus: int, name: str, failed: dict[str, str]
) -> Callable[[], Ran | None]:
    folder = scratch / name.replace(" ", "-")
    folder.mkdir()
    config = {
        "model": {"base": str(work / "base"), "adapter": str(work / "adapter"), "task": "causal-lm"},
        "train": {"path": str(work / "train.jsonl"), "id": "name"},
        "queries": {"path": str(work / "queries.jsonl"), "id": "name"},
        "cluster": {"max_workers": workers, "cpus_per_worker": cpus},
        "gradients": mode,
    }

    def command() -> Ran | None:
        if name in failed:
            return None
        try:
            return run_datainf(config, folder)
        except CommandFailedError as error:
            failed[name] = str(error)
            return None

    return command


def _bergson(said: dict[str, float]) -> float:
    """The queries' index, then either the rows' index or the rows' scores as they come."""
    times = {what.removeprefix("bergson command: "): seconds for what, seconds in said.items()}
    return times["build queries"] + min(times["build rows"], times["score rows against queries"])


def _parts(done: list[Ran]) -> str:
    """The median seconds of every sweep."""
    names = [sweep["name"] for sweep in done[0].sweeps]
    return ", ".join(f"{name} {median([run.sweeps[k]['seconds'] for run in done]):.2g}" for k, name in enumerate(names))


def _in_float64(folder: Path, work: Path) -> np.ndarray:
    """The formula in float64 on gradients by the peers' own hooks: rows × queries."""
    sys.path.insert(0, str(folder))
    try:
        import floor
        import workload
    finally:
        sys.path.remove(str(folder))
    with quiet():
        hooks = floor.Hooks(workload.load(work, threads=THREADS))
    train, queries = (
        {name: g.double() for name, g in hooks.gradients(workload.read(work, file), 16).items()}
        for file in ("train", "queries")
    )
    return floor.datainf(train, queries).numpy()


def _difference(output: Path, wanted: np.ndarray) -> float:
    """How far a run's scores are from those, in the relative norm."""
    import datainf_ray
    from datainf_ray.runs.schemas import matrix

    found = matrix(datainf_ray.open_run(str(output)).examples()["influence"])
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
