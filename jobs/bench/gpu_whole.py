"""Whole runs with Ray on one GPU, gradients kept and not, over training on the same batches on it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.commands import Ran, run_datainf
from bench.gpu import SIZES
from bench.measure import Figure, Options, clock, interleaved, median, say
from bench.models import TARGETS, Shape, adamw, lengths, pair, save, token_rows, train, write_text
from bench.sweep import padded

ROWS, QUERIES = 2000, (100, 1000)
BATCH_TOKENS = 16_384


def gpu_whole(options: Options) -> Iterator[Figure]:
    """Tokens per second inside the sweeps, and in all but start-up, over those of a training step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape: Shape = SIZES[options.size][0]
    tiny = options.size == "tiny"
    rows, batch_tokens = (24, 256) if tiny else (ROWS, BATCH_TOKENS)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    folder = options.scratch / "gpu-whole"
    folder.mkdir()
    model = save(folder, shape, TARGETS["q,v"], dtype)
    some = token_rows(lengths(rows, 4, median=200, longest=1024), shape.vocabulary, 5)
    write_text(folder / "train.jsonl", some)
    ended = [[*ids, 1] for ids in some]
    floor = _floor(options, shape, ended[: rows // 4], batch_tokens, dtype, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the runs are other processes
    for queries in (4,) if tiny else QUERIES:
        write_text(
            folder / "queries.jsonl", token_rows(lengths(queries, 6, median=200, longest=1024), shape.vocabulary, 7)
        )
        for kept in ("keep", "recompute"):
            case = f"{options.size}, {rows:,} rows, {queries:,} queries, gradients: {kept}"
            say(f"gpu-whole: {case}")
            config = {
                "model": model,
                "train": {"path": str(folder / "train.jsonl")},
                "queries": {"path": str(folder / "queries.jsonl")},
                "cluster": {"max_workers": 1},
                "gradients": kept,
            }
            yield from _figures(case, run_datainf(config, folder), sum(map(len, ended)), floor)


def _figures(case: str, ran: Ran, tokens: int, floor: float) -> Iterator[Figure]:
    seconds = ran.document["seconds"] - ran.startup
    sweeps = ", ".join(f"{s['name']} {s['seconds']:.3g} s ({s['source']})" for s in ran.sweeps)
    note = (
        f"{ran.rate:,.0f} over {floor:,.0f} tokens/s; {ran.seconds:.3g} s in all, start-up {ran.startup:.3g}; {sweeps}"
    )
    yield Figure("gpu-whole", case, "inside the sweeps / training step", ran.rate / floor, "×", ("≥", 0.9), note)
    passes = sum(s["tokens"] for s in ran.sweeps if s["source"] == "backward") / tokens
    rate = passes * tokens / seconds
    note = f"{passes:.2f} passes over the tokens in {seconds:.3g} s"
    yield Figure("gpu-whole", case, "all but start-up / training step", rate / floor, "×", None, note)


def _floor(
    options: Options,
    shape: Shape,
    rows: list[list[int]],
    batch_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """Tokens per second of training on batches like those of the run."""
    replica, trained = pair(shape, TARGETS["q,v"], dtype, device)
    del replica
    batches = [batch.to(device) for batch in padded(rows, batch_tokens)]
    optimizer = adamw(trained)
    seconds = interleaved({"training": clock(lambda: train(trained, batches, optimizer), device)}, options.repeats)
    return sum(map(len, rows)) / median(seconds["training"])
