"""A whole `datainf run` on a local Ray (tokenising, reading, writing) over training on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from bench.commands import Ran, run_datainf
from bench.measure import Figure, Options, clock, interleaved, median, say
from bench.models import TARGETS, Shape, adamw, lengths, pair, save, token_rows, train, write_text
from bench.sweep import padded

SHAPE, ROWS, QUERIES, CHUNK_ROWS, BATCH_TOKENS = Shape(256, 6), 900, 20, 300, 2048
SMALL = Shape(32, 1, vocabulary=64)


def whole(options: Options) -> Iterator[Figure]:
    """Tokens per second of one worker with one thread over those of training with one thread."""
    say("end to end: datainf run against training, one thread each")
    torch.set_num_threads(1)
    shape, rows, queries = (SMALL, 24, 2) if options.small else (SHAPE, ROWS, QUERIES)
    chunk_rows = min(CHUNK_ROWS, rows // 3)
    folder = options.scratch / "whole"
    folder.mkdir()
    model = save(folder, shape, TARGETS["q,v"])
    some = token_rows(lengths(rows, 4), shape.vocabulary, 5)
    write_text(folder / "train.jsonl", some)
    write_text(folder / "queries.jsonl", token_rows(lengths(queries, 6), shape.vocabulary, 7))
    config = {
        "model": model,
        "train": {"path": str(folder / "train.jsonl"), "id": "name"},
        "queries": {"path": str(folder / "queries.jsonl"), "id": "name"},
        "cluster": {"max_workers": 1, "cpus_per_worker": 1, "chunk_rows": chunk_rows, "batch_tokens": BATCH_TOKENS},
        "gradients": "recompute",
    }
    ended = [[*ids, 1] for ids in some]  # the end token, as the run's own encoder adds it
    batches = [b for k in range(0, rows, chunk_rows) for b in padded(ended[k : k + chunk_rows], BATCH_TOKENS)]
    _, trained = pair(shape, TARGETS["q,v"])
    optimizer = adamw(trained)
    epoch = clock(lambda: train(trained, batches, optimizer))
    runs: list[Ran] = []
    things: dict[str, Callable[[], float]] = {
        "training": epoch,
        "run": lambda: _kept(runs, run_datainf(config, folder)),
    }
    epoch()
    seconds = interleaved(things, options.repeats, warm=False)
    tokens = sum(len(ids) for ids in ended)
    assert runs[0].sweeps[-1]["tokens"] == tokens, "training and the run have not seen the same tokens"
    floor = tokens / median(seconds["training"])
    inside = median([run.rate for run in runs])
    outside = [sum(s["tokens"] for s in run.sweeps) / (run.document["seconds"] - run.startup) for run in runs]
    startup = median([run.startup for run in runs])
    note = (
        f"{{:,.0f}} over {floor:,.0f} tokens/s; hidden {shape.hidden}, {rows:,} rows, {queries} queries; "
        f"{median([run.document['seconds'] for run in runs]):.3g} s, of which start-up {startup:.3g} s"
    )
    measured = {
        **seconds,
        "inside": [run.inside for run in runs],
        "run.json": [run.document["seconds"] for run in runs],
        "startup": [run.startup for run in runs],
    }
    for name, rate in (("inside the sweeps", inside), ("all but start-up", median(outside))):
        yield Figure(
            "end to end",
            "one thread",
            f"{name} / training step",
            rate / floor,
            "×",
            ("≥", 0.9),
            note.format(rate),
            measured,
        )


def _kept(runs: list[Ran], run: Ran) -> float:
    runs.append(run)
    return run.seconds
