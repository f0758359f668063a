"""What the driver takes for a chunk, when chunks are tiny and many."""

from __future__ import annotations

from collections.abc import Iterator

from bench.commands import Ran, run_datainf
from bench.measure import Figure, Options, say
from bench.models import Shape
from bench.workers import corpus

SHAPE, WORKERS, QUERIES = Shape(16, 1, vocabulary=64, heads=2, kv_heads=2), 1, 1
FEW, MANY = 100, 10_000  #: chunks of one row each; what is there at any number is taken away by the difference


def queue(options: Options) -> Iterator[Figure]:
    """The driver's own CPU time, and the clock's, for one chunk in one sweep."""
    few, many = (4, 200) if options.small else (FEW, MANY)
    say(f"queue: {many:,} chunks of one row")
    folder = options.scratch / "queue"
    folder.mkdir()

    def run(rows: int) -> Ran:
        config = corpus(folder, SHAPE, rows, QUERIES, longest=12, median_length=8)
        cluster = {"max_workers": WORKERS, "cpus_per_worker": 1, "chunk_rows": 1}
        return run_datainf({**config, "cluster": cluster, "gradients": "recompute"}, folder)

    short, long = run(few), run(many)
    sweeps = [s for s in long.sweeps if s["name"] not in ("queries", "pilot")]  # those are of few chunks in both
    visits = (many - few) * len(sweeps)
    case = f"{many:,} chunks of one row, {len(sweeps)} sweeps over them, {WORKERS} worker"
    measured = {"driver": [short.driver_cpu, long.driver_cpu], "whole": [short.seconds, long.seconds]}
    yield Figure(
        "queue",
        case,
        "driver's CPU time per chunk and sweep",
        (long.driver_cpu - short.driver_cpu) / visits * 1e3,
        "ms",
        None,
        f"{long.driver_cpu:.3g} s in all, {short.driver_cpu:.3g} s with {few} chunks",
        measured,
    )
    yield Figure(
        "queue",
        case,
        "time per chunk and sweep, inside the sweeps",
        sum(s["seconds"] for s in sweeps) / (many * len(sweeps)) * 1e3,
        "ms",
        None,
        f"the whole command took {long.seconds:.3g} s",
        measured,
    )
