"""Peak memory of the driver and of a worker as the rows get more.

Nothing is kept in the object store: what a worker reads there counts as its own resident memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.commands import run_datainf
from bench.measure import Figure, Options, say
from bench.models import Shape
from bench.workers import corpus

SHAPE, ROWS, QUERIES, CHUNK_ROWS = Shape(32, 1, vocabulary=64, heads=2, kv_heads=2), 8000, 256, 1000
TIMES = (1, 4, 16)


def memory(options: Options) -> Iterator[Figure]:
    """Resident bytes at n, 4n and 16n rows, with every score written; of the workers that of the largest."""
    rows, queries, chunk_rows = (12, 4, 4) if options.small else (ROWS, QUERIES, CHUNK_ROWS)
    folder = options.scratch / "memory"
    folder.mkdir()
    peaks: dict[str, list[int]] = {}
    private: dict[str, list[int]] = {}
    for times in TIMES:
        say(f"memory: {times * rows:,} rows")
        config = corpus(folder, SHAPE, times * rows, queries, longest=12, median_length=8)
        cluster = {"max_workers": 1, "cpus_per_worker": 1, "chunk_rows": chunk_rows}
        more = {"cluster": cluster, "results": {"scores": True}, "gradients": "recompute"}
        ran = run_datainf({**config, **more}, folder, watch=True)
        for kind in ("driver", "worker"):
            peaks.setdefault(kind, []).append(ran.peaks[kind])
            private.setdefault(kind, []).append(ran.private[kind])
    scores = 4 * queries * rows * TIMES[-1]
    for kind, found in peaks.items():
        own = ", ".join(f"{n / 2**20:,.0f}" for n in private[kind])
        case = f"{', '.join(f'{t * rows:,}' for t in TIMES)} rows × {queries} queries"
        yield Figure(
            "memory",
            case,
            f"{kind}'s peak, at {TIMES[-1]}n over at n",
            found[-1] / found[0],
            "×",
            ("≤", 1.1),
            f"{', '.join(f'{n / 2**20:,.0f}' for n in found)} MiB resident, {own} MiB not shared; "
            f"the scores of {TIMES[-1]}n are {scores / 2**20:,.0f} MiB",
            {"resident": found, "private": private[kind]},
        )
