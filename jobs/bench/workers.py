"""One worker against two, of one thread each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.commands import Ran, run_datainf
from bench.measure import Figure, Options, interleaved, median, say, spread
from bench.models import TARGETS, Shape, lengths, save, token_rows, write_text

SHAPE, ROWS, QUERIES, CHUNK_ROWS = Shape(256, 6), 1200, 20, 50
SMALL = Shape(32, 1, vocabulary=64), 24, 2, 4


def workers(options: Options) -> Iterator[Figure]:
    """Tokens per second inside the sweeps, with two workers over those with one."""
    say("workers: one against two")
    folder = options.scratch / "workers"
    folder.mkdir()
    shape, rows, queries, chunk_rows = SMALL if options.small else (SHAPE, ROWS, QUERIES, CHUNK_ROWS)
    config = corpus(folder, shape, rows, queries)

    def run(count: int) -> Ran:
        cluster = {"max_workers": count, "min_workers": count, "cpus_per_worker": 1, "chunk_rows": chunk_rows}
        return run_datainf({**config, "cluster": cluster, "gradients": "recompute"}, folder)

    runs = interleaved({"one": lambda: run(1), "two": lambda: run(2)}, options.repeats, warm=False)
    one, two = ([done.rate for done in runs[name]] for name in ("one", "two"))
    yield Figure(
        "workers",
        f"{rows:,} rows in chunks of {chunk_rows}, one thread a worker",
        "two workers / one, inside the sweeps",
        median(two) / median(one),
        "×",
        ("≥", 1.9),
        f"{median(two):,.0f} over {median(one):,.0f} tokens/s; {spread(two, one)}",
        {"one": one, "two": two},
    )


def corpus(
    folder: Path, shape: Shape, rows: int, queries: int, longest: int = 192, median_length: int = 48
) -> dict[str, Any]:
    """A model and rows of text as files: the parts of a configuration that say what there is."""
    drawn = lengths(rows, 4, median_length, min(16, median_length), longest)
    write_text(folder / "train.jsonl", token_rows(drawn, shape.vocabulary, 5))
    write_text(folder / "queries.jsonl", token_rows(drawn[:queries], shape.vocabulary, 7))
    return {
        "model": save(folder, shape, TARGETS["q,v"]),
        "train": {"path": str(folder / "train.jsonl"), "id": "name"},
        "queries": {"path": str(folder / "queries.jsonl"), "id": "name"},
    }
